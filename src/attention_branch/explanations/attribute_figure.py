"""One picture of many heads: under each image's map of a head stands the head's score (CVPR 2019, figure 7)."""

import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from PIL import Image
from torch import Tensor, nn

from attention_branch.errors import UserError
from attention_branch.explanations.canvas import INK, QUIET, rendered, sheet, shortened
from attention_branch.explanations.explanation import as_batch, denormalized
from attention_branch.explanations.outputs import eager, evaluating, probabilities, unwrapped
from attention_branch.explanations.overlay import COLORMAP, enlarged, number, overlay, to_picture
from attention_branch.explanations.targets import head_class_names, known_head

_PANEL = 1.35
_MOST_PANELS = 40 * 41
# ImageNet's class names: a WordNet id, which would take the room of the name, and several names of one meaning.
_WORDNET = re.compile(r"^n\d{8} ([^,]+).*$")
_ACROSS = 8
"""Maps that stand side by side; further heads of an image go on in lines below."""


def attribute_figure(
    model: nn.Module,
    images: Tensor | Image.Image | Sequence[Image.Image],
    heads: Sequence[str] | None = None,
    *,
    stretch: bool = False,
    title: str | None = None,
    path: str | Path | None = None,
) -> Image.Image:
    """Draw each image and, beside it, its map of every head with the head's perception score beneath; return a picture.

    `images` are normalised (N, 3, H, W) or pictures that the model's preprocessing makes so; `heads` chooses heads and
    their order, all unless given. The score of a head of two classes (or one logit) is the probability of its class 1;
    of more classes the predicted one's name and probability. Maps are coloured on [0, 1], or each from its own minimum
    to its maximum with `stretch` and where they have no bound, and the note at the foot says which. `title` stands
    above. `path` also writes a PNG, whole or not at all. One forward pass in eval mode. Raises `UserError` for a model
    without a map for each of several heads and for an unknown head.
    """
    network: Any = unwrapped(model)
    names = list(getattr(network, "heads", None) or ())
    if not getattr(network, "is_abn", False) or len(names) < 2:
        raise UserError(
            "This network has no map for each of several heads; give one of create_model(..., heads={...}), or draw "
            "a single map with explain(...).figure()."
        )
    chosen = [known_head(names, head) for head in ([heads] if isinstance(heads, str) else heads or names)]
    with torch.inference_mode(), eager(), evaluating(network, warn=True):
        batch = as_batch(network, images)
        output = network(batch, attention_logits=False)
        pictures = [to_picture(picture) for picture in denormalized(network, batch)]
    if len(pictures) * (1 + len(chosen)) > _MOST_PANELS:
        raise UserError(
            f"{len(pictures)} images with {len(chosen)} maps each are too many for one picture; draw fewer at once."
        )
    maps = output.attention.float().cpu()
    if not torch.isfinite(maps).all():
        raise UserError("The maps hold NaN or infinite values, so there is nothing to draw; look at the training.")
    rows = [
        [(head, _score(network, head, output.logits, row), maps[row, names.index(head)]) for head in chosen]
        for row in range(len(pictures))
    ]
    return _drawn(pictures, rows, stretch or getattr(network, "map_range", (0.0, 1.0)) is None, title, path)


def _score(network: Any, head: str, logits: Mapping[str, Tensor], row: int) -> str:
    """Return what stands beneath a map: the share of class 1 of two, or the predicted class of more with its share."""
    shares = probabilities(logits[head][row : row + 1])[0]
    if len(shares) == 2:
        return f"{100 * float(shares[1]):.1f} %"
    best = int(shares.argmax())
    names = head_class_names(network, head)
    name = first_name(names[best]) if names else str(best)
    return f"{name}, {100 * float(shares[best]):.1f} %"


def _drawn(
    pictures: list[Image.Image],
    rows: list[list[tuple[str, str, Tensor]]],
    stretch: bool,
    title: str | None,
    path: str | Path | None,
) -> Image.Image:
    across = min(_ACROSS, len(rows[0]))
    lines = math.ceil(len(rows[0]) / across)
    aspect = pictures[0].height / pictures[0].width
    panel_width, panel_height = (_PANEL, _PANEL * aspect) if aspect <= 1 else (_PANEL / aspect, _PANEL)
    # Names stand over the maps and scores beneath; narrow panels still leave room for a few letters.
    step_across, step_down = max(panel_width, 0.9) + 0.1, panel_height + 0.46
    left, bar, foot, between = 0.1, 0.0 if stretch else 0.62, 0.3, 0.14
    width = 2 * left + (1 + across) * step_across + bar
    top = 0.32 if title else 0.0
    height = top + foot + len(pictures) * (lines * step_down + between)

    def panel(
        drawing: Figure, row: int, line: int, column: int, pixels: np.ndarray, above: str, beneath: str, *, sharp: bool
    ) -> None:
        x = left + column * step_across
        y = height - top - row * (lines * step_down + between) - line * step_down - 0.22 - panel_height
        axes = drawing.add_axes((x / width, y / height, panel_width / width, panel_height / height))
        axes.imshow(pixels, interpolation="nearest" if sharp else "bilinear", aspect="auto")
        axes.set_axis_off()
        letters = int(14 * (step_across - 0.1))
        drawing.text(
            x / width, (y + panel_height + 0.04) / height, shortened(above, letters), fontsize=7.5, color=QUIET
        )
        drawing.text(
            x / width, (y - 0.15) / height, shortened(beneath, letters), fontsize=7.5, color=INK, weight="bold"
        )

    value_range = (0.0, 1.0)
    with sheet(width, height) as drawing:
        for row, (picture, own) in enumerate(zip(pictures, rows, strict=True)):
            panel(drawing, row, 0, 0, np.asarray(enlarged(picture)), "image", "", sharp=True)
            for place, (head, score, values) in enumerate(own):
                mixed = np.asarray(overlay(picture, values, value_range=value_range, stretch=stretch))
                panel(drawing, row, place // across, 1 + place % across, mixed, first_name(head), score, sharp=False)
        if title:
            drawing.text(left / width, 1 - 0.08 / height, title, fontsize=9.5, color=INK, va="top", weight="bold")
        every = torch.stack([values for own in rows for _, _, values in own])
        note = f"maps {number(float(every.min()))}–{number(float(every.max()))}, "
        if stretch:
            note += "each stretched over its own extremes: colours cannot be compared between maps"
        else:
            note += "colours on the fixed scale 0.00–1.00, a line at half of it"
        note += "; beneath each the head's score"
        drawing.text(left / width, 0.1 / height, note, fontsize=7.5, color=INK if stretch else QUIET)
        if not stretch:
            x, y = left + (1 + across) * step_across + 0.06, height - top - 0.22 - panel_height
            axes = drawing.add_axes((x / width, y / height, 0.1 / width, panel_height / height))
            drawing.colorbar(ScalarMappable(Normalize(*value_range), COLORMAP), cax=axes)
            axes.tick_params(length=2, width=0.6, labelsize=6.5, colors=QUIET)
            for spine in axes.spines.values():
                spine.set_visible(False)
        return rendered(drawing, path)


def first_name(name: str) -> str:
    """Return a class's name; of ImageNet's, which give an id and several names of one meaning, the first name."""
    return _WORDNET.sub(r"\1", name)
