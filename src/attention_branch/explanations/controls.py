"""Maps that know nothing of the image: what a real map has to beat before it means anything."""

import torch
from torch import Tensor

CENTER_SIGMA = 0.25
"""Standard deviation of the centred Gaussian, as a share of each side."""


def random_maps(count: int, height: int, width: int, generator: torch.Generator) -> Tensor:
    """Return uniform noise in [0, 1), (count, height, width), drawn on the CPU so that every device gets the same."""
    return torch.rand(count, height, width, generator=generator)


def center_maps(count: int, height: int, width: int) -> Tensor:
    """Return a Gaussian at the middle of the image, 1 at most, sigma = 0.25 of each side; (count, height, width)."""
    rows = ((torch.arange(height) + 0.5) / height - 0.5) / CENTER_SIGMA
    columns = ((torch.arange(width) + 0.5) / width - 0.5) / CENTER_SIGMA
    gaussian = torch.exp(-0.5 * (rows[:, None] ** 2 + columns[None, :] ** 2))
    return gaussian.expand(count, height, width).clone()


def constant_maps(count: int, height: int, width: int) -> Tensor:
    """Return maps that are 0.5 everywhere: they prefer no place; (count, height, width)."""
    return torch.full((count, height, width), 0.5)
