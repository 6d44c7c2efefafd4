"""The true place of an object, or of points of it, carried through the same geometry as the picture."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from PIL import Image

from attention_branch.models.preprocessing import Preprocessing


def transform_mask(
    mask_or_box: np.ndarray | Sequence[float],
    preprocessing: Preprocessing,
    picture_size: tuple[int, int] | None = None,
) -> np.ndarray:
    """Return a mask (H, W) or box (x0, y0, x1, y1) as a bool mask at the network's size, resized and cropped alike.

    A pixel belongs to the object when at least half of it does; an object too small for that keeps its strongest
    pixels, so that only one cropped away gives an empty mask. A box needs `picture_size`, the picture's
    (height, width); its sides may lie between pixels.
    """
    values = np.asarray(mask_or_box)
    coverage = values > 0
    if values.ndim == 1:
        if values.shape != (4,) or picture_size is None:
            raise ValueError("A box is (x0, y0, x1, y1) and needs the picture's (height, width).")
        coverage = _box_coverage(values.astype(float), picture_size)
    levels = Image.fromarray(np.round(coverage * 255.0).astype(np.uint8)).convert("RGB")
    smooth = replace(preprocessing, interpolation="bilinear")
    seen = np.asarray(smooth.image(levels))[..., 0]
    inside = seen >= 128
    return inside if inside.any() or not seen.any() else seen == seen.max()


def transform_points(points: np.ndarray, preprocessing: Preprocessing, picture_size: tuple[int, int]) -> np.ndarray:
    """Return points (P, 2), x and y in a picture of (height, width), in the pixels of the network's input.

    A pixel's middle has its whole number, before and after. Points that are cropped away lie outside the input.
    """
    scale, corner = preprocessing.geometry(picture_size)
    return (np.asarray(points, dtype=np.float64) + 0.5) * scale[::-1] - 0.5 - corner[::-1]


def _box_coverage(box: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Return the share of every pixel that a box covers, (height, width) in [0, 1]."""
    x0, y0, x1, y1 = box
    rows, columns = np.arange(size[0]), np.arange(size[1])
    vertical = np.clip(np.minimum(rows + 1, y1) - np.maximum(rows, y0), 0, 1)
    horizontal = np.clip(np.minimum(columns + 1, x1) - np.maximum(columns, x0), 0, 1)
    return vertical[:, None] * horizontal[None, :]
