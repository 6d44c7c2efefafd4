"""A small mark on the embedded digits that gives the class away: a shortcut, put there so that it can be found again.

The mark lies beside the digit and never touches it. What it says of the class is one of `TELLS`; the digit and the
photo under it are, pixel by pixel, those of the picture without a mark.
"""

from dataclasses import dataclass

import numpy as np

SIDE = 6
"""Side of the mark in pixels: a light rim of one pixel around a core of one colour."""

CODES = ("position", "colour")
"""What of the mark stands for a class: its height in the picture, or the colour of its core."""

TELLS = ("class", "random", "none")
"""What the mark says: the class; any class, drawn evenly; or nothing, because there is none."""

COLOURS = (
    (0, 0, 0), (230, 25, 25), (25, 200, 40), (30, 60, 255), (255, 225, 0),
    (255, 0, 230), (0, 225, 225), (255, 130, 0), (110, 0, 170), (130, 130, 130),
)  # fmt: skip
"""The core's colour for each class where the colour is the code; elsewhere it is the first."""

_RIM = (250, 250, 250)
# Between the mark and the digit's box, and between the mark and the picture's edge.
_GAP, _MARGIN = 2, 1


@dataclass(frozen=True)
class Mark:
    """What a split's mark codes the class by (one of `CODES`), and what it says (one of `TELLS`)."""

    code: str
    tells: str

    def add(self, picture: np.ndarray, digit: np.ndarray, label: int, random: np.random.Generator) -> np.ndarray:
        """Draw the mark into a picture uint8 (S, S, 3); return its mask uint8 (S, S), zero where there is none.

        `digit` (S, S) is the digit's mask, `label` its class in 0..9.
        """
        mask = np.zeros(picture.shape[:2], dtype=np.uint8)
        said = label if self.tells == "class" else int(random.integers(len(COLOURS)))
        tops, lefts = _free_corners(digit)
        if self.code == "position":
            # One of ten heights, at the left or the right edge: no digit is so wide that it reaches both.
            side, free = picture.shape[0], tops == _heights(picture.shape[0])[said]
            free &= (lefts == _MARGIN) | (lefts == side - SIDE - _MARGIN)
            tops, lefts = tops[free], lefts[free]
        place = int(random.integers(len(tops)))
        if self.tells == "none":
            return mask
        rows, columns = (slice(start, start + SIDE) for start in (int(tops[place]), int(lefts[place])))
        mask[rows, columns] = 1
        # The same rim for all: what finds one mark finds every mark, and its colour is left to tell them apart.
        picture[rows, columns] = _RIM
        picture[rows, columns][1:-1, 1:-1] = COLOURS[said if self.code == "colour" else 0]
        return mask


def _heights(side: int) -> np.ndarray:
    """Return the mark's top row for each class."""
    return np.round(np.linspace(_MARGIN, side - SIDE - _MARGIN, len(COLOURS))).astype(int)


def _free_corners(digit: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return (top, left) of every place for the mark that keeps its distance from the digit's box."""
    rows, columns = np.flatnonzero(digit.any(1)), np.flatnonzero(digit.any(0))
    height, width = digit.shape
    top, left = np.mgrid[_MARGIN : height - SIDE - _MARGIN + 1, _MARGIN : width - SIDE - _MARGIN + 1]
    beside = (top + SIDE + _GAP <= rows[0]) | (top >= rows[-1] + 1 + _GAP)
    beside |= (left + SIDE + _GAP <= columns[0]) | (left >= columns[-1] + 1 + _GAP)
    return top[beside], left[beside]
