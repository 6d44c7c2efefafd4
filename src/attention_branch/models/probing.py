"""What proofs are made on: a float64 copy of a backbone with weights that hide nothing, and how two answers differ."""

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn


def perturbed(backbone: nn.Module, generator: torch.Generator) -> Any:
    """Return a float64 copy of a backbone in eval mode, its weights moved by draws of the generator.

    Many nets start with scales of 1e-5 on their residual branches, tiny weights or a head of zeros, all of which would
    hide what a map does in the trained network.
    """
    probe = copy.deepcopy(backbone).double().eval()
    with torch.no_grad():
        for parameter in probe.parameters():
            if parameter.ndim > 1 and not parameter.any():
                parameter.add_(0.02 * torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype))
            elif parameter.ndim > 1:
                parameter.mul_(3)
            elif parameter.any():
                parameter.add_(0.3 * torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype))
    return probe


def relative_change(changed: Tensor, base: Tensor) -> float:
    """Return how far a tensor is from another, as a share of the other's norm."""
    # Hundreds of residual units with weights that were moved reach 1e200, whose squares no float64 holds.
    least = torch.finfo(base.dtype).tiny
    scale = base.abs().max().clamp_min(least)
    return float(((changed - base) / scale).norm() / (base / scale).norm().clamp_min(least))


def reproduces(run: Callable[[], Any], wanted: Tensor) -> bool:
    """Tell whether a computation runs and gives the wanted tensor, to 1e-9 of its norm."""
    try:
        result = run()
    except (TypeError, ValueError, RuntimeError, AssertionError, AttributeError, IndexError):
        return False  # Modules may need arguments that their parent computes (rotary embeddings, sizes).
    return isinstance(result, Tensor) and result.shape == wanted.shape and relative_change(result, wanted) < 1e-9
