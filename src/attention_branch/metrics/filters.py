"""Does a filter watch one part? The two measures of interpretable CNNs (Zhang et al., CVPR 2018, arXiv 1710.00935).

Both take the maps of one layer's filters (N, C, h, w), as `explanations.filters.filter_maps` collects them, and the
places of parts, which training did not see. Their values are per filter, (C,), so n counts filters.
"""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from attention_branch.errors import UserError
from attention_branch.metrics.metric import as_tensor
from attention_branch.metrics.statistics import RESAMPLES, MetricResult, bootstrap_interval

TOP = 100
"""Images of a filter in which its places are compared: those of its highest activations."""

ACTIVE_SHARE = 0.005
"""Share of all positions of all images in which a filter counts as active."""

_NUMBERS = 64_000_000
"""Values of enlarged maps that are held at once, a quarter of a gibibyte twice."""

OVERLAP = 0.2
"""Intersection over union above which a filter's active region is on a part."""


def location_instability(
    maps: Tensor | np.ndarray,
    centres: Tensor | np.ndarray,
    size: tuple[int, int],
    *,
    labels: Tensor | np.ndarray | Sequence[int] | None = None,
    top: int = TOP,
    seed: int = 0,
) -> MetricResult:
    """Return how far filters' places wander from parts: the spread of their distance, as a share of the diagonal.

    For each filter and part, in the `top` images of the filter's highest activations: the standard deviation over
    images of the distance between the part's centre and the centre of the cell in which the filter is highest, divided
    by the image's diagonal; then the mean over parts. Lower is steadier.

    `maps` (N, C, h, w) are the filters' activations; `centres` (N, P, 2), or (N, 2) of one part, are x, y in pixels,
    NaN where a part is not in the picture (`part_centres` makes them of masks or boxes); `size` is (height, width) of
    the pictures in pixels. With `labels` (N,) a filter is measured on the images of the one class in which its mean
    activation peak is highest, as the released code does. `values` (C,) has NaN for a filter that responds to fewer
    than two of its images; `details` holds each filter's mean peak and class. Raises `UserError` for other shapes.
    """
    maps = _checked(maps)
    count, channels, height, width = maps.shape
    places = as_tensor(centres, "centres").double().cpu()
    places = places[:, None] if places.ndim == 2 else places
    if places.ndim != 3 or places.shape[0] != count or places.shape[2] != 2:
        raise UserError(
            f"centres have shape (N, parts, 2), x and y in pixels, one row a map; these have {tuple(places.shape)} for "
            f"{count} maps."
        )
    if top < 2:
        raise UserError(f"top is {top}; a spread needs 2 images or more.")
    peaks, cells = maps.flatten(2).max(2)  # (N, C)
    x = (cells % width + 0.5) * (size[1] / width)
    y = (cells // width + 0.5) * (size[0] / height)
    classes, scores = _own_class(peaks, labels)
    of_image = None if labels is None else as_tensor(labels, "labels").cpu()
    values = torch.full((channels,), torch.nan, dtype=torch.float64)
    diagonal = math.hypot(*size)
    for number in range(channels):
        spreads = []
        # An image that a filter does not respond to has no place of it.
        usable = peaks[:, number] > 0
        if of_image is not None:
            usable &= of_image == classes[number]
        for part in range(places.shape[1]):
            candidates = (usable & ~places[:, part].isnan().any(1)).nonzero()[:, 0]
            chosen = candidates[peaks[candidates, number].argsort(descending=True, stable=True)[:top]]
            if len(chosen) < 2:
                continue
            distance = torch.hypot(
                x[chosen, number] - places[chosen, part, 0], y[chosen, number] - places[chosen, part, 1]
            )
            spreads.append(distance.std(correction=1) / diagonal)
        if spreads:
            values[number] = torch.stack(spreads).mean()
    return _result(
        "location instability",
        values,
        seed,
        {
            "top_images": top,
            "place": "centre of the cell of the maximum; images without a positive activation have none",
            "distance": "to the part's centre, over the image's diagonal; standard deviation over images (n - 1)",
            "images": "of the class of the highest mean peak" if labels is not None else "of all classes",
            "parts": places.shape[1],
        },
        {"peaks": scores, "classes": classes},
    )


def part_interpretability(
    maps: Tensor | np.ndarray,
    masks: Tensor | np.ndarray,
    *,
    share: float = ACTIVE_SHARE,
    overlap: float = OVERLAP,
    seed: int = 0,
) -> MetricResult:
    """Return how often a filter's active region lies on one part: the mean over images, of the best part.

    A filter is active above t, with P(x > t) = `share` over all its positions in all images; its region is where the
    map, enlarged to the mask's size (bilinear), is above t. It is on a part where intersection over union is above
    `overlap`. The value of a filter is the highest, over parts, of the share of the part's images in which it is on it.

    `maps` (N, C, h, w), `masks` (N, P, H, W), or (N, H, W) of one part, nonzero on the part, all zero where it is not
    in the picture (boxes become masks by `box_masks`). `details` holds the best part of each filter and its threshold.
    Raises `UserError` for other shapes, and where no image has a part.
    """
    maps = _checked(maps)
    inside = as_tensor(masks, "masks").cpu() != 0
    inside = inside[:, None] if inside.ndim == 3 else inside
    if inside.ndim != 4 or len(inside) != len(maps):
        raise UserError(
            f"masks have shape (N, parts, H, W), one row a map; these have {tuple(inside.shape)} for {len(maps)} maps."
        )
    if not 0 < share < 1 or not 0 <= overlap < 1:
        raise UserError(f"share is {share} and overlap {overlap}; both are shares between 0 and 1.")
    present = inside.flatten(2).any(2)  # (N, P)
    if not present.any():
        raise UserError("No image has a part; give masks that are nonzero on it.")
    positions = maps.transpose(0, 1).flatten(1)
    kept = max(1, round(share * positions.shape[1]))
    threshold = positions.topk(min(kept + 1, positions.shape[1]), dim=1).values[:, -1].clamp_min(0)
    hits = torch.zeros(maps.shape[1], inside.shape[1])
    at_once = max(1, _NUMBERS // (maps.shape[1] * inside.shape[-2] * inside.shape[-1]))
    for start in range(0, len(maps), at_once):
        rows = slice(start, start + at_once)
        large = F.interpolate(maps[rows], size=inside.shape[-2:], mode="bilinear", align_corners=False)
        region = (large > threshold[:, None, None]).flatten(2).float()
        part = inside[rows].flatten(2).float()
        common = torch.einsum("ncp,nkp->nck", region, part)
        union = region.sum(2)[:, :, None] + part.sum(2)[:, None] - common
        hits += (common > overlap * union).logical_and(present[rows][:, None]).sum(0)
    of_part = hits / present.sum(0).clamp_min(1)
    best = of_part.max(1)
    return _result(
        "part interpretability",
        best.values.double(),
        seed,
        {
            "active": f"P(x > t) = {share:g} over all positions of all images, t at least 0",
            "on_a_part": f"intersection over union above {overlap:g}, maps enlarged bilinearly to the mask",
            "value": "share of the part's images, of the best part",
            "parts": inside.shape[1],
        },
        {"part": best.indices, "threshold": threshold},
    )


def part_centres(regions: Tensor | np.ndarray) -> Tensor:
    """Return the centres x, y (N, P, 2) in pixels of parts: boxes (N, P, 4) or masks (N, P, H, W), (N, H, W) of one.

    A mask's centre is that of the box around it; a box is x0, y0, x1, y1 with x1 and y1 exclusive. A part that is not
    there, an empty mask or a box with NaN, has NaN.
    """
    values = as_tensor(regions, "regions").cpu()
    if values.ndim == 3 and values.shape[2] == 4:
        boxes = values.double()
        return torch.stack([boxes[..., 0] + boxes[..., 2], boxes[..., 1] + boxes[..., 3]], -1) / 2
    values = values[:, None] if values.ndim == 3 else values
    if values.ndim != 4:
        raise UserError(f"Parts are boxes (N, P, 4) or masks (N, P, H, W); these have {tuple(values.shape)}.")
    inside = values != 0
    centres = [_middle(inside.any(2)), _middle(inside.any(3))]
    return torch.stack(centres, -1)


def _middle(line: Tensor) -> Tensor:
    """Return the middle (N, P) of what is true on a line (N, P, L); NaN where nothing is."""
    places = torch.arange(line.shape[2], dtype=torch.float64)
    first = places.where(line, torch.inf).amin(2)
    last = places.where(line, -torch.inf).amax(2) + 1
    return torch.where(line.any(2), (first + last) / 2, torch.nan)


def _own_class(peaks: Tensor, labels: Tensor | np.ndarray | Sequence[int] | None) -> tuple[Tensor, Tensor]:
    """Return each filter's class (C,), that of its highest mean peak, and this mean; -1 and the mean without labels."""
    if labels is None:
        return torch.full((peaks.shape[1],), -1), peaks.mean(0)
    given = as_tensor(labels, "labels").cpu()
    if given.shape != (len(peaks),):
        raise UserError(f"labels have shape {tuple(given.shape)}; give one class per map, ({len(peaks)},).")
    known = given[given >= 0].unique()
    if not len(known):
        raise UserError("No label is known; leave labels out, or give the images' classes.")
    means = torch.stack([peaks[given == label].mean(0) for label in known])
    best = means.max(0)
    return known[best.indices], best.values


def _checked(maps: Tensor | np.ndarray) -> Tensor:
    values = as_tensor(maps, "maps").detach().cpu()
    if values.ndim != 4 or 0 in values.shape:
        raise UserError(f"Filters' maps have shape (N, C, h, w); these have {tuple(values.shape)}.")
    values = values if values.dtype == torch.float64 else values.float()
    if not torch.isfinite(values).all():
        raise UserError("The filters' maps hold NaN or infinite values.")
    return values


def _result(name: str, values: Tensor, seed: int, protocol: dict[str, Any], details: dict[str, Any]) -> MetricResult:
    measured = values[~values.isnan()]
    return MetricResult(
        mean=float(measured.mean()) if len(measured) else math.nan,
        interval=bootstrap_interval(measured.numpy(), seed),
        n=len(measured),
        values=values,
        protocol={
            "metric": name,
            **protocol,
            "interval": f"bootstrap over filters, 95 %, {RESAMPLES} resamples, percentile, seed {seed}",
        },
        counts={"unmeasured": len(values) - len(measured)},
        details=details,
    )
