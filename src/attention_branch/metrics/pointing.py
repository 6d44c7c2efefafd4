"""The pointing game: does the map's maximum fall on the object? (Zhang et al., ECCV 2016, arXiv:1608.00507)"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from attention_branch.errors import UserError
from attention_branch.explanations.outputs import unwrapped
from attention_branch.explanations.targets import Target, class_index, head_class_names
from attention_branch.metrics.metric import Metric, Regions, as_tensor, checked_maps
from attention_branch.metrics.regions import paired_with_masks
from attention_branch.metrics.statistics import bootstrap_interval, share_interval

TOLERANCE = 15 / 224
"""The published tolerance of 15 pixels on a network input of 224, as a share of the side."""

SMALL = 0.25
"""An object is small when it covers less than this share of its picture."""

_AVERAGES = {
    "images": "mean over images",
    "class": "mean over classes of the share within each class; the class of an image is its target",
}
_SUBSETS = {
    "all": "all images with an object",
    "small": "object smaller than 1/4 of its picture",
    "difficult": "object smaller than 1/4 of its picture, and an object of another class in the picture",
}


class PointingGame(Metric):
    """Share of images whose map has its maximum on the object's region or within the tolerance of it.

    A hit is a disc dx² + dy² < tolerance² around the maximum that meets the region (the published implementation's
    acceptance disc). `tolerance` below 1 is a share of the region picture's shorter side, from 1 on pixels of it, 0 the
    maximum's own pixel. The maximum is the first in row order; a map with several equal maxima is counted under `tied`,
    and a map without any spread points nowhere: it is a miss, counted under `constant`, wherever the object lies.
    Images without a region are left out and counted under `skipped`.

    The published numbers are `tolerance=15` on masks of the original pictures with `average="class"`, and the same on
    the "difficult" subset; `subset="small"` is that subset's criterion of size alone, for data that does not say what
    else is in a picture. Images outside the subset are left out and counted under `outside_subset`. `details["small"]`
    holds the share of hits among small objects in any case, `details["classes"]` that of each class.
    """

    name: ClassVar[str] = "pointing game"
    higher_is_better: ClassVar[bool | None] = True
    needs_regions: ClassVar[bool] = True

    def __init__(
        self,
        tolerance: float = TOLERANCE,
        *,
        average: str = "images",
        subset: str = "all",
        batch_size: int = 64,
        seed: int = 0,
    ) -> None:
        if not tolerance >= 0:
            raise UserError(f"tolerance is {tolerance}; give a share of the side below 1, or pixels from 1 on.")
        if average not in _AVERAGES:
            raise UserError(f"average is '{average}'; give 'images', or 'class' for the mean over classes.")
        if subset not in _SUBSETS:
            raise UserError(f"subset is '{subset}'; give one of {', '.join(_SUBSETS)}.")
        self.tolerance = float(tolerance)
        self.average, self.subset = average, subset
        self.hits = average == "images"
        super().__init__(batch_size=batch_size, seed=seed)

    def reset(self) -> None:
        """Forget all images."""
        super().reset()
        self._counts = {"skipped": 0, "constant": 0, "tied": 0}
        self._others: Tensor | None = None

    def update(
        self,
        model: nn.Module | Callable[[Tensor], Any] | None,
        images: Tensor | None,
        maps: Tensor | np.ndarray | str | Path,
        target: Target = None,
        regions: Regions | None = None,
        *,
        others: Tensor | np.ndarray | Sequence[bool] | None = None,
    ) -> Tensor:
        """Add maps (N, h, w) with their objects' regions; return each image's 1 (hit), 0 (miss) or NaN (left out).

        `regions`: masks (N, H, W), nonzero on the object, or a sequence of masks (H, W) of any sizes, None for an image
        without one; boxes become masks by `box_masks`. A map of another size is resized to its mask's, bilinear, so
        masks of the original pictures measure the tolerance in original pixels. `target`: the class of each image's
        object, needed for `average="class"`. `others` (N,) tells whether an object of another class is in the picture,
        needed for `subset="difficult"`. Model and images may be None: they only make sure that all belongs together.
        Raises `UserError` for maps of another shape or with NaN, another number of regions, and what is missing.
        """
        self._others = None
        maps = checked_maps(maps, images)
        if self.subset == "difficult":
            if others is None:
                raise UserError(
                    "The difficult subset asks what else is in the picture: give others, one True or False per image, "
                    "or choose subset='small', which asks for the object's size alone."
                )
            self._others = as_tensor(others, "others").cpu().bool()
            if self._others.shape != (len(maps),):
                raise UserError(f"others has shape {tuple(self._others.shape)}; give one per map, ({len(maps)},).")
        return super().update(model, images, maps, target, regions)

    def protocol(self) -> dict[str, Any]:
        """Return the acceptance disc, the tolerance and its unit, the average and the subset."""
        in_pixels = self.tolerance >= 1
        return {
            "tolerance": self.tolerance,
            "tolerance_unit": "pixels of the region's picture" if in_pixels else "share of the shorter side",
            "hit": "a disc dx²+dy² < tolerance² around the map's maximum meets the region",
            "upsampling": "bilinear to the region's picture, align_corners=False",
            "ties": "first maximum in row order; a map without spread is a miss",
            "average": _AVERAGES[self.average],
            "subset": _SUBSETS[self.subset],
        }

    def _measure(
        self, model: nn.Module | None, images: Tensor | None, maps: Tensor, target: Target, regions: Regions | None
    ) -> Tensor:
        """Return (N, 3): the hit, the object's class (-1: not asked for), and whether the object is small."""
        found = maps.new_full((len(maps), 3), torch.nan, dtype=torch.float64)
        found[:, 1] = -1.0
        if self.average == "class":
            found[:, 1] = _object_classes(model, target, len(maps)).double().to(maps.device)
        seen = 0
        for numbers, given, resized, masks in paired_with_masks(maps, regions, self.batch_size):
            seen += len(numbers)
            small = masks.double().mean((1, 2)) < SMALL
            inside = torch.ones_like(small) if self.subset == "all" else small
            if self._others is not None:
                inside = inside & self._others.to(maps.device)[numbers]
            if not bool(inside.all()):
                self._count("outside_subset", int((~inside).sum()))
            hits = self._hits(given[inside], resized[inside], masks[inside])
            found[numbers[inside], 0] = hits
            found[numbers, 2] = small.double()
        self._count("skipped", len(maps) - seen)
        return found

    def _hits(self, given: Tensor, resized: Tensor, masks: Tensor) -> Tensor:
        """Return 1 or 0 for each map at its mask's size; counts what is odd on the way."""
        height, width = masks.shape[-2:]
        squared, constant, tops = squared_distances(given, resized)
        tolerance = self.tolerance if self.tolerance >= 1 else self.tolerance * min(height, width)
        # The maximum's own pixel always counts, also when the tolerance is smaller than a pixel.
        near = (squared < tolerance**2) | (squared == 0)
        self._count("constant", int(constant.sum()))
        self._count("tied", int(((tops > 1) & ~constant).sum()))
        return ((masks & near).flatten(1).any(1) & ~constant).double()

    def _mean(self, values: np.ndarray) -> float:
        if self.average == "images":
            return float(values[:, 0].mean())
        return float(_mean_over_classes(values[:, 0], values[:, 1]))

    def _interval(self, values: np.ndarray) -> tuple[float, float] | None:
        if not len(values):
            return None
        if self.average == "images":
            return super()._interval(values[:, 0])
        return bootstrap_interval(values[:, :2], self.seed, _mean_over_classes)

    def _details(self) -> dict[str, Any]:
        if not self._values:
            return {}
        values = torch.cat(self._values).numpy()
        values = values[~np.isnan(values[:, 0])]
        small = values[values[:, 2] == 1, 0]
        details: dict[str, Any] = {"small": _share(small, self.seed)}
        if self.average == "class":
            classes = np.unique(values[:, 1])
            details["classes"] = {int(own): _share(values[values[:, 1] == own, 0], self.seed) for own in classes}
        return details


def squared_distances(given: Tensor, resized: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return the squared distance in pixels of every place (N, H, W) from each resized map's maximum, the first in row
    order; whether the map as it was given is constant (N,); and at how many places it has its maximum (N,)."""
    height, width = resized.shape[-2:]
    # Asked of the map as it came: a resized constant may differ from itself by rounding.
    constant = given.flatten(1).amax(1) == given.flatten(1).amin(1)
    flat = resized.flatten(1)
    top = flat == flat.amax(1, keepdim=True)
    # argmax does not promise which of several equal values it returns; the smallest index does.
    places = torch.arange(flat.shape[1], device=flat.device).expand_as(flat)
    first = places.masked_fill(~top, flat.shape[1]).amin(1)
    rows = torch.arange(height, device=flat.device)[None, :, None] - (first // width)[:, None, None]
    columns = torch.arange(width, device=flat.device)[None, None, :] - (first % width)[:, None, None]
    return rows**2 + columns**2, constant, top.sum(1)


def _share(hits: np.ndarray, seed: int) -> dict[str, Any]:
    mean = float(hits.mean()) if len(hits) else None
    return {"mean": mean, "interval": share_interval(hits, seed), "n": len(hits)}


def _mean_over_classes(hits: np.ndarray, classes: np.ndarray, axis: int = -1) -> np.ndarray:
    """Return the mean over classes of the share of hits in each, for hits and classes (..., n) alike.

    A class of which a resample holds no image has no share there and is left out of its mean.
    """
    shape = hits.shape[:-1]
    known, index = np.unique(classes, return_inverse=True)
    rows = int(np.prod(shape))
    index = index.reshape(rows, -1) + len(known) * np.arange(rows)[:, None]
    cells = rows * len(known)
    right = np.bincount(index.ravel(), weights=hits.ravel(), minlength=cells).reshape(rows, -1)
    number = np.bincount(index.ravel(), minlength=cells).reshape(rows, -1)
    shares = np.where(number > 0, right / np.maximum(number, 1), 0.0)
    return (shares.sum(1) / (number > 0).sum(1)).reshape(shape)


def _object_classes(model: nn.Module | None, target: Target, count: int) -> Tensor:
    """Return the class of each image's object (N,) from what was given as target; nothing is predicted here."""
    head = None
    if isinstance(target, Mapping):
        if len(target) != 1:
            raise UserError(f"target names {len(target)} heads; the pointing game takes one: {{head: classes}}.")
        ((head, target),) = target.items()
    if isinstance(target, (Tensor, np.ndarray)):
        target = target.tolist()
    if not isinstance(target, Sequence) or isinstance(target, str) or len(target) != count:
        raise UserError(f"average='class' needs the class of each object: give target, {count} classes, one per map.")
    names = head_class_names(unwrapped(model), head) if model is not None else None
    if any(isinstance(item, str) for item in target) and names is None:
        raise UserError("target holds class names, but no model that knows them was given; give indices.")
    odd = [item for item in target if isinstance(item, bool) or not isinstance(item, (int, np.integer, str))]
    if odd:
        raise UserError(f"target holds {odd[0]!r}; average='class' takes one class per map, an index or a name.")
    classes = [class_index(item, names, len(names or [])) if isinstance(item, str) else int(item) for item in target]
    if min(classes, default=0) < 0:
        raise UserError(f"target holds {min(classes)}; the pointing game over classes needs every object's class.")
    return torch.tensor(classes, dtype=torch.int64)
