"""A second sign on the embedded digits that says nothing of the class: an interfering feature, whose place is known.

Letters and shapes, none of which is a digit. They are drawn stroke by stroke with an unsteady hand and counted in 4x4
blocks of a 32x32 bitmap, as the digits' scans were, and from there on go the digit's own way: smoothed, scaled to the
same heights, coloured by the same rule. Which sign it is, how it looks and where it lies is drawn without regard to the
class, never on the digit; the digit and the photo are, pixel by pixel, those of the picture without a distractor.
"""

from dataclasses import dataclass
from functools import cache
from itertools import pairwise

import numpy as np

from attention_branch.data.dataset import SPLITS
from attention_branch.data.glyphs import HEIGHTS, Glyph, paint, scaled_glyph, smooth_glyph

_Strokes = tuple[tuple[tuple[float, float], ...], ...]

# Strokes as lines through points (x, y) of the unit square, y downwards. Left out: what a hasty hand makes a digit of
# (O, D, Q: 0; I, L, J: 1; Z: 2; S: 5; G, B: 6, 8; T: 7; Y, P, R: 4, 9; a ring, an hourglass).
_LETTERS: dict[str, _Strokes] = {
    "A": (((0, 1), (0.5, 0), (1, 1)), ((0.2, 0.65), (0.8, 0.65))),
    "E": (((1, 0), (0, 0), (0, 1), (1, 1)), ((0, 0.5), (0.8, 0.5))),
    "F": (((1, 0), (0, 0), (0, 1)), ((0, 0.5), (0.8, 0.5))),
    "H": (((0, 0), (0, 1)), ((1, 0), (1, 1)), ((0, 0.5), (1, 0.5))),
    "K": (((0, 0), (0, 1)), ((1, 0), (0, 0.55), (1, 1))),
    "M": (((0, 1), (0, 0), (0.5, 0.6), (1, 0), (1, 1)),),
    "N": (((0, 1), (0, 0), (1, 1), (1, 0)),),
    "V": (((0, 0), (0.5, 1), (1, 0)),),
    "W": (((0, 0), (0.25, 1), (0.5, 0.3), (0.75, 1), (1, 0)),),
    "X": (((0, 0), (1, 1)), ((1, 0), (0, 1))),
}
_SHAPES: dict[str, _Strokes] = {
    "arrow": (((0.5, 1), (0.5, 0)), ((0, 0.45), (0.5, 0), (1, 0.45))),
    "asterisk": (((0.5, 0), (0.5, 1)), ((0, 0.25), (1, 0.75)), ((1, 0.25), (0, 0.75))),
    "bars": (((0, 0), (1, 0)), ((0, 0.5), (1, 0.5)), ((0, 1), (1, 1))),
    "comb": (((0, 0), (1, 0)), ((0, 0), (0, 1)), ((0.5, 0), (0.5, 1)), ((1, 0), (1, 1))),
    "cross": (((0.5, 0), (0.5, 1)), ((0, 0.4), (1, 0.4))),
    "hash": (((0.25, 0), (0.25, 1)), ((0.75, 0), (0.75, 1)), ((0, 0.3), (1, 0.3)), ((0, 0.7), (1, 0.7))),
    "house": (((0, 1), (0, 0.45), (0.5, 0), (1, 0.45), (1, 1), (0, 1)),),
    "triangle": (((0, 1), (0.5, 0), (1, 1), (0, 1)),),
    "flag": (((0, 1), (0, 0), (1, 0.25), (0, 0.5)),),
    "waves": (
        ((0, 0.3), (0.25, 0), (0.5, 0.3), (0.75, 0), (1, 0.3)),
        ((0, 1), (0.25, 0.7), (0.5, 1), (0.75, 0.7), (1, 1)),
    ),
}  # fmt: skip

SIGNS = {"letter": _LETTERS, "shape": _SHAPES}
KINDS = (*SIGNS, "none")
"""What a split's distractors are: letters, shapes, or none."""

# Drawings of each sign in a split: about as many as there are scans of each digit.
_DRAWINGS = {"train": 125, "validation": 18, "test": 36}
# The bitmap, and what varies from one drawing to the next: the pen's width in pixels, the rest as shares of the side.
_BITMAP, _BLOCK = 32, 4
_PEN, _WIDTHS, _SLANT, _UNSTEADY = (3.6, 5.6), (0.4, 0.7), 0.2, 0.06
# Between the distractor, its soft edge included, and the digit's box.
_GAP = 2


@dataclass(frozen=True)
class Distractor:
    """What kind of signs a split's distractors are: a key of `SIGNS`."""

    kind: str

    def add(self, picture: np.ndarray, digit: np.ndarray, split: str, random: np.random.Generator) -> np.ndarray:
        """Draw a sign into a picture uint8 (S, S, 3); return its mask uint8 (S, S).

        `digit` (S, S) is the digit's mask. The height is the drawn one, or the next lower that has a place.
        """
        glyphs = drawings(self.kind, split)
        glyph = glyphs[random.integers(len(glyphs))]
        height = int(random.integers(HEIGHTS[0], HEIGHTS[1] + 1))
        while True:
            alpha = scaled_glyph(glyph, height)
            tops, lefts = _free_corners(digit, *alpha.shape)
            if len(tops):
                break
            height -= 1  # the smallest has a place beside every digit, even one in the middle
        place = int(random.integers(len(tops)))
        return paint(picture, alpha, int(tops[place]), int(lefts[place]), random)


@cache
def drawings(kind: str, split: str) -> tuple[Glyph, ...]:
    """Return a split's drawings of every sign of a kind. Splits share the signs and no drawing, whatever the seed."""
    part = SPLITS.index(split)
    return tuple(
        smooth_glyph(scan(strokes, np.random.default_rng([list(SIGNS).index(kind), part, sign, number])))
        for sign, strokes in enumerate(SIGNS[kind].values())
        for number in range(_DRAWINGS[split])
    )


def scan(strokes: _Strokes, random: np.random.Generator) -> np.ndarray:
    """Return a drawing of a sign as the digits' scans are stored: (8, 8), each cell the ink of a 4x4 block, 0..16."""
    pen, width = random.uniform(*_PEN), random.uniform(*_WIDTHS)
    slant = random.uniform(-_SLANT, _SLANT)
    lines = []
    for stroke in strokes:
        points = np.array(stroke) + random.uniform(-_UNSTEADY, _UNSTEADY, (len(stroke), 2))
        points[:, 0] = width * points[:, 0] + slant * (0.5 - points[:, 1])
        lines.append(points)
    every = np.concatenate(lines)
    low, size = every.min(0), np.ptp(every, axis=0)
    # As the scans: the sign fills the bitmap's height, and stands in the middle of its width.
    scale = (_BITMAP - pen) / max(size)
    offset = np.array([(_BITMAP - scale * size[0]) / 2, (_BITMAP - scale * size[1]) / 2])
    pixels = np.stack(np.meshgrid(np.arange(_BITMAP), np.arange(_BITMAP)), -1) + 0.5
    ink = np.zeros((_BITMAP, _BITMAP), dtype=bool)
    for points in lines:
        placed = (points - low) * scale + offset
        for start, end in pairwise(placed):
            ink |= _distance(pixels, start, end) <= pen / 2
    blocks = ink.reshape(_BITMAP // _BLOCK, _BLOCK, _BITMAP // _BLOCK, _BLOCK)
    return blocks.sum((1, 3)).astype(float)


def _distance(points: np.ndarray, start: np.ndarray, end: np.ndarray) -> np.ndarray:
    """Return the distance of points (..., 2) from a line between two points."""
    along = end - start
    share = np.clip(((points - start) @ along) / max(float(along @ along), 1e-12), 0, 1)
    return np.linalg.norm(points - start - share[..., None] * along, axis=-1)


def _free_corners(digit: np.ndarray, height: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    """Return (top, left) of every place for a box of this size that keeps its distance from the digit's box."""
    rows, columns = np.flatnonzero(digit.any(1)), np.flatnonzero(digit.any(0))
    top, left = np.mgrid[: digit.shape[0] - height + 1, : digit.shape[1] - width + 1]
    beside = (top + height + _GAP <= rows[0]) | (top >= rows[-1] + 1 + _GAP)
    beside |= (left + width + _GAP <= columns[0]) | (left >= columns[-1] + 1 + _GAP)
    return top[beside], left[beside]
