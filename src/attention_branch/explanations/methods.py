"""The ways to explain: each is one function from (model, images, target, seed) to unscaled maps, listed in METHODS."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from attention_branch.errors import UserError
from attention_branch.explanations.controls import CENTER_SIGMA, center_maps, constant_maps, random_maps
from attention_branch.explanations.targets import Target, choose_head, head_class_names, head_logits, resolve_target


class RawMaps(NamedTuple):
    """What a method hands back, before anything is resized."""

    raw: Tensor  # (N, h, w)
    target: Tensor | None  # (N,) int64; None where the map does not depend on a class
    layer: str
    logits: Tensor | Mapping[str, Tensor]
    head: str | None
    value_range: tuple[float, float] | None  # the scale the method defines; None where values have no bounds
    attention_logits: Tensor | Mapping[str, Tensor] | None  # (N, K), where the network has an attention branch


Method = Callable[[nn.Module, Tensor, Target, int], RawMaps]


def attention(model: nn.Module, images: Tensor, target: Target, seed: int) -> RawMaps:
    """The attention branch's map M in [0, 1], as it gates the features. Class-agnostic: one map, whatever the class."""
    _needs_branch(model, "attention map")
    head, wanted = choose_head(model, target)
    output = model(images)
    # A class is checked though the map does not depend on it: a misspelt name must not pass unseen.
    resolve_target(head_logits(output.logits, head), wanted, head_class_names(model, head))
    heads = list(getattr(model, "heads", None) or [])
    # A mechanism may share one map between all heads.
    position = heads.index(head) if head is not None and output.attention.shape[1] > 1 else 0
    whose = f"of head '{head}'" if head is not None else "M"
    layer = f"attention branch, map {whose} (class-agnostic)"
    raw = output.attention[:, position]
    return RawMaps(raw, None, layer, output.logits, head, (0.0, 1.0), output.attention_logits)


def attention_class(model: nn.Module, images: Tensor, target: Target, seed: int) -> RawMaps:
    """The attention branch's own evidence for a class per position: its mean over positions is the branch's logit."""
    _needs_branch(model, "class evidence")
    head, wanted = choose_head(model, target)
    output = model(images)
    classes = resolve_target(head_logits(output.logits, head), wanted, head_class_names(model, head))
    evidence: Any = model.class_evidence(images)  # type: ignore[operator]
    if isinstance(evidence, Mapping):
        evidence = evidence[head]
    if evidence.shape[1] == 1:
        # One sigmoid logit: what speaks for class 1 speaks against class 0.
        raw = evidence[:, 0] * (2 * classes - 1).to(evidence.dtype)[:, None, None]
    else:
        raw = evidence[torch.arange(len(images), device=evidence.device), classes]
    of_head = f" of head '{head}'" if head is not None else ""
    layer = f"attention branch, class evidence{of_head}"
    return RawMaps(raw, classes, layer, output.logits, head, None, output.attention_logits)


def random(model: nn.Module, images: Tensor, target: Target, seed: int) -> RawMaps:
    """Control: uniform noise at the input's size, from `seed`; its maximum is any pixel with equal chance.

    Noise on a coarser grid would not do: bilinear upsampling puts its maximum at the border more often than not.
    """
    maps = random_maps(len(images), images.shape[-2], images.shape[-1], torch.Generator().manual_seed(seed))
    return _control(maps, f"none: control, uniform noise per pixel, seed {seed}", images, model(images))


def center(model: nn.Module, images: Tensor, target: Target, seed: int) -> RawMaps:
    """Control: a Gaussian at the middle of the image, sigma = 0.25 of each side."""
    maps = center_maps(len(images), images.shape[-2], images.shape[-1])
    return _control(maps, f"none: control, centred Gaussian, sigma {CENTER_SIGMA} of the side", images, model(images))


def constant(model: nn.Module, images: Tensor, target: Target, seed: int) -> RawMaps:
    """Control: 0.5 everywhere."""
    maps = constant_maps(len(images), images.shape[-2], images.shape[-1])
    return _control(maps, "none: control, 0.5 everywhere", images, model(images))


METHODS: dict[str, Method] = {
    "attention": attention,
    "attention-class": attention_class,
    "random": random,
    "center": center,
    "constant": constant,
}


def _control(maps: Tensor, layer: str, images: Tensor, output: Any) -> RawMaps:
    logits, second = getattr(output, "logits", output), getattr(output, "attention_logits", None)
    return RawMaps(maps.to(images.device), None, layer, logits, None, (0.0, 1.0), second)


def _needs_branch(model: nn.Module, what: str) -> None:
    if not getattr(model, "is_abn", False):
        name = getattr(model, "name", type(model).__name__)
        free = [method for method in METHODS if not method.startswith("attention")]
        raise UserError(
            f"'{name}' is a plain network without an attention branch, so it has no {what}: "
            f"build it with create_model instead of create_backbone, or use a method that needs no branch "
            f"({', '.join(free)})."
        )
