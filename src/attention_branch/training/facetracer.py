"""How FaceTracer is fitted: features chosen for each attribute by boosting, then one linear SVM on those.

As in the paper, every combination of region and feature type gets a classifier of its own on one part of the training
pictures, AdaBoost picks among these fixed classifiers on another part, and one SVM is trained on all that was picked;
how many of the picks it reads is chosen on validation. Ours: the classifier of one combination is Fisher's
linear discriminant, in closed form, where the paper trains RBF SVMs; and a combination is picked once.
"""

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from attention_branch.data import DataSet, ImageSet
from attention_branch.models import PlainNetwork
from attention_branch.models.face_regions import POINTS
from attention_branch.models.facetracer import FaceTracer
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
    chosen = stages.tensors("chosen", lambda: {"chosen": _choose(model, data.train, config.seed, stages)})["chosen"]
    model.chosen.copy_(chosen)
    used = sorted({int(number) for number in chosen.flatten() if number >= 0})
    columns = {number: model.backbone.slices[number] for number in used}
    begins = dict(zip(used, np.cumsum([0, *(_width(columns[n]) for n in used)])[:-1].tolist(), strict=True))
    index = torch.cat([torch.arange(c.start, c.stop) for c in columns.values()]).to(stages.device)
    features = {}
    for name, images in (("train", data.train), ("validation", data.validation)):

        def make(name: str = name, images: ImageSet = images) -> Iterator[np.ndarray]:
            title = f"Features of the {name} pictures"
            # Half precision: of CelebA's training pictures they are gigabytes.
            return features_of(lambda x: model.features(x)[:, index], images, model, stages, title, "float16")

        features[name] = stages.array(f"features-{name}", make, len(images))
    heads = list(model.heads or [""])
    for head in stages.through(range(len(heads)), "Support vector machines", len(heads)):
        mine = [int(number) for number in chosen[head] if number >= 0]
        places = [np.arange(begins[n], begins[n] + _width(columns[n])) for n in mine]

        def fitted(head: int = head, places: list[np.ndarray] = places) -> dict[str, Tensor]:
            given = [features["train"], truths(data.train), features["validation"], truths(data.validation)]
            return _classifier(given, head, places, config.seed)

        found = stages.tensors(f"svm-{head:03d}", fitted)
        kept = mine[: int(found["count"])]
        model.chosen[head, len(kept) :] = -1
        model.classifier.weight.data[head] = 0
        begin = 0
        for number in kept:
            width = _width(columns[number])
            model.classifier.weight.data[head, columns[number]] = found["weight"][begin : begin + width].to(
                stages.device
            )
            begin += width
        model.classifier.bias.data[head] = found["bias"][0]
    read = [", ".join(what) for what in model.reads(0)[:1]]
    if read:
        stages.say(f"{heads[0] or 'The head'} reads first: {read[0]}.")


def _width(columns: slice) -> int:
    return columns.stop - columns.start


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
    images = some(images, SELECTION, seed)
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
    return torch.tensor([found + [-1] * (rounds - len(found)) for found in picked])


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


def _classifier(given: list[np.ndarray], head: int, places: list[np.ndarray], seed: int) -> dict[str, Tensor]:
    """Fit one head on its picks; how many of them, and C, are chosen on validation."""
    train, targets, validation, truth = given
    best: dict[str, Tensor] = {"weight": torch.zeros(0), "bias": torch.tensor([-1.0]), "count": torch.tensor(0)}
    known = targets[targets[:, head] >= 0, head]
    if not places:
        if len(known) and (known == 1).mean() > 0.5:
            best["bias"] = torch.tensor([1.0])
        return best
    accuracy, costs = -1.0, COSTS
    for count in sorted({len(places), len(places) // 2, 1} - {0}, reverse=True):
        columns = np.concatenate(places[:count])
        mine = [np.asarray(values[:, columns], dtype=np.float32) for values in (train, validation)]
        labels = targets[:, head : head + 1], truth[:, head : head + 1]
        found = fit_svms(mine[0], labels[0], mine[1], labels[1], costs=costs, seed=seed)
        if count == len(places) and not np.isnan(found.costs[0]):
            costs = (found.costs[0],)  # C is chosen once, with all picks
        if np.isnan(found.accuracies[0]) or found.accuracies[0] >= accuracy:
            accuracy = found.accuracies[0]
            best = {"weight": found.weight[0], "bias": found.bias[:1], "count": torch.tensor(count)}
    return best
