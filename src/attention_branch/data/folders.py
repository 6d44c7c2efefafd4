"""A folder of class folders, with `train/`, `val/` and `test/` above them or without."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from attention_branch.data.dataset import Box, DataSet, Source
from attention_branch.data.images import IMAGE_SUFFIXES, is_hidden, natural_key, open_image, walk
from attention_branch.data.splits import ALIASES, assemble
from attention_branch.errors import UserError


class FileSource(Source):
    """Picture files under one folder, by their names relative to it."""

    def __init__(
        self,
        root: Path,
        names: Sequence[str],
        boxes: Sequence[Box | None] | None = None,
        places: Sequence[str] | None = None,
    ) -> None:
        """Take the names, and for each its object's box and the place in a list that names it (for messages)."""
        self.root, self.names, self.boxes, self.places = root, list(names), boxes, places

    def __len__(self) -> int:
        return len(self.names)

    def path(self, row: int) -> Path:
        """Return the file of one picture."""
        return self.root / self.names[row]

    def image(self, row: int) -> Image.Image:
        """Return one picture as RGB."""
        self._must_exist(row)
        return open_image(self.path(row))

    def id(self, row: int) -> str:
        """Return the file's name relative to the data's folder, with forward slashes."""
        return self.names[row]

    def encoded(self, row: int) -> bytes | None:
        """Return the file's bytes."""
        self._must_exist(row)
        return self.path(row).read_bytes()

    def _must_exist(self, row: int) -> None:
        if self.places is not None and not self.path(row).exists():
            raise UserError(
                f"{self.places[row]}: there is no file '{self.path(row)}'; mend the name or remove the line."
            )

    def stamp(self, row: int) -> tuple[str, int, int] | None:
        """Return the file's absolute name, size and time of change; None when it is not there."""
        path = self.path(row)
        try:
            state = path.stat()
        except OSError:
            return None
        return str(path.absolute()), state.st_size, state.st_mtime_ns

    def box(self, row: int) -> Box | None:
        """Return the object's box, if the data has one."""
        return None if self.boxes is None else self.boxes[row]


def subfolders(folder: Path) -> list[Path]:
    """Return the visible folders in a folder, in natural order."""
    names = [entry.name for entry in os.scandir(folder) if entry.is_dir() and not is_hidden(entry.name)]
    return [folder / name for name in sorted(names, key=natural_key)]


def split_folders(root: Path) -> dict[str, Path]:
    """Return the folders named after splits, when the folder is laid out by splits: it has train/, or nothing else."""
    folders = subfolders(root)
    named: dict[str, Path] = {}
    for folder in folders:
        split = ALIASES.get(folder.name.lower())
        if split is None:
            continue
        if split in named:
            raise UserError(f"'{root}' has both '{named[split].name}/' and '{folder.name}/'; keep one {split} folder.")
        named[split] = folder
    return named if "train" in named or len(named) == len(folders) else {}


def open_class_folders(root: Path, *, spec: str, seed: int, validation: float, test: float) -> DataSet:
    """Open a folder of class folders; classes are numbered in the natural order of their names."""
    splits = split_folders(root)
    places: dict[str, Path] = dict(splits) if splits else {"": root}
    found: list[tuple[str, str, str]] = []
    ignored: list[str] = []
    for split, place in places.items():
        for file in walk(place):
            name = file.relative_to(root).as_posix()
            inside = file.relative_to(place).parts
            if file.suffix.lower() in IMAGE_SUFFIXES and len(inside) > 1:
                found.append((split, inside[0], name))
            else:
                ignored.append(name)
    described: dict[str, Any] = {"spec": spec, "root": str(root.absolute()), "ignored": ignored}
    first = "train" if "train" in splits else next(iter(places))
    classes = sorted({label for split, label, _ in found if split == first}, key=natural_key)
    _check_classes(root, places[first], classes, ignored)
    number = {name: value for value, name in enumerate(classes)}
    for split, label, name in found:
        if label not in number:
            raise UserError(
                f"The class '{label}' of '{name}' is in '{places[split].name}/' but not in '{places[first].name}/'; "
                "use the same class folders in both."
            )
    source = FileSource(root, [name for _, _, name in found])
    targets = {"label": np.array([number[label] for _, label, _ in found], dtype=np.int64)}
    given = np.array([split for split, _, _ in found], dtype=object)
    return assemble(
        source, targets, {"label": classes}, given, seed=seed, validation=validation, test=test, **described
    )


def _check_classes(root: Path, place: Path, classes: Sequence[str], ignored: Sequence[str]) -> None:
    way_out = "put the pictures of each class in a folder of their own, as in 'cats/1.jpg' and 'dogs/1.jpg'"
    if len(classes) == 1:
        raise UserError(f"'{place}' has one class, '{classes[0]}', and a classifier needs two or more; {way_out}.")
    if classes:
        return
    loose = sum(Path(name).suffix.lower() in IMAGE_SUFFIXES for name in ignored)
    what = f"{loose} pictures but no class folders" if loose else "no pictures"
    raise UserError(f"'{place}' holds {what}; {way_out}, or list them in '{root / 'metadata.csv'}'.")
