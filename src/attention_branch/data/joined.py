"""A set of pictures with further ones behind it, such as those that somebody annotated."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from attention_branch.data.dataset import Box, ImageSet, Source
from attention_branch.data.images import open_image


class _JoinedSource(Source):
    """The rows of a source, then picture files; of these only the pictures are known."""

    decode_first = False

    def __init__(self, first: Source, files: Sequence[Path]) -> None:
        self.first, self.files = first, list(files)

    def __len__(self) -> int:
        return len(self.first) + len(self.files)

    def _file(self, row: int) -> Path | None:
        return self.files[row - len(self.first)] if row >= len(self.first) else None

    def image(self, row: int) -> Image.Image:
        """Return one picture as RGB."""
        file = self._file(row)
        return self.first.image(row) if file is None else open_image(file)

    def id(self, row: int) -> str:
        """Return the picture's name in the first source, or its file's."""
        file = self._file(row)
        return self.first.id(row) if file is None else str(file)

    def mask(self, row: int) -> np.ndarray | None:
        """Return the object's mask where the first source has one."""
        return self.first.mask(row) if row < len(self.first) else None

    def box(self, row: int) -> Box | None:
        """Return the object's box where the first source has one."""
        return self.first.box(row) if row < len(self.first) else None


def with_files(images: ImageSet, files: Sequence[Path], targets: Mapping[str, Sequence[int]]) -> ImageSet:
    """Return a set with picture files behind its own; `targets` are the files' class numbers by head, -1 unknown."""
    if not files:
        return images
    source, count = images.source, len(images.source)
    joined = {}
    for head, more in targets.items():
        own = np.full(count, -1, dtype=np.int64)
        own[images.rows] = [images.targets_of(index)[head] for index in range(len(images))]
        joined[head] = np.concatenate([own, np.asarray(more, dtype=np.int64)])
    rows = np.concatenate([images.rows, count + np.arange(len(files))])
    return ImageSet(_JoinedSource(source, files), joined, images.tasks, multitask=images.multitask, rows=rows)
