"""The strip that training writes every epoch: the same few images, and what the map makes of them now."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from attention_branch.errors import UserError
from attention_branch.explanations.overlay import colored, enlarged, map_values, number, overlay, to_picture
from attention_branch.files import atomic_path

_SIDE, _GAP, _LINE, _FONT = 128, 6, 18, 12


def strip(
    images: Tensor | Sequence[Image.Image],
    maps: Tensor | np.ndarray,
    labels: Sequence[str],
    path: str | Path,
    *,
    title: str = "",
    value_range: tuple[float, float] | None = (0.0, 1.0),
) -> Path:
    """Write image, map and overlay of N images in N columns as one PNG, whole or not at all.

    `images` (N, 3, H, W) in [0, 1] or pictures; `maps` (N, h, w), drawn on `value_range`, or without one each over its
    own extremes, with each map's minimum and maximum written below. Raises `UserError` when the counts differ or there
    is nothing to draw.
    """
    pictures = [to_picture(image) for image in images] if isinstance(images, Tensor) else [*images]
    if not pictures or not len(pictures) == len(maps) == len(labels):
        raise UserError(
            f"A strip takes one map and one label per image, not {len(pictures)}, {len(maps)}, {len(labels)}."
        )
    pictures = [picture.convert("RGB") for picture in pictures]
    for picture in pictures:
        picture.thumbnail((2 * _SIDE, 2 * _SIDE))
    shown = [enlarged(picture, _SIDE) for picture in pictures]
    width, height = max(picture.width for picture in shown), max(picture.height for picture in shown)
    top = _LINE + _GAP if title else _GAP
    sheet = Image.new(
        "RGB",
        (_GAP + len(shown) * (width + _GAP), top + 3 * (height + 2) + 2 * _LINE + _GAP),
        "white",
    )
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(_FONT)
    if title:
        draw.text((_GAP, 4), title, fill="#1c2430", font=font)
    for column, picture in enumerate(shown):
        x, y = _GAP + column * (width + _GAP), top
        values = torch.as_tensor(maps[column])
        tinted = colored(values, *picture.size, value_range=value_range)
        mixed = overlay(pictures[column], values, value_range=value_range, side=_SIDE)
        for panel in (picture, tinted, mixed):
            sheet.paste(panel, (x, y))
            y += height + 2
        exact = map_values(values, *pictures[column].size)
        for text in (labels[column], f"map {number(exact.min())} to {number(exact.max())}"):
            draw.text((x, y + 1), fitted(text, width, font), fill="#1c2430", font=font)
            y += _LINE
    path = Path(path)
    with atomic_path(path) as temporary:
        sheet.save(temporary, "png")
    return path


def fitted(text: str, width: int, font: ImageFont.FreeTypeFont | ImageFont.ImageFont) -> str:
    """Return a text cut to a width in pixels, an ellipsis in the place of what is left out."""
    if font.getlength(text) <= width:
        return text
    while text and font.getlength(text + "…") > width:
        text = text[:-1]
    return text + "…"
