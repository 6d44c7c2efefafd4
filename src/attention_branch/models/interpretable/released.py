"""The filter loss as the interpretable CNN authors' released code computes it, which is not the paper's formula.

github.com/zqs1022/interpretableCNN (MATLAB, 2020; `our_vl_simplenn.m`, `getMask.m`, `getMu.m`). It writes gradients by
hand and has no loss; here each gradient is that of a sum whose factors are constants. Differences from the paper:

- The place of a map is its centre of activation, rounded, not its maximum.
- The template's slope is learned, one a filter: it follows 3 / (spread of the filter's activations), kept in 1.5 to 3.
- There is no tau. A map is held against the mean of x * mask, in place of the sum, at a temperature of 0.5.
- Only the map's own template counts. log Z of the positive templates is estimated with masks of other images and other
  filters (both orders reversed).
- The pulls of a filter's images are divided by their mean, so that their size does not depend on that of x.
- Images of the filter's category and others are weighted to count half each.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from attention_branch.models.everywhere import highest, logsumexp, total
from attention_branch.models.interpretable.templates import centroid, l1_template

TEMPERATURE = 0.5
FIRST_SLOPE, LEAST_SLOPE, MOST_SLOPE = 2.0, 1.5, 3.0
SPREAD = 3.0
"""The slope that is wanted, times the filter's spread in positions."""
SLOPE_RATE = 1e-4 * 0.05 * 10_000 / 32
"""Share of the way to the wanted slope that a step goes: the code's factors at its first learning rate and batch of 32.

There it also follows the learning rate and momentum; here it does not, which is our reading.
"""
SCALE = 1e-5 * 0.1
"""Size of the gradient: the code's 0.00001 times its `mag` of 0.1; it divides it by the epoch, counted from 1."""


class Strengths(NamedTuple):
    """What one batch says of the filters: pulls (N, C), positive ones towards a template, and the spreads' target."""

    positive: Tensor
    negative: Tensor
    slope: Tensor


def released_mask(x: Tensor, slope: Tensor) -> Tensor:
    """Return max(1 - slope * d, -1) (N, C, h, w) around each map's centre, coordinates from -1 to 1; slope (C,)."""
    rows, columns = centroid(x)
    height, width = x.shape[-2:]
    spans = (max(height - 1, 1) / 2, max(width - 1, 1) / 2)
    return l1_template(rows, columns, (height, width), slope.expand(rows.shape), spans)


def strengths(x: Tensor, mask: Tensor, own: Tensor, other: Tensor, slope: Tensor) -> Strengths:
    """Return the pulls on maps x (N, C, h, w), for images of a filter's category (`own`) or others (N, C)."""
    t = TEMPERATURE
    fit = (x * mask).mean((2, 3))
    size = x.mean((2, 3))
    log_count = total(x.new_full((), float(len(x)))).log()
    # Reversed images and filters: the masks of other maps. Images are reversed within a process.
    others_fit = (x * mask.flip(0, 1)).mean((2, 3))
    log_z_positive = t * (logsumexp(others_fit / t) - log_count)
    log_z_negative = t * (logsumexp(-size / t) - log_count)
    # The largest exponent is taken out: it cancels where pulls are divided by their mean, and nothing overflows.
    positive = ((fit - highest(fit)) / t).exp() * (fit - log_z_positive + t)
    negative = ((-size - highest(-size)) / t).exp() * (-size - log_z_negative + t)
    return Strengths(_relative(positive, own), _relative(negative, other), _wanted_slope(x, fit, own, slope))


def released_loss(x: Tensor, mask: Tensor, pulls: Strengths, num_classes: int) -> Tensor:
    """Return (N, C) whose gradient with respect to x is the released code's, over batch size and epoch.

    The weights are those of its branch for more than ten categories; for fewer it takes the categories' shares in the
    training set, which are these where all are alike.
    """
    share = 1 / num_classes
    positive = -(x * mask).sum((2, 3)) * pulls.positive * (0.5 / share)
    negative = x.sum((2, 3)) * pulls.negative * (0.5 / (1 - share))
    return SCALE * (positive + negative)


def _relative(pull: Tensor, chosen: Tensor) -> Tensor:
    """Divide pulls (N, C) by their mean over the chosen images of each filter; the others become zero."""
    pull = torch.where(chosen, pull, 0.0)
    mean = total(pull.sum(0)) / total(chosen.sum(0).to(pull.dtype)).clamp_min(1)
    return torch.where(mean != 0, pull / mean, 0.0)


def _wanted_slope(x: Tensor, fit: Tensor, own: Tensor, slope: Tensor) -> Tensor:
    """Return the slope (C,) that fits the spread of each filter's activations; where none can be told, as it is."""
    rows, columns = centroid(x)
    mass = x.sum((2, 3)).clamp_min(1e-9)
    squared = torch.zeros_like(mass)
    for axis, places in ((3, rows), (2, columns)):
        side = x.sum(axis)  # (N, C, h) or (N, C, w)
        distance = torch.arange(side.shape[2], device=x.device) - places[..., None]
        squared = squared + (distance.square() * side).sum(2)
    spread = (squared / mass).sqrt()
    weight = torch.where(own, fit, 0.0)
    weighted, weights = total((weight * spread).sum(0)), total(weight.sum(0))
    wanted = (SPREAD * weights / weighted).clamp(LEAST_SLOPE, MOST_SLOPE)
    return torch.where(torch.isfinite(wanted), wanted, slope)


def next_slope(slope: Tensor, wanted: Tensor) -> Tensor:
    """Return the slopes one step further."""
    return torch.lerp(slope, wanted, SLOPE_RATE)
