"""Tensors as arrays, and what is computed of scores, without torch."""

from collections.abc import Mapping
from typing import Any, TypeGuard

import numpy as np


def as_array(values: Any) -> np.ndarray:
    """Return a tensor of any type on any device as float64, without importing torch; arrays and lists likewise."""
    if hasattr(values, "detach"):
        values = values.detach().cpu().double().numpy()
    return np.asarray(values, dtype=np.float64)


def is_array(values: Any) -> TypeGuard[Any]:
    """Tell whether something is an array or a tensor."""
    return isinstance(values, np.ndarray) or hasattr(values, "detach")


def softmax(logits: Any) -> np.ndarray:
    """Return the softmax (N, K) of logits, float64; one logit becomes the two classes of its sigmoid."""
    wide = as_array(logits)
    if wide.shape[1] == 1:
        wide = np.concatenate([np.zeros_like(wide), wide], axis=1)
    powers = np.exp(wide - wide.max(1, keepdims=True))
    return powers / powers.sum(1, keepdims=True)


def of_head(scores: Any, head: str | None) -> Any:
    """Return the scores (N, K) of one head, or the only ones."""
    if not isinstance(scores, Mapping):
        return scores
    return scores[head] if head is not None else next(iter(scores.values()))
