"""The page of an evaluation: headline figures, the map beside its controls, and what went right and wrong."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from attention_branch.data.dataset import ImageSet
from attention_branch.errors import UserError
from attention_branch.evaluation.evaluation import Evaluation, HeadEvaluation
from attention_branch.evaluation.wording import interval_text, percent
from attention_branch.explanations.explanation import explain
from attention_branch.report.page import (
    Bar,
    Block,
    CalibrationBlock,
    Card,
    Facts,
    Figure,
    Gallery,
    MatrixBlock,
    TableBlock,
    write_report,
)

_MATRIX_SHOWN = 30
_CLASSES_SHOWN = 40


def write_evaluation_report(
    path: str | Path,
    model: Any,
    images: ImageSet,
    evaluation: Evaluation,
    *,
    title: str = "Where the classifier looked",
    controls: Mapping[str, Evaluation] | None = None,
    head: str | None = None,
    per_gallery: int = 9,
    facts: Mapping[str, Any] | None = None,
    extra: Sequence[Block] = (),
    seed: int = 0,
) -> Path:
    """Write report.html of an evaluation: figures, pointing beside the controls, galleries, calibration, protocol.

    `images` is the set that was evaluated; `controls` are evaluations of other networks on the same images by name (the
    same network trained with mechanism "none", a plain backbone); `extra` blocks follow the pointing table. `head`
    chooses the galleries' head (default the first). The right answers shown are drawn at random from `seed`, the wrong
    ones are those with the highest confidence. Raises `UserError` when `images` is not the evaluated set.
    """
    name = head or next(iter(evaluation.heads))
    if name not in evaluation.heads:
        raise UserError(f"The evaluation has no head '{name}'; it has {', '.join(evaluation.heads)}.")
    if evaluation.n != len(images):
        raise UserError(
            f"The evaluation is of {evaluation.n} images, the image set holds {len(images)}; give the same."
        )
    chosen = evaluation.heads[name]
    blocks: list[Block] = []
    if not evaluation.multitask:
        blocks.append(_branches_table(evaluation, controls or {}))
    else:
        blocks.append(_heads_table(evaluation))
    blocks.append(_pointing_table(evaluation, controls or {}))
    blocks += extra
    blocks += _galleries(model, images, evaluation, name, per_gallery, seed)
    blocks.append(_class_table(chosen))
    if len(chosen.class_names) <= _MATRIX_SHOWN and chosen.n:
        text = "Rows are the truth, columns the prediction. A stronger colour is a larger share of the row."
        blocks.append(MatrixBlock("Confusion", chosen.class_names, chosen.confusion, text))
    blocks.append(
        CalibrationBlock(
            "Calibration",
            chosen.calibration,
            "On the dashed line a confidence of 80 % is right in 80 % of the cases. Below it the network is too sure "
            "of itself. Pale bars hold few images.",
        )
    )
    blocks.append(_protocol(evaluation, facts or {}))
    return write_report(
        path,
        title,
        _summary(evaluation, chosen, name),
        blocks,
        figures=_figures(evaluation, chosen),
        alarms=[*evaluation.notes, *([evaluation.alarm] if evaluation.alarm else [])],
        footer="Made by attention-branch. One file, nothing is loaded from the network.",
    )


def _summary(evaluation: Evaluation, head: HeadEvaluation, name: str) -> str:
    count = f"{len(evaluation.heads)} tasks" if evaluation.multitask else f"{len(head.class_names)} classes"
    text = f"{evaluation.n:,} images, {count}. "
    own = next((result for key, result in evaluation.pointing.items() if key.startswith("attention")), None)
    center = evaluation.pointing.get("center")
    if own is not None and center is not None:
        text += (
            f"The map's maximum lies on the object in {percent(own.mean)} of the "
            f"{'maps' if evaluation.multitask else 'images'}; the middle of the image does "
        )
        text += f"in {percent(center.mean)}. "
        if center.interval and own.interval and own.interval[0] <= center.interval[1]:
            text += (
                "The map does not clearly beat the middle of the image, so do not read it as the reason for an answer. "
            )
    if any(item.attention for item in evaluation.heads.values()):
        text += (
            "The map is the network's own attention, made in the same forward pass; it is class-agnostic: it says "
            "where the network looked, not which class a place speaks for."
        )
    return text


def _figures(evaluation: Evaluation, head: HeadEvaluation) -> list[Figure]:
    mine = head.perception
    several = evaluation.multitask
    figures = [
        Figure(
            percent(evaluation.accuracy),
            "accuracy, mean over tasks" if several else "accuracy",
            interval_text(mine.accuracy_interval) if mine and not several else "",
        )
    ]
    if evaluation.attention_accuracy is not None:
        figures.append(Figure(percent(evaluation.attention_accuracy), "attention branch alone", "its own answer"))
        both = head.agreement
        detail = f"right in {percent(both.accuracy_agree)} of these" if both and not several else ""
        figures.append(Figure(percent(evaluation.agreement_rate), "branches agree", detail))
    for name, result in evaluation.pointing.items():
        if name.startswith("attention"):
            task = name.partition(": ")[2]
            label = "map's maximum on the object" + (f" ({task})" if task else "")
            figures.append(Figure(percent(result.mean), label, interval_text(result.interval)))
            break
    if mine and not several:
        figures.append(Figure(percent(mine.ece), "calibration error", "ECE, 15 bins"))
    return figures


def _branches_table(evaluation: Evaluation, controls: Mapping[str, Evaluation]) -> TableBlock:
    rows: list[list[str | Bar]] = []
    for label, other in {"": evaluation, **controls}.items():
        for head in other.heads.values():
            for branch, scores in (("prediction", head.perception), ("attention branch", head.attention)):
                if scores is None:
                    continue
                rows.append(
                    [
                        f"{label}: {branch}" if label else branch,
                        percent(scores.accuracy),
                        interval_text(scores.accuracy_interval),
                        f"{scores.nll:.3f}",
                        Bar(scores.accuracy, scores.accuracy_interval),
                    ]
                )
    head = next(iter(evaluation.heads.values()))
    if head.majority is not None:
        rows.append(["control: always the most frequent class", percent(head.majority), "", "", Bar(head.majority)])
    return TableBlock(
        "How often it is right",
        ("answer", "accuracy", "95 % interval", "log loss", ""),
        rows,
        strong=frozenset({0}),
        note="Intervals by Wilson's formula. Log loss is the mean negative log likelihood of the truth, in nats.",
    )


def _heads_table(evaluation: Evaluation) -> TableBlock:
    rows: list[list[str | Bar]] = []
    for name, head in evaluation.heads.items():
        mine, second = head.perception, head.attention
        rows.append(
            [
                name,
                str(head.n),
                percent(mine.accuracy if mine else None),
                percent(second.accuracy if second else None),
                percent(head.majority),
                percent(mine.average_precision if mine else None),
                percent(mine.roc_auc if mine else None),
            ]
        )
    columns = ("task", "images", "accuracy", "attention branch", "most frequent class", "average precision", "ROC-AUC")
    return TableBlock("Tasks", columns, rows, note="Images without a task's label are left out of that task.")


def _pointing_table(evaluation: Evaluation, controls: Mapping[str, Evaluation]) -> TableBlock:
    rows: list[list[str | Bar]] = []
    strong = set()
    for label, other in {"": evaluation, **controls}.items():
        for name, result in other.pointing.items():
            control = not name.startswith("attention")
            if label and control:
                continue  # The controls know nothing of the network: one row each is enough.
            if not label and not control:
                strong.add(len(rows))
            shown = {"center": "control: centre of the image", "random": "control: random place"}.get(name, name)
            text = f"{label}: {shown}" if label else shown
            rows.append([text, percent(result.mean), interval_text(result.interval), Bar(result.mean, result.interval)])
    first = next(iter(evaluation.pointing.values()), None)
    note = ""
    if first is not None:
        tolerance, counts = first.protocol["tolerance"], first.counts
        unit = "of the shorter side" if tolerance < 1 else "pixels"
        note = f"n {first.n}; tolerance {tolerance:.4g} {unit}; {counts['skipped']} images without the object in view "
        note += "left out; intervals by bootstrap, of hits or misses alone by Wilson."
    return TableBlock(
        "Does the map point at the object?",
        ("map", "on the object", "95 % interval", ""),
        rows,
        text="The share of images whose map has its maximum on the object (pointing game). A map means something only "
        "as far as it beats the controls, which know nothing of the image.",
        note=note,
        strong=frozenset(strong),
    )


def _galleries(model: Any, images: ImageSet, evaluation: Evaluation, name: str, count: int, seed: int) -> list[Block]:
    predictions = evaluation.heads[name].predictions
    known = np.flatnonzero(predictions.labelled)
    right = known[predictions.predicted[known] == predictions.targets[known]]
    wrong = known[predictions.predicted[known] != predictions.targets[known]]
    drawn = np.random.default_rng(seed).permutation(right)[:count]
    surest = wrong[np.argsort(-predictions.confidence[wrong], kind="stable")][:count]
    unsure = known[np.argsort(predictions.confidence[known], kind="stable")][:count]
    parts = (
        ("Right", drawn, f"{len(right):,} images; {len(drawn)} drawn at random."),
        ("Wrong", surest, f"{len(wrong):,} images; the {len(surest)} it was surest of."),
        ("Least certain", unsure, f"The {len(unsure)} images with the lowest confidence, right or wrong."),
    )
    return [Gallery(title, _cards(model, images, evaluation, name, chosen), text) for title, chosen, text in parts]


def _cards(
    model: Any, images: ImageSet, evaluation: Evaluation, name: str, chosen: Sequence[int] | np.ndarray
) -> list[Card]:
    if not len(chosen):
        return []
    head = evaluation.heads[name]
    predictions, names = head.predictions, head.class_names
    samples = [images[int(predictions.index[place])] for place in chosen]
    branch = getattr(model, "is_abn", False)
    batch = torch.stack([model.preprocessing.tensor(sample.image) for sample in samples])
    # A plain network has no map of its own; the cards then show what every control is measured against.
    explained = explain(model, batch, "attention" if branch else "center", name if evaluation.multitask else None)
    cards = []
    for row, (place, sample) in enumerate(zip(chosen, samples, strict=True)):
        answer, truth = int(predictions.predicted[place]), int(predictions.targets[place])
        ok = answer == truth
        lines = [("truth", names[truth])] if not ok else []
        if predictions.attention_predicted is not None and predictions.attention_probabilities is not None:
            second = int(predictions.attention_predicted[place])
            sure = percent(float(predictions.attention_probabilities[place, second]))
            lines.append(("attention branch", f"{names[second]}, {sure}"))
        lines.append(("image", sample.id))
        cards.append(
            Card(
                model.preprocessing.image(sample.image),
                explained.maps[row],
                f"{'✓' if ok else '✗'} {names[answer]}, {percent(float(predictions.confidence[place]))}",
                lines,
                "right" if ok else "wrong",
                explained.value_range,
            )
        )
    return cards


def _class_table(head: HeadEvaluation) -> TableBlock:
    present = [row for row in head.classes if row.support or row.predicted]
    shown, note = present, ""
    if len(present) > _CLASSES_SHOWN:
        shown = sorted(present, key=lambda row: 2.0 if row.recall is None else row.recall)[:_CLASSES_SHOWN]
        note = f"The {_CLASSES_SHOWN} of {len(present)} classes with the lowest recall."
    rows: list[list[str | Bar]] = [
        [row.name, str(row.support), percent(row.precision), percent(row.recall), Bar(row.recall)] for row in shown
    ]
    return TableBlock("Classes", ("class", "images", "precision", "recall", ""), rows, note=note)


def _protocol(evaluation: Evaluation, facts: Mapping[str, Any]) -> Facts:
    items = [("images", str(evaluation.n))]
    record = dict(evaluation.record) | dict(facts)
    preprocessing = record.pop("preprocessing", None)
    versions = record.pop("versions", {})
    items += [(name.replace("_", " "), str(value)) for name, value in record.items() if name != "images"]
    if isinstance(preprocessing, Mapping):
        items.append(("preprocessing", ", ".join(f"{name} {value}" for name, value in preprocessing.items())))
    for result in evaluation.pointing.values():
        items += [(f"pointing: {name.replace('_', ' ')}", str(value)) for name, value in result.protocol.items()]
        break
    items.append(("calibration error", "15 equal-width bins of the prediction's confidence"))
    items += [(f"{name.replace('_', '-')} version", str(value)) for name, value in dict(versions).items()]
    return Facts("Protocol and versions", items)
