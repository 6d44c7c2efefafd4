"""Cells on large pictures: CelebA in miniature, trained as `abn train` does, stopped, continued and recorded."""

import dataclasses
from queue import Queue
from types import SimpleNamespace

import pytest
import timm

from attention_branch.data import open_data
from attention_branch.errors import UserError
from attention_branch.evaluation import evaluate_run
from attention_branch.reproduce import estimate
from attention_branch.reproduce import record as records
from attention_branch.reproduce.cells import Cell
from attention_branch.reproduce.conduct import reproduce
from attention_branch.reproduce.groups import read_groups
from attention_branch.reproduce.large_run import run_large
from attention_branch.reproduce.plan import Protocol, make_jobs
from attention_branch.reproduce.results import table_rows
from attention_branch.reproduce.sources import open_origin, parse_data
from attention_branch.training import journal
from test_data_paper_sets import settings, write_celeba

assert settings  # the counts of the official set are replaced by those of the small one, for every test


@pytest.fixture
def jobs(tmp_path):
    write_celeba(tmp_path / "faces")
    (origin,) = [found for found in parse_data([f"celeba={tmp_path}/faces"]) if found.name == "celeba"]
    data = open_origin(origin)
    assert origin.title == "CelebA"
    cells = [Cell("resnet18", "celeba", arm) for arm in ("plain", "residual")]
    made = make_jobs(cells, origin, data, Protocol(epochs=2), [0], tmp_path / "runs", False)
    small = {"pretrained": False, "image_size": 64, "batch_size": 4, "maps": 0, "workers": 0}
    return [dataclasses.replace(job, config=dataclasses.replace(job.config, **small)) for job in made]


def reports(queue):
    return [queue.get() for _ in range(queue.qsize())]


def test_a_cell_of_table_4(jobs, tmp_path):
    queue = Queue()
    for job in jobs:
        assert job.large
        run_large(job, "cpu", queue)
    assert [one.kind for one in reports(queue)] == ["begun", "finished"] * 2
    record = records.read(jobs[1].record)
    assert records.is_finished(record)
    assert record["epochs_done"] == 2
    assert len(record["last"]["test_accuracy_by_head"]) == 40
    assert set(record["best_on_test"]) == set()

    # The package's own evaluation of the last epoch's network, on the official test split.
    found = evaluate_run(jobs[1].network, jobs[1].config.data, output=tmp_path / "out", progress=False)
    assert found.accuracy == pytest.approx(1 - record["last"]["test_error"])
    answers = records.unpack(record["test_answers"])
    assert answers.shape == (len(open_data(jobs[1].config.data).test), 40)
    assert answers.mean() == pytest.approx(found.accuracy)

    # A smoke test fills no row; the same records as whole runs do.
    groups = read_groups([tmp_path / "runs"])
    assert not any(row["ours"] for row in table_rows(groups))
    whole = [dataclasses.replace(group, shortened=False, network="resnet101") for group in groups]
    rows = {(row["row"], row["column"]): row["ours"] for row in table_rows(whole) if row["table"] == "table4"}
    assert rows["ABN", "average accuracy"]["mean"] == pytest.approx(100 * found.accuracy)
    plain, branch = (records.read(job.record)["last"]["test_accuracy_by_head"] for job in jobs)
    assert rows["ResNet101", "odds"]["mean"] == sum(branch[head] > plain[head] for head in branch)


def test_a_stopped_cell_goes_on_where_it_was(jobs, monkeypatch):
    job = jobs[0]
    queue = Queue()
    draw = journal.Journal.on_train_epoch_end

    def stop(self, trainer, module):
        draw(self, trainer, module)
        if trainer.current_epoch == 0:
            raise KeyboardInterrupt

    monkeypatch.setattr(journal.Journal, "on_train_epoch_end", stop)
    run_large(job, "cpu", queue)
    assert [(one.kind, one.epoch) for one in reports(queue)] == [("begun", 0), ("stopped", 1)]
    assert not records.is_finished(records.read(job.record))
    monkeypatch.setattr(journal.Journal, "on_train_epoch_end", draw)
    run_large(job, "cpu", queue)
    assert [(one.kind, one.epoch) for one in reports(queue)] == [("begun", 1), ("finished", 2)]
    curves = records.read(job.record)["curves"]
    assert len(curves["validation_error"]) == 2


def test_weights_that_cannot_be_loaded_are_said(jobs, monkeypatch):
    def unreachable(*_, **__):
        raise OSError("We couldn't connect to the hub")

    monkeypatch.setattr(timm, "create_model", unreachable)
    queue = Queue()
    job = dataclasses.replace(jobs[0], config=dataclasses.replace(jobs[0].config, pretrained=True))
    run_large(job, "cpu", queue)
    said = reports(queue)[-1]
    assert said.kind == "failed"
    assert "could not be loaded" in said.text


def test_what_they_take_is_told_from_steps(jobs, monkeypatch):
    """Two steps of two pictures in 6 seconds by a clock of our own: 1.5 seconds a picture, of each of the two arms."""
    clock = iter([10.0, 16.0, 20.0, 26.0])
    monkeypatch.setattr(estimate, "time", SimpleNamespace(perf_counter=lambda: next(clock)))
    images = jobs[0].data["images"]
    # Validation after each of two epochs and test after the last take a third of training.
    seen = 2 * (images["train"] + images["validation"] / 3) + images["test"] / 3
    assert estimate.estimate_large(jobs) == pytest.approx(2 * 1.5 * seen)


def test_a_part_of_large_data_is_refused(jobs, tmp_path):
    with pytest.raises(UserError, match="--train-images is for pictures that are kept in memory"):
        reproduce("table4", data=[f"celeba={tmp_path}/faces"], out=tmp_path / "out", protocol=Protocol(train_images=5))
