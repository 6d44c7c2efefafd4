"""The pictures of a data set as plain arrays in files, decoded once, for all runs of a command."""

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from attention_branch.data import DataSet
from attention_branch.data.dataset import ImageSet
from attention_branch.data.resident import decoded, stacked_targets
from attention_branch.files import atomic_path
from attention_branch.models import Preprocessing, create_backbone
from attention_branch.training.config import TrainConfig

SPLITS = ("train", "validation", "test")

_AT_ONCE = 1000
"""Pictures that are summed at once."""


class Arrays:
    """The pictures, class numbers and objects' places of a data set as files that several processes map into memory."""

    def __init__(self, folder: Path, data: DataSet) -> None:
        """Describe what `write` puts into the folder."""
        self.folder = folder
        self.tasks = data.tasks
        self.multitask = data.multitask
        self.normalization = data.normalization
        """Mean and standard deviation by channel: those that are published, else (after `write`) of the training
        pictures."""
        self.others: list[str] = []
        """Names of the further test sets."""
        self.pixels: str | None = None
        """SHA-256 of every split's decoded pictures and class numbers, and of further test sets; None before `write`.
        """

    def write(
        self, data: DataSet, preprocessing: Preprocessing, others: Mapping[str, ImageSet] | None = None
    ) -> "Arrays":
        """Decode every split once, at the network's size, and the `others`: further test sets by name."""
        self.folder.mkdir(parents=True, exist_ok=True)
        digest = hashlib.sha256()
        for name in SPLITS:
            images = getattr(data, name)
            pixels = decoded(images, preprocessing)
            if name == "train" and self.normalization is None:
                self.normalization = mean_and_deviation(pixels)
            for part, values in {name: pixels, f"{name}-targets": stacked_targets(images)}.items():
                digest.update(f"{part} {values.dtype.str} {values.shape}\n".encode())
                digest.update(np.ascontiguousarray(values).data)
                with atomic_path(self.folder / f"{part}.npy") as path:
                    np.save(path, values)
        for name, images in (others or {}).items():
            self.others.append(name)
            pixels, targets = decoded(images, preprocessing), stacked_targets(images)
            digest.update(f"test-{name} {pixels.shape}\n".encode())
            digest.update(np.ascontiguousarray(pixels).data)
            for part, values in {f"test-{name}": pixels, f"test-{name}-targets": targets}.items():
                with atomic_path(self.folder / f"{part}.npy") as path:
                    np.save(path, values)
        self.pixels = digest.hexdigest()
        assert data.test is not None
        regions = _regions(data.test, preprocessing, list(data.tasks) if data.multitask else None)
        if regions is not None:
            with atomic_path(self.folder / "test-regions.npy") as path:
                np.save(path, regions)
        distractors = _distractors(data.test, preprocessing)
        if distractors is not None:
            with atomic_path(self.folder / "test-distractors.npy") as path:
                np.save(path, distractors)
        return self

    def regions(self) -> np.ndarray | None:
        """Return where the test pictures' objects are, bool (N, T, H, W), T = 1 or one a head; None where no place is
        known. A picture without a known place has none."""
        path = self.folder / "test-regions.npy"
        return np.load(path, mmap_mode="r") if path.exists() else None

    def distractors(self) -> np.ndarray | None:
        """Return where the test pictures' distractors are, bool (N, H, W); None where there are none."""
        path = self.folder / "test-distractors.npy"
        return np.load(path, mmap_mode="r") if path.exists() else None

    def split(self, name: str) -> tuple[np.ndarray, np.ndarray]:
        """Return pictures uint8 (N, H, W, 3) and class numbers of a split, or of `test-NAME`, one of the others."""
        pixels = np.load(self.folder / f"{name}.npy", mmap_mode="r")
        return pixels, np.load(self.folder / f"{name}-targets.npy")

    def described(self, spec: str) -> DataSet:
        """Return the data set without its pictures: classes and normalisation, for building networks."""
        return DataSet(spec=spec, seed=0, tasks=self.tasks, multitask=self.multitask, normalization=self.normalization)


def mean_and_deviation(pixels: np.ndarray) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return mean and standard deviation by channel, in [0, 1], over all pixels of pictures uint8 (N, H, W, 3)."""
    count, sums, squares = 0, np.zeros(3, dtype=np.int64), np.zeros(3, dtype=np.int64)
    for begin in range(0, len(pixels), _AT_ONCE):
        part = pixels[begin : begin + _AT_ONCE].reshape(-1, 3).astype(np.int64)
        count += len(part)
        sums += part.sum(0)
        squares += (part**2).sum(0)
    mean = sums / count
    # A channel that is the same everywhere must not be divided by zero.
    deviation = np.sqrt(np.maximum(squares / count - mean**2, 1))
    rounded = ((values / 255).round(4).tolist() for values in (mean, deviation))
    return tuple(next(rounded)), tuple(next(rounded))


def _regions(images: ImageSet, preprocessing: Preprocessing, heads: list[str] | None) -> np.ndarray | None:
    """Return the objects' places, bool (N, T, H, W), empty where one is not known; None where none is known."""
    shape = (len(images), len(heads or [""]), *preprocessing.size)
    found = None
    for number in range(len(images)):
        sample = images[number]
        if heads is None:
            region = sample.region(preprocessing)
            places = {} if region is None else {"": region}
        else:
            places = sample.head_regions(preprocessing)
        for head, place in places.items():
            if found is None:
                found = np.zeros(shape, dtype=bool)
            found[number, heads.index(head) if heads else 0] = place
    return found


def _distractors(images: ImageSet, preprocessing: Preprocessing) -> np.ndarray | None:
    """Return the distractors' places, bool (N, H, W); None for data without: every picture has one, or none does."""
    if images.source.distractor(int(images.rows[0])) is None:
        return None
    found = np.zeros((len(images), *preprocessing.size), dtype=bool)
    for number in range(len(images)):
        place = images[number].distractor_region(preprocessing)
        assert place is not None
        found[number] = place
    return found


def preprocessing_of(config: TrainConfig, data: DataSet) -> Preprocessing:
    """Return how a run's network sees pictures."""
    size: dict[str, Any] = {"heads": data.heads} if data.multitask else {"num_classes": data.num_classes}
    return create_backbone(config.model, image_size=config.image_size, **size).preprocessing
