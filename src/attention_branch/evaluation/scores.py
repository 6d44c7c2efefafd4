"""What is worked out from one head's probabilities and truths: accuracy, calibration, classes, agreement."""

from dataclasses import dataclass

import numpy as np
from sklearn import metrics

from attention_branch.metrics.statistics import proportion_interval

ECE_BINS = 15


@dataclass(frozen=True)
class BranchScores:
    """One branch's answers over n labelled images; shares in [0, 1], `nll` in nats. None where it is not defined."""

    accuracy: float
    accuracy_interval: tuple[float, float] | None
    top5: float | None
    nll: float
    ece: float
    balanced_accuracy: float
    average_precision: float | None
    roc_auc: float | None


@dataclass(frozen=True)
class ClassScores:
    """One class: how many images are of it (support), found (recall) and rightly named (precision)."""

    name: str
    support: int
    predicted: int
    recall: float | None
    precision: float | None
    accuracy: float


@dataclass(frozen=True)
class Agreement:
    """How often both branches give the same class, and how right the prediction is in either case."""

    rate: float
    accuracy_agree: float | None
    accuracy_disagree: float | None
    agreeing: int
    disagreeing: int


def branch_scores(probabilities: np.ndarray, targets: np.ndarray) -> BranchScores:
    """Score probabilities (N, K) against targets (N,) in 0..K-1, N >= 1.

    Top-5 needs five classes; average precision and ROC-AUC (of class 1) need two classes, both present.
    """
    classes = probabilities.shape[1]
    right = probabilities.argmax(1) == targets
    own = probabilities[np.arange(len(targets)), targets]
    top5 = None
    if classes >= 5:
        best = np.argpartition(-probabilities, min(5, classes - 1), axis=1)[:, :5] if classes > 5 else None
        top5 = 1.0 if best is None else float((best == targets[:, None]).any(1).mean())
    average_precision = roc_auc = None
    if classes == 2 and len(np.unique(targets)) == 2:
        average_precision = float(metrics.average_precision_score(targets, probabilities[:, 1]))
        roc_auc = float(metrics.roc_auc_score(targets, probabilities[:, 1]))
    recalls = [right[targets == label].mean() for label in np.unique(targets)]
    return BranchScores(
        accuracy=float(right.mean()),
        accuracy_interval=proportion_interval(int(right.sum()), len(right)),
        top5=top5,
        nll=float(-np.log(np.maximum(own, np.finfo(np.float64).tiny)).mean()),
        ece=expected_calibration_error(probabilities.max(1), right),
        balanced_accuracy=float(np.mean(recalls)),
        average_precision=average_precision,
        roc_auc=roc_auc,
    )


def expected_calibration_error(confidence: np.ndarray, right: np.ndarray, bins: int = ECE_BINS) -> float:
    """Return the mean gap between confidence and accuracy over equal-width bins of (0, 1], weighted by their images.

    (Guo et al., ICML 2017, arXiv:1706.04599.)
    """
    rows = calibration_bins(confidence, right, bins)
    return float(sum(share * abs(sure - hit) for share, sure, hit in rows if sure is not None and hit is not None))


def calibration_bins(
    confidence: np.ndarray, right: np.ndarray, bins: int = ECE_BINS
) -> list[tuple[float, float | None, float | None]]:
    """Return (share of images, mean confidence, accuracy) of each bin ((i-1)/bins, i/bins]; None in an empty bin."""
    place = np.clip(np.ceil(confidence * bins).astype(int) - 1, 0, bins - 1)
    rows: list[tuple[float, float | None, float | None]] = []
    for index in range(bins):
        inside = place == index
        if inside.any():
            rows.append((float(inside.mean()), float(confidence[inside].mean()), float(right[inside].mean())))
        else:
            rows.append((0.0, None, None))
    return rows


def class_scores(predicted: np.ndarray, targets: np.ndarray, names: list[str]) -> tuple[list[ClassScores], np.ndarray]:
    """Return the scores of each class and the confusion matrix (K, K), rows the truth, columns the prediction.

    `accuracy` of a class is the share of all images on which "this class or not" is answered rightly.
    """
    confusion = metrics.confusion_matrix(targets, predicted, labels=np.arange(len(names)))
    total = int(confusion.sum())
    rows = []
    for index, name in enumerate(names):
        hits, support, claimed = (
            int(confusion[index, index]),
            int(confusion[index].sum()),
            int(confusion[:, index].sum()),
        )
        rows.append(
            ClassScores(
                name=name,
                support=support,
                predicted=claimed,
                recall=hits / support if support else None,
                precision=hits / claimed if claimed else None,
                accuracy=(total - support - claimed + 2 * hits) / total,
            )
        )
    return rows, confusion


def agreement(predicted: np.ndarray, attention_predicted: np.ndarray, targets: np.ndarray) -> Agreement:
    """Compare the two branches' classes (N,), N >= 1."""
    same, right = predicted == attention_predicted, predicted == targets
    return Agreement(
        rate=float(same.mean()),
        accuracy_agree=float(right[same].mean()) if same.any() else None,
        accuracy_disagree=float(right[~same].mean()) if not same.all() else None,
        agreeing=int(same.sum()),
        disagreeing=int((~same).sum()),
    )
