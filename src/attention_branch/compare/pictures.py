"""The pictures of a comparison: images chosen by rule, with the map of every method."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

from attention_branch.compare.collect import Work
from attention_branch.compare.comparison import Comparison
from attention_branch.compare.measures import MEASURES
from attention_branch.evaluation.wording import percent
from attention_branch.explanations.methods import CONTROLS
from attention_branch.report.page import Block
from attention_branch.report.picture_grid import PictureGrid, PictureRow

_GALLERY_ROWS = 5


def first_of_each_class(comparison: Comparison, count: int) -> list[int]:
    """Return the places of `count` images: the subset's first of every class, then the second, and so on.

    The class is the label, or the prediction where there is no label.
    """
    answers = comparison.answers
    classes = np.where(answers.label >= 0, answers.label, answers.predicted)
    turn = np.zeros(len(classes), dtype=np.int64)
    seen: dict[int, int] = {}
    for place, number in enumerate(classes.tolist()):
        turn[place] = seen[number] = seen.get(number, -1) + 1
    order = np.argsort(turn, kind="stable")[:count]
    return sorted(order.tolist(), key=lambda place: (turn[place], classes[place]))


class Pictures:
    """Draws chosen images with the maps of the methods."""

    def __init__(self, work: Work, comparison: Comparison) -> None:
        self._work, self._found = work, comparison

    def grid(
        self,
        title: str,
        places: Sequence[int],
        text: str,
        *,
        methods: Sequence[str] | None = None,
        metric: str | None = None,
        peaks: bool = False,
    ) -> PictureGrid:
        """Return the grid of images at these places in the subset; `metric` writes its value below each map.

        `peaks` marks each map's strongest point.
        """
        chosen = self._found.methods if methods is None else methods
        rows, scales = [], {}
        for place in places:
            maps = {}
            for method in chosen:
                maps[method], scales[method] = self._map(place, method)
            under = None
            if metric is not None:
                values = {method: float(self._found.results[method][metric].values[place]) for method in chosen}
                under = {method: MEASURES[metric].text(value) for method, value in values.items()}
            rows.append(self._row(place, maps, under))
        return PictureGrid(title, rows, scales, text, peaks)

    def galleries(self) -> list[Block]:
        """Return what is worth a look: where the map fails and where methods or branches differ."""
        found, answers, main = self._found, self._found.answers, self._found.main
        real = [method for method in found.methods if method not in CONTROLS] or [main]
        blocks: list[Block] = []
        if "pointing" in found.metrics:
            missed = np.flatnonzero(found.results[main]["pointing"].values.numpy() == 0)
            places = missed[np.argsort(-answers.confidence[missed], kind="stable")][:_GALLERY_ROWS]
            text = f"{len(missed)} images whose {main} map has its strongest point off the object; those with the most "
            text += "confident answers."
            blocks.append(
                self.grid("Sure of itself, looking elsewhere", places.tolist(), text, methods=real, peaks=True)
            )
        if "insertion-deletion" in found.metrics:
            values = found.results[main]["insertion-deletion"].values.numpy()
            places = np.argsort(np.where(np.isnan(values), np.inf, values), kind="stable")[:_GALLERY_ROWS]
            text = (
                f"The images on which the {main} map has the lowest insertion − deletion, written below each map: the "
            )
            text += "places it shows matter least to the answer."
            blocks.append(
                self.grid("Where the map says least", places.tolist(), text, methods=real, metric="insertion-deletion")
            )
        pair = next((pair for pair in found.likeness if set(pair) == {main, "grad-cam"}), None)
        if pair is not None:
            alike = found.likeness[pair]
            places = np.argsort(np.where(np.isnan(alike), np.inf, alike), kind="stable")[:_GALLERY_ROWS]
            text = (
                f"The images on which {main} and grad-cam order the places least alike (Spearman's rank correlation)."
            )
            blocks.append(self.grid("Where the methods disagree", places.tolist(), text, methods=real))
        if answers.agree is not None:
            apart = np.flatnonzero(~answers.agree)
            places = apart[np.argsort(-answers.confidence[apart], kind="stable")][:_GALLERY_ROWS]
            text = (
                f"{len(apart)} images to which the two branches give different answers; those with the most confident "
            )
            text += "prediction. attention-class is drawn for the predicted class, not for the branch's own."
            blocks.append(self.grid("Where the branches disagree", places.tolist(), text, methods=real))
        return blocks

    def _map(self, place: int, method: str) -> tuple[Any, tuple[float, float] | None]:
        """Return the map (H, W) of one image as it was measured, and its scale."""
        work = self._work
        # Noise is drawn for a whole batch, so it takes the batch to draw the same again.
        start = place - place % work.batch_size if method == "random" else place
        stop = min(start + work.batch_size, len(work.subset)) if method == "random" else place + 1
        batch = work.subset.batch(range(start, stop), work.device)
        classes = torch.from_numpy(self._found.answers.target[start:stop]).to(work.device)
        explained = work.explain(batch.images, method, classes, start=start)
        return explained.maps[place - start].cpu(), explained.value_range

    def _row(self, place: int, maps: Mapping[str, Any], under: Mapping[str, str] | None) -> PictureRow:
        answers = self._found.answers
        names, label, answer = answers.class_names, int(answers.label[place]), int(answers.predicted[place])
        sample = self._work.subset.images[place]
        lines = []
        if label >= 0 and label != answer:
            lines.append(f"truth: {names[label]}")
        if answers.second is not None and answers.second_confidence is not None:
            second = int(answers.second[place])
            if second != answer:
                lines.append(f"attention branch: {names[second]}, {percent(float(answers.second_confidence[place]))}")
        lines.append(sample.id)
        mark = "" if label < 0 else "✓ " if label == answer else "✗ "
        return PictureRow(
            picture=self._work.subset.preprocessing.image(sample.image),
            heading=f"{mark}{names[answer]}, {percent(float(answers.confidence[place]))}",
            lines=lines,
            maps=maps,
            verdict="" if label < 0 else "right" if label == answer else "wrong",
            under=under,
            inside=sample.region(self._work.subset.preprocessing, self._work.subset.head),
        )
