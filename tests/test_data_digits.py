import numpy as np
import pytest
from sklearn.datasets import load_sample_images

from attention_branch.data import open_data
from attention_branch.data.digits import SIDE, _glyphs
from attention_branch.errors import UserError


@pytest.fixture(scope="module")
def data():
    return open_data("digits:train=300,validation=100,test=200", seed=3)


def test_sizes_classes_and_defaults(data):
    assert [len(images) for images in data.splits.values()] == [300, 100, 200]
    assert data.class_names == list("0123456789")
    assert data.num_classes == 10
    assert data.heads is None
    assert not data.multitask
    assert data.tasks == {"label": tuple("0123456789")}
    assert np.bincount(data.train.targets).tolist() == [30] * 10
    defaults = open_data("digits")
    assert [len(images) for images in defaults.splits.values()] == [8000, 1000, 2000]


def test_a_picture_depends_on_seed_split_and_index_alone(data):
    again = open_data("digits:train=50", seed=3)
    one_by_one = np.stack([np.asarray(again.train[index].image) for index in range(50)])
    assert np.array_equal(one_by_one, data.train.source.pixels()[:50])
    other = open_data("digits:train=50", seed=4).train.source.pixels()
    assert (other != one_by_one).any(axis=(1, 2, 3)).all()
    assert (data.test.source.pixels()[:50] != one_by_one).any(axis=(1, 2, 3)).all()


def test_the_mask_is_where_the_photo_was_painted_over(data):
    photos = load_sample_images().images
    for index in range(20):
        sample = data.test[index]
        picture, mask = np.asarray(sample.image).astype(int), sample.mask.astype(bool)
        rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
        around = np.zeros_like(mask)
        around[max(0, rows[0] - 2) : rows[-1] + 3, max(0, columns[0] - 2) : columns[-1] + 3] = True
        # Outside of the digit the picture is a crop of a photo, mirrored or not: find it by two rows of pixels.
        found = None
        for photo in photos:
            for seen, free in ((picture, ~around), (picture[:, ::-1], ~around[:, ::-1])):
                windows = np.lib.stride_tricks.sliding_window_view(photo, (SIDE, SIDE), axis=(0, 1))
                y, x = np.argwhere(free)[0]
                starts = np.argwhere((windows[:, :, :, y, x] == seen[y, x]).all(-1))
                for top, left in starts:
                    crop = photo[top : top + SIDE, left : left + SIDE].astype(int)
                    if (crop == seen)[free].all():
                        found = crop if seen is picture else crop[:, ::-1]
        assert found is not None
        assert (np.abs(picture - found).sum(-1)[mask] > 0).mean() > 0.95


def test_digits_are_14_to_22_pixels_tall_and_stand_out(data):
    heights, contrasts = [], []
    for sample in data.train:
        mask = sample.mask.astype(bool)
        rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
        heights.append(rows[-1] - rows[0] + 1)
        box = np.asarray(sample.image)[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1] / 255
        inside = mask[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
        contrasts.append(np.linalg.norm(box[inside].mean(0) - box[~inside].mean(0)))
    assert min(heights) >= 14
    assert max(heights) <= 22
    assert len(set(heights)) == 9
    assert np.mean(np.array(contrasts) > 0.3) > 0.9


def test_splits_share_no_scan():
    def scans(split):
        return {np.asarray(glyph).tobytes() for of_class in _glyphs(split) for glyph, _ in of_class}

    train, validation, test = scans("train"), scans("validation"), scans("test")
    assert not train & validation
    assert not train & test
    assert not validation & test
    assert len(train) > 1200
    assert len(validation) > 150
    assert len(test) > 300


def test_backgrounds_of_train_and_test_are_different_places():
    from attention_branch.data.digits import _corners

    taken = {}
    for split in ("train", "validation", "test"):
        covered = np.zeros((2, 427, 640), dtype=bool)
        for photo, top, left in np.unique(_corners(split) // [1, 4, 4] * [1, 4, 4], axis=0):
            covered[photo, top + 3 : top + SIDE, left + 3 : left + SIDE] = True
        taken[split] = covered
    assert not (taken["train"] & taken["test"]).any()
    assert not (taken["validation"] & taken["test"]).any()
    assert not (taken["train"] & taken["validation"]).any()
    assert all(covered.any() for covered in taken.values())


def test_record_is_plain_and_tells_seeds_apart(data):
    import json

    record = data.record()
    assert json.loads(json.dumps(record)) == record
    assert record["splits"]["test"]["images"] == 200
    assert record["seed"] == 3
    assert (
        record["fingerprint"] != open_data("digits:train=300,validation=100,test=200", seed=5).record()["fingerprint"]
    )


@pytest.mark.parametrize(
    ("spec", "says"),
    [
        ("digits:tran=20", "Did you mean 'train'"),
        ("digits:train=many", "'many'"),
        ("digits:train=3", "10 to 1000000"),
        ("digits:train", "whole number"),
        ("digits:mark=colur", "it can be position or colour. Did you mean 'colour'"),
        ("digits:mark", "'mark' is ''"),
        ("digits:mark=colour,test-mark=some", "it can be class, random or none"),
        ("digits:marks=colour", "Did you mean 'mark'"),
        ("digits:test-mark=none", "add mark=position or mark=colour"),
    ],
)
def test_bad_sizes_are_refused(spec, says):
    with pytest.raises(UserError, match=says):
        open_data(spec)


def test_normalization_is_that_of_the_pictures():
    data = open_data("digits:train=2000")
    pixels = data.train.source.pixels().reshape(-1, 3) / 255
    mean, std = data.normalization
    assert np.allclose(pixels.mean(0), mean, atol=0.01)
    assert np.allclose(pixels.std(0), std, atol=0.01)


CODES = ("position", "colour")
TELLS = ("class", "random", "none")


def marked(code, tells, split="test", count=200):
    """Return pictures, digit masks, mark masks and labels of one split of the marked digits (seed 3)."""
    data = open_data(f"digits:{split}={count},mark={code},test-mark={tells}", seed=3)
    images = getattr(data, split)
    source = images.source
    marks = np.stack([source.mark(index) for index in range(count)]).astype(bool)
    digits = np.stack([source.mask(index) for index in range(count)]).astype(bool)
    return source.pixels(), digits, marks, images.targets


def code_of(code, pictures, marks):
    """Read what a mark says from the picture alone: the height of its box, or the colour of its middle."""
    said = []
    for picture, mark in zip(pictures, marks, strict=True):
        rows, columns = np.flatnonzero(mark.any(1)), np.flatnonzero(mark.any(0))
        said.append(rows[0] if code == "position" else tuple(picture[rows[2], columns[2]].tolist()))
    return said


@pytest.mark.parametrize("code", CODES)
def test_a_mark_changes_nothing_but_its_own_pixels(code):
    plain = open_data("digits:test=200", seed=3).test.source
    for tells in TELLS:
        pictures, digits, marks, _ = marked(code, tells)
        assert np.array_equal(pictures[~marks], plain.pixels()[~marks])
        assert np.array_equal(digits, np.stack([plain.mask(index) for index in range(200)]).astype(bool))
        if tells == "none":
            assert not marks.any()
            continue
        assert (marks.sum((1, 2)) == 36).all()
        # Beside the digit, with a gap, and a square that lies wholly in the picture.
        grown = np.pad(digits, ((0, 0), (1, 1), (1, 1)))
        grown = np.lib.stride_tricks.sliding_window_view(grown, (3, 3), axis=(1, 2)).any((3, 4))
        assert not (grown & marks).any()
        assert all(np.ptp(np.argwhere(mark), axis=0).tolist() == [5, 5] for mark in marks)


@pytest.mark.parametrize("code", CODES)
def test_what_a_mark_says(code):
    for split, tells in (("train", "random"), ("validation", "random"), ("test", "class")):
        pictures, _, marks, labels = marked(code, tells, split)
        said = code_of(code, pictures, marks)
        # One to one: each class has a code of its own.
        assert len(set(zip(said, labels.tolist(), strict=True))) == len(set(said)) == 10
    pictures, _, marks, labels = marked(code, "random", count=1000)
    told = dict(zip(said, marked(code, "class")[3].tolist(), strict=True))
    says = np.array([told[word] for word in code_of(code, pictures, marks)])
    # Ten equally likely words, whatever the class: 100 each, standard deviation 9.5.
    assert abs((says == labels).sum() - 100) < 40
    assert (np.abs(np.bincount(says, minlength=10) - 100) < 40).all()


def test_marked_pictures_do_not_depend_on_how_they_are_read():
    first, again = (open_data("digits:train=30,mark=colour", seed=3).train for _ in range(2))
    one_by_one = np.stack([np.asarray(again[index].image) for index in range(30)])
    assert np.array_equal(first.source.pixels(), one_by_one)
    assert (first.source.pixels() != open_data("digits:train=30,mark=colour", seed=4).train.source.pixels()).any()


def test_names_and_record_tell_marked_pictures_apart():
    specs = ["digits:test=20", "digits:test=20,mark=colour", "digits:test=20,mark=position"]
    specs += [f"digits:test=20,mark=colour,test-mark={tells}" for tells in ("class", "none")]
    names = [open_data(spec).test.id(0) for spec in specs]
    assert len(set(names)) == 5
    assert names[0] == "digits/seed-0/test/0"
    record = open_data("digits:test=20,mark=colour").record()
    assert "a mark's colour gives the class away in train and validation" in record["split_made"]
    # What an evaluation on another test split compares is the training pictures: they are the same.
    other = open_data("digits:test=20,mark=colour,test-mark=class").record()
    assert record["splits"]["train"]["fingerprint"] == other["splits"]["train"]["fingerprint"]
    assert record["splits"]["test"]["fingerprint"] != other["splits"]["test"]["fingerprint"]
