"""Attributions of single pixels, computed by captum: integrated gradients and occlusion."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from attention_branch.errors import UserError
from attention_branch.explanations.cam import parameters_frozen
from attention_branch.explanations.outputs import class_scores
from attention_branch.explanations.targets import head_logits

STEPS = 50
"""Steps of the integral from the baseline to the image."""

WINDOWS = 8
"""Occlusion's window is this share of a side; it moves by half of itself."""

_AT_ONCE = 32


def integrated_gradients(model: nn.Module, images: Tensor, classes: Tensor, head: str | None) -> tuple[Tensor, str]:
    """Return the sum over channels of the integrated gradients (T, H, W), signed, and the settings in words.

    Of the class score before the softmax, from the mean colour (zeros), 50 steps (Sundararajan et al., ICML 2017).
    """
    captum = _captum()
    score = _score(model, head)
    with torch.enable_grad(), parameters_frozen(model):
        if not score(images[:1].clone().requires_grad_(), classes[:1]).requires_grad:
            raise UserError(
                "The class scores do not depend on the image by a gradient, which integrated-gradients needs; "
                "occlusion needs none."
            )
        values = captum.IntegratedGradients(score).attribute(
            images,
            baselines=torch.zeros_like(images),
            additional_forward_args=(classes,),
            n_steps=STEPS,
            internal_batch_size=max(_AT_ONCE, len(images)),
        )
    return values.detach().sum(1).to(images.dtype), f"the image; baseline: mean colour, {STEPS} steps"


def occlusion(model: nn.Module, images: Tensor, classes: Tensor, head: str | None) -> tuple[Tensor, str]:
    """Return how far the class score falls when a window is painted in the mean colour (T, H, W), and the settings.

    Square windows of an eighth of the shorter side, moved by half of it; a pixel gets the mean of the windows that
    cover it (Zeiler and Fergus, ECCV 2014). No gradient is needed.
    """
    captum = _captum()
    side = max(2, min(images.shape[-2:]) // WINDOWS)
    step = max(1, side // 2)
    with torch.no_grad():
        values = captum.Occlusion(_score(model, head)).attribute(
            images,
            sliding_window_shapes=(images.shape[1], side, side),
            strides=(images.shape[1], step, step),
            baselines=0,
            additional_forward_args=(classes,),
            perturbations_per_eval=max(1, _AT_ONCE // len(images)),
        )
    return values.detach()[:, 0], f"the image; window {side}x{side} in the mean colour, step {step}"


def _score(model: nn.Module, head: str | None) -> Callable[[Tensor, Tensor], Tensor]:
    def score(images: Tensor, classes: Tensor) -> Tensor:
        logits = head_logits(class_scores(model(images)), head)
        if logits.shape[1] == 1:
            return logits[:, 0] * (2 * classes - 1)
        return logits.gather(1, classes[:, None])[:, 0]

    return score


def _captum() -> Any:
    try:
        import captum.attr
    except ImportError as problem:
        raise UserError(
            "integrated-gradients and occlusion need captum; install it with pip install 'attention-branch[captum]'."
        ) from problem
    return captum.attr
