"""Figures from one's own runs: the paper's 4 (CAM, Grad-CAM, ABN side by side), its 7 (a map a head), distractors."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from attention_branch.data import DataSet
from attention_branch.data.dataset import ImageSet
from attention_branch.explanations import explain
from attention_branch.explanations.attribute_figure import attribute_figure, first_name
from attention_branch.explanations.canvas import INK, QUIET, rendered, sheet, shortened
from attention_branch.explanations.overlay import overlay
from attention_branch.models import load_model
from attention_branch.reproduce.distraction_figure import distraction_figure
from attention_branch.reproduce.plan import Job

PICTURES = {"figure4": 8, "figure7": 4, "distractors": 6}
_PANEL = 1.7


def draw_figure(what: str, jobs: Sequence[Job], data: DataSet, path: Path) -> Path:
    """Draw a figure from the finished runs of its cells on one data set; the test pictures are chosen by a rule."""
    networks = {job.cell.arm: load_model(job.network) for job in jobs}
    images = data.test
    assert images is not None
    samples = [images[number] for number in first_of_classes(images, PICTURES[what])]
    stands_for = jobs[0].origin.kind.stands_for
    place = f" (in {stands_for}'s place)" if stands_for else ""
    epochs = jobs[0].config.epochs
    part = f" of {count:,} images" if (count := jobs[0].protocol.train_images) else ""
    smoke = f"; smoke test of {epochs} epoch{'s' * (epochs != 1)}{part}" if jobs[0].protocol.shortened else ""
    title = f"{jobs[0].cell.network}, {jobs[0].origin.title}{place}{smoke}"
    if what == "distractors":
        return distraction_figure(networks, samples, title, path)
    if what == "figure7":
        pictures = [sample.image for sample in samples]
        attribute_figure(networks["residual"], pictures, stretch=True, title=title, path=path)
        return path
    rows = [(sample.image, int(sample.target)) for sample in samples]  # type: ignore[arg-type]
    _side_by_side(networks["plain"], networks["residual"], rows, title, path)
    return path


def first_of_classes(images: ImageSet, count: int) -> list[int]:
    """Return each class's first picture, so many in the order of the split; with several heads the first pictures.

    Chosen by this rule and not by eye.
    """
    targets = images.targets
    if isinstance(targets, dict):
        return list(range(min(count, len(images))))
    _, first = np.unique(targets, return_index=True)
    return sorted(first.tolist())[:count]


def _side_by_side(plain: Any, branch: Any, rows: Sequence[tuple[Image.Image, int]], title: str, path: Path) -> None:
    """Draw picture | CAM | Grad-CAM | ABN; the first two of the plain network for its top-1 class, as in the paper."""
    pictures = [picture for picture, _ in rows]
    names = plain.class_names or [str(number) for number in range(plain.num_classes)]
    found = {
        "CAM": explain(plain, pictures, method="cam"),
        "Grad-CAM": explain(plain, pictures, method="grad-cam"),
        "ABN": explain(branch, pictures, method="attention"),
    }
    across, down = 1 + len(found), len(rows)
    head, foot, gap = 0.55, 0.35, 0.22
    width, height = across * _PANEL + 0.1, head + down * (_PANEL + gap) + foot
    with sheet(width, height, font_size=7.5) as drawing:
        what, _, remark = title.partition("; ")  # together they would run out of the narrow sheet
        drawing.text(0.1 / width, 1 - 0.08 / height, what, fontsize=10, weight="bold", color=INK, va="top")
        drawing.text(0.1 / width, 1 - 0.25 / height, remark, color=QUIET, va="top")
        for row, (picture, label) in enumerate(rows):
            shown = plain.preprocessing.image(picture)
            panels = {"picture": shown} | {
                name: overlay(shown, explanation.raw[row], stretch=True) for name, explanation in found.items()
            }
            for column, (name, panel) in enumerate(panels.items()):
                bottom = height - head - (row + 1) * (_PANEL + gap) + gap
                box = (0.05 + column * _PANEL + 0.04, bottom, _PANEL - 0.08, _PANEL - 0.08)
                axes = drawing.add_axes((box[0] / width, box[1] / height, box[2] / width, box[3] / height))
                axes.imshow(np.asarray(panel), interpolation="nearest" if column == 0 else "bilinear", aspect="auto")
                axes.set_axis_off()
                if row == 0:
                    axes.set_title(name, fontsize=8.5, color=INK, loc="left", pad=4)
                text = _short(names[label]) if column == 0 else _answer(found[name], row, names)
                axes.text(0, -0.03, text, transform=axes.transAxes, va="top", color=QUIET)
        note = "each map stretched from its lowest to its highest value; pictures: the test split's first of each class"
        drawing.text(0.1 / width, 0.1 / height, note, color=QUIET, va="bottom")
        rendered(drawing, path)


def _answer(explanation: Any, row: int, names: Sequence[str]) -> str:
    """Return the class an explanation's network answered with."""
    probabilities = explanation.logits[row].float().softmax(0)
    answer = int(probabilities.argmax())
    return f"{_short(names[answer])} {100 * float(probabilities[answer]):.0f} %"


def _short(name: str) -> str:
    return shortened(first_name(name), 22)
