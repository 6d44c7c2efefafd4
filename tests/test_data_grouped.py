"""A second, coarser head against a table written by hand; the ready-made table against what it must be."""

import json

import numpy as np
import pytest
from PIL import Image

from attention_branch.data import open_data
from attention_branch.data.grouped import _read, tables
from attention_branch.errors import UserError

TABLE = {"warm": ["red", "n00000002"], "cold": ["blue"]}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    root = tmp_path_factory.mktemp("colours")
    for number, name in enumerate(("blue", "n00000002 orange, tangerine", "red")):
        (root / name).mkdir()
        for shade in range(10):
            Image.new("RGB", (16, 16), (80 * number, shade, 9)).save(root / name / f"{shade}.png")
    return root


def written(path, table):
    path.write_text(json.dumps(table), encoding="utf-8")
    return path


def test_both_heads_are_read_off_the_class(folder, tmp_path):
    data = open_data(f"grouped:{folder},groups={written(tmp_path / 'table.json', TABLE)}", seed=2, progress=False)
    assert data.heads == {"class": 3, "group": 2}
    assert data.class_names == {"class": ["blue", "n00000002 orange, tangerine", "red"], "group": ["warm", "cold"]}
    coarse = {"blue": "cold", "n00000002 orange, tangerine": "warm", "red": "warm"}
    for images in data.splits.values():
        for sample in images:
            name = sample.id.split("/")[0]
            assert data.tasks["class"][sample.target["class"]] == name
            assert data.tasks["group"][sample.target["group"]] == coarse[name]
    # The splits are those of the data without groups: stratified by class.
    plain = open_data(folder, seed=2, progress=False)
    assert data.record()["fingerprint"] == plain.record()["fingerprint"]
    assert np.bincount(data.test.targets["class"]).tolist() == [2, 2, 2]
    assert "table.json" in data.split_made


def test_the_ready_made_table():
    assert tables() == ["tiny-imagenet-100"]
    table = _read("tiny-imagenet-100")
    assert 10 <= len(table) <= 15
    names = [name for group in table.values() for name in group]
    assert len(names) == 100
    numbers = {name.split()[0] for name in names}
    assert len(numbers) == 100
    assert all(len(number) == 9 and number[0] == "n" and number[1:].isdigit() for number in numbers)
    assert min(len(group) for group in table.values()) >= 3
    group_of = {name.split(" ", 1)[1].split(",")[0]: group for group, own in table.items() for name in own}
    assert group_of["goose"] == "bird"
    assert group_of["bee"] == "insect or spider"
    assert group_of["school bus"] == "vehicle"
    assert group_of["tabby"] == group_of["golden retriever"] == "dog or cat"


def test_the_ready_made_table_matches_folders_named_by_wordnet_ids(tmp_path):
    for group in _read("tiny-imagenet-100").values():
        for name in group:
            (tmp_path / name.split()[0]).mkdir()
            for shade in range(4):
                Image.new("RGB", (4, 4), (shade, 0, 0)).save(tmp_path / name.split()[0] / f"{shade}.png")
    data = open_data(f"grouped:{tmp_path},groups=tiny-imagenet-100", progress=False)
    assert data.heads == {"class": 100, "group": len(_read("tiny-imagenet-100"))}
    goose = data.tasks["class"].index("n01855672")
    rows = data.train.targets["class"] == goose
    assert {data.tasks["group"][number] for number in data.train.targets["group"][rows]} == {"bird"}


@pytest.mark.parametrize(
    ("table", "says"),
    [
        (TABLE | {"cold": ["blue", "bleu"]}, "has no class 'bleu'.* Did you mean 'blue'"),
        (TABLE | {"cold": ["blue", "red"]}, "names the class 'red' twice"),
        ({"warm": ["red"], "cold": ["blue"]}, "'n00000002 orange, tangerine' .* in no group"),
        ({"all": ["red", "blue", "n00000002"]}, "two groups or more"),
        ({"warm": "red", "cold": ["blue"]}, "two groups or more"),
        (["red"], "two groups or more"),
    ],
)
def test_tables_that_do_not_fit_are_refused(folder, tmp_path, table, says):
    with pytest.raises(UserError, match=says):
        open_data(f"grouped:{folder},groups={written(tmp_path / 'table.json', table)}", progress=False)


def test_other_mistakes_are_one_sentence(folder, tmp_path):
    (tmp_path / "bad.json").write_text("{")
    for spec, says in (
        (f"grouped:{folder}", "ready-made tiny-imagenet-100"),
        (f"grouped:{folder},groups=tiny-imagenet", "Did you mean 'tiny-imagenet-100'"),
        (f"grouped:{folder},groups={tmp_path / 'bad.json'}", "is no JSON"),
        (f"grouped:{folder},groups={tmp_path}", "cannot be read"),
        (f"grouped:{folder},group={tmp_path / 'bad.json'}", "Did you mean 'groups'"),
        ("grouped:[mosaics:digits,classes=4],groups=tiny-imagenet-100", "several tasks"),
    ):
        with pytest.raises(UserError, match=says):
            open_data(spec, progress=False)
