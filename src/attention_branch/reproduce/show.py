"""`abn reproduce show`: published numbers beside ours in a terminal, and what the arms say."""

from collections.abc import Sequence
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

from attention_branch.reproduce.distraction_tables import print_distraction
from attention_branch.reproduce.groups import Group
from attention_branch.reproduce.published import TABLES
from attention_branch.reproduce.results import studies, table_rows

_PAIRED = (
    "points of error less the same network without a branch, paired by seed; ! where the 95 % interval (Student's t) "
    "excludes zero. Nothing is corrected for the number of comparisons."
)


def print_tables(groups: Sequence[Group], console: Console) -> None:
    """Print every published number with ours beside it, then every study's arms, then the smoke tests."""
    rows = table_rows(groups)
    for name, title in TABLES.items():
        _print_table(title, [row for row in rows if row["table"] == name], console)
    found = studies(groups)
    for smoke in (False, True):
        for study in found:
            if study["smoke_test"] is smoke:
                _print_study(study, console)


def _print_table(title: str, rows: list[dict[str, Any]], console: Console) -> None:
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, collapse_padding=True)
    for heading, side in (
        ("row", "left"), ("column", "left"), ("published", "right"), ("ours, last epoch", "right"),
        ("less plain", "right"), ("best on test", "right"), ("measured on", "left"),
    ):  # fmt: skip
        names = heading in ("row", "column", "published")
        word = max(len(part) for part in heading.split())
        table.add_column(heading, justify=side, overflow="fold", no_wrap=names, min_width=word)  # type: ignore[arg-type]
    for row in rows:
        ours = row["ours"]
        cells = [f"{row['row']}{variant(row)}{mark(row)}", row["column"], row["printed"]]
        if ours:
            cells += [
                spread(ours),
                _less(row["less_plain"], with_p=True),
                spread(ours["best_on_test"], short=True),
                f"{row['network']}, {ours['data']}, {ours['protocol']}{several_machines(ours['machines'])}",
            ]
        else:
            cells += ["-", "-", "-", ""]
        table.add_row(*cells)
    console.print(table)
    if any("*" in row["printed"] for row in rows):
        console.print("  * the authors' own run of a baseline", highlight=False, markup=False)
    if any(row["less_plain"] for row in rows):
        console.print(f"  less plain: {_PAIRED}", highlight=False, markup=False, soft_wrap=True)
    for note in notes(rows):
        console.print(f"  {note}", highlight=False, markup=False, soft_wrap=True)
    for reason in dict.fromkeys(short_reason(row) for row in rows if row["reason"]):
        console.print(f"  {reason}", highlight=False, markup=False, soft_wrap=True)


def _print_study(study: dict[str, Any], console: Console) -> None:
    kind = "Smoke test, no result: " if study["smoke_test"] else ""
    stands = f" (in {study['stands_for']}'s place)" if study["stands_for"] else ""
    title = f"{kind}{study['network']} on {study['data']}{stands}; {study['protocol']}; {study['error']}"
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, collapse_padding=True)
    for heading in ("arm", "cost", "error", "n", "less\nplain", "less\nnone", "less\nwider"):
        table.add_column(heading, justify="left" if heading == "arm" else "right", no_wrap=True)
    for line in study["arms"]:
        compared = [_less(line["less"].get(name)) for name in ("plain", "none", "wider-multiply-adds")]
        last = spread(line["last"], short=True)
        table.add_row(line["arm"], f"{line['multiply_adds'] / 1e6:,.1f} M", last, str(line["last"]["n"]), *compared)
    console.print(table)
    if study["machines"][1:]:
        console.print(f"  Runs{several_machines(study['machines'])}.", highlight=False, markup=False, soft_wrap=True)
    _say_columns(console)
    print_distraction(study, console)


def _say_columns(console: Console) -> None:
    console.print(
        "  error: last epoch. cost: multiply-adds. The last three: points of error less those of the plain backbone, "
        "of deep supervision alone, of a wider plain network of the same cost; negative is better, paired by seed, ! "
        "where the 95 % interval (Student's t, not corrected for several comparisons) excludes zero.",
        highlight=False,
    )


def variant(row: dict[str, Any]) -> str:
    """Return what tells a row's network from the authors' own, in brackets; nothing for their own."""
    if row["authors_depth"]:
        return ""
    return " (sigmoid map)" if row["row"] == "SENet+ABN" else " (true depth)"


def mark(row: dict[str, Any]) -> str:
    """Return the sign behind a row that has a footnote."""
    return " †" if row["note"] else ""


def notes(rows: Sequence[dict[str, Any]]) -> list[str]:
    """Return a table's footnotes, each once, with the sign of `mark`."""
    return [f"† {note}" for note in dict.fromkeys(row["note"] for row in rows if row["note"])]


def several_machines(machines: Sequence[str]) -> str:
    """Return on which machines runs were made where they are of several, as the end of a sentence."""
    return f" on several machines: {', '.join(machines)}" if len(machines) > 1 else ""


def short_reason(row: dict[str, Any]) -> str:
    """Return why a row is open, without the cell's name, so that rows of one reason share it; a sentence."""
    text = row["reason"].partition("). ")[2] or row["reason"]
    return f"Not run. {text[0].upper()}{text[1:].rstrip('.')}."


def spread(summary: dict[str, Any] | None, *, short: bool = False) -> str:
    """Return mean +- standard deviation over seeds, with their number unless `short`."""
    if summary is None:
        return "-"
    text = f"{summary['mean']:.2f}"
    if summary["std"] is not None:
        text += f" ± {summary['std']:.2f}"
    return text if short else f"{text} (n={summary['n']})"


def _less(found: dict[str, Any] | None, *, with_p: bool = False) -> str:
    if found is None:
        return "-"
    p_value = f" p={found['p_value']:.3f}" if with_p and found["p_value"] is not None else ""
    return f"{found['mean']:+.2f}{' !' if found['clear'] else ''}{p_value}"
