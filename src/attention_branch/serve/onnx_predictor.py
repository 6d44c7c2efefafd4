"""A file of `abn export` behind the server, run by onnxruntime; torch need not be installed."""

from pathlib import Path

import numpy as np

from attention_branch.errors import UserError
from attention_branch.hardware import usable_cores
from attention_branch.onnx_model import OnnxModel
from attention_branch.serve.predictor import SINGLE, Answer, ByHead, ClassMap, Facts, named_classes, probabilities
from attention_branch.serve.without import answer_without
from attention_branch.versions import versions

_KINDS = {"attention": "attention", "attention-class": "class_evidence", "cam": "cam"}
"""Methods, and the kind of output that each is read from."""

_MOST_LANES = 4
"""Batches at once. More would gain little and keep more activations in memory."""


class OnnxPredictor:
    """An exported network. Its methods are those whose outputs the file has."""

    def __init__(self, path: str | Path, *, threads: int | None = None) -> None:
        """Load a file; `UserError` where it is none of `abn export`."""
        self.model = model = OnnxModel.load(path, threads=threads)
        cores = usable_cores() if threads is None else threads
        self.lanes = min(cores, _MOST_LANES)
        self._narrow = model.with_threads(cores // self.lanes) if self.lanes > 1 else model
        self.facts = Facts(
            name=model.name,
            source=str(path),
            weights_sha256=model.details["weights_sha256"],
            mechanism=model.mechanism if model.is_abn else None,
            classes=named_classes(model.heads, model.num_classes, model.class_names),
            multitask=model.heads is not None,
            preprocessing=model.preprocessing,
            map_range=model.map_range,
            map_size=model.map_size if model.is_abn else None,
            methods=[method for method, kind in _KINDS.items() if model.named(kind)],
            question=self._why_no_question(),
            engine="onnxruntime",
            versions={
                **versions("onnxruntime", "pillow", "numpy"),
                **{f"{name} (export)": value for name, value in model.details["versions"].items()},
            },
        )

    def _why_no_question(self) -> str | None:
        if self.model.answers_given_maps:
            return None
        if not self.model.is_abn:
            return "This network has no attention branch, so no map weights its features and none can be given."
        return "This network was built as a control: its map is not applied, so another map changes nothing."

    def predict(self, images: np.ndarray, *, beside: bool = False) -> list[Answer]:
        """Answer normalised images (N, 3, H, W) float32; on one lane's processors where others compute beside it."""
        return self.answers((self._narrow if beside else self.model).run(images))

    def answers(self, found: dict[str, np.ndarray]) -> list[Answer]:
        """Divide a batch's outputs by name into answers."""
        count = len(next(iter(found.values())))
        logits, second = self._by_head("logits", found), self._by_head("attention_logits", found)
        maps = found.get("attention")
        return [
            Answer(
                {head: values[row] for head, values in logits.items()},
                {head: values[row] for head, values in second.items()} if second else None,
                None if maps is None else maps[row],
            )
            for row in range(count)
        ]

    def _by_head(self, kind: str, found: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        return {head or SINGLE: found[name] for head, name in self.model.named(kind).items()}

    def open(self, image: np.ndarray) -> "OpenedByOnnx":
        """Answer one normalised image (3, H, W) and keep its features."""
        if self.model.answers_given_maps:
            found, features = self.model.run_with_features(image[None])
            return OpenedByOnnx(self, image, found, features)
        return OpenedByOnnx(self, image, self.model.run(image[None]), None)


class OpenedByOnnx:
    """One image, every output of the file for it, and g(x) where a map can be given."""

    def __init__(
        self, predictor: OnnxPredictor, image: np.ndarray, found: dict[str, np.ndarray], features: np.ndarray | None
    ) -> None:
        self.predictor, self.image, self.found, self.features = predictor, image, found, features
        self.answer = predictor.answers(found)[0]

    def ask(self, maps: np.ndarray) -> ByHead:
        """Return the logits (K,) by head under given maps (T, h, w)."""
        assert self.features is not None
        logits = self.predictor.model.answer(self.features, maps[None])
        by_head = logits if isinstance(logits, dict) else {SINGLE: logits}
        return {head: values[0] for head, values in by_head.items()}

    def explain(self, method: str, head: str, index: int | None) -> ClassMap:
        """Return the map of a method for a class (None: the predicted one); `UserError` where the file has none."""
        own = self.answer.map_of(head)
        if method == "attention" and own is not None:
            return ClassMap(own, self.predictor.facts.map_range, "attention branch", True)
        names = self.predictor.model.named(_KINDS.get(method, ""))
        name = names.get(head if self.predictor.facts.multitask else None)
        if name is None:
            raise UserError(f"The file has no output for '{method}'; export it again with that output.")
        logits = self.answer.logits[head]
        chosen = int(probabilities(logits).argmax()) if index is None else index
        values = self.found[name][0]
        # One logit is a sigmoid: what speaks for class 1 speaks against class 0.
        values = (values[0] if chosen else -values[0]) if len(values) == 1 else values[chosen]
        return ClassMap(values, None, f"output '{name}'", False)

    def without_highest(self, head: str) -> tuple[int, float] | None:
        """Return class and probability with the map's highest region painted over; None for a map without slope."""
        return answer_without(self.predictor.predict, self.image, self.answer, head)

    @property
    def nbytes(self) -> int:
        """Memory that the kept arrays take."""
        kept = [self.image, *self.found.values()] + ([self.features] if self.features is not None else [])
        return sum(int(values.nbytes) for values in kept)
