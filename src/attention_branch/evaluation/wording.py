"""Shares and intervals as people read them."""

import math


def percent(value: float | None) -> str:
    """Return a share as text, "93.4 %"; an en dash where it is not defined."""
    return "–" if value is None or math.isnan(value) else f"{100 * value:.1f} %"


def interval_text(interval: tuple[float, float] | None) -> str:
    """Return an interval of shares as text, "91.0 to 95.2 %"."""
    return "–" if interval is None else f"{100 * interval[0]:.1f} to {100 * interval[1]:.1f} %"
