"""What a network says when the place its map is highest at is painted over."""

from collections.abc import Callable

import numpy as np

from attention_branch.evaluation.removal import paint_over
from attention_branch.evaluation.second_look import REGION, SIGMA
from attention_branch.explanations.resizing import resized
from attention_branch.serve.predictor import Answer, probabilities


def highest(values: np.ndarray) -> np.ndarray:
    """Return a bool mask (H, W) of the fifth of a map's places where it is highest; of equal ones the first."""
    mask = np.zeros(values.size, dtype=bool)
    mask[np.argsort(-values, axis=None, kind="stable")[: round(REGION * values.size)]] = True
    return mask.reshape(values.shape)


def answer_without(
    predict: Callable[[np.ndarray], list[Answer]], image: np.ndarray, answer: Answer, head: str
) -> tuple[int, float] | None:
    """Return class and probability of an image (3, H, W) with its map's highest fifth painted over.

    None where there is no map, and for one without slope: it has no highest place. One prediction more.
    """
    own = answer.map_of(head)
    if own is None or own.max() - own.min() < 1e-6:
        return None
    mask = highest(resized(own.astype(np.float32), *image.shape[1:]))
    painted = paint_over(image[None], mask[None], SIGMA * min(mask.shape))
    shares = probabilities(predict(painted)[0].logits[head])
    return int(shares.argmax()), float(shares.max())
