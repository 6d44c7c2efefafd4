"""The embedded data: real handwritten digits on crops of real photos, with the place of every digit known.

scikit-learn's 8x8 digit scans are scaled smoothly to 14..22 pixels and pasted at a random place, size and colour on
64x64 crops of its two sample photos. The splits share neither scans nor photo regions, whatever the seed. Every
picture is a pure function of (seed, split, index), so nothing is stored or downloaded. A mark that gives the class away
can be added (`attention_branch.data.marks`), or a second sign that says nothing of it
(`attention_branch.data.distractors`); neither changes any other pixel.
"""

from functools import cache

import numpy as np
from PIL import Image
from scipy.ndimage import uniform_filter
from sklearn.datasets import load_digits, load_sample_images

from attention_branch.data.dataset import SPLITS, DataSet, ImageSet, Source
from attention_branch.data.distractors import KINDS, Distractor
from attention_branch.data.glyphs import HEIGHTS, Glyph, paint, scaled_glyph, smooth_glyph
from attention_branch.data.marks import CODES, TELLS, Mark
from attention_branch.errors import UserError, did_you_mean

SIDE = 64
SIZES = {"train": 8000, "validation": 1000, "test": 2000}
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
# A crop counts as cluttered when its grey levels step by this many levels between neighbours on average.
_LEAST_CLUTTER = 6.0
_OPTIONS = {"mark": CODES, "test-mark": TELLS, "distractor": KINDS, "test-distractor": KINDS}


@cache
def _glyphs(split: str) -> tuple[tuple[Glyph, ...], ...]:
    """Return the digits of one split by class: each a smooth opacity picture and the box of its ink in it."""
    bunch = load_digits()
    order = np.random.default_rng(0).permutation(len(bunch.target))
    part = SPLITS.index(split)
    classes = []
    for label in range(10):
        mine = order[bunch.target[order] == label]
        cuts = [0, *(int(len(mine) * cut) for cut in _SCAN_CUTS), len(mine)]
        classes.append(tuple(smooth_glyph(bunch.images[scan]) for scan in mine[cuts[part] : cuts[part + 1]]))
    return tuple(classes)


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
    glyph = glyphs[random.integers(len(glyphs))]
    alpha = scaled_glyph(glyph, int(random.integers(HEIGHTS[0], HEIGHTS[1] + 1)))
    y = int(random.integers(SIDE - alpha.shape[0] + 1))
    x = int(random.integers(SIDE - alpha.shape[1] + 1))
    picture = background.copy()
    mask = paint(picture, alpha, y, x, random)
    return picture, mask, label


class DigitSource(Source):
    """Digits of one split, drawn all at once when first needed and kept as uint8; with a mark or a distractor where
    one is given."""

    decoded = True

    def __init__(
        self, seed: int, split: str, size: int, mark: Mark | None = None, distractor: Distractor | None = None
    ) -> None:
        self.seed, self.split, self.size, self.drawn_mark, self.drawn_distractor = seed, split, size, mark, distractor
        self._pixels: np.ndarray | None = None

    def __len__(self) -> int:
        return self.size

    def image(self, row: int) -> Image.Image:
        """Return one picture, from memory if the set was drawn."""
        picture = self._draw(row)[0] if self._pixels is None else self._pixels[row]
        return Image.fromarray(picture)

    def id(self, row: int) -> str:
        """Return the picture's name, which holds all that it is a function of."""
        added = f"mark-{self.drawn_mark.code}-{self.drawn_mark.tells}/" if self.drawn_mark else ""
        added += f"distractor-{self.drawn_distractor.kind}/" if self.drawn_distractor else ""
        return f"digits/seed-{self.seed}/{added}{self.split}/{row}"

    def mask(self, row: int) -> np.ndarray:
        """Return the digit's mask, uint8 (64, 64)."""
        return draw(self.seed, self.split, row)[1]

    def mark(self, row: int) -> np.ndarray:
        """Return the mark's mask, uint8 (64, 64); all zero where there is none."""
        return self._draw(row)[1]

    def distractor(self, row: int) -> np.ndarray | None:
        """Return the distractor's mask, uint8 (64, 64); None where there is none."""
        return self._draw(row)[2] if self.drawn_distractor else None

    def pixels(self) -> np.ndarray:
        """Return all pictures, uint8 (N, 64, 64, 3)."""
        if self._pixels is None:
            drawn = np.empty((self.size, SIDE, SIDE, 3), dtype=np.uint8)
            for row in range(self.size):
                drawn[row] = self._draw(row)[0]
            self._pixels = drawn
        return self._pixels

    def _draw(self, row: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return one picture, the mask of its mark and that of its distractor."""
        picture, digit, label = draw(self.seed, self.split, row)
        mark = distractor = np.zeros_like(digit)
        # Generators of their own: the digit and the photo stay those of the picture without a mark or a distractor.
        own = [self.seed, SPLITS.index(self.split), row]
        if self.drawn_mark is not None:
            mark = self.drawn_mark.add(picture, digit, label, np.random.default_rng([*own, 1]))
        if self.drawn_distractor is not None:
            distractor = self.drawn_distractor.add(picture, digit, self.split, np.random.default_rng([*own, 2]))
        return picture, mark, distractor


def open_digits(spec: str, seed: int) -> DataSet:
    """Open `digits`, `digits:train=2000,test=500`, `digits:mark=position,test-mark=class`, `digits:distractor=letter`.

    A size that is not named keeps its default. `mark` codes the class in train and validation by its position or its
    colour; `test-mark` is what it says in test: random (the default), class or none. `distractor` is a second sign that
    says nothing of the class: letter, shape or none; `test-distractor` the one in test, if it is another. Raises
    `UserError` for an unknown option or value.
    """
    sizes = dict(SIZES)
    chosen: dict[str, str] = {}
    given: set[str] = set()
    for option in filter(None, spec.partition(":")[2].split(",")):
        name, _, value = option.partition("=")
        if name in given:
            raise UserError(f"'{spec}' names '{name}' twice; leave one out.")
        given.add(name)
        if name in SIZES:
            sizes[name] = _size(name, value, spec)
        elif name in _OPTIONS:
            known = _OPTIONS[name]
            if value not in known:
                raise UserError(
                    f"'{name}' is '{value}' in '{spec}'; it can be {', '.join(known[:-1])} or {known[-1]}."
                    + did_you_mean(value, known)
                )
            chosen[name] = value
        else:
            raise UserError(
                f"'{name}' in '{spec}' is no option; write 'digits:train=2000,validation=500,test=500' for the sizes, "
                "'digits:mark=position,test-mark=class' for a mark, 'digits:distractor=letter' for a distractor."
                + did_you_mean(name, (*SIZES, *_OPTIONS))
            )
    marks, distractors = "mark" in chosen, any(_distractor_of(chosen, split) for split in sizes)
    if "test-mark" in chosen and not marks:
        raise UserError(
            f"'{spec}' says what the mark of the test split tells but not what codes it; add mark=position or "
            "mark=colour."
        )
    if marks and distractors:
        raise UserError(f"'{spec}' asks for a mark and for distractors, which could hide each other; leave one out.")
    if seed < 0:
        raise UserError(f"The seed {seed} is negative; use a whole number from 0 upwards.")
    tasks = {"label": CLASS_NAMES}
    splits = {}
    for name, size in sizes.items():
        tells = chosen.get("test-mark", "random") if name == "test" else "class"
        mark = Mark(chosen["mark"], tells) if marks else None
        source = DigitSource(seed, name, size, mark, _distractor_of(chosen, name))
        splits[name] = ImageSet(source, {"label": np.arange(size) % 10}, tasks)
    return DataSet(
        spec=spec,
        seed=seed,
        tasks={"label": CLASS_NAMES},
        split_made=_said(chosen),
        normalization=NORMALIZATION,
        train=splits["train"],
        validation=splits["validation"],
        test=splits["test"],
    )


def _distractor_of(chosen: dict[str, str], split: str) -> Distractor | None:
    kind = chosen.get("distractor", "none")
    if split == "test":
        kind = chosen.get("test-distractor", kind)
    return None if kind == "none" else Distractor(kind)


def _said(chosen: dict[str, str]) -> str:
    """Say how the splits were made, and what was added to their pictures."""
    text = "built in: train, validation and test share no handwritten scan and no photo region"
    if "mark" in chosen:
        said = {"class": "gives the class away there too", "random": "says nothing of the class", "none": "is absent"}
        text += f"; a mark's {chosen['mark']} gives the class away in train and validation; in test it "
        text += said[chosen.get("test-mark", "random")]
    train, test = (_distractor_of(chosen, split) for split in ("train", "test"))
    if train or test:
        kinds = [f"{one.kind}s" if one else "none" for one in (train, test)]
        text += f"; distractors: {kinds[0]} in train and validation, {kinds[1]} in test; splits share no drawing of one"
    return text


def _size(name: str, number: str, spec: str) -> int:
    if not number.isascii() or not number.isdigit() or not 10 <= int(number) <= 1_000_000:
        raise UserError(f"The size '{number}' of '{name}' in '{spec}' must be a whole number from 10 to 1000000.")
    return int(number)
