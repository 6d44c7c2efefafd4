"""Which layer a class activation map is read from, and how that layer's output becomes a grid of features."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from attention_branch.errors import UserError, did_you_mean
from attention_branch.explanations.outputs import Scores, class_scores

_TOKEN_NORMS = ("norm1", "ln_1", "layernorm_before", "norm_1", "ln1")
# What stands between the last features and the scores and is no layer to look at.
_HEAD_PARTS = (nn.Linear, nn.Flatten, nn.AdaptiveAvgPool2d, nn.AdaptiveMaxPool2d)
_HEAD_LEAVES = (
    *_HEAD_PARTS, nn.Dropout, nn.Dropout2d, nn.Identity, nn.Softmax, nn.LogSoftmax, nn.AvgPool2d, nn.MaxPool2d,
    nn.ReLU, nn.GELU, nn.SiLU, nn.Hardswish, nn.Tanh, nn.Sigmoid,
)  # fmt: skip
_HEAD_NAMES = ("Permute", "SelectAdaptivePool2d", "FastAdaptiveAvgPool")
_MOST_PREFIX_TOKENS = 16


@dataclass(frozen=True)
class Layer:
    """A module of a network by name, and why it was taken."""

    name: str
    module: nn.Module
    why: str = ""

    def described(self, size: tuple[int, int]) -> str:
        """Return the layer in words: its name, its grid, and why it was taken where nobody named it."""
        return f"{self.name}, {size[0]}x{size[1]}" + (f" (auto: {self.why})" if self.why else "")


def choose_layer(model: nn.Module, layer: str | nn.Module = "auto") -> Layer:
    """Find a layer by its name or as a module of the network, or choose one ("auto") without running the network.

    "auto" is the last module before pooling and classifier; in a transformer with a class token the first norm of the
    last block, because behind it no score depends on the patch tokens any more. Raises `UserError` for a layer that the
    network does not have, and where none can be told from its structure.
    """
    if isinstance(layer, nn.Module):
        for name, module in model.named_modules():
            if module is layer:
                return Layer(name or "(the whole network)", module)
        raise UserError("The layer is not a module of this network; give its name or one of its own modules.")
    if not isinstance(layer, str):
        raise UserError(f"layer is {layer!r:.60}; give one layer, by its name or as the module itself.")
    if layer != "auto":
        modules = dict(model.named_modules())
        for name in (layer, f"backbone.{layer}"):
            if name in modules and name:
                return Layer(name, modules[name])
        names = [name for name in modules if name]
        prefix = trunk(model)[1]
        hint = did_you_mean(layer.removeprefix(prefix), [name.removeprefix(prefix) for name in names])
        raise UserError(f"The network has no layer '{layer}'.{hint} Its last ones: {', '.join(names[-5:]) or 'none'}.")
    root, prefix = trunk(model)
    if _class_token(root):
        norms = [name for name, _ in root.named_modules() if name.rpartition(".")[2] in _TOKEN_NORMS]
        if norms:
            module = root.get_submodule(norms[-1])
            return Layer(prefix + norms[-1], module, "first norm of the last block, before its attention")
    found = _last_before_head(root)
    if found is None:
        raise UserError(
            f"No layer of {type(model).__name__} stands before pooling and classifier as a module of its own; "
            "name one with layer='...'."
        )
    return Layer(prefix + found, root.get_submodule(found), "last before pooling and classifier")


def trunk(model: nn.Module) -> tuple[nn.Module, str]:
    """Return the part of a network that sees the image: the backbone of one of ours, else all of it."""
    backbone = getattr(model, "backbone", None)
    if hasattr(model, "is_abn") and isinstance(backbone, nn.Module):
        return backbone, "backbone."
    return model, ""


def _class_token(model: Any) -> bool:
    if int(getattr(model, "num_prefix_tokens", 0) or 0) > 0:
        return getattr(model, "global_pool", "token") in ("token", "", "map")
    return any(isinstance(getattr(model, name, None), Tensor) for name in ("cls_token", "class_token"))


def _last_before_head(model: nn.Module, prefix: str = "") -> str | None:
    """Return the name of the last child before the head, looking inside a child that holds a part of the head."""
    for name, child in reversed(list(model.named_children())):
        if isinstance(child, nn.LayerNorm) and isinstance(getattr(model, "fc_norm", None), nn.LayerNorm):
            continue  # Unused: this network norms what was pooled.
        if type(child).__name__.endswith(("Head", "ConvMlp")) or _is_head(child):
            continue
        if isinstance(child, nn.ModuleList) and len(child):
            return f"{prefix}{name}.{len(child) - 1}"  # A list never runs as a whole.
        if isinstance(child, nn.Sequential) and any(isinstance(part, _HEAD_PARTS) for part in child):
            # nn.Sequential(features, pool, flatten, linear), or such a one around a network.
            return _last_before_head(child, f"{prefix}{name}.")
        return f"{prefix}{name}"
    return None


def _is_head(module: nn.Module) -> bool:
    """Tell whether a module pools, classifies or only passes on: nothing in it looks at a grid of features."""
    norms: tuple[type, ...] = ()
    if isinstance(module, nn.Sequential) and any(isinstance(part, _HEAD_PARTS) for part in module):
        norms = (nn.LayerNorm, nn.BatchNorm1d)
    for part in module.modules():
        own = next(part.parameters(recurse=False), None) is not None
        if own and not isinstance(part, (nn.Linear, nn.BatchNorm1d, *norms)):
            return False
        leaf = next(part.children(), None) is None
        if leaf and not own and not isinstance(part, _HEAD_LEAVES) and type(part).__name__ not in _HEAD_NAMES:
            return False
    return True


def grid_layers(model: nn.Module, images: Tensor, *, all_layers: bool = False) -> list[tuple[str, tuple[int, int]]]:
    """Return the modules whose output is a grid of features, in running order, with its height and width.

    One forward pass of one image. A module that only passes another's output on is left out, and so are the insides of
    blocks unless `all_layers`.
    """
    found: list[tuple[str, tuple[int, int], int]] = []
    handles = []
    root, prefix = trunk(model)
    wanted = [name for name, _ in root.named_modules() if name]
    if not all_layers:
        wanted = [name for name in wanted if _is_block(root, name)]

    def record(name: str) -> Any:
        def hook(_module: nn.Module, _inputs: Any, output: Any) -> None:
            tensor = first_tensor(output)
            if tensor is None or tensor.ndim not in (3, 4):
                return
            try:
                size = tuple(to_grid(tensor, model, images).shape[-2:])
            except UserError:
                return
            found.append((prefix + name, (size[0], size[1]), id(output)))
            rows.setdefault(prefix + name, []).append(len(tensor))
            kept.append(output)

        return hook

    rows: dict[str, list[int]] = {}
    kept: list[Any] = []  # Outputs stay alive until the end, so that no two of them share an id.
    for name in wanted:
        handles.append(root.get_submodule(name).register_forward_hook(record(name)))
    try:
        with torch.no_grad():
            scores = class_scores(model(images[:1]))
    finally:
        for handle in handles:
            handle.remove()
    found = [entry for entry in found if runs_whole(rows[entry[0]], 1, scores)]
    # Of several modules with one output, the outermost that made it names it best; an nn.Identity only passes it on.
    names: dict[int, str] = {}
    for name, _, identity in found:
        made = names.setdefault(identity, name)
        if made.startswith(f"{name}."):
            names[identity] = name
    return [(name, size) for name, size, identity in found if names[identity] == name]


def _is_block(model: nn.Module, name: str) -> bool:
    """Tell whether a module is a stage or a block: a child of the network, or of a sequence of such."""
    parts = name.split(".")
    parents = [model.get_submodule(".".join(parts[:depth])) for depth in range(1, len(parts))]
    return all(isinstance(parent, (nn.Sequential, nn.ModuleList)) for parent in parents) and len(parts) <= 3


def runs_whole(rows: Sequence[int], count: int, scores: Scores) -> bool:
    """Tell whether a layer that ran on so many rows each time saw `count` whole images, once or once for each head.

    A network may let several heads' rows through together, and so in chunks.
    Otherwise it ran on windows or patches, or serves in several places of the network.
    """
    heads = 1 if isinstance(scores, Tensor) else len(scores)
    return list(rows) == [count] or (sum(rows) == count * heads and all(part % count == 0 for part in rows))


def first_tensor(output: Any) -> Tensor | None:
    """Return a module's output, or the first tensor of a tuple or list of outputs."""
    if isinstance(output, Tensor):
        return output
    if isinstance(output, (tuple, list)):
        return next((part for part in output if isinstance(part, Tensor)), None)
    return None


def with_first_tensor(output: Any, tensor: Tensor) -> Any:
    """Return an output like the given one with another first tensor."""
    if isinstance(output, Tensor):
        return tensor
    parts = list(output)
    position = next(index for index, part in enumerate(parts) if isinstance(part, Tensor))
    parts[position] = tensor
    return type(output)(*parts) if hasattr(output, "_fields") else type(output)(parts)


def to_grid(features: Tensor, model: nn.Module, images: Tensor) -> Tensor:
    """Bring a layer's output to (N, C, h, w): NCHW, NHWC, or tokens (N, L, C) without those that are no patch.

    The layout is told by the shape: h and w are as h : w = H : W of the image and no larger than it. Raises `UserError`
    for an output that is no grid or has one position only.
    """
    height, width = images.shape[-2:]
    if features.ndim == 4:
        first, second = features.shape[2:], features.shape[1:3]
        channels_last = getattr(trunk(model)[0], "output_fmt", "NCHW") == "NHWC"
        if _fits(second, height, width) and (channels_last or not _fits(first, height, width)):
            features = features.permute(0, 3, 1, 2)
        elif not _fits(first, height, width):
            raise UserError(f"The layer's output {tuple(features.shape)} is no grid over images of {height}x{width}.")
    elif features.ndim == 3:
        prefix, size = token_grid(features.shape[1], trunk(model)[0], height, width)
        features = features[:, prefix:].transpose(1, 2).unflatten(2, size)
    else:
        raise UserError(f"The layer's output {tuple(features.shape)} is no grid of features, so it yields no map.")
    if features.shape[-2] * features.shape[-1] == 1:
        raise UserError("The layer's output has one position only, so it yields no map; choose an earlier layer.")
    return features


def _fits(size: torch.Size, height: int, width: int) -> bool:
    h, w = size
    if h > height or w > width:
        return False
    # Strides round each side on its own.
    return abs(h - w * height / width) <= 1 + 0.1 * h


def token_grid(count: int, model: nn.Module, height: int, width: int) -> tuple[int, tuple[int, int]]:
    """Return how many of `count` tokens come before the patches, and the patches' grid (h, w), h : w = H : W."""
    known = getattr(model, "num_prefix_tokens", None)
    for prefix in [int(known)] if known is not None else range(_MOST_PREFIX_TOKENS + 1):
        patches = count - prefix
        rows = round(math.sqrt(patches * height / width)) if patches > 0 else 0
        if rows and patches % rows == 0 and abs(patches // rows - rows * width / height) < 1:
            return prefix, (rows, patches // rows)
    raise UserError(f"The layer's {count} tokens do not form a grid over images of {height}x{width}.")


def fallback_layers(model: nn.Module, images: Tensor) -> Iterator[str]:
    """Yield the names of the layers with a grid that ran, the last first: stages and blocks, then all others."""
    blocks = [name for name, _ in grid_layers(model, images)]
    others = [name for name, _ in grid_layers(model, images, all_layers=True) if name not in blocks]
    yield from reversed(blocks)
    yield from reversed(others)
