"""Find the pictures that cannot be read before training begins, so that no epoch stops at one."""

import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import numpy as np
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from attention_branch.data.cache import Stamp, Verdicts
from attention_branch.data.dataset import DataSet, Source
from attention_branch.errors import UserError

Result = TypeVar("Result")

# Pillow decodes outside the interpreter's lock, so threads are enough.
_THREADS = min(16, os.cpu_count() or 1)
_AT_ONCE = 1024
# Work that is over sooner than a reader can see it gets no progress bar.
_FEW = 500


def in_threads(
    work: Callable[[int], Result], rows: Sequence[int] | np.ndarray, title: str, progress: bool
) -> Iterator[tuple[int, Result]]:
    """Yield (row, work(row)) in order, computed by threads, with a bar on standard error for long work."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    console = Console(stderr=True)
    shown = progress and console.is_terminal and len(rows) > _FEW
    with (
        Progress(*columns, console=console, transient=True, disable=not shown) as bar,
        ThreadPoolExecutor(_THREADS) as threads,
    ):
        task = bar.add_task(title, total=len(rows))
        for begin in range(0, len(rows), _AT_ONCE):
            some = [int(row) for row in rows[begin : begin + _AT_ONCE]]
            for row, result in zip(some, threads.map(work, some), strict=True):
                yield row, result
                bar.advance(task)


def problem_of(source: Source, row: int) -> str | None:
    """Decode one picture and return what is wrong with it, or None."""
    try:
        source.image(row)
    except UserError as problem:
        return str(problem)
    return None


def find_broken(source: Source, rows: np.ndarray, progress: bool = True) -> dict[int, str]:
    """Decode every picture not known from before; return {row: what is wrong} of the broken ones."""
    if source.decoded or not source.decode_first:
        return {}
    stamps = {int(row): stamp for row in rows if (stamp := source.stamp(int(row))) is not None}
    verdicts = Verdicts()
    known = verdicts.look_up(list(stamps.values()))
    problems = {row: problem for row, stamp in stamps.items() if (problem := known.get(stamp[0]))}
    unknown = [int(row) for row in rows if int(row) not in stamps or stamps[int(row)][0] not in known]
    fresh: list[tuple[Stamp, str | None]] = []
    for row, problem in in_threads(lambda row: problem_of(source, row), unknown, "Checking pictures", progress):
        if problem is not None:
            problems[row] = problem
        if row in stamps:
            fresh.append((stamps[row], problem))
    if fresh:
        verdicts.remember(fresh)
    return problems


def leave_out_broken(data: DataSet, progress: bool = True) -> None:
    """Take the pictures that cannot be decoded out of every split and list them in `data.left_out`."""
    for name, images in data.splits.items():
        problems = find_broken(images.source, images.rows, progress)
        if not problems:
            continue
        keep = [place for place, row in enumerate(images.rows) if int(row) not in problems]
        data.left_out += [(images.source.id(row), problem) for row, problem in sorted(problems.items())]
        if not keep:
            first = next(iter(problems.values())).rstrip(".")
            raise UserError(
                f"None of the {len(images)} pictures for {name} in '{data.spec}' can be read (the first: {first}); "
                "see all of them with 'abn check'."
            )
        setattr(data, name, images.subset(keep))
