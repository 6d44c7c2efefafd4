"""The page of `abn explain`: the predictions worth a second look first, then all images and the record."""

import os
from collections import Counter
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from attention_branch.data.images import open_image
from attention_branch.evaluation.second_look import FLAGS
from attention_branch.evaluation.wording import percent
from attention_branch.report.page import Block, Card, Facts, Figure, Gallery, TableBlock, write_report

_SHOWN = 60
_NOTABLE = 12


def write_explained_page(
    output: Path,
    run: str,
    model: Any,
    lines: list[dict[str, Any]],
    settings: dict[str, Any],
    note: str,
    alarm: str | None,
) -> Path:
    """Write report.html of explained files from their records; `settings` are those of the call."""
    good = [entry for entry in lines if "error" not in entry]
    bad = [entry for entry in lines if "error" in entry]
    answers = [_shown_answer(entry) for entry in good]
    again = [entry for entry in good if entry["second_look"]]
    again.sort(key=lambda entry: (-len(entry["second_look"]), _shown_answer(entry)["prediction"]["probability"]))
    unsure = sorted(good, key=lambda entry: _shown_answer(entry)["prediction"]["probability"])[:_NOTABLE]
    stretch = bool(settings["stretch"])

    # Names as short as they can be and still differ: without the folder that all of them share.
    shared = os.path.commonpath([Path(entry["file"]).absolute().parent for entry in good]) if good else ""

    def cards(entries: Sequence[dict[str, Any]]) -> list[Card]:
        names = [os.path.relpath(entry["file"], shared) for entry in entries]
        return [_card(output, model, entry, name, stretch) for entry, name in zip(entries, names, strict=True)]

    odd, again = again, again[:_NOTABLE]
    shown = {entry["file"] for entry in again}
    others = [entry for entry in good if entry["file"] not in shown]
    some = f"The first {_SHOWN} of {len(others)}; all are in the folder pictures." if len(others) > _SHOWN else ""
    agnostic = bool(good) and good[0]["map"]["class_agnostic"]
    summary = f"{len(good)} image{'' if len(good) == 1 else 's'} explained by '{settings['method']}'. "
    if agnostic:
        summary += "The map is class-agnostic: it says where the network looked, not which class a place speaks for."
    figures = [Figure(str(len(good)), "images explained")]
    if bad:
        figures.append(Figure(str(len(bad)), "left out", "they cannot be read"))
    if good:
        mean = float(np.mean([answer["prediction"]["probability"] for answer in answers]))
        figures.append(Figure(percent(mean), "mean confidence", "the network's own, not its accuracy"))
        reasons = Counter(flag["flag"] for entry in odd for flag in entry["second_look"])
        figures.append(Figure(str(len(odd)), "worth a second look", counted(reasons)))
    text = "A flag is no verdict: it says what is odd about a single prediction. The reason stands under each picture."
    if len(odd) > len(again):
        text += f" The {len(again)} of {len(odd)} with the most reasons, then the least confidence."
    blocks: list[Block] = [
        Gallery("Worth a second look", cards(again), text),
        Gallery("Least certain", cards(unsure) if len(good) > 2 * _NOTABLE else []),
        Gallery("Other images" if again else "Images", cards(others[:_SHOWN]), some),
        TableBlock("Left out", ("file", "why"), [[entry["file"], entry["error"]] for entry in bad]),
        Facts("Record", _facts(run, model, good, settings)),
    ]
    return write_report(
        output / "report.html",
        "What the classifier saw",
        summary,
        blocks,
        figures=figures,
        alarms=[text for text in (note, alarm) if text],
        footer="Made by attention-branch. The maps are in the folder maps, each image's record in predictions.jsonl.",
    )


def counted(flags: Mapping[str, int]) -> str:
    """Return the reasons with their counts: 'branches disagree: 2, map diffuse: 1'."""
    return ", ".join(f"{name}: {flags[flag]}" for flag, name in FLAGS.items() if flags.get(flag))


def _shown_answer(entry: dict[str, Any]) -> dict[str, Any]:
    """Return the answer that stands beside the map: the only one, or that of the map's head."""
    if "heads" not in entry:
        return entry
    return entry["heads"][entry["map"]["head"] or next(iter(entry["heads"]))]


def _card(output: Path, model: Any, entry: dict[str, Any], name: str, stretch: bool) -> Card:
    answer = _shown_answer(entry)
    best = answer["prediction"]
    others = [f"{item['class']} ({percent(item['probability'])})" for item in answer["top"][1:3]]
    lines = [("file", name)]
    if others:
        lines.append(("then", ", ".join(others)))
    second = answer["attention_branch"]
    if second is not None:
        lines.append(("attention branch", f"{second['class']}, {percent(second['probability'])}"))
    shown = entry["map"]
    if shown["target"] is not None:
        lines.append(("map for", shown["target"]["class"]))
    lines += [("look again" if not row else "and", flag["why"]) for row, flag in enumerate(entry["second_look"])]
    return Card(
        model.preprocessing.image(open_image(entry["file"])),
        np.load(output / shown["file"], allow_pickle=False),
        f"{best['class']}, {percent(best['probability'])}",
        lines,
        "unsure" if entry["second_look"] else "",
        tuple(shown["value_range"]) if shown["value_range"] else None,
        stretch,
    )


def _facts(run: str, model: Any, good: Sequence[dict[str, Any]], settings: dict[str, Any]) -> list[tuple[str, str]]:
    items = [("model", run), ("model SHA-256", settings["model_sha256"]), ("method", settings["method"])]
    if good:
        items.append(("map from", good[0]["map"]["layer"]))
        items.append(("map size", f"{good[0]['map']['height']} x {good[0]['map']['width']}, shown bilinear"))
    items.append(
        ("preprocessing", ", ".join(f"{name} {value}" for name, value in model.preprocessing.to_dict().items()))
    )
    items += [(f"{name.replace('_', '-')} version", value) for name, value in settings["versions"].items()]
    return [*items, ("written", now())]


def now() -> str:
    """Return the time in UTC as ISO 8601, to the second."""
    return datetime.now(UTC).isoformat(timespec="seconds")
