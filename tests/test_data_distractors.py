"""Distractors beside the embedded digits: what they change, what they look like, and that they say nothing."""

import numpy as np
import pytest
from sklearn.neighbors import KNeighborsClassifier
from sklearn.svm import SVC

from attention_branch.data import open_data
from attention_branch.data.digits import SIDE, _glyphs
from attention_branch.data.distractors import KINDS, SIGNS, drawings, scan
from attention_branch.data.glyphs import scaled_glyph
from attention_branch.errors import UserError
from attention_branch.models import Preprocessing

COUNT = 240


def box_of(mask):
    """Return (top, bottom, left, right) of a mask, the second of each pair exclusive."""
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    return int(rows[0]), int(rows[-1]) + 1, int(columns[0]), int(columns[-1]) + 1


@pytest.fixture(scope="module")
def plain():
    return open_data(f"digits:test={COUNT}", seed=3).test


@pytest.fixture(scope="module")
def beside():
    """Pictures with letters, the masks of digits and letters, and the labels (seed 3, the test split)."""
    images = open_data(f"digits:test={COUNT},distractor=letter", seed=3).test
    samples = list(images)
    digits, letters = (np.stack([getattr(one, name) for one in samples]) > 0 for name in ("mask", "distractor"))
    return images.source.pixels(), digits, letters, images.targets


def test_a_distractor_changes_nothing_but_its_own_place(plain, beside):
    pictures, digits, letters, labels = beside
    assert np.array_equal(digits, np.stack([plain.source.mask(row) for row in range(COUNT)]) > 0)
    assert np.array_equal(labels, plain.targets)
    changed = (pictures != plain.source.pixels()).any(-1)
    for row in range(COUNT):
        # Its soft edge is a pixel wide; two pixels lie between that and the digit's box.
        top, bottom, left, right = box_of(changed[row])
        y0, y1, x0, x1 = box_of(letters[row])
        assert top >= y0 - 2
        assert bottom <= y1 + 2
        assert left >= x0 - 2
        assert right <= x1 + 2
        y0, y1, x0, x1 = box_of(digits[row])
        assert bottom + 2 <= y0 or top >= y1 + 2 or right + 2 <= x0 or left >= x1 + 2
    assert (changed[letters]).mean() > 0.95


def test_its_size_ink_and_contrast_are_the_digits(beside):
    pictures, digits, letters, _ = beside
    found = {}
    for name, masks in (("digit", digits), ("letter", letters)):
        heights, inks, contrasts = [], [], []
        for picture, mask in zip(pictures, masks, strict=True):
            top, bottom, left, right = box_of(mask)
            inside = mask[top:bottom, left:right]
            box = picture[top:bottom, left:right] / 255
            heights.append(bottom - top)
            inks.append(inside.sum())
            contrasts.append(np.linalg.norm(box[inside].mean(0) - box[~inside].mean(0)))
        assert min(heights) >= 14
        assert max(heights) <= 22
        assert len(set(heights)) == 9
        found[name] = [np.mean(values) for values in (heights, inks, contrasts)]
    # Heights of 14 to 22 drawn evenly: the mean of 240 has a standard error of 0.17.
    assert found["letter"][0] == pytest.approx(found["digit"][0], abs=0.6)
    assert found["letter"][1] == pytest.approx(found["digit"][1], rel=0.12)
    assert found["letter"][2] == pytest.approx(found["digit"][2], rel=0.1)


def test_it_says_nothing_of_the_class(beside):
    """Neither its form nor its colour nor its place tells the class: neighbours guess as well as a die."""
    pictures, _, letters, labels = beside
    features = []
    for picture, mask in zip(pictures, letters, strict=True):
        top, bottom, left, right = box_of(mask)
        form = np.zeros((22, 24))
        form[: bottom - top, : right - left] = mask[top:bottom, left:right]
        features.append([*form.ravel(), *picture[mask].mean(0) / 32, top / 8, left / 8])
    for neighbours in (1, 5):
        known = KNeighborsClassifier(neighbours).fit(features[:160], labels[:160])
        # Eight of 80 by chance, standard deviation 2.7.
        assert (known.predict(features[160:]) == labels[160:]).sum() < 8 + 4 * 2.7


def seen(glyph):
    """Return a sign as it is painted 16 pixels tall, in the middle of a fixed box, at half its size."""
    alpha = scaled_glyph(glyph, 16)
    canvas = np.zeros((18, 26))
    start = (26 - alpha.shape[1]) // 2
    canvas[:, start : start + alpha.shape[1]] = alpha
    return canvas.reshape(9, 2, 13, 2).mean((1, 3)).ravel()


@pytest.mark.parametrize("kind", list(SIGNS))
def test_no_sign_is_a_digit(kind):
    """A classifier of its own, scikit-learn's, tells scans of digits and signs apart that it never saw."""
    parts = {}
    for split in ("train", "test"):
        scans = [(seen(glyph), label) for label, glyphs in enumerate(_glyphs(split)) for glyph in glyphs]
        signs = [(seen(glyph), 10) for glyph in drawings(kind, split)]
        step = 2 if split == "train" else 1
        pictures, labels = zip(*(scans + signs)[::step], strict=True)
        parts[split] = np.stack(pictures), np.array(labels)
    predicted = SVC(C=10, cache_size=500).fit(*parts["train"]).predict(parts["test"][0])
    labels = parts["test"][1]
    assert (predicted[labels == 10] == 10).mean() > 0.99
    assert (predicted[labels < 10] < 10).mean() > 0.98
    assert (predicted == labels)[labels < 10].mean() > 0.95


@pytest.mark.parametrize("kind", list(SIGNS))
def test_splits_share_no_drawing(kind):
    found = {
        split: {glyph.tobytes() for glyph, _ in drawings(kind, split)} for split in ("train", "validation", "test")
    }
    assert not found["train"] & found["test"]
    assert not found["train"] & found["validation"]
    assert not found["validation"] & found["test"]
    assert len(found["train"]) == 1250
    assert len(found["test"]) == 360


def test_a_drawing_is_counted_in_blocks_as_the_scans_are():
    class Steady:
        """No slant, no tremor, the middle of every range: a pen 4.6 pixels wide."""

        def uniform(self, low, high, size=None):
            return (low + high) / 2 if size is None else np.full(size, (low + high) / 2)

    # An upright stroke in the middle of the bitmap covers the columns with centres within 2.3 of 16: two of each block.
    counted = scan((((0.5, 0.0), (0.5, 1.0)),), Steady())
    assert counted.shape == (8, 8)
    assert (counted[1:7, 3:5] == 8).all()
    assert (counted[:, [0, 1, 2, 5, 6, 7]] == 0).all()
    # A cross with another as wide as the stroke: symmetric, as the crossing lines are.
    cross = scan((((0.5, 0.0), (0.5, 1.0)), ((0.0, 0.5), (1.0, 0.5))), Steady())
    assert np.array_equal(cross, cross[::-1])
    assert np.array_equal(cross, cross[:, ::-1])
    assert counted.max() <= cross.max() == 12  # three quarters of a block where two strokes meet


def test_pictures_do_not_depend_on_how_they_are_read():
    first, again = (open_data("digits:train=30,distractor=shape", seed=3).train for _ in range(2))
    one_by_one = np.stack([np.asarray(again[index].image) for index in range(30)])
    assert np.array_equal(first.source.pixels(), one_by_one)
    assert (first.source.pixels() != open_data("digits:train=30,distractor=shape", seed=4).train.source.pixels()).any()
    assert (first.source.pixels() != open_data("digits:train=30,distractor=letter", seed=3).train.source.pixels()).any()


def test_train_and_test_may_have_other_distractors():
    both = open_data("digits:train=20,test=20,distractor=letter,test-distractor=shape")
    assert "letters in train and validation, shapes in test" in both.split_made
    assert both.train.id(0) == "digits/seed-0/distractor-letter/train/0"
    assert both.test.id(0) == "digits/seed-0/distractor-shape/test/0"
    without = open_data("digits:train=20,test=20,distractor=letter,test-distractor=none")
    assert without.train.fingerprint() == both.train.fingerprint()
    assert without.test.fingerprint() == open_data("digits:test=20").test.fingerprint()
    assert np.array_equal(without.test.source.pixels(), open_data("digits:test=20").test.source.pixels())
    assert without.test[0].distractor is None
    assert without.test[0].distractor_region(Preprocessing(size=(64, 64))) is None
    # Trained without, tested with: the one option is enough.
    later = open_data("digits:train=20,test=20,test-distractor=letter")
    assert later.train[0].distractor is None
    assert later.test[0].distractor.shape == (SIDE, SIDE)
    small = later.test[0].distractor_region(Preprocessing(size=(32, 32), crop_pct=1.0))
    assert small.shape == (32, 32)
    assert small.dtype == bool
    assert 4 * small.sum() == pytest.approx(later.test[0].distractor.sum(), rel=0.25)
    assert set(KINDS) == {*SIGNS, "none"}


def test_a_mark_goes_with_no_distractor():
    data = open_data("digits:train=10,validation=10,test=10,mark=colour,distractor=none")
    assert data.test[0].distractor is None


@pytest.mark.parametrize(
    ("spec", "says"),
    [
        ("digits:distractor=leter", "it can be letter, shape or none. Did you mean 'letter'"),
        ("digits:distractor", "'distractor' is ''"),
        ("digits:distracter=letter", "Did you mean 'distractor'"),
        ("digits:mark=colour,distractor=letter", "could hide each other; leave one out"),
        ("digits:distractor=letter,distractor=shape", "names 'distractor' twice; leave one out"),
    ],
)
def test_bad_distractors_are_refused(spec, says):
    with pytest.raises(UserError, match=says):
        open_data(spec)
