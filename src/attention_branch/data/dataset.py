"""What every kind of data becomes: samples by number, their targets, and the three splits in one bundle."""

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from PIL import Image

from attention_branch.data.regions import transform_mask, transform_points
from attention_branch.errors import UserError
from attention_branch.models.preprocessing import Preprocessing

SPLITS = ("train", "validation", "test")
Box = tuple[float, float, float, float]
Targets = np.ndarray | dict[str, np.ndarray]


@dataclass(frozen=True)
class Sample:
    """One picture with its truth.

    `target` is a class number, or one per head; -1 means that the label is missing. `index` counts within the set.
    `mask` (H, W) uint8 is 1 on the object; `box` is (x0, y0, x1, y1). Both are in the pixels of `image`. Where each
    head has a place of its own, `masks` holds a mask by head; a head whose object is not in the picture has none.
    `distractor` (H, W) uint8 is 1 where the picture shows what is known to say nothing of the class.
    """

    image: Image.Image
    target: int | dict[str, int]
    index: int
    id: str
    mask: np.ndarray | None = None
    box: Box | None = None
    masks: dict[str, np.ndarray] | None = None
    distractor: np.ndarray | None = None

    def region(self, preprocessing: Preprocessing, head: str | None = None) -> np.ndarray | None:
        """Return the object's true place as a bool mask (H, W) at the network's size, or None when it is not known.

        `head` chooses among the places of several heads; a picture with one place for all has it for each.
        """
        if self.masks is not None:
            return self.head_regions(preprocessing).get(head or "")
        if self.mask is not None:
            return transform_mask(self.mask, preprocessing)
        if self.box is not None:
            return transform_mask(self.box, preprocessing, (self.image.height, self.image.width))
        return None

    def distractor_region(self, preprocessing: Preprocessing) -> np.ndarray | None:
        """Return the distractor's place as a bool mask (H, W) at the network's size, None where there is none."""
        return None if self.distractor is None else transform_mask(self.distractor, preprocessing)

    def head_regions(self, preprocessing: Preprocessing) -> dict[str, np.ndarray]:
        """Return each head's true place, as `region` does, where heads have places of their own; else nothing."""
        return {head: transform_mask(mask, preprocessing) for head, mask in (self.masks or {}).items()}


class Source(ABC):
    """Where pictures come from, one per row. Rows are read at random, from several threads or forked processes."""

    decoded = False
    """Whether pictures are kept decoded, so that none of them can be broken."""
    decode_first = True
    """Whether opening decodes every picture once, so that no epoch stops at a broken one."""

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def image(self, row: int) -> Image.Image:
        """Return one picture as RGB; a `UserError` that names it when it cannot be decoded."""

    @abstractmethod
    def id(self, row: int) -> str:
        """Return a name that tells the row from all others and stays when the data moves to another place."""

    def encoded(self, row: int) -> bytes | None:
        """Return the picture's stored bytes, or None where pictures are stored decoded."""
        return None

    def stamp(self, row: int) -> tuple[str, int, int] | None:
        """Return (absolute name, bytes, modification time in ns): while it stays, so does the picture."""
        return None

    def mask(self, row: int) -> np.ndarray | None:
        """Return the object's mask (H, W) uint8, if there is one."""
        return None

    def box(self, row: int) -> Box | None:
        """Return the object's box (x0, y0, x1, y1) in pixels, if there is one."""
        return None

    def distractor(self, row: int) -> np.ndarray | None:
        """Return a mask (H, W) uint8 of what is known to say nothing of the class, if there is any."""
        return None

    def head_masks(self, row: int) -> dict[str, np.ndarray] | None:
        """Return a mask (H, W) uint8 by head, where heads have places of their own."""
        return None

    point_names: tuple[str, ...] = ()
    """Names of the points that are known in every picture, such as a face's eyes; none unless the data gives them."""

    def points(self, row: int) -> np.ndarray | None:
        """Return the known points (P, 2), float64 x and y, where a pixel's middle has its whole number."""
        return None

    def picture_size(self, row: int) -> tuple[int, int]:
        """Return the picture's (height, width) in pixels."""
        picture = self.image(row)
        return picture.height, picture.width

    def pixels(self) -> np.ndarray | None:
        """Return all pictures as uint8 (N, H, W, 3), or None when they are not all in memory at one size."""
        return None


class ImageSet:
    """The pictures of one split. `set[i]` decodes one; `targets` needs no decoding."""

    def __init__(
        self,
        source: Source,
        targets: Mapping[str, np.ndarray],
        tasks: Mapping[str, Sequence[str]],
        *,
        multitask: bool = False,
        rows: np.ndarray | None = None,
    ) -> None:
        """Take targets (one int per row of the source) and class names by head; `rows` chooses rows of the source."""
        self.source = source
        self.tasks = {head: tuple(names) for head, names in tasks.items()}
        self.multitask = multitask
        self.rows = np.arange(len(source)) if rows is None else np.asarray(rows, dtype=np.int64)
        self._all_targets = {head: np.asarray(targets[head], dtype=np.int64) for head in self.tasks}
        for head, values in self._all_targets.items():
            if len(values) != len(source):
                raise ValueError(f"{len(values)} targets of '{head}' for {len(source)} pictures.")
            outside = np.flatnonzero((values < -1) | (values >= len(self.tasks[head])))
            if len(outside):
                count = len(self.tasks[head])
                raise UserError(
                    f"The label {values[outside[0]]} of '{source.id(int(outside[0]))}' is out of range: '{head}' has "
                    f"{count} classes, so labels run from 0 to {count - 1} (-1: missing); mend it in the data."
                )

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> Sample:
        index = range(len(self))[index]
        row = int(self.rows[index])
        values = self.targets_of(index)
        return Sample(
            image=self.source.image(row),
            target=values if self.multitask else next(iter(values.values())),
            index=index,
            id=self.source.id(row),
            mask=self.source.mask(row),
            box=self.source.box(row),
            masks=self.source.head_masks(row),
            distractor=self.source.distractor(row),
        )

    def __iter__(self) -> Iterator[Sample]:
        return (self[index] for index in range(len(self)))

    def targets_of(self, index: int) -> dict[str, int]:
        """Return one sample's class numbers by head, without decoding it; single-task data has the head 'label'."""
        row = int(self.rows[index])
        return {head: int(column[row]) for head, column in self._all_targets.items()}

    def image(self, index: int) -> Image.Image:
        """Return the picture alone, RGB."""
        return self.source.image(int(self.rows[index]))

    def id(self, index: int) -> str:
        """Return the sample's name without decoding it."""
        return self.source.id(int(self.rows[index]))

    @property
    def ids(self) -> list[str]:
        """The names of all samples, in order."""
        return [self.source.id(int(row)) for row in self.rows]

    @property
    def targets(self) -> Targets:
        """The class numbers, int64 (N,), or one such array per head; -1 = missing."""
        chosen = {head: values[self.rows] for head, values in self._all_targets.items()}
        return chosen if self.multitask else next(iter(chosen.values()))

    @property
    def point_names(self) -> tuple[str, ...]:
        """Names of the points that are known in every picture; none unless the data gives them."""
        return self.source.point_names

    def points(self, index: int, preprocessing: Preprocessing) -> np.ndarray | None:
        """Return one picture's known points (P, 2), x and y in the pixels of the network's input; None without any.

        A point that the crop leaves out lies outside the input.
        """
        row = int(self.rows[index])
        points = self.source.points(row)
        return None if points is None else transform_points(points, preprocessing, self.source.picture_size(row))

    def all_points(self, preprocessing: Preprocessing) -> np.ndarray | None:
        """Return the points of all pictures, float32 (N, P, 2) as `points` gives them; None without any."""
        if not self.point_names:
            return None
        found = [self.points(index, preprocessing) for index in range(len(self))]
        return np.stack([points for points in found if points is not None]).astype(np.float32)

    def subset(self, indices: Sequence[int] | np.ndarray) -> "ImageSet":
        """Return the set of these samples, in this order."""
        rows = self.rows[np.asarray(indices, dtype=np.int64)]
        return ImageSet(self.source, self._all_targets, self.tasks, multitask=self.multitask, rows=rows)

    def counts(self) -> dict[str, dict[str, int]]:
        """Return how many samples each class of each head has; a missing label is counted nowhere."""
        table = {}
        for head, names in self.tasks.items():
            values = self._all_targets[head][self.rows]
            numbers = np.bincount(values[values >= 0], minlength=len(names))
            table[head] = {name: int(number) for name, number in zip(names, numbers, strict=True)}
        return table

    def fingerprint(self) -> str:
        """Return the SHA-256 of the ordered sample names."""
        digest = hashlib.sha256()
        for row in self.rows:
            digest.update(self.source.id(int(row)).encode("utf-8", "surrogateescape") + b"\n")
        return digest.hexdigest()


@dataclass
class DataSet:
    """A data set opened from one string: up to three splits that share tasks and class names.

    `left_out` lists (id, reason) of the pictures that cannot be read; no split holds them. `normalization` is the
    published (mean, std) per channel on the [0, 1] scale where the data has one.
    """

    spec: str
    seed: int
    tasks: dict[str, tuple[str, ...]]
    train: ImageSet | None = None
    validation: ImageSet | None = None
    test: ImageSet | None = None
    multitask: bool = False
    split_made: str = ""
    root: str | None = None
    normalization: tuple[tuple[float, ...], tuple[float, ...]] | None = None
    left_out: list[tuple[str, str]] = field(default_factory=list)
    ignored: list[str] = field(default_factory=list)

    @property
    def splits(self) -> dict[str, ImageSet]:
        """The splits there are, by name."""
        found = {name: getattr(self, name) for name in SPLITS}
        return {name: images for name, images in found.items() if images is not None}

    @property
    def heads(self) -> dict[str, int] | None:
        """The number of classes of each head, or None for single-task data."""
        return {head: len(names) for head, names in self.tasks.items()} if self.multitask else None

    @property
    def num_classes(self) -> int | None:
        """The number of classes of single-task data, else None."""
        return None if self.multitask else len(next(iter(self.tasks.values())))

    @property
    def point_names(self) -> tuple[str, ...]:
        """Names of the points that are known in every training picture; none unless the data gives them."""
        return self.train.point_names if self.train is not None else ()

    @property
    def class_names(self) -> list[str] | dict[str, list[str]]:
        """The class names as a model takes them: a list, or one list per head."""
        if self.multitask:
            return {head: list(names) for head, names in self.tasks.items()}
        return list(next(iter(self.tasks.values())))

    def record(self) -> dict[str, Any]:
        """Return what a later reader needs to know which pictures were used, as plain values for a JSON file."""
        splits = {
            name: {"images": len(images), "classes": images.counts(), "fingerprint": images.fingerprint()}
            for name, images in self.splits.items()
        }
        together = "".join(f"{name} {entry['fingerprint']}\n" for name, entry in splits.items())
        return {
            "spec": self.spec,
            "root": self.root,
            "seed": self.seed,
            "split_made": self.split_made,
            "tasks": {head: list(names) for head, names in self.tasks.items()},
            "multitask": self.multitask,
            "splits": splits,
            "left_out": [{"id": name, "reason": reason} for name, reason in self.left_out],
            "fingerprint": hashlib.sha256(together.encode()).hexdigest(),
        }
