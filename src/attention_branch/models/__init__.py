"""The networks: a backbone, the attention branch on it, and the gate between them."""

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
