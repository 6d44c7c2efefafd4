"""Bringing maps to another size."""

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from torch import Tensor


def upsample(maps: "Tensor", height: int, width: int) -> "Tensor":
    """Resize maps (N, h, w) to (N, height, width), bilinear (align_corners=False), unless already so.

    No value leaves its map's range: interpolation rounds, and would give a constant map a spread that it has not.
    """
    from torch.nn import functional as F

    if maps.shape[-2:] == (height, width):
        return maps
    resized = F.interpolate(maps[:, None], size=(height, width), mode="bilinear", align_corners=False)[:, 0]
    return resized.clamp(maps.amin((1, 2), keepdim=True), maps.amax((1, 2), keepdim=True))


def resized(values: np.ndarray, height: int, width: int) -> np.ndarray:
    """Resize an array (..., h, w) as `upsample` does, without torch; the type stays where it is a float."""
    if values.shape[-2:] == (height, width):
        return values
    found = _along(_along(values, -2, height), -1, width)
    return np.clip(found, values.min((-2, -1), keepdims=True), values.max((-2, -1), keepdims=True))


def _along(values: np.ndarray, axis: int, count: int) -> np.ndarray:
    """Interpolate linearly along an axis, at the middles of `count` equal parts of its length."""
    length = values.shape[axis]
    places = np.clip((np.arange(count) + 0.5) * (length / count) - 0.5, 0, length - 1)
    before = np.minimum(np.floor(places).astype(int), max(0, length - 2))
    shape = [1] * values.ndim
    shape[axis] = count
    share = (places - before).reshape(shape).astype(values.dtype)
    after = np.minimum(before + 1, length - 1)
    return values.take(before, axis) * (1 - share) + values.take(after, axis) * share
