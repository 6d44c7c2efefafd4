"""Cells on large pictures: CelebA in miniature, trained as `abn train` does, stopped, continued and recorded."""

import dataclasses
import json
import time
from queue import Queue
from types import SimpleNamespace

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from rich.console import Console

from attention_branch.data import open_data
from attention_branch.errors import UserError
from attention_branch.evaluation import evaluate, evaluate_run
from attention_branch.reproduce import estimate, large_run
from attention_branch.reproduce import record as records
from attention_branch.reproduce.cells import Cell
from attention_branch.reproduce.conduct import reproduce
from attention_branch.reproduce.groups import read_groups
from attention_branch.reproduce.large_run import run_large
from attention_branch.reproduce.plan import Protocol, make_jobs
from attention_branch.reproduce.results import table_rows
from attention_branch.reproduce.sources import open_origin, parse_data
from attention_branch.training import journal, train
from attention_branch.training import run as training
from attention_branch.training.checkpoints import CheckpointFiles, epochs_kept
from attention_branch.training.module import Classifier
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
    small["model_options"] = ("channels=[8, 16, 32, 64]", "layers=[1, 1, 1, 1]")
    return [dataclasses.replace(job, config=dataclasses.replace(job.config, **small)) for job in made]


def reports(queue):
    return [queue.get() for _ in range(queue.qsize())]


def test_a_cell_of_table_4(jobs, tmp_path):
    queue = Queue()
    for job in jobs:
        assert job.large
        run_large(job, "cpu", queue)
    told = [(one.kind, one.epoch) for one in reports(queue)]
    assert told == [("begun", 0), ("epoch", 1), ("epoch", 2), ("finished", 2)] * 2
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


def test_a_stopped_cell_goes_on_where_it_was(jobs, monkeypatch, tmp_path):
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

    # Stopped between the line of an epoch and its checkpoint: what is kept is what the checkpoint holds.
    def torn(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(journal.Journal, "on_train_epoch_end", draw)
    with monkeypatch.context() as within:
        within.setattr(CheckpointFiles, "save_checkpoint", torn)
        run_large(job, "cpu", queue)
    assert len(journal.read_metrics(job.record.with_suffix(""))) == 2
    assert [(one.kind, one.epoch) for one in reports(queue)] == [("begun", 1), ("stopped", 1)]

    # Stopped while the test set is evaluated: nothing is trained again.
    with monkeypatch.context() as within:
        within.setattr(large_run, "evaluate", torn)
        run_large(job, "cpu", queue)
    assert [(one.kind, one.epoch) for one in reports(queue)] == [("begun", 1), ("epoch", 2), ("stopped", 2)]
    run_large(job, "cpu", queue)
    assert [(one.kind, one.epoch) for one in reports(queue)] == [("begun", 2), ("finished", 2)]
    curves = records.read(job.record)["curves"]
    assert len(curves["validation_error"]) == 2
    assert epochs_kept(tmp_path / "nowhere.ckpt") == 0


def slowed(monkeypatch, seconds):
    """Let every training step take so long."""
    step, taken = Classifier.training_step, []

    def slow(self, *arguments):
        taken.append(1)
        time.sleep(seconds)
        return step(self, *arguments)

    monkeypatch.setattr(Classifier, "training_step", slow)
    return taken


def test_a_budget_too_short_for_an_epoch_is_said_with_what_one_takes(cars, monkeypatch):
    """32 pictures in steps of two, 0.1 s each: 1.6 s an epoch and a little."""
    taken = slowed(monkeypatch, 0.1)
    queue = Queue()
    (job,) = cars[0](batch_size=2, epochs=2)
    run_large(job, "cpu", queue, deadline=time.time() + 1.5)
    begun, short = reports(queue)
    assert (begun.kind, short.kind, short.epoch) == ("begun", "short", 0)
    assert 1.6 < short.seconds < 6
    assert len(taken) == 8
    assert not records.is_finished(records.read(job.record))

    # With time enough the same run is begun anew, and finished.
    run_large(job, "cpu", queue, deadline=time.time() + 600)
    assert [(one.kind, one.epoch) for one in reports(queue)] == [
        ("begun", 0),
        ("epoch", 1),
        ("epoch", 2),
        ("finished", 2),
    ]


def test_a_stop_at_the_deadline_tells_too_few_steps_apart_from_kept_epochs(cars, monkeypatch):
    """16 steps an epoch; the budget's end comes in the third, too early to be foreseen."""
    step, taken = Classifier.training_step, []

    def third(self, *arguments):
        taken.append(1)
        if len(taken) in (3, 20):
            raise KeyboardInterrupt
        return step(self, *arguments)

    monkeypatch.setattr(Classifier, "training_step", third)
    queue = Queue()
    (job,) = cars[0](batch_size=2, epochs=2)
    run_large(job, "cpu", queue, deadline=time.time() - 1e-3)
    assert [(one.kind, one.epoch) for one in reports(queue)] == [("begun", 0), ("short", 0)]
    # An epoch and a step later: this one is kept.
    run_large(job, "cpu", queue)
    assert [(one.kind, one.epoch) for one in reports(queue)] == [("begun", 0), ("epoch", 1), ("stopped", 1)]


@pytest.fixture
def cars(tmp_path):
    """Comp-Cars as given: pictures in the order of their models, of train and validation alone, and their runs."""
    (tmp_path / "cars").mkdir()
    lines = ["file_name,split,model,maker"]
    for number in range(48):
        model = number * 6 // 48
        split = "validation" if number % 4 == 3 else "train"
        pixels = np.random.default_rng(number).integers(0, 40, (32, 32, 3)) + 35 * model
        Image.fromarray(pixels.astype(np.uint8)).save(tmp_path / "cars" / f"{number:02d}.png")
        lines.append(f"{number:02d}.png,{split},m{model},k{model // 2}")
    (tmp_path / "cars" / "metadata.csv").write_text("\n".join(lines))
    (origin,) = [found for found in parse_data([f"compcars={tmp_path}/cars"]) if found.name == "compcars"]
    data = open_origin(origin)

    def jobs(arms=("plain",), seeds=(0,), epochs=1, batch_size=8):
        cells = [Cell("resnet20", "compcars", arm) for arm in arms]
        made = make_jobs(cells, origin, data, Protocol(epochs=epochs), list(seeds), tmp_path / "runs", False)
        small = {"pretrained": False, "image_size": 32, "batch_size": batch_size, "workers": 0}
        return [dataclasses.replace(job, config=dataclasses.replace(job.config, **small)) for job in made]

    return jobs, data


def test_every_seed_has_the_splits_of_the_protocol(cars):
    jobs, data = cars
    assert [len(images) for images in data.splits.values()] == [32, 4, 12]
    made = jobs(seeds=(0, 3))
    queue = Queue()
    for job in made:
        run_large(job, "cpu", queue)
        assert reports(queue)[-1].kind == "finished"
        written = json.loads((job.record.with_suffix("") / "config.json").read_text())
        assert written["data"]["fingerprint"] == data.record()["fingerprint"]
        assert written["settings"]["seed"] == job.config.seed
        # Its validation split is the test split, as on small pictures; none of it was trained on.
        assert records.unpack(records.read(job.record)["test_answers"]).shape == (12, 2)
    # The same training on other splits is another run.
    config = dataclasses.replace(made[1].config, resume=str(made[1].record.with_suffix("")), epochs=2)
    with pytest.raises(UserError, match="no longer holds the images"):
        train(config, device="cpu")


def test_shuffled_maps_are_of_any_class(cars, monkeypatch):
    """Every class lies together in the splits; evaluated so, a neighbour's map would be of the same class."""
    jobs, data = cars
    (job,) = jobs(["shuffled"])
    evaluated = []

    def remember(network, images, **settings):
        evaluated.append((network, images, evaluate(network, images, **settings)))
        return evaluated[-1][2]

    monkeypatch.setattr(large_run, "evaluate", remember)
    validated = []
    make = training.make_loader

    def loader(images, *arguments, train, **settings):
        validated.extend([] if train else [images])
        return make(images, *arguments, train=train, **settings)

    monkeypatch.setattr(training, "make_loader", loader)
    run_large(job, "cpu", Queue())
    for images, split in ((evaluated[0][1], data.test), (validated[0], data.validation)):
        assert sorted(images.ids) == sorted(split.ids)
        assert images.ids != split.ids
    models = evaluated[0][1].targets["model"]
    assert (models != np.roll(models, 1)).mean() > 0.5
    assert (data.test.targets["model"] != np.roll(data.test.targets["model"], 1)).mean() == 0.5

    # The answers are those to the pictures in the order of the split, whatever order they were shown in.
    answers = records.unpack(records.read(job.record)["test_answers"])
    order = [data.test.ids.index(name) for name in evaluated[0][1].ids]
    network = evaluated[0][0]
    with torch.inference_mode():
        pixels = torch.stack([network.preprocessing.tensor(data.test[place].image) for place in order])
        logits = network(pixels).logits
    for column, head in enumerate(("model", "maker")):
        right = logits[head].argmax(1).numpy() == data.test.targets[head][order]
        assert np.array_equal(answers[order, column], right)


@pytest.mark.parametrize(
    ("device", "accelerator", "devices"), [("cuda:1", "gpu", [1]), ("cuda", "gpu", [0]), ("cpu", "cpu", 1)]
)
def test_a_run_takes_the_device_it_was_given_and_no_other(cars, monkeypatch, device, accelerator, devices):
    asked = {}

    def trainer(**settings):
        asked.update(settings)
        raise UserError("far enough")

    monkeypatch.setattr(training.torch.cuda, "device_count", lambda: 4)
    monkeypatch.setattr(training.torch.cuda, "get_device_name", lambda _: "a GPU")
    monkeypatch.setattr(training.L, "Trainer", trainer)
    queue = Queue()
    (job,) = cars[0]()
    run_large(job, device, queue)
    assert "far enough" in reports(queue)[-1].text
    assert {name: asked[name] for name in ("accelerator", "devices", "num_nodes", "strategy")} == {
        "accelerator": accelerator, "devices": devices, "num_nodes": 1, "strategy": "auto",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("name", "labels", "words"),
    [
        ("celeba", {"kind": 3}, "has 3 classes, and CelebA has 40 heads of two classes; name other data for 'celeba'"),
        ("celeba", dict.fromkeys("abcde", 2), "has 5 heads, and CelebA has 40"),
        ("celeba", {f"a{n}": 2 + (n == 7) for n in range(40)}, "has 40 heads, of which 'a7' has 3 classes, and CelebA"),
        ("compcars", {"model": 3, "make": 2}, "has the heads model, make, and Comp-Cars has the heads model and maker"),
        ("compcars", {"model": 3}, "has 3 classes, and Comp-Cars has the heads model and maker"),
        ("imagenet", {"a": 2, "b": 3}, "has the heads a, b, and ImageNet has 1000 classes"),
    ],
)
def test_data_as_given_must_have_the_labels_of_its_set(tmp_path, name, labels, words):
    lines = [",".join(["file_name", "split", *labels])]
    for number in range(12):
        Image.new("RGB", (4, 4), (number, 0, 0)).save(tmp_path / f"{number}.png")
        values = [f"c{number % classes}" for classes in labels.values()]
        lines.append(",".join([f"{number}.png", ("train", "test")[number // 6], *values]))
    (tmp_path / "metadata.csv").write_text("\n".join(lines))
    (origin,) = [found for found in parse_data([f"{name}={tmp_path}"]) if found.name == name]
    with pytest.raises(UserError, match=words):
        open_origin(origin)


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


def test_a_part_of_large_data_is_refused(jobs, tmp_path, capsys):
    said = Console(width=400, record=True)
    place = {"data": [f"celeba={tmp_path}/faces"], "out": tmp_path / "out", "console": said}
    with pytest.raises(UserError, match="--train-images is for pictures that are kept in memory"):
        reproduce("table4", protocol=Protocol(train_images=5), **place)
    left = "resnet101/celeba/wider-parameters, resnet101/celeba/wider-multiply-adds"
    assert f"Left out 2 cells ({left}): the others start from pretrained weights" in said.export_text()
