"""Human maps of some pictures of a set, moved and cut as their pictures are, then averaged down to a network's grid."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image

from attention_branch.data.augment import BATCH_AUGMENTATIONS, random_resized_crop
from attention_branch.errors import UserError
from attention_branch.models.preprocessing import Preprocessing

MOVABLE = (*BATCH_AUGMENTATIONS, "random-resized-crop")
"""Augmentations that can do to a map what they do to its picture: those that move pixels and nothing else."""

_KEPT = 4096
"""Maps at the network's size that a process keeps, so that each file is decoded once."""


class PictureMaps:
    """Maps by the picture's index in its set and by head, read from 8-bit grey files in the picture's own pixels.

    `files[index][task]` is the file for the head number `task`; `grid` the (h, w) of the network's map. Raises
    `UserError` for an augmentation that cannot move a map.
    """

    def __init__(
        self,
        files: Mapping[int, Mapping[int, Path]],
        tasks: int,
        grid: tuple[int, int],
        preprocessing: Preprocessing,
        augment: str,
    ) -> None:
        if augment not in MOVABLE:
            raise UserError(
                f"augment is '{augment}', which cannot do to a human map what it does to its picture; use one of "
                f"{', '.join(MOVABLE)}."
            )
        self.files, self.tasks, self.grid, self.augment = files, tasks, grid, augment
        # Bilinear: a bicubic map would leave [0, 1].
        self.preprocessing = replace(preprocessing, interpolation="bilinear")
        self._views: dict[Path, np.ndarray] = {}

    @property
    def indices(self) -> np.ndarray:
        """The pictures that have a map, in rising order."""
        return np.array(sorted(self.files), dtype=np.int64)

    def batch(self, indices: np.ndarray, draws: np.ndarray | None) -> tuple[torch.Tensor, torch.Tensor]:
        """Return maps float32 (N, T, h, w) in [0, 1] and which of them are human ones, bool (N, T); others are 0.

        `draws` are the numbers that the pictures' augmentation was made with.
        """
        maps = torch.zeros(len(indices), self.tasks, *self.grid)
        known = torch.zeros(len(indices), self.tasks, dtype=torch.bool)
        for place, index in enumerate(indices.tolist()):
            moved: dict[Path, torch.Tensor] = {}
            for task, path in self.files.get(index, {}).items():
                if path not in moved:
                    moved[path] = self._on_grid(path, None if draws is None else draws[place])
                maps[place, task], known[place, task] = moved[path], True
        return maps, known

    def _on_grid(self, path: Path, draws: np.ndarray | None) -> torch.Tensor:
        if self.augment in BATCH_AUGMENTATIONS:
            seen = self._view(path)
            if draws is not None:
                seen = BATCH_AUGMENTATIONS[self.augment](seen[None, :, :, None], draws[None])[0, :, :, 0]
        else:
            assert draws is not None
            with Image.open(path) as picture:
                seen = np.asarray(random_resized_crop(picture, self.preprocessing, draws))
        return F.adaptive_avg_pool2d(torch.from_numpy(seen.astype(np.float32))[None] / 255, self.grid)[0]

    def _view(self, path: Path) -> np.ndarray:
        if path in self._views:
            return self._views[path]
        with Image.open(path) as picture:
            view = np.asarray(self.preprocessing.image(picture))
        if len(self._views) < _KEPT:
            self._views[path] = view
        return view
