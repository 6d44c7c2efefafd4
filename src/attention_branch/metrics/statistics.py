"""How sure a mean is: what every metric hands back beside its number."""

import math
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from scipy import stats
from torch import Tensor

RESAMPLES = 2000
CONFIDENCE = 0.95


@dataclass(frozen=True, eq=False)
class MetricResult:
    """A metric's mean over n images with its 95 % interval, the value of each image, and how it was measured.

    `values` (n,) float64 in the order of the updates, images left out not among them; `interval` is None when n < 2,
    `mean` is NaN when n is 0; `protocol` names everything two numbers must share to be compared.
    """

    mean: float
    interval: tuple[float, float] | None
    n: int
    values: Tensor
    protocol: dict[str, Any]
    counts: dict[str, int] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """Return mean, interval, n, counts and protocol as plain values for a JSON file; NaN becomes None."""
        return {
            "mean": None if math.isnan(self.mean) else self.mean,
            "interval": list(self.interval) if self.interval is not None else None,
            "n": self.n,
            **self.counts,
            "protocol": self.protocol,
        }


def bootstrap_interval(values: np.ndarray, seed: int = 0) -> tuple[float, float] | None:
    """Return the 95 % interval of the mean: percentiles of 2,000 bootstrap resamples; None below two values."""
    if len(values) < 2:
        return None
    result = stats.bootstrap(
        (np.asarray(values, dtype=np.float64),),
        np.mean,
        n_resamples=RESAMPLES,
        batch=max(1, 2_000_000 // len(values)),
        confidence_level=CONFIDENCE,
        method="percentile",
        rng=np.random.default_rng(seed),
    )
    return float(result.confidence_interval.low), float(result.confidence_interval.high)


def proportion_interval(hits: int, count: int) -> tuple[float, float] | None:
    """Return Wilson's 95 % interval of a share, such as an accuracy; None for a count of zero."""
    if count == 0:
        return None
    interval = stats.binomtest(hits, count).proportion_ci(CONFIDENCE, method="wilson")
    return float(interval.low), float(interval.high)
