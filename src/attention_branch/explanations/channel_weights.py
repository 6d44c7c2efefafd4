"""The weights that squeeze-and-excitation blocks give their channels for an image (1709.01507), read in one pass."""

from collections.abc import Sequence
from typing import Any

import torch
from PIL import Image
from timm.layers.squeeze_excite import EffectiveSEModule, SEModule
from timm.models._efficientnet_blocks import SqueezeExcite
from timm.models.senet import SEModule as LegacySEModule
from torch import Tensor, nn
from torchvision.ops import SqueezeExcitation

from attention_branch.errors import UserError
from attention_branch.explanations.explanation import as_batch
from attention_branch.explanations.outputs import eager, evaluating, unwrapped

_GATES: dict[type[nn.Module], str] = {
    SEModule: "gate",
    EffectiveSEModule: "gate",
    SqueezeExcite: "gate",
    LegacySEModule: "sigmoid",
    SqueezeExcitation: "scale_activation",
}
"""The squeeze-and-excitation modules of timm and torchvision, and the activation that gives their weights."""


def channel_weights(model: nn.Module, images: Tensor | Image.Image | Sequence[Image.Image]) -> dict[str, Tensor]:
    """Return the squeeze-and-excitation weights of each image by block: {"layer1.0": (N, C) in [0, 1], ...}.

    `images` are normalised (N, 3, H, W) or pictures that the model's preprocessing makes so. The blocks have their
    names in the backbone and stand in running order; those of an attention branch's own stage begin with "branch.".
    Behind the gate of a network with T heads that run one by one the weights are (N, T, C). Any network of timm's or
    torchvision's modules will do, with a branch or without. One forward pass in eval mode. Raises `UserError` where
    there are no such blocks.
    """
    network = unwrapped(model)
    modules = {name: module for name, module in network.named_modules() if type(module) in _GATES}
    if not modules:
        raise UserError(
            f"'{getattr(network, 'name', type(network).__name__)}' has no squeeze-and-excitation blocks; seresnet50, "
            "seresnext50_32x4d and efficientnet_b0 have."
        )
    found: dict[str, list[Tensor]] = {}
    handles = []

    def keep(name: str) -> Any:
        def hook(_module: nn.Module, _inputs: Any, weights: Tensor) -> None:
            # Whatever the layout, all but rows and channels has one position.
            found.setdefault(name, []).append(weights.detach().flatten(1).float())

        return hook

    for name, module in modules.items():
        gate = module.get_submodule(_GATES[type(module)])
        handles.append(gate.register_forward_hook(keep(_block(name, modules))))
    try:
        with torch.inference_mode(False), torch.no_grad(), eager(), evaluating(network, warn=True):
            batch = as_batch(network, images)
            network(batch)
    finally:
        for handle in handles:
            handle.remove()
    return {name: _by_image(parts, len(batch)) for name, parts in found.items()}


def _block(name: str, modules: dict[str, nn.Module]) -> str:
    """Return the name of the block that a module stands in, or its own where a block has several."""
    block = name.rpartition(".")[0]
    alone = sum(other.rpartition(".")[0] == block for other in modules) == 1
    return (block if alone and block else name).removeprefix("backbone.")


def _by_image(parts: list[Tensor], count: int) -> Tensor:
    """Return (N, C), or (N, T, C) of the rows (N * k, C) that went through for k heads at a time."""
    if len(parts) == 1 and len(parts[0]) == count:
        return parts[0]
    return torch.cat([part.unflatten(0, (count, -1)) for part in parts], dim=1)
