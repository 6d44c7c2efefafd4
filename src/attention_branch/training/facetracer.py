"""How FaceTracer is fitted: features chosen for each attribute by boosting, then one linear SVM on those.

As in the paper, every combination of region and feature type gets a classifier of its own on one part of the training
pictures, AdaBoost picks among these fixed classifiers on another part, and one SVM is trained on all that was picked;
how many of the picks it reads is chosen on validation. Ours: the classifier of one combination is Fisher's
linear discriminant, in closed form, where the paper trains RBF SVMs; and a combination is picked once.
"""

from collections.abc import Iterator, Sequence
from functools import partial

import numpy as np
import torch
from torch import Tensor

from attention_branch.data import DataSet, ImageSet
from attention_branch.models import PlainNetwork
from attention_branch.models.facial.facetracer import FaceTracer
from attention_branch.models.facial.regions import POINTS
from attention_branch.training.config import TrainConfig
from attention_branch.training.fitted import features_of, some, truths
from attention_branch.training.stages import Stages
from attention_branch.training.svm import COSTS, fit_svms

SELECTION = 4000
"""Training pictures, drawn at random, that features are chosen on: half for the classifiers, half for the boosting."""

_RIDGE = 0.01
"""Added to the covariance of standardised features, on its diagonal."""


def fit_facetracer(config: TrainConfig, data: DataSet, model: PlainNetwork, stages: Stages) -> None:
    """Choose features and fit classifiers, in place."""
    assert isinstance(model, FaceTracer)
    assert data.train is not None
    assert data.validation is not None
    if model.backbone.faces:
        _place(model, data.train, config.seed, stages)
    pictures = some(data.train, SELECTION, config.seed)
    chosen = stages.tensors("chosen", lambda: {"chosen": _choose(model, pictures, config.seed, stages)})["chosen"]
    model.chosen.copy_(chosen)
    where, columns = _columns(model, chosen)
    kept = {
        name: _kept_features(model, images, columns.to(stages.device), stages, name)
        for name, images in (("train", data.train), ("validation", data.validation))
    }
    truth = {name: truths(images) for name, images in (("train", data.train), ("validation", data.validation))}
    heads = list(model.heads or [""])
    for head in stages.through(range(len(heads)), "Support vector machines", len(heads)):
        mine = [int(number) for number in chosen[head] if number >= 0]
        fitted = partial(_classifier, kept, truth, head, [where[number] for number in mine], config.seed)
        _take_over(model, head, mine, stages.tensors(f"svm-{head:03d}", fitted))
    for reads in model.reads(0)[:1]:
        stages.say(f"{heads[0] or 'The head'} reads first: {', '.join(reads)}.")


def _columns(model: FaceTracer, chosen: Tensor) -> tuple[dict[int, np.ndarray], Tensor]:
    """Return the features of all combinations that any head reads, as their numbers (D'); and where each has its own.

    The places, by combination, are those among the returned numbers.
    """
    used = sorted({int(number) for number in chosen.flatten() if number >= 0})
    where, columns, begin = {}, [], 0
    for number in used:
        own = model.backbone.slices[number]
        columns.append(torch.arange(own.start, own.stop))
        where[number] = np.arange(begin, begin + len(columns[-1]))
        begin += len(columns[-1])
    return where, torch.cat([torch.empty(0, dtype=torch.int64), *columns])


def _kept_features(model: FaceTracer, images: ImageSet, columns: Tensor, stages: Stages, name: str) -> np.ndarray:
    """Return some features of all pictures of a split, (N, D') mapped from a file."""
    if not len(columns):  # every head has one kind of label
        return np.empty((len(images), 0), dtype=np.float16)

    def make() -> Iterator[np.ndarray]:
        # Half precision: of CelebA's training pictures they are gigabytes.
        title = f"Features of the {name} pictures"
        return features_of(lambda x: model.features(x)[:, columns], images, model, stages, title, "float16")

    return stages.array(f"features-{name}", make, len(images))


def _take_over(model: FaceTracer, head: int, mine: list[int], found: dict[str, Tensor]) -> None:
    """Put a head's classifier, which reads the first of its combinations, into the network."""
    kept = mine[: int(found["count"])]
    model.chosen[head, len(kept) :] = -1
    slices = [model.backbone.slices[number] for number in kept]
    weight = torch.zeros(model.backbone.width)
    for own, part in zip(slices, found["weight"].split([own.stop - own.start for own in slices]), strict=True):
        weight[own] = part
    model.classifier.weight.data[head] = weight.to(model.device)
    model.classifier.bias.data[head] = found["bias"][0]


def _place(model: FaceTracer, images: ImageSet, seed: int, stages: Stages) -> None:
    """Set the regions by the mean of the training faces' points; without any they stay those of aligned CelebA."""
    if images.point_names != POINTS:
        stages.say("The data gives no points of the faces; the regions are those of CelebA's aligned pictures.")
        return
    height, width = model.preprocessing.size
    points = some(images, SELECTION, seed).all_points(model.preprocessing)
    assert points is not None
    mean = torch.from_numpy(points).mean(0) + 0.5
    model.backbone.points.copy_(mean / torch.tensor([width, height]))


def _choose(model: FaceTracer, images: ImageSet, seed: int, stages: Stages) -> Tensor:
    """Return the combinations each head is to read, int64 (T, features), the best first, -1 where there are fewer."""
    blocks = list(features_of(model.features, images, model, stages, "Features to choose from"))
    features, targets = np.concatenate(blocks), truths(images)
    # The draw is in the order of the split, which may be by class.
    order = np.random.default_rng(seed).permutation(len(images))
    first, second = order[: len(order) // 2], order[len(order) // 2 :]
    answers = []
    for columns in stages.through(model.backbone.slices, "Classifiers of one feature", len(model.backbone.slices)):
        part = features[:, columns]
        answers.append(discriminant(part[first], targets[first], part[second]))
    verdicts = np.stack(answers, axis=1)  # (n, combinations, T)
    rounds = model.chosen.shape[1]
    picked = [boosted(verdicts[:, :, head], targets[second, head], rounds) for head in range(targets.shape[1])]
    for head, found in enumerate(picked):
        if not found and {0, 1} <= set(targets[:, head]):
            name = list(model.heads or ["The head"])[head]
            stages.say(f"{name}: too few of one answer to boost on, so a single feature is read.")
            found.append(_best_alone(features, targets[:, head], model.backbone.slices))
    return torch.tensor([found + [-1] * (rounds - len(found)) for found in picked])


def _best_alone(features: np.ndarray, target: np.ndarray, slices: Sequence[slice]) -> int:
    """Return the combination whose discriminant is right most often on the pictures it was fitted on, classes alike."""
    known = target >= 0
    truth = target[known, None]
    rights = []
    for columns in slices:
        part = features[known][:, columns]
        right = discriminant(part, truth, part) == (truth == 1)
        rights.append(np.mean([right[truth == value].mean() for value in (0, 1)]))
    return int(np.argmax(rights))


def discriminant(features: np.ndarray, targets: np.ndarray, asked: np.ndarray) -> np.ndarray:
    """Return what Fisher's discriminants say of `asked` (n, d), bool (n, T), fitted on features (N, d).

    Targets (N, T) are 0, 1 or -1 (missing). The direction is that of the within-class scatter, which the total scatter
    gives as well, so that all heads share one; the threshold lies halfway between the classes' means. A head of one
    class says no.
    """
    mean, spread = features.mean(0), features.std(0)
    spread = np.where(spread > 1e-6, spread, 1.0)
    x, z = (features - mean) / spread, (asked - mean) / spread
    scatter = x.T @ x / len(x) + _RIDGE * np.eye(x.shape[1], dtype=x.dtype)
    sides = [(targets == value).astype(x.dtype) for value in (0, 1)]
    means = [(x.T @ side) / np.maximum(side.sum(0), 1) for side in sides]
    direction = np.linalg.solve(scatter, means[1] - means[0])
    threshold = ((means[0] + means[1]) / 2 * direction).sum(0)
    possible = (sides[0].sum(0) > 0) & (sides[1].sum(0) > 0)
    return (z @ direction > threshold) & possible


def boosted(verdicts: np.ndarray, target: np.ndarray, rounds: int) -> list[int]:
    """Return the classifiers that AdaBoost picks, in order: `verdicts` bool (n, C) of truths (n,) of 0, 1 or -1.

    Both classes begin with the same weight together. It ends where no classifier is right by more than half; one that
    is never wrong ends it too.
    """
    known = target >= 0
    truth = target[known] == 1
    wrong = verdicts[known] != truth[:, None]
    counts = truth.sum(), (~truth).sum()
    if not min(counts):
        return []
    weights = np.where(truth, 0.5 / counts[0], 0.5 / counts[1])
    picked: list[int] = []
    for _ in range(min(rounds, verdicts.shape[1])):
        errors = weights @ wrong
        errors[picked] = np.inf
        best = int(errors.argmin())
        error = float(errors[best])
        if error > 0.5 - 1e-9:
            break
        picked.append(best)
        if error <= 0:
            break
        weights = np.where(wrong[:, best], weights / (2 * error), weights / (2 * (1 - error)))
    return picked


def _classifier(
    kept: dict[str, np.ndarray], truth: dict[str, np.ndarray], head: int, places: list[np.ndarray], seed: int
) -> dict[str, Tensor]:
    """Fit one head on its picks, whose columns `places` are; how many of them, and C, are chosen on validation.

    Returns the weights, the bias and the `count` of the picks that are read; a head that picked nothing has one kind of
    label, and answers it.
    """
    labels = {name: values[:, head : head + 1] for name, values in truth.items()}
    best: dict[str, Tensor] = {"weight": torch.zeros(0), "bias": torch.tensor([-1.0]), "count": torch.tensor(0)}
    if not places:
        known = labels["train"][labels["train"] >= 0]
        if len(known) and known.mean() > 0.5:
            best["bias"] = torch.tensor([1.0])
        return best
    accuracy, costs = -1.0, COSTS
    for count in sorted({len(places), len(places) // 2, 1} - {0}, reverse=True):
        columns = np.concatenate(places[:count])
        mine = {name: np.asarray(values[:, columns], dtype=np.float32) for name, values in kept.items()}
        found = fit_svms(
            mine["train"], labels["train"], mine["validation"], labels["validation"], costs=costs, seed=seed
        )
        if not np.isnan(found.costs[0]):
            costs = (found.costs[0],)  # C is chosen once, with all picks
        if np.isnan(found.accuracies[0]) or found.accuracies[0] >= accuracy:
            accuracy = found.accuracies[0]
            best = {"weight": found.weight[0], "bias": found.bias[:1], "count": torch.tensor(count)}
        if np.isnan(accuracy):
            break  # nothing to choose by: all picks are read
    return best
