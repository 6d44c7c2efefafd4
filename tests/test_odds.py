"""Counting the heads that are better, by hand; from files, and from the command line."""

import json

import numpy as np
import pytest

from attention_branch import cli
from attention_branch.data import open_data
from attention_branch.errors import UserError
from attention_branch.evaluation import Evaluation, HeadEvaluation, Odds, Predictions, attribute_odds, evaluate
from attention_branch.models import create_model

MINE = {"hat": 0.9, "smile": 0.8, "beard": 0.7, "young": 0.6}
OTHERS = {"young": 0.5, "beard": 0.7, "smile": 0.85, "hat": 0.1}


def evaluation(rights, fingerprint):
    """Return an evaluation of ten images whose heads are right in so many of them."""
    heads = {}
    for head, right in rights.items():
        targets = np.zeros(10, dtype=np.int64)
        answers = np.where(np.arange(10) < right, 0, 1)
        heads[head] = HeadEvaluation.of(
            Predictions(np.eye(2)[answers], None, targets, np.arange(10)), ["absent", "present"]
        )
    return Evaluation(10, heads, record={"images_fingerprint": fingerprint})


def test_odds_by_hand():
    odds = attribute_odds(MINE, OTHERS)
    assert (odds.better, odds.equal, odds.worse, odds.of) == (2, 1, 1, 4)
    assert odds.mean == pytest.approx(0.75)
    assert odds.other_mean == pytest.approx(0.5375)
    assert odds.same_images is None
    turned = attribute_odds(OTHERS, MINE)
    assert (turned.better, turned.equal, turned.worse) == (1, 1, 2)


def test_evaluations_and_their_files_give_the_same(tmp_path):
    first, second = evaluation({"hat": 9, "smile": 5}, "a"), evaluation({"smile": 5, "hat": 3}, "a")
    path = tmp_path / "evaluation-test.json"
    path.write_text(json.dumps(second.to_dict()))
    wanted = Odds(better=1, equal=1, worse=0, of=2, mean=0.7, other_mean=0.4, same_images=True)
    for other in (second, path, str(path), second.to_dict()):
        assert attribute_odds(first, other) == wanted
    assert wanted.sentence() == (
        "Better on 1 of 2 heads (equal on 1, worse on 0); mean accuracy 70.00 % against 40.00 %."
    )
    elsewhere = attribute_odds(first, evaluation({"smile": 5, "hat": 3}, "b"))
    assert elsewhere.same_images is False
    assert "on other images" in elsewhere.sentence()


def test_what_cannot_be_compared_is_refused(tmp_path):
    broken = tmp_path / "broken.json"
    broken.write_text("{")
    listed = tmp_path / "list.json"
    listed.write_text("[1]")
    single = {"n": 3, "accuracy": 0.5, "record": {}}
    for first, second, says in (
        (MINE, MINE | {"hats": 0.5}, "The first result, .* no head 'hats'. Did you mean 'hat'"),
        (MINE, {"hat": 0.5}, "The second result, .* no head 'smile'"),
        (MINE, single, "one task"),
        (MINE, {"hat": None}, "no accuracy from 0 to 1"),
        (MINE, {"hat": 90.1}, "no accuracy from 0 to 1"),
        (MINE, tmp_path / "missing.json", "There is no file"),
        (MINE, broken, "is no JSON"),
        (MINE, listed, "is no result"),
        (MINE, tmp_path, "is a folder; give the file"),
    ):
        with pytest.raises(UserError, match=says):
            attribute_odds(first, second)


@pytest.fixture(scope="module")
def network(tmp_path_factory):
    spec = "mosaics:[digits:train=20,validation=20,test=40],classes=0|1|2,train=10,validation=10,test=20,side=32"
    data = open_data(spec, progress=False)
    model = create_model("resnet14", heads=data.heads, class_names=data.class_names, perception="shared").eval()
    model.save_pretrained(tmp_path_factory.mktemp("run") / "model")
    return model, data, spec


def test_the_command_prints_the_odds(network, capsys, tmp_path):
    model, data, spec = network
    model.save_pretrained(tmp_path / "model")
    own = evaluate(model, data.test).to_dict()
    for head in own["heads"].values():
        head["perception"]["accuracy"] -= 0.05 if head is own["heads"]["1"] else -0.001
    other = tmp_path / "evaluation-test.json"
    other.write_text(json.dumps(own))

    def run(*options):
        with pytest.raises(SystemExit) as ended:
            cli.main(["evaluate", str(tmp_path / "model"), spec, "--no-report", "--out", str(tmp_path), *options])
        return ended.value.code, capsys.readouterr()

    # The file is read before it is written anew.
    code, printed = run("--odds", str(other))
    assert code == 0
    assert "Better on 1 of 3 heads (equal on 0, worse on 2" in printed.out
    code, printed = run("--odds", str(other), "--json")
    assert code == 0
    odds = json.loads(printed.out)["odds"]
    assert (odds["better"], odds["equal"], odds["same_images"]) == (0, 3, True)
    code, printed = run("--odds", str(tmp_path / "none.json"))
    assert code == 2
    assert "There is no file" in printed.err
