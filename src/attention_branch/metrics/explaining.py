"""Explaining changed images again, for the metrics that ask how a map changes with its image."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from attention_branch.errors import UserError
from attention_branch.metrics.metric import Scorer
from attention_branch.metrics.noise import image_generator

Explainer = str | Callable[[nn.Module, Tensor, Tensor], Tensor]
"""A method of `explain`, or a function from (model, images (n, 3, H, W), classes (n,)) to maps (n, H, W)."""


def explained(explain: Explainer, scorer: Scorer, images: Tensor, classes: Tensor) -> Tensor:
    """Return maps (M, H, W) of images (M, 3, H, W) for their classes (M,), as many at once as the scorer takes.

    A method's name explains the scorer's head where the model has several. Gradients are on. Raises `UserError` where
    a function returns anything but finite maps at the images' size.
    """
    if explain == "random":
        # Noise belongs to its image here: by its place in a batch, the same noise would come again for another image.
        noise = [torch.rand(image.shape[-2:], generator=image_generator(image, 0)) for image in images]
        return torch.stack(noise).to(images.device) if noise else images.new_zeros(0, *images.shape[-2:])
    if len(images) == 0:
        return images.new_zeros(0, *images.shape[-2:])
    parts = [
        _maps(explain, scorer, part, wanted)
        for part, wanted in zip(images.split(scorer.batch_size), classes.split(scorer.batch_size), strict=True)
    ]
    return torch.cat(parts)


def _maps(explain: Explainer, scorer: Scorer, images: Tensor, classes: Tensor) -> Tensor:
    with torch.enable_grad():
        if isinstance(explain, str):
            # Imported here: the explanations are not needed to measure maps that somebody else made.
            from attention_branch.explanations import explain as by_name

            target = classes if scorer.head is None else {scorer.head: classes}
            return by_name(scorer.model, images, explain, target).maps.detach()
        maps = explain(scorer.model, images, classes)
    if not isinstance(maps, Tensor) or maps.shape != (len(images), *images.shape[-2:]):
        given = tuple(maps.shape) if isinstance(maps, Tensor) else type(maps).__name__
        raise UserError(
            f"explain returned {given} for images {tuple(images.shape)}; it must return maps (N, H, W) at their size."
        )
    if not torch.isfinite(maps).all():
        raise UserError("explain returned maps with NaN or infinite values for a changed image.")
    return maps.detach().to(images.device)
