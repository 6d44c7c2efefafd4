"""Laying a map over a picture so that both can be read.

The map's value is the colour and its opacity; the picture under it loses most of its own colour, so that a warm tone is
always the map's and never the motif's; a thin line runs where the map passes half of the scale.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING

import matplotlib
import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from attention_branch.arrays import as_array
from attention_branch.errors import UserError
from attention_branch.explanations.resizing import resized

if TYPE_CHECKING:
    from torch import Tensor

COLORMAP = "inferno"
"""Perceptually uniform, and its low end is never drawn: low values are transparent."""

DISPLAY_SIDE = 256
"""Pictures with a longer side below this many pixels are enlarged for display."""

_OPACITY = 0.64
_SHARPNESS = 1.7
_PICTURE_COLOR = 0.35
_LINE_OPACITY = 0.85
_MOST_LINE = 0.12
# The darkest tones of the colormap look like shadow in a photo; the overlay starts above them.
_FIRST_COLOR = 0.25


@dataclass(frozen=True)
class Scale:
    """The values that the two ends of the colormap stand for, and the map's own extremes."""

    low: float
    high: float
    minimum: float
    maximum: float
    stretched: bool

    @property
    def label(self) -> str:
        """Say in a few words what the colours stand for."""
        kind = "stretched from" if self.stretched else "scale"
        return f"{kind} {number(self.low)}–{number(self.high)}"


def number(value: float) -> str:
    """Return a map value as short text, with a minus sign that cannot be taken for a dash between two numbers."""
    text = f"{value:.2f}" if abs(value) < 100 else f"{value:.0f}"
    return text.replace("-", "−")


def map_scale(values: np.ndarray, value_range: tuple[float, float] | None, stretch: bool) -> Scale:
    """Choose the scale of one map: the method's fixed range, or the map's own extremes where asked for or unbounded."""
    minimum, maximum = float(values.min()), float(values.max())
    if value_range is not None and not stretch:
        return Scale(*value_range, minimum, maximum, False)
    return Scale(minimum, maximum, minimum, maximum, True)


def scaled(values: np.ndarray, scale: Scale) -> np.ndarray:
    """Return map values on [0, 1]; a map without any spread becomes 0, for it points nowhere."""
    span = scale.high - scale.low
    return np.clip((values - scale.low) / span, 0, 1) if span > 0 else np.zeros_like(values)


def display_size(width: int, height: int, side: int = DISPLAY_SIDE) -> tuple[int, int]:
    """Return (width, height) enlarged by the whole factor that brings the longer side to at least about `side`."""
    factor = max(1, round(side / max(width, height)))
    return width * factor, height * factor


def enlarged(picture: Image.Image, side: int = DISPLAY_SIDE) -> Image.Image:
    """Return a small picture enlarged by a whole factor, pixel by pixel; a larger one as it is."""
    size = display_size(picture.width, picture.height, side)
    return picture if size == picture.size else picture.resize(size, Image.Resampling.NEAREST)


def map_values(values: "Tensor | np.ndarray", width: int, height: int) -> np.ndarray:
    """Return a map (h, w) as float64 (height, width), bilinear; `UserError` for another shape, NaN or infinity."""
    array = as_array(values)
    if array.ndim != 2 or array.size == 0:
        raise UserError(f"A map to draw has shape (h, w); this one has {array.shape}.")
    if not np.isfinite(array).all():
        raise UserError("The map holds NaN or infinite values, so there is nothing to draw.")
    return resized(array, height, width)


def overlay(
    picture: Image.Image,
    values: "Tensor | np.ndarray",
    *,
    value_range: tuple[float, float] | None = (0.0, 1.0),
    stretch: bool = False,
    side: int = DISPLAY_SIDE,
) -> Image.Image:
    """Return a picture with a map (h, w) on it: where the map is low only the picture is seen, in muted colours.

    The colours span `value_range`, or the map's own extremes with `stretch=True` and for unbounded values (None).
    Pictures smaller than `side` are enlarged by a whole factor, the map smoothly with them.
    """
    shown = enlarged(picture.convert("RGB"), side)
    scale = map_scale(map_values(values, picture.width, picture.height), value_range, stretch)
    strength = scaled(map_values(values, shown.width, shown.height), scale)
    color = matplotlib.colormaps[COLORMAP](_FIRST_COLOR + (1 - _FIRST_COLOR) * strength)[..., :3] * 255
    opacity = (_OPACITY * strength**_SHARPNESS)[..., None]
    muted = np.asarray(shown, dtype=np.float64) * _PICTURE_COLOR
    muted += np.asarray(shown.convert("L"), dtype=np.float64)[..., None] * (1 - _PICTURE_COLOR)
    mixed = muted * (1 - opacity) + color * opacity
    line = _LINE_OPACITY * _half_line(strength)[..., None]
    return Image.fromarray(np.rint(mixed * (1 - line) + 255 * line).astype(np.uint8))


def _half_line(strength: np.ndarray) -> np.ndarray:
    """Return the opacity of a line about 1.5 pixels wide where the map passes 0.5; none on a map without slope."""
    if min(strength.shape) < 2:
        return np.zeros_like(strength)
    down, across = np.gradient(strength)
    slope = np.hypot(down, across)
    distance = np.abs(strength - 0.5) / np.maximum(slope, 1e-9)
    line = np.where(slope > 1e-4, np.clip(1.25 - distance, 0, 1), 0)
    # In noise it would be everywhere and divide nothing from nothing.
    return line if (line > 0.5).mean() < _MOST_LINE else np.zeros_like(line)


def outlined(picture: Image.Image, inside: np.ndarray, *, side: int = DISPLAY_SIDE) -> Image.Image:
    """Return a picture, enlarged as by `overlay`, with a white and black line around a mask (H, W) of its size."""
    shown = enlarged(picture.convert("RGB"), side)
    mask = Image.fromarray(np.asarray(inside, dtype=np.uint8) * 255).resize(shown.size, Image.Resampling.NEAREST)
    pixels = np.array(shown)
    wide = max(1, round(max(shown.size) / DISPLAY_SIDE))
    near, far = (np.asarray(mask.filter(ImageFilter.MaxFilter(2 * times * wide + 1))) > 0 for times in (1, 2))
    pixels[far & ~near] = 0
    pixels[near & (np.asarray(mask) == 0)] = 255
    return Image.fromarray(pixels)


def ringed(shown: Image.Image, x: float, y: float) -> Image.Image:
    """Return a picture with a white and black ring around a place, given as shares of its width and height."""
    marked = shown.copy()
    draw = ImageDraw.Draw(marked)
    column, row, radius = x * shown.width, y * shown.height, max(4, round(max(shown.size) / 28))
    for wider, color in ((1, "black"), (0, "white")):
        reach = radius + wider
        edges = (column - reach, row - reach, column + reach, row + reach)
        draw.ellipse(edges, outline=color, width=2 + 2 * wider)
    return marked


def colored(
    values: "Tensor | np.ndarray",
    width: int,
    height: int,
    *,
    value_range: tuple[float, float] | None = (0.0, 1.0),
    stretch: bool = False,
) -> Image.Image:
    """Return a map (h, w) alone in colours, (width, height) pixels, on the same scale as `overlay`."""
    shown = map_values(values, width, height)
    color = matplotlib.colormaps[COLORMAP](scaled(shown, map_scale(shown, value_range, stretch)), bytes=True)
    return Image.fromarray(np.ascontiguousarray(color[..., :3]))


def to_picture(image: "Tensor | np.ndarray") -> Image.Image:
    """Return an image (3, H, W) with values in [0, 1] as a picture; one channel becomes grey."""
    # float32, as the network's input is: halves must round to the same side.
    pixels = np.clip(as_array(image).astype(np.float32), 0, 1) * np.float32(255)
    shown = np.rint(pixels).astype(np.uint8)
    if shown.shape[0] != 3:
        shown = np.broadcast_to(shown[:1], (3, *shown.shape[1:]))
    return Image.fromarray(np.ascontiguousarray(shown.transpose(1, 2, 0)))
