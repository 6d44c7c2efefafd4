"""How alike two maps are: rank correlation and structural similarity, for whole batches on any device."""

import torch
from torch import Tensor
from torch.nn import functional as F

from attention_branch.errors import UserError

WINDOW = 11
SIGMA = 1.5


def rank_correlation(first: Tensor, second: Tensor) -> Tensor:
    """Return Spearman's rank correlation (N,) float64 of maps (N, ...) with maps of the same shape; ties share ranks.

    It is NaN where one of the two maps is the same everywhere.
    """
    ranks = [average_ranks(values.flatten(1)) for values in (first, second)]
    a, b = (values - values.mean(1, keepdim=True) for values in ranks)
    norms = a.norm(dim=1) * b.norm(dim=1)
    return ((a * b).sum(1) / norms).masked_fill(norms == 0, torch.nan)


def average_ranks(values: Tensor) -> Tensor:
    """Return the ranks from 1 on, (N, P) float64, of each row's values (N, P); equal values get their mean rank."""
    ordered, order = values.sort(dim=1)
    group = F.pad((ordered[:, 1:] != ordered[:, :-1]).long().cumsum(1), (1, 0))
    places = torch.arange(1, values.shape[1] + 1, device=values.device, dtype=torch.float64).expand(values.shape)
    zeros = torch.zeros_like(places, memory_format=torch.contiguous_format)
    total, number = zeros.scatter_add(1, group, places), zeros.scatter_add(1, group, torch.ones_like(places))
    means = (total / number.clamp_min(1)).gather(1, group)
    return zeros.scatter(1, order, means)


def structural_similarity(first: Tensor, second: Tensor) -> Tensor:
    """Return the mean SSIM (N,) float64 of maps (N, H, W) with maps of the same shape, each stretched to [0, 1] first.

    Wang et al. (IEEE TIP 2004): Gaussian window of 11x11, sigma 1.5, K1 = 0.01, K2 = 0.03, data range 1, mean over the
    windows that lie inside the map. A map without spread is 0 everywhere. Raises `UserError` below 11 pixels a side.
    """
    if min(first.shape[-2:]) < WINDOW:
        size = f"{first.shape[-2]}x{first.shape[-1]}"
        raise UserError(f"SSIM compares windows of {WINDOW}x{WINDOW} pixels; maps of {size} are too small for it.")
    a, b = _stretched(first), _stretched(second)
    offsets = torch.arange(WINDOW, device=a.device, dtype=torch.float64) - WINDOW // 2
    bell = torch.exp(-0.5 * (offsets / SIGMA) ** 2)
    bell = bell / bell.sum()

    def smooth(values: Tensor) -> Tensor:
        rows = F.conv2d(values[:, None], bell[None, None, :, None])
        return F.conv2d(rows, bell[None, None, None, :])[:, 0]

    mean_a, mean_b = smooth(a), smooth(b)
    variance_a, variance_b = smooth(a * a) - mean_a**2, smooth(b * b) - mean_b**2
    covariance = smooth(a * b) - mean_a * mean_b
    c1, c2 = 0.01**2, 0.03**2
    above = (2 * mean_a * mean_b + c1) * (2 * covariance + c2)
    below = (mean_a**2 + mean_b**2 + c1) * (variance_a + variance_b + c2)
    return (above / below).mean((1, 2))


def _stretched(maps: Tensor) -> Tensor:
    wide = maps.double()
    low, high = wide.amin((1, 2), keepdim=True), wide.amax((1, 2), keepdim=True)
    spread = high - low
    return torch.where(spread > 0, (wide - low) / spread.where(spread > 0, 1.0), 0.0)
