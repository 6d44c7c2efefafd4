"""A network of this package behind the server, run by torch."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from attention_branch.errors import UserError
from attention_branch.explanations import explain
from attention_branch.files import sha256
from attention_branch.models.saving import WEIGHTS, load_model, model_folder
from attention_branch.serve.predictor import SINGLE, Answer, ByHead, ClassMap, Facts, named_classes
from attention_branch.serve.without import answer_without
from attention_branch.versions import LIBRARIES, versions

METHODS = ("attention", "attention-class", "cam", "grad-cam", "grad-cam++", "layer-cam", "soft-masks", "rollout")
"""Ways to explain that are fast enough to wait for; those that a network does not have are left out for it."""


class TorchPredictor:
    """A saved network on one device."""

    def __init__(self, run: str | Path, *, device: str = "cpu") -> None:
        """Load a run, a saved network or a hub name; `UserError` where there is none."""
        folder = model_folder(run)
        self.model: Any = load_model(folder, device=device).to(memory_format=torch.channels_last)
        model = self.model
        size = model.preprocessing.size
        blank = torch.zeros(1, 3, *size, device=model.device)
        with torch.inference_mode():
            output = model(blank)
        self.abn, self.lanes = bool(model.is_abn), 1
        self.facts = Facts(
            name=model.name,
            source=str(run),
            weights_sha256=sha256(folder / WEIGHTS),
            mechanism=model.mechanism,
            classes=named_classes(model.heads, model.num_classes, model.class_names),
            multitask=model.heads is not None,
            preprocessing=model.preprocessing,
            map_range=model.map_range if self.abn else None,
            map_size=(output.attention.shape[-2], output.attention.shape[-1]) if self.abn else None,
            methods=[method for method in METHODS if self._has(method, blank)],
            question=self._why_no_question(),
            engine=f"torch on {model.device}",
            versions=versions(*LIBRARIES),
        )

    def _has(self, method: str, blank: Tensor) -> bool:
        head = next(iter(self.model.heads)) if self.model.heads else None
        try:
            explain(self.model, blank, method, head)
        except UserError:
            return False
        return True

    def _why_no_question(self) -> str | None:
        if not self.abn:
            return "This network has no attention branch, so no map weights its features and none can be given."
        if self.model.mechanism == "none":
            return "This network was built as a control: its map is not applied, so another map changes nothing."
        return None

    def predict(self, images: np.ndarray, *, beside: bool = False) -> list[Answer]:
        """Answer normalised images (N, 3, H, W) float32; there is one lane, because torch uses all processors."""
        with torch.inference_mode():
            output = self.model(self._batch(images))
        if not self.abn:
            return _answers(self._by_head(output), None, None)
        return _answers(
            self._by_head(output.logits), self._by_head(output.attention_logits), output.attention.float().cpu().numpy()
        )

    def open(self, image: np.ndarray) -> "OpenedByTorch":
        """Answer one normalised image (3, H, W) and keep its features."""
        images = self._batch(image[None])
        if not self.abn or not self.model.resumes:
            return OpenedByTorch(self, images, self.predict(image[None])[0], None)
        model = self.model
        with torch.inference_mode():
            # The parts of one forward pass, so that g(x) is at hand afterwards.
            features = model.features(images)
            attention, scores = model.attend_features(features, images)
            logits = model.perceive(features, attention)
        answer = _answers(self._by_head(logits), self._by_head(scores), attention.float().cpu().numpy())[0]
        return OpenedByTorch(self, images, answer, features)

    def _batch(self, images: np.ndarray) -> Tensor:
        batch = torch.from_numpy(np.ascontiguousarray(images)).to(self.model.device)
        return batch.contiguous(memory_format=torch.channels_last)

    def _by_head(self, scores: Any) -> dict[str, np.ndarray]:
        return {
            head: part.float().cpu().numpy()
            for head, part in (scores.items() if isinstance(scores, dict) else ((SINGLE, scores),))
        }


class OpenedByTorch:
    """One image, its answer, and g(x) where the network can go on from there."""

    def __init__(self, predictor: TorchPredictor, images: Tensor, answer: Answer, features: Tensor | None) -> None:
        self.predictor, self.images, self.answer, self.features = predictor, images, answer, features

    def ask(self, maps: np.ndarray) -> ByHead:
        """Return the logits (K,) by head under given maps (T, h, w)."""
        model = self.predictor.model
        given = torch.from_numpy(np.ascontiguousarray(maps, dtype=np.float32))[None].to(model.device)
        with torch.inference_mode():
            if self.features is not None:
                logits = model.perceive(self.features, given)
            else:
                logits = model(self.images, attention=given, attention_logits=False).logits
        return {head: part[0] for head, part in self.predictor._by_head(logits).items()}

    def explain(self, method: str, head: str, index: int | None) -> ClassMap:
        """Return the map of a method for a class (None: the predicted one); `UserError` where there is none."""
        model = self.predictor.model
        target = {head: index} if model.heads else index
        found = explain(model, self.images, method, target)
        return ClassMap(found.raw[0].float().cpu().numpy(), found.value_range, found.layer, found.target is None)

    def without_highest(self, head: str) -> tuple[int, float] | None:
        """Return class and probability with the map's highest region painted over; None for a map without slope."""
        return answer_without(self.predictor.predict, self.images[0].float().cpu().numpy(), self.answer, head)

    @property
    def nbytes(self) -> int:
        """Memory that the kept arrays take."""
        kept = [self.images] + ([self.features] if self.features is not None else [])
        return sum(part.numel() * part.element_size() for part in kept)


def _answers(logits: ByHead, second: ByHead | None, attention: np.ndarray | None) -> list[Answer]:
    """Divide a batch's arrays into answers."""
    count = len(next(iter(logits.values())))
    return [
        Answer(
            {head: values[row] for head, values in logits.items()},
            None if second is None else {head: values[row] for head, values in second.items()},
            None if attention is None else attention[row],
        )
        for row in range(count)
    ]
