"""The comparison as a terminal shows it: tables that fit 80 columns, and the summary in words."""

from collections.abc import Sequence

from rich import box
from rich.console import Console
from rich.table import Table

from attention_branch.compare.comparison import Comparison
from attention_branch.compare.findings import headline
from attention_branch.compare.measures import MEASURES
from attention_branch.explanations.methods import CONTROLS

_AT_ONCE = 4


def print_comparison(comparison: Comparison, console: Console) -> None:
    """Print every method's metrics, four at once; a star marks what is better than every other method for sure."""
    for note in comparison.notes:
        console.print(note, style="yellow", highlight=False)
    for found in comparison.left_out.values():
        for name, reason in found.items():
            console.print(f"{name} is left out: {reason}", style="yellow", highlight=False)
    console.print(comparison.images_text(), style="bold", highlight=False)
    for start in range(0, len(comparison.metrics), _AT_ONCE):
        console.print(_table(comparison, comparison.metrics[start : start + _AT_ONCE]))
    console.print("* better than every other method: each paired 95 % interval excludes zero, and p < 0.05")
    _, summary, _, alarms = headline(comparison)
    for text in (summary, *alarms):
        console.print(text, highlight=False)


def _table(comparison: Comparison, metrics: Sequence[str]) -> Table:
    table = Table(box=box.SIMPLE_HEAD)
    table.add_column("method", no_wrap=True)
    for metric in metrics:
        arrow = {True: " ↑", False: " ↓", None: ""}[MEASURES[metric].higher_is_better]
        # Words that are apart are broken between them.
        table.add_column(metric.replace("-", " ") + arrow, justify="right", overflow="fold")
    for method in comparison.methods:
        cells = []
        for metric in metrics:
            mark = "*" if comparison.best(metric) == method else ""
            cells.append(MEASURES[metric].text(comparison.results[method][metric].mean) + mark)
        table.add_row(f"control: {method}" if method in CONTROLS else method, *cells)
    return table
