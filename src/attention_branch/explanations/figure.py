"""One PNG per image: the image, its map with a colour bar, and both together."""

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from PIL import Image

from attention_branch.explanations.canvas import INK, QUIET, rendered, sheet, shortened
from attention_branch.explanations.overlay import COLORMAP, enlarged, map_scale, map_values, number, overlay

if TYPE_CHECKING:
    from torch import Tensor

_PANEL_INCHES = 2.9


def figure(
    image: Image.Image,
    values: "Tensor | np.ndarray",
    *,
    title: str | None = None,
    value_range: tuple[float, float] | None = (0.0, 1.0),
    stretch: bool = False,
    path: str | Path | None = None,
) -> Image.Image:
    """Draw image | map | overlay and return the picture; with `path` also write it as a PNG, whole or not at all.

    The map (h, w) is drawn on `value_range` with its own minimum and maximum marked on the colour bar. With
    `stretch=True`, or without a range, both map and overlay span the map's extremes and say so.
    """
    picture = enlarged(image.convert("RGB"))
    # The marks are the map's values at the image's size; the enlargement for display does not move them.
    scale = map_scale(map_values(values, image.width, image.height), value_range, stretch)
    shown = map_values(values, picture.width, picture.height)
    mixed = overlay(image, values, value_range=value_range, stretch=stretch)

    aspect = picture.height / picture.width
    panel_height = min(max(_PANEL_INCHES * aspect, 1.2), 4.2)
    panel_width = panel_height / aspect
    left, gap, bar, labels, bottom = 0.12, 0.12, 0.13, 0.42, 0.34
    top = 0.66 if title else 0.38
    width = 2 * left + 3 * panel_width + 2 * gap + 0.1 + bar + labels
    height = bottom + panel_height + top

    def box(position: int) -> tuple[float, float, float, float]:
        # The colour bar stands between map and overlay, beside the map it belongs to.
        x = left + position * (panel_width + gap) + (0.1 + bar + labels if position == 2 else 0)
        return x / width, bottom / height, panel_width / width, panel_height / height

    with sheet(width, height) as drawing:
        # A map without any spread still needs a scale to be drawn on.
        ends = (scale.low, scale.high) if scale.high > scale.low else (scale.low - 0.5, scale.low + 0.5)
        colors = ScalarMappable(Normalize(*ends), COLORMAP)
        over = "overlay, stretched" if scale.stretched else "overlay, line at half the scale"
        tinted = colors.to_rgba(shown, bytes=True)[..., :3]
        names = ("image", "map", over)
        for position, (name, pixels) in enumerate(
            zip(names, (np.asarray(picture), tinted, np.asarray(mixed)), strict=True)
        ):
            axes = drawing.add_axes(box(position))
            axes.imshow(pixels, interpolation="nearest" if position == 0 else "bilinear", aspect="auto")
            axes.set_axis_off()
            axes.set_title(name, fontsize=8.5, color=QUIET, loc="left", pad=4)
        x, y, panel, panel_high = box(1)
        axes = drawing.add_axes((x + panel + 0.1 / width, y, bar / width, panel_high))
        drawing.colorbar(colors, cax=axes)
        axes.tick_params(length=2.5, width=0.6, labelsize=7.5, colors=QUIET)
        for spine in axes.spines.values():
            spine.set_visible(False)
        low, high = ends
        for value in (scale.minimum, scale.maximum):
            place = min(max((value - low) / (high - low), 0), 1)
            axes.annotate(
                "", (0, place), (-0.75, place), xycoords="axes fraction", textcoords="axes fraction",
                arrowprops={"arrowstyle": "-|>", "color": INK, "lw": 0.8, "mutation_scale": 6, "shrinkB": 0},
                annotation_clip=False,
            )  # fmt: skip
        note = f"map {number(scale.minimum)}–{number(scale.maximum)}, "
        note += f"colours {scale.label}" if scale.stretched else f"colours on the fixed {scale.label}"
        drawing.text(x, 0.12 / height, note, fontsize=8, color=INK if scale.stretched else QUIET, va="bottom")
        if title:
            # About ten characters an inch at this size; a longer title would run out of the picture.
            short = shortened(title, int(10.5 * width))
            drawing.text(left / width, 1 - 0.14 / height, short, fontsize=10.5, color=INK, va="top", weight="bold")
        return rendered(drawing, path)
