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

    `files[index][task]` is the file for the head number `task`; `grid` the (h, w) of the network's map; `inside` asks
    for what lies inside the maps, too. Raises `UserError` for an augmentation that cannot move a map.
    """

    def __init__(
        self,
        files: Mapping[int, Mapping[int, Path]],
        tasks: int,
        grid: tuple[int, int],
        preprocessing: Preprocessing,
        augment: str,
        *,
        inside: bool = False,
    ) -> None:
        if augment not in MOVABLE:
            raise UserError(
                f"augment is '{augment}', which cannot do to a human map what it does to its picture; use one of "
                f"{', '.join(MOVABLE)}."
            )
        self.files, self.tasks, self.grid, self.augment, self.inside = files, tasks, grid, augment, inside
        # Bilinear: a bicubic map would leave [0, 1].
        self.preprocessing = replace(preprocessing, interpolation="bilinear")
        self._views: dict[Path, np.ndarray] = {}

    @property
    def indices(self) -> np.ndarray:
        """The pictures that have a map, in rising order."""
        return np.array(sorted(self.files), dtype=np.int64)

    def batch(self, indices: np.ndarray, draws: np.ndarray | None) -> dict[str, torch.Tensor]:
        """Return "human_maps", float32 (N, T, h, w) in [0, 1], and "annotated", bool (N, T); other maps are 0.

        With `inside` also "inside", bool (N, H, W) at the size of the network's input: where a map of any head is at
        least a half. `draws` are the numbers that the pictures' augmentation was made with.
        """
        found = {
            "human_maps": torch.zeros(len(indices), self.tasks, *self.grid),
            "annotated": torch.zeros(len(indices), self.tasks, dtype=torch.bool),
        }
        if self.inside:
            found["inside"] = torch.zeros(len(indices), *self.preprocessing.size, dtype=torch.bool)
        for place, index in enumerate(indices.tolist()):
            moved: dict[Path, torch.Tensor] = {}
            for task, path in self.files.get(index, {}).items():
                if path not in moved:
                    seen = self._moved(path, None if draws is None else draws[place])
                    moved[path] = F.adaptive_avg_pool2d(seen[None] / 255, self.grid)[0]
                    if self.inside:
                        found["inside"][place] |= seen >= 128
                found["human_maps"][place, task], found["annotated"][place, task] = moved[path], True
        return found

    def _moved(self, path: Path, draws: np.ndarray | None) -> torch.Tensor:
        """Return the map as its picture is shown, float32 (H, W) in 0 to 255."""
        if self.augment in BATCH_AUGMENTATIONS:
            seen = self._view(path)
            if draws is not None:
                seen = BATCH_AUGMENTATIONS[self.augment](seen[None, :, :, None], draws[None])[0, :, :, 0]
        else:
            assert draws is not None
            with Image.open(path) as picture:
                seen = np.asarray(random_resized_crop(picture, self.preprocessing, draws))
        return torch.from_numpy(seen.astype(np.float32))

    def _view(self, path: Path) -> np.ndarray:
        if path in self._views:
            return self._views[path]
        with Image.open(path) as picture:
            view = np.asarray(self.preprocessing.image(picture))
        if len(self._views) < _KEPT:
            self._views[path] = view
        return view
