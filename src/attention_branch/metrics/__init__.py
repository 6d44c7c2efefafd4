"""Numbers for maps: each with its n, its interval and the protocol it was measured by."""

from attention_branch.metrics.collapse import collapse_alarm
from attention_branch.metrics.pointing import PointingGame, box_masks
from attention_branch.metrics.statistics import MetricResult

__all__ = ["MetricResult", "PointingGame", "box_masks", "collapse_alarm"]
