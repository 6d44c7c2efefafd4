"""Decoded data of the runs: its own mean and deviation, and where objects lie, against numpy and by hand."""

import json

import numpy as np
import pytest
from PIL import Image

from attention_branch.data import DataSet, ImageSet
from attention_branch.data.folders import FileSource
from attention_branch.models import Preprocessing
from attention_branch.reproduce.arrays import Arrays, mean_and_deviation
from attention_branch.reproduce.sources import KINDS, Origin, open_origin
from reproduce_runs import opened, prepare, write_pictures


def test_mean_and_deviation_are_those_of_all_pixels():
    pixels = np.random.default_rng(0).integers(0, 256, (2001, 4, 5, 3), dtype=np.uint8)
    pixels[..., 1] //= 2
    mean, deviation = mean_and_deviation(pixels)
    wanted = pixels.reshape(-1, 3).astype(np.float64) / 255
    assert mean == pytest.approx(wanted.mean(0), abs=6e-5)
    assert deviation == pytest.approx(wanted.std(0), abs=6e-5)
    black = mean_and_deviation(np.zeros((2, 4, 4, 3), dtype=np.uint8))
    assert black[0] == (0, 0, 0)
    assert min(black[1]) > 0


def test_data_without_a_published_normalisation_has_its_own(tmp_path):
    _, arrays, data = prepare(write_pictures(tmp_path / "pictures"), tmp_path)
    pixels = np.stack([np.asarray(data.train.image(number)) for number in range(len(data.train))])
    assert np.array(arrays.normalization) == pytest.approx(np.array(mean_and_deviation(pixels)))
    assert arrays.described("any").normalization == arrays.normalization
    published = ((0.1, 0.2, 0.3), (0.4, 0.5, 0.6))
    data.normalization = published
    assert Arrays(tmp_path / "other", data).write(data, Preprocessing(size=(32, 32))).normalization == published


def test_a_picture_without_a_place_has_none_and_the_others_keep_theirs(tmp_path):
    boxes = [(1, 2, 5, 10), (4, 8, 4, 8), None, (20, 0, 32, 4)]
    for number in range(len(boxes)):
        Image.new("RGB", (32, 32), (number, 0, 0)).save(tmp_path / f"{number}.png")
    tasks = {"label": ("a", "b")}
    source = FileSource(tmp_path, [f"{number}.png" for number in range(len(boxes))], boxes)
    images = ImageSet(source, {"label": np.array([0, 1, 0, 1])}, tasks)
    data = DataSet(spec="boxes", seed=0, tasks=tasks, train=images, validation=images, test=images)
    preprocessing = Preprocessing(size=(32, 32), crop_pct=1.0)
    regions = Arrays(tmp_path / "arrays", data).write(data, preprocessing).regions()
    wanted = np.zeros((4, 1, 32, 32), dtype=bool)
    wanted[0, 0, 2:10, 1:5] = wanted[3, 0, 0:4, 20:32] = True
    assert np.array_equal(regions, wanted)
    source.boxes = [None] * len(boxes)
    assert Arrays(tmp_path / "none", data).write(data, preprocessing).regions() is None


def test_validation_of_several_labels_is_cut_at_random(tmp_path):
    pictures = write_pictures(tmp_path / "pictures")
    (pictures / "test").rename(pictures / "val")
    _, one = opened("cifar10-jpeg", pictures)
    assert one.split_made.endswith("cut from train, stratified by class")
    table = {"low": [f"class{n}" for n in range(5)], "high": [f"class{n}" for n in range(5, 10)]}
    (tmp_path / "groups.json").write_text(json.dumps(table))
    spec = f"grouped:{tmp_path}/pictures,groups={tmp_path}/groups.json"
    two = open_origin(Origin(KINDS["two-level"], spec, KINDS["two-level"].title))
    assert two.split_made.endswith("cut from train, at random")
    assert len(two.validation) == 20
