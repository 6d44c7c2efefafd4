"""Maps that know nothing of the image: what a real map has to beat before it means anything."""

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from torch import Generator, Tensor

CONTROLS = ("random", "center", "constant")
"""The methods that know nothing of the image."""

CENTER_SIGMA = 0.25
"""Standard deviation of the centred Gaussian, as a share of each side."""


def random_maps(count: int, height: int, width: int, generator: "Generator") -> "Tensor":
    """Return uniform noise in [0, 1), (count, height, width), drawn on the CPU so that every device gets the same."""
    import torch

    return torch.rand(count, height, width, generator=generator)


def center_maps(count: int, height: int, width: int) -> "Tensor":
    """Return a Gaussian at the middle of the image, 1 at most, sigma = 0.25 of each side; (count, height, width)."""
    import torch

    return torch.from_numpy(_gaussian(height, width)).expand(count, height, width).clone()


def constant_maps(count: int, height: int, width: int) -> "Tensor":
    """Return maps that are 0.5 everywhere: they prefer no place; (count, height, width)."""
    import torch

    return torch.full((count, height, width), 0.5)


def control_arrays(method: str, count: int, height: int, width: int, seed: int) -> tuple[np.ndarray, str]:
    """Return a control's maps (count, height, width) float32 without torch, and what they are.

    The noise is NumPy's, so it is not that of `random_maps` with the same seed.
    """
    if method == "random":
        noise = np.random.default_rng(seed).random((count, height, width), dtype=np.float32)
        return noise, f"none: control, uniform noise per pixel, NumPy's, seed {seed}"
    if method == "center":
        maps = np.broadcast_to(_gaussian(height, width), (count, height, width))
        return maps, f"none: control, centred Gaussian, sigma {CENTER_SIGMA} of the side"
    return np.full((count, height, width), 0.5, dtype=np.float32), "none: control, 0.5 everywhere"


def _gaussian(height: int, width: int) -> np.ndarray:
    rows = ((np.arange(height) + 0.5) / height - 0.5) / CENTER_SIGMA
    columns = ((np.arange(width) + 0.5) / width - 0.5) / CENTER_SIGMA
    return np.exp(-0.5 * (rows[:, None] ** 2 + columns[None, :] ** 2)).astype(np.float32)
