"""The grid pointing game: in a mosaic of pictures of several classes, does a class's map lie on its own picture?"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from numbers import Integral
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from attention_branch.errors import UserError
from attention_branch.explanations.outputs import checked_images, device_of, evaluating, predict, probabilities
from attention_branch.metrics.localisation import EnergyPointingGame
from attention_branch.metrics.metric import as_tensor


class GridPointingGame(EnergyPointingGame):
    """Share of a map's positive energy inside the cell of its class (Böhle et al., CVPR 2021, arXiv:2104.00032).

    Played on mosaics of pictures of different classes (`grid_mosaics`): `target=mosaics.classes` for the maps and
    `regions=mosaics.regions`. A map that does not depend on the class, such as an attention map or any control, cannot
    tell the cells apart and scores about 1 / cells² (`details["region_share"]`). Give `mosaics=mosaics.protocol` to
    have their making in the protocol. A map without positive energy scores 0, counted under `no_energy`.
    """

    name: ClassVar[str] = "grid pointing game"

    def __init__(self, *, mosaics: Mapping[str, Any] | None = None, batch_size: int = 64, seed: int = 0) -> None:
        self.mosaics = dict(mosaics) if mosaics is not None else None
        super().__init__(batch_size=batch_size, seed=seed)

    def protocol(self) -> dict[str, Any]:
        """Return what counts as energy, and how the mosaics were made where that was given."""
        return super().protocol() | {
            "value": "sum of the map's positive part inside the class's cell / sum of all",
            "mosaics": self.mosaics if self.mosaics is not None else "made by the caller",
        }


@dataclass(frozen=True, eq=False)
class Mosaics:
    """M mosaics, each with one of its cells asked for.

    `images` (M, 3, H', W'), `classes` (M,) int64 of the cell that is asked for, `regions` (M, H', W') bool on it,
    `sources` (M, cells²) the number of the picture in each cell, row by row, `protocol` how they were made.
    """

    images: Tensor
    classes: Tensor
    regions: Tensor
    sources: Tensor
    protocol: dict[str, Any] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.images)

    def __repr__(self) -> str:
        return f"Mosaics({len(self)} of {'x'.join(map(str, self.images.shape[1:]))}, {self.protocol.get('cells')})"


def grid_mosaics(
    images: Tensor,
    classes: Tensor | np.ndarray | Sequence[int],
    cells: int = 2,
    *,
    model: nn.Module | None = None,
    confidence: float = 0.5,
    size: tuple[int, int] | None = None,
    limit: int | None = None,
    every_cell: bool = False,
    batch_size: int = 64,
    seed: int = 0,
) -> Mosaics:
    """Put normalised images (N, 3, H, W) of `classes` (N,) together, `cells` x `cells` of different classes each.

    With a (single-task) `model` only images that it names rightly with a probability of at least `confidence` enter, as
    published: what it does not see in the picture alone its map need not find in the mosaic. Every image is used once
    at most, drawn from `seed`; `limit` is the largest number of mosaics. A mosaic is cells * H by cells * W, or of
    `size` (height, width) for networks that take one size only: its pictures are then made smaller. One cell, drawn
    at random, is asked for; with `every_cell` each mosaic comes once for each of its cells, as published, and the rows
    are no longer independent, so that an interval over them is too narrow. Raises `UserError` when there are fewer than
    cells² classes with an image, and for a size that the cells do not divide.
    """
    images, labels = checked_images(images), as_tensor(classes, "classes").cpu().long()
    if labels.shape != (len(images),):
        raise UserError(
            f"Mosaics need images (N, 3, H, W) and their classes (N,); these have {tuple(images.shape)} and "
            f"{tuple(labels.shape)}."
        )
    if not isinstance(cells, Integral) or cells < 2:
        raise UserError(f"cells is {cells}; a mosaic has 2 or more pictures a side.")
    cells = int(cells)
    if limit is not None and (not isinstance(limit, Integral) or limit < 1):
        raise UserError(f"limit is {limit}; give the largest number of mosaics, 1 or more.")
    if size is not None and (not isinstance(size, Sequence) or len(size) != 2):
        raise UserError(f"size is {size}; give (height, width) of a mosaic.")
    if size is not None and (size[0] % cells or size[1] % cells or min(size) < cells):
        raise UserError(f"A mosaic of {size[0]}x{size[1]} does not divide into {cells}x{cells} equal cells.")
    usable = np.arange(len(labels)) if model is None else _rightly_named(model, images, labels, confidence, batch_size)
    generator = np.random.default_rng(seed)
    groups = _groups(usable, labels.numpy(), cells * cells, generator)[:limit]
    if not groups:
        known = len(np.unique(labels.numpy()[usable]))
        which = "" if model is None else f" that the model names rightly with a probability of {confidence} or more"
        raise UserError(
            f"A mosaic of {cells}x{cells} needs {cells * cells} different classes, and there are images{which} of "
            f"{known}; give more images or fewer cells."
        )
    asked = [int(generator.integers(cells * cells)) for _ in groups]
    rows = [
        (group, cell)
        for group, one in zip(groups, asked, strict=True)
        for cell in (range(cells**2) if every_cell else (one,))
    ]
    sources = torch.tensor(np.stack([group for group, _ in rows]))
    places = torch.tensor([cell for _, cell in rows])
    pictures = images
    if size is not None:
        inner = (size[0] // cells, size[1] // cells)
        # On a CPU half precision is not resized with antialiasing.
        wide = pictures if pictures.dtype == torch.float64 else pictures.float()
        pictures = F.interpolate(wide, size=inner, mode="bilinear", align_corners=False, antialias=True).to(images)
    height, width = pictures.shape[-2:]
    grid = pictures[sources.to(pictures.device)].unflatten(1, (cells, cells))  # (M, row, column, 3, h, w)
    whole = grid.permute(0, 3, 1, 4, 2, 5).reshape(len(rows), images.shape[1], cells * height, cells * width)
    number = torch.arange(cells * cells).reshape(cells, cells)
    number = number.repeat_interleave(height, 0).repeat_interleave(width, 1)
    regions = number[None] == places[:, None, None]
    protocol = {
        "cells": f"{cells}x{cells}, pictures of different classes, every picture once at most, seed {seed}",
        "pictures": f"{height}x{width}" + ("" if size is None else ", made smaller (bilinear, antialiased)"),
        "chosen": "all" if model is None else f"named rightly by the model with probability >= {confidence}",
        "asked": "every cell of each mosaic" if every_cell else "one cell of each mosaic, drawn at random",
        "mosaics": len(groups),
    }
    return Mosaics(
        images=whole,
        classes=labels[sources.gather(1, places[:, None])[:, 0]].to(images.device),
        regions=regions.to(images.device),
        sources=sources,
        protocol=protocol,
    )


def _rightly_named(model: nn.Module, images: Tensor, labels: Tensor, confidence: float, batch_size: int) -> np.ndarray:
    """Return the numbers of the images whose class the model gives, with at least this probability."""
    device = device_of(model) or images.device
    sure = []
    with evaluating(model), torch.no_grad():
        for part, own in zip(images.split(batch_size), labels.split(batch_size), strict=True):
            logits = predict(model, part.detach().to(device))
            if not isinstance(logits, Tensor):
                raise UserError("Mosaics are chosen by a model with one task; this one has several heads.")
            best, predicted = probabilities(logits).cpu().max(1)
            sure.append((predicted == own) & (best >= confidence))
    return torch.cat(sure).numpy().nonzero()[0] if sure else np.zeros(0, dtype=np.int64)


def _groups(usable: np.ndarray, labels: np.ndarray, count: int, generator: np.random.Generator) -> list[np.ndarray]:
    """Divide images into groups of `count` different classes, in random cells; each image is in one group at most."""
    left = {own: generator.permutation(usable[labels[usable] == own]).tolist() for own in np.unique(labels[usable])}
    groups = []
    while len(left) >= count:
        # The classes with most images left first: this makes as many mosaics as there can be. Ties fall at random.
        ties = {own: generator.random() for own in left}
        chosen = sorted(left, key=lambda own: (len(left[own]), ties[own]), reverse=True)[:count]
        groups.append(generator.permutation([left[own].pop() for own in chosen]))
        left = {own: numbers for own, numbers in left.items() if numbers}
    return groups
