"""The frozen outcome of a comparison: methods on the same images, and how sure every difference is."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from attention_branch.compare.cost import Costs
from attention_branch.compare.measures import MEASURES
from attention_branch.explanations.methods import CONTROLS
from attention_branch.metrics.statistics import (
    MetricResult,
    PairedDifference,
    bootstrap_interval,
    paired_difference,
    proportion_interval,
)


@dataclass(frozen=True, eq=False)
class Answers:
    """What the network answered to each of N images, in the order of the subset.

    `ids` names them; `label` (N,) is -1 where missing; `target` (N,) the class whose probability the metrics follow;
    `second` and `second_confidence` are the attention branch's, None without one. Classes are the model's indices.
    """

    ids: Sequence[str]
    index: np.ndarray
    label: np.ndarray
    target: np.ndarray
    predicted: np.ndarray
    confidence: np.ndarray
    second: np.ndarray | None
    second_confidence: np.ndarray | None
    class_names: Sequence[str]

    def __len__(self) -> int:
        return len(self.ids)

    @cached_property
    def right(self) -> np.ndarray:
        """(N,) 1 where the prediction is the label, 0 where it is not, NaN without a label."""
        return np.where(self.label >= 0, (self.predicted == self.label).astype(np.float64), np.nan)

    @cached_property
    def agree(self) -> np.ndarray | None:
        """(N,) bool: both branches give the same class; None without a branch."""
        return None if self.second is None else self.second == self.predicted

    def to_dict(self) -> dict[str, Any]:
        """Return accuracy and branch agreement with their intervals as plain values."""
        known = self.right[~np.isnan(self.right)]
        values: dict[str, Any] = {"accuracy": share_of(known > 0)}
        if self.agree is not None:
            values["branches_agree"] = share_of(self.agree)
            for name, chosen in (("agree", self.agree), ("disagree", ~self.agree)):
                values[f"accuracy_where_branches_{name}"] = share_of(self.right[chosen & ~np.isnan(self.right)] > 0)
        return values


def share_of(hits: np.ndarray) -> dict[str, Any]:
    """Return the share of hits with n and Wilson's 95 % interval; None for no images."""
    count = len(hits)
    interval = proportion_interval(int(hits.sum()), count)
    return {
        "share": float(hits.mean()) if count else None,
        "interval": list(interval) if interval else None,
        "n": count,
    }


@dataclass(frozen=True, eq=False)
class Comparison:
    """Every method's metrics on the same images, their paired differences, and what else a reader must know.

    `results` holds a `MetricResult` by method and metric; `likeness` the rank correlation (Spearman) of two methods'
    maps per image, (N,), by pair; `drive` whether the map drives the answer (an attention branch network with an
    applied map, else None); `left_out` the methods and metrics that this network or data cannot do, with the reason.
    """

    methods: Sequence[str]
    metrics: Sequence[str]
    results: Mapping[str, Mapping[str, MetricResult]]
    answers: Answers
    likeness: Mapping[tuple[str, str], np.ndarray]
    layers: Mapping[str, str]
    costs: Costs | None = None
    drive: Any = None
    left_out: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    notes: Sequence[str] = ()
    record: Mapping[str, Any] = field(default_factory=dict)
    seed: int = 0
    output: Path = Path()

    def __repr__(self) -> str:
        return f"Comparison({self.n} images; {', '.join(self.methods)}; {', '.join(self.metrics)})"

    @property
    def n(self) -> int:
        """The number of images."""
        return len(self.answers)

    @property
    def main(self) -> str:
        """The method that the page is about: the first that is no control."""
        return next((method for method in self.methods if method not in CONTROLS), self.methods[0])

    @cached_property
    def references(self) -> list[str]:
        """What every method is held against: Grad-CAM if it is there, and the centre of the image."""
        return [method for method in ("grad-cam", "center", "random") if method in self.methods]

    @cached_property
    def differences(self) -> dict[str, dict[str, dict[str, PairedDifference]]]:
        """Paired differences by reference, method and metric: method - reference, image by image."""
        return {
            reference: {
                method: {metric: self.difference(method, reference, metric) for metric in self.metrics}
                for method in self.methods
                if method != reference
            }
            for reference in self.references
        }

    @cached_property
    def protocols(self) -> dict[str, dict[str, Any]]:
        """Each metric's protocol, which the first method's result holds."""
        return {metric: self.results[self.methods[0]][metric].protocol for metric in self.metrics}

    def images_text(self) -> str:
        """Say how many images of which data these are, and how they were drawn."""
        whole, split = self.record.get("split_images", self.n), self.record.get("split", "")
        labelled = self.record.get("labelled_images", whole)
        if self.n == whole:
            return f"all {self.n:,} images of the {split} split"
        if self.n == labelled:
            return f"all {self.n:,} images with a label of the {whole:,} of the {split} split"
        which = f"{labelled:,} images with a label" if labelled < whole else f"{whole:,} images"
        return f"{self.n:,} of the {which} of the {split} split, drawn at random (seed {self.seed})"

    def difference(self, method: str, other: str, metric: str) -> PairedDifference:
        """Return method - other on one metric, image by image."""
        known = self._differences.get((method, other, metric))
        if known is None:
            first, second = self.results[method][metric], self.results[other][metric]
            known = self._differences[method, other, metric] = paired_difference(first, second, self.seed)
        return known

    @cached_property
    def _differences(self) -> dict[tuple[str, str, str], PairedDifference]:
        return {}

    def higher_is_better(self, metric: str) -> bool | None:
        """Tell which way is better; None for a description."""
        return MEASURES[metric].higher_is_better

    def verdict(self, method: str, other: str, metric: str) -> str:
        """Return "better", "worse" or "unclear", by whether the paired difference is `clear` and on which side.

        "higher" and "lower" of a metric that has no better.
        """
        up, found = self.higher_is_better(metric), self.difference(method, other, metric)
        if not found.clear:
            return "unclear"
        if up is None:
            return "higher" if found.mean > 0 else "lower"
        return "better" if (found.mean > 0) == up else "worse"

    def best(self, metric: str) -> str | None:
        """Return the method whose paired difference to every other one is clear and in its favour, if any."""
        if self.higher_is_better(metric) is None:
            return None
        for method in self.methods:
            if all(self.verdict(method, other, metric) == "better" for other in self.methods if other != method):
                return method
        return None

    def to_dict(self) -> dict[str, Any]:
        """Return everything but the values per image as plain values for a JSON file; NaN becomes None."""
        values = {
            "n": self.n,
            "methods": list(self.methods),
            "metrics": list(self.metrics),
            "results": {
                method: {metric: self._result(metric, result) for metric, result in by_metric.items()}
                for method, by_metric in self.results.items()
            },
            "differences": {
                reference: {
                    method: {metric: found.to_dict() for metric, found in by_metric.items()}
                    for method, by_metric in by_method.items()
                }
                for reference, by_method in self.differences.items()
            },
            "best": {metric: self.best(metric) for metric in self.metrics},
            "protocols": self.protocols,
            "answers": self.answers.to_dict(),
            "likeness": [
                {"methods": list(pair), **_mean_of(found, self.seed)} for pair, found in self.likeness.items()
            ],
            "map_drives_the_answer": self.drive.to_dict() if self.drive is not None else None,
            "costs": self.costs.to_dict() if self.costs is not None else None,
            "layers": dict(self.layers),
            "left_out": {kind: dict(found) for kind, found in self.left_out.items()},
            "notes": list(self.notes),
            "record": dict(self.record),
        }
        return plain(values)

    def arrays(self) -> dict[str, np.ndarray]:
        """Return the values per image, in the order of the subset, for an .npz file; nothing in it needs pickle."""
        answers = self.answers
        found: dict[str, np.ndarray] = {
            "id": np.array(list(answers.ids)),
            "index": answers.index,
            "label": answers.label,
            "target": answers.target,
            "predicted": answers.predicted,
            "confidence": answers.confidence,
        }
        if answers.second is not None and answers.second_confidence is not None:
            found |= {"attention_branch": answers.second, "attention_branch_confidence": answers.second_confidence}
        for method, by_metric in self.results.items():
            for metric, result in by_metric.items():
                found[f"{method}/{metric}"] = result.values.numpy()
                if isinstance(result.details.get("curves"), Tensor):
                    found[f"{method}/{metric}/curve"] = result.details["curves"].float().numpy()
        return found | {f"spearman/{first}/{second}": values for (first, second), values in self.likeness.items()}

    def _result(self, metric: str, result: MetricResult) -> dict[str, Any]:
        """Return a result as plain values, with only what in its protocol differs from the metric's."""
        values = result.to_dict()
        differs = {key: value for key, value in values.pop("protocol").items() if self.protocols[metric][key] != value}
        values["details"] = _without_arrays(result.details)
        return values | ({"protocol_differs": differs} if differs else {})


def _mean_of(values: np.ndarray, seed: int) -> dict[str, Any]:
    known = values[~np.isnan(values)]
    interval = bootstrap_interval(known, seed)
    return {"mean": float(known.mean()) if len(known) else None, "interval": interval, "n": len(known)}


def _without_arrays(details: Mapping[str, Any]) -> dict[str, Any]:
    """Return details without their values per image, which are in values.npz."""
    return {
        name: _without_arrays(value) if isinstance(value, Mapping) else value
        for name, value in details.items()
        if not isinstance(value, Tensor | np.ndarray)
    }


def plain(value: Any) -> Any:
    """Return a value that JSON takes: NaN and infinity become None, tuples lists, numpy scalars Python's."""
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if isinstance(value, np.generic):
        value = value.item()
    return None if isinstance(value, float) and not math.isfinite(value) else value
