"""Test pictures with a distractor, and the maps that the arms of the study lay on them, side by side."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from attention_branch.data.dataset import Sample
from attention_branch.explanations import explain
from attention_branch.explanations.canvas import INK, QUIET, rendered, sheet, shortened
from attention_branch.explanations.overlay import outlined, overlay

_PANEL = 1.35
_SHORT = {"wider-multiply-adds": "wider plain"}


def distraction_figure(networks: Mapping[str, Any], samples: Sequence[Sample], title: str, path: Path) -> Path:
    """Draw picture | a map an arm: the attention map of a network with a branch, Grad-CAM of a plain one.

    Below each map stands what its network answers. The object is outlined in the first column.
    """
    pictures = [sample.image for sample in samples]
    found = {
        arm: explain(network, pictures, method="attention" if network.is_abn else "grad-cam")
        for arm, network in networks.items()
    }
    across, down = 1 + len(found), len(samples)
    head, foot, gap = 0.55, 0.35, 0.2
    width, height = across * _PANEL + 0.1, head + down * (_PANEL + gap) + foot
    with sheet(width, height, font_size=7.5) as drawing:
        drawing.text(0.1 / width, 1 - 0.08 / height, title, fontsize=10, weight="bold", color=INK, va="top")
        for row, sample in enumerate(samples):
            for column, arm in enumerate(("", *found)):
                bottom = height - head - (row + 1) * (_PANEL + gap) + gap
                box = (0.05 + column * _PANEL + 0.03, bottom, _PANEL - 0.06, _PANEL - 0.06)
                axes = drawing.add_axes((box[0] / width, box[1] / height, box[2] / width, box[3] / height))
                axes.imshow(np.asarray(_panel(sample, row, found.get(arm))), interpolation="bilinear", aspect="auto")
                axes.set_axis_off()
                if row == 0:
                    axes.set_title(_heading(arm, networks), fontsize=8, color=INK, loc="left", pad=4)
                text, color = _words(sample, row, found.get(arm), networks)
                axes.text(0, -0.03, text, transform=axes.transAxes, va="top", color=color)
        note = "each map stretched from its lowest to its highest value; pictures: the test split's first of each class"
        drawing.text(0.1 / width, 0.1 / height, note, color=QUIET, va="bottom")
        rendered(drawing, path)
    return path


def _panel(sample: Sample, row: int, explanation: Any) -> Any:
    if explanation is None:
        return outlined(sample.image, sample.mask) if sample.mask is not None else sample.image
    return overlay(sample.image, explanation.raw[row], stretch=True)


def _heading(arm: str, networks: Mapping[str, Any]) -> str:
    if not arm:
        return "picture"
    return f"{_SHORT.get(arm, arm)}: {'map' if networks[arm].is_abn else 'Grad-CAM'}"


def _words(sample: Sample, row: int, explanation: Any, networks: Mapping[str, Any]) -> tuple[str, str]:
    """Return what stands below a panel: the class, or the answer and its probability; wrong answers in red."""
    target = int(sample.target)  # type: ignore[arg-type]
    any_network = next(iter(networks.values()))
    names = any_network.class_names or [str(number) for number in range(any_network.num_classes)]
    if explanation is None:
        return shortened(names[target], 18), INK
    chances = explanation.logits[row].float().softmax(0)
    answer = int(chances.argmax())
    color = QUIET if answer == target else "#b3261e"
    return f"{shortened(names[answer], 14)} {100 * float(chances[answer]):.0f} %", color
