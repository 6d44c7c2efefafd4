"""Runs that are fitted in stages: linear SVMs against scikit-learn's own pipeline, what is kept, what is refused."""

import json
import signal
import threading
import time
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.svm import LinearSVC

import attention_branch as ab
from attention_branch.errors import UserError
from attention_branch.evaluation import evaluate_run
from attention_branch.training import TrainConfig, parse_train_arguments, svm, train
from attention_branch.training import fitted as fitted_module
from attention_branch.training.fitted import FITTERS, Fitter, check_fitted
from attention_branch.training.journal import read_metrics
from attention_branch.training.stages import Stages
from attention_branch.training.svm import fit_svms
from test_moon import write_marks


def problem(count=200, width=12, heads=3, seed=0):
    random = np.random.default_rng(seed)
    directions = np.random.default_rng(9).normal(size=(width, heads))
    features = random.normal(size=(count, width)) * np.linspace(0.1, 20, width) + np.linspace(-5, 5, width)
    scores = (features - np.linspace(-5, 5, width)) / np.linspace(0.1, 20, width) @ directions
    return features.astype(np.float32), (scores + random.normal(size=scores.shape) > 0.5).astype(np.int64)


def test_svms_are_scikit_learns():
    features, targets = problem()
    asked, truth = problem(seed=1)
    targets[:40, 1] = -1
    truth[:10, 1] = -1
    found = fit_svms(features, targets, asked, truth, costs=(3.0,))
    for head in range(3):
        known, seen = targets[:, head] >= 0, truth[:, head] >= 0
        reference = make_pipeline(StandardScaler(), LinearSVC(C=3.0 / 12, dual=False, intercept_scaling=10 * 12**0.5))
        # The scale is that of all rows, also of those without this label.
        reference[0].fit(features)
        reference[1].fit(reference[0].transform(features[known]), targets[known, head])
        theirs = reference[1].decision_function(reference[0].transform(asked))
        ours = asked @ found.weight[head].numpy() + found.bias[head].item()
        assert np.abs(ours - theirs).max() < 0.02 * np.abs(theirs).max()
        assert found.accuracies[head] == pytest.approx(((ours > 0) == truth[:, head])[seen].mean())


def test_c_is_chosen_on_validation():
    features, targets = problem(count=30, width=12)
    asked, truth = problem(count=400, seed=1)
    single = [fit_svms(features, targets, asked, truth, costs=(cost,)).accuracies for cost in (1e-4, 1.0, 1e4)]
    best = fit_svms(features, targets, asked, truth, costs=(1e-4, 1.0, 1e4))
    assert best.accuracies == tuple(np.max(single, axis=0))
    assert best.costs == tuple((1e-4, 1.0, 1e4)[place] for place in np.argmax(single, axis=0))


def test_heads_of_one_class_are_answered_by_it_and_constants_do_no_harm():
    features, targets = problem()
    features[:, 3] = 7.0
    targets[:, 0], targets[:, 1], targets[5:, 2] = 1, -1, -1
    found = fit_svms(features, targets, features, targets, costs=(1.0,))
    scores = features @ found.weight.numpy().T + found.bias.numpy()
    assert (scores[:, 0] > 0).all()
    assert (scores[:, 1] < 0).all()
    assert found.weight[:, 3].abs().max() == 0
    assert found.weight.isfinite().all()


def test_many_numbers_are_fitted_by_gradient_descent(monkeypatch):
    features, targets = problem(count=2000)
    asked, truth = problem(count=500, seed=1)
    exact = fit_svms(features, targets, asked, truth)
    monkeypatch.setattr(svm, "LARGE", 1000)
    assert type(svm._machine(1.0, features, 0)).__name__ == "SGDClassifier"
    descended = fit_svms(features, targets, asked, truth)
    assert np.allclose(descended.accuracies, exact.accuracies, atol=0.03)


def test_a_long_fit_is_interrupted():
    class Endless:
        def fit(self, features, target):
            threading.Event().wait(20)

    threading.Timer(0.5, lambda: signal.raise_signal(signal.SIGINT)).start()
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    began = time.monotonic()
    try:
        with pytest.raises(KeyboardInterrupt):
            svm._fitted(Endless(), np.zeros((2, 2)), np.zeros(2))
    finally:
        signal.signal(signal.SIGINT, before)
    assert time.monotonic() - began < 10


def test_what_a_fit_raises_is_raised():
    with pytest.raises(ValueError, match="class"):
        svm._fitted(svm._machine(1.0, np.zeros((2, 2)), 0), np.zeros((2, 2)), np.zeros(2))


def test_stages_are_kept_and_made_once(tmp_path):
    calls = []

    def make():
        calls.append(1)
        return {"a": torch.arange(3)}

    def blocks():
        calls.append(2)
        yield np.ones((2, 3), np.float16)
        yield np.zeros((1, 3), np.float16)

    for _ in range(2):
        stages = Stages(tmp_path)
        assert torch.equal(stages.tensors("first", make)["a"], torch.arange(3))
        assert stages.array("second", blocks, 3).tolist() == [[1, 1, 1], [1, 1, 1], [0, 0, 0]]
    assert calls == [1, 2]
    (tmp_path / "stages" / "first.safetensors").write_bytes(b"torn")
    (tmp_path / "stages" / "second.npy").write_bytes(b"torn")
    with pytest.raises(UserError, match=r"first.safetensors' is damaged .* remove it"):
        Stages(tmp_path).tensors("first", make)
    with pytest.raises(UserError, match=r"second.npy' is damaged"):
        Stages(tmp_path).array("second", blocks, 3)
    stages.clear()
    assert not (tmp_path / "stages").exists()


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"lr": 0.5}, "lr has no meaning for 'facetracer'"),
        ({"epochs": 3}, "epochs has no meaning"),
        ({"mixup": 0.2}, "mixup has no meaning"),
        ({"tensorboard": True}, "tensorboard has no meaning"),
        ({"mechanism": "product"}, "mechanism has no meaning"),
        ({"devices": 2}, "fitted by one process"),
    ],
)
def test_settings_without_a_meaning_are_refused(changes, words):
    with pytest.raises(UserError, match=words):
        check_fitted(TrainConfig(model="facetracer", data="x", **changes))


def test_the_defaults_of_a_recipe_are_not_refused():
    for name in ("default", "facetracer", "celeba"):
        check_fitted(parse_train_arguments(["x", "--recipe", name, "--model", "facetracer"]))


@pytest.fixture(scope="module")
def marks(tmp_path_factory) -> Path:
    return write_marks(tmp_path_factory.mktemp("data") / "marks")


def settings(data, out) -> TrainConfig:
    options = ("regions='grid'", "grid=2", "features=2")
    return TrainConfig(
        data=str(data),
        model="facetracer",
        image_size=32,
        model_options=options,
        out=str(out),
        accelerator="cpu",
        workers=0,
    )


@pytest.fixture(scope="module")
def run(marks, tmp_path_factory) -> Path:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        return train(settings(marks, tmp_path_factory.mktemp("runs") / "run"))


def test_a_run_writes_what_abn_train_writes(run, tmp_path):
    assert {path.name for path in run.iterdir()} == {"config.json", "metrics.jsonl", "summary.json", "model", "last"}
    (line,) = read_metrics(run)
    summary = json.loads((run / "summary.json").read_text())
    assert {"epoch", "step", "lr", "train_loss", "train_accuracy", "validation_loss", "best", "seconds"} <= set(line)
    assert summary["validation_accuracy"] == line["validation_accuracy"]
    found = evaluate_run(run, split="validation", output=tmp_path, progress=False)
    assert found.accuracy == pytest.approx(line["validation_accuracy"])
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file() and path.name != "config.json"}
    assert train(parse_train_arguments(["--resume", str(run)])) == run
    assert {path: path.read_bytes() for path in before} == before


def test_a_stopped_run_goes_on_to_the_same_weights(run, marks, tmp_path, monkeypatch, capsys):
    from attention_branch.training import facetracer

    classifier, calls = facetracer._classifier, []

    def stopped(kept, truth, head, places, seed):
        calls.append(head)
        if head == 1 and len(calls) == 2:
            raise KeyboardInterrupt
        return classifier(kept, truth, head, places, seed)

    monkeypatch.setattr(facetracer, "_classifier", stopped)
    out = tmp_path / "again"
    with pytest.raises(SystemExit) as ended:
        train(settings(marks, out))
    assert ended.value.code == 130
    assert f"abn train --resume {out}" in capsys.readouterr().out
    assert not (out / "summary.json").exists()
    train(parse_train_arguments(["--resume", str(out)]))
    assert calls == [0, 1, 1]
    assert not (out / "stages").exists()
    whole, resumed = (ab.load_model(folder).state_dict() for folder in (run, out))
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)


def test_a_system_fitted_by_several_processes_is_refused(marks, tmp_path, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(UserError, match="start it without torchrun"):
        train(settings(marks, tmp_path / "run"))


def test_a_fitter_reads_what_it_says(monkeypatch):
    fitter = Fitter(lambda *_: None, frozenset({"lr"}))
    monkeypatch.setitem(fitted_module.FITTERS, "facetracer", fitter)
    check_fitted(TrainConfig(model="facetracer", data="x", lr=0.5))
    assert FITTERS["facetracer"] is fitter
