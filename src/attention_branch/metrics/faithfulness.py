"""Deletion and insertion: how the class's probability falls and rises as pixels go or come in the map's order.

Petsiuk et al., "RISE", BMVC 2018, arXiv:1806.07421.
"""

import itertools
from collections.abc import Sequence
from numbers import Integral
from typing import Any, ClassVar, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from attention_branch.errors import UserError, did_you_mean
from attention_branch.explanations.targets import Target
from attention_branch.metrics.masking import constant
from attention_branch.metrics.metric import Metric, Regions, Scorer
from attention_branch.metrics.substrates import SCORE, SUBSTRATES, UNIFORM, checked_substrate, substrate

PROTOCOLS = {"rise": 28, "rise-fine": 224, "fast": 50}
"""Steps of each protocol: at 224x224, "rise" moves 8 rows' worth of pixels a step (the authors' evaluation of data
sets), "rise-fine" one (their figures)."""

ORDER = "map descending, stable: equal values in row order"


class _Curves(Metric):
    """What deletion, insertion and their difference share; `_kinds` are the curves that are followed."""

    _kinds: ClassVar[tuple[str, ...]]

    def __init__(
        self,
        protocol: str = "rise",
        *,
        steps: int | None = None,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
        batch_size: int = 64,
        seed: int = 0,
    ) -> None:
        if protocol not in PROTOCOLS:
            known = ", ".join(PROTOCOLS)
            raise UserError(f"Unknown protocol '{protocol}'.{did_you_mean(str(protocol), PROTOCOLS)} Known: {known}.")
        if steps is not None and (isinstance(steps, bool) or not isinstance(steps, Integral) or steps < 1):
            raise UserError(f"steps is {steps}; give the number of steps from the image to its substrate, 1 or more.")
        self.preset = protocol if steps is None else "own"
        self.steps = PROTOCOLS[protocol] if steps is None else int(steps)
        self.mean, self.std = mean, std
        super().__init__(batch_size=batch_size, seed=seed)

    def reset(self) -> None:
        """Forget all images."""
        super().reset()
        self._counts = {"constant": 0, "not_finite": 0}
        self._curves: dict[str, list[Tensor]] = {kind: [] for kind in self._kinds}

    def state(self) -> dict[str, Any]:
        """Return what was collected, the curves among it."""
        return {**super().state(), "curves": {kind: list(parts) for kind, parts in self._curves.items()}}

    def merge(self, state: dict[str, Any]) -> None:
        """Add what another one collected after this one: a `state()`."""
        super().merge(state)
        for kind, parts in state["curves"].items():
            self._curves[kind] += parts

    def _follow(
        self, model: nn.Module | None, images: Tensor | None, maps: Tensor, target: Target, baselines: dict[str, str]
    ) -> dict[str, Tensor]:
        """Return the area under each image's curve, (N,) float64, by kind; keeps the curves and counts odd maps."""
        scorer = Scorer(model, images, target, self.batch_size)
        assert images is not None  # or the scorer would have refused
        counts = pixel_counts(maps.shape[-2] * maps.shape[-1], self.steps)
        curves = follow_curves(scorer, images, maps, counts, baselines, self.mean, self.std)
        self._count("constant", int(constant(maps).sum()))
        share = torch.tensor(counts, dtype=torch.float64) / counts[-1]
        areas = {}
        for kind, curve in curves.items():
            self._curves[kind].append(curve)
            areas[kind] = torch.trapezoid(curve, share, dim=1)
        self._count("not_finite", int(torch.stack([area.isnan() for area in areas.values()]).any(0).sum()))
        return areas

    def _curve_details(self, kind: str) -> dict[str, Any]:
        parts = self._curves[kind]
        curves = torch.cat(parts) if parts else torch.zeros(0, self.steps + 1, dtype=torch.float64)
        whole = curves[~curves.isnan().any(1)]
        share = [step / self.steps for step in range(self.steps + 1)]
        return {"curve": {"share": share, "score": whole.mean(0).tolist() if len(whole) else []}, "curves": curves}

    def _curve_protocol(self) -> dict[str, Any]:
        return {
            "protocol": self.preset,
            "steps": self.steps,
            "pixels": f"height x width / {self.steps} a step, their sum rounded; the last step reaches all",
            "order": ORDER,
            "score": SCORE,
            "area": "trapezoid over the share of pixels, 0 to 1",
        }


class Deletion(_Curves):
    """Area under the probability as the map's highest pixels are taken away step by step; lower is better.

    `protocol` is "rise" (28 steps, the published evaluation), "rise-fine" (224) or "fast" (50), or give the number of
    `steps`. `baseline` is what takes a pixel's place: "zero" (in normalised space, as published), "black", "mean" or
    "blur"; black needs `mean` and `std` or a model that knows its preprocessing. At most `batch_size` images go through
    the model at once (on a CPU fewer where they are large), those of all steps and images in one queue. `details` holds
    the mean `curve`, its `share` of pixels and its `score`, steps + 1 of each, and the `curves` (N, steps + 1). A map
    without spread takes pixels in row order and is counted under `constant`; an image with a score that is no number is
    left out and counted under `not_finite`.
    Raises `UserError` for another option and for more steps than pixels. (Petsiuk et al., BMVC 2018.)
    """

    name: ClassVar[str] = "deletion"
    higher_is_better: ClassVar[bool | None] = False
    _kinds: ClassVar[tuple[str, ...]] = ("deletion",)

    def __init__(self, protocol: str = "rise", *, baseline: str = "zero", **options: Any) -> None:
        self.baseline = checked_substrate(baseline, "baseline")
        super().__init__(protocol, **options)

    def _measure(
        self, model: nn.Module | None, images: Tensor | None, maps: Tensor, target: Target, regions: Regions | None
    ) -> Tensor:
        return self._follow(model, images, maps, target, {self.name: self.baseline})[self.name]

    def protocol(self) -> dict[str, Any]:
        """Return the protocol: steps, order, baseline, score and area."""
        return self._curve_protocol() | {"baseline": SUBSTRATES[self.baseline]}

    def _details(self) -> dict[str, Any]:
        return self._curve_details(self.name)


class Insertion(Deletion):
    """Area under the probability as the map's highest pixels come into the baseline step by step; higher is better.

    It begins with the blurred image, as published, unless `baseline` says otherwise; all else is as in `Deletion`.
    """

    name: ClassVar[str] = "insertion"
    higher_is_better: ClassVar[bool | None] = True
    _kinds: ClassVar[tuple[str, ...]] = ("insertion",)

    def __init__(self, protocol: str = "rise", *, baseline: str = "blur", **options: Any) -> None:
        super().__init__(protocol, baseline=baseline, **options)


class InsertionMinusDeletion(_Curves):
    """Insertion less deletion of the same image; higher is better.

    The clean image is scored once for both, and so is a baseline that both have. `parts` hands out the two metrics
    themselves at no further cost. `details` holds what theirs do, under "insertion" and "deletion". Options as in
    `Deletion`, with a baseline for each.
    """

    name: ClassVar[str] = "insertion - deletion"
    higher_is_better: ClassVar[bool | None] = True
    _kinds: ClassVar[tuple[str, ...]] = ("insertion", "deletion")

    def __init__(
        self,
        protocol: str = "rise",
        *,
        deletion_baseline: str = "zero",
        insertion_baseline: str = "blur",
        **options: Any,
    ) -> None:
        self.baselines = {
            "insertion": checked_substrate(insertion_baseline, "insertion_baseline"),
            "deletion": checked_substrate(deletion_baseline, "deletion_baseline"),
        }
        super().__init__(protocol, **options)

    def parts(self) -> tuple[Deletion, Insertion]:
        """Return the deletion and the insertion that were measured, as metrics of their own."""
        options = {
            "steps": None if self.preset in PROTOCOLS else self.steps,
            "mean": self.mean,
            "std": self.std,
            "batch_size": self.batch_size,
            "seed": self.seed,
        }
        preset = self.preset if self.preset in PROTOCOLS else "rise"
        deletion = Deletion(preset, baseline=self.baselines["deletion"], **options)
        insertion = Insertion(preset, baseline=self.baselines["insertion"], **options)
        for part in (deletion, insertion):
            column = 1 + self._kinds.index(part.name)
            values = [values[:, column] for values in self._values]
            lost = sum(int(column_values.isnan().sum()) for column_values in values)
            state = self.state() | {"values": values, "curves": {part.name: self._curves[part.name]}}
            part.merge(state | {"counts": state["counts"] | {"not_finite": lost}, "protocol": part._kind()})
        return deletion, insertion

    def _measure(
        self, model: nn.Module | None, images: Tensor | None, maps: Tensor, target: Target, regions: Regions | None
    ) -> Tensor:
        areas = self._follow(model, images, maps, target, self.baselines)
        return torch.stack([areas["insertion"] - areas["deletion"], areas["insertion"], areas["deletion"]], 1)

    def _mean(self, values: np.ndarray) -> float:
        return super()._mean(values[:, 0])

    def _interval(self, values: np.ndarray) -> tuple[float, float] | None:
        return super()._interval(values[:, 0]) if len(values) else None

    def protocol(self) -> dict[str, Any]:
        """Return the protocol: steps, order, both baselines, score and area."""
        named = {f"{kind}_baseline": SUBSTRATES[name] for kind, name in self.baselines.items()}
        return self._curve_protocol() | named

    def _details(self) -> dict[str, Any]:
        return {kind: self._curve_details(kind) for kind in self._kinds}


def pixel_counts(pixels: int, steps: int) -> list[int]:
    """Return how many pixels have changed after 0, 1, ... `steps` steps: equal shares, rounded, ending at all of them.

    Raises `UserError` for more steps than pixels.
    """
    if steps > pixels:
        raise UserError(f"{steps} steps are more than the images have pixels, {pixels}; give fewer steps.")
    return [(2 * step * pixels + steps) // (2 * steps) for step in range(steps + 1)]


def ranks(maps: Tensor) -> Tensor:
    """Return each pixel's place (N, H, W) int32 in the map's descending order, equal values in row order."""
    flat = maps.flatten(1)
    order = flat.argsort(dim=1, descending=True, stable=True)
    places = torch.arange(flat.shape[1], dtype=torch.int32, device=maps.device).expand_as(order)
    return torch.empty_like(order, dtype=torch.int32).scatter_(1, order, places).view(maps.shape)


def follow_curves(
    scorer: Scorer,
    images: Tensor,
    maps: Tensor,
    counts: Sequence[int],
    baselines: dict[str, str],
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
) -> dict[str, Tensor]:
    """Return the class's probability (N, len(counts)) float64 after `counts` pixels, for "deletion" and "insertion".

    `baselines` names each curve's substrate. A substrate by itself is scored once for all curves that meet it, and one
    that is the same for every image once for every class; that and all between goes through the model in one queue over
    curves, images and steps, so that only the last batch is not full.
    """
    names = list(dict.fromkeys(baselines.values()))
    shown = [substrate(name, images, scorer.model, mean, std) for name in names]
    pool = [pixels[:1] if name in UNIFORM else pixels for name, pixels in zip(names, shown, strict=True)]
    offsets = dict(zip(names, itertools.accumulate(map(len, pool), initial=0), strict=False))
    rows = torch.arange(len(images), device=images.device)
    inner, whole = torch.tensor(counts[1:-1], device=images.device), torch.tensor(counts[-1:], device=images.device)
    wanted, of_image = scorer.classes.unique(return_inverse=True)
    parts = []
    for name in names:
        if name in UNIFORM:
            parts.append(_jobs(0 * wanted, offsets[name] + 0 * wanted, wanted, whole, inserts=False))
        else:
            parts.append(_jobs(rows, offsets[name] + rows, scorer.classes, whole, inserts=False))
    for kind, name in baselines.items():
        behind = offsets[name] + (0 * rows if name in UNIFORM else rows)
        parts.append(_jobs(rows, behind, scorer.classes, inner, inserts=kind == "insertion"))
    jobs = _Jobs(*(torch.cat(column) for column in zip(*parts, strict=True)))
    scores = _ask(scorer, images, torch.cat(pool), ranks(maps), jobs).split([len(part.image) for part in parts])
    alone = dict(zip(names, scores, strict=False))
    curves = {}
    for (kind, name), between in zip(baselines.items(), scores[len(names) :], strict=True):
        bare = alone[name][of_image] if name in UNIFORM else alone[name]
        left, right = (scorer.clean_scores, bare) if kind == "deletion" else (bare, scorer.clean_scores)
        middle = between.view(len(images), len(inner))
        curves[kind] = torch.cat([left[:, None], middle, right[:, None]], 1).cpu().double()
    return curves


class _Jobs(NamedTuple):
    """Pictures to score, (J,) each: rows of image and substrate, pixels that change, whether they come, the class."""

    image: Tensor
    substrate: Tensor
    limit: Tensor
    inserts: Tensor
    wanted: Tensor


def _jobs(image: Tensor, behind: Tensor, wanted: Tensor, limits: Tensor, *, inserts: bool) -> _Jobs:
    """Return a job for each row of an image, its substrate and class, and each limit."""
    steps = len(limits)
    each = [column.repeat_interleave(steps) for column in (image, behind, wanted)]
    limit = limits.repeat(len(image))
    return _Jobs(each[0], each[1], limit, torch.full_like(limit, inserts, dtype=torch.bool), each[2])


def _ask(scorer: Scorer, images: Tensor, substrates: Tensor, place: Tensor, jobs: _Jobs) -> Tensor:
    """Return the score of each job (J,); `place` (N, H, W) is the order in which an image's pixels change."""
    scores = []
    for chunk in torch.arange(len(jobs.image), device=images.device).split(scorer.at_once):
        image, behind, limit, inserts, wanted = (column[chunk] for column in jobs)
        changed = place[image] < limit[:, None, None]
        # The image's own pixel: one that has come, or one that has not gone yet.
        own = (changed == inserts[:, None, None])[:, None]
        scores.append(scorer(torch.where(own, images[image], substrates[behind]), wanted))
    return torch.cat(scores)
