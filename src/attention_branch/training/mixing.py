"""Mixup (arXiv 1710.09412) and CutMix (arXiv 1905.04899): each image blended with its neighbour in the batch."""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from attention_branch.models import ABNOutput, Losses, abn_loss
from attention_branch.training.collectives import gather_everywhere

Targets = Tensor | dict[str, Tensor]


class Mixed(NamedTuple):
    """Mixed images (N, 3, H, W); their own targets have the weight `share`, the neighbours' the rest."""

    images: Tensor
    targets: Targets
    neighbours: Targets | None
    share: float


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


def mixed_loss(output: ABNOutput | Targets, mixed: Mixed, label_smoothing: float) -> Losses:
    """Return the loss of mixed images: with one share a batch, cross-entropy to soft targets is this weighted sum.

    Written as a sum it also holds for several heads, for one-logit heads and for missing labels.
    """
    own = abn_loss(output, mixed.targets, label_smoothing=label_smoothing)
    if mixed.neighbours is None:
        return own
    other = abn_loss(output, mixed.neighbours, label_smoothing=label_smoothing)
    return Losses(*(mixed.share * a + (1 - mixed.share) * b for a, b in zip(own, other, strict=True)))


def gather(output: ABNOutput | Targets, mixed: Mixed) -> tuple[ABNOutput | Targets, Mixed]:
    """Return all processes' scores and targets, for a loss over the global batch; the map stays this process's."""
    if isinstance(output, ABNOutput):
        assert output.attention_logits is not None
        scores, branch = _gather(output.logits), _gather(output.attention_logits)
        everyone: ABNOutput | Targets = ABNOutput(scores, branch, output.attention)
    else:
        everyone = _gather(output)
    neighbours = None if mixed.neighbours is None else _gather(mixed.neighbours)
    return everyone, mixed._replace(targets=_gather(mixed.targets), neighbours=neighbours)


def _gather(values: Targets) -> Targets:
    if isinstance(values, dict):
        return {head: gather_everywhere(value) for head, value in values.items()}
    return gather_everywhere(values)
