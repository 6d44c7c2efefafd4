"""The templates of an interpretable CNN and the mutual information between feature maps and templates.

Zhang, Wu and Zhu, Interpretable Convolutional Neural Networks, CVPR 2018, arXiv 1710.00935, section 3. One filter's
feature map x (h, w), after its ReLU, is held against T = h * w + 1 templates: T_mu, one a position, high at mu and
falling with the L1 distance from it, and T^-, negative everywhere. With

    p(x | T) = exp(tr(x T)) / Z_T,    Z_T = sum over x of exp(tr(x T)),    p(x) = sum over T of p(T) p(x | T)

a filter's loss is minus the mutual information of X and T. The sums over x are those over the (global) batch. All is
computed in logarithms: exp(tr(x T)) of a network without norms overflows.
"""

import math

import torch
from torch import Tensor

from attention_branch.models.everywhere import logsumexp

BETA = 4.0
"""How fast a template falls: to zero at a quarter of the side (the paper's beta)."""

STRENGTH = 0.5
"""tau times the number of positions: a template's highest value is tau = 0.5 / n^2."""


def peak(x: Tensor) -> tuple[Tensor, Tensor]:
    """Return row and column (N, C) int64 of each feature map's maximum, x (N, C, h, w)."""
    place = x.flatten(2).argmax(2)
    return place // x.shape[-1], place % x.shape[-1]


def centroid(x: Tensor) -> tuple[Tensor, Tensor]:
    """Return row and column (N, C) int64 of each map's centre of activation, rounded; the first of a map of zeros."""
    x = x.float()
    weight = x.sum((2, 3)).clamp_min(1e-9)
    rows, columns = (torch.arange(side, dtype=x.dtype, device=x.device) for side in x.shape[-2:])
    row, column = (x.sum(3) * rows).sum(2) / weight, (x.sum(2) * columns).sum(2) / weight
    # Halves go up, as the released code rounds.
    return (row + 0.5).floor().long(), (column + 0.5).floor().long()


def l1_template(
    rows: Tensor,
    columns: Tensor,
    size: tuple[int, int],
    slope: Tensor | float = BETA,
    spans: tuple[float, float] | None = None,
) -> Tensor:
    """Return max(1 - slope * d, -1) (..., h, w) around places (...,), without tau.

    d is the L1 distance, each axis in units of its span: the side of the grid unless given. `slope` is a number, or one
    a place.
    """
    spans = spans or (float(size[0]), float(size[1]))
    down, across = (
        (torch.arange(side, device=places.device) - places[..., None]).abs() / span
        for side, places, span in zip(size, (rows, columns), spans, strict=True)
    )
    if isinstance(slope, Tensor):
        slope = slope[..., None, None]
    return (1 - slope * (down[..., :, None] + across[..., None, :])).clamp_min(-1)


def template_bank(height: int, width: int, device: torch.device | None = None) -> Tensor:
    """Return all templates (h * w + 1, h, w), times tau: T_mu in row order, T^- last."""
    places = torch.arange(height * width, device=device)
    positive = l1_template(places // width, places % width, (height, width))
    negative = torch.full((1, height, width), -1.0, device=device)
    return torch.cat([positive, negative]) * (STRENGTH / (height * width))


def log_prior(positions: int) -> float:
    """Return log p(T), the same of all: p(T_mu) = alpha / n^2 and p(T^-) = 1 - alpha with alpha = n^2 / (1 + n^2)."""
    return -math.log(positions + 1)


def fits(x: Tensor, bank: Tensor) -> Tensor:
    """Return tr(x T) (N, C, T): how well feature maps (N, C, h, w) fit templates (T, h, w)."""
    return torch.einsum("nchw,thw->nct", x, bank)


def log_likelihoods(scores: Tensor) -> tuple[Tensor, Tensor]:
    """Return log p(x | T) (N, C, T) and log p(x) (N, C) of fits (N, C, T), over the global batch."""
    given = scores - logsumexp(scores)
    return given, torch.logsumexp(given, dim=2) + log_prior(scores.shape[2] - 1)


def mutual_information_loss(scores: Tensor) -> Tensor:
    """Return -MI(X; T) of each filter (C,) in nats, from fits (N, C, T); of several processes, each one's summands.

    -MI = -sum over T of p(T), sum over x of p(x | T) log(p(x | T) / p(x)): the paper's eq. 3, which knows no labels.
    """
    given, alone = log_likelihoods(scores)
    return -(given.exp() * (given - alone[..., None])).sum((0, 2)) * math.exp(log_prior(scores.shape[2] - 1))


def own_template_pull(scores: Tensor, own: Tensor) -> Tensor:
    """Return p(T) p(x | T) {tr(x T) - log(Z_T p(x))} (N, C) of one template each, own (N, C) int64.

    Times -T it is the gradient of the loss with respect to x in the paper's approximation (eq. 5), which keeps only
    each map's own template and takes Z_T and p(x) for constants. Positive pulls the map towards its template.
    """
    given, alone = log_likelihoods(scores.detach())
    mine = given.gather(2, own[..., None])[..., 0]
    return mine.exp() * (mine - alone) * math.exp(log_prior(scores.shape[2] - 1))


def own_template_loss(scores: Tensor, own: Tensor) -> Tensor:
    """Return what has the gradient of `own_template_pull` (N, C); its value means nothing."""
    return -own_template_pull(scores, own) * scores.gather(2, own[..., None])[..., 0]
