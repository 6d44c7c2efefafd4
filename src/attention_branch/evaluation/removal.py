"""Painting a part of a picture over, so that it is gone and nothing that looks like an object takes its place.

A flat colour or black would do for the first only: its edges are a shape of their own, and a network that has learned
to find a patch of colour finds that one. Here every removed pixel becomes the Gaussian-weighted mean of the pixels that
are left (normalised convolution, Knutsson and Westin, CVPR 1993): smooth inside, without a step at the rim.
"""

from typing import Any

import numpy as np

from attention_branch.errors import UserError

_FAR = 1e-6


def paint_over(images: Any, masks: Any, sigma: float) -> Any:
    """Return images (N, C, H, W) with the pixels of masks (N, H, W) replaced by what lies around them.

    Tensors or arrays. `sigma` is the Gaussian's standard deviation in pixels. Far inside a hole many sigma wide the
    mean of all that is left takes over; an image that is removed wholly becomes its own mean. Raises `UserError` for
    other shapes and for a sigma that is not positive.
    """
    if images.ndim != 4 or tuple(masks.shape) != (len(images), *images.shape[-2:]):
        raise UserError(
            f"Images (N, C, H, W) are painted over by masks (N, H, W); these are {tuple(images.shape)} and "
            f"{tuple(masks.shape)}."
        )
    if not sigma > 0:
        raise UserError(f"sigma is {sigma}; give a number of pixels above 0.")
    if not hasattr(images, "detach"):
        return _painted(images, np.asarray(masks), sigma)
    import torch

    values = images.detach().cpu()
    values = values if values.dtype == torch.float64 else values.float()
    painted = _painted(values.numpy(), torch.as_tensor(masks).cpu().numpy(), sigma)
    return torch.from_numpy(painted).to(images.device, images.dtype)


def _painted(images: np.ndarray, masks: np.ndarray, sigma: float) -> np.ndarray:
    removed = (masks != 0)[:, None]
    kept = (~removed).astype(images.dtype)
    total = kept.sum((2, 3), keepdims=True)
    of_kept = (images * kept).sum((2, 3), keepdims=True) / np.maximum(total, 1)
    mean = np.where(total > 0, of_kept, images.mean((2, 3), keepdims=True))
    # As two matrix products: several times faster than a depthwise convolution with so wide a kernel.
    stacked = np.concatenate([images * kept, kept], 1)
    blurred = _gaussian(images.shape[-2], sigma, images) @ stacked @ _gaussian(images.shape[-1], sigma, images)
    fill = (blurred[:, :-1] + _FAR * mean) / (blurred[:, -1:] + _FAR)
    return np.where(removed, fill, images).astype(images.dtype)


def _gaussian(side: int, sigma: float, like: np.ndarray) -> np.ndarray:
    places = np.arange(side)
    return np.exp(-0.5 * ((places[:, None] - places[None, :]) / sigma) ** 2).astype(like.dtype)
