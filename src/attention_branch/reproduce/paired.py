"""One arm's figure against another's over the seeds both have, by Student's t."""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy import stats

CONFIDENCE = 0.95
FEWEST_SEEDS = 3
"""Seeds that a clear difference needs: two agree by chance too easily, whatever Student's t says of them."""


@dataclass(frozen=True)
class Difference:
    """The error of one arm less that of another, in points, paired by seed; `interval` and `p_value` by Student's t."""

    mean: float
    interval: tuple[float, float] | None
    p_value: float | None
    n: int
    lower: int
    """Seeds with the lower error in the first."""

    @property
    def clear(self) -> bool:
        """Whether the interval excludes zero, with as many seeds as a spread can be told from."""
        return self.n >= FEWEST_SEEDS and self.interval is not None and not self.interval[0] <= 0 <= self.interval[1]

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for a JSON file."""
        interval = None if self.interval is None else list(self.interval)
        return {**vars(self), "interval": interval, "clear": self.clear}


def paired(first: dict[int, float], second: dict[int, float]) -> Difference | None:
    """Return the first values less the second over the seeds both have, as `difference` does."""
    shared = sorted(set(first) & set(second))
    if not shared:
        return None
    pairs = [np.array([values[seed] for seed in shared], dtype=float) for values in (first, second)]
    delta = pairs[0] - pairs[1]
    if np.isnan(delta).any():
        return None
    interval, p_value = None, None
    if len(delta) > 1:
        error = float(delta.std(ddof=1)) / math.sqrt(len(delta))
        reach = float(stats.t.ppf((1 + CONFIDENCE) / 2, len(delta) - 1)) * error
        interval = (float(delta.mean()) - reach, float(delta.mean()) + reach)
        # Seeds that all differ by the same leave Student's t without a scale.
        alike = float(np.ptp(delta)) < 1e-9
        certain = 0.0 if abs(delta.mean()) > 1e-9 else 1.0
        p_value = certain if alike else float(stats.ttest_rel(pairs[0], pairs[1]).pvalue)
    return Difference(float(delta.mean()), interval, p_value, len(delta), int((delta < 0).sum()))
