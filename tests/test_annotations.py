"""The open folder of human maps: hand-made geometry, what a reader refuses, and that half an annotation is none."""

import hashlib
import json
from io import BytesIO

import numpy as np
import pytest
from PIL import Image

from attention_branch import annotations
from attention_branch.annotations import (
    delete_annotation,
    fingerprint,
    from_view,
    read_annotations,
    to_view,
    write_annotation,
)
from attention_branch.errors import UserError
from attention_branch.models.preprocessing import Preprocessing


def encoded(height, width, kind="PNG", **options):
    file = BytesIO()
    pixels = np.random.default_rng(height * 100 + width).integers(0, 256, (height, width, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(file, kind, **options)
    return file.getvalue()


def turned(height, width):
    """A JPEG whose EXIF says that a viewer shows it turned by a quarter."""
    exif = Image.Exif()
    exif[0x0112] = 6
    return encoded(height, width, "JPEG", exif=exif)


# --- the folder ---


def test_the_format_is_what_the_docs_say(tmp_path):
    content = encoded(6, 8, "JPEG")
    values = np.linspace(0, 1, 48).reshape(6, 8)
    written = write_annotation(tmp_path / "a", content, values, label="cat", record={"source": "photos/7.jpg"})
    name = hashlib.sha256(content).hexdigest()[:16]
    files = sorted(path.relative_to(tmp_path / "a").as_posix() for path in (tmp_path / "a").rglob("*.*"))
    assert files == [f"annotations/{name}.json", f"images/{name}.jpg", f"maps/{name}.png"]
    assert (tmp_path / "a" / "images" / f"{name}.jpg").read_bytes() == content
    with Image.open(tmp_path / "a" / "maps" / f"{name}.png") as drawn:
        assert (drawn.mode, drawn.size) == ("L", (8, 6))
        assert np.array_equal(np.asarray(drawn), np.round(values * 255))
    record = json.loads((tmp_path / "a" / "annotations" / f"{name}.json").read_text())
    assert record["format"] == 1
    assert (record["image"], record["map"]) == (f"images/{name}.jpg", f"maps/{name}.png")
    assert (record["label"], record["head"], record["source"]) == ("cat", None, "photos/7.jpg")
    assert record["map_sha256"] == hashlib.sha256(written.map.read_bytes()).hexdigest()
    (read,) = read_annotations(tmp_path / "a")
    assert read == written
    assert np.abs(read.values() - values).max() <= 0.5 / 255 + 1e-6


def test_the_same_picture_takes_its_annotations_place_and_a_head_has_its_own(tmp_path):
    content = encoded(4, 4)
    write_annotation(tmp_path, content, np.zeros((4, 4)), label=None)
    before = fingerprint(read_annotations(tmp_path))
    write_annotation(tmp_path, content, np.ones((4, 4)), label={"kind": "cat"})
    write_annotation(tmp_path, content, np.zeros((4, 4)), label=None, head="a/b")
    plain, headed = read_annotations(tmp_path)
    assert plain.values().min() == 1
    assert headed.head == "a/b"
    assert headed.name == f"{plain.name}-a%2Fb"
    assert fingerprint([plain]) != before
    delete_annotation(tmp_path, plain.name)
    assert [one.head for one in read_annotations(tmp_path)] == ["a/b"]
    assert not plain.image.exists()
    assert not plain.map.exists()


def test_a_turned_photo_is_annotated_as_it_is_shown(tmp_path):
    content = turned(6, 10)  # stored 10 wide and 6 high, shown 6 wide and 10 high
    written = write_annotation(tmp_path, content, np.zeros((10, 6)), label=None)
    assert read_annotations(tmp_path) == [written]
    with pytest.raises(UserError, match="10 high and 6 wide"):
        write_annotation(tmp_path, content, np.zeros((6, 10)), label=None)


def test_a_stopped_write_leaves_no_annotation(tmp_path, monkeypatch):
    content = encoded(4, 4)
    other = write_annotation(tmp_path, encoded(4, 5), np.zeros((4, 5)), label=None)
    write_annotation(tmp_path, content, np.zeros((4, 4)), label=None)

    def stopped(path, value):
        raise KeyboardInterrupt

    monkeypatch.setattr(annotations, "write_json", stopped)
    with pytest.raises(KeyboardInterrupt):
        write_annotation(tmp_path, content, np.ones((4, 4)), label=None)
    assert read_annotations(tmp_path) == [other]  # and no map that is not its picture's


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format": 2}, "format 2"),
        ({"image": "../../secret.png"}, "outside"),
        ({"map": "/etc/hostname"}, "outside"),
        ({"map": None}, "names no map"),
        ({"map": "maps/none.png"}, "is missing"),
        ({"image_sha256": "0" * 64}, "image_sha256"),
        ({"map_sha256": "0" * 64}, "map_sha256"),
        ({"label": 3}, "label 3"),
        ({"head": 3}, "head 3"),
    ],
)
def test_a_broken_record_is_named(tmp_path, change, message):
    written = write_annotation(tmp_path / "a", encoded(4, 4), np.zeros((4, 4)), label=None)
    Image.new("RGB", (4, 4)).save(tmp_path / "secret.png")
    path = tmp_path / "a" / "annotations" / f"{written.name}.json"
    path.write_text(json.dumps(written.record | change))
    with pytest.raises(UserError, match=message) as problem:
        read_annotations(tmp_path / "a")
    assert written.name in str(problem.value)


def test_a_link_does_not_lead_out_of_the_folder(tmp_path):
    written = write_annotation(tmp_path / "a", encoded(4, 4), np.zeros((4, 4)), label=None)
    written.image.rename(tmp_path / "outside.png")
    written.image.symlink_to(tmp_path / "outside.png")
    with pytest.raises(UserError, match="outside"):
        read_annotations(tmp_path / "a")
    delete_annotation(tmp_path / "a", written.name)
    assert (tmp_path / "outside.png").exists()
    assert not written.image.is_symlink()


@pytest.mark.parametrize("text", ["{", '{"format": 9}', '{"format": 1, "image": "../other.png", "map": 3}'])
def test_a_broken_annotation_can_be_removed_and_takes_nothing_else_with_it(tmp_path, text):
    folder = tmp_path / "a"
    written = write_annotation(folder, encoded(4, 4), np.zeros((4, 4)), label=None)
    others = write_annotation(folder, encoded(4, 4), np.zeros((4, 4)), label=None, head="a")
    (tmp_path / "other.png").write_bytes(b"mine")
    (folder / "annotations" / f"{written.name}.json").write_text(text)
    delete_annotation(folder, written.name)
    assert not written.image.exists()
    assert not written.map.exists()
    assert read_annotations(folder) == [others]
    assert (tmp_path / "other.png").exists()


@pytest.mark.parametrize(
    ("drawn", "message"),
    [
        (Image.new("L", (4, 5)), "4x5 pixels, its picture 4x4"),
        (Image.new("RGB", (4, 4)), "8-bit grey PNG"),
        (Image.new("I;16", (4, 4)), "8-bit grey PNG"),
    ],
)
def test_a_map_that_does_not_fit_is_named(tmp_path, drawn, message):
    written = write_annotation(tmp_path, encoded(4, 4), np.zeros((4, 4)), label=None)
    drawn.save(written.map)
    record = written.record | {"map_sha256": hashlib.sha256(written.map.read_bytes()).hexdigest()}
    (tmp_path / "annotations" / f"{written.name}.json").write_text(json.dumps(record))
    with pytest.raises(UserError, match=message):
        read_annotations(tmp_path)


def test_what_is_no_folder_of_annotations_is_said(tmp_path):
    with pytest.raises(UserError, match="There is no folder"):
        read_annotations(tmp_path / "none")
    with pytest.raises(UserError, match="holds no annotations"):
        read_annotations(tmp_path)
    (tmp_path / "annotations").mkdir()
    (tmp_path / "annotations" / "a.json").write_text("{")
    with pytest.raises(UserError, match=r"a\.json' cannot be read"):
        read_annotations(tmp_path)
    for name in ("../a", "", ".a", "b\\c"):
        with pytest.raises(UserError, match="no annotation's name"):
            delete_annotation(tmp_path, name)
    with pytest.raises(UserError, match="Did you mean 'a'"):
        delete_annotation(tmp_path, "aa")


@pytest.mark.parametrize(
    ("content", "values", "message"),
    [
        (b"no picture", np.zeros((4, 4)), "no picture"),
        (encoded(4, 4), np.zeros((4, 5)), "4 high and 4 wide"),
        (encoded(4, 4), np.full((4, 4), 1.5), "outside of 0 to 1"),
        (encoded(4, 4), np.full((4, 4), np.nan), "outside of 0 to 1"),
    ],
)
def test_bad_input_writes_nothing(tmp_path, content, values, message):
    with pytest.raises(UserError, match=message):
        write_annotation(tmp_path / "a", content, values, label=None)
    assert not (tmp_path / "a").exists()


# --- geometry ---


def block(shape, rows, columns):
    values = np.zeros(shape, dtype=np.float32)
    values[rows[0] : rows[1], columns[0] : columns[1]] = 1
    return values


CASES = {
    # picture (40, 40) at half its size, whole: view (y, x) holds picture rows 2y and 2y + 1
    "squash": (Preprocessing(size=(20, 20), resize="squash"), (40, 40), (4, 12), (6, 10), (8, 24), (12, 20)),
    # a squashed portrait: rows by 4, columns by 1
    "squash portrait": (Preprocessing(size=(20, 20), resize="squash"), (80, 20), (4, 12), (6, 10), (16, 48), (6, 10)),
    # the centre of (40, 40): scaled to (20, 20), 2 pixels cut off on each side
    "crop": (Preprocessing(size=(16, 16), crop_pct=0.8), (40, 40), (4, 12), (6, 10), (12, 28), (16, 24)),
    # landscape (40, 80): scaled to (20, 40), rows 2 to 18 and columns 12 to 28 are seen
    "landscape": (Preprocessing(size=(16, 16), crop_pct=0.8), (40, 80), (4, 12), (6, 10), (12, 28), (36, 44)),
    "portrait": (Preprocessing(size=(16, 16), crop_pct=0.8), (80, 40), (4, 12), (6, 10), (32, 48), (16, 24)),
    # a picture that is smaller than what the network takes: one picture pixel is 2x2 of the view
    "enlarged": (Preprocessing(size=(16, 16), crop_pct=1), (8, 8), (4, 12), (6, 10), (2, 6), (3, 5)),
}


@pytest.mark.parametrize("case", CASES)
def test_a_block_lies_where_it_was_drawn(case):
    preprocessing, size, rows, columns, picture_rows, picture_columns = CASES[case]
    seen = block(preprocessing.size, rows, columns)
    drawn = block(size, picture_rows, picture_columns)
    there = from_view(seen, preprocessing, size)
    back = to_view(drawn, preprocessing)
    assert there.shape == size
    assert back.shape == preprocessing.size
    assert np.array_equal(there > 0.5, drawn > 0.5)
    assert np.array_equal(back > 0.5, seen > 0.5)
    assert there.sum() == pytest.approx(drawn.sum(), rel=0.01)
    assert back.sum() == pytest.approx(seen.sum(), rel=0.01)
    assert 0 <= min(there.min(), back.min()) <= max(there.max(), back.max()) <= 1


SEEN = {  # the rows and columns of the picture that the network sees, by the comments above
    "squash": ((0, 40), (0, 40)),
    "squash portrait": ((0, 80), (0, 20)),
    "crop": ((4, 36), (4, 36)),
    "landscape": ((4, 36), (24, 56)),
    "portrait": ((24, 56), (4, 36)),
    "enlarged": ((0, 8), (0, 8)),
}


@pytest.mark.parametrize("case", CASES)
def test_a_full_map_is_full_inside_the_crop_and_zero_outside(case):
    preprocessing, size, *_ = CASES[case]
    assert np.array_equal(from_view(np.ones((7, 7)), preprocessing, size), block(size, *SEEN[case]))


def test_a_picture_of_the_networks_own_size_is_not_touched():
    preprocessing = Preprocessing(size=(64, 64), crop_pct=1)
    values = np.random.default_rng(0).random((64, 64)).astype(np.float32)
    assert np.array_equal(from_view(values, preprocessing, (64, 64)), values)
    assert np.array_equal(to_view(values, preprocessing), values)


def test_a_map_is_moved_as_its_picture_is():
    # The picture's own pixels, black and white, as a map: seen alike through both.
    preprocessing = Preprocessing(size=(24, 24), crop_pct=0.75, interpolation="bilinear")
    values = (np.random.default_rng(1).random((11, 7)) > 0.5).repeat(9, 0).repeat(9, 1)
    picture = Image.fromarray(np.repeat((values * 255).astype(np.uint8)[..., None], 3, axis=2))
    view = np.asarray(preprocessing.image(picture))[..., 0] / 255
    assert np.abs(to_view(values.astype(np.float32), preprocessing) - view).max() < 1.5 / 255
