"""`abn reproduce` as it is typed, with real worker processes, one of them killed; and what it refuses."""

import multiprocessing
import os
import signal
import subprocess
import sys

import pytest
import torch

from attention_branch.cli import main
from attention_branch.files import held_alone
from attention_branch.reproduce import conduct
from attention_branch.reproduce import record as records
from attention_branch.reproduce.arrays import Arrays, preprocessing_of
from attention_branch.reproduce.cells import Cell
from attention_branch.reproduce.groups import read_groups
from attention_branch.reproduce.plan import Protocol, make_jobs
from attention_branch.reproduce.progress import Progress
from attention_branch.reproduce.signals import deaf, stopped_in_order
from reproduce_runs import HUNDRED, one_epoch, opened, write_pictures


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    return write_pictures(tmp_path_factory.mktemp("pictures"), train=4, test=2)


@pytest.fixture(scope="module")
def hundred(tmp_path_factory):
    return write_pictures(tmp_path_factory.mktemp("hundred"), **HUNDRED)


def on_hundred(hundred, out, *more):
    """Return the words of a run of ResNet-20 on a hundred classes."""
    start = ["table1", "--data", f"tiny-imagenet-100={hundred}", "--out", str(out), "--seeds", "0", "--device", "cpu"]
    return [*start, "--precision", "32", "--at-once", "1", *more]


def done(arguments, capsys):
    with pytest.raises(SystemExit) as ended:
        main(["reproduce", *arguments])
    assert ended.value.code == 0
    return capsys.readouterr().out


def test_the_whole_command(hundred, tmp_path, capsys, monkeypatch):
    """Two arms in one worker process, which is killed while it trains the second; then the rest, and what is shown.

    With modern settings, whose augmentation works on single pictures.
    """
    out = tmp_path / "runs"
    short = ["--cells", "resnet20/*/plain", "resnet20/*/residual", "--protocol", "modern", "--epochs", "2"]
    arguments = on_hundred(hundred, out, *short, "--train-images", "100")
    origin, data = opened("tiny-imagenet-100", hundred)
    cell, protocol = Cell("resnet20", "cifar100", "residual"), Protocol("modern", 2, 100)
    (job,) = make_jobs([cell], origin, data, protocol, [0], out, False)
    one_epoch(job, Arrays(tmp_path / "arrays", data).write(data, preprocessing_of(job.config, data)))
    before = records.read(job.record)
    assert (before["status"], before["epochs_done"]) == ("unfinished", 1)
    assert "add --resume" in refused(arguments, capsys)

    take = Progress.take

    def kill(self, report):
        take(self, report)
        if report.kind == "begun" and "residual" in report.name:
            assert report.epoch == 1
            (worker,) = multiprocessing.active_children()
            os.kill(worker.pid, signal.SIGKILL)

    with monkeypatch.context() as patched:
        patched.setattr(Progress, "take", kill)
        message = refused([*arguments, "--resume"], capsys)
    assert "A worker process was killed (exit status -9)" in message
    assert "go on with --resume" in message
    assert records.read(job.record) == before
    assert [(group.arm, group.seeds) for group in read_groups([out])] == [("plain", [0])]

    text = done([*arguments, "--resume"], capsys)
    assert "2 runs, 1 of them finished already" in text
    assert "a smoke test" in text
    assert "1 of 1 runs finished" in text
    record = records.read(job.record)
    assert records.is_finished(record)
    assert (record["protocol"]["name"], record["settings"]["augment"]) == ("modern", "pad-crop-flip-trivial")
    assert len(record["curves"]["test_error"]) == record["epochs_done"] == 2
    assert {name: values[:1] for name, values in record["curves"].items()} == before["curves"]
    assert record["hardware"]["runs_at_once"] == 1
    assert record["data"]["pixels"] == before["data"]["pixels"]
    assert not job.checkpoint.exists()
    assert "2 of them finished already" in done(arguments, capsys)

    # While another command works in the folder this one is refused, and what is finished is shown.
    with held_alone(out):
        assert f"Another command works in '{out}'; wait until it has ended" in refused(arguments, capsys)
        text = done(["show", "--out", str(out)], capsys)
    assert "Smoke test, no result: resnet20 on Tiny-ImageNet-100 at 32 px" in " ".join(text.split())
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
        (["table1"], "There is no data for any of the chosen cells (cifar100, cifar10)"),
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


def test_more_training_pictures_than_there_are_is_refused_at_once(pictures, tmp_path, capsys):
    arguments = ["table2", "--data", f"cifar10-jpeg={pictures}", "--out", str(tmp_path), "--device", "cpu"]
    assert "--train-images is 9,999, but" in refused([*arguments, "--epochs", "1", "--train-images", "9999"], capsys)
    assert not list(tmp_path.rglob("*.json"))


def test_a_scheduler_stops_the_command_as_a_person_does():
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(KeyboardInterrupt), stopped_in_order():
        signal.raise_signal(signal.SIGTERM)
    assert signal.getsignal(signal.SIGTERM) is before


def test_processes_are_deaf_from_their_first_moment():
    """Ctrl-C goes to a whole group, and whoever is still importing would die of it."""
    ask = "import signal as s; print(s.getsignal(s.SIGINT) is s.SIG_IGN, s.getsignal(s.SIGTERM) is s.SIG_IGN)"
    with deaf():
        os.kill(os.getpid(), signal.SIGTERM)
        heard = subprocess.run([sys.executable, "-c", ask], capture_output=True, text=True, check=True).stdout
    assert heard.split() == ["True", "True"]
    with pytest.raises(KeyboardInterrupt):
        signal.raise_signal(signal.SIGINT)


def test_what_a_killed_command_left_is_removed(pictures, tmp_path, capsys):
    left = tmp_path / ".pixels-of-a-killed-one"
    left.mkdir()
    (left / "train.npy").write_bytes(b"1")
    arguments = ["table2", "--data", f"cifar10-jpeg={pictures}", "--out", str(tmp_path), "--device", "cpu"]
    refused([*arguments, "--epochs", "1", "--train-images", "9999"], capsys)
    assert not list(tmp_path.glob(".pixels-*"))


def test_long_work_without_a_gpu_asks_for_a_budget(hundred, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(conduct, "UNASKED", 1.0)
    message = refused(on_hundred(hundred, tmp_path, "--cells", "resnet20/*/plain"), capsys)
    assert "Without a GPU these 1 runs take about" in message
    assert "--budget MINUTES" in message
    assert not list(tmp_path.rglob("*.json"))


def test_a_begun_run_needs_resume(hundred, tmp_path, capsys):
    arguments = on_hundred(hundred, tmp_path, "--cells", "resnet20/*/plain", "--epochs", "2", "--train-images", "8")
    record = tmp_path / "tiny-imagenet-100" / "resnet20" / "plain" / "published-e2-n8-seed0.json"
    record.parent.mkdir(parents=True)
    record.with_suffix(".ckpt").write_bytes(b"torn")
    assert "add --resume" in refused(arguments, capsys)
