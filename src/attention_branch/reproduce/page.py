"""The tables' page: what the measurements say in plain words, every study's arms, and the published numbers."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from attention_branch.report.page import Block, write_report
from attention_branch.report.statements import Cell, Records, Sheet, Statements
from attention_branch.reproduce.arms import ARMS
from attention_branch.reproduce.distraction_tables import distraction_sheets
from attention_branch.reproduce.findings import statements
from attention_branch.reproduce.groups import Group
from attention_branch.reproduce.published import TABLES
from attention_branch.reproduce.results import studies, table_rows
from attention_branch.reproduce.show import mark, notes, several_machines, short_reason, spread, variant

_COMPARED = {"plain": "less plain", "none": "less none", "wider-multiply-adds": "less same cost"}


def write_tables_page(path: str | Path, groups: Sequence[Group]) -> Path:
    """Write the page as one file that opens without a network."""
    found = studies(groups)
    whole = [study for study in found if not study["smoke_test"]]
    smoke = [study for study in found if study["smoke_test"]]
    rows = table_rows(groups)
    blocks: list[Block] = [
        Statements("What the measurements say", [(_name(study), statements(study)) for study in whole])
    ]
    for study in whole:
        blocks += [_arms(study), *distraction_sheets(study, _name(study))]
    blocks += [_table(name, title, [row for row in rows if row["table"] == name]) for name, title in TABLES.items()]
    for study in smoke:
        blocks += [_arms(study), *distraction_sheets(study, _name(study))]
    blocks.append(Records("How it was run", [(_name(study), _facts(study)) for study in found]))
    runs = sum(len(group.records) for group in groups)
    return write_report(
        path,
        "The paper's tables, run anew",
        f"{runs} finished runs. Every figure is the last epoch's on the test set, mean and standard deviation over "
        "seeds; no epoch was chosen on test pictures. The authors' own numbers on CIFAR are the best epoch on the "
        "test set, one seed; what that would have said of our runs stands apart in grey. Nothing is corrected for the "
        "number of comparisons.",
        blocks,
        footer="Made by attention-branch. One file, nothing is loaded from the network.",
    )


def _name(study: dict[str, Any]) -> str:
    stands = f" (in {study['stands_for']}'s place)" if study["stands_for"] else ""
    smoke = "Smoke test: " if study["smoke_test"] else ""
    return f"{smoke}{study['network']} on {study['data']}{stands}, {study['protocol']}"


def _arms(study: dict[str, Any]) -> Sheet:
    rows = []
    for line in study["arms"]:
        seeds = " ".join(f"{error:.2f}" for error in line["errors"])
        cells = [
            Cell(spread(line["last"], short=True), seeds + _won(line)),
            *[_difference(line["less"].get(name)) for name in _COMPARED],
            Cell(spread(line["attention_branch"], short=True)),
            Cell("-" if line["map_on_object"] is None else f"{line['map_on_object']:.1f} %", _beside_map(line)),
            Cell(spread(line["best_on_test"], short=True), "", "quiet"),
            Cell(f"{line['multiply_adds'] / 1e6:,.1f} M", f"{line['parameters'] / 1e6:.3f} M"),
        ]
        rows.append((line["arm"], ARMS[line["arm"]].title, cells))
    count = max(len(line["seeds"]) for line in study["arms"])
    warning = "Shortened: it shows that the arms run, and is no result. " if study["smoke_test"] else ""
    return Sheet(
        _name(study),
        (
            "error (%)", *_COMPARED.values(), "branch alone", "map on object", "best on test", "cost",
        ),
        rows,
        text=f"{warning}{study['error'].capitalize()} on {study['images']['test']:,} test images after "
        f"{study['images']['train']:,} training images, after the last epoch; {count} seed{'s' * (count != 1)}, each "
        "below the mean. Differences: less the plain backbone, less deep supervision alone (none), less a wider plain "
        "network of the same multiply-adds; negative is better.",
        note="Differences are paired by seed; below each stands its 95 % interval (Student's t over seeds). Green: "
        "clearly fewer errors, red: clearly more. Nothing is corrected for the number of comparisons. Cost: "
        "multiply-adds of one image, and parameters below. Map on object: test images whose map has its maximum on the "
        "object, or within 15/224 of the side; a map that knew nothing would hit about what objects cover.",
        quiet=frozenset({"best on test"}),
    )  # fmt: skip


def _difference(found: dict[str, Any] | None) -> Cell:
    if found is None:
        return Cell("")
    interval = "" if found["interval"] is None else f"{found['interval'][0]:+.2f} to {found['interval'][1]:+.2f}"
    kind = ("right" if found["mean"] < 0 else "wrong") if found["clear"] else ""
    return Cell(f"{found['mean']:+.2f}", interval, kind)


def _won(line: dict[str, Any]) -> str:
    if line["heads_won"] is None:
        return ""
    return f"\nbetter than plain on\n{spread(line['heads_won'], short=True)} of {line['heads']} heads"


def _beside_map(line: dict[str, Any]) -> str:
    area = line["object_area"]
    return "\n".join(filter(None, ["" if area is None else f"objects cover {area:.0f} %", _alarms(line)]))


def _alarms(line: dict[str, Any]) -> str:
    if line["arm"] == "constant":
        return ""  # as it was built
    return f"{line['map_alarms']} of {len(line['seeds'])} maps collapsed" if line["map_alarms"] else ""


def _table(name: str, title: str, rows: list[dict[str, Any]]) -> Sheet:
    shown = []
    for row in rows:
        ours = row["ours"]
        if ours:
            several = several_machines(ours["machines"])
            cells = [
                Cell(row["printed"]), Cell(spread(ours), f"{ours['data']}\n{ours['protocol']}{several}"),
                _difference(row["less_plain"]),
                Cell(spread(ours["attention_branch"], short=True)),
                Cell(spread(ours["best_on_test"], short=True), "", "quiet"),
            ]  # fmt: skip
        else:
            cells = [Cell(row["printed"]), Cell("-"), Cell("-"), Cell("-"), Cell("-", "", "quiet")]
        heading = f"{row['row']}{variant(row)}, {row['column']}{mark(row)}"
        shown.append((heading, row["network"] if ours else "not run", cells))
    reasons = dict.fromkeys(short_reason(row) for row in rows if row["reason"])
    note = "* the authors' own run of a baseline. Where the data is a stand-in its name stands below our number, and "
    note += "the two cannot be compared. Less plain: points of error less the same network without a branch."
    note += "".join(f" {sentence}" for sentence in (*notes(rows), *reasons))
    return Sheet(
        title,
        ("published", "ours, last epoch", "less plain", "branch alone", "best on test"),
        shown,
        note=note,
        quiet=frozenset({"best on test"}),
    )


def _facts(study: dict[str, Any]) -> list[tuple[str, str]]:
    images = ", ".join(f"{count:,} {split}" for split, count in study["images"].items())
    several = [("machines", ", ".join(study["machines"]))] if study["machines"][1:] else []
    return [
        ("data", f"{study['data']}: {images}"),
        ("protocol", study["protocol"]),
        *several,
        ("seeds", _seeds(study["arms"])),
        *[(name, str(value)) for name, value in {**study["hardware"], **study["versions"]}.items()],
    ]


def _seeds(lines: list[dict[str, Any]]) -> str:
    """Return the seeds of all arms, by arm where they differ, as where a budget ended."""
    by_seeds: dict[str, list[str]] = {}
    for line in lines:
        by_seeds.setdefault(", ".join(map(str, line["seeds"])), []).append(line["arm"])
    if len(by_seeds) == 1:
        return next(iter(by_seeds))
    return "; ".join(f"{seeds} ({', '.join(arms)})" for seeds, arms in by_seeds.items())
