"""One run on large pictures: trained as `abn train` does, in a run folder of its own, then evaluated and recorded."""

import dataclasses
import os
import signal
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from attention_branch.errors import UserError
from attention_branch.evaluation import evaluate
from attention_branch.evaluation.evaluation import SINGLE, Evaluation
from attention_branch.models import load_model
from attention_branch.models.cost import cost
from attention_branch.reproduce import record as records
from attention_branch.reproduce.pace import Pace, TooShortError
from attention_branch.reproduce.plan import Job
from attention_branch.reproduce.sources import open_origin
from attention_branch.reproduce.worker import Report, guarded
from attention_branch.training import train
from attention_branch.training.checkpoints import epochs_kept
from attention_branch.training.journal import CHECKPOINT, read_metrics


def run_folder(job: Job) -> Path:
    """Return the folder of a run on large pictures, as `abn train` writes it."""
    return job.record.with_suffix("")


def network_is_whole(job: Job) -> bool:
    """Tell whether the network of the last epoch is there, and not that of an epoch before it."""
    folder = run_folder(job)
    whole = (folder / "summary.json").exists() if job.fitted else len(read_metrics(folder)) >= job.config.epochs
    return job.network.is_dir() and whole


def run_large(job: Job, device: str, reports: Any, deadline: float | None = None) -> None:
    """Train, evaluate and record one run in this process; it is stopped by SIGINT and goes on when called again.

    With a `deadline`, a `time.time()`, it ends by itself where the first epoch has no time, and says what one takes.
    """
    pace = Pace(job, reports, deadline)
    try:
        guarded(reports, job, _run, job, device, reports, pace)
    except (SystemExit, KeyboardInterrupt):
        in_budget = deadline is None or time.time() < deadline
        seconds = None if in_budget else pace.epoch_seconds()
        guarded(reports, job, _say_kept, job, reports, seconds)


def _say_kept(job: Job, reports: Any, seconds: float | None) -> None:
    """Report what the next start goes on from; `seconds` an epoch takes where the budget has no time for one."""
    kept = epochs_kept(run_folder(job) / CHECKPOINT)
    reports.put(Report("stopped" if seconds is None else "short", job.name, kept, job.config.epochs, seconds))


def _run(job: Job, device: str, reports: Any, pace: Pace) -> None:
    folder = run_folder(job)
    begun = (folder / "config.json").exists()
    reports.put(Report("begun", job.name, epochs_kept(folder / CHECKPOINT), job.config.epochs))
    data = open_origin(job.origin)
    if data.record()["fingerprint"] != job.data["fingerprint"]:
        raise UserError(f"The pictures of '{job.origin.spec}' changed while they were used; start again.")
    count = job.protocol.train_images
    if count is not None and data.train is not None:
        data.train = data.train.subset(np.sort(np.random.default_rng(0).permutation(len(data.train))[:count]))
    place: dict[str, Any] = {"resume": str(folder), "out": None} if begun else {"out": str(folder)}
    config = dataclasses.replace(job.config, accelerator="cpu" if device == "cpu" else "gpu", devices=1, **place)
    record = records.begin(job) | records.surroundings(device, torch.get_num_threads())
    records.write_unfinished(job.record, record)
    # The splits of every arm and seed are the same, whatever the seed of the training.
    try:
        train(config, data=data, device=device, callbacks=[pace])
    except TooShortError:
        _say_kept(job, reports, pace.epoch_seconds())
        return
    # Evaluating a large test set takes a while; a stop during it loses only that.
    assert data.test is not None
    # As on small pictures: another image's map must be one of any class, whatever the order of the split.
    order = np.random.default_rng(0).permutation(len(data.test))
    images = data.test.subset(order)
    found = {}
    for name in ("last", "model"):
        network = load_model(folder / name, device=device)
        found[name] = evaluate(network, images, batch_size=64, workers=os.cpu_count() or 1, progress=False)
        if name == "last":
            counted = cost(network)
            record["cost"] = {"parameters": counted.parameters, "multiply_adds": counted.multiply_adds}
    lines = read_metrics(folder)
    record["curves"] = _curves(lines)
    record["epochs_done"] = len(lines)
    best = next(line["epoch"] for line in reversed(lines) if line["best"])
    record |= {
        "last": _errors(found["last"], lines[-1]),
        "best_on_validation": {"epoch": best + 1, **_errors(found["model"], lines[best])},
        # The test set is not looked at after every epoch here.
        "best_on_test": {},
        "test_answers": records.pack(_right(found["last"], order)),
        "map": _map(found["last"], lines[-1]),
    }
    record["cost"] |= {
        "seconds": round(sum(line["seconds"] for line in lines), 1),
        "train_images_per_second": round(float(np.median([line["images_per_second"] for line in lines])), 1),
    }
    record["status"] = records.FINISHED
    records.write(job.record, record)
    reports.put(
        Report("finished", job.name, len(lines), len(lines), text=f"test error {record['last']['test_error']:.2%}")
    )


def _errors(found: Evaluation, line: dict[str, Any]) -> dict[str, Any]:
    errors: dict[str, Any] = {"test_error": 1 - found.accuracy, "validation_error": 1 - line["validation_accuracy"]}
    if found.attention_accuracy is not None:
        errors["test_attention_error"] = 1 - found.attention_accuracy
    if found.multitask:
        by_head = {name: head.perception.accuracy for name, head in found.heads.items() if head.perception}
        errors["test_accuracy_by_head"] = by_head
    return errors


def _right(found: Evaluation, order: np.ndarray) -> np.ndarray:
    """Return which images were answered rightly, (N,) or (N, heads), in the order of the split."""
    back = np.argsort(order)
    columns = [(head.predictions.predicted == head.predictions.targets)[back] for head in found.heads.values()]
    return columns[0] if list(found.heads) == [SINGLE] else np.stack(columns, axis=1)


def _curves(lines: list[dict[str, Any]]) -> dict[str, list[float]]:
    curves = {"train_loss": [line["train_loss"] for line in lines]}
    for name in ("train", "validation"):
        curves[f"{name}_error"] = [1 - line[f"{name}_accuracy"] for line in lines]
        if f"{name}_attention_accuracy" in lines[0]:
            curves[f"{name}_attention_error"] = [1 - line[f"{name}_attention_accuracy"] for line in lines]
    return curves


def _map(found: Evaluation, line: dict[str, Any]) -> dict[str, Any] | None:
    if "map_mean" not in line:
        return None
    summary = {name: line[f"map_{name}"] for name in ("mean", "spread", "low", "high")} | {"alarm": found.alarm}
    pointing = found.pointing.get("attention")
    return summary | ({"on_object": pointing.mean} if pointing is not None else {})


def stop_gently(process: Any, patience: float = 120.0) -> None:
    """Ask a run's process to stop in good order, and wait for it; what does not stop is ended."""
    if process.is_alive():
        os.kill(process.pid, signal.SIGINT)
    deadline = time.monotonic() + patience
    while process.is_alive() and time.monotonic() < deadline:
        process.join(timeout=1)
    if process.is_alive():
        process.terminate()
