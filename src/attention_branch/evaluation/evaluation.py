"""The frozen outcome of an evaluation: every number with what it was measured on, for a file and for a reader."""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
from rich import box
from rich.console import Console
from rich.table import Table

from attention_branch.evaluation.classes import SINGLE
from attention_branch.evaluation.scores import (
    ECE_BINS,
    Agreement,
    BranchScores,
    ClassScores,
    agreement,
    branch_scores,
    calibration_bins,
    class_scores,
)
from attention_branch.evaluation.wording import interval_text, percent
from attention_branch.metrics.statistics import MetricResult

MATRIX_LIMIT = 100
_CLASSES_SHOWN = 20


@dataclass(frozen=True, eq=False)
class Predictions:
    """One head's answer for each of N images, in the order of the data.

    `probabilities` (N, K) float64 of the perception branch (the prediction), `attention_probabilities` (N, K) or None;
    `targets` (N,) in the model's classes, -1 where the label is missing; `index` (N,) is the place in the data.
    """

    probabilities: np.ndarray
    attention_probabilities: np.ndarray | None
    targets: np.ndarray
    index: np.ndarray

    @cached_property
    def predicted(self) -> np.ndarray:
        """The predicted class (N,)."""
        return self.probabilities.argmax(1)

    @cached_property
    def confidence(self) -> np.ndarray:
        """The predicted class's probability (N,)."""
        return self.probabilities.max(1)

    @cached_property
    def attention_predicted(self) -> np.ndarray | None:
        """The attention branch's class (N,)."""
        return None if self.attention_probabilities is None else self.attention_probabilities.argmax(1)

    @cached_property
    def labelled(self) -> np.ndarray:
        """Which images have a label (N,) bool."""
        return self.targets >= 0


@dataclass(frozen=True, eq=False)
class HeadEvaluation:
    """One head over the n images that have its label; with no such image the scores are None."""

    class_names: list[str]
    predictions: Predictions
    n: int
    missing: int
    majority: float | None
    perception: BranchScores | None
    attention: BranchScores | None
    agreement: Agreement | None
    classes: list[ClassScores]
    confusion: np.ndarray
    calibration: list[tuple[float, float | None, float | None]]

    @classmethod
    def of(cls, predictions: Predictions, class_names: list[str]) -> "HeadEvaluation":
        """Work everything out from the predictions; images without a label are left out and counted."""
        kept = predictions.labelled
        targets, probabilities = predictions.targets[kept], predictions.probabilities[kept]
        second = predictions.attention_probabilities
        any_left = len(targets) > 0
        attention = branch_scores(second[kept], targets) if any_left and second is not None else None
        both = (
            agreement(probabilities.argmax(1), second[kept].argmax(1), targets)
            if attention and second is not None
            else None
        )
        classes, confusion = (
            class_scores(probabilities.argmax(1), targets, class_names)
            if any_left
            else ([], np.zeros((len(class_names), len(class_names)), dtype=np.int64))
        )
        return cls(
            class_names=class_names,
            predictions=predictions,
            n=len(targets),
            missing=int((~kept).sum()),
            majority=float(np.bincount(targets).max() / len(targets)) if any_left else None,
            perception=branch_scores(probabilities, targets) if any_left else None,
            attention=attention,
            agreement=both,
            classes=classes,
            confusion=confusion,
            calibration=calibration_bins(probabilities.max(1), probabilities.argmax(1) == targets) if any_left else [],
        )

    def confusions(self, count: int = 10) -> list[tuple[str, str, int]]:
        """Return the most frequent mistakes: (truth, prediction, images)."""
        wrong = self.confusion * (1 - np.eye(len(self.confusion), dtype=np.int64))
        order = np.argsort(-wrong, axis=None, kind="stable")[:count]
        pairs = [np.unravel_index(place, wrong.shape) for place in order]
        return [(self.class_names[r], self.class_names[c], int(wrong[r, c])) for r, c in pairs if wrong[r, c]]

    def to_dict(self) -> dict[str, Any]:
        """Return plain values; the confusion matrix as rows up to 100 classes, beyond as [truth, answer, images]."""
        values: dict[str, Any] = {
            "n": self.n,
            "missing_labels": self.missing,
            "class_names": self.class_names,
            "majority_class_share": self.majority,
            "perception": asdict(self.perception) if self.perception else None,
            "attention": asdict(self.attention) if self.attention else None,
            "agreement": asdict(self.agreement) if self.agreement else None,
            "ece_bins": ECE_BINS,
            "calibration": [
                dict(zip(("share", "confidence", "accuracy"), row, strict=True)) for row in self.calibration
            ],
            "classes": [asdict(row) for row in self.classes],
            "confusions": [list(row) for row in self.confusions()],
        }
        if len(self.class_names) <= MATRIX_LIMIT:
            values["confusion"] = self.confusion.tolist()
        else:
            rows, columns = np.nonzero(self.confusion)
            values["confusion_nonzero"] = [
                [int(row), int(column), int(self.confusion[row, column])]
                for row, column in zip(rows, columns, strict=True)
            ]
        return values


@dataclass(frozen=True, eq=False)
class Evaluation:
    """A model's answers on n images, per head (single task: the head "label"), and where its map points.

    `pointing` holds the pointing game of the map ("attention", or "attention: HEAD", or both where heads have places of
    their own) beside the controls "center" and "random"; empty where the data has no masks or boxes. `record` says what
    was evaluated on what.
    """

    n: int
    heads: dict[str, HeadEvaluation]
    pointing: dict[str, MetricResult] = field(default_factory=dict)
    maps: dict[str, float] = field(default_factory=dict)
    alarm: str | None = None
    notes: tuple[str, ...] = ()
    record: Mapping[str, Any] = field(default_factory=dict)

    @property
    def multitask(self) -> bool:
        """Whether there are several heads."""
        return list(self.heads) != [SINGLE]

    @property
    def accuracy(self) -> float:
        """The prediction's accuracy; the mean over heads where there are several. NaN without labels."""
        return _mean([head.perception.accuracy for head in self.heads.values() if head.perception])

    @property
    def attention_accuracy(self) -> float | None:
        """The attention branch's accuracy, mean over heads; None without a branch."""
        found = [head.attention.accuracy for head in self.heads.values() if head.attention]
        return _mean(found) if found else None

    @property
    def agreement_rate(self) -> float | None:
        """The share of images on which both branches agree, mean over heads; None without a branch."""
        found = [head.agreement.rate for head in self.heads.values() if head.agreement]
        return _mean(found) if found else None

    def to_dict(self) -> dict[str, Any]:
        """Return everything but the single predictions as plain values for a JSON file; NaN becomes None."""
        values: dict[str, Any] = {
            "n": self.n,
            "accuracy": self.accuracy,
            "attention_accuracy": self.attention_accuracy,
            "agreement_rate": self.agreement_rate,
        }
        if self.multitask:
            values["heads"] = {name: head.to_dict() for name, head in self.heads.items()}
        else:
            head = self.heads[SINGLE]
            if head.perception:
                values |= {"top5": head.perception.top5, "ece": head.perception.ece, "nll": head.perception.nll}
            values |= {key: value for key, value in head.to_dict().items() if key != "n"}
        values |= {
            "pointing": {name: result.to_dict() for name, result in self.pointing.items()} or None,
            "maps": self.maps or None,
            "map_alarm": self.alarm,
            "notes": list(self.notes),
            "record": dict(self.record),
        }
        return _plain(values)

    def print(self, console: Console | None = None) -> None:
        """Print tables that fit 80 columns."""
        console = console or Console()
        for note in self.notes:
            console.print(note, style="yellow")
        if self.multitask:
            console.print(f"{self.n} images, {len(self.heads)} heads", style="bold")
            console.print(self._heads_table())
        else:
            head = self.heads[SINGLE]
            missing = f", {head.missing} without a label" if head.missing else ""
            console.print(f"{self.n} images{missing}", style="bold")
            console.print(_scores_table(head))
            if head.classes:
                console.print(_classes_table(head))
            mistakes = head.confusions(3)
            if mistakes:
                listed = "; ".join(f"{truth} taken for {taken} ({count}x)" for truth, taken, count in mistakes)
                console.print(f"Most frequent mistakes: {listed}.", highlight=False)
        if self.pointing:
            console.print(self._pointing_table())
        if self.alarm:
            console.print(self.alarm, style="bold red")

    def _heads_table(self) -> Table:
        table = Table(box=box.SIMPLE_HEAD)
        table.add_column("head", overflow="fold")
        for column in ("n", "accuracy", "attention", "agree", "majority", "AP", "AUC"):
            table.add_column(column, justify="right")
        for name, head in self.heads.items():
            mine, second, both = head.perception, head.attention, head.agreement
            table.add_row(
                name,
                str(head.n),
                percent(mine.accuracy if mine else None),
                percent(second.accuracy if second else None),
                percent(both.rate if both else None),
                percent(head.majority),
                percent(mine.average_precision if mine else None),
                percent(mine.roc_auc if mine else None),
            )
        table.add_section()
        table.add_row(
            "mean", "", percent(self.accuracy), percent(self.attention_accuracy), percent(self.agreement_rate)
        )
        return table

    def _pointing_table(self) -> Table:
        result = next(iter(self.pointing.values()))
        tolerance = result.protocol["tolerance"]
        unit = "of the side" if tolerance < 1 else "pixels"
        table = Table(
            box=box.SIMPLE_HEAD, caption=f"n {result.n}, tolerance {tolerance:.4g} {unit}", caption_justify="left"
        )
        table.add_column("map's maximum (pointing game)", overflow="fold")
        table.add_column("on the object", justify="right")
        table.add_column("95 % interval", justify="right")
        for name, result in self.pointing.items():
            label = {"center": "control: centre", "random": "control: random"}.get(name, name)
            table.add_row(label, percent(result.mean), interval_text(result.interval))
        return table


def _scores_table(head: HeadEvaluation) -> Table:
    table = Table(box=box.SIMPLE_HEAD)
    table.add_column("")
    table.add_column("prediction", justify="right")
    if head.attention:
        table.add_column("attention branch", justify="right")
    branches = [scores for scores in (head.perception, head.attention) if scores]
    rows = [("accuracy", [percent(scores.accuracy) for scores in branches])]
    rows.append(("  95 % interval", [interval_text(scores.accuracy_interval) for scores in branches]))
    if branches and branches[0].top5 is not None:
        rows.append(("top-5 accuracy", [percent(scores.top5) for scores in branches]))
    rows.append(("mean over classes", [percent(scores.balanced_accuracy) for scores in branches]))
    if branches and branches[0].roc_auc is not None:
        rows.append(("average precision", [percent(scores.average_precision) for scores in branches]))
        rows.append(("ROC-AUC", [percent(scores.roc_auc) for scores in branches]))
    rows.append((f"calibration error (ECE, {ECE_BINS} bins)", [percent(scores.ece) for scores in branches]))
    rows.append(("negative log likelihood", [f"{scores.nll:.4f}" for scores in branches]))
    for name, cells in rows:
        table.add_row(name, *cells)
    table.add_section()
    table.add_row("always the most frequent class", percent(head.majority))
    if head.agreement:
        both = head.agreement
        table.add_row(f"branches agree ({both.agreeing})", percent(both.rate))
        table.add_row("  accuracy where they agree", percent(both.accuracy_agree))
        table.add_row(f"  accuracy where they do not ({both.disagreeing})", percent(both.accuracy_disagree))
    return table


def _classes_table(head: HeadEvaluation) -> Table:
    present = [row for row in head.classes if row.support or row.predicted]
    shown = sorted(present, key=lambda row: 2.0 if row.recall is None else row.recall)[:_CLASSES_SHOWN]
    caption = None
    if len(present) <= _CLASSES_SHOWN:
        shown = present
    else:
        caption = f"the {len(shown)} of {len(present)} with the lowest recall"
    table = Table(box=box.SIMPLE_HEAD, caption=caption, caption_justify="left")
    table.add_column("class", overflow="fold", max_width=36)
    for column in ("images", "recall", "precision"):
        table.add_column(column, justify="right")
    for row in shown:
        table.add_row(row.name, str(row.support), percent(row.recall), percent(row.precision))
    return table


def _mean(values: list[float]) -> float:
    return float(np.mean(values)) if values else float("nan")


def _plain(value: Any) -> Any:
    """Return a value that JSON takes: NaN and infinity become None, tuples lists, numpy scalars Python's."""
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, np.generic):
        value = value.item()
    return None if isinstance(value, float) and not math.isfinite(value) else value
