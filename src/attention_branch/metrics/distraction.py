"""How much of a map lies on the object, and how much on a distractor beside it that says nothing of the class."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from attention_branch.errors import UserError
from attention_branch.metrics.localisation import EnergyPointingGame
from attention_branch.metrics.metric import Regions, as_tensor, checked_maps
from attention_branch.metrics.pointing import TOLERANCE, squared_distances
from attention_branch.metrics.regions import paired_with_masks
from attention_branch.metrics.statistics import MetricResult, share_interval

OBJECT, DISTRACTOR, ELSEWHERE = 0, 1, 2
"""What a map points at."""


@dataclass(frozen=True, eq=False)
class Distraction:
    """Where the maps of n images lie; images that lack one of both places are left out.

    `mass_on_object` and `mass_on_distractor` are shares of a map's positive part, with the interval over images, the
    value of each image, and in `details["region_share"]` the area that the places have: what a constant map scores.
    `pointed` (N,) says what each map's maximum lies on: 0 the object, 1 the distractor, 2 neither; -1 is left out.
    """

    mass_on_object: MetricResult
    mass_on_distractor: MetricResult
    pointed: Tensor
    tolerance: float

    @property
    def n(self) -> int:
        """The number of images that count."""
        return self.mass_on_object.n

    @property
    def areas(self) -> tuple[float, float]:
        """The mean share of the picture that objects and distractors cover; NaN without an image."""
        found = [result.details["region_share"] for result in (self.mass_on_object, self.mass_on_distractor)]
        return tuple(float("nan") if share is None else share for share in found)  # type: ignore[return-value]

    @property
    def density(self) -> tuple[float, float]:
        """The mass on objects and on distractors, each by that of a constant map: 1 is no preference, 0 none of it."""
        on_object, on_distractor = self.mass_on_object.mean, self.mass_on_distractor.mean
        return on_object / self.areas[0], on_distractor / self.areas[1]

    def share(self, place: int, chosen: Tensor | np.ndarray | None = None) -> float:
        """Return the share of images whose map points at a place; `chosen` (N,) bool takes a part of the images."""
        counted = self.pointed >= 0
        if chosen is not None:
            taken = as_tensor(chosen, "chosen").bool()
            if taken.shape != counted.shape:
                raise UserError(f"chosen has the shape {tuple(taken.shape)}, and there are {len(counted)} images.")
            counted &= taken
        return float((self.pointed[counted] == place).double().mean())

    def interval(self, place: int) -> tuple[float, float] | None:
        """Return the 95 % bootstrap interval of `share`."""
        hits = (self.pointed[self.pointed >= 0] == place).double().numpy()
        return share_interval(hits, 0) if len(hits) > 1 else None

    def to_dict(self) -> dict[str, Any]:
        """Return the figures as plain values for a JSON file; without an image there are none."""
        if not self.n:
            return {"n": 0}
        places = {"on_object": OBJECT, "on_distractor": DISTRACTOR, "elsewhere": ELSEWHERE}
        return {
            "n": self.n,
            "tolerance": self.tolerance,
            **{name: self.share(place) for name, place in places.items()},
            "intervals": {name: self.interval(place) for name, place in places.items()},
            "mass_on_object": self.mass_on_object.mean,
            "mass_on_distractor": self.mass_on_distractor.mean,
            "object_area": self.areas[0],
            "distractor_area": self.areas[1],
        }


def distraction(
    maps: Tensor | np.ndarray | str | Path,
    objects: Regions,
    distractors: Regions,
    *,
    tolerance: float = TOLERANCE,
    batch_size: int = 64,
) -> Distraction:
    """Measure maps (N, h, w) against the places of objects and of distractors, masks (N, H, W) or one (H, W) or None
    each.

    The mass is that of `EnergyPointingGame`. A map points at the place that is nearer to its maximum (the first in row
    order), if it is less than `tolerance` away: a share of the shorter side below 1, pixels from 1 on; at the object
    where both are equally near; a map without spread points nowhere. Raises `UserError` for other numbers of places,
    and where a picture's two places differ in shape.
    """
    given = checked_maps(maps, None)
    for name, places in (("objects", objects), ("distractors", distractors)):
        if not isinstance(places, (Tensor, np.ndarray, Sequence)) or len(places) != len(given):
            count = len(places) if isinstance(places, (Tensor, np.ndarray, Sequence)) else "no"
            raise UserError(f"There are {len(given)} maps and {count} {name}; give one place, or None, per map.")
    if not tolerance >= 0:
        raise UserError(f"tolerance is {tolerance}; give a share of the side below 1, or pixels from 1 on.")
    for number, (first, second) in enumerate(zip(objects, distractors, strict=True)):
        if first is not None and second is not None and tuple(first.shape) != tuple(second.shape):
            shapes = f"{tuple(first.shape)} and {tuple(second.shape)}"
            raise UserError(f"The places of picture {number} have the shapes {shapes}; give both in the same pixels.")
    both = [_both(first, second) for first, second in zip(objects, distractors, strict=True)]
    pair = [[place if known else None for place, known in zip(of, both, strict=True)] for of in (objects, distractors)]
    results = []
    for places in pair:
        game = EnergyPointingGame(batch_size=batch_size)
        game.update(None, None, given, regions=places)
        results.append(game.compute())
    near = [_distances(given, places, batch_size) for places in pair]
    reach = torch.where(near[0][1] > 0, tolerance if tolerance >= 1 else tolerance * near[0][1], 0.0)
    pointed = torch.full((len(given),), ELSEWHERE)
    for place in (DISTRACTOR, OBJECT):  # the object last: it has what is equally near to both
        distance, other = near[place][0], near[1 - place][0]
        # The maximum's own pixel always counts, as in the pointing game.
        pointed[((distance < reach) | (distance == 0)) & (distance <= other)] = place
    pointed[~torch.tensor(both)] = -1
    return Distraction(results[0], results[1], pointed, float(tolerance))


def _both(first: Any, second: Any) -> bool:
    return all(place is not None and bool((as_tensor(place, "A region") != 0).any()) for place in (first, second))


def _distances(maps: Tensor, places: Regions, batch_size: int) -> tuple[Tensor, Tensor]:
    """Return the distance in pixels of each map's maximum from a place (infinite where there is none, or no maximum),
    and the shorter side of the place's picture."""
    distances = torch.full((len(maps),), torch.inf, dtype=torch.float64)
    sides = torch.zeros(len(maps), dtype=torch.float64)
    for numbers, given, resized, masks in paired_with_masks(maps, places, batch_size):
        squared, constant, _ = squared_distances(given, resized)
        found = squared.double().masked_fill(~masks, torch.inf).flatten(1).amin(1).sqrt()
        distances[numbers.cpu()] = found.masked_fill(constant, torch.inf).cpu()
        sides[numbers.cpu()] = float(min(masks.shape[-2:]))
    return distances, sides
