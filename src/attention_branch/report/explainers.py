"""What `abn explain` asks: a network in PyTorch, or an exported file, which needs none."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from PIL import Image

from attention_branch.errors import UserError
from attention_branch.explanations.onnx_methods import check_method, explain_onnx
from attention_branch.explanations.result import Explanation
from attention_branch.explanations.targets import Target
from attention_branch.files import sha256
from attention_branch.onnx_model import OnnxModel
from attention_branch.versions import versions


class Explainer(Protocol):
    """A model that explains pictures by one method, and what a record says of it."""

    model: Any
    sha256: str
    versions: dict[str, str]

    def explain(self, pictures: Sequence[Image.Image], target: Target, seed: int) -> tuple[Explanation, Any]:
        """Return the explanation of RGB pictures, and the normalised images that they became."""
        ...


def open_explainer(run: str | Path, method: str, layer: str, device: str) -> Explainer:
    """Return what explains by a method: of an ONNX file, a run, a saved network or a hub name."""
    if Path(run).suffix == ".onnx":
        return FileExplainer(run, method, layer)
    return NetworkExplainer(run, method, layer, device)


class FileExplainer:
    """An exported file."""

    def __init__(self, run: str | Path, method: str, layer: str) -> None:
        self.model, self.method = OnnxModel.load(run), method
        if layer != "auto":
            raise UserError(f"layer '{layer}' is inside the network, and an exported file has no layers by name.")
        check_method(self.model, method)
        self.sha256 = self.model.sha256
        self.versions = versions("onnxruntime", "onnx", "numpy", "pillow")

    def explain(self, pictures: Sequence[Image.Image], target: Target, seed: int) -> tuple[Explanation, Any]:
        """Return maps and images as arrays."""
        images = np.stack([self.model.preprocessing.array(picture) for picture in pictures])
        return explain_onnx(self.model, images, self.method, target, seed=seed), images


class NetworkExplainer:
    """A network in PyTorch."""

    def __init__(self, run: str | Path, method: str, layer: str, device: str) -> None:
        # Only here: a file is explained where torch is not installed.
        import torch

        from attention_branch.explanations.explanation import explain
        from attention_branch.explanations.methods import METHODS
        from attention_branch.models.saving import WEIGHTS, load_model, model_folder

        if method not in METHODS:
            explain(torch.nn.Identity(), torch.zeros(1, 3, 1, 1), method)  # Raises with the nearest names.
        folder = model_folder(run)
        self.model = load_model(folder, device=device)
        self.method, self.layer = method, layer
        self.sha256 = sha256(folder / WEIGHTS)
        self.versions = versions()

    def explain(self, pictures: Sequence[Image.Image], target: Target, seed: int) -> tuple[Explanation, Any]:
        """Return maps and images as tensors."""
        import torch

        from attention_branch.explanations.explanation import explain

        images = torch.stack([self.model.preprocessing.tensor(picture) for picture in pictures])
        return explain(self.model, images, self.method, target, layer=self.layer, seed=seed), images
