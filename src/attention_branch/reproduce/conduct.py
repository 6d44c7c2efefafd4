"""Runs the cells there is data for: what is done is left, what is unfinished goes on, and the budget is kept."""

import multiprocessing
import shutil
import tempfile
import time
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from queue import Empty
from typing import Any

import torch
from rich.console import Console

from attention_branch.data import DataSet
from attention_branch.errors import UserError
from attention_branch.files import disk_error, held_alone, require_folder
from attention_branch.hardware import usable_cores
from attention_branch.reproduce import record as records
from attention_branch.reproduce.arrays import Arrays, preprocessing_of
from attention_branch.reproduce.cells import FIGURES, Cell, cells_for
from attention_branch.reproduce.estimate import estimate, estimate_large
from attention_branch.reproduce.figures import draw_figure
from attention_branch.reproduce.large_run import network_is_whole, run_folder, run_large, stop_gently
from attention_branch.reproduce.plan import LARGE, Job, Protocol, make_jobs, startable
from attention_branch.reproduce.progress import Progress
from attention_branch.reproduce.signals import deaf, stopped_in_order
from attention_branch.reproduce.sources import Origin, missing, open_origin, open_others, parse_data
from attention_branch.reproduce.worker import Circumstances, Report, run_worker

UNASKED = 3 * 3600.0
"""Seconds that are computed on a CPU without being asked twice."""


def reproduce(
    what: str,
    *,
    cells: Sequence[str] = (),
    seeds: Sequence[int] = (0, 1, 2),
    data: Sequence[str] = (),
    budget: float | None = None,
    resume: bool = False,
    out: str | Path = "runs/reproduce",
    protocol: Protocol | None = None,
    device: str = "cpu",
    at_once: int | None = None,
    keep_models: bool = False,
    console: Console | None = None,
) -> int:
    """Run a table's cells; return how many of the chosen runs are finished now.

    `cells` are patterns (all: none), `data` NAME=PATH pairs, `budget` minutes. `at_once` runs share the machine (None:
    one a core on a CPU, four on a GPU). Raises `UserError` for what cannot be run as asked, and while another call
    works in `out`; what was finished stays.
    """
    console = console or Console()
    protocol = protocol or Protocol()
    began = time.time()
    folder = require_folder(out)
    origins = parse_data(data)
    wanted, lacking = startable(cells_for(what), cells, protocol)
    runnable = _with_data(wanted, origins, console)
    roles = {origin.kind.role for origin, _ in runnable}
    if left := [cell.name for cell in lacking if cell.role in roles]:
        console.print(
            f"[yellow]Left out {len(left)} cells[/yellow] ({', '.join(left)}): the others start from pretrained "
            "weights, there are none of that width, and from scratch they could not be compared.",
            highlight=False,
        )
    if protocol.train_images is not None and any(origin.kind.role in LARGE for origin, _ in runnable):
        raise UserError(
            f"--train-images is for pictures that are kept in memory, not for {' or '.join(LARGE)}; leave it out, or "
            "choose other cells with --cells."
        )
    jobs: list[Job] = []
    figures: list[tuple[list[Job], DataSet]] = []
    arrays: dict[str, Arrays] = {}
    at_once = at_once or (usable_cores() if device == "cpu" else 4)
    held = ExitStack()
    try:
        held.enter_context(stopped_in_order())
        held.enter_context(held_alone(folder))
        for stale in folder.glob(".pixels-*"):
            shutil.rmtree(stale, ignore_errors=True)  # of a command that was killed; nobody else works here
        pixels = tempfile.TemporaryDirectory(prefix=".pixels-", dir=folder, ignore_cleanup_errors=True)
        temporary = Path(held.enter_context(pixels))
        for origin, mine in runnable:
            console.print(f"{origin.title}: reading the pictures ...", highlight=False)
            opened = open_origin(origin)
            _check_count(protocol, opened, origin)
            made = make_jobs(mine, origin, opened, protocol, list(seeds), folder, keep_models or what in FIGURES)
            if what in FIGURES or (what == "distractors" and keep_models):
                figures.append(([job for job in made if job.config.seed == min(seeds)], opened))
            todo = unfinished(made, resume)
            done = len(made) - len(todo)
            console.print(f"{origin.title}: {len(made)} runs, {done} of them finished already.", highlight=False)
            jobs += todo
            small = [job for job in todo if not job.large]
            if not small:
                continue
            preprocessing = preprocessing_of(small[0].config, opened)
            made_of = (opened, preprocessing, open_others(origin))
            arrays[origin.name] = Arrays(temporary / origin.name, opened).write(*made_of)
        # Every arm of a seed before the next seed, so that what a budget leaves can be compared.
        jobs.sort(key=lambda job: job.config.seed)
        if jobs:
            deadline = None if budget is None else began + 60 * budget
            _announce(jobs, arrays, device, at_once, budget, console)
            progress = Progress(console, jobs)
            with progress:
                ended = _work_off([job for job in jobs if not job.large], arrays, device, at_once, deadline, progress)
                if not ended.interrupted:
                    large = _work_off_large([job for job in jobs if job.large], device, deadline, progress)
                    ended = Ended(large.interrupted, ended.dead + large.dead)
            conclude(progress, jobs, ended, in_time=budget is None)
        for made, opened in figures:
            _draw(what, made, opened, folder, console)
    except OSError as problem:
        raise disk_error(problem, folder) from problem
    finally:
        held.close()
    return sum(_is_done(job, records.read(job.record)) for job in jobs)


def _check_count(protocol: Protocol, data: DataSet, origin: Origin) -> None:
    count = protocol.train_images
    if count is not None and data.train is not None and count > len(data.train):
        raise UserError(
            f"--train-images is {count:,}, but {origin.title} has only {len(data.train):,} training images; give fewer."
        )


def _draw(what: str, jobs: list[Job], data: DataSet, folder: Path, console: Console) -> None:
    if not all(_is_done(job, records.read(job.record)) for job in jobs):
        console.print(f"{jobs[0].origin.title}: no figure yet, its runs are not finished.", highlight=False)
        return
    console.print(
        f"Open {draw_figure(what, jobs, data, folder / f'{what}-{jobs[0].origin.name}.png')}", highlight=False
    )


def _with_data(cells: list[Cell], origins: list[Origin], console: Console) -> list[tuple[Origin, list[Cell]]]:
    """Divide cells among the data at hand; say what is missing for the others; `UserError` when nothing is left."""
    found = []
    for role in dict.fromkeys(cell.role for cell in cells):
        mine = [cell for cell in cells if cell.role == role]
        here = [origin for origin in origins if origin.kind.role == role]
        found += [(origin, mine) for origin in here]
        if not here:
            console.print(f"[yellow]Left out {len(mine)} cells.[/yellow] {missing(role)}", highlight=False)
    if not found:
        roles = ", ".join(dict.fromkeys(cell.role for cell in cells))
        raise UserError(f"There is no data for any of the chosen cells ({roles}); the lines above say what to get.")
    return found


def unfinished(jobs: list[Job], resume: bool) -> list[Job]:
    """Return the runs that are to be made; `UserError` for runs that were begun, without `resume`, or begun otherwise.

    A finished run whose network is asked for and not there is made anew; its record stays until then.
    """
    todo, begun = [], []
    for job in jobs:
        record = records.read(job.record)
        if record is not None:
            records.check_same(job, record)
        if _is_done(job, record):
            _remove_left_over(job)
            continue
        todo.append(job)
        anew = job.checkpoint.exists() or (job.large and run_folder(job).is_dir())
        if anew or (record is not None and not records.is_finished(record)):
            begun.append(job)
    if begun and not resume:
        raise UserError(
            f"{len(begun)} runs are begun and not finished, such as '{begun[0].record}'; add --resume to go on with "
            "them, or name another folder with --out."
        )
    return todo


def _is_done(job: Job, record: dict[str, Any] | None) -> bool:
    """Tell whether a run is finished and its network, where that is asked for, is there."""
    if not records.is_finished(record):
        return False
    return not job.keep_model or (network_is_whole(job) if job.large else job.network.is_dir())


def _remove_left_over(job: Job) -> None:
    """Remove the state that a kill between record and removal left; one of later is of a run made anew."""
    with suppress(FileNotFoundError):
        if job.checkpoint.stat().st_mtime <= job.record.stat().st_mtime:
            job.checkpoint.unlink()


def _announce(
    jobs: list[Job], arrays: dict[str, Arrays], device: str, at_once: int, budget: float | None, console: Console
) -> None:
    """Say what is going to be run and, on a CPU, how long it will take by measured steps."""
    epochs = sorted({job.config.epochs for job in jobs})
    console.print(
        f"{len(jobs)} runs of {'/'.join(map(str, epochs))} epochs on {device}, {at_once} at once, precision "
        f"{jobs[0].config.precision}{', a smoke test' if jobs[0].protocol.shortened else ''}.",
        highlight=False,
    )
    if device != "cpu":
        return
    small = [job for job in jobs if not job.large]
    seconds = estimate(small, arrays) / max(1, min(at_once, len(small), usable_cores()))
    seconds += estimate_large([job for job in jobs if job.large and not job.fitted])
    shown = f"about {seconds / 60:.0f} minutes" if seconds < 7200 else f"about {seconds / 3600:.0f} hours"
    shown = "less than two minutes" if seconds < 120 else shown
    console.print(f"Without a GPU this takes {shown}, by steps measured now, and a moment to start.", highlight=False)
    if fitted := sum(job.fitted for job in jobs):
        console.print(f"{fitted} of the runs are fitted in stages, which is not counted in it.", highlight=False)
    if budget is None and seconds > UNASKED:
        raise UserError(
            f"Without a GPU these {len(jobs)} runs take {shown}; give --budget MINUTES to run for that long and go on "
            "later with --resume, choose fewer with --cells and --seeds, or make it a smoke test with --epochs."
        )


def _work_off(
    jobs: list[Job],
    arrays: dict[str, Arrays],
    device: str,
    at_once: int,
    deadline: float | None,
    progress: Progress,
) -> "Ended":
    """Let worker processes do the jobs: on a CPU one thread and one run each, on a GPU one process with them all."""
    if not jobs:
        return Ended()
    on_cpu = device == "cpu"
    sharing = min(at_once, len(jobs))
    count = sharing if on_cpu else 1
    # Not by how many runs are left: sums in another number of threads round otherwise, and a seed has one result.
    threads = max(1, usable_cores() // at_once)
    circumstances = Circumstances(device, threads, 1 if on_cpu else at_once, deadline, sharing)
    context = multiprocessing.get_context("spawn")
    queue, reports, stop = context.Queue(), context.Queue(), context.Event()
    for job in jobs:
        queue.put(job)
    workers = [
        # Not daemons: a loader may have processes of its own.
        context.Process(target=run_worker, args=(queue, reports, stop, arrays, circumstances))
        for _ in range(count)
    ]
    interrupted = False
    with deaf():
        for worker in workers:
            worker.start()
    while True:
        try:
            if not _listen(reports, progress) and not any(worker.is_alive() for worker in workers):
                break
        except KeyboardInterrupt:
            if interrupted:
                break
            interrupted = True
            stop.set()
            progress.say("Stopping: runs are kept up to their last finished epoch ...")
    while _listen(reports, progress, wait=0.1):
        pass
    for worker in workers:
        worker.join(timeout=5)
        if worker.is_alive():
            worker.kill()
    queue.cancel_join_thread()
    return Ended(interrupted, tuple(worker.exitcode for worker in workers if worker.exitcode))


def _work_off_large(jobs: list[Job], device: str, deadline: float | None, progress: Progress) -> "Ended":
    """Do runs on large pictures one after the other, each in a process of its own with the whole machine."""
    context = multiprocessing.get_context("spawn")
    for job in jobs:
        if deadline is not None and time.time() > deadline:
            break
        if any(other.name in progress.short for other in jobs if (other.cell, other.origin) == (job.cell, job.origin)):
            continue  # the same network with another seed takes as long, and there is less time now
        reports = context.Queue()
        process = context.Process(target=run_large, args=(job, device, reports, deadline))
        process.start()
        interrupted = False
        try:
            while process.is_alive() and (deadline is None or time.time() < deadline):
                _listen(reports, progress)
        except KeyboardInterrupt:
            interrupted = True
        stop_gently(process)
        while _listen(reports, progress, wait=0.5):
            pass
        if job.name in progress.short:
            minutes = progress.short[job.name] / 60
            progress.say(f"no time   {job.name}: an epoch takes about {minutes:.1f} minutes here, more than is left")
        if interrupted or process.exitcode:
            # One that somebody stopped has not died, however it ended.
            return Ended(interrupted, (process.exitcode,) if process.exitcode and not interrupted else ())
    return Ended()


@dataclass(frozen=True)
class Ended:
    """How the work ended: whether somebody stopped it, and the exit states of processes that died."""

    interrupted: bool = False
    dead: tuple[int, ...] = ()


def _listen(reports: Any, progress: Progress, wait: float = 1.0) -> bool:
    with suppress(Empty):
        report: Report = reports.get(timeout=wait)
        progress.take(report)
        return True
    return False


def conclude(progress: Progress, jobs: list[Job], ended: Ended, *, in_time: bool = False) -> None:
    """Say how the work ended; `UserError` for what went wrong. `in_time` says that there was no budget to keep."""
    left = [job for job in jobs if job.name not in progress.finished]
    progress.say(f"{len(jobs) - len(left)} of {len(jobs)} runs finished.")
    if ended.dead:
        raise UserError(
            f"A worker process was killed (exit status {ended.dead[0]}), perhaps for want of memory; go on with "
            "--resume, with a smaller --at-once if it happens again."
        )
    if progress.failed:
        name, text = next(iter(progress.failed.items()))
        raise UserError(f"{len(progress.failed)} runs failed, the first: {name}: {text}")
    if ended.interrupted:
        progress.say("Go on with --resume.")
        raise SystemExit(130)
    if progress.short and not progress.finished and not progress.advanced:
        name, seconds = min(progress.short.items(), key=lambda item: item[1])
        raise UserError(
            f"The budget is too short for one epoch: {name} takes about {seconds / 60:.1f} minutes an epoch here; "
            f"give --budget {int(seconds / 60 * 1.3) + 2} or more."
        )
    if left and in_time:
        raise UserError(f"{len(left)} runs ended without a word, such as {left[0].name}; go on with --resume.")
    if left and not progress.finished and not progress.advanced:
        raise UserError(
            "The budget was used up before one epoch had ended; give --budget more minutes (a system that is fitted in "
            "stages keeps those that ended, and goes on with --resume)."
        )
    if left:
        progress.say("The budget is used up; go on with --resume.")
    progress.say("`abn reproduce show` puts what is finished beside the published numbers.")


def usable_device(device: str) -> str:
    """Return the device to compute on; 'auto' takes a GPU when there is one. `UserError` for one that is not there."""
    if device == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        kind = torch.zeros(1, device=device).device.type
    except (RuntimeError, AssertionError) as problem:
        raise UserError(f"The device '{device}' cannot be used here; try --device cpu.") from problem
    if kind not in ("cpu", "cuda"):
        raise UserError(f"The device '{device}' cannot be used here; use cpu or cuda.")
    return "cpu" if kind == "cpu" else device
