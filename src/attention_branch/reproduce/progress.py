"""What is seen of the runs while they go on: a bar on a terminal, and a line for each run that ends."""

import time
from collections.abc import Sequence
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, TextColumn, TimeElapsedColumn
from rich.progress import Progress as Bars

from attention_branch.reproduce.plan import Job
from attention_branch.reproduce.worker import Report

_QUIET = 60.0
"""Seconds between two lines where there is no terminal to draw a bar on."""


class Progress:
    """Counts epochs over all runs."""

    def __init__(self, console: Console, jobs: Sequence[Job]) -> None:
        self.console = console
        self.total = sum(job.config.epochs for job in jobs)
        self.epochs: dict[str, int] = {}
        self.begun_at: dict[str, int] = {}
        self.finished: set[str] = set()
        self.failed: dict[str, str] = {}
        self.short: dict[str, float] = {}
        self.began = self.said = time.monotonic()
        self.bars = Bars(
            TextColumn("{task.description}"), BarColumn(), TextColumn("{task.completed}/{task.total} epochs"),
            TimeElapsedColumn(), TextColumn("{task.fields[left]}"), console=console, disable=not console.is_terminal,
        )  # fmt: skip
        self.task = self.bars.add_task("runs", total=self.total, left="")

    def __enter__(self) -> Self:
        self.bars.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, problem: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.bars.stop()

    @property
    def advanced(self) -> int:
        """Epochs done since the beginning, over all runs."""
        return sum(epoch - self.begun_at.get(name, 0) for name, epoch in self.epochs.items())

    def say(self, text: str) -> None:
        """Print a line above the bar."""
        self.console.print(text, highlight=False, markup=False, soft_wrap=True)

    def take(self, report: Report) -> None:
        """Take in what a worker says."""
        if report.kind == "begun":
            self.begun_at.setdefault(report.name, report.epoch)
        self.epochs[report.name] = max(report.epoch, self.epochs.get(report.name, 0))
        if report.kind == "finished":
            self.finished.add(report.name)
            self.say(f"finished  {report.name}: {report.text}")
        elif report.kind == "failed":
            self.failed[report.name] = report.text
            self.say(f"failed    {report.name}: {report.text}")
        elif report.kind == "stopped":
            self.say(f"kept      {report.name}: {report.epoch} of {report.epochs} epochs done")
        elif report.kind == "short":
            self.short[report.name] = report.seconds or 0.0
        self._show()

    def _show(self) -> None:
        done = sum(self.epochs.values())
        left = ""
        if self.advanced:
            seconds = (time.monotonic() - self.began) / self.advanced * (self.total - done)
            left = f"{seconds / 60:.0f} min left" if seconds < 7200 else f"{seconds / 3600:.1f} h left"
        self.bars.update(self.task, completed=done, left=left)
        now = time.monotonic()
        if not self.console.is_terminal and now - self.said > _QUIET:
            self.said = now
            self.say(f"{done} of {self.total} epochs, {left or 'the first is under way'}")
