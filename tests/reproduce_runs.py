"""Miniature data and runs for the tests of `abn reproduce`."""

import numpy as np
import pytest
from PIL import Image

from attention_branch.reproduce import record as records
from attention_branch.reproduce.arrays import Arrays, preprocessing_of
from attention_branch.reproduce.cells import Cell
from attention_branch.reproduce.plan import Protocol, make_jobs
from attention_branch.reproduce.small_run import SmallRun
from attention_branch.reproduce.sources import open_origin, parse_data

SHORT = Protocol(epochs=2, train_images=40)
HUNDRED = {"classes": 100, "train": 5, "test": 1}
"""What stands for CIFAR-100: the smallest of the tables' networks are run on it."""


def write_pictures(root, classes=10, train=20, test=4):
    """Write 32-pixel pictures, each class of its own brightness, in folders by split."""
    random = np.random.default_rng(0)
    for split, count in (("train", train), ("test", test)):
        for label in range(classes):
            folder = root / split / f"class{label:0{len(str(classes - 1))}}"
            folder.mkdir(parents=True)
            for number in range(count):
                pixels = random.integers(0, 60, (32, 32, 3)) + 190 * label // classes
                Image.fromarray(pixels.astype(np.uint8)).save(folder / f"{number}.png")
    return root


def opened(name, root):
    """Return where the data comes from, and the data."""
    (origin,) = [found for found in parse_data([f"{name}={root}"]) if found.name == name]
    return origin, open_origin(origin)


def prepare(root, folder):
    """Return what makes jobs of arms of ResNet-20 on ten classes, the pictures decoded, and the data."""
    origin, data = opened("cifar10-jpeg", root)

    def jobs(out, arms=("residual",), protocol=SHORT, seeds=(0,), keep=False):
        cells = [Cell("resnet20", "cifar10", arm) for arm in arms]
        return make_jobs(cells, origin, data, protocol, list(seeds), out, keep)

    example = jobs(folder / "none")[0]
    return jobs, Arrays(folder / "arrays", data).write(data, preprocessing_of(example.config, data)), data


def finish(job, arrays, steps=100):
    """Train a job to its end; return its record."""
    run = SmallRun(job, arrays, "cpu")
    while not run.done:
        run.advance(steps)
    return records.read(job.record)


def one_epoch(job, arrays):
    """Train a job for one epoch and keep it as it is then; return its run."""
    run = SmallRun(job, arrays, "cpu")
    while not run.advance(1):
        pass
    run.save()
    return run


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """Ten classes of pictures in folders."""
    return write_pictures(tmp_path_factory.mktemp("pictures"))


@pytest.fixture(scope="module")
def prepared(pictures, tmp_path_factory):
    """What `prepare` returns for them."""
    return prepare(pictures, tmp_path_factory.mktemp("prepared"))
