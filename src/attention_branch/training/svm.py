"""Linear support vector machines for yes/no heads (scikit-learn), as weights that a network takes over."""

import threading
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

COSTS: tuple[float, ...] = (0.1, 1.0, 10.0)
"""Values of C that are tried, for features scaled so that their mean squared length is one."""

LARGE = 100_000_000
"""Numbers in the features above which stochastic gradient descent takes the place of liblinear."""


@dataclass(frozen=True)
class LinearSvms:
    """One linear classifier a head: score = weight (T, D) times the features as they came, plus bias (T,).

    `costs` holds the chosen C, and `accuracies` the share of right answers on validation; both are NaN for a head that
    has one class only and is answered by it.
    """

    weight: Tensor
    bias: Tensor
    costs: tuple[float, ...]
    accuracies: tuple[float, ...]


def fit_svms(
    features: np.ndarray,
    targets: np.ndarray,
    validation_features: np.ndarray,
    validation_targets: np.ndarray,
    *,
    costs: Sequence[float] = COSTS,
    seed: int = 0,
) -> LinearSvms:
    """Fit a linear SVM a head on features (N, D) and targets (N, T) of 0, 1 or -1 (missing).

    C is the one of `costs` with the highest accuracy on validation, the smallest of equals; without validation labels
    of a head the middle one. Features are standardised by the training's mean and deviation, and the weights are those
    for the features as they came.
    """
    scaling = Scaling.of(features)
    scaled, checked = scaling(features), scaling(validation_features)
    found = [
        _fit_head(scaled, targets[:, head], checked, validation_targets[:, head], costs, seed)
        for head in range(targets.shape[1])
    ]
    weight = np.stack([one[0] for one in found]) / scaling.deviation
    bias = np.array([one[1] for one in found]) - weight @ scaling.mean
    return LinearSvms(
        torch.from_numpy(weight).float(),
        torch.from_numpy(bias).float(),
        tuple(one[2] for one in found),
        tuple(one[3] for one in found),
    )


@dataclass(frozen=True)
class Scaling:
    """Takes the mean off features and divides them, so that their mean squared length is one; a constant stays zero."""

    mean: np.ndarray
    deviation: np.ndarray

    @classmethod
    def of(cls, features: np.ndarray) -> "Scaling":
        """Return the scaling of features (N, D), in float64."""
        mean = features.mean(0, dtype=np.float64)
        # By blocks of rows: `std` would hold a copy of all features in double.
        blocks = (features[begin : begin + 1024] for begin in range(0, len(features), 1024))
        deviation = np.sqrt(sum(np.square(block - mean).sum(0) for block in blocks) / len(features))
        deviation = np.where(deviation > 1e-6 * (1 + np.abs(mean)), deviation, np.inf)
        return cls(mean, deviation * np.sqrt(features.shape[1]))

    def __call__(self, features: np.ndarray) -> np.ndarray:
        """Return scaled features, float32 (N, D)."""
        # In single precision: of CelebA's pictures a copy in double takes gigabytes.
        return (features - self.mean.astype(np.float32)) / self.deviation.astype(np.float32)


def _fit_head(
    features: np.ndarray,
    target: np.ndarray,
    checked: np.ndarray,
    truth: np.ndarray,
    costs: Sequence[float],
    seed: int,
) -> tuple[np.ndarray, float, float, float]:
    """Return weights, bias, C and validation accuracy of one head."""
    known, seen = target >= 0, truth >= 0
    classes = np.unique(target[known])
    if len(classes) < 2:
        answer = float(2 * classes[0] - 1) if len(classes) else -1.0
        return np.zeros(features.shape[1]), answer, float("nan"), float("nan")
    mine = features if known.all() else features[known]
    asked, truth = (checked, truth) if seen.all() else (checked[seen], truth[seen])
    tried = costs if seen.any() else (costs[len(costs) // 2],)
    best: tuple[np.ndarray, float, float, float] | None = None
    for cost in tried:
        machine = _fitted(_machine(cost, mine, seed), mine, target[known])
        weight, bias = machine.coef_[0].astype(np.float64), float(machine.intercept_[0])
        answers = asked @ weight.astype(asked.dtype) + bias > 0
        right = float((answers == truth).mean()) if len(truth) else float("nan")
        if best is None or right > best[3]:
            best = weight, bias, cost, right
    assert best is not None
    return best


def _machine(cost: float, features: np.ndarray, seed: int) -> Any:
    from sklearn.linear_model import SGDClassifier
    from sklearn.svm import LinearSVC

    if features.size <= LARGE:
        # The primal converges whatever C is. The bias is one more weight there and shrinks with the others; scaled up,
        # it hardly does.
        return LinearSVC(C=cost, dual=False, tol=1e-3, intercept_scaling=10.0, random_state=seed)
    # The same loss as LinearSVC's, so that C means the same.
    alpha = 1 / (cost * len(features))
    return SGDClassifier(loss="squared_hinge", alpha=alpha, average=True, random_state=seed)


def _fitted(machine: Any, features: np.ndarray, target: np.ndarray) -> Any:
    """Fit a machine in a thread of its own: the solvers are one long call in C, in which Ctrl-C would wait its end."""
    problems: list[BaseException] = []

    def work() -> None:
        try:
            machine.fit(features, target)
        except BaseException as problem:  # handed on to the caller
            problems.append(problem)

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    while thread.is_alive():
        thread.join(timeout=0.2)
    if problems:
        raise problems[0]
    return machine
