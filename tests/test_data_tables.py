import io
import multiprocessing

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from attention_branch.data import make_loader, open_data
from attention_branch.errors import UserError
from attention_branch.models.preprocessing import Preprocessing


@pytest.fixture(autouse=True)
def cache(tmp_path_factory, monkeypatch):
    monkeypatch.setenv("ABN_DATA", str(tmp_path_factory.mktemp("cache")))


def picture(number, size=(8, 8)):
    buffer = io.BytesIO()
    Image.new("RGB", size, (number, 2 * number % 256, 3 * number % 256)).save(buffer, "PNG")
    return buffer.getvalue()


def write(path, count=20, first=0, names=("ant", "bee"), labels=None, plain=False, broken=(), **columns):
    """Write a table of pictures as Hugging Face's library does, by that library's own features."""
    import datasets

    contents = [b"rubbish" if number in broken else picture(first + number) for number in range(count)]
    labels = [number % 2 for number in range(count)] if labels is None else labels
    path.parent.mkdir(parents=True, exist_ok=True)
    if plain:
        pq.write_table(pa.table({"image": contents, "label": labels, **columns}), path, row_group_size=3)
        return
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=list(names))})
    for name in columns:
        features[name] = datasets.Sequence(datasets.Value("int16"))
    rows = {"image": [{"bytes": content, "path": None} for content in contents], "label": labels, **columns}
    datasets.Dataset.from_dict(rows, features=features).to_parquet(path)


def test_one_file_is_cut_into_splits(tmp_path):
    write(tmp_path / "all.parquet", 30)
    data = open_data(tmp_path / "all.parquet")
    assert data.class_names == ["ant", "bee"]
    assert [len(images) for images in data.splits.values()] == [20, 4, 6]
    assert sorted(name for images in data.splits.values() for name in images.ids) == sorted(
        f"all.parquet:{n}" for n in range(30)
    )
    for sample in data.test:
        number = int(sample.id.split(":")[1])
        assert sample.image.getpixel((0, 0)) == (number, 2 * number, 3 * number)
        assert sample.target == number % 2


def test_folders_of_shards_keep_their_splits(tmp_path):
    write(tmp_path / "data" / "train-00000-of-00002.parquet", 10)
    write(tmp_path / "data" / "train-00001-of-00002.parquet", 7, first=10)
    write(tmp_path / "data" / "test-00000-of-00001.parquet", 5, first=17)
    data = open_data(tmp_path, validation=0.2)
    assert [len(images) for images in data.splits.values()] == [13, 4, 5]
    assert data.test.ids[2] == "data/test-00000-of-00001.parquet:2"
    shown = {sample.id: sample.image.getpixel((0, 0))[0] for images in data.splits.values() for sample in images}
    assert sorted(shown.values()) == list(range(22))
    assert shown["data/train-00001-of-00002.parquet:3"] == 13
    assert open_data(tmp_path, validation=0.2).record()["fingerprint"] == data.record()["fingerprint"]


def test_plain_bytes_numbers_words_and_boxes(tmp_path):
    write(tmp_path / "train.parquet", 6, plain=True, bbox=[[0, 1, 4, 5 + n] for n in range(6)])
    write(tmp_path / "validation.parquet", 4, plain=True, bbox=[[0, 0, 1, 1]] * 4)
    data = open_data(tmp_path)
    assert data.class_names == ["0", "1"]
    assert data.test is None
    assert data.train[2].box == (0, 1, 4, 7)
    assert data.train[2].region(Preprocessing((8, 8), resize="squash")).sum() == 24
    words = tmp_path / "words" / "train.parquet"
    write(words, 6, plain=True, labels=["b10", "b9", "b9", "b10", "b10", "b9"])
    assert open_data(words, validation=0, test=0).train.targets.tolist() == [1, 0, 0, 1, 1, 0]


def test_workers_read_the_same_rows(tmp_path):
    write(tmp_path / "train.parquet", 24)
    data = open_data(tmp_path / "train.parquet", validation=0, test=0)
    preprocessing = Preprocessing((8, 8), resize="squash")
    seen = [
        [batch["images"].numpy() for batch in make_loader(data.train, preprocessing, 4, train=False, workers=workers)]
        for workers in (0, 2)
    ]
    assert np.array_equal(np.concatenate(seen[0]), np.concatenate(seen[1]))
    assert multiprocessing.active_children() == []


def test_broken_rows_are_left_out(tmp_path):
    write(tmp_path / "train.parquet", 10, broken=[4])
    write(tmp_path / "val.parquet", 4)
    data = open_data(tmp_path)
    assert [name for name, _ in data.left_out] == ["train.parquet:4"]
    assert len(data.train) == 9
    assert open_data(tmp_path).left_out == data.left_out


def test_labels_out_of_range_and_missing(tmp_path):
    write(tmp_path / "train.parquet", 4, plain=True, labels=[0, 1, -1, 0])
    assert open_data(tmp_path / "train.parquet", validation=0, test=0).train.targets.tolist() == [0, 1, -1, 0]
    table = pq.read_table(tmp_path / "train.parquet")
    write(tmp_path / "named.parquet", 4)
    named = pq.read_table(tmp_path / "named.parquet")
    bad = named.set_column(1, named.schema.field(1), pa.chunked_array([pa.array([0, 1, 5, 0])]))
    pq.write_table(bad, tmp_path / "bad.parquet")
    with pytest.raises(UserError, match=r"label 5 of 'bad.parquet:2' is out of range.*0 to 1"):
        open_data(tmp_path / "bad.parquet", validation=0, test=0)
    pq.write_table(table.rename_columns(["image", "class"]), tmp_path / "other.parquet")
    with pytest.raises(UserError, match="no column 'label'"):
        open_data(tmp_path / "other.parquet")
    assert open_data(tmp_path / "other.parquet", columns=["class"], validation=0, test=0).class_names == ["0", "1"]
    with pytest.raises(UserError, match="Did you mean 'class'"):
        open_data(tmp_path / "other.parquet", columns=["clas"])


def test_files_that_are_no_tables(tmp_path):
    (tmp_path / "x.parquet").write_bytes(b"PAR1 not at all")
    with pytest.raises(UserError, match="no readable parquet file"):
        open_data(tmp_path / "x.parquet")
    pq.write_table(pa.table({"a": [1, 2], "label": [0, 1]}), tmp_path / "y.parquet")
    with pytest.raises(UserError, match="no column of pictures"):
        open_data(tmp_path / "y.parquet")
    write(tmp_path / "d" / "train.parquet", 4)
    write(tmp_path / "d" / "test.parquet", 4, names=("bee", "ant"))
    with pytest.raises(UserError, match="differ in columns or class names"):
        open_data(tmp_path / "d")


def hub(monkeypatch, splits, asked=None):
    """Stand in for the hub: `load_dataset` answers with these splits."""
    import datasets

    def load(name, config=None, **options):
        if asked is not None:
            asked.append((name, config, options.get("revision")))
        return datasets.DatasetDict(splits)

    monkeypatch.setattr(datasets, "load_dataset", load)


def coarse_and_fine(count, first=0, missing=False):
    import datasets

    features = datasets.Features(
        {
            "img": datasets.Image(),
            "fine_label": datasets.ClassLabel(names=["a", "b", "c"]),
            "coarse_label": datasets.ClassLabel(names=["x", "y"]),
        }
    )
    rows = {
        "img": [{"bytes": picture(first + number), "path": None} for number in range(count)],
        "fine_label": [-1 if missing else number % 3 for number in range(count)],
        "coarse_label": [-1 if missing else number % 2 for number in range(count)],
    }
    return datasets.Dataset.from_dict(rows, features=features)


def test_hub_data_with_two_labels(monkeypatch):
    asked = []
    hub(monkeypatch, {"train": coarse_and_fine(30), "test": coarse_and_fine(6, 30)}, asked)
    data = open_data("hf:someone/things")
    assert data.heads == {"fine_label": 3, "coarse_label": 2}
    assert data.test[4].target == {
        "fine_label": 1,
        "coarse_label": 0,
    }
    assert [len(images) for images in data.splits.values()] == [27, 3, 6]
    single = open_data("hf:someone/things:config=small,revision=v2,label=fine_label")
    assert single.class_names == ["a", "b", "c"]
    assert single.test.ids[0] == "someone/things/test:0"
    assert asked == [("someone/things", None, None), ("someone/things", "small", "v2")]
    with pytest.raises(UserError, match="Did you mean 'fine_label'"):
        open_data("hf:someone/things:label=fine")


def test_hub_test_split_without_labels_is_left_aside(monkeypatch):
    splits = {"train": coarse_and_fine(12), "validation": coarse_and_fine(6), "test": coarse_and_fine(5, missing=True)}
    hub(monkeypatch, {**splits, "unsupervised": coarse_and_fine(3)})
    data = open_data("hf:x")
    assert data.test is None
    assert "no labels" in data.split_made
    assert data.ignored == ["unsupervised"]


def test_hub_data_shuffled_by_an_index(monkeypatch):
    hub(monkeypatch, {"train": coarse_and_fine(20).shuffle(seed=0)})
    data = open_data("hf:x:label=coarse_label")
    for images in data.splits.values():
        assert all(sample.target == sample.image.getpixel((0, 0))[0] % 2 for sample in images)


def test_a_local_repository_through_the_hub_door(tmp_path):
    write(tmp_path / "repository" / "data" / "train-00000-of-00001.parquet", 20)
    write(tmp_path / "repository" / "data" / "test-00000-of-00001.parquet", 4, first=20)
    data = open_data(f"hf:{tmp_path / 'repository'}")
    assert [len(images) for images in data.splits.values()] == [18, 2, 4]
    assert data.test[1].image.getpixel((0, 0))[0] == 21


def test_no_hub_is_one_sentence(monkeypatch):
    import datasets

    def load(*arguments, **options):
        raise ConnectionError("Couldn't reach 'x/y' on the Hub (LocalEntryNotFoundError)\nwith details")

    monkeypatch.setattr(datasets, "load_dataset", load)
    with pytest.raises(UserError, match=r"'x/y' could not be loaded .*Couldn't reach.*check its name") as caught:
        open_data("hf:x/y")
    assert "\n" not in str(caught.value)
