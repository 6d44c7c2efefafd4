"""How much of a map, and which box drawn from it, lies on the object."""

import dataclasses
from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np
import torch
from scipy import ndimage
from torch import Tensor, nn

from attention_branch.errors import UserError
from attention_branch.explanations.targets import Target
from attention_branch.metrics.metric import Metric, Regions
from attention_branch.metrics.regions import paired_with_masks
from attention_branch.metrics.statistics import MetricResult, bootstrap_interval

LEVELS = (0.3, 0.5, 0.7)
"""The overlaps that count as found: those of MaxBoxAccV2 (Choe et al., arXiv:2007.04178)."""

_NORMALIZE = {
    None: "negative values are set to 0",
    "minmax": "each map is stretched from its minimum, 0, to its maximum, 1",
}


class EnergyPointingGame(Metric):
    """Share of the map's energy that lies on the object (Score-CAM, Wang et al., CVPRW 2020, arXiv:1910.01279).

    The energy is the map's positive part: a negative value speaks against the class and is no energy. The original
    stretches every map from 0 to 1 first (`normalize="minmax"`), which turns the lowest value into 0 whatever it meant
    and so moves the share. A map without positive energy puts none of it on the object: it scores 0 and is counted
    under `no_energy`, because leaving it out would reward a method for staying blank where it is unsure. A constant map
    scores the region's share of the picture; `details["region_share"]` is the mean of that, which a map has to beat.
    Images without a region are left out and counted under `skipped`.
    """

    name: ClassVar[str] = "energy pointing game"
    higher_is_better: ClassVar[bool | None] = True
    needs_regions: ClassVar[bool] = True

    def __init__(self, *, normalize: str | None = None, batch_size: int = 64, seed: int = 0) -> None:
        if normalize not in _NORMALIZE:
            raise UserError(f"normalize is {normalize!r}; give 'minmax', or None to set negative values to 0.")
        self.normalize = normalize
        super().__init__(batch_size=batch_size, seed=seed)

    def reset(self) -> None:
        """Forget all images."""
        super().reset()
        self._counts = {"skipped": 0, "no_energy": 0}

    def protocol(self) -> dict[str, Any]:
        """Return what counts as energy and how maps meet their regions."""
        return {
            "value": "sum of the map's energy inside the region / sum of all",
            "energy": _NORMALIZE[self.normalize],
            "no_energy": "a map without positive energy scores 0",
            "upsampling": "bilinear to the region's picture, align_corners=False, before anything else",
        }

    def _measure(
        self, model: nn.Module | None, images: Tensor | None, maps: Tensor, target: Target, regions: Regions | None
    ) -> Tensor:
        """Return (N, 2): the share of energy, and the region's share of the picture."""
        found = maps.new_full((len(maps), 2), torch.nan, dtype=torch.float64)
        seen = 0
        for numbers, _, resized, masks in paired_with_masks(maps, regions, self.batch_size):
            seen += len(numbers)
            energy = resized.double()
            if self.normalize == "minmax":
                energy = energy - energy.amin((1, 2), keepdim=True)
            energy = energy.clamp_min(0)
            # Sums of values near the largest float would overflow; a share does not depend on the scale.
            energy = energy / energy.amax((1, 2), keepdim=True).clamp_min(torch.finfo(torch.float64).tiny)
            total = energy.sum((1, 2))
            inside = (energy * masks).sum((1, 2))
            found[numbers, 0] = torch.where(total > 0, inside / total.clamp_min(1e-300), 0.0)
            found[numbers, 1] = masks.double().mean((1, 2))
            self._count("no_energy", int((total <= 0).sum()))
        self._count("skipped", len(maps) - seen)
        return found

    def _mean(self, values: np.ndarray) -> float:
        return float(values[:, 0].mean())

    def _interval(self, values: np.ndarray) -> tuple[float, float] | None:
        return bootstrap_interval(values[:, 0], self.seed) if len(values) else None

    def _details(self) -> dict[str, Any]:
        shares = torch.cat(self._values)[:, 1] if self._values else torch.zeros(0)
        shares = shares[~shares.isnan()]
        return {"region_share": float(shares.mean()) if len(shares) else None}


class BoxIoU(Metric):
    """How well a box drawn from the map fits the object's, at overlaps of 30, 50 and 70 %.

    The map is stretched from 0 to 1, cut at a threshold, and the tightest box is drawn around the largest connected
    part; the object's box is the tightest one around its region. An image's value is the share of the levels 0.3, 0.5
    and 0.7 that their intersection over union reaches, and the mean over images is the mean accuracy over the levels
    (MaxBoxAcc's one box, Choe et al., CVPR 2020, arXiv:2001.07437, at the levels of the journal version's MaxBoxAccV2,
    arXiv:2007.04178; V2 as published takes the best box of all parts, which is another, higher number).

    Without `threshold` each level takes the one threshold, of `thresholds` equal steps from 0, that is best on the very
    images that are measured: the number is an upper bound, fair between methods on the same images only; `update` then
    returns each image's largest overlap over all thresholds. A `threshold` chosen on other images gives an honest one,
    and `update` the overlap at it. `details` hold accuracy, interval and threshold of each level, the mean overlap and
    the curves over the thresholds. A map without spread is 0 everywhere, hence boxed at threshold 0 only; it is counted
    under `constant`. Images without a region are left out and counted under `skipped`.
    """

    name: ClassVar[str] = "box IoU"
    higher_is_better: ClassVar[bool | None] = True
    needs_regions: ClassVar[bool] = True

    def __init__(
        self,
        threshold: float | None = None,
        *,
        thresholds: int = 100,
        levels: Sequence[float] = LEVELS,
        batch_size: int = 64,
        seed: int = 0,
    ) -> None:
        if threshold is not None and not 0 <= threshold <= 1:
            raise UserError(f"threshold is {threshold}; maps are stretched from 0 to 1, so give a value between them.")
        if thresholds < 1:
            raise UserError(f"thresholds is {thresholds}; give the number of thresholds to try, 1 or more.")
        if not levels or not all(0 < level <= 1 for level in levels):
            raise UserError(f"levels is {tuple(levels)}; give overlaps above 0, up to 1, such as 0.5.")
        self.threshold = threshold
        self.levels = tuple(float(level) for level in levels)
        self.thresholds = np.arange(thresholds) / thresholds if threshold is None else np.array([float(threshold)])
        super().__init__(batch_size=batch_size, seed=seed)

    def reset(self) -> None:
        """Forget all images."""
        super().reset()
        self._counts = {"skipped": 0, "constant": 0}

    def protocol(self) -> dict[str, Any]:
        """Return how boxes are drawn, and how the threshold was chosen."""
        chosen = f"{self.threshold}, given"
        if self.threshold is None:
            chosen = (
                f"for each level the best of {len(self.thresholds)} (0 to {self.thresholds[-1]:g}) on the images "
                "measured: an upper bound; the interval keeps the thresholds as they are"
            )
        return {
            "value": "share of the levels that the overlap of the boxes reaches (mean over images: mean accuracy)",
            "levels": list(self.levels),
            "threshold": chosen,
            "box": "tightest around the largest 8-connected part (most pixels) of map >= threshold",
            "object": "tightest box around the whole region",
            "scaling": "each map stretched from its minimum, 0, to its maximum, 1, at the region's size",
            "upsampling": "bilinear to the region's picture, align_corners=False",
        }

    def compute(self) -> MetricResult:
        """Return the mean accuracy over the levels, the share of levels reached by each image, counts and protocol."""
        result = super().compute()
        overlaps = self._overlaps()
        values = np.full(len(overlaps), np.nan)
        known = ~np.isnan(overlaps[:, 0])
        values[known] = self._reached(overlaps[known]).mean(1) if known.any() else 0
        return dataclasses.replace(result, values=torch.from_numpy(values))

    def _measure(
        self, model: nn.Module | None, images: Tensor | None, maps: Tensor, target: Target, regions: Regions | None
    ) -> Tensor:
        """Return (N, 1 + thresholds): the largest overlap, and the overlap at every threshold."""
        found = torch.full((len(maps), 1 + len(self.thresholds)), torch.nan, dtype=torch.float64)
        seen = 0
        for numbers, given, resized, masks in paired_with_masks(maps, regions, self.batch_size):
            seen += len(numbers)
            constant = given.flatten(1).amax(1) == given.flatten(1).amin(1)
            self._count("constant", int(constant.sum()))
            pictures = zip(numbers.tolist(), resized.double().cpu().numpy(), masks.cpu().numpy(), strict=True)
            for number, values, mask in pictures:
                overlaps = _overlaps(values, mask, self.thresholds)
                found[number, 0], found[number, 1:] = overlaps.max(), torch.from_numpy(overlaps)
        self._count("skipped", len(maps) - seen)
        return found

    def _mean(self, values: np.ndarray) -> float:
        return float(self._reached(values[:, 1:]).mean())

    def _interval(self, values: np.ndarray) -> tuple[float, float] | None:
        return bootstrap_interval(self._reached(values[:, 1:]).mean(1), self.seed) if len(values) else None

    def _details(self) -> dict[str, Any]:
        overlaps = self._overlaps()
        overlaps = overlaps[~np.isnan(overlaps[:, 0])]
        if not len(overlaps):
            return {}
        reached, best = self._reached(overlaps), self._best(overlaps)
        levels = {
            str(level): {
                "accuracy": float(reached[:, place].mean()),
                "interval": bootstrap_interval(reached[:, place], self.seed),
                "threshold": float(self.thresholds[best[place]]),
            }
            for place, level in enumerate(self.levels)
        }
        means = overlaps.mean(0)
        curves = {str(level): (overlaps >= level).mean(0).tolist() for level in self.levels}
        mean_overlap = {"mean": float(means.max()), "threshold": float(self.thresholds[means.argmax()])}
        return {
            "levels": levels,
            "overlap": mean_overlap,
            "curves": {"thresholds": self.thresholds.tolist(), "accuracy": curves, "overlap": means.tolist()},
        }

    def _overlaps(self) -> np.ndarray:
        """Return the overlaps of all images so far, (N, thresholds)."""
        if not self._values:
            return np.zeros((0, len(self.thresholds)))
        return torch.cat(self._values)[:, 1:].numpy()

    def _best(self, overlaps: np.ndarray) -> list[int]:
        """Return the place of each level's threshold: where most of the images reach it, the lowest of equal ones."""
        return [int((overlaps >= level).mean(0).argmax()) for level in self.levels]

    def _reached(self, overlaps: np.ndarray) -> np.ndarray:
        """Return (N, levels): 1 where the image's overlap at the level's threshold reaches it."""
        best = self._best(overlaps)
        return np.stack([overlaps[:, at] >= level for at, level in zip(best, self.levels, strict=True)], 1).astype(
            float
        )


def _overlaps(values: np.ndarray, mask: np.ndarray, thresholds: np.ndarray) -> np.ndarray:
    """Return the overlap (intersection over union) of the boxes of a map and of a mask (H, W) at every threshold."""
    spread = values.max() - values.min()
    scaled = (values - values.min()) / spread if spread > 0 else np.zeros_like(values)
    truth = _box(mask)
    found = np.zeros(len(thresholds))
    for place, threshold in enumerate(thresholds):
        parts, count = ndimage.label(scaled >= threshold, structure=np.ones((3, 3)))
        if count == 0:
            continue
        sizes = np.bincount(parts.ravel())
        sizes[0] = 0
        found[place] = _overlap(_box(parts == sizes.argmax()), truth)
    return found


def _box(mask: np.ndarray) -> tuple[int, int, int, int]:
    """Return the tightest box x0, y0, x1, y1 around a mask (H, W), x1 and y1 exclusive."""
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    return int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1


def _overlap(first: tuple[int, int, int, int], second: tuple[int, int, int, int]) -> float:
    width = min(first[2], second[2]) - max(first[0], second[0])
    height = min(first[3], second[3]) - max(first[1], second[1])
    if width <= 0 or height <= 0:
        return 0.0
    shared = width * height
    areas = [(x1 - x0) * (y1 - y0) for x0, y0, x1, y1 in (first, second)]
    return shared / (sum(areas) - shared)
