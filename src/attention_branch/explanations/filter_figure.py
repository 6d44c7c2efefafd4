"""What single filters respond to: a row a filter, the images of its highest activations, its region outlined.

As in figures 6 and 7 of the interpretable CNN paper (arXiv 1710.00935), for any network with a grid of filters.
"""

from collections.abc import Sequence
from numbers import Integral
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from torch import Tensor, nn

from attention_branch.errors import UserError
from attention_branch.explanations.canvas import INK, QUIET, rendered, sheet, shortened
from attention_branch.explanations.explanation import as_batch, denormalized
from attention_branch.explanations.filters import filter_maps
from attention_branch.explanations.outputs import unwrapped
from attention_branch.explanations.overlay import outlined, to_picture
from attention_branch.explanations.resizing import upsample
from attention_branch.explanations.targets import head_class_names

_PANEL = 0.95
_SHADE = 0.45
_MOST_PANELS = 800
ACTIVE = 0.5
"""A filter's region in a picture: where its enlarged map is above this share of its maximum there."""


def filter_figure(
    model: nn.Module,
    images: Tensor | Image.Image | Sequence[Image.Image],
    filters: Sequence[int] | None = None,
    *,
    layer: str | nn.Module = "auto",
    rows: int = 8,
    columns: int = 8,
    title: str | None = None,
    path: str | Path | None = None,
) -> Image.Image:
    """Draw, for each of some filters, the images to which it responds most, darkened outside its region.

    `images` are normalised (N, 3, H, W) or pictures, the more the better; `filters` are numbers, unless given the
    `rows` of the highest mean peak over all images. `columns` images stand in a row, the highest activation first. The
    region is where the map, enlarged to the image, is above half its maximum in that image. Before each row stand the
    filter's number, its category where the network is interpretable, and the highest activation. `layer` as in
    `filter_maps`; `path` also writes a PNG, whole or not at all. Raises `UserError` for a filter that does not exist.
    """
    network: Any = unwrapped(model)
    images = [images] if isinstance(images, Image.Image) else images
    maps = filter_maps(network, images, layer)
    peaks = maps.amax((2, 3))
    chosen = _chosen(peaks, filters, rows)
    columns = min(columns, len(maps))
    if len(chosen) * columns > _MOST_PANELS or columns < 1:
        raise UserError(f"{len(chosen)} filters with {columns} images each are no readable picture; draw fewer.")
    names = head_class_names(network, None)
    categories = getattr(network, "filter_categories", None) if layer == "auto" else None
    grid = []
    for number in chosen:
        best = peaks[:, number].argsort(descending=True, stable=True)[:columns]
        drawn = images[best.to(images.device)] if isinstance(images, Tensor) else [images[row] for row in best.tolist()]
        batch = as_batch(network, drawn)
        pictures = denormalized(network, batch).cpu()
        large = upsample(maps[best, number], batch.shape[-2], batch.shape[-1])
        shown = [_shown(to_picture(picture), values.numpy()) for picture, values in zip(pictures, large, strict=True)]
        label = [f"filter {number}"]
        index = -1 if categories is None else int(categories[number])
        if index >= 0:
            label.append(f"of '{names[index]}'" if names else f"of class {index}")
        label.append(f"up to {float(peaks[:, number].max()):.2g}")
        grid.append((label, shown))
    return _drawn(grid, title, path)


def _chosen(peaks: Tensor, filters: Sequence[int] | None, rows: int) -> list[int]:
    count = peaks.shape[1]
    if filters is None:
        return peaks.mean(0).argsort(descending=True, stable=True)[: max(1, rows)].tolist()
    chosen = list(filters)
    for number in chosen:
        if not isinstance(number, int | Integral | Tensor) or not 0 <= int(number) < count:
            raise UserError(f"There is no filter {number!r}: the layer has {count}, 0 to {count - 1}.")
    if not chosen:
        raise UserError(f"No filter is named; give numbers from 0 to {count - 1}, or leave filters out.")
    return [int(number) for number in chosen]


def _shown(picture: Image.Image, values: np.ndarray) -> Image.Image:
    """Return a picture, darkened outside the filter's region, with a line around it."""
    inside = (values > ACTIVE * values.max()) & (values > 0)
    pixels = np.asarray(picture, dtype=np.float32)
    shaded = Image.fromarray(np.where(inside[..., None], pixels, pixels * _SHADE).astype(np.uint8))
    return outlined(shaded, inside)


def _drawn(grid: list[tuple[list[str], list[Image.Image]]], title: str | None, path: str | Path | None) -> Image.Image:
    aspect = grid[0][1][0].height / grid[0][1][0].width
    wide, high = (_PANEL, _PANEL * aspect) if aspect <= 1 else (_PANEL / aspect, _PANEL)
    words, gap, foot, top = 0.95, 0.05, 0.3, 0.32 if title else 0.08
    across = len(grid[0][1])
    width = words + across * (wide + gap) + 0.05
    height = top + len(grid) * (high + gap) + foot
    with sheet(width, height) as drawing:
        for row, (label, pictures) in enumerate(grid):
            y = height - top - (row + 1) * (high + gap) + gap
            for line, text in enumerate(label):
                place = (y + high - 0.18 - 0.17 * line) / height
                heavy = "bold" if line == 0 else "normal"
                drawing.text(
                    0.08 / width, place, shortened(text, 13), fontsize=8, color=QUIET if line else INK, weight=heavy
                )
            for column, picture in enumerate(pictures):
                x = words + column * (wide + gap)
                axes = drawing.add_axes((x / width, y / height, wide / width, high / height))
                axes.imshow(np.asarray(picture), interpolation="nearest", aspect="auto")
                axes.set_axis_off()
        if title:
            drawing.text(0.08 / width, 1 - 0.08 / height, title, fontsize=9.5, color=INK, va="top", weight="bold")
        note = "highest activation first; bright: the filter's map is above half its maximum in that image"
        drawing.text(0.08 / width, 0.1 / height, shortened(note, int(18 * width)), fontsize=7.5, color=QUIET)
        return rendered(drawing, path)
