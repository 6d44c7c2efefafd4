"""Small signs as smooth opacity pictures, scaled and painted on a picture in a colour that stands out."""

import numpy as np
from PIL import Image

HEIGHTS = (14, 22)
"""Least and greatest height of a painted sign's ink in pixels."""

INK = 0.45
"""A pixel belongs to a sign from this opacity on."""

Glyph = tuple[Image.Image, tuple[int, int, int, int]]
"""A sign's opacity picture, and the box of its ink in it (left, top, right, bottom)."""

# A sign's colour lies this far (Euclidean, RGB in [0, 1]) from the mean colour behind it when one of the draws does.
_LEAST_CONTRAST, _COLOUR_DRAWS = 0.65, 6


def smooth_glyph(scan: np.ndarray) -> Glyph:
    """Scale an 8x8 scan (values 0..16) smoothly to 8 pixels a cell, empty cells around it, strokes opaque."""
    cells = np.pad(np.round(scan / scan.max() * 255).astype(np.uint8), 2)
    large = Image.fromarray(cells).resize((8 * cells.shape[1], 8 * cells.shape[0]), Image.Resampling.BICUBIC)
    opacity = np.clip(np.asarray(large) * 1.5, 0, 255).astype(np.uint8)
    ink = opacity >= 255 * INK
    rows, columns = np.flatnonzero(ink.any(1)), np.flatnonzero(ink.any(0))
    return Image.fromarray(opacity), (int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1)


def scaled_glyph(glyph: Glyph, height: int) -> np.ndarray:
    """Return a sign as opacity in [0, 1], its ink `height` pixels tall, with one pixel of soft edge around it."""
    picture, (left, top, right, bottom) = glyph
    pixel = (bottom - top) / height
    width = max(1, round((right - left) / pixel))
    around = (left - pixel, top - pixel, right + pixel, bottom + pixel)
    scaled = picture.resize((width + 2, height + 2), Image.Resampling.BILINEAR, box=around)
    return np.asarray(scaled, dtype=np.float32) / 255


def paint(picture: np.ndarray, alpha: np.ndarray, top: int, left: int, random: np.random.Generator) -> np.ndarray:
    """Paint opacity (h, w) on a picture uint8 (S, S, 3) at a place; return the mask of its ink, uint8 (S, S).

    The colour is the first of a few random ones that is far from the mean colour behind, else the farthest.
    """
    place = (slice(top, top + alpha.shape[0]), slice(left, left + alpha.shape[1]))
    behind = picture[place].reshape(-1, 3).mean(axis=0) / 255
    colours = random.random((_COLOUR_DRAWS, 3))
    contrast = np.linalg.norm(colours - behind, axis=1)
    enough = contrast >= _LEAST_CONTRAST
    colour = colours[int(np.argmax(enough)) if enough.any() else int(np.argmax(contrast))] * 255
    ink = alpha[..., None]
    picture[place] = np.round(picture[place] * (1 - ink) + colour * ink).astype(np.uint8)
    mask = np.zeros(picture.shape[:2], dtype=np.uint8)
    mask[place] = alpha >= INK
    return mask
