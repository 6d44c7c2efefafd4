"""An alarm for attention maps that say nothing: the same everywhere, or the same for every image."""

from typing import TYPE_CHECKING, Any

import numpy as np

from attention_branch.arrays import as_array

if TYPE_CHECKING:
    from torch import Tensor

SPREAD = 0.01
"""A map whose values differ by less than this (standard deviation over positions) prefers no place."""

EDGE = 0.02
"""A map that stays this close to 0 or to 1 everywhere is saturated."""

SHARE = 0.9
"""The share of images that must show a fault before it is called the maps' and not one image's."""


def collapse_alarm(maps: "Tensor | np.ndarray | Any", *, bounded: bool = True) -> str | None:
    """Say in a sentence how maps in [0, 1], (N, h, w) or (N, T, h, w), have collapsed; None when they have not.

    Collapsed is: NaN; saturated near 0 or 1 everywhere; constant over positions; identical over images. Maps without a
    bound (`bounded=False`) are never saturated; their spread over positions counts as a share of each map's largest
    value, that between images as a share of the median of these.
    """
    if maps.ndim == 4:
        alarms = [(task, collapse_alarm(maps[:, task], bounded=bounded)) for task in range(maps.shape[1])]
        found = [(task, alarm) for task, alarm in alarms if alarm is not None]
        if not found or maps.shape[1] == 1:
            return found[0][1] if found else None
        return f"{len(found)} of {maps.shape[1]} maps collapsed; number {found[0][0]}: {found[0][1]}"
    values = as_array(maps)
    if values.size == 0:
        return None
    if not np.isfinite(values).all():
        return "The attention maps hold NaN or infinite values: training has diverged."
    flat = shape = values.reshape(len(values), -1)
    if not bounded:
        largest = np.abs(flat).max()
        if largest == 0:
            return "The attention maps are 0 everywhere in all images."
        # On scales of their own, so that the same small numbers say that nothing differs.
        of_each = np.abs(flat).max(1, keepdims=True)
        # The lower of two middle ones, as the median of a tensor is.
        middle = np.sort(of_each, axis=None)[(len(of_each) - 1) // 2]
        flat, shape = flat / max(middle, largest * 1e-12), flat / np.maximum(of_each, largest * 1e-12)
    spread = shape.std(1)
    for name, share in (
        ("near 0", (flat.max(1) < EDGE).mean()),
        ("near 1", (flat.min(1) > 1 - EDGE).mean()),
    ):
        if bounded and share >= SHARE:
            return f"The attention maps are saturated {name} everywhere in {share:.0%} of the images."
    if flat.shape[1] == 1:
        return None
    around, of_largest = f" around {flat.mean():.2f}", ""
    if not bounded:
        around, of_largest = " of the largest value", " of the largest value"
    share = (spread < SPREAD).mean()
    if share >= SHARE:
        return (
            f"The attention maps are constant over positions in {share:.0%} of the images "
            f"(spread {spread.mean():.4f}{around})."
        )
    between = flat.std(0)
    if len(flat) > 1 and between.max() < SPREAD:
        return (
            f"The attention maps are the same for every image (spread between images {between.max():.4f}{of_largest})."
        )
    return None
