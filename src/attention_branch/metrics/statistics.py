"""How sure a mean is, and how sure a difference: what every metric hands back beside its number."""

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from scipy import stats
from torch import Tensor

from attention_branch.errors import UserError

RESAMPLES = 2000
CONFIDENCE = 0.95
FEWEST = 6
"""Differing images that a clear difference needs: of five signs, all alike, a two-sided test says p = 0.06."""


@dataclass(frozen=True, eq=False)
class MetricResult:
    """A metric's mean over n images with its 95 % interval, the value of each image, and how it was measured.

    `values` (N,) float64 in the order of the updates, NaN for an image that was left out (why is in `counts`), so that
    results of the same images can be compared image by image; n of them are numbers. `interval` is None when n < 2,
    `mean` is NaN when n is 0; `protocol` names everything two numbers must share to be compared. `details` holds what
    a metric has beside its number, such as curves.
    """

    mean: float
    interval: tuple[float, float] | None
    n: int
    values: Tensor
    protocol: dict[str, Any]
    counts: dict[str, int] = field(default_factory=dict)
    details: dict[str, Any] = field(default_factory=dict)

    def __repr__(self) -> str:
        of = f"{self.protocol['metric']}: " if "metric" in self.protocol else ""
        interval = f"95 % interval {self.interval[0]:.4g} to {self.interval[1]:.4g}, " if self.interval else ""
        return f"MetricResult({of}{self.mean:.4g}, {interval}n = {self.n})"

    def to_dict(self) -> dict[str, Any]:
        """Return mean, interval, n, counts and protocol as plain values for a JSON file; NaN becomes None."""
        return {
            "mean": None if math.isnan(self.mean) else self.mean,
            "interval": list(self.interval) if self.interval is not None else None,
            "n": self.n,
            **self.counts,
            "protocol": self.protocol,
        }


@dataclass(frozen=True)
class PairedDifference:
    """The difference of two metrics on the same n images: a - b, image by image.

    `interval` is its 95 % bootstrap interval, `p_value` that of Wilcoxon's signed-rank test (two-sided; zero
    differences ranked and then dropped, Pratt), None where n < 2 or no image differs. `higher`, `lower` and `equal`
    count images.
    """

    mean: float
    interval: tuple[float, float] | None
    n: int
    p_value: float | None
    higher: int
    lower: int
    equal: int

    @property
    def clear(self) -> bool:
        """Whether the two differ for sure: the interval excludes zero, p < 0.05, and six images or more differ.

        Both are asked, because a bootstrap interval of few images is too narrow: of three of one sign it never meets
        zero.
        """
        if self.interval is None or self.p_value is None or self.higher + self.lower < FEWEST:
            return False
        return not self.interval[0] <= 0 <= self.interval[1] and self.p_value < 1 - CONFIDENCE

    def to_dict(self) -> dict[str, Any]:
        """Return all, and whether it is clear, as plain values for a JSON file; NaN becomes None."""
        values = {**vars(self), "clear": self.clear}
        values["mean"] = None if math.isnan(self.mean) else self.mean
        values["interval"] = list(self.interval) if self.interval is not None else None
        return values


_FREE = {"images_sha256", "interval", "map"}
"""Entries of a protocol in which two results may differ and still be compared."""


def paired_difference(first: MetricResult, second: MetricResult, seed: int = 0) -> PairedDifference:
    """Compare two results of the same images: mean of first - second with its interval, Wilcoxon's test and counts.

    Images that either left out are left out. Raises `UserError` when the two are not of the same images or not of one
    protocol.
    """
    for result in (first, second):
        if not isinstance(result, MetricResult):
            raise UserError(f"paired_difference takes two results, of compute(); this is a {type(result).__name__}.")
    hashes = [result.protocol.get("images_sha256") for result in (first, second)]
    if len(first.values) != len(second.values) or (all(hashes) and hashes[0] != hashes[1]):
        raise UserError("The results are not of the same images in the same order, so they have no paired difference.")
    for key in sorted({*first.protocol, *second.protocol} - _FREE):
        one, other = first.protocol.get(key), second.protocol.get(key)
        if one != other:
            raise UserError(f"The results are not of one protocol: {key} is '{one}' in one and '{other}' in the other.")
    difference = (first.values - second.values).numpy()
    difference = difference[~np.isnan(difference)]
    p_value = None
    if len(difference) > 1 and np.any(difference != 0):
        p_value = float(stats.wilcoxon(difference, zero_method="pratt").pvalue)
    return PairedDifference(
        mean=float(difference.mean()) if len(difference) else float("nan"),
        interval=bootstrap_interval(difference, seed),
        n=len(difference),
        p_value=p_value,
        higher=int((difference > 0).sum()),
        lower=int((difference < 0).sum()),
        equal=int((difference == 0).sum()),
    )


def bootstrap_interval(
    values: np.ndarray, seed: int = 0, statistic: Callable[..., Any] = np.mean
) -> tuple[float, float] | None:
    """Return the 95 % interval of a statistic: percentiles of 2,000 bootstrap resamples; None below two values.

    `values` are (n,), or (n, k) with a `statistic(column, ..., axis=-1)` of its k columns, resampled together.
    """
    values = np.asarray(values, dtype=np.float64)
    if len(values) < 2:
        return None
    result = stats.bootstrap(
        tuple(values.T) if values.ndim == 2 else (values,),
        statistic,
        n_resamples=RESAMPLES,
        batch=max(1, 2_000_000 // values.size),
        paired=values.ndim == 2,
        vectorized=True,
        confidence_level=CONFIDENCE,
        method="percentile",
        rng=np.random.default_rng(seed),
    )
    return float(result.confidence_interval.low), float(result.confidence_interval.high)


def share_interval(hits: np.ndarray, seed: int = 0) -> tuple[float, float] | None:
    """Return the 95 % interval of a share of hits (n,), each 0 or 1: by bootstrap, where all are alike Wilson's.

    The bootstrap of n equal values has no width, as if the next image could not be otherwise.
    """
    if len(hits) > 1 and hits.min() == hits.max():
        return proportion_interval(int(hits.sum()), len(hits))
    return bootstrap_interval(hits, seed)


SHARE_INTERVAL = "; Wilson's where all are hits or none is"
"""What a protocol says of `share_interval` beside the bootstrap."""


def proportion_interval(hits: int, count: int) -> tuple[float, float] | None:
    """Return Wilson's 95 % interval of a share, such as an accuracy; None for a count of zero."""
    if count == 0:
        return None
    interval = stats.binomtest(hits, count).proportion_ci(CONFIDENCE, method="wilson")
    return float(interval.low), float(interval.high)
