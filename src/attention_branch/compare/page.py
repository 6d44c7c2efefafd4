"""The page of a comparison: what was found in plain words first, then pictures, tables, curves, costs and protocol."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from attention_branch.compare.collect import Work
from attention_branch.compare.comparison import Comparison
from attention_branch.compare.findings import findings, headline
from attention_branch.compare.measures import MEASURES
from attention_branch.compare.pictures import Pictures, first_of_each_class
from attention_branch.compare.tables import costs, curves, differences, drive, likeness, metrics_sheet
from attention_branch.report.page import Block, TableBlock, write_report
from attention_branch.report.statements import Records, Statements

_GRID_ROWS = 8


def write_comparison_page(path: str | Path, work: Work, comparison: Comparison) -> Path:
    """Write report.html of a comparison: one file that opens without a network."""
    draw = Pictures(work, comparison)
    blocks: list[Block] = [
        Statements("In plain words", findings(comparison)),
        draw.grid(
            "The maps side by side",
            first_of_each_class(comparison, _GRID_ROWS),
            f"{min(_GRID_ROWS, comparison.n)} of the {comparison.n} images, chosen by a rule and not by eye: the "
            "subset's first of each class as the classes come up, then the second. A map without a scale of its own is "
            "stretched from its minimum to its maximum in every picture, so that its colours show places and not "
            "strengths.",
        ),
        metrics_sheet(comparison),
        *differences(comparison),
        curves(comparison),
        *drive(comparison),
        costs(comparison),
        *draw.galleries(),
        likeness(comparison),
        _left_out(comparison),
        _protocol(comparison),
    ]
    title, summary, figures, alarms = headline(comparison)
    return write_report(
        path,
        title,
        summary,
        blocks,
        figures=figures,
        alarms=[*alarms, *comparison.notes],
        footer="Made by attention-branch. One file, nothing is loaded from the network. The values of every image are "
        "in values.npz, all numbers of this page in comparison.json.",
    )


def _left_out(comparison: Comparison) -> TableBlock:
    rows = [
        [kind.removesuffix("s"), name, reason]
        for kind, found in comparison.left_out.items()
        for name, reason in found.items()
    ]
    return TableBlock("Left out", ("", "name", "why"), rows)


def _protocol(comparison: Comparison) -> Records:
    """Return how everything was measured: the images, the maps, every metric, the network and the versions."""
    record = dict(comparison.record)
    versions, preprocessing, hardware = (record.pop(name, {}) for name in ("versions", "preprocessing", "hardware"))
    protocols = comparison.protocols
    digest = next((found.get("images_sha256") for found in protocols.values()), None)
    run = [*_items(record), ("sha256 of the images' pixels", str(digest))]
    lists = [("Network, images and their fingerprint", run), ("Preprocessing", _items(preprocessing))]
    lists.append(("Where each map comes from", _items(comparison.layers)))
    for metric in comparison.metrics:
        counts = {
            f"counted, {method}": ", ".join(
                f"{name.replace('_', ' ')} {count}" for name, count in result.counts.items()
            )
            for method, by_metric in comparison.results.items()
            if any((result := by_metric[metric]).counts.values())
        }
        lists.append((f"{MEASURES[metric].title} ({metric})", _items(protocols[metric] | counts)))
    lists.append(("Versions and hardware", _items({**versions, **hardware})))
    return Records(
        "How it was measured",
        lists,
        text="Two numbers can be compared only where all of this is the same.",
    )


def _items(values: Mapping[str, Any]) -> list[tuple[str, str]]:
    return [(name.replace("_", " "), str(value)) for name, value in values.items() if value is not None]
