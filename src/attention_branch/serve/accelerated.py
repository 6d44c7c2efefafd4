"""Programs answered by onnxruntime, people by torch: the same network twice, exported when the server starts."""

import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np

from attention_branch.errors import UserError
from attention_branch.serve.predictor import Answer, Predictor
from attention_branch.serve.torch_predictor import OpenedByTorch, TorchPredictor


class Accelerated:
    """A network in torch, with batches answered by its exported form."""

    def __init__(self, own: TorchPredictor, fast: Predictor) -> None:
        self.own, self.fast, self.lanes = own, fast, fast.lanes
        self.facts = replace(
            own.facts,
            engine=f"{fast.facts.engine} (single pictures: {own.facts.engine})",
            versions={**own.facts.versions, "onnxruntime": fast.facts.versions["onnxruntime"]},
        )

    def predict(self, images: np.ndarray, *, beside: bool = False) -> list[Answer]:
        """Answer normalised images (N, 3, H, W) float32."""
        return self.fast.predict(images, beside=beside)

    def open(self, image: np.ndarray) -> OpenedByTorch:
        """Answer one normalised image (3, H, W) and keep its features."""
        return self.own.open(image)


def accelerated(own: TorchPredictor, run: Path, *, needed: bool, say: Callable[[str], None]) -> Predictor:
    """Return the network with onnxruntime beside it; without it where that cannot be, unless it is `needed`.

    The file that `abn export` left in the run is taken where it is of the same weights and holds both branches' scores.
    Otherwise one is made and compared with torch. Raises `UserError` where it is needed and cannot be.
    """
    try:
        from attention_branch.serve.onnx_predictor import OnnxPredictor

        kept = run / "model.onnx"
        if kept.is_file():
            fast = OnnxPredictor(kept)
            same = fast.facts.weights_sha256 == own.facts.weights_sha256 and fast.model.details["precision"] == "32"
            if same and (not own.abn or fast.model.named("attention_logits")):
                return Accelerated(own, fast)
        from attention_branch.export import export

        say("Preparing onnxruntime, which answers programs faster (--engine torch does without) ...")
        with tempfile.TemporaryDirectory() as place:
            done = export(own.model, Path(place) / "model.onnx", attention_logits=own.abn, data="random")
            return Accelerated(own, OnnxPredictor(done.path))
    except (UserError, ModuleNotFoundError) as problem:
        if needed:
            raise UserError(f"onnxruntime cannot answer for this network: {problem}") from problem
        say(f"Programs are answered by torch: {problem}")
        return own
