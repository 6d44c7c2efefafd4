"""A process that works off runs, several at a time where they share one GPU."""

import multiprocessing
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass
from queue import Empty
from typing import Any

import torch

from attention_branch.errors import UserError
from attention_branch.reproduce.arrays import Arrays
from attention_branch.reproduce.plan import Job
from attention_branch.reproduce.small_run import SmallRun

STEPS_AT_ONCE = 8
"""Steps on a GPU of one run before the next one's turn; between them a stop is noticed. A CPU takes one."""


@dataclass(frozen=True)
class Report:
    """What a worker says of a run: `begun`, `epoch`, `finished`, `stopped` (kept for later), `short` or `failed`."""

    kind: str
    name: str
    epoch: int = 0
    epochs: int = 0
    seconds: float | None = None
    text: str = ""


@dataclass(frozen=True)
class Circumstances:
    """Where and how long a worker works: `at_once` runs, until `deadline`, a `time.time()` (None without a budget).

    `sharing` runs at most share the machine, those of other workers among them.
    """

    device: str
    threads: int
    at_once: int
    deadline: float | None
    sharing: int = 1

    def over(self, seconds: float = 0.0) -> bool:
        """Tell whether the budget will be used up in so many seconds."""
        return self.deadline is not None and time.time() + seconds > self.deadline


def run_worker(jobs: Any, reports: Any, stop: Any, arrays: dict[str, Arrays], circumstances: Circumstances) -> None:
    """Do `work` as a process of its own, which whoever started it stops in good order, and Ctrl-C does not."""
    for stop_signal in (signal.SIGINT, signal.SIGTERM):
        signal.signal(stop_signal, signal.SIG_IGN)
    torch.set_num_threads(circumstances.threads)
    torch.set_float32_matmul_precision("high")
    if circumstances.device.startswith("cuda"):
        torch.backends.cudnn.benchmark = True
    work(jobs, reports, stop, arrays, circumstances)


def work(jobs: Any, reports: Any, stop: Any, arrays: dict[str, Arrays], circumstances: Circumstances) -> None:
    """Take jobs from a queue until it is empty, the deadline comes or `stop` is set; report on another queue."""
    active: list[SmallRun] = []
    exhausted = False
    while active or not exhausted:
        parent = multiprocessing.parent_process()
        if parent is not None and not parent.is_alive():
            return  # nobody is there to stop this process or to go on with its runs
        exhausted = exhausted or stop.is_set() or circumstances.over()
        while not exhausted and len(active) < circumstances.at_once:
            try:
                job = jobs.get(timeout=0.5)
            except Empty:
                exhausted = True
                break
            begun = guarded(reports, job, _begin, job, arrays, reports, circumstances)
            if begun is not None:
                active.append(begun)
        for run in list(active):
            if not guarded(reports, run.job, _turn, run, reports, stop, circumstances):
                active.remove(run)


def guarded(reports: Any, job: Job, act: Callable[..., Any], *arguments: Any) -> Any:
    """Return what `act` returns; a fault becomes a report of that run and None, and the other runs go on."""
    try:
        return act(*arguments)
    except UserError as problem:
        reports.put(Report("failed", job.name, text=str(problem)))
    except torch.OutOfMemoryError:
        reports.put(Report("failed", job.name, text="The device's memory is full; give a smaller --at-once."))
    except Exception as problem:  # one run's fault must not end the others
        reason = f"{type(problem).__name__}: {problem}".splitlines()[0]
        reports.put(Report("failed", job.name, text=f"Unexpected fault ({reason[:300]})."))
    return None


def _begin(job: Job, arrays: dict[str, Arrays], reports: Any, circumstances: Circumstances) -> SmallRun:
    place = {"threads": circumstances.threads, "at_once": circumstances.sharing}
    run = SmallRun(job, arrays[job.origin.name], circumstances.device, **place)
    reports.put(Report("begun", job.name, run.trainer.epoch, job.config.epochs))
    return run


def _turn(run: SmallRun, reports: Any, stop: Any, circumstances: Circumstances) -> bool:
    """Take a run's next steps; return whether it goes on."""
    if stop.is_set():
        # Steps of an unfinished epoch are lost; the epochs before them are kept.
        if run.trainer.at_epoch_end:
            run.save()
        reports.put(Report("stopped", run.job.name, run.trainer.epoch, run.job.config.epochs))
        return False
    ended = run.advance(1 if circumstances.device == "cpu" else STEPS_AT_ONCE)
    name, epochs = run.job.name, run.job.config.epochs
    if run.done:
        error = run.record["last"]["test_error"]
        reports.put(Report("finished", name, epochs, epochs, run.epoch_seconds, f"test error {error:.2%}"))
        return False
    if ended:
        reports.put(Report("epoch", name, run.trainer.epoch, epochs, run.epoch_seconds))
    if ended and circumstances.over(run.epoch_seconds or 0):
        run.save()
        reports.put(Report("stopped", name, run.trainer.epoch, epochs, run.epoch_seconds))
        return False
    if run.epoch_seconds is None:
        # Not one epoch has ended since the beginning, so nothing tells how long one takes but the steps so far.
        whole = run.expected_epoch_seconds(certain=not circumstances.over())
        if whole is not None and circumstances.over(run.began + whole - time.monotonic()):
            reports.put(Report("short", name, run.trainer.epoch, epochs, whole))
            return False
    return True
