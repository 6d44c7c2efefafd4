import json
import os

import numpy as np
import pytest
from PIL import Image

from attention_branch.data import open_data
from attention_branch.errors import UserError


@pytest.fixture(autouse=True)
def cache(tmp_path_factory, monkeypatch):
    monkeypatch.setenv("ABN_DATA", str(tmp_path_factory.mktemp("cache")))


def write(root, counts, size=(6, 5)):
    """Write `counts[folder]` pictures, each of its own colour."""
    for folder, count in counts.items():
        (root / folder).mkdir(parents=True, exist_ok=True)
        for number in range(count):
            colour = np.random.default_rng([number, *folder.encode()]).integers(0, 255, 3).tolist()
            Image.new("RGB", size, tuple(colour)).save(root / folder / f"{number}.png")


def ids(images):
    return set(images.ids) if images is not None else set()


def test_flat_folder_is_cut_stratified_and_the_same_every_time(tmp_path):
    write(tmp_path, {"cat": 40, "dog": 20, "eel": 3})
    data = open_data(tmp_path, seed=1)
    assert data.class_names == ["cat", "dog", "eel"]
    counts = {name: list(images.counts()["label"].values()) for name, images in data.splits.items()}
    assert counts == {"train": [28, 14, 1], "validation": [4, 2, 1], "test": [8, 4, 1]}
    parts = [ids(images) for images in data.splits.values()]
    assert len(set.union(*parts)) == 63 == sum(map(len, parts))
    assert all(data.class_names[sample.target] == sample.id.split("/")[0] for sample in data.test)
    again = open_data(str(tmp_path), seed=1)
    assert again.record()["fingerprint"] == data.record()["fingerprint"]
    assert open_data(tmp_path, seed=2).record()["fingerprint"] != data.record()["fingerprint"]


def test_a_new_picture_moves_hardly_any_other(tmp_path):
    write(tmp_path, {"cat": 50, "dog": 50})
    before = open_data(tmp_path).splits
    before = {name: ids(images) for name, images in before.items()}
    write(tmp_path, {"cat": 51})
    after = {name: ids(images) for name, images in open_data(tmp_path).splits.items()}
    moved = sum(len(before[name] - after[name]) for name in before)
    assert moved <= 3


def test_the_split_does_not_depend_on_where_the_folder_is(tmp_path):
    for place in ("here", "there"):
        write(tmp_path / place, {"cat": 12, "dog": 9})
    assert open_data(tmp_path / "here").test.ids == open_data(tmp_path / "there").test.ids


@pytest.mark.parametrize("name", ["val", "valid", "validation", "Val"])
def test_given_splits_are_kept(tmp_path, name):
    write(tmp_path, {"train/a": 4, "train/b": 4, f"{name}/a": 2, f"{name}/b": 1, "test/b": 3})
    data = open_data(tmp_path)
    assert [len(images) for images in data.splits.values()] == [8, 3, 3]
    assert data.test.targets.tolist() == [1, 1, 1]
    assert data.split_made == "as the data gives it"


def test_validation_is_cut_from_train_and_never_from_test(tmp_path):
    write(tmp_path, {"train/a": 20, "train/b": 10, "test/a": 5, "test/b": 5})
    data = open_data(tmp_path, validation=0.2)
    assert ids(data.test) == {f"test/{label}/{number}.png" for label in "ab" for number in range(5)}
    assert data.validation.counts() == {"label": {"a": 4, "b": 2}}
    assert len(data.train) == 24
    assert all(name.startswith("train/") for name in data.validation.ids)
    assert "cut from train" in data.split_made


def test_train_and_val_leave_test_empty_and_train_alone_is_cut(tmp_path):
    write(tmp_path / "two", {"train/a": 5, "train/b": 5, "val/a": 2, "val/b": 2})
    assert open_data(tmp_path / "two").test is None
    write(tmp_path / "one", {"train/a": 10, "train/b": 10})
    assert [len(images) for images in open_data(tmp_path / "one").splits.values()] == [14, 2, 4]


def test_a_folder_of_classes_can_be_all_test(tmp_path):
    write(tmp_path, {"a": 1, "b": 2})
    data = open_data(tmp_path, validation=0, test=1)
    assert data.train is None
    assert data.validation is None
    assert len(data.test) == 3
    write(tmp_path / "only", {"test/a": 1, "test/b": 2})
    assert list(open_data(tmp_path / "only").splits) == ["test"]


def test_classes_in_natural_order_nested_hidden_and_other_files(tmp_path):
    write(tmp_path, {"10": 3, "9": 3, "1/deep/deeper": 3, ".cache": 3, "empty": 0})
    (tmp_path / "9" / "Thumbs.db").write_bytes(b"x")
    (tmp_path / "9" / ".DS_Store").write_bytes(b"x")
    (tmp_path / "README.txt").write_text("x")
    data = open_data(tmp_path)
    assert data.class_names == ["1", "9", "10"]
    assert sum(len(images) for images in data.splits.values()) == 9
    assert sorted(data.ignored) == ["9/Thumbs.db", "README.txt"]


def test_broken_files_are_left_out_counted_and_named(tmp_path):
    write(tmp_path, {"a": 10, "b": 10})
    whole = open_data(tmp_path)
    (tmp_path / "a" / "3.png").write_bytes((tmp_path / "a" / "3.png").read_bytes()[:40])
    (tmp_path / "b" / "5.png").write_bytes(b"")
    data = open_data(tmp_path)
    assert {name for name, _ in data.left_out} == {"a/3.png", "b/5.png"}
    assert "is empty" in dict(data.left_out)["b/5.png"]
    for name, images in data.splits.items():
        assert [kept for kept in whole.splits[name].ids if kept not in dict(data.left_out)] == images.ids
    record = json.loads(json.dumps(data.record()))
    assert {entry["id"] for entry in record["left_out"]} == {"a/3.png", "b/5.png"}
    assert len(open_data(tmp_path, verify=False).left_out) == 0


def test_verdicts_are_remembered_until_the_file_changes(tmp_path, monkeypatch):
    from attention_branch.data import folders

    write(tmp_path, {"a": 10, "b": 10})
    opened = []
    real = folders.open_image
    monkeypatch.setattr(folders, "open_image", lambda path: opened.append(path.name) or real(path))
    (tmp_path / "a" / "7.png").write_bytes(b"no picture")
    assert len(open_data(tmp_path).left_out) == 1
    assert len(opened) == 20
    assert len(open_data(tmp_path).left_out) == 1
    assert len(opened) == 20
    Image.new("RGB", (9, 9)).save(tmp_path / "a" / "7.png")
    os.utime(tmp_path / "b" / "2.png", ns=(1, 1))
    assert open_data(tmp_path).left_out == []
    assert sorted(opened[20:]) == ["2.png", "7.png"]


def test_no_cache_folder_is_no_harm(tmp_path, monkeypatch):
    write(tmp_path / "data", {"a": 3, "b": 3})
    (tmp_path / "file").write_text("x")
    monkeypatch.setenv("ABN_DATA", str(tmp_path / "file" / "below"))
    assert len(open_data(tmp_path / "data").train) == 2
    monkeypatch.setenv("ABN_DATA", str(tmp_path))
    (tmp_path / "verified.sqlite").write_bytes(b"this is no database" * 100)
    assert len(open_data(tmp_path / "data").train) == 2


@pytest.mark.parametrize(
    ("counts", "says"),
    [
        ({"only": 5}, "one class, 'only'"),
        ({"a": 0, "b": 0}, "holds no pictures"),
        ({".": 4}, "4 pictures but no class folders"),
        ({"a": 9, "b": 2}, "class 'b' has 2 pictures.*at least 3"),
        ({"train/a": 4, "train/b": 4, "val/a": 1, "valid/a": 1}, "both 'val/' and 'valid/'|both 'valid/' and 'val/'"),
        ({"train/a": 4, "train/b": 4, "val/c": 1}, "class 'c'.*not in 'train/'"),
        ({"train/a": 4, "test/a": 4}, "one class, 'a'"),
    ],
)
def test_folders_that_cannot_be_used(tmp_path, counts, says):
    write(tmp_path, counts)
    with pytest.raises(UserError, match=says) as caught:
        open_data(tmp_path)
    assert "\n" not in str(caught.value)


def test_all_broken_is_an_error(tmp_path):
    write(tmp_path, {"train/a": 3, "train/b": 3, "val/a": 1, "val/b": 1})
    for label in "ab":
        (tmp_path / "val" / label / "0.png").write_bytes(b"")
    with pytest.raises(UserError, match=r"None of the 2 pictures for validation.*abn check"):
        open_data(tmp_path)


@pytest.mark.parametrize(("validation", "test"), [(-0.1, 0.2), (0.1, 1.5), (0.6, 0.6)])
def test_bad_shares(tmp_path, validation, test):
    with pytest.raises(UserError, match=r"share|more than all"):
        open_data(tmp_path, validation=validation, test=test)
