"""One picture of all soft masks of a Residual Attention Network: a row an image, a column an attention module."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from attention_branch.errors import UserError
from attention_branch.explanations.canvas import INK, QUIET, rendered, sheet, shortened
from attention_branch.explanations.explanation import as_batch, denormalized
from attention_branch.explanations.outputs import eager, evaluating, unwrapped
from attention_branch.explanations.overlay import enlarged, number, overlay, to_picture
from attention_branch.explanations.soft_masks import mask_names, read_masks

_PANEL = 1.3
_MOST_PANELS = 400


def soft_mask_figure(
    model: nn.Module,
    images: Tensor | Image.Image | Sequence[Image.Image],
    *,
    stretch: bool = True,
    labels: Sequence[str] | None = None,
    title: str | None = None,
    path: str | Path | None = None,
) -> Image.Image:
    """Draw each image and, beside it, the mean over channels of every attention module's mask; return a picture.

    `images` are normalised (N, 3, H, W) or pictures that the model's preprocessing makes so. The mean of hundreds of
    masks differs little from place to place, so each map is drawn from its own minimum to its maximum, which stand
    beneath it; `stretch=False` draws all on the masks' own scale. `labels` (N,) stand beneath the images, `title`
    above. `path` also writes a PNG, whole or not at all. One forward pass in eval mode. Raises `UserError` for a
    network without soft masks, and for too many panels.
    """
    network = unwrapped(model)
    names = mask_names(network)
    with torch.inference_mode(), eager(), evaluating(network, warn=True):
        batch = as_batch(network, images)
        if len(batch) * (1 + len(names)) > _MOST_PANELS:
            raise UserError(f"{len(batch)} images with {len(names)} masks each are too many for one picture.")
        masks, _ = read_masks(network, batch, names)
        pictures = [to_picture(picture) for picture in denormalized(network, batch)]
    if labels is not None and len(labels) != len(pictures):
        raise UserError(f"{len(labels)} labels for {len(pictures)} images; give one an image.")
    aspect = pictures[0].height / pictures[0].width
    wide, high = (_PANEL, _PANEL * aspect) if aspect <= 1 else (_PANEL / aspect, _PANEL)
    left, step_across, step_down = 0.1, wide + 0.1, high + 0.28
    top, foot = (0.36 if title else 0.08) + 0.36, 0.28
    width, height = 2 * left + (1 + len(names)) * step_across, top + foot + len(pictures) * step_down
    with sheet(width, height) as drawing:

        def panel(row: int, column: int, pixels: np.ndarray, beneath: str, *, sharp: bool) -> None:
            x, y = left + column * step_across, height - top - row * step_down - high
            axes = drawing.add_axes((x / width, y / height, wide / width, high / height))
            axes.imshow(pixels, interpolation="nearest" if sharp else "bilinear", aspect="auto")
            axes.set_axis_off()
            text = shortened(beneath, int(14 * wide))
            drawing.text(x / width, (y - 0.15) / height, text, fontsize=7.5, color=INK)

        for column, name in enumerate(names, start=1):
            short = name.removeprefix("backbone.").removesuffix(".mask")
            size = "x".join(map(str, masks[name].maps.shape[1:]))
            x = (left + column * step_across) / width
            drawing.text(x, 1 - (top - 0.05) / height, f"{short}\n{size}", fontsize=7.5, color=QUIET, va="bottom")
        for row, picture in enumerate(pictures):
            panel(row, 0, np.asarray(enlarged(picture)), labels[row] if labels else "image", sharp=True)
            for column, name in enumerate(names, start=1):
                values, scale = masks[name].maps[row].float().cpu(), masks[name].value_range
                mixed = np.asarray(overlay(picture, values, value_range=scale, stretch=stretch))
                panel(row, column, mixed, f"{number(float(values.min()))}–{number(float(values.max()))}", sharp=False)
        if title:
            drawing.text(left / width, 1 - 0.08 / height, title, fontsize=9.5, color=INK, va="top", weight="bold")
        note = "mean over channels, beneath it its lowest and highest value; "
        note += "each over its own extremes" if stretch else "on the masks' own scale"
        note = shortened(note, int(15 * width))
        drawing.text(left / width, 0.08 / height, note, fontsize=7, color=INK if stretch else QUIET)
        return rendered(drawing, path)
