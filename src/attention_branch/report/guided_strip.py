"""What guided augmentation does: images, their maps with the boxes, and the changed images, one column an image."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from attention_branch.errors import UserError
from attention_branch.explanations.overlay import enlarged, number, overlay, to_picture
from attention_branch.files import atomic_path
from attention_branch.report.strip import fitted

_SIDE, _GAP, _LINE, _FONT = 128, 6, 18, 12
_BOX = "#16c7ff"


def guided_strip(
    images: Tensor,
    maps: Tensor | np.ndarray,
    boxes: Tensor,
    changed: Tensor,
    path: str | Path,
    *,
    labels: Sequence[str] = (),
    share: Tensor | None = None,
    title: str = "",
) -> Path:
    """Write image, map with its box, and changed image of N images in N columns as one PNG, whole or not at all.

    `images` and `changed` (N, 3, H, W) in [0, 1]; `maps` (N, h, w) in [0, 1], each drawn on its own range, because that
    is what a box is read from; `boxes` (N, 4) in pixels as `Guide.changed` gives them; `share` (N,) of the own label.
    Raises `UserError` when the counts differ or there is nothing to draw.
    """
    if len(images) == 0 or not len(images) == len(maps) == len(boxes) == len(changed):
        counts = ", ".join(str(len(each)) for each in (images, maps, boxes, changed))
        raise UserError(f"A strip takes one map, one box and one changed picture per image, not {counts}.")
    for name, given in (("labels", labels or None), ("share", share)):
        if given is not None and len(given) != len(images):
            raise UserError(f"There are {len(images)} images and {len(given)} of {name}; give one an image.")
    rows = [_columns(images, maps, boxes, changed, column) for column in range(len(images))]
    width, height = rows[0][0].size
    below = [*(labels or [""] * len(images))]
    if share is not None:
        below = [f"{text} {part:.0%} own".strip() for text, part in zip(below, share.tolist(), strict=True)]
    top = _LINE + _GAP if title else _GAP
    lines = _LINE * (2 if any(below) else 1)
    sheet = Image.new("RGB", (_GAP + len(rows) * (width + _GAP), top + 3 * (height + 2) + lines + _GAP), "white")
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(_FONT)
    if title:
        draw.text((_GAP, 4), title, fill="#1c2430", font=font)
    for column, panels in enumerate(rows):
        x, y = _GAP + column * (width + _GAP), top
        for panel in panels:
            sheet.paste(panel, (x, y))
            y += height + 2
        values = torch.as_tensor(maps[column])
        own = [below[column]] if any(below) else []
        for text in [*own, f"map {number(float(values.min()))} to {number(float(values.max()))}"]:
            draw.text((x, y + 1), fitted(text, width, font), fill="#1c2430", font=font)
            y += _LINE
    path = Path(path)
    with atomic_path(path) as temporary:
        sheet.save(temporary, "png")
    return path


def _columns(
    images: Tensor, maps: Tensor | np.ndarray, boxes: Tensor, changed: Tensor, column: int
) -> list[Image.Image]:
    picture, after = to_picture(images[column]), to_picture(changed[column])
    before = picture.size
    if max(before) > 2 * _SIDE:
        picture.thumbnail((2 * _SIDE, 2 * _SIDE))
        after.thumbnail((2 * _SIDE, 2 * _SIDE))
    marked = overlay(picture, torch.as_tensor(maps[column]), stretch=True, side=_SIDE)
    top, left, bottom, right = boxes[column].tolist()
    if bottom > top and right > left:
        across, down = marked.width / before[0], marked.height / before[1]
        edges = (left * across, top * down, right * across - 1, bottom * down - 1)
        ImageDraw.Draw(marked).rectangle(edges, outline=_BOX, width=2)
    return [enlarged(picture, _SIDE), marked, enlarged(after, _SIDE)]
