"""The soft masks of a Residual Attention Network: what each attention module let through, read in one forward pass."""

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from attention_branch.errors import UserError
from attention_branch.models.residual_attention import SoftMask


class ReadMask(NamedTuple):
    """One module's mask for a batch: the mean over its channels, and where it comes from."""

    maps: Tensor  # (N, h, w)
    layer: str
    value_range: tuple[float, float]


def mask_names(model: nn.Module) -> list[str]:
    """Return the names of a network's soft masks in the order they run; `UserError` where it has none."""
    names = [name for name, module in model.named_modules() if isinstance(module, SoftMask)]
    if not names:
        raise UserError(
            f"'{getattr(model, 'name', type(model).__name__)}' has no soft masks: they are the attention modules' of a "
            "Residual Attention Network (attention56, ...); use grad-cam."
        )
    return names


def choose_mask(model: nn.Module, layer: str | nn.Module = "auto") -> str:
    """Return the name of a soft mask: the last one's for "auto", that of a module, or of the module that holds it."""
    names = mask_names(model)
    if layer == "auto":
        return names[-1]
    given = {name: module for name, module in model.named_modules() if module is layer or name == layer}
    given |= {name: module for name, module in model.named_modules() if name == f"backbone.{layer}"}
    inside = [name for name in names for start in given if name == start or name.rpartition(".")[0] == start]
    if not inside:
        shown = layer if isinstance(layer, str) else type(layer).__name__
        modules = ", ".join(name.removesuffix(".mask").removeprefix("backbone.") for name in names)
        raise UserError(f"'{shown}' is no attention module of this network; its modules are {modules}.")
    return inside[0]


def read_masks(model: nn.Module, images: Tensor, names: list[str]) -> tuple[dict[str, ReadMask], Any]:
    """Return the named soft masks of normalised images (N, 3, H, W) by name, and what the model answered."""
    found: dict[str, ReadMask] = {}
    handles = []

    def keep(name: str) -> Any:
        def hook(module: nn.Module, _inputs: Any, mask: Tensor) -> None:
            assert isinstance(module, SoftMask)
            size = f"{mask.shape[2]}x{mask.shape[3]}"
            layer = f"{name}, {size}, mean of the soft mask's {mask.shape[1]} channels (class-agnostic)"
            found[name] = ReadMask(mask.detach().mean(1), layer, module.value_range)

        return hook

    for name in names:
        handles.append(model.get_submodule(name).register_forward_hook(keep(name)))
    try:
        with torch.no_grad():
            output = model(images)
    finally:
        for handle in handles:
            handle.remove()
    return found, output
