"""Mixup (arXiv 1710.09412) and CutMix (arXiv 1905.04899): each image blended with its neighbour in the batch."""

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from attention_branch.models import ABNOutput, Losses
from attention_branch.training.collectives import gather_everywhere

Targets = Tensor | dict[str, Tensor]


class Mixed(NamedTuple):
    """Mixed images (N, 3, H, W); their own targets have the weight `share`, the neighbours' the rest.

    `share` is one for the batch, or one an image (N,).
    """

    images: Tensor
    targets: Targets
    neighbours: Targets | None
    share: float | Tensor

    def owners(self) -> Targets:
        """Return the targets of whichever of the two has the larger share of an image."""
        if self.neighbours is None:
            return self.targets
        if not isinstance(self.share, Tensor):
            return self.targets if self.share >= 0.5 else self.neighbours
        own = self.share >= 0.5
        if isinstance(self.targets, dict):
            assert isinstance(self.neighbours, dict)
            return {head: torch.where(own, one, self.neighbours[head]) for head, one in self.targets.items()}
        assert isinstance(self.neighbours, Tensor)
        return torch.where(own, self.targets, self.neighbours)


def mix(images: Tensor, targets: Targets, mixup: float, cutmix: float) -> Mixed:
    """Mix a batch with one share from Beta(alpha, alpha), drawn by the global generator; both alphas 0: unchanged."""
    if (mixup <= 0 and cutmix <= 0) or len(images) < 2:
        return Mixed(images, targets, None, 1.0)
    cut = cutmix > 0 and (mixup <= 0 or torch.rand(()).item() < 0.5)
    alpha = cutmix if cut else mixup
    share = torch.distributions.Beta(alpha, alpha).sample().item()
    # Batches come in random order, so that the neighbour is a random partner.
    partner = images.roll(1, 0)
    neighbours = (
        {head: target.roll(1, 0) for head, target in targets.items()}
        if isinstance(targets, dict)
        else targets.roll(1, 0)
    )
    if not cut:
        return Mixed(torch.lerp(partner, images, share), targets, neighbours, share)
    height, width = images.shape[-2:]
    side = math.sqrt(1 - share)
    tall, wide = round(height * side), round(width * side)
    centre_y, centre_x = int(torch.randint(height, ())), int(torch.randint(width, ()))
    top, bottom = max(0, centre_y - tall // 2), min(height, centre_y - tall // 2 + tall)
    left, right = max(0, centre_x - wide // 2), min(width, centre_x - wide // 2 + wide)
    mixed = images.clone()
    mixed[:, :, top:bottom, left:right] = partner[:, :, top:bottom, left:right]
    return Mixed(mixed, targets, neighbours, 1 - (bottom - top) * (right - left) / (height * width))


def mixed_loss(
    loss: Callable[..., Losses], output: ABNOutput | Targets, mixed: Mixed, label_smoothing: float
) -> Losses:
    """Return the loss of mixed images: with one share an image, cross-entropy to soft targets is this weighted sum.

    `loss` is a network's. Written as a sum it also holds for several heads, for one-logit heads and for missing labels.
    """
    if mixed.neighbours is None:
        return loss(output, mixed.targets, label_smoothing=label_smoothing)
    share = mixed.share
    if not isinstance(share, Tensor):  # one for each of all processes' images, where they were gathered
        targets = next(iter(mixed.targets.values())) if isinstance(mixed.targets, dict) else mixed.targets
        share = mixed.images.new_full((len(targets),), share)
    own = loss(output, mixed.targets, label_smoothing=label_smoothing, weights=share)
    other = loss(output, mixed.neighbours, label_smoothing=label_smoothing, weights=1 - share)
    return Losses(*(a + b for a, b in zip(own, other, strict=True)))


def gather(output: ABNOutput | Targets, mixed: Mixed) -> tuple[ABNOutput | Targets, Mixed]:
    """Return all processes' scores and targets, for a loss over the global batch; the map stays this process's."""
    if isinstance(output, ABNOutput):
        assert output.attention_logits is not None
        scores, branch = _gather(output.logits), _gather(output.attention_logits)
        everyone: ABNOutput | Targets = ABNOutput(scores, branch, output.attention)
    else:
        everyone = _gather(output)
    neighbours = None if mixed.neighbours is None else _gather(mixed.neighbours)
    share = gather_everywhere(mixed.share) if isinstance(mixed.share, Tensor) else mixed.share
    return everyone, mixed._replace(targets=_gather(mixed.targets), neighbours=neighbours, share=share)


def _gather(values: Targets) -> Targets:
    if isinstance(values, dict):
        return {head: gather_everywhere(value) for head, value in values.items()}
    return gather_everywhere(values)
