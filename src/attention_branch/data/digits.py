"""The embedded data: real handwritten digits on crops of real photos, with the place of every digit known.

scikit-learn's 8x8 digit scans are scaled smoothly to 14..22 pixels and pasted at a random place, size and colour on
64x64 crops of its two sample photos. The splits share neither scans nor photo regions, whatever the seed. Every
picture is a pure function of (seed, split, index), so nothing is stored or downloaded.
"""

from functools import cache

import numpy as np
from PIL import Image
from scipy.ndimage import uniform_filter
from sklearn.datasets import load_digits, load_sample_images

from attention_branch.data.dataset import SPLITS, DataSet, ImageSet, Source
from attention_branch.errors import UserError, did_you_mean

SIDE = 64
SIZES = {"train": 8000, "validation": 1000, "test": 2000}
HEIGHTS = (14, 22)
CLASS_NAMES = tuple("0123456789")
# Mean and standard deviation of the default training pictures (seed 0), per channel on the [0, 1] scale.
NORMALIZATION = ((0.463, 0.390, 0.322), (0.290, 0.258, 0.263))

# Share of the scans of each class that goes to train, and to train or validation; the rest is for test.
_SCAN_CUTS = (0.7, 0.8)
# Regions (top, bottom, left, right) of the two photos. Each split sees foliage and roof or petals, none of it twice.
_REGIONS = {
    "train": ((0, 427, 0, 330), (0, 215, 0, 640)),
    "validation": ((0, 427, 330, 430), (215, 290, 0, 640)),
    "test": ((0, 427, 430, 640), (290, 427, 0, 640)),
}
# A pixel belongs to the digit from this opacity on.
_INK = 0.45
# A crop counts as cluttered when its grey levels step by this many levels between neighbours on average.
_LEAST_CLUTTER = 6.0
# A digit's colour lies this far (Euclidean, RGB in [0, 1]) from the mean colour behind it when one of the draws does.
_LEAST_CONTRAST, _COLOUR_DRAWS = 0.65, 6


@cache
def _glyphs(split: str) -> tuple[tuple[tuple[Image.Image, tuple[int, int, int, int]], ...], ...]:
    """Return the digits of one split by class: each a smooth opacity picture and the box of its ink in it."""
    bunch = load_digits()
    order = np.random.default_rng(0).permutation(len(bunch.target))
    part = SPLITS.index(split)
    classes = []
    for label in range(10):
        mine = order[bunch.target[order] == label]
        cuts = [0, *(int(len(mine) * cut) for cut in _SCAN_CUTS), len(mine)]
        classes.append(tuple(_smooth(bunch.images[scan]) for scan in mine[cuts[part] : cuts[part + 1]]))
    return tuple(classes)


def _smooth(scan: np.ndarray) -> tuple[Image.Image, tuple[int, int, int, int]]:
    """Scale an 8x8 scan (values 0..16) smoothly to 8 pixels a cell, empty cells around it, strokes opaque."""
    cells = np.pad(np.round(scan / scan.max() * 255).astype(np.uint8), 2)
    large = Image.fromarray(cells).resize((8 * cells.shape[1], 8 * cells.shape[0]), Image.Resampling.BICUBIC)
    opacity = np.clip(np.asarray(large) * 1.5, 0, 255).astype(np.uint8)
    ink = opacity >= 255 * _INK
    rows, columns = np.flatnonzero(ink.any(1)), np.flatnonzero(ink.any(0))
    return Image.fromarray(opacity), (int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1)


@cache
def _photos() -> tuple[np.ndarray, ...]:
    return tuple(np.asarray(photo) for photo in load_sample_images().images)


@cache
def _corners(split: str) -> np.ndarray:
    """Return (photo, top, left) of every cluttered crop inside the split's regions, int (M, 3)."""
    found = []
    for number, (photo, region) in enumerate(zip(_photos(), _REGIONS[split], strict=True)):
        top, bottom, left, right = region
        grey = photo[top:bottom, left:right].mean(axis=2)
        steps = np.zeros_like(grey)
        steps[:, 1:] += np.abs(np.diff(grey, axis=1)) / 2
        steps[1:] += np.abs(np.diff(grey, axis=0)) / 2
        half = SIDE // 2
        clutter = uniform_filter(steps, SIDE)[half : bottom - top - half + 1, half : right - left - half + 1]
        where = np.argwhere(clutter >= _LEAST_CLUTTER) + np.array([top, left])
        found.append(np.column_stack([np.full(len(where), number), where]))
    return np.concatenate(found)


def draw(seed: int, split: str, index: int) -> tuple[np.ndarray, np.ndarray, int]:
    """Return one picture uint8 (64, 64, 3), the mask of its digit uint8 (64, 64), and its class."""
    random = np.random.default_rng([seed, SPLITS.index(split), index])
    label = index % 10
    corners = _corners(split)
    photo, top, left = corners[random.integers(len(corners))]
    background = _photos()[photo][top : top + SIDE, left : left + SIDE]
    if random.random() < 0.5:
        background = background[:, ::-1]

    glyphs = _glyphs(split)[label]
    glyph, box = glyphs[random.integers(len(glyphs))]
    alpha = _scale(glyph, box, int(random.integers(HEIGHTS[0], HEIGHTS[1] + 1)))
    y = int(random.integers(SIDE - alpha.shape[0] + 1))
    x = int(random.integers(SIDE - alpha.shape[1] + 1))
    place = (slice(y, y + alpha.shape[0]), slice(x, x + alpha.shape[1]))

    behind = background[place].reshape(-1, 3).mean(axis=0) / 255
    colours = random.random((_COLOUR_DRAWS, 3))
    contrast = np.linalg.norm(colours - behind, axis=1)
    enough = contrast >= _LEAST_CONTRAST
    colour = colours[int(np.argmax(enough)) if enough.any() else int(np.argmax(contrast))] * 255

    picture = background.copy()
    ink = alpha[..., None]
    picture[place] = np.round(picture[place] * (1 - ink) + colour * ink).astype(np.uint8)
    mask = np.zeros((SIDE, SIDE), dtype=np.uint8)
    mask[place] = alpha >= _INK
    return picture, mask, label


def _scale(glyph: Image.Image, box: tuple[int, int, int, int], height: int) -> np.ndarray:
    """Return a glyph as opacity in [0, 1], its ink `height` pixels tall, with one pixel of soft edge around it."""
    left, top, right, bottom = box
    pixel = (bottom - top) / height
    width = max(1, round((right - left) / pixel))
    around = (left - pixel, top - pixel, right + pixel, bottom + pixel)
    scaled = glyph.resize((width + 2, height + 2), Image.Resampling.BILINEAR, box=around)
    return np.asarray(scaled, dtype=np.float32) / 255


class DigitSource(Source):
    """Digits of one split, drawn all at once when first needed and kept as uint8."""

    decoded = True

    def __init__(self, seed: int, split: str, size: int) -> None:
        self.seed, self.split, self.size = seed, split, size
        self._pixels: np.ndarray | None = None

    def __len__(self) -> int:
        return self.size

    def image(self, row: int) -> Image.Image:
        """Return one picture, from memory if the set was drawn."""
        picture = draw(self.seed, self.split, row)[0] if self._pixels is None else self._pixels[row]
        return Image.fromarray(picture)

    def id(self, row: int) -> str:
        """Return the picture's name, which holds all that it is a function of."""
        return f"digits/seed-{self.seed}/{self.split}/{row}"

    def mask(self, row: int) -> np.ndarray:
        """Return the digit's mask, uint8 (64, 64)."""
        return draw(self.seed, self.split, row)[1]

    def pixels(self) -> np.ndarray:
        """Return all pictures, uint8 (N, 64, 64, 3)."""
        if self._pixels is None:
            drawn = np.empty((self.size, SIDE, SIDE, 3), dtype=np.uint8)
            for row in range(self.size):
                drawn[row] = draw(self.seed, self.split, row)[0]
            self._pixels = drawn
        return self._pixels


def open_digits(spec: str, seed: int) -> DataSet:
    """Open `digits` or `digits:train=2000,test=500`; a size that is not named keeps its default."""
    sizes = dict(SIZES)
    options = spec.partition(":")[2]
    for option in filter(None, options.split(",")):
        name, _, number = option.partition("=")
        if name not in SIZES:
            raise UserError(
                f"'{name}' in '{spec}' is no split; write sizes as 'digits:train=2000,validation=500,test=500'."
                + did_you_mean(name, SIZES)
            )
        if not number.isascii() or not number.isdigit() or not 10 <= int(number) <= 1_000_000:
            raise UserError(f"The size '{number}' of '{name}' in '{spec}' must be a whole number from 10 to 1000000.")
        sizes[name] = int(number)
    if seed < 0:
        raise UserError(f"The seed {seed} is negative; use a whole number from 0 upwards.")
    tasks = {"label": CLASS_NAMES}
    splits = {
        name: ImageSet(DigitSource(seed, name, size), {"label": np.arange(size) % 10}, tasks)
        for name, size in sizes.items()
    }
    return DataSet(
        spec=spec,
        seed=seed,
        tasks={"label": CLASS_NAMES},
        split_made="built in: train, validation and test share no handwritten scan and no photo region",
        normalization=NORMALIZATION,
        train=splits["train"],
        validation=splits["validation"],
        test=splits["test"],
    )
