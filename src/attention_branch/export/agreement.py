"""How near a file's answers are to the network's: parity for the same arithmetic, drift for a coarser one."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from attention_branch.errors import UserError
from attention_branch.export.named_outputs import Output

TOLERANCE = 1e-4
"""Largest difference that passes for the same answer: of logits, and of maps in [0, 1].

Maps without a bound (cam, sum-log) are measured against the larger of 1 and their own largest value.
"""

TOP = 0.2
"""Share of the positions whose overlap is measured: those where a map is highest."""

Answers = Mapping[str, np.ndarray]


def parity(ours: Sequence[Answers], theirs: Sequence[Answers], outputs: Sequence[Output]) -> dict[str, float]:
    """Return the largest absolute differences of logits and of maps over batches; `UserError` where one is too large.

    `ours` is what the network answers to each batch, `theirs` what the file does.
    """
    found = {"logits": 0.0}
    for output in outputs:
        kind = "map" if output.kind in ("attention", "cam") else output.kind
        if kind not in ("logits", "map"):
            continue
        for mine, other in zip(ours, theirs, strict=True):
            expected = mine[output.name]
            difference = float(np.abs(expected - other[output.name]).max())
            scale = 1.0 if output.kind == "logits" else max(1.0, float(np.abs(expected).max()))
            # Not Python's max, which drops a NaN.
            found[kind] = float(np.maximum(found.get(kind, 0.0), difference / scale))
    for kind, difference in found.items():
        # Not `>`: a NaN must not pass.
        if not difference <= TOLERANCE:
            raise UserError(
                f"The exported file answers otherwise than the network: its {kind} differ by {difference:.1e} (at most "
                f"{TOLERANCE:g} is allowed). Nothing was written; try the other --format."
            )
    return found


def drift(ours: Answers, theirs: Answers, outputs: Sequence[Output]) -> dict[str, Any]:
    """Return how far a coarser file is from the network, on the same images.

    Of the logits: the largest and the mean absolute difference, and the share of equal predictions (over images and
    heads). Of the maps, one an image and head: rank correlation (Spearman; mean and least), overlap of the fifth of the
    positions where the map is highest (intersection over union; mean and least), the largest absolute difference.
    """
    differences, equal, correlations, overlaps, largest = [], [], [], [], 0.0
    for output in outputs:
        mine, other = ours[output.name].astype(np.float64), theirs[output.name].astype(np.float64)
        if output.kind == "logits":
            differences.append(np.abs(mine - other).ravel())
            equal.append(predicted(mine) == predicted(other))
        elif output.kind in ("attention", "cam"):
            if output.kind == "cam":
                # The map of the class that the network answers, as it is shown.
                logits = ours[output.name.replace("cam", "logits", 1)]
                rows = np.arange(len(mine))
                column = predicted(logits) if mine.shape[1] > 1 else np.zeros(len(mine), dtype=int)
                mine, other = mine[rows, column][:, None], other[rows, column][:, None]
            largest = max(largest, float(np.abs(mine - other).max()))
            for a, b in zip(mine.reshape(-1, *mine.shape[2:]), other.reshape(-1, *other.shape[2:]), strict=True):
                correlations.append(spearman(a, b))
                overlaps.append(overlap(a, b))
    all_differences = np.concatenate(differences)
    found: dict[str, Any] = {
        "logits": {"largest": float(all_differences.max()), "mean": float(all_differences.mean())},
        "equal_predictions": float(np.concatenate(equal).mean()),
    }
    if overlaps:
        known = [value for value in correlations if value is not None]
        found["map"] = {
            "spearman": {"mean": float(np.mean(known)), "least": min(known), "maps": len(known)} if known else None,
            "top_overlap": {"mean": float(np.mean(overlaps)), "least": min(overlaps), "share": TOP},
            "largest_difference": largest,
        }
    return found


def predicted(logits: np.ndarray) -> np.ndarray:
    """Return the predicted class (N,) of logits (N, K); one logit is a sigmoid, classes 0 and 1."""
    return (logits[:, 0] > 0).astype(int) if logits.shape[1] == 1 else logits.argmax(1)


def spearman(first: np.ndarray, second: np.ndarray) -> float | None:
    """Return the rank correlation of two maps over positions; None where one of them is constant."""
    from scipy.stats import spearmanr

    if np.ptp(first) == 0 or np.ptp(second) == 0:
        return None
    return float(spearmanr(first.ravel(), second.ravel()).statistic)


def overlap(first: np.ndarray, second: np.ndarray) -> float:
    """Return intersection over union of the fifth of the positions where each map is highest, at least one."""
    count = max(1, round(TOP * first.size))
    # Stable, so that places with equal values are taken in the same order in both.
    highest = [set(np.argsort(-part.ravel(), kind="stable")[:count].tolist()) for part in (first, second)]
    return len(highest[0] & highest[1]) / len(highest[0] | highest[1])


def in_batches(answer: Callable[[np.ndarray], Answers], images: np.ndarray, size: int = 8) -> dict[str, np.ndarray]:
    """Return the answers to images (N, 3, H, W), `size` at once."""
    parts = [answer(images[start : start + size]) for start in range(0, len(images), size)]
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
