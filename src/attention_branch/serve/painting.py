"""Painting a map's highest region over in numpy, as `evaluation/removal.py` does in torch."""

import numpy as np

from attention_branch.serve.reading import REGION

_SIGMA, _FAR = 1 / 8, 1e-6


def highest(values: np.ndarray) -> np.ndarray:
    """Return a bool mask (H, W) of the fifth of a map's places where it is highest; of equal ones the first."""
    count = round(REGION * values.size)
    mask = np.zeros(values.size, dtype=bool)
    mask[np.argsort(-values, axis=None, kind="stable")[:count]] = True
    return mask.reshape(values.shape)


def painted_over(image: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Return an image (3, H, W) with a mask's pixels replaced by the Gaussian mean of those that are left.

    Normalised convolution (Knutsson and Westin, CVPR 1993); sigma is an eighth of the shorter side. Far inside of a
    hole the mean of all that is left takes over.
    """
    kept = (~mask).astype(np.float32)
    mean = (image * kept).sum((1, 2), keepdims=True) / max(1.0, float(kept.sum()))
    sigma = _SIGMA * min(mask.shape)
    rows, columns = (_gaussian(side, sigma) for side in mask.shape)
    blurred, weight = rows @ (image * kept) @ columns, rows @ kept @ columns
    return np.where(mask, (blurred + _FAR * mean) / (weight + _FAR), image).astype(np.float32)


def _gaussian(side: int, sigma: float) -> np.ndarray:
    places = np.arange(side, dtype=np.float32)
    return np.exp(-0.5 * ((places[:, None] - places[None, :]) / sigma) ** 2)
