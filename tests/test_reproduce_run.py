"""Runs in miniature: what a record says, how a run stops and goes on, and what is refused."""

import dataclasses
import json
import os
import shutil
import time
from queue import Queue
from threading import Event

import numpy as np
import pytest
import torch
from PIL import Image
from rich.console import Console

import attention_branch as ab
from attention_branch.cli import main
from attention_branch.errors import UserError
from attention_branch.evaluation import evaluate
from attention_branch.reproduce import record as records
from attention_branch.reproduce.cells import Cell
from attention_branch.reproduce.conduct import Ended, conclude, unfinished
from attention_branch.reproduce.figures import draw_figure, first_of_classes
from attention_branch.reproduce.groups import read_groups
from attention_branch.reproduce.plan import Protocol, make_jobs
from attention_branch.reproduce.progress import Progress
from attention_branch.reproduce.small_run import Arrays, SmallRun, preprocessing_of
from attention_branch.reproduce.sources import open_origin, parse_data
from attention_branch.reproduce.worker import Circumstances, work

SHORT = Protocol(epochs=2, train_images=40)


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """Ten classes of 32-pixel pictures, each class of its own brightness, in folders by split."""
    root = tmp_path_factory.mktemp("pictures")
    random = np.random.default_rng(0)
    for split, count in (("train", 20), ("test", 4)):
        for label in range(10):
            folder = root / split / f"class{label}"
            folder.mkdir(parents=True)
            for number in range(count):
                pixels = random.integers(0, 60, (32, 32, 3)) + 19 * label
                Image.fromarray(pixels.astype(np.uint8)).save(folder / f"{number}.png")
    return root


@pytest.fixture(scope="module")
def prepared(pictures, tmp_path_factory):
    (origin,) = [found for found in parse_data([f"cifar10-jpeg={pictures}"]) if found.name == "cifar10-jpeg"]
    data = open_origin(origin)

    def jobs(out, arms=("residual",), protocol=SHORT, seeds=(0,), keep=False):
        cells = [Cell("resnet20", "cifar10", arm) for arm in arms]
        return make_jobs(cells, origin, data, protocol, list(seeds), out, keep)

    example = jobs(tmp_path_factory.mktemp("none"))[0]
    arrays = Arrays(tmp_path_factory.mktemp("arrays"), data).write(data, preprocessing_of(example.config, data))
    return jobs, arrays, data


def finish(job, arrays, steps=100):
    run = SmallRun(job, arrays, "cpu")
    while not run.done:
        run.advance(steps)
    return records.read(job.record)


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


def test_a_stopped_run_ends_as_if_it_had_not_been(prepared, tmp_path):
    jobs, arrays, _ = prepared
    (whole,) = jobs(tmp_path / "whole")
    (parted,) = jobs(tmp_path / "parted")
    wanted = finish(whole, arrays)
    first = SmallRun(parted, arrays, "cpu")
    while not first.advance(1):
        pass
    first.save()
    left = records.read(parted.record)
    assert left["status"] == "unfinished"
    assert left["epochs_done"] == 1
    assert not read_groups([tmp_path / "parted"])
    found = finish(parted, arrays, steps=1)
    for name in ("curves", "last", "best_on_validation", "best_on_test", "test_answers", "map", "settings"):
        assert found[name] == wanted[name], name


def test_pictures_of_single_augmentations_are_trained_on_too(prepared, tmp_path):
    jobs, arrays, _ = prepared
    (job,) = jobs(tmp_path, ["plain"], Protocol("modern", epochs=1, train_images=20))
    assert job.config.augment not in ("none", "flip", "pad-crop-flip")
    job = dataclasses.replace(job, config=dataclasses.replace(job.config, workers=0))
    assert records.is_finished(finish(job, arrays))


def test_figure_4_shows_both_networks_answers(prepared, tmp_path):
    jobs, arrays, data = prepared
    made = jobs(tmp_path, ["plain", "residual"], Protocol(epochs=1, train_images=20), keep=True)
    for job in made:
        finish(job, arrays)
    drawn = draw_figure("figure4", made, data, tmp_path / "figure4.png")
    with Image.open(drawn) as picture:
        panels = np.asarray(picture.convert("RGB")).astype(int)
    assert first_of_classes(data.test, 8) == [4 * label for label in range(8)]
    # Pictures and overlays stand in a grid of eight rows and four columns of equal width.
    dark = (panels.sum(2) < 700).mean(0) > 0.3
    columns = np.flatnonzero(np.diff(dark.astype(int)) == 1)
    assert len(columns) in (3, 4)
    # The first column is the pictures themselves, class by class: brighter and brighter.
    rows = np.array_split(panels[66:-40, 12:190], 8)
    brightness = [row[40:150].mean() for row in rows]
    assert brightness == sorted(brightness)


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


def test_the_whole_command(pictures, tmp_path, capsys):
    out = tmp_path / "runs"
    arguments = ["reproduce", "table2", "--cells", "resnet164b/cifar10/plain", "--seeds", "0", "--out", str(out)]
    arguments += ["--data", f"cifar10-jpeg={pictures}", "--train-images", "8", "--device", "cpu", "--precision", "32"]
    arguments += ["--at-once", "1"]
    with pytest.raises(SystemExit) as ended:
        main([*arguments, "--epochs", "1"])
    assert ended.value.code == 0
    text = capsys.readouterr().out
    assert "1 of 1 runs finished" in text
    assert "a smoke test" in text
    with pytest.raises(SystemExit):
        main([*arguments, "--epochs", "1"])
    assert "1 of them finished already" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        main(["reproduce", "show", "--out", str(out)])
    text = capsys.readouterr().out
    assert "Smoke test, no result: resnet164b on CIFAR-10 (JPEG)" in text
    assert (out / "tables.html").exists()


def refused(arguments, capsys):
    with pytest.raises(SystemExit) as ended:
        main(["reproduce", *arguments])
    assert ended.value.code == 2
    message = capsys.readouterr().err
    assert message.count("\n") == 1
    return message


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["table1", "--cells", "resnet19"], "'resnet19' is no network here"),
        (["table1"], "There is no data for any of the chosen cells (cifar100)"),
        (["table1", "--data", "cifar100"], "write NAME=PATH"),
        (["digits", "--budget", "0"], "give minutes above 0"),
        (["digits", "--epochs", "0"], "--epochs is 0"),
        (["digits", "--seeds", "1", "1"], "give different whole numbers"),
        (["digits", "--seeds", "1180591620717411303424"], "give different whole numbers"),
        (["digits", "--cells", "resnet14/digits/plain/more"], "a cell is NETWORK/DATA/ARM"),
        (["digits", "--device", "meta"], "use cpu or cuda"),
        (["digits", "--device", "cuda:77"], "cannot be used here"),
        (["digits", "--protocol", "modern"], "no modern settings for digits"),
        (["digits", "--json"], "--json belongs to 'show'"),
        (["show", "--seeds", "1"], "--seeds has no meaning for 'show'"),
        (["show", "--out", "/nowhere/at/all"], "There is no folder '/nowhere/at/all'"),
    ],
)
def test_bad_input_is_said_in_a_sentence(arguments, words, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ABN_DATA", str(tmp_path))
    if torch.cuda.is_available() and "--device" not in arguments:
        arguments = [*arguments, *([] if arguments[0] == "show" else ["--device", "cpu"])]
    assert words in refused(arguments, capsys)


def test_data_of_another_number_of_classes_is_refused(pictures, tmp_path, capsys):
    arguments = ["table1", "--data", f"cifar100={pictures}", "--out", str(tmp_path), "--device", "cpu"]
    assert "has 10 classes, and CIFAR-100 has 100" in refused(arguments, capsys)


def test_long_work_without_a_gpu_asks_for_a_budget(pictures, tmp_path, capsys):
    arguments = ["table2", "--data", f"cifar10-jpeg={pictures}", "--out", str(tmp_path), "--device", "cpu"]
    arguments += ["--cells", "wrn_28_10/*/plain", "--precision", "32"]
    message = refused(arguments, capsys)
    assert "Without a GPU these 3 runs take about" in message
    assert "--budget MINUTES" in message
    assert not list(tmp_path.rglob("*.json"))


def test_runs_of_another_kind_are_not_continued(prepared, tmp_path):
    jobs, arrays, _ = prepared
    (job,) = jobs(tmp_path)
    run = SmallRun(job, arrays, "cpu")
    while not run.advance(1):
        pass
    run.save()
    other = dataclasses.replace(job, config=dataclasses.replace(job.config, lr=0.2))
    with pytest.raises(UserError, match=r"another configuration: lr is 0\.1 there and 0\.2 here"):
        records.check_same(other, records.read(job.record))
    changed = dataclasses.replace(job, data=job.data | {"fingerprint": "0"})
    with pytest.raises(UserError, match="other images"):
        records.check_same(changed, records.read(job.record))


def test_a_state_of_other_settings_is_not_gone_on_with(prepared, tmp_path):
    jobs, arrays, _ = prepared
    (job,) = jobs(tmp_path)
    run = SmallRun(job, arrays, "cpu")
    while not run.advance(1):
        pass
    run.save()
    job.record.unlink()
    other = dataclasses.replace(job, config=dataclasses.replace(job.config, lr=0.2))
    with pytest.raises(UserError, match="is of a run with other settings or on other data"):
        SmallRun(other, arrays, "cpu")
    assert SmallRun(job, arrays, "cpu").trainer.epoch == 1


def test_a_finished_record_survives_until_its_run_is_made_anew(prepared, tmp_path):
    """A figure needs the network of a run that is finished and was not kept: the run is made anew, and is stopped."""
    jobs, arrays, _ = prepared
    (job,) = jobs(tmp_path)
    wanted = finish(job, arrays)
    (asked,) = jobs(tmp_path, keep=True)
    assert unfinished([job], resume=False) == []
    assert unfinished([asked], resume=False) == [asked]
    again = SmallRun(asked, arrays, "cpu")
    while not again.advance(1):
        pass
    again.save()
    assert records.read(job.record) == wanted
    assert read_groups([tmp_path])[0].seeds == [0]
    with pytest.raises(UserError, match="add --resume"):
        unfinished([asked], resume=False)
    # Who does not need the network has the run; its state is not lost for that.
    assert unfinished([job], resume=True) == []
    assert unfinished([asked], resume=True) == [asked]
    anew = SmallRun(asked, arrays, "cpu")
    assert anew.trainer.epoch == 1
    while not anew.done:
        anew.advance(100)
    assert records.read(job.record)["last"] == wanted["last"]
    assert unfinished([asked], resume=False) == []
    # What a kill between record and removal leaves is older than the record.
    job.checkpoint.write_bytes(b"left")
    os.utime(job.checkpoint, (0, 0))
    assert unfinished([asked], resume=False) == []
    assert not job.checkpoint.exists()


def test_half_a_run_on_large_pictures_is_not_the_network_asked_for(prepared, tmp_path):
    """Made anew for its network and stopped after one of two epochs: the record counts, the network does not."""
    jobs, arrays, _ = prepared
    (small,) = jobs(tmp_path, keep=True)
    finish(small, arrays)
    job = dataclasses.replace(small, cell=dataclasses.replace(small.cell, role="celeba"))
    job.network.mkdir()
    metrics = job.network.parent / "metrics.jsonl"
    metrics.write_text('{"epoch": 0}\n')
    assert unfinished([job], resume=True) == [job]
    with pytest.raises(UserError, match="add --resume"):
        unfinished([job], resume=False)
    metrics.write_text('{"epoch": 0}\n{"epoch": 1}\n')
    assert unfinished([job], resume=False) == []


def test_another_precision_is_refused_with_the_way_out(prepared, tmp_path):
    jobs, arrays, _ = prepared
    (job,) = jobs(tmp_path)
    run = SmallRun(job, arrays, "cpu")
    while not run.advance(1):
        pass
    run.save()
    (other,) = jobs(tmp_path, protocol=dataclasses.replace(SHORT, precision="bf16"))
    with pytest.raises(UserError, match=r"precision is 32 there and bf16 here; give --precision 32 as there, or name"):
        unfinished([other], resume=True)
    job.record.unlink()
    with pytest.raises(UserError, match=r"other settings or on other data; give --precision 32 as there, or remove"):
        SmallRun(other, arrays, "cpu")


def test_a_state_is_not_gone_on_with_on_other_pixels(prepared, pictures, tmp_path):
    """The same names and labels, one byte of one picture changed."""
    jobs, arrays, data = prepared
    (job,) = jobs(tmp_path)
    preprocessing = preprocessing_of(job.config, data)
    same = Arrays(tmp_path / "same", data).write(data, preprocessing)
    assert same.pixels == arrays.pixels
    shutil.copytree(pictures, tmp_path / "changed")
    touched = tmp_path / "changed" / "test" / "class3" / "2.png"
    pixels = np.array(Image.open(touched))
    pixels[0, 0, 0] ^= 1
    Image.fromarray(pixels).save(touched)
    (origin,) = [one for one in parse_data([f"cifar10-jpeg={tmp_path}/changed"]) if one.name == "cifar10-jpeg"]
    opened = open_origin(origin)
    assert opened.record()["fingerprint"] == job.data["fingerprint"]
    other = Arrays(tmp_path / "other", opened).write(opened, preprocessing)
    assert other.pixels != arrays.pixels

    run = SmallRun(job, arrays, "cpu")
    while not run.advance(1):
        pass
    run.save()
    with pytest.raises(UserError, match=r"was begun on other pixels under the same names .*; remove it"):
        SmallRun(job, other, "cpu")
    record = finish(job, same)
    assert record["data"]["pixels"] == arrays.pixels
    # Finished runs are not refused for it: their pictures may be decoded anew by another version.
    assert unfinished([job], resume=False) == []
    job.record.write_text(json.dumps(record | {"data": record["data"] | {"pixels": "0"}}))
    assert unfinished([job], resume=False) == []


def test_a_record_says_how_many_runs_shared_the_machine(prepared, tmp_path):
    jobs, arrays, _ = prepared
    (job,) = jobs(tmp_path, ["plain"], Protocol(epochs=1, train_images=20))
    queue, reports = Queue(), Queue()
    queue.put(job)
    work(queue, reports, Event(), {"cifar10-jpeg": arrays}, Circumstances("cpu", 2, 1, None, sharing=3))
    hardware = records.read(job.record)["hardware"]
    assert (hardware["runs_at_once"], hardware["threads"]) == (3, 2)


def test_runs_that_end_without_a_word_are_told(prepared, tmp_path):
    jobs, _, _ = prepared
    made = jobs(tmp_path)
    with pytest.raises(UserError, match="1 runs ended without a word"):
        conclude(Progress(Console(quiet=True), made), made, Ended(), in_time=True)
    with pytest.raises(UserError, match="before one epoch had ended"):
        conclude(Progress(Console(quiet=True), made), made, Ended())
    with pytest.raises(UserError, match=r"A worker process was killed \(exit status -9\)"):
        conclude(Progress(Console(quiet=True), made), made, Ended(dead=(-9,)), in_time=True)


def test_a_begun_run_needs_resume(pictures, tmp_path, capsys):
    arguments = ["table2", "--cells", "resnet164b/cifar10/plain", "--data", f"cifar10-jpeg={pictures}", "--seeds", "0"]
    arguments += [
        "--out",
        str(tmp_path),
        "--device",
        "cpu",
        "--precision",
        "32",
        "--epochs",
        "2",
        "--train-images",
        "8",
    ]
    record = tmp_path / "cifar10-jpeg" / "resnet164b" / "plain" / "published-e2-n8-seed0.json"
    record.parent.mkdir(parents=True)
    record.with_suffix(".ckpt").write_bytes(b"torn")
    assert "add --resume" in refused(arguments, capsys)
