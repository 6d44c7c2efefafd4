"""What the answer keeps of the image that its map lets through: average drop, increase, gain and ADCC."""

from abc import abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from attention_branch.errors import UserError, did_you_mean
from attention_branch.explanations.targets import Target
from attention_branch.metrics.explaining import Explainer, explained
from attention_branch.metrics.metric import Metric, Regions, Scorer
from attention_branch.metrics.statistics import bootstrap_interval
from attention_branch.metrics.substrates import SCORE, black

SPACES = {
    "normalized": "product with the normalised image: what is masked becomes the data's mean colour",
    "black": "product with the image in [0, 1]: what is masked becomes black",
}


class _Masked(Metric):
    """What is scored on the image times its map."""

    def __init__(
        self,
        *,
        space: str = "normalized",
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
        batch_size: int = 64,
        seed: int = 0,
    ) -> None:
        if space not in SPACES:
            raise UserError(f"Unknown space '{space}'; choose {', '.join(SPACES)}.{did_you_mean(str(space), SPACES)}")
        self.space = space
        self.mean, self.std = mean, std
        super().__init__(batch_size=batch_size, seed=seed)

    def reset(self) -> None:
        """Forget all images."""
        super().reset()
        self._counts = {"constant": 0, "no_score": 0}

    def _shared_protocol(self) -> dict[str, Any]:
        return {
            "masking": SPACES[self.space],
            "map": "stretched per image from its minimum, 0, to its maximum, 1; a constant map becomes 0 everywhere",
            "score": SCORE,
        }

    def _masked(self, model: nn.Module | None, images: Tensor, maps: Tensor) -> Tensor:
        """Return images (N, C, H, W) times maps (N, H, W) in [0, 1], in the metric's space."""
        weights = maps[:, None].to(images.dtype)
        if self.space == "normalized":
            return images * weights
        return torch.lerp(black(images, model, self.mean, self.std).expand_as(images), images, weights)

    def _scores(
        self, model: nn.Module | None, images: Tensor | None, maps: Tensor, target: Target
    ) -> tuple[Scorer, Tensor, Tensor, Tensor]:
        """Return the scorer, Y and O (N,) float64, before and behind the mask, and the masked images."""
        scorer = Scorer(model, images, target, self.batch_size)
        assert images is not None  # or the scorer would have refused
        shown = self._masked(model, images, stretched(maps))
        behind = scorer(shown, scorer.classes).double()
        self._count("constant", int(constant(maps).sum()))
        return scorer, scorer.clean_scores.double(), behind, shown


class _Compared(_Masked):
    """A number per image from the class probability before and behind the mask."""

    def _measure(
        self, model: nn.Module | None, images: Tensor | None, maps: Tensor, target: Target, regions: Regions | None
    ) -> Tensor:
        scorer, before, behind, _ = self._scores(model, images, maps, target)
        values = self._value(before, behind, 8 * torch.finfo(scorer.clean.dtype).eps)
        values = values.masked_fill(before.isnan() | behind.isnan(), torch.nan)
        self._count("no_score", int(values.isnan().sum()))
        return values

    @abstractmethod
    def _value(self, before: Tensor, behind: Tensor, rounding: float) -> Tensor:
        """Return the value of each image (N,) from Y and O, probabilities rounded by `rounding` at 1."""


class AverageDrop(_Compared):
    """Mean of max(0, Y - O) / Y: the share of the class probability that the image times its map loses; low is good.

    Y is the probability on the image, O on the image times its map (Grad-CAM++, Chattopadhyay et al., WACV 2018,
    section 4.1, as a share and not in per cent). The map is stretched from 0 to 1; one without spread has no such
    form, shows nothing (0 everywhere) and is counted under `constant`. `space` is "normalized", or "black", which needs
    `mean` and `std` per channel or a model that knows its preprocessing. Where Y is 0 there is nothing to lose: such an
    image is left out and counted under `no_score`. Raises `UserError` for another space.
    """

    name: ClassVar[str] = "average drop"
    higher_is_better: ClassVar[bool | None] = False

    def protocol(self) -> dict[str, Any]:
        """Return value, masking and score."""
        return {"value": "max(0, Y - O) / Y, a share"} | self._shared_protocol()

    def _value(self, before: Tensor, behind: Tensor, rounding: float) -> Tensor:
        return drop(before, behind)


class IncreaseInConfidence(_Compared):
    """Share of images whose class probability is higher on the image times its map (Grad-CAM++, WACV 2018, 4.1).

    All else is as in `AverageDrop`.
    """

    name: ClassVar[str] = "increase in confidence"
    hits = True
    higher_is_better: ClassVar[bool | None] = True

    def protocol(self) -> dict[str, Any]:
        """Return value, masking and score."""
        return {"value": "1 where O > Y, else 0"} | self._shared_protocol()

    def _value(self, before: Tensor, behind: Tensor, rounding: float) -> Tensor:
        return (behind > before).double()


class AverageGain(_Compared):
    """Mean of max(0, O - Y) / (1 - Y): the counterpart of the average drop (Opti-CAM, Zhang et al., CVIU 2024).

    A probability that is 1 but for rounding has no room to gain: such an image is left out and counted under
    `no_score`. All else is as in `AverageDrop`.
    """

    name: ClassVar[str] = "average gain"
    higher_is_better: ClassVar[bool | None] = True

    def protocol(self) -> dict[str, Any]:
        """Return value, masking and score."""
        return {"value": "max(0, O - Y) / (1 - Y), a share; no value where Y is 1"} | self._shared_protocol()

    def _value(self, before: Tensor, behind: Tensor, rounding: float) -> Tensor:
        return torch.where(before < 1 - rounding, (behind - before).clamp_min(0) / (1 - before), torch.nan)


class ADCC(_Masked):
    """Average drop, coherency and complexity in one number; high is good (Poppi et al., CVPR Workshops 2021, eq. 3-5).

    Coherency: Pearson correlation, (r + 1) / 2, of the map and the map of the masked image for the same class;
    complexity: mean of the map in [0, 1]. The mean is the harmonic mean of coherency, 1 - complexity and 1 - average
    drop, each averaged over the images first; `values` are the per-image harmonic means, whose mean is another number.
    `explain` makes the second map: a method's name, or a function (model, images, classes) -> maps (N, H, W); it must
    be the one that made the first. A second map without spread, counted under `constant_again`, agrees with nothing and
    contradicts nothing: r = 0. `details` holds the three averages. Masking as in `AverageDrop`.
    """

    name: ClassVar[str] = "ADCC"
    higher_is_better: ClassVar[bool | None] = True

    def __init__(self, explain: Explainer, **options: Any) -> None:
        self.explain = explain
        super().__init__(**options)

    def reset(self) -> None:
        """Forget all images."""
        super().reset()
        self._counts["constant_again"] = 0

    def protocol(self) -> dict[str, Any]:
        """Return the parts, masking and score."""
        return {
            "value": "harmonic mean of coherency, 1 - complexity and 1 - average drop, each averaged over images first "
            "(not the mean of the values per image)",
            "coherency": "(Pearson correlation of the map and the masked image's map for the same class + 1) / 2; "
            "0.5 where one of them is constant",
            "complexity": "mean of the stretched map",
        } | self._shared_protocol()

    def _measure(
        self, model: nn.Module | None, images: Tensor | None, maps: Tensor, target: Target, regions: Regions | None
    ) -> Tensor:
        scorer, before, behind, shown = self._scores(model, images, maps, target)
        again = explained(self.explain, scorer, shown, scorer.classes)
        self._count("constant_again", int(constant(again).sum()))
        coherency = (pearson(maps, again) + 1) / 2
        complexity = stretched(maps).double().mean((1, 2))
        parts = torch.stack([coherency, complexity, drop(before, behind)], 1)
        self._count("no_score", int(parts.isnan().any(1).sum()))
        columns = parts.cpu().numpy()
        value = torch.from_numpy(adcc(columns[:, 0], columns[:, 1], columns[:, 2], axis=None)).to(parts)
        return torch.cat([value[:, None], parts], 1)

    def _mean(self, values: np.ndarray) -> float:
        return float(adcc(values[:, 1], values[:, 2], values[:, 3]))

    def _interval(self, values: np.ndarray) -> tuple[float, float] | None:
        return bootstrap_interval(values[:, 1:], self.seed, adcc) if len(values) else None

    def _details(self) -> dict[str, Any]:
        values = torch.cat(self._values) if self._values else torch.zeros(0, 4, dtype=torch.float64)
        values = values[~values.isnan().any(1)]
        means = values.mean(0).tolist() if len(values) else [None] * 4
        return dict(zip(("coherency", "complexity", "average_drop"), means[1:], strict=True))


def adcc(coherency: Any, complexity: Any, drop: Any, axis: int | None = -1) -> Any:
    """Return the harmonic mean of the parts, averaged over `axis` first unless it is None; 0 where a part is 0."""
    if axis is not None:
        coherency, complexity, drop = (np.mean(part, axis=axis) for part in (coherency, complexity, drop))
    parts = np.stack([np.asarray(part, dtype=np.float64) for part in (coherency, 1 - complexity, 1 - drop)])
    with np.errstate(divide="ignore"):
        return np.where((parts > 0).all(0) | np.isnan(parts).any(0), 3 / (1 / parts).sum(0), 0.0)


def drop(before: Tensor, behind: Tensor) -> Tensor:
    """Return the share of the probabilities `before` (N,) that is lost in `behind`; NaN where there was none."""
    return torch.where(before > 0, (before - behind).clamp_min(0) / before, torch.nan)


def constant(maps: Tensor) -> Tensor:
    """Return which maps (N, H, W) have no spread at all, (N,) bool."""
    return maps.amax((1, 2)) == maps.amin((1, 2))


def stretched(maps: Tensor) -> Tensor:
    """Return maps (N, H, W) each from its minimum, 0, to its maximum, 1; a constant map is 0 everywhere."""
    low, high = maps.amin((1, 2), keepdim=True), maps.amax((1, 2), keepdim=True)
    return torch.where(high > low, (maps - low) / (high - low), 0)


def pearson(first: Tensor, second: Tensor) -> Tensor:
    """Return the correlation (N,) float64 of maps (N, H, W) in pairs; 0 where one of them is constant."""
    a, b = (part.double().flatten(1) - part.double().flatten(1).mean(1, keepdim=True) for part in (first, second))
    norm = a.norm(dim=1) * b.norm(dim=1)
    # By its values and not by its norm: a constant's distance from its mean is rounding, not always 0.
    flat = constant(first) | constant(second)
    return torch.where(flat, 0, (a * b).sum(1) / norm).clamp(-1, 1)
