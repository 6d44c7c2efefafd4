"""The embedded digits cut out of their photos as windows of 32x32 pixels, which a small network learns in minutes."""

import functools

import numpy as np
from PIL import Image

from attention_branch.data import ImageSet
from attention_branch.data.dataset import Source
from attention_branch.data.digits import CLASS_NAMES, draw

SIDE = 32
DATA = "embedded digits, seed 0, windows of 32x32 around the digit"


class Windows(Source):
    """The windows of one split: row i lies at a random place around the digit i, of seed 0."""

    decoded = True

    def __init__(self, split: str, count: int) -> None:
        self.split = split
        self._pixels = np.empty((count, SIDE, SIDE, 3), dtype=np.uint8)
        self._masks = np.empty((count, SIDE, SIDE), dtype=np.uint8)
        for row in range(count):
            picture, mask, _ = draw(0, split, row)
            random = np.random.default_rng([2, row])
            corner = []
            for axis in (1, 0):
                inked = np.flatnonzero(mask.any(axis))
                first = max(0, inked[-1] + 1 - SIDE)
                corner.append(int(random.integers(first, min(len(mask) - SIDE, inked[0]) + 1)))
            window = tuple(slice(start, start + SIDE) for start in corner)
            self._pixels[row], self._masks[row] = picture[window], mask[window]

    def __len__(self) -> int:
        return len(self._pixels)

    def image(self, row: int) -> Image.Image:
        """Return one window."""
        return Image.fromarray(self._pixels[row])

    def id(self, row: int) -> str:
        """Return the window's name."""
        return f"windows/{self.split}/{row}"

    def mask(self, row: int) -> np.ndarray:
        """Return the digit's mask (32, 32)."""
        return self._masks[row]

    def pixels(self) -> np.ndarray:
        """Return all windows."""
        return self._pixels


@functools.cache
def windows(split: str, count: int) -> ImageSet:
    """Return the first windows of a split."""
    return ImageSet(Windows(split, count), {"label": np.arange(count) % len(CLASS_NAMES)}, {"label": CLASS_NAMES})
