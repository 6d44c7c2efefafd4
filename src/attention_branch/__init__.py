"""Image classifiers that show where they looked: the Attention Branch Network on any backbone."""

from typing import TYPE_CHECKING

from attention_branch.lazy import lazy_names

if TYPE_CHECKING:
    from attention_branch import metrics
    from attention_branch.errors import UserError
    from attention_branch.explanations import Explanation, channel_weights, explain
    from attention_branch.export import export
    from attention_branch.models import (
        ABNOutput,
        AttentionBranchNetwork,
        Losses,
        PlainNetwork,
        Preprocessing,
        abn_loss,
        create_backbone,
        create_model,
        list_backbones,
        load_model,
        load_official,
    )

__version__ = "0.1.0"

__all__ = [
    "ABNOutput",
    "AttentionBranchNetwork",
    "Explanation",
    "Losses",
    "PlainNetwork",
    "Preprocessing",
    "UserError",
    "abn_loss",
    "channel_weights",
    "create_backbone",
    "create_model",
    "explain",
    "export",
    "list_backbones",
    "load_model",
    "load_official",
    "metrics",
]

# Importing the package does not import torch, so `abn --help` answers at once.
lazy_names(
    __name__,
    {
        ".errors": ("UserError",),
        ".explanations": ("Explanation", "channel_weights", "explain"),
        ".export": ("export",),
        ".metrics": (),
        ".models": (
            "ABNOutput",
            "AttentionBranchNetwork",
            "Losses",
            "PlainNetwork",
            "Preprocessing",
            "abn_loss",
            "create_backbone",
            "create_model",
            "list_backbones",
            "load_model",
            "load_official",
        ),
    },
)
