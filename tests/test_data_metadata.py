import json

import numpy as np
import pytest
from PIL import Image

from attention_branch.data import open_data
from attention_branch.data.labels import encode
from attention_branch.errors import UserError


@pytest.fixture(autouse=True)
def cache(tmp_path_factory, monkeypatch):
    monkeypatch.setenv("ABN_DATA", str(tmp_path_factory.mktemp("cache")))


def pictures(root, names):
    for number, name in enumerate(names):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 8), (number, 2 * number, 3 * number)).save(root / name)


def write_csv(root, text, names=None):
    lines = text.strip().split("\n")
    pictures(root, names or [line.split(",")[0].strip() for line in lines[1:]])
    (root / "metadata.csv").write_text("\n".join(line.strip() for line in lines) + "\n")


def by_id(data):
    return {sample.id: sample.target for images in data.splits.values() for sample in images}


def test_one_label_column_is_a_single_task(tmp_path):
    rows = "\n".join(f"{number}.png,{'cat' if number % 3 else 'ant'}" for number in range(30))
    write_csv(tmp_path, "file_name,species\n" + rows)
    data = open_data(tmp_path)
    assert data.tasks == {"label": ("ant", "cat")}
    assert not data.multitask
    assert data.heads is None
    assert [len(images) for images in data.splits.values()] == [21, 3, 6]
    assert data.test.counts() == {"label": {"ant": 2, "cat": 4}}
    assert by_id(data) == {f"{number}.png": int(number % 3 > 0) for number in range(30)}


def test_several_columns_are_tasks_with_missing_labels(tmp_path):
    write_csv(
        tmp_path,
        """file_name,smiling,glasses,beard,age,hair,split
        a.png,1,1,no,30,brown,train
        b.png,0,-1,YES,,black,train
        c.png,1,1,,20,NaN,val
        d.png,,-1,yes,30,black,test""",
    )
    data = open_data(tmp_path)
    assert data.multitask
    assert data.tasks == {
        "smiling": ("0", "1"),
        "glasses": ("-1", "1"),
        "beard": ("no", "yes"),
        "age": ("20", "30"),
        "hair": ("black", "brown"),
    }
    assert data.heads == {"smiling": 2, "glasses": 2, "beard": 2, "age": 2, "hair": 2}
    assert data.class_names["hair"] == ["black", "brown"]
    targets = by_id(data)
    assert list(targets["a.png"].values()) == [1, 1, 0, 1, 1]
    assert list(targets["b.png"].values()) == [0, 0, 1, -1, 0]
    assert list(targets["c.png"].values()) == [1, 1, -1, 0, -1]
    assert list(targets["d.png"].values()) == [-1, 0, 1, 1, 0]
    assert [images.ids for images in data.splits.values()] == [["a.png", "b.png"], ["c.png"], ["d.png"]]
    assert data.train.targets["age"].tolist() == [1, -1]
    chosen = open_data(tmp_path, columns=["hair"])
    assert chosen.tasks == {"label": ("black", "brown")}
    assert not chosen.multitask


def test_lists_are_one_binary_head_a_value(tmp_path):
    write_csv(
        tmp_path / "csv",
        """file_name,tags
        a.png,dog|cat
        b.png,cat
        c.png,
        d.png,|""",
    )
    rows = [("a", ["dog", "cat"]), ("b", ["cat"]), ("c", None), ("d", [])]
    lines = [json.dumps({"file_name": f"{name}.png", "tags": tags}) for name, tags in rows]
    pictures(tmp_path / "jsonl", [f"{name}.png" for name, _ in rows])
    (tmp_path / "jsonl" / "metadata.jsonl").write_text("\n".join(lines))
    for place in ("csv", "jsonl"):
        data = open_data(tmp_path / place)
        assert data.tasks == {"cat": ("0", "1"), "dog": ("0", "1")}
        assert data.multitask
        assert by_id(data) == {
            "a.png": {"cat": 1, "dog": 1},
            "b.png": {"cat": 1, "dog": 0},
            "c.png": {"cat": -1, "dog": -1},
            "d.png": {"cat": 0, "dog": 0},
        }


def test_jsonl_types_and_boxes(tmp_path):
    pictures(tmp_path, ["train/x.png", "train/y.png", "test/z.png"])
    rows = [
        {"file_name": "train/x.png", "happy": True, "kind": 2, "bbox": [1, 2, 5.5, 7]},
        {"file_name": "train/y.png", "happy": False, "kind": 0, "bbox": None},
        {"file_name": "test/z.png", "happy": None, "kind": 1.0},
    ]
    (tmp_path / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)) + "\n\n")
    data = open_data(tmp_path, validation=0)
    assert data.tasks == {"happy": ("false", "true"), "kind": ("0", "1", "2")}
    assert data.train[0].box == (1, 2, 5.5, 7)
    assert data.train[1].box is None
    # As in imagefolder, the folders named after splits are splits.
    assert by_id(data)["test/z.png"] == {"happy": -1, "kind": 1}
    assert data.test.ids == ["test/z.png"]


def test_a_metadata_file_in_each_split_folder(tmp_path):
    write_csv(tmp_path / "train", "file_name,label\na.png,x\nb.png,y\nc.png,x")
    write_csv(tmp_path / "validation", "file_name,label\na.png,y")
    data = open_data(tmp_path)
    assert data.train.ids == ["train/a.png", "train/b.png", "train/c.png"]
    assert data.validation.ids == ["validation/a.png"]
    assert data.validation[0].target == 1
    assert data.test is None


def test_files_that_are_not_there_are_left_out_with_their_line(tmp_path):
    rows = "\n".join(f"{number}.png,{number % 2}" for number in range(20))
    write_csv(tmp_path, "file_name,label\n" + rows, names=[f"{number}.png" for number in range(20) if number != 4])
    data = open_data(tmp_path)
    ((name, reason),) = data.left_out
    assert name == "4.png"
    assert "line 6" in reason
    assert "metadata.csv" in reason


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("name,label\na.png,1", "no column 'file_name' in line 1"),
        ("file_name\na.png", "no label column"),
        ("file_name,label\na.png,x\n,y", "line 3: file_name is missing"),
        ("file_name,label\na.png,x\nb.png", "line 3 has 1 values for 2 columns"),
        ("file_name,label\na.png,x\nb.png,y,z", "line 3 has 3 values for 2 columns"),
        ("file_name,label\na.png,x\na.png,y", "line 3: 'a.png' is already on line 2"),
        ("file_name,label\na.png,x\n../b.png,y", "line 3: the file '../b.png' lies outside"),
        ("file_name,label\na.png,x\nb.png,x", "one class, 'x'"),
        ("file_name,label\na.png,\nb.png,", "'label' is empty"),
        ("file_name,label\na.png,0\nb.png,-7\nc.png,2", "line 3: the label -7 of 'label' is out of range"),
        ("file_name,label,split\na.png,x,train\nb.png,y,tran", "line 3: 'tran' is no split"),
        ("file_name,label,split\na.png,x,train\nb.png,y,", "line 3: the split is missing"),
        ("file_name,label,bbox\na.png,x,\nb.png,y,3", "line 3: the bbox"),
        ('file_name,label\na.png,"x', "line 2 is no CSV"),
        ("file_name,label", "lists no pictures"),
    ],
)
def test_wrong_lines_are_named(tmp_path, text, says):
    (tmp_path / "metadata.csv").write_text(text)
    with pytest.raises(UserError, match=says) as caught:
        open_data(tmp_path, verify=False)
    assert "metadata.csv" in str(caught.value) or "column 'label'" in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ('{"file_name": "a.png", "label": 1}\n{broken', "line 2 is no JSON"),
        ("[1, 2]", "line 1 is no JSON object"),
        ('{"file_name": "a.png", "l": {"x": 1}}', "line 1: the label .* is no class"),
        ('{"file_name": "a.png", "l": 0.5}', "line 1: the label '0.5' of 'l' is no class"),
        ('{"file_name": "a.png", "l": ["x"]}\n{"file_name": "b.png", "l": "x"}', "line 2: 'l' holds 'x'"),
    ],
)
def test_wrong_json_lines_are_named(tmp_path, text, says):
    (tmp_path / "metadata.jsonl").write_text(text)
    with pytest.raises(UserError, match=says):
        open_data(tmp_path, verify=False)


def test_unknown_columns_two_files_and_other_encodings(tmp_path):
    write_csv(tmp_path, "file_name,smiling\na.png,1\nb.png,0\nc.png,1")
    with pytest.raises(UserError, match=r"no column 'smilin'.*Did you mean 'smiling'"):
        open_data(tmp_path, columns=["smilin"])
    (tmp_path / "metadata.csv").write_bytes("file_name,größe\n".encode("latin-1"))
    with pytest.raises(UserError, match="not UTF-8"):
        open_data(tmp_path)
    (tmp_path / "metadata.jsonl").write_text("")
    with pytest.raises(UserError, match=r"both metadata.csv and metadata.jsonl"):
        open_data(tmp_path)


def test_free_text_is_no_label():
    with pytest.raises(UserError, match="'caption' has 150 different values in 200 rows"):
        encode("caption", [f"text {number % 150}" for number in range(200)], str)


def test_missing_marks_and_whole_numbers():
    def numbers(values):
        (column,) = encode("x", values, str)
        return column.classes, column.numbers.tolist()

    assert numbers([0, 1, -1, None]) == (("0", "1"), [0, 1, -1, -1])
    assert numbers(["3", "10", "", "NA", "3"]) == (("3", "10"), [0, 1, -1, -1, 0])
    assert numbers([np.int64(5), 7.0, float("nan")]) == (("5", "7"), [0, 1, -1])
    assert numbers(["none", "rust", "null"]) == (("none", "rust"), [0, 1, -1])
    assert numbers(["True", "false"]) == (("false", "true"), [1, 0])
    assert numbers([1, 1]) == (("0", "1"), [1, 1])
