"""Scores against scikit-learn, torchmetrics and hand-made cases; classes matched by name; the written file."""

import io
import json
import math
from typing import NamedTuple

import numpy as np
import pytest
import torch
from PIL import Image
from rich.console import Console
from sklearn import metrics
from torch import nn

import attention_branch.evaluation.run as run_module
from attention_branch.data import open_data
from attention_branch.data.dataset import DataSet, ImageSet, Source
from attention_branch.errors import UserError
from attention_branch.evaluation import evaluate, evaluate_run
from attention_branch.evaluation.evaluation import HeadEvaluation, Predictions
from attention_branch.evaluation.scores import branch_scores, calibration_bins, expected_calibration_error
from attention_branch.models.preprocessing import Preprocessing
from attention_branch.models.registry import create_model


class Output(NamedTuple):
    logits: object
    attention_logits: object
    attention: torch.Tensor


class ReadsColour(nn.Module):
    """Answers with the pixel colour at the top left: red, green or blue; M is bright in the lower right corner."""

    is_abn = True
    heads = None
    num_classes = 3

    def __init__(self, class_names=("red", "green", "blue")):
        super().__init__()
        self.class_names = list(class_names) if class_names else None
        self.preprocessing = Preprocessing(size=(8, 8), mean=(0, 0, 0), std=(1, 1, 1), resize="squash", crop_pct=1)

    def forward(self, images):
        attention = torch.zeros(len(images), 1, 8, 8)
        attention[:, :, 6, 6] = 1
        logits = images[:, :, 0, 0] * 5
        return Output(logits, logits.roll(1, 1), attention)


class Colours(Source):
    """Flat pictures of one colour each, with a mask in the corner of every second one."""

    def __init__(self, colours, masks=True):
        self.colours, self.masks = colours, masks

    def __len__(self):
        return len(self.colours)

    def image(self, row):
        pixels = np.zeros((8, 8, 3), dtype=np.uint8)
        pixels[..., self.colours[row]] = 255
        return Image.fromarray(pixels)

    def id(self, row):
        return f"colour-{row}"

    def mask(self, row):
        if not self.masks or row % 2:
            return None
        mask = np.zeros((8, 8), dtype=np.uint8)
        mask[6:, 6:] = row % 4 == 0
        mask[:2, :2] = row % 4 == 2
        return mask


def made_up(count=400, classes=4, seed=0):
    rng = np.random.default_rng(seed)
    probabilities = rng.dirichlet(np.ones(classes), count)
    targets = np.where(rng.random(count) < 0.5, probabilities.argmax(1), rng.integers(0, classes, count))
    return probabilities, targets


def batches(model_logits, targets, size=7):
    for start in range(0, len(targets), size):
        rows = slice(start, start + size)
        yield {"images": model_logits[rows], "targets": targets[rows]}


class Echo(nn.Module):
    """Returns its input, so that the logits are known."""

    is_abn = False
    heads = None
    num_classes = 6
    class_names = None

    def forward(self, images):
        return images


def as_images(logits):
    class Flat(Echo):
        def forward(self, images):
            return images[:, :, 0, 0]

    return Flat(), logits[:, :, None, None]


def test_scores_equal_scikit_learn():
    probabilities, targets = made_up(classes=6)
    scores = branch_scores(probabilities, targets)
    predicted = probabilities.argmax(1)
    assert scores.accuracy == pytest.approx(metrics.accuracy_score(targets, predicted))
    assert scores.top5 == pytest.approx(metrics.top_k_accuracy_score(targets, probabilities, k=5))
    assert scores.nll == pytest.approx(metrics.log_loss(targets, probabilities))
    assert scores.balanced_accuracy == pytest.approx(metrics.balanced_accuracy_score(targets, predicted))
    assert scores.roc_auc is None
    names = [f"class {number}" for number in range(6)]
    head = HeadEvaluation.of(Predictions(probabilities, None, targets, np.arange(400)), names)
    precision, recall, _, support = metrics.precision_recall_fscore_support(targets, predicted)
    assert [row.precision for row in head.classes] == pytest.approx(precision)
    assert [row.recall for row in head.classes] == pytest.approx(recall)
    assert [row.support for row in head.classes] == support.tolist()
    assert (head.confusion == metrics.confusion_matrix(targets, predicted)).all()
    for index, row in enumerate(head.classes):
        assert row.accuracy == pytest.approx(metrics.accuracy_score(targets == index, predicted == index))
    assert head.attention is None
    assert head.agreement is None


def test_two_classes_have_average_precision_and_auc():
    probabilities, targets = made_up(classes=2)
    scores = branch_scores(probabilities, targets)
    assert scores.top5 is None
    assert scores.roc_auc == pytest.approx(metrics.roc_auc_score(targets, probabilities[:, 1]))
    assert scores.average_precision == pytest.approx(metrics.average_precision_score(targets, probabilities[:, 1]))
    only_one = branch_scores(probabilities[:5], np.zeros(5, dtype=int))
    assert only_one.roc_auc is None
    assert only_one.average_precision is None


def test_top5_of_exactly_five_classes_is_always_right():
    probabilities, targets = made_up(classes=5)
    assert branch_scores(probabilities, targets).top5 == 1.0


def test_calibration_error_by_hand_and_by_torchmetrics():
    # 4 bins; (0.5, 0.75] holds three images, mean confidence 0.7, one right; (0.75, 1] holds one, 0.8, right.
    confidence, right = np.array([0.6, 0.75, 0.75, 0.8]), np.array([True, False, False, True])
    expected = 3 / 4 * abs(0.7 - 1 / 3) + 1 / 4 * abs(0.8 - 1)
    assert expected_calibration_error(confidence, right, bins=4) == pytest.approx(expected)
    rows = calibration_bins(confidence, right, bins=4)
    assert rows[0] == (0.0, None, None)
    assert rows[2] == pytest.approx((0.75, 0.7, 1 / 3))
    assert expected_calibration_error(np.ones(5), np.ones(5, dtype=bool)) == 0
    from torchmetrics.functional.classification import multiclass_calibration_error

    probabilities, targets = made_up(classes=6)
    referee = multiclass_calibration_error(torch.from_numpy(probabilities), torch.from_numpy(targets), 6, n_bins=15)
    assert branch_scores(probabilities, targets).ece == pytest.approx(referee.item(), abs=1e-6)


def test_evaluate_on_batches_gives_the_predictions_of_softmax():
    logits = torch.randn(40, 6, generator=torch.Generator().manual_seed(0))
    targets = torch.randint(0, 6, (40,), generator=torch.Generator().manual_seed(1))
    targets[3] = -1
    model, images = as_images(logits)
    evaluation = evaluate(model, batches(images, targets))
    head = evaluation.heads["label"]
    assert np.allclose(head.predictions.probabilities, torch.softmax(logits.double(), 1).numpy())
    assert (head.n, head.missing, evaluation.n) == (39, 1, 40)
    kept = targets >= 0
    assert evaluation.accuracy == pytest.approx((logits.argmax(1) == targets)[kept].float().mean().item())
    assert evaluation.attention_accuracy is None
    assert evaluation.pointing == {}
    assert head.majority == pytest.approx(np.bincount(targets[kept]).max() / 39)
    for wrong in (6, -2):
        targets[0] = wrong
        with pytest.raises(UserError, match="out of range"):
            evaluate(model, batches(images, targets))
    with pytest.raises(UserError, match="no image"):
        evaluate(model, [])


def test_classes_are_matched_by_name_and_branches_compared():
    colours = [0, 1, 2, 2, 1, 0, 2, 0]
    # The data lists the classes in another order and lacks none; the model must still be right everywhere.
    data = ImageSet(
        Colours(colours), {"label": np.array([2, 0, 1, 1, 0, 2, 1, 2])}, {"label": ["green", "blue", "red"]}
    )
    model = ReadsColour().train()
    evaluation = evaluate(model, data, batch_size=3)
    assert model.training
    assert evaluation.accuracy == 1.0
    assert evaluation.attention_accuracy == 0.0
    head = evaluation.heads["label"]
    assert head.predictions.targets.tolist() == colours
    assert (head.agreement.rate, head.agreement.accuracy_disagree, head.agreement.accuracy_agree) == (0.0, 1.0, None)
    assert [row.support for row in head.classes] == [3, 2, 3]
    # Four images have a mask, two of them where M points; the corner's mask is hit, the other one is not.
    assert evaluation.pointing["attention"].values.tolist() == [1, 0, 1, 0]
    assert evaluation.pointing["center"].mean == 0
    assert evaluation.pointing["random"].n == 4
    assert "every image" in evaluation.alarm
    subset = ImageSet(Colours([1, 1], masks=False), {"label": np.zeros(2)}, {"label": ["green"]})
    part = evaluate(model, subset)
    assert part.accuracy == 1.0
    assert part.heads["label"].class_names == ["red", "green", "blue"]
    assert part.pointing == {}


def test_classes_the_model_does_not_know_are_refused():
    unknown = ImageSet(Colours([0, 1]), {"label": np.array([0, 1])}, {"label": ["red", "gren"]})
    with pytest.raises(UserError, match=r"'gren'.*Did you mean 'green'"):
        evaluate(ReadsColour(), unknown)
    with pytest.raises(UserError, match="cannot be matched"):
        evaluate(ReadsColour(None), unknown)
    several = ImageSet(Colours([0]), {"a": np.array([0])}, {"a": ["x", "y"]}, multitask=True)
    with pytest.raises(UserError, match="several heads"):
        evaluate(ReadsColour(), several)


class TwoHeads(nn.Module):
    is_abn = True
    heads = {"dark": 1, "shade": 3}  # noqa: RUF012
    class_names = {"dark": ["no", "yes"], "shade": ["red", "green", "blue"]}  # noqa: RUF012
    preprocessing = Preprocessing(size=(8, 8), mean=(0, 0, 0), std=(1, 1, 1), resize="squash", crop_pct=1)

    def forward(self, images):
        colours = images[:, :, 0, 0] * 5
        logits = {"dark": colours[:, 2:] - 2.5, "shade": colours}
        attention = torch.zeros(len(images), 2, 8, 8)
        attention[:, 0, 6, 6] = attention[:, 1, 0, 0] = 1
        return Output(logits, logits, attention)


def test_heads_are_scored_apart_and_missing_labels_left_out():
    colours = [0, 1, 2, 2]
    targets = {"shade": np.array([0, 1, 2, -1]), "dark": np.array([0, -1, 1, 0])}
    data = ImageSet(
        Colours(colours), targets, {"shade": ["red", "green", "blue"], "dark": ["no", "yes"]}, multitask=True
    )
    evaluation = evaluate(TwoHeads(), data)
    dark, shade = evaluation.heads["dark"], evaluation.heads["shade"]
    assert (dark.n, dark.missing, dark.perception.accuracy) == (3, 1, pytest.approx(2 / 3))
    assert (shade.n, shade.perception.accuracy) == (3, 1.0)
    assert evaluation.accuracy == pytest.approx((2 / 3 + 1) / 2)
    assert dark.perception.roc_auc == pytest.approx(0.75)  # yes ties with one of the two no, and beats the other
    sigmoid = 1 / (1 + math.exp(-2.5))
    assert dark.predictions.probabilities[:, 1] == pytest.approx([1 - sigmoid, 1 - sigmoid, sigmoid, sigmoid])
    assert evaluation.pointing["attention: dark"].values.tolist() == [1, 0]
    assert evaluation.pointing["attention: shade"].values.tolist() == [0, 1]
    unlabelled = {"shade": np.full(4, -1), "dark": np.array([0, 0, 1, 1])}
    half = evaluate(TwoHeads(), ImageSet(Colours(colours), unlabelled, data.tasks, multitask=True))
    assert half.heads["shade"].perception is None
    assert half.accuracy == 1.0
    json.dumps(half.to_dict(), allow_nan=False)
    text = printed(evaluation)
    assert "shade" in text
    with pytest.raises(UserError, match="no head 'tint'"):
        evaluate(TwoHeads(), ImageSet(Colours([0]), {"tint": np.array([0])}, {"tint": ["a", "b"]}, multitask=True))


def printed(evaluation, width=80):
    console = Console(file=io.StringIO(), width=width, color_system=None)
    evaluation.print(console)
    return console.file.getvalue()


def test_the_dictionary_is_json_and_the_table_fits_80_columns():
    data = open_data("digits")
    model = create_model("resnet20", num_classes=10, class_names=data.class_names)
    model.preprocessing = Preprocessing(size=(32, 32), resize="squash", crop_pct=1)
    evaluation = evaluate(model, data.test.subset(range(24)), batch_size=10)
    values = json.loads(json.dumps(evaluation.to_dict(), allow_nan=False))
    assert values["n"] == 24
    assert values["accuracy"] == evaluation.accuracy
    assert values["attention_accuracy"] == evaluation.attention_accuracy
    assert np.sum(values["confusion"]) == 24
    assert set(values["pointing"]) == {"attention", "center", "random"}
    assert values["pointing"]["attention"]["protocol"]["tolerance"] == pytest.approx(15 / 224)
    text = printed(evaluation)
    assert max(len(line.rstrip()) for line in text.splitlines()) <= 80
    assert f"{100 * evaluation.accuracy:.1f} %" in text
    again = evaluate(model, data.test.subset(range(24)), batch_size=24)
    assert again.pointing["random"].values.tolist() == evaluation.pointing["random"].values.tolist()


def test_many_classes_write_only_the_nonzero_confusions():
    probabilities, targets = made_up(count=50, classes=120)
    head = HeadEvaluation.of(Predictions(probabilities, None, targets, np.arange(50)), [str(n) for n in range(120)])
    values = head.to_dict()
    assert "confusion" not in values
    rebuilt = np.zeros((120, 120), dtype=int)
    for row, column, count in values["confusion_nonzero"]:
        rebuilt[row, column] = count
    assert (rebuilt == head.confusion).all()


@pytest.fixture
def run(tmp_path, monkeypatch):
    colours = np.arange(30) % 3
    sets = ImageSet(Colours(list(colours)), {"label": colours}, {"label": ["red", "green", "blue"]})
    data = DataSet(
        "colours", seed=5, tasks={"label": ("red", "green", "blue")}, train=sets, test=sets.subset(range(20))
    )
    seeds = []

    def opened(spec, *, seed=0, test=0.2, **_):
        seeds.append(seed)
        if spec == "colours":
            return data
        whole = ImageSet(Colours([0, 1, 2, 0]), {"label": np.array([0, 1, 2, 0])}, data.tasks)
        parts = {"test": whole} if test == 1 else {"train": whole.subset([0, 1, 2]), "test": whole.subset([3])}
        return DataSet(spec, seed=seed, tasks=data.tasks, **parts)

    monkeypatch.setattr(run_module, "open_data", opened)
    model = create_model("resnet20", num_classes=3, class_names=["blue", "red", "green"])
    model.preprocessing = Preprocessing(size=(16, 16), resize="squash", crop_pct=1)
    folder = tmp_path / "run"
    model.save_pretrained(folder / "model")
    (folder / "config.json").write_text(json.dumps({"data": {**data.record(), "seed": 5}}))
    return folder, data, seeds


def test_a_run_is_evaluated_and_the_file_says_on_what(run):
    folder, data, seeds = run
    evaluation = evaluate_run(folder, progress=False, batch_size=8)
    assert seeds == [5]  # the split of the training is made again
    assert evaluation.notes == ()
    values = json.loads((folder / "evaluation-test.json").read_text())
    assert values["accuracy"] == evaluation.accuracy
    assert values["record"]["split"] == "test"
    assert values["record"]["images_fingerprint"] == data.test.fingerprint()
    assert sorted(path.name for path in folder.iterdir()) == ["config.json", "evaluation-test.json", "model"]
    limited = evaluate_run(folder, limit=6, progress=False)
    assert limited.n == 6
    assert "6 of the 20" in limited.notes[0]
    with pytest.raises(UserError, match="split"):
        evaluate_run(folder, split="tset", progress=False)
    with pytest.raises(UserError, match="limit"):
        evaluate_run(folder, limit=0, progress=False)


def test_without_a_test_split_the_validation_split_is_used_and_said(run):
    folder, data, _ = run
    data.validation, data.test = data.test, None
    evaluation = evaluate_run(folder, progress=False)
    assert "no test split" in evaluation.notes[0]
    assert "no test split" in printed(evaluation).replace("\n", " ")
    assert (folder / "evaluation-validation.json").is_file()
    data.validation = None
    with pytest.raises(UserError, match="it has train"):
        evaluate_run(folder, progress=False)
    assert "trained on" in evaluate_run(folder, split="train", progress=False).notes[0]


def test_a_split_other_than_the_recorded_one_is_said(run):
    folder, data, _ = run
    data.test = data.train.subset(range(5, 30))
    assert "differs" in evaluate_run(folder, progress=False).notes[0]


def test_other_data_without_splits_is_evaluated_whole(run):
    folder, _, _ = run
    evaluation = evaluate_run(folder / "model", "elsewhere", output=folder, progress=False)
    assert evaluation.n == 4
    assert "Other data" in evaluation.notes[0]
    (folder / "config.json").unlink()
    assert evaluate_run(folder, "elsewhere", progress=False).notes == ()
    with pytest.raises(UserError, match="records no data"):
        evaluate_run(folder, progress=False)
    (folder / "config.json").write_text("{")
    with pytest.raises(UserError, match="damaged"):
        evaluate_run(folder, "elsewhere", progress=False)
