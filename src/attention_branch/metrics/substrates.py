"""What stands where a pixel has been taken away: the data's mean colour, black, the image's own, or its blur."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from scipy.ndimage import gaussian_filter1d
from torch import Tensor, nn
from torch.nn import functional as F

from attention_branch.errors import UserError, did_you_mean
from attention_branch.explanations.outputs import unwrapped

SCORE = "softmax probability of the target class (the prediction on the clean image unless given)"
"""What the metrics that ask the model follow."""

KERNEL, SIGMA = 11, 5
"""The blur of the RISE protocol, in pixels."""

SUBSTRATES = {
    "zero": "zero in the network's normalised space (the data set's mean colour)",
    "black": "black in the picture's own space",
    "mean": "the image's own mean colour",
    "blur": f"the image blurred: Gaussian, kernel {KERNEL}, sigma {SIGMA}, zero padding, as in the RISE authors' code",
}

UNIFORM = ("zero", "black")
"""Substrates that are the same for every image."""


def checked_substrate(name: str, option: str) -> str:
    """Return the name of a substrate; `UserError` for an unknown one given as `option`."""
    if name not in SUBSTRATES:
        known = ", ".join(SUBSTRATES)
        raise UserError(f"{option} is '{name}'; it must be one of {known}.{did_you_mean(str(name), SUBSTRATES)}")
    return name


def substrate(
    name: str,
    images: Tensor,
    model: nn.Module | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
) -> Tensor:
    """Return what replaces the pixels of normalised images (N, C, H, W), of the same shape.

    "black" needs the normalisation: `mean` and `std` per channel, or the model's own preprocessing. Raises `UserError`
    where there is neither.
    """
    if name == "zero":
        return images.new_zeros(1).expand_as(images)
    if name == "mean":
        return images.mean((2, 3), keepdim=True).expand_as(images)
    if name == "blur":
        return blurred(images)
    return black(images, model, mean, std).expand_as(images)


def black(
    images: Tensor, model: nn.Module | None, mean: Sequence[float] | None = None, std: Sequence[float] | None = None
) -> Tensor:
    """Return the normalised value of black (C, 1, 1); `UserError` where the normalisation is not known."""
    if mean is None or std is None:
        own: Any = getattr(unwrapped(model), "preprocessing", None) if model is not None else None
        mean, std = getattr(own, "mean", None), getattr(own, "std", None)
        if mean is None or std is None:
            raise UserError(
                "Black is a matter of the normalisation, which the model does not say; give the metric mean and std "
                "per channel."
            )
    if not len(mean) == len(std) == images.shape[1]:
        raise UserError(f"mean and std have {len(mean)} and {len(std)} entries for {images.shape[1]} channels.")
    return -(images.new_tensor(mean) / images.new_tensor(std))[:, None, None]


def blurred(images: Tensor) -> Tensor:
    """Return images (N, C, H, W) blurred as the RISE protocol's insertion begins (Petsiuk et al., BMVC 2018).

    The kernel is a unit impulse of 11x11 smoothed with sigma 5, reflected at the kernel's edge, so that it is wider
    than a Gaussian cut off there; beyond the image's border there are zeros.
    """
    impulse = np.zeros(KERNEL)
    impulse[KERNEL // 2] = 1
    row = torch.as_tensor(gaussian_filter1d(impulse, SIGMA)).to(images)
    count, channels, height, width = images.shape
    planes = images.reshape(count * channels, 1, height, width)
    planes = F.conv2d(planes, row.view(1, 1, 1, -1), padding=(0, KERNEL // 2))
    planes = F.conv2d(planes, row.view(1, 1, -1, 1), padding=(KERNEL // 2, 0))
    return planes.view(images.shape)
