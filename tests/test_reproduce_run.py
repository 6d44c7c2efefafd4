"""Runs in miniature: what a record says, and what a worker makes of failures and budgets."""

import dataclasses
import json
import time
from queue import Queue
from threading import Event
from types import SimpleNamespace

import numpy as np
import pytest
from rich.console import Console

import attention_branch as ab
from attention_branch.errors import UserError
from attention_branch.evaluation import evaluate
from attention_branch.reproduce import estimate
from attention_branch.reproduce import record as records
from attention_branch.reproduce.arms import ARMS, network_cost
from attention_branch.reproduce.conduct import Ended, conclude
from attention_branch.reproduce.plan import Protocol
from attention_branch.reproduce.progress import Progress
from attention_branch.reproduce.worker import Circumstances, work
from reproduce_runs import finish, pictures, prepared

assert pictures
assert prepared  # fixtures of the tests below


def test_a_record_says_what_was_run_and_what_came_out(prepared, tmp_path):
    jobs, arrays, data = prepared
    (job,) = jobs(tmp_path, keep=True)
    record = finish(job, arrays)
    assert records.is_finished(record)
    assert record["epochs_done"] == 2
    assert record["data"]["title"] == "CIFAR-10 (JPEG)"
    assert record["data"]["stands_for"] == "CIFAR-10"
    assert record["data"]["images"] == {"train": 180, "validation": 20, "test": 40}
    assert record["protocol"]["shortened"] is True
    assert record["settings"]["epochs"] == 2
    assert record["cost"]["parameters"] == sum(p.numel() for p in ab.create_model("resnet20", 10).parameters())
    assert {len(values) for values in record["curves"].values()} == {2}
    assert record["best_on_test"]["test_error"] == min(record["curves"]["test_error"])
    assert record["last"]["test_error"] == record["curves"]["test_error"][-1]
    assert str(tmp_path) not in json.dumps(record)
    assert not job.checkpoint.exists()

    # The kept network, evaluated by the package's own evaluation, answers as the record says.
    found = evaluate(ab.load_model(job.record.with_suffix("")), data.test)
    assert 1 - found.accuracy == pytest.approx(record["last"]["test_error"], abs=1e-6)
    assert 1 - found.attention_accuracy == pytest.approx(record["last"]["test_attention_error"], abs=1e-6)
    predictions = found.heads["label"].predictions
    assert np.array_equal(records.unpack(record["test_answers"]), predictions.predicted == predictions.targets)


@pytest.mark.parametrize("arm", ["plain", "constant", "shuffled", "wider-parameters", "lite"])
def test_every_kind_of_arm_runs(prepared, tmp_path, arm):
    jobs, arrays, _ = prepared
    (job,) = jobs(tmp_path, [arm], Protocol(epochs=1, train_images=20))
    record = finish(job, arrays)
    assert ("map" in record) == (arm in ("constant", "shuffled", "lite"))
    if arm == "constant":
        assert record["map"]["mean"] == pytest.approx(0.5)
        assert "constant over positions" in record["map"]["alarm"]


def test_pictures_of_single_augmentations_are_trained_on_too(prepared, tmp_path):
    jobs, arrays, _ = prepared
    (job,) = jobs(tmp_path, ["plain"], Protocol("modern", epochs=1, train_images=20))
    assert job.config.augment not in ("none", "flip", "pad-crop-flip")
    job = dataclasses.replace(job, config=dataclasses.replace(job.config, workers=0))
    assert records.is_finished(finish(job, arrays))


def test_a_worker_goes_on_after_a_run_that_fails(prepared, tmp_path):
    jobs, arrays, _ = prepared
    good, bad = jobs(tmp_path, ["plain"], Protocol(epochs=1, train_images=20), seeds=(0, 1))
    bad.checkpoint.parent.mkdir(parents=True, exist_ok=True)
    bad.checkpoint.write_bytes(b"torn")
    queue, reports = Queue(), Queue()
    for job in (bad, good):
        queue.put(job)
    work(queue, reports, Event(), {"cifar10-jpeg": arrays}, Circumstances("cpu", 1, 2, None))
    said = [reports.get() for _ in range(reports.qsize())]
    assert [(one.kind, one.name) for one in said if one.kind in ("failed", "finished")] == [
        ("failed", bad.name),
        ("finished", good.name),
    ]
    assert "cannot be continued" in next(one.text for one in said if one.kind == "failed")
    assert not records.is_finished(records.read(bad.record))


def test_a_record_says_how_many_runs_shared_the_machine(prepared, tmp_path):
    jobs, arrays, _ = prepared
    (job,) = jobs(tmp_path, ["plain"], Protocol(epochs=1, train_images=20))
    queue, reports = Queue(), Queue()
    queue.put(job)
    work(queue, reports, Event(), {"cifar10-jpeg": arrays}, Circumstances("cpu", 2, 1, None, sharing=3))
    hardware = records.read(job.record)["hardware"]
    assert (hardware["runs_at_once"], hardware["threads"]) == (3, 2)


def test_what_runs_take_is_told_from_steps(prepared, tmp_path, monkeypatch):
    """Two steps of 16 pictures in 8 seconds by a clock of our own: a quarter of a second a picture of the plain arm."""
    jobs, arrays, _ = prepared
    clock = iter([10.0, 18.0])
    monkeypatch.setattr(estimate, "time", SimpleNamespace(perf_counter=lambda: next(clock)))
    plain, branch = jobs(tmp_path, ["plain", "residual"])
    # Two epochs of 40 pictures, with 20 of validation and 40 of test that cost a third; the branch by its cost.
    costs = [network_cost(ARMS[job.cell.arm], "resnet20", job.size, 32, {}).multiply_adds for job in (plain, branch)]
    wanted = 0.25 * 2 * (40 + 60 / 3) * (1 + costs[1] / costs[0])
    assert estimate.estimate([plain, branch], {"cifar10-jpeg": arrays}) == pytest.approx(wanted)


class Ending(Circumstances):
    """A budget that no further epoch fits in."""

    def over(self, seconds=0.0):
        return seconds > 0


def test_a_budget_ends_runs_between_epochs(prepared, tmp_path):
    jobs, arrays, _ = prepared
    (job,) = jobs(tmp_path, ["plain"], Protocol(epochs=50, train_images=20))
    queue, reports = Queue(), Queue()
    queue.put(job)
    work(queue, reports, Event(), {"cifar10-jpeg": arrays}, Ending("cpu", 1, 1, None))
    assert [reports.get().kind for _ in range(reports.qsize())] == ["begun", "epoch", "stopped"]
    assert records.read(job.record)["epochs_done"] == 1
    assert job.checkpoint.exists()


def test_a_budget_too_short_for_an_epoch_says_what_one_takes(prepared, tmp_path):
    jobs, arrays, _ = prepared
    protocol = Protocol(epochs=2, train_images=160)
    made = [
        dataclasses.replace(job, config=dataclasses.replace(job.config, batch_size=4))
        for job in jobs(tmp_path, ["plain"], protocol)
    ]
    queue, reports = Queue(), Queue()
    for job in made:
        queue.put(job)
    work(queue, reports, Event(), {"cifar10-jpeg": arrays}, Circumstances("cpu", 1, 1, time.time() + 0.5))
    progress = Progress(Console(quiet=True), made)
    while not reports.empty():
        progress.take(reports.get())
    with pytest.raises(
        UserError, match=r"too short for one epoch: resnet20/cifar10-jpeg/plain seed 0 takes about .* --budget \d+"
    ):
        conclude(progress, made, Ended())
    assert not list(tmp_path.rglob("*seed*"))


def test_after_the_budget_no_run_is_begun(prepared, tmp_path):
    jobs, arrays, _ = prepared
    queue, reports = Queue(), Queue()
    queue.put(jobs(tmp_path)[0])
    work(queue, reports, Event(), {"cifar10-jpeg": arrays}, Circumstances("cpu", 1, 1, time.time() - 1))
    assert reports.empty()


def test_runs_that_end_without_a_word_are_told(prepared, tmp_path):
    jobs, _, _ = prepared
    made = jobs(tmp_path)
    with pytest.raises(UserError, match="1 runs ended without a word"):
        conclude(Progress(Console(quiet=True), made), made, Ended(), in_time=True)
    with pytest.raises(UserError, match="before one epoch had ended"):
        conclude(Progress(Console(quiet=True), made), made, Ended())
    with pytest.raises(UserError, match=r"A worker process was killed \(exit status -9\)"):
        conclude(Progress(Console(quiet=True), made), made, Ended(dead=(-9,)), in_time=True)
