"""Networks that were built elsewhere, as networks of this package."""

from typing import Any

import timm
import torch
from torch import nn

from attention_branch.errors import UserError
from attention_branch.models.network import PlainNetwork
from attention_branch.models.registry import complete
from attention_branch.models.saving import ModelConfig, check_class_names


def as_plain(backbone: nn.Module, name: str, class_names: Any = None) -> PlainNetwork:
    """Return a classifier of timm, or one that answers as those do, (N, K) scores, as one of our plain networks.

    It is the same module, not a copy. Raises `UserError` where it does not answer with class scores.
    """
    found = timm.data.resolve_model_data_config(backbone)
    mode = backbone.training
    try:
        with torch.no_grad():
            scores = backbone.eval()(torch.zeros(2, 3, *found["input_size"][1:]))
    except Exception as problem:  # A stranger's module may raise anything.
        reason = str(problem).splitlines()[0] if str(problem) else type(problem).__name__
        raise UserError(f"'{name}' does not run on images {found['input_size']} ({reason}).") from problem
    finally:
        backbone.train(mode)
    if not isinstance(scores, torch.Tensor) or scores.ndim != 2 or scores.shape[1] < 2:
        raise UserError(f"'{name}' does not answer with class scores (N, K); it is no classifier.")
    config = ModelConfig(name=name, num_classes=scores.shape[1])
    complete(config, backbone)
    config.class_names = check_class_names(class_names, config)
    return PlainNetwork(config, backbone)
