"""Image classifiers that show where they looked: the Attention Branch Network on any backbone."""

from attention_branch.errors import UserError
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
)

__version__ = "0.1.0"

__all__ = [
    "ABNOutput",
    "AttentionBranchNetwork",
    "Losses",
    "PlainNetwork",
    "Preprocessing",
    "UserError",
    "abn_loss",
    "create_backbone",
    "create_model",
    "list_backbones",
    "load_model",
]
