"""Whole runs in miniature: what they write, how they stop, and how they go on."""

import dataclasses
import importlib.util
import json
import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import torch

import attention_branch as ab
from attention_branch.data import make_loader, open_data
from attention_branch.errors import UserError
from attention_branch.training import TrainConfig, parse_train_arguments, recipe, train
from attention_branch.training import run as run_module
from attention_branch.training.journal import read_metrics
from attention_branch.training.module import Classifier

DATA = "digits:train=30,validation=12,test=10"
SMALL = {"data": DATA, "model": "resnet20", "image_size": 32, "batch_size": 15, "maps": 2, "accelerator": "cpu"}


def small(**changes: object) -> TrainConfig:
    return recipe("default", **SMALL | {"warmup_epochs": 0.0, "epochs": 2} | changes)


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return ab.load_model(folder).state_dict()


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with everything random switched on."""
    out = tmp_path_factory.mktemp("finished") / "run"
    return train(small(out=str(out), epochs=3, ema=0.9, mixup=0.4, cutmix=1.0, label_smoothing=0.1))


def test_what_a_run_writes(tmp_path: Path) -> None:
    config = recipe("default", **SMALL | {"epochs": 1, "out": str(tmp_path / "run")})
    folder = train(config)
    (line,) = read_metrics(folder)
    assert (line["epoch"], line["step"], line["best"]) == (0, 2, True)
    assert {"train_loss", "train_attention_loss", "validation_accuracy", "validation_attention_accuracy"} <= set(line)
    assert {"map_mean", "map_spread", "alarm", "seconds", "images_per_second", "lr"} <= set(line)
    record = json.loads((folder / "config.json").read_text())
    assert record["settings"]["lr"] == config.lr
    assert record["data"]["fingerprint"] == open_data(DATA, seed=0).record()["fingerprint"]
    assert (folder / "maps" / "epoch-000.png").stat().st_size > 1000
    assert json.loads((folder / "summary.json").read_text())["epochs"] == 1
    model = ab.load_model(folder)
    assert model.class_names == [str(digit) for digit in range(10)]
    assert model.preprocessing.size == (32, 32)


def test_the_averaged_weights_are_what_is_evaluated_and_saved(finished: Path) -> None:
    lines = read_metrics(finished)
    data = open_data(DATA, seed=0)
    assert data.validation is not None
    best = next(line for line in reversed(lines) if line["best"])
    for name, line in (("last", lines[-1]), ("model", best)):
        model = ab.load_model(finished / name)
        (batch,) = make_loader(data.validation, model.preprocessing, 12, train=False)
        with torch.no_grad():
            output = model(batch["images"])
        assert line["validation_accuracy"] == pytest.approx(
            (output.logits.argmax(1) == batch["targets"]).float().mean()
        )
        loss = torch.nn.functional.cross_entropy(output.logits, batch["targets"])
        assert line["validation_perception_loss"] == pytest.approx(loss.item(), rel=1e-3)
        assert line["map_mean"] == pytest.approx(output.attention.mean().item(), rel=1e-3)
    assert best["validation_accuracy"] == max(line["validation_accuracy"] for line in lines)
    checkpoint = torch.load(finished / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]
    name = "backbone.fc.weight"
    assert torch.equal(checkpoint[f"average.module.{name}"], weights(finished / "last")[name])
    assert not torch.equal(checkpoint[f"model.{name}"], weights(finished / "last")[name])


@pytest.mark.heavy
def test_killed_and_resumed_equals_unbroken(finished: Path, tmp_path: Path) -> None:
    settings = dataclasses.replace(
        parse_train_arguments(["--resume", str(finished)]), resume=None, out=str(tmp_path / "b")
    )
    script = tmp_path / "killed.py"
    script.write_text(
        textwrap.dedent(
            f"""
            import os, signal, torch
            from attention_branch.training import TrainConfig, train
            from attention_branch.training.module import Classifier

            torch.set_num_threads({torch.get_num_threads()})
            step = Classifier.training_step

            def killed(self, batch, index):
                if self.current_epoch == 1 and index == 1:
                    os.kill(os.getpid(), signal.SIGKILL)
                return step(self, batch, index)

            Classifier.training_step = killed
            train(TrainConfig(**{dataclasses.asdict(settings)!r}))
            """
        )
    )
    done = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, timeout=300)
    assert done.returncode == -signal.SIGKILL, done.stderr
    broken = tmp_path / "b"
    # What a kill between the line of an epoch and its checkpoint leaves behind.
    with (broken / "metrics.jsonl").open("a") as file:
        file.write(json.dumps(read_metrics(broken)[0] | {"epoch": 1}) + '\n{"epoch": 2, "tr')
    (broken / "checkpoints" / ".last.ckpt.left").write_bytes(b"half")
    assert not (broken / "summary.json").exists()
    train(parse_train_arguments(["--resume", str(broken)]))
    for name in ("last", "model"):
        whole, resumed = weights(finished / name), weights(broken / name)
        assert all(torch.equal(whole[key], resumed[key]) for key in whole)
    timings = {"seconds", "train_seconds", "images_per_second"}
    lines = [
        [{k: v for k, v in line.items() if k not in timings} for line in read_metrics(r)] for r in (finished, broken)
    ]
    assert lines[0] == lines[1]
    assert len(lines[0]) == 3
    assert not list((broken / "checkpoints").glob(".*"))


def test_a_finished_run_is_not_trained_again(finished: Path) -> None:
    before = {path: path.read_bytes() for path in finished.rglob("*.safetensors")}
    train(parse_train_arguments(["--resume", str(finished)]))
    assert {path: path.read_bytes() for path in finished.rglob("*.safetensors")} == before
    assert len(read_metrics(finished)) == 3


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"batch_size": 32, "accumulate": 2}, "more than the 30 training images"),
        ({"model": "resnet18", "image_size": 16}, "too small for resnet18"),
        ({"batch_size": 15, "accumulate": 2}, "does not divide"),
        ({"model": "resnet21"}, "Unknown backbone 'resnet21'"),
        ({"augment": "flop"}, "Did you mean 'flip'"),
        ({"accelerator": "gpu"}, "torch sees none"),
        ({"tensorboard": True}, "tensorboard is not installed"),
    ],
)
def test_a_run_that_cannot_work_leaves_nothing(changes: dict, message: str, tmp_path: Path) -> None:
    if "accelerator" in changes and torch.cuda.is_available():
        pytest.skip("a GPU is there")
    if "tensorboard" in changes and importlib.util.find_spec("tensorboard"):
        pytest.skip("tensorboard is there")
    with pytest.raises(UserError, match=message):
        train(small(out=str(tmp_path / "run"), **changes))
    assert not (tmp_path / "run").exists()


def test_fewer_images_than_a_batch_make_one_batch(tmp_path: Path) -> None:
    folder = train(small(out=str(tmp_path / "run"), batch_size=128))
    assert [line["step"] for line in read_metrics(folder)] == [1, 2]


def test_a_folder_in_use_is_refused(finished: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="already holds a run of 3 epochs; continue it with --resume"):
        train(small(out=str(finished)))
    (tmp_path / "photo.png").write_bytes(b"x")
    with pytest.raises(UserError, match="not an empty folder"):
        train(small(out=str(tmp_path)))


def test_resuming_with_other_settings_or_data_is_refused(finished: Path) -> None:
    with pytest.raises(UserError, match="was trained with lr"):
        train(parse_train_arguments(["--resume", str(finished), "--lr", "0.5"]))
    record = json.loads((finished / "config.json").read_text())
    changed = record | {"data": record["data"] | {"fingerprint": "0"}}
    (finished / "config.json").write_text(json.dumps(changed))
    with pytest.raises(UserError, match="no longer holds the images"):
        train(parse_train_arguments(["--resume", str(finished)]))
    (finished / "config.json").write_text(json.dumps(record))


def test_a_loss_that_is_not_finite_stops_the_run_and_keeps_what_was_written(tmp_path: Path) -> None:
    config = small(out=str(tmp_path / "run"), optimizer="sgd", lr=1e30, schedule="constant", momentum=0.0)
    with pytest.raises(UserError, match=r"not finite at step 1 \(epoch 0, learning rate 1e\+30\)"):
        train(config)
    assert (tmp_path / "run" / "config.json").exists()
    assert not (tmp_path / "run" / "last").exists()


def test_an_interrupt_says_how_to_continue(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    step = Classifier.training_step

    def interrupted(self: Classifier, batch: dict, index: int) -> torch.Tensor:
        if self.current_epoch == 1:
            os.kill(os.getpid(), signal.SIGINT)
        return step(self, batch, index)

    out = tmp_path / "run"
    handler = signal.getsignal(signal.SIGINT)
    with monkeypatch.context() as patch:
        patch.setattr(Classifier, "training_step", interrupted)
        with pytest.raises(SystemExit) as stopped:
            train(small(out=str(out)))
    assert stopped.value.code == 130
    assert f"abn train --resume {out}" in capsys.readouterr().out
    assert signal.getsignal(signal.SIGINT) is handler
    train(parse_train_arguments(["--resume", str(out)]))
    assert [line["epoch"] for line in read_metrics(out)] == [0, 1]


def test_a_collapsed_map_raises_the_alarm(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    make = run_module.make_model

    def collapsed(*arguments: object) -> torch.nn.Module:
        model = make(*arguments)
        torch.nn.init.zeros_(model.branch.map_norm.weight)
        torch.nn.init.constant_(model.branch.map_norm.bias, -20)
        return model

    monkeypatch.setattr(run_module, "make_model", collapsed)
    folder = train(small(out=str(tmp_path / "run"), epochs=1, lr=0.0))
    assert "saturated near 0" in read_metrics(folder)[0]["alarm"]
    assert "warning: The attention maps are saturated near 0" in capsys.readouterr().out


def test_baseline_accumulation_and_bf16_run(tmp_path: Path) -> None:
    folder = train(
        small(out=str(tmp_path / "run"), epochs=1, batch_size=10, accumulate=2, baseline=True, precision="bf16")
    )
    (line,) = read_metrics(folder)
    assert line["step"] == 3
    assert "map_mean" not in line
    assert not ab.load_model(folder).is_abn
