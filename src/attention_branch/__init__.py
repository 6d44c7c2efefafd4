"""Image classifiers that show where they looked: the Attention Branch Network on any backbone."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from attention_branch import metrics
    from attention_branch.errors import UserError
    from attention_branch.explanations import Explanation, channel_weights, explain
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
    "list_backbones",
    "load_model",
    "load_official",
    "metrics",
]

_ELSEWHERE = {
    "UserError": "errors",
    "Explanation": "explanations",
    "channel_weights": "explanations",
    "explain": "explanations",
}


def __getattr__(name: str) -> Any:
    # Looked up when first used: importing the package does not import torch, so `abn --help` answers at once.
    if name == "metrics":
        return import_module("attention_branch.metrics")
    if name not in __all__:
        raise AttributeError(f"module 'attention_branch' has no attribute '{name}'")
    return getattr(import_module(f"attention_branch.{_ELSEWHERE.get(name, 'models')}"), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
