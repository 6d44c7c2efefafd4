"""What single filters respond to: of each image the filter that adds most to a class, and the maps of all filters."""

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn

from attention_branch.errors import UserError
from attention_branch.explanations.cam import HeadPass, head_pass
from attention_branch.explanations.layers import choose_layer, first_tensor, to_grid
from attention_branch.explanations.outputs import eager, evaluating, unwrapped


def strongest_filter(done: HeadPass) -> tuple[Tensor, Tensor]:
    """Return the activation (N, h, w) of the filter that adds most to each image's class score, and its number (N,).

    What a filter adds is the sum over positions of activation times gradient: exact where the score is linear in the
    activations, as behind global average pooling, and to first order elsewhere.
    """
    activations, gradients = done.activations, done.gradients()
    number = (activations * gradients).sum((2, 3)).argmax(1)
    return activations[torch.arange(len(number), device=number.device), number], number


def filter_layer(model: nn.Module, layer: str | nn.Module = "auto") -> str | nn.Module:
    """Return the layer whose filters are meant by "auto": the last interpretable one, where there is one."""
    layers: Any = getattr(model, "layers", None)
    if layer == "auto" and isinstance(layers, dict) and layers:
        return next(reversed(layers))
    return layer


def class_filters(model: nn.Module, images: Tensor, target: Any, layer: str | nn.Module) -> HeadPass:
    """Run a network once and keep its filters' maps with the graph behind them."""
    return head_pass(model, images, target, filter_layer(model, layer), gradient=True)


@torch.no_grad()
def filter_maps(
    model: nn.Module,
    images: Tensor | Image.Image | Sequence[Image.Image] | Iterable[Tensor],
    layer: str | nn.Module = "auto",
    *,
    batch_size: int = 64,
) -> Tensor:
    """Return the maps (N, C, h, w) float32, on the CPU, of a layer's filters for images.

    `images` are normalised (N, 3, H, W), pictures, or an iterable of such batches; `layer` is a module or its name, by
    "auto" the last interpretable layer, masked, or in other networks the last before pooling. The model is run in eval
    mode and left as it was. Raises `UserError` for a layer that is no grid of filters.
    """
    from attention_branch.explanations.explanation import as_batch

    network = unwrapped(model)
    chosen = choose_layer(network, filter_layer(network, layer))
    runs: list[Tensor] = []

    def hook(_module: nn.Module, _inputs: Any, output: Any) -> None:
        features = first_tensor(output)
        if features is None:
            raise UserError(f"The layer '{chosen.name}' passes on a {type(output).__name__}, so it has no filters.")
        runs.append(to_grid(features, network, batch).float().cpu())

    if batch_size < 1:
        raise UserError(f"batch_size is {batch_size}; it must be 1 or more.")
    if isinstance(images, Image.Image):
        images = [images]
    if isinstance(images, Tensor | Sequence) and not len(images):
        raise UserError("There is no image; give one or more.")
    if isinstance(images, Tensor):
        parts: Iterable[Any] = images.split(batch_size)
    elif isinstance(images, Sequence) and isinstance(images[0], Image.Image):
        parts = (images[start : start + batch_size] for start in range(0, len(images), batch_size))
    else:
        parts = images
    handle = chosen.module.register_forward_hook(hook)
    count = 0
    try:
        with eager(), evaluating(network):
            for part in parts:
                batch = as_batch(network, part)
                network(batch)
                count += len(batch)
    finally:
        handle.remove()
    found = torch.cat(runs) if runs else torch.zeros(0, 0, 0, 0)
    if len(found) != count or not count:
        raise UserError(
            f"The layer '{chosen.name}' does not run once on every image, so it has no map a filter; choose another."
        )
    return found
