"""The long part of a comparison: image by image, method by method, with every finished piece in the journal."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from itertools import combinations
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from attention_branch.compare.comparison import Answers
from attention_branch.compare.journal import Journal
from attention_branch.compare.measures import Measures
from attention_branch.compare.subset import Batch, Subset
from attention_branch.explanations import Explanation, explain
from attention_branch.explanations.methods import layer_for
from attention_branch.explanations.outputs import class_scores, evaluating, probabilities
from attention_branch.explanations.targets import head_logits
from attention_branch.metrics.drive import MapDrive
from attention_branch.metrics.similarity import rank_correlation
from attention_branch.metrics.statistics import MetricResult
from attention_branch.progress import progress_bar

UNRANKED = ("random", "constant")
"""Methods whose maps are compared with no other's: noise is like nothing, and a constant has no ranks."""


@dataclass(frozen=True, eq=False)
class Work:
    """A network, the images, and how they are explained."""

    model: Any
    subset: Subset
    target: str
    layer: str
    batch_size: int
    seed: int

    @property
    def device(self) -> torch.device:
        """Where the network is."""
        return next(self.model.parameters()).device

    @property
    def starts(self) -> range:
        """The first image of every batch."""
        return range(0, len(self.subset), self.batch_size)

    def batch(self, start: int) -> Batch:
        """Load the batch that begins at an image."""
        return self.subset.batch(range(start, min(start + self.batch_size, len(self.subset))), self.device)

    def explain(
        self, images: Tensor, method: str, classes: Tensor | None, *, start: int = 0, layer: str | None = None
    ) -> Explanation:
        """Explain images (n, 3, H, W) for classes (n,); `start` is the first one's place, which seeds noise."""
        where = layer_for(method, self.layer if layer is None else layer)
        target = self.subset.target(classes)
        return explain(self.model, images, method, target, layer=where, seed=self.seed + start)

    def try_out(self, method: str, *, layer: str | None = None) -> None:
        """Explain one image; raises `UserError` where the network cannot be explained this way."""
        first = self.subset.batch(range(1), self.device)
        self.explain(first.images, method, None, layer=layer)

    @torch.no_grad()
    def answer(self, batch: Batch) -> dict[str, Tensor]:
        """Return predicted class and confidence of the prediction, and of the attention branch where there is one."""
        output = self.model(batch.images)
        found: dict[str, Tensor] = {}
        second = getattr(output, "attention_logits", None)
        for name, scores in (("predicted", class_scores(output)), ("second", second)):
            if scores is None:
                continue
            sure, classes = probabilities(head_logits(scores, self.subset.head)).max(1)
            found |= {name: classes.cpu(), f"{name}_confidence": sure.double().cpu()}
        return found


@dataclass(eq=False)
class Collected:
    """All that was found out about the images so far."""

    subset: Subset
    measures: dict[str, Measures]
    parts: list[dict[str, Tensor]] = field(default_factory=list)
    ranks: dict[tuple[str, str], list[Tensor]] = field(default_factory=dict)
    layers: dict[str, str] = field(default_factory=dict)
    drive: MapDrive | None = None

    def add_answers(self, current: "_Current") -> None:
        """Add a batch's answers, with its own and with other maps; these are quick, and made anew by every call."""
        self.parts.append(current.answer)
        if self.drive is not None:
            self.drive.update(current.work.model, current.batch.images, current.labels, self.subset.head)

    def joined(self, name: str) -> Tensor | None:
        """Return one of the answers' values for all images (N,)."""
        return torch.cat([part[name] for part in self.parts]) if name in self.parts[0] else None

    @property
    def target(self) -> Tensor:
        """(N,) the class whose probability is followed."""
        return torch.cat([part["target"] for part in self.parts])

    @property
    def likeness(self) -> dict[tuple[str, str], np.ndarray]:
        """Spearman's rank correlation of two methods' maps per image (N,), by pair."""
        return {pair: torch.cat(parts).numpy() for pair, parts in self.ranks.items()}

    def results(self) -> dict[str, dict[str, MetricResult]]:
        """Return the metrics' results by method and metric."""
        return {method: measures.results() for method, measures in self.measures.items()}

    def drive_result(self) -> Any:
        """Return whether the map drives the answer; None where there is no such map."""
        return self.drive.compute() if self.drive is not None else None

    def answers(self) -> Answers:
        """Return the network's answers to all images."""

        def values(name: str) -> Any:
            found = self.joined(name)
            return None if found is None else found.numpy()

        return Answers(
            ids=self.subset.images.ids,
            index=self.subset.index,
            label=self.subset.labels,
            target=values("target"),
            predicted=values("predicted"),
            confidence=values("predicted_confidence"),
            second=values("second"),
            second_confidence=values("second_confidence"),
            class_names=self.subset.class_names,
        )


def collect(
    work: Work, methods: Sequence[str], metrics: Sequence[str], journal: Journal, *, progress: bool = False
) -> Collected:
    """Measure every method on every batch; a method's batch that stands in the journal is not measured again.

    Each batch's numbers take the way through the journal's form, so a continued run ends with the same ones.
    """
    measures = {
        method: Measures(metrics, _explainer(work, method), batch_size=work.batch_size, seed=work.seed)
        for method in methods
    }
    drive = MapDrive(seed=work.seed) if getattr(work.model, "is_abn", False) else None
    collected = Collected(work.subset, measures, drive=drive)
    pairs = list(combinations([method for method in methods if method not in UNRANKED], 2))
    with evaluating(work.model), progress_bar() as bar:
        bar.disable = not progress
        task = bar.add_task("comparing", total=len(work.starts) * (len(methods) + 1))
        for start in work.starts:
            current = _Current(work, start)
            once = partial(journal.once, material=current.material)
            collected.add_answers(current)
            bar.advance(task)
            for method in methods:
                bar.update(task, description=method)
                measuring = partial(current.measured, measures[method], method)
                found = once(f"{method} from image {start}", measuring)
                collected.layers.setdefault(method, found["layer"])
                measures[method].add(found["states"])
                bar.advance(task)
            alike = once(f"rank correlations from image {start}", partial(current.likeness, pairs))
            for pair, values in zip(pairs, alike, strict=True):
                collected.ranks.setdefault(pair, []).append(values)
    return collected


@dataclass(eq=False)
class _Current:
    """The batch at hand; its maps are made when they are first asked for, and no method's twice."""

    work: Work
    start: int
    explained: dict[str, Explanation] = field(default_factory=dict)

    @cached_property
    def batch(self) -> Batch:
        return self.work.batch(self.start)

    @cached_property
    def labels(self) -> Tensor:
        rows = slice(self.start, self.start + len(self.batch))
        return torch.from_numpy(self.work.subset.labels[rows]).long()

    @cached_property
    def answer(self) -> dict[str, Tensor]:
        found = self.work.answer(self.batch)
        return found | {"target": self.labels if self.work.target == "label" else found["predicted"]}

    @cached_property
    def material(self) -> str:
        """The SHA-256 of what the batch's numbers are made of: pixels, objects' places, and the classes followed."""
        digest = hashlib.sha256()
        for part in (self.batch.images.float(), *self.batch.regions, self.answer["target"]):
            values = None if part is None else part.cpu().contiguous().numpy()
            digest.update(b"none" if values is None else f"{values.dtype} {values.shape} ".encode() + values.tobytes())
        return digest.hexdigest()

    @property
    def classes(self) -> Tensor:
        return self.answer["target"].to(self.work.device)

    def explanation(self, method: str) -> Explanation:
        if method not in self.explained:
            self.explained[method] = self.work.explain(self.batch.images, method, self.classes, start=self.start)
        return self.explained[method]

    def maps(self, method: str) -> Tensor:
        return self.explanation(method).maps

    def likeness(self, pairs: Sequence[tuple[str, str]]) -> list[Tensor]:
        return [rank_correlation(self.maps(first), self.maps(second)) for first, second in pairs]

    def measured(self, measures: Measures, method: str) -> dict[str, Any]:
        explanation = self.explanation(method)
        target = self.work.subset.target(self.classes)
        states = measures.measure(self.work.model, self.batch.images, explanation.maps, target, self.batch.regions)
        return {"layer": explanation.layer, "states": states}


def _explainer(work: Work, method: str) -> Any:
    """Return a function (model, images, classes) -> maps (n, H, W), for the metrics that explain changed images."""

    def maps(model: nn.Module, images: Tensor, classes: Any) -> Tensor:
        return work.explain(images, method, classes).maps

    return maps
