"""The pointing game: does the map's maximum fall on the object? (Zhang et al., ECCV 2016, arXiv:1608.00507)"""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from attention_branch.errors import UserError
from attention_branch.metrics.statistics import MetricResult, bootstrap_interval

TOLERANCE = 15 / 224
"""The published tolerance of 15 pixels on a network input of 224, as a share of the side."""


class PointingGame:
    """Share of images whose map has its maximum on the object's region or within the tolerance of it.

    A hit is a disc dx² + dy² < tolerance² around the maximum that meets the region (the published implementation's
    acceptance disc). `tolerance` below 1 is a share of the region picture's shorter side, from 1 on pixels of it, 0 the
    maximum's own pixel. The maximum is the first in row order; a map with several equal maxima is counted under `tied`,
    and a map without any spread points nowhere: it is a miss, counted under `constant`, wherever the object lies.
    Images without a region are left out and counted under `skipped`.
    """

    def __init__(self, tolerance: float = TOLERANCE, *, seed: int = 0) -> None:
        if not tolerance >= 0:
            raise UserError(f"tolerance is {tolerance}; give a share of the side below 1, or pixels from 1 on.")
        self.tolerance = float(tolerance)
        self.seed = seed
        self.reset()

    def reset(self) -> None:
        """Forget all images."""
        self._values: list[Tensor] = []
        self._counts = {"skipped": 0, "constant": 0, "tied": 0}

    def update(self, maps: Tensor, regions: Tensor | np.ndarray | Sequence[Tensor | np.ndarray]) -> Tensor:
        """Add maps (N, h, w) with the regions of their objects; return each image's 1 (hit), 0 (miss) or NaN (skipped).

        `regions`: masks (N, H, W), nonzero on the object, or a sequence of masks (H, W) of any sizes; boxes become
        masks by `box_masks`. A map of another size is resized to its mask's, bilinear. Raises `UserError` for maps of
        another shape or with NaN, and for another number of regions.
        """
        if maps.ndim != 3:
            raise UserError(f"Maps have shape (N, h, w); these have {tuple(maps.shape)}.")
        if not torch.isfinite(maps).all():
            raise UserError("The maps hold NaN or infinite values, so they have no maximum to point with.")
        if len(regions) != len(maps):
            raise UserError(f"There are {len(maps)} maps and {len(regions)} regions; give one region per map.")
        maps = maps.detach()
        if isinstance(regions, (Tensor, np.ndarray)):
            values = self._score(maps, torch.as_tensor(regions, device=maps.device))
        else:
            masks = [torch.as_tensor(region, device=maps.device) for region in regions]
            scores = [self._score(single[None], mask[None]) for single, mask in zip(maps, masks, strict=True)]
            values = torch.cat(scores) if scores else maps.new_zeros(0, dtype=torch.float64)
        self._values.append(values.cpu())
        return values

    def compute(self) -> MetricResult:
        """Return the share of hits with its bootstrap interval, the values per image, counts and protocol."""
        values = torch.cat(self._values) if self._values else torch.zeros(0, dtype=torch.float64)
        values = values[~values.isnan()]
        in_pixels = self.tolerance >= 1
        return MetricResult(
            mean=float(values.mean()) if len(values) else float("nan"),
            interval=bootstrap_interval(values.numpy(), self.seed),
            n=len(values),
            values=values,
            protocol={
                "metric": "pointing game",
                "tolerance": self.tolerance,
                "tolerance_unit": "pixels of the region's picture" if in_pixels else "share of the shorter side",
                "hit": "a disc dx²+dy² < tolerance² around the map's maximum meets the region",
                "upsampling": "bilinear to the region's picture, align_corners=False",
                "ties": "first maximum in row order; a map without spread is a miss",
                "interval": "bootstrap, 95 %, 2000 resamples, percentile",
                "interval_seed": self.seed,
            },
            counts=dict(self._counts),
        )

    def _score(self, maps: Tensor, masks: Tensor) -> Tensor:
        """Score maps (N, h, w) against masks (N, H, W) of one size; counts what is odd on the way."""
        if masks.ndim != 3:
            raise UserError(f"Masks have shape (N, H, W), or (H, W) each; these have {tuple(masks.shape)}.")
        height, width = masks.shape[-2:]
        flat = maps.flatten(1)
        constant = flat.amax(1) == flat.amin(1)
        if maps.shape[-2:] != (height, width):
            # In float32 at least: half precision would round neighbouring values together and make ties.
            wide = maps if maps.dtype == torch.float64 else maps.float()
            wide = F.interpolate(wide[:, None], size=(height, width), mode="bilinear", align_corners=False)[:, 0]
            flat = wide.flatten(1)
        top = flat == flat.amax(1, keepdim=True)
        # argmax does not promise which of several equal values it returns; the smallest index does.
        places = torch.arange(flat.shape[1], device=flat.device).expand_as(flat)
        first = places.masked_fill(~top, flat.shape[1]).amin(1)

        inside = masks != 0
        rows = torch.arange(height, device=maps.device)[None, :, None] - (first // width)[:, None, None]
        columns = torch.arange(width, device=maps.device)[None, None, :] - (first % width)[:, None, None]
        squared = rows**2 + columns**2
        tolerance = self.tolerance if self.tolerance >= 1 else self.tolerance * min(height, width)
        # The maximum's own pixel always counts, also when the tolerance is smaller than a pixel.
        near = (squared < tolerance**2) | (squared == 0)
        hit = (inside & near).flatten(1).any(1) & ~constant

        empty = ~inside.flatten(1).any(1)
        self._counts["skipped"] += int(empty.sum())
        self._counts["constant"] += int((constant & ~empty).sum())
        self._counts["tied"] += int(((top.sum(1) > 1) & ~constant & ~empty).sum())
        return hit.double().masked_fill(empty, float("nan"))


def box_masks(boxes: Tensor | np.ndarray | Sequence[Sequence[float]], height: int, width: int) -> Tensor:
    """Return masks (N, height, width) of boxes (N, 4), x0, y0, x1, y1 in pixels, x1 and y1 exclusive.

    A pixel belongs to the box when its centre lies in it. Raises `UserError` for another shape.
    """
    edges = torch.as_tensor(np.asarray(boxes) if not isinstance(boxes, Tensor) else boxes).double()
    if edges.ndim != 2 or edges.shape[1] != 4:
        raise UserError(f"Boxes have shape (N, 4), x0, y0, x1, y1; these have {tuple(edges.shape)}.")
    x0, y0, x1, y1 = (edges[:, side, None] for side in range(4))
    columns = torch.arange(width, device=edges.device) + 0.5
    rows = torch.arange(height, device=edges.device) + 0.5
    across = (columns >= x0) & (columns < x1)
    down = (rows >= y0) & (rows < y1)
    return down[:, :, None] & across[:, None, :]
