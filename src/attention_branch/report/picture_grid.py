"""Images by methods: one row an image, one column a method, each map on its method's scale."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import TYPE_CHECKING

import matplotlib
import numpy as np
from PIL import Image

from attention_branch.explanations.overlay import (
    COLORMAP,
    display_size,
    map_scale,
    map_values,
    outlined,
    overlay,
    ringed,
)
from attention_branch.report.page import data_uri

if TYPE_CHECKING:
    from torch import Tensor

SIDE = 144
_PIXELS_BELOW = 112


@dataclass(frozen=True, eq=False)
class PictureRow:
    """One image, what is said of it, and its map (h, w) by method.

    `verdict` colours the heading: "right", "wrong", "unsure" or none. `under` holds a short text below a map. `inside`
    (H, W) bool, of the picture's size, is the object, which is outlined.
    """

    picture: Image.Image
    heading: str
    lines: Sequence[str]
    maps: "Mapping[str, Tensor | np.ndarray]"
    verdict: str = ""
    under: Mapping[str, str] | None = None
    inside: np.ndarray | None = None


@dataclass(frozen=True)
class PictureGrid:
    """Rows of one image and its maps; `scales` holds each method's range, None where every map is stretched.

    With `peaks` a ring is drawn around each map's strongest point.
    """

    title: str
    rows: Sequence[PictureRow]
    scales: Mapping[str, tuple[float, float] | None]
    text: str = ""
    peaks: bool = False

    @property
    def empty(self) -> bool:
        """Whether there is no image."""
        return not self.rows

    def html(self) -> str:
        """Return the legend and the grid; on a narrow screen it scrolls sideways under its fixed first column."""
        stops = ", ".join(matplotlib.colors.to_hex(matplotlib.colormaps[COLORMAP](place / 8)) for place in range(9))
        ends = "low to high on the scale above each column; the thin line runs at half of it, except in noise"
        if any(row.inside is not None for row in self.rows):
            ends += "; outlined: the object"
        if self.peaks:
            ends += "; ring: the map's strongest point"
        legend = (
            f'<div class="legend"><i style="background:linear-gradient(90deg,{stops})"></i><span>{ends}</span></div>'
        )
        head = "".join(f"<th>{escape(name)}<small>{_scale(scale)}</small></th>" for name, scale in self.scales.items())
        body = "".join(self._row(row) for row in self.rows)
        return (
            f'{legend}<div class="scroll"><table class="pictures"><thead><tr><th></th><th>image</th>{head}</tr></thead>'
            f"<tbody>{body}</tbody></table></div>"
        )

    def _row(self, row: PictureRow) -> str:
        picture = row.picture.convert("RGB")
        if max(picture.size) > SIDE * 2:
            picture.thumbnail((SIDE * 2, SIDE * 2))
        width, height = display_size(*picture.size, side=SIDE)
        shape = f'style="--shape:{width}/{height}"'
        small = max(picture.size) < _PIXELS_BELOW and row.inside is None
        kind = "class=pixels " if small else ""
        first = picture if row.inside is None else outlined(picture, row.inside, side=SIDE)
        cells = f'<td><img {kind}{shape} src="{data_uri(first, lossless=small)}" alt="image" loading="lazy"></td>'
        for method, scale in self.scales.items():
            values = row.maps.get(method)
            if values is None:
                cells += "<td></td>"
                continue
            drawn = overlay(picture, values, value_range=scale, side=SIDE)
            exact_values = map_values(values, *row.picture.size)
            exact = map_scale(exact_values, scale, False)
            if self.peaks and exact.maximum > exact.minimum:
                down, across = np.unravel_index(exact_values.argmax(), exact_values.shape)
                drawn = ringed(drawn, (across + 0.5) / row.picture.width, (down + 0.5) / row.picture.height)
            tip = f"{method}: map from {exact.minimum:.3g} to {exact.maximum:.3g}"
            under = f"<small>{escape(row.under[method])}</small>" if row.under and method in row.under else ""
            cells += (
                f'<td><img {shape} src="{data_uri(drawn)}" alt="{escape(method)} on the image" '
                f'title="{escape(tip)}" loading="lazy">{under}</td>'
            )
        lines = "".join(f"<small>{escape(line)}</small>" for line in row.lines)
        return f'<tr><th><b class="{escape(row.verdict)}">{escape(row.heading)}</b>{lines}</th>{cells}</tr>'


def _scale(scale: tuple[float, float] | None) -> str:
    return "stretched per image" if scale is None else f"{scale[0]:g} to {scale[1]:g}"
