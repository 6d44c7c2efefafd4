"""Pictures as the network's input: Pillow and numpy against torchvision, which prepared them when it was trained."""

import itertools

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2 import functional as F

from attention_branch.models.preprocessing import Preprocessing

SIZES = [(224, 224), (225, 300), (301, 199), (33, 32), (31, 47), (500, 64), (64, 501), (7, 9), (1, 3)]
MODES = {
    "bicubic": InterpolationMode.BICUBIC,
    "bilinear": InterpolationMode.BILINEAR,
    "nearest": InterpolationMode.NEAREST,
}


def picture(height, width):
    pixels = np.random.default_rng(height * 1000 + width).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def by_torchvision(preprocessing, image):
    """The same in torchvision's words: resize, cut out the centre."""
    height, width = preprocessing.size
    if image.size == (width, height) and (preprocessing.resize == "squash" or preprocessing.crop_pct == 1):
        return image
    scaled = [height, width]
    if preprocessing.resize == "crop":
        pct = preprocessing.crop_pct
        scale = max(height / pct / image.height, width / pct / image.width)
        scaled = [max(height, round(image.height * scale)), max(width, round(image.width * scale))]
    image = F.resize(image, scaled, interpolation=MODES[preprocessing.interpolation])
    return F.center_crop(image, [height, width])


@pytest.mark.parametrize("interpolation", MODES)
@pytest.mark.parametrize("resize", ["crop", "squash"])
def test_the_picture_is_that_of_torchvision(interpolation, resize):
    inputs, shares = [(224, 224), (32, 32), (33, 48), (65, 64)], [0.875, 1.0, 0.9, 0.95]
    for size, crop_pct, (height, width) in itertools.product(inputs, shares, SIZES):
        preprocessing = Preprocessing(size=size, crop_pct=crop_pct, resize=resize, interpolation=interpolation)
        image = picture(height, width)
        mine, theirs = preprocessing.image(image), by_torchvision(preprocessing, image)
        assert mine.size == theirs.size == (size[1], size[0])
        assert mine.tobytes() == theirs.tobytes(), (size, crop_pct, height, width)


def test_arrays_and_tensors_are_the_same_numbers_and_torchvisions():
    preprocessing = Preprocessing(size=(33, 48))
    for height, width in SIZES:
        image = picture(height, width)
        expected = F.normalize(
            F.to_dtype(F.pil_to_tensor(by_torchvision(preprocessing, image)), torch.float32, scale=True),
            list(preprocessing.mean),
            list(preprocessing.std),
        )
        array = preprocessing.array(image)
        assert array.dtype == np.float32
        assert array.flags.c_contiguous
        assert torch.equal(torch.from_numpy(array), preprocessing.tensor(image))
        assert torch.allclose(torch.from_numpy(array), expected, rtol=0, atol=1e-6)


def test_the_geometry_is_where_the_picture_was_cut_out():
    # A picture whose pixels say where they are, scaled by exactly 1: the corner can be read off the result.
    rows, columns = np.mgrid[:41, :52]
    image = Image.fromarray(np.stack([rows, columns, rows * 0], -1).astype(np.uint8))
    preprocessing = Preprocessing(size=(32, 41), crop_pct=32 / 41, interpolation="nearest")
    factors, (top, left) = preprocessing.geometry((41, 52))
    corner = np.asarray(preprocessing.image(image))[0, 0]
    assert factors[0] == pytest.approx(factors[1], rel=0.02)
    assert (round((corner[0] + 0.5) * factors[0] - 0.5), round((corner[1] + 0.5) * factors[1] - 0.5)) == pytest.approx(
        (top, left), abs=1
    )
