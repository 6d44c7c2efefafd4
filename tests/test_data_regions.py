import numpy as np
import pytest
from PIL import Image

from attention_branch.data import Sample, transform_mask
from attention_branch.models.preprocessing import Preprocessing


def test_identity_keeps_the_mask():
    mask = np.random.default_rng(0).integers(0, 2, (12, 9)).astype(np.uint8)
    kept = transform_mask(mask, Preprocessing(size=(12, 9), resize="squash"))
    assert kept.dtype == bool
    assert np.array_equal(kept, mask.astype(bool))


def test_a_mask_follows_the_picture_through_resize_and_crop():
    # The object is white on black: where the network sees white, the mask must be.
    mask = np.zeros((120, 90), dtype=np.uint8)
    mask[20:70, 30:62] = 1
    picture = Image.fromarray(np.repeat(mask[..., None] * 255, 3, axis=2))
    for preprocessing in (
        Preprocessing(size=(48, 64), resize="crop", crop_pct=0.8, interpolation="bilinear"),
        Preprocessing(size=(40, 40), resize="squash", interpolation="bilinear"),
    ):
        seen = np.asarray(preprocessing.image(picture))[..., 0] >= 128
        assert seen.any()
        assert np.array_equal(transform_mask(mask, preprocessing), seen)
        assert np.array_equal(transform_mask((30, 20, 62, 70), preprocessing, (120, 90)), seen)


def test_box_between_pixels_takes_pixels_half_covered():
    box = transform_mask((1.4, 0.0, 3.6, 2.0), Preprocessing(size=(4, 5), resize="squash"), (4, 5))
    expected = np.zeros((4, 5), dtype=bool)
    expected[0:2, 1:4] = True
    assert np.array_equal(box, expected)


def test_tiny_object_survives_shrinking_and_a_cropped_one_does_not():
    mask = np.zeros((200, 400), dtype=np.uint8)
    mask[100, 200] = 1
    kept = transform_mask(mask, Preprocessing(size=(20, 20), resize="crop", crop_pct=1.0))
    assert 1 <= kept.sum() <= 4
    assert kept[10, 10]
    mask[:] = 0
    mask[100, 0:20] = 1
    assert not transform_mask(mask, Preprocessing(size=(20, 20), resize="crop", crop_pct=1.0)).any()


def test_sample_region_prefers_the_mask():
    picture = Image.new("RGB", (8, 6))
    preprocessing = Preprocessing(size=(6, 8), resize="squash")
    mask = np.zeros((6, 8), dtype=np.uint8)
    mask[0, 0] = 1
    assert Sample(picture, 0, 0, "a", mask=mask, box=(2, 2, 4, 4)).region(preprocessing).sum() == 1
    assert Sample(picture, 0, 0, "a", box=(2, 2, 4, 4)).region(preprocessing).sum() == 4
    assert Sample(picture, 0, 0, "a").region(preprocessing) is None


def test_box_without_picture_size_is_refused():
    with pytest.raises(ValueError, match="height, width"):
        transform_mask((0, 0, 1, 1), Preprocessing())
