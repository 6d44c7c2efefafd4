"""The networks: a backbone, the attention branch on it, and the gate between them."""

from typing import TYPE_CHECKING

from attention_branch.lazy import lazy_names

if TYPE_CHECKING:
    from attention_branch.models.loss import Losses, abn_loss, head_losses
    from attention_branch.models.network import AttentionBranchNetwork, PlainNetwork
    from attention_branch.models.official import load_official
    from attention_branch.models.output import ABNOutput
    from attention_branch.models.preprocessing import Preprocessing
    from attention_branch.models.registry import create_backbone, create_model, list_backbones
    from attention_branch.models.saving import load_model

__all__ = [
    "ABNOutput",
    "AttentionBranchNetwork",
    "Losses",
    "PlainNetwork",
    "Preprocessing",
    "abn_loss",
    "create_backbone",
    "create_model",
    "head_losses",
    "list_backbones",
    "load_model",
    "load_official",
]

lazy_names(
    __name__,
    {
        ".loss": ("Losses", "abn_loss", "head_losses"),
        ".network": ("AttentionBranchNetwork", "PlainNetwork"),
        ".official": ("load_official",),
        ".output": ("ABNOutput",),
        ".preprocessing": ("Preprocessing",),
        ".registry": ("create_backbone", "create_model", "list_backbones"),
        ".saving": ("load_model",),
    },
)
