"""What distractors cost each arm of a study, and where its maps lie, as tables for the terminal and for the page."""

from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

from attention_branch.report.statements import Cell, Sheet
from attention_branch.reproduce.arms import ARMS
from attention_branch.reproduce.distraction_results import COMPARED

_COST = ("with", "without", "cost", *(f"less {name.replace('-multiply-adds', '')}" for name in COMPARED))
_MAPS = ("on object", "on distractor", "density object", "density distractor", "wrong, distractor")
_COST_NOTE = (
    "with, without: error (%) on the test pictures with distractors and on the same pictures without (of mosaics, grey "
    "in their place, which no network has seen in training). cost: the first less the second. less ...: its cost less "
    "that of another arm, paired by seed; negative: it loses less; ! where the 95 % interval (Student's t, not "
    "corrected for several comparisons) excludes zero."
)
_WIDE = 120
"""Columns from which on a terminal has room for the spread over seeds."""
_NARROW_NOTE = "Means over seeds; their spread is in a wider terminal (120 columns), in the page and in --json."
_MAPS_NOTE = (
    "on object, on distractor: share (%) of test pictures whose map has its maximum there, or nearer to it than to the "
    "other and within 15/224 of the side (the study's other table counts what is near the object, whatever else is). "
    "density: share of the map's positive part there, by the share that a constant map has there. wrong, distractor: "
    "maximum on the distractor, among wrong answers. The maps of a class are those of the network's answer; random, "
    "center and constant know nothing of the picture."
)


def print_distraction(study: dict[str, Any], console: Console) -> None:
    """Print a study's two tables of distractors; nothing where its runs know of none."""
    lines = _lines(study)
    if not lines:
        return
    wide = console.width >= _WIDE
    costs, maps = _headed("arm", (*_COST, *_other_tests(lines))), _headed("arm, its maps", _MAPS)
    for line in lines:
        costs.add_row(line["arm"], *[_text(cell, wide) for cell in _cost_cells(line, lines)])
        maps.add_row(line["arm"])
        for method, found in _own_maps(line):
            maps.add_row(f"  {method}", *[_text(cell, wide) for cell in _map_cells(found)])
    for method, found in _controls(lines):
        maps.add_row(method, *[_text(cell, wide) for cell in _map_cells(found)])
    for table, note in ((costs, _COST_NOTE), (maps, _MAPS_NOTE)):
        console.print(table)
        said = note if wide else f"{note} {_NARROW_NOTE}"
        console.print(f"  {said}", highlight=False, markup=False, soft_wrap=True)


def distraction_sheets(study: dict[str, Any], name: str) -> list[Sheet]:
    """Return the same as tables of the page."""
    lines = _lines(study)
    if not lines:
        return []
    costs = [(line["arm"], ARMS[line["arm"]].title, _cost_cells(line, lines)) for line in lines]
    maps = [(line["arm"], method, _map_cells(found)) for line in lines for method, found in _own_maps(line)]
    maps += [(method, "knows nothing of the picture", _map_cells(found)) for method, found in _controls(lines)]
    return [
        Sheet(f"{name}: what distractors cost", (*_COST, *_other_tests(lines)), costs, note=_COST_NOTE),
        Sheet(f"{name}: where the maps lie", _MAPS, maps, note=_MAPS_NOTE),
    ]


def _lines(study: dict[str, Any]) -> list[dict[str, Any]]:
    return [line for line in study["arms"] if line["distraction"]]


def _other_tests(lines: list[dict[str, Any]]) -> list[str]:
    return [name for name in lines[0]["distraction"]["tests"] if name != "without"]


def _own_maps(line: dict[str, Any]) -> list[tuple[str, dict[str, Any]]]:
    return [(method, found) for method, found in line["distraction"]["maps"].items() if found["own"]]


def _controls(lines: list[dict[str, Any]]) -> list[tuple[str, dict[str, Any]]]:
    """Return the maps that know nothing, which are the same in every arm."""
    return [(method, found) for method, found in lines[0]["distraction"]["maps"].items() if not found["own"]]


def _cost_cells(line: dict[str, Any], lines: list[dict[str, Any]]) -> list[Cell]:
    found = line["distraction"]
    cells = [_cell(one) for one in (line["last"], found["tests"].get("without"), found["cost"])]
    cells += [_difference(found["less_cost"].get(name)) for name in COMPARED]
    return cells + [_cell(found["tests"].get(name)) for name in _other_tests(lines)]


def _map_cells(found: dict[str, Any]) -> list[Cell]:
    names = ("on_object", "on_distractor", "density_on_object", "density_on_distractor", "on_distractor_where_wrong")
    return [_cell(found[name], 2 if "density" in name else 1) for name in names]


def _cell(summary: dict[str, Any] | None, digits: int = 2) -> Cell:
    if summary is None:
        return Cell("-")
    spread = f" ± {summary['std']:.{digits}f}" if summary["std"] is not None else ""
    return Cell(f"{summary['mean']:.{digits}f}{spread}")


def _difference(found: dict[str, Any] | None) -> Cell:
    if found is None:
        return Cell("-")
    interval = "" if found["interval"] is None else f"{found['interval'][0]:+.2f} to {found['interval'][1]:+.2f}"
    kind = ("right" if found["mean"] < 0 else "wrong") if found["clear"] else ""
    return Cell(f"{found['mean']:+.2f}", interval, kind)


def _text(cell: Cell, wide: bool) -> str:
    text = cell.text if wide else cell.text.partition(" ± ")[0]
    return f"{text} !" if cell.kind else text


def _headed(first: str, headings: tuple[str, ...]) -> Table:
    table = Table(box=box.SIMPLE_HEAD, collapse_padding=True)
    table.add_column(first, no_wrap=True)
    for heading in headings:
        table.add_column(heading.replace(" ", "\n"), justify="right", no_wrap=True)
    return table
