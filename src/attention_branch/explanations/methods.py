"""The ways to explain: each is one function from a `Request` to unscaled maps, listed in METHODS."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from attention_branch.errors import UserError
from attention_branch.explanations.attributions import integrated_gradients, occlusion
from attention_branch.explanations.cam import GRADIENT_CAMS, class_activation_map, head_pass
from attention_branch.explanations.controls import (
    CENTER_SIGMA,
    CONTROLS,
    center_maps,
    constant_maps,
    random_maps,
)
from attention_branch.explanations.filters import class_filters, strongest_filter
from attention_branch.explanations.layers import grid_layers
from attention_branch.explanations.outputs import class_scores
from attention_branch.explanations.rollout import rollout
from attention_branch.explanations.soft_masks import choose_mask, read_masks
from attention_branch.explanations.targets import Target, choose_head, head_class_names, head_logits, resolve_target


@dataclass(frozen=True)
class Request:
    """What is to be explained: a network in eval mode, images (N, 3, H, W) on its device, and for whom."""

    model: nn.Module
    images: Tensor
    target: Target = None
    layer: str | nn.Module = "auto"
    seed: int = 0


class RawMaps(NamedTuple):
    """What a method hands back, before anything is resized."""

    raw: Tensor  # (N, h, w)
    target: Tensor | None  # (N,) int64; None where the map does not depend on a class
    layer: str
    logits: Tensor | Mapping[str, Tensor]
    head: str | None
    value_range: tuple[float, float] | None  # the scale the method defines; None where values have no bounds
    attention_logits: Tensor | Mapping[str, Tensor] | None  # (N, K), where the network has an attention branch
    filters: Tensor | None = None  # (N,) int64: whose map it is, where it is a single filter's


Method = Callable[[Request], RawMaps]


def attention(request: Request) -> RawMaps:
    """The attention branch's map M, as it gates the features. Class-agnostic: one map, whatever the class.

    In [0, 1]; a sum of logarithms (`map_form="sum-log"`) has no bound and so no scale of its own.
    """
    model: Any = request.model
    _needs_branch(model, "attention map")
    _no_layer(request)
    head, wanted = choose_head(model, request.target)
    with torch.no_grad():
        output = model(request.images)
    # A class is checked though the map does not depend on it: a misspelt name must not pass unseen.
    resolve_target(head_logits(output.logits, head), wanted, head_class_names(model, head))
    heads = list(model.heads or [])
    # A mechanism may share one map between all heads.
    position = heads.index(head) if head is not None and output.attention.shape[1] > 1 else 0
    whose = f"of head '{head}'" if head is not None else "M"
    layer = f"attention branch, map {whose} (class-agnostic)"
    raw = output.attention[:, position]
    return RawMaps(
        raw, None, layer, output.logits, head, getattr(model, "map_range", (0.0, 1.0)), output.attention_logits
    )


def attention_class(request: Request) -> RawMaps:
    """The attention branch's own evidence for a class per position: its mean over positions is the branch's logit."""
    model: Any = request.model
    _needs_branch(model, "class evidence")
    _no_layer(request)
    head, wanted = choose_head(model, request.target)
    with torch.no_grad():
        output, evidence = model.with_class_evidence(request.images)
    logits = head_logits(output.logits, head)
    classes = resolve_target(logits, wanted, head_class_names(model, head), several=True)
    if isinstance(evidence, Mapping):
        evidence = evidence[head]
    rows = torch.arange(len(logits), device=logits.device).expand(len(classes))
    if evidence.shape[1] == 1:
        # One sigmoid logit: what speaks for class 1 speaks against class 0.
        raw = evidence[rows, 0] * (2 * classes - 1).to(evidence.dtype)[:, None, None]
    else:
        raw = evidence[rows, classes]
    of_head = f" of head '{head}'" if head is not None else ""
    layer = f"attention branch, class evidence{of_head}"
    return RawMaps(raw, classes, layer, output.logits, head, None, output.attention_logits)


def cam(request: Request) -> RawMaps:
    """The classifier's weights times the last features: needs global average pooling and one linear layer."""
    done = head_pass(request.model, request.images, request.target, request.layer, gradient=False)
    raw = class_activation_map(done)
    if raw is None and request.layer == "auto":
        # The structure's last module need not be what is pooled (an activation may follow); what ran tells.
        ran = [name for name, _ in grid_layers(request.model, request.images, all_layers=True)]
        if ran and ran[-1] != done.layer.name:
            done = head_pass(request.model, request.images, request.target, ran[-1], gradient=False)
            raw = class_activation_map(done)
    if raw is None:
        raise UserError(
            f"cam needs a network whose scores are one linear layer of the mean over positions of a layer; that is not "
            f"so of '{done.layer.name}'. Name the layer that is pooled where it is a module of its own, or use "
            "grad-cam."
        )
    return _of_pass(done, raw)


def gradient_cam(formula: Callable[[Tensor, Tensor], Tensor]) -> Method:
    """Return the method that puts a layer's activations and the class score's gradient into a formula."""

    def method(request: Request) -> RawMaps:
        done = head_pass(request.model, request.images, request.target, request.layer, gradient=True)
        return _of_pass(done, formula(done.activations, done.gradients()))

    return method


def filters(request: Request) -> RawMaps:
    """The activation of one filter an image: of the one that adds most to the class's score."""
    done = class_filters(request.model, request.images, request.target, request.layer)
    raw, numbers = strongest_filter(done)
    found = _of_pass(done, raw)
    return found._replace(layer=f"{found.layer}, the filter that adds most to the class's score", filters=numbers)


def attention_rollout(request: Request) -> RawMaps:
    """A vision transformer's attention through all layers, to the class token. Class-agnostic."""
    _no_layer(request)
    with torch.no_grad():
        raw, output, layer = rollout(request.model, request.images)
    logits = class_scores(output)
    head, wanted = choose_head(request.model, request.target, logits)
    resolve_target(head_logits(logits, head), wanted, head_class_names(request.model, head))
    return RawMaps(raw, None, layer, logits, head, None, getattr(output, "attention_logits", None))


def soft_masks(request: Request) -> RawMaps:
    """The mean over channels of an attention module's soft mask (Residual Attention Network). Class-agnostic."""
    name = choose_mask(request.model, request.layer)
    masks, output = read_masks(request.model, request.images, [name])
    logits = class_scores(output)
    head, wanted = choose_head(request.model, request.target, logits)
    resolve_target(head_logits(logits, head), wanted, head_class_names(request.model, head))
    raw, layer, value_range = masks[name]
    layer += " (auto: the last attention module)" if request.layer == "auto" else ""
    return RawMaps(raw, None, layer, logits, head, value_range, getattr(output, "attention_logits", None))


def attribution(compute: Callable[[nn.Module, Tensor, Tensor, str | None], tuple[Tensor, str]]) -> Method:
    """Return the method that attributes a class score to pixels."""

    def method(request: Request) -> RawMaps:
        _no_layer(request)
        with torch.no_grad():
            output = request.model(request.images)
        logits = class_scores(output)
        head, wanted = choose_head(request.model, request.target, logits)
        names = head_class_names(request.model, head)
        classes = resolve_target(head_logits(logits, head), wanted, names, several=True)
        images = request.images.expand(len(classes), -1, -1, -1)
        raw, layer = compute(request.model, images, classes, head)
        return RawMaps(raw, classes, layer, logits, head, None, getattr(output, "attention_logits", None))

    return method


def random(request: Request) -> RawMaps:
    """Control: uniform noise at the input's size, from `seed`; its maximum is any pixel with equal chance.

    Noise on a coarser grid would not do: bilinear upsampling puts its maximum at the border more often than not.
    """
    images, generator = request.images, torch.Generator().manual_seed(request.seed)
    maps = random_maps(len(images), images.shape[-2], images.shape[-1], generator)
    return _control(maps, f"none: control, uniform noise per pixel, seed {request.seed}", request)


def center(request: Request) -> RawMaps:
    """Control: a Gaussian at the middle of the image, sigma = 0.25 of each side."""
    maps = center_maps(len(request.images), request.images.shape[-2], request.images.shape[-1])
    return _control(maps, f"none: control, centred Gaussian, sigma {CENTER_SIGMA} of the side", request)


def constant(request: Request) -> RawMaps:
    """Control: 0.5 everywhere."""
    maps = constant_maps(len(request.images), request.images.shape[-2], request.images.shape[-1])
    return _control(maps, "none: control, 0.5 everywhere", request)


METHODS: dict[str, Method] = {
    "attention": attention,
    "attention-class": attention_class,
    "cam": cam,
    **{name: gradient_cam(formula) for name, formula in GRADIENT_CAMS.items()},
    "filters": filters,
    "rollout": attention_rollout,
    "soft-masks": soft_masks,
    "integrated-gradients": attribution(integrated_gradients),
    "occlusion": attribution(occlusion),
    "random": random,
    "center": center,
    "constant": constant,
}

LAYERED = ("cam", *GRADIENT_CAMS, "filters")
"""The methods that read any layer of any network; "soft-masks" takes `layer` too, for one of its own modules."""

CLASS_AGNOSTIC = ("attention", "rollout", "soft-masks", *CONTROLS)
"""The methods whose map is the same whatever the class."""


def _of_pass(done: Any, raw: Tensor) -> RawMaps:
    detached = done.logits
    detached = (
        detached.detach() if isinstance(detached, Tensor) else {name: part.detach() for name, part in detached.items()}
    )
    layer = done.layer.described((raw.shape[-2], raw.shape[-1]))
    second = getattr(done.output, "attention_logits", None)
    return RawMaps(raw.detach(), done.classes, layer, detached, done.head, None, second)


def _control(maps: Tensor, layer: str, request: Request) -> RawMaps:
    _no_layer(request)
    with torch.no_grad():
        output = request.model(request.images)
    logits = class_scores(output)
    if request.target is not None:
        head, wanted = choose_head(request.model, request.target, logits)
        resolve_target(head_logits(logits, head), wanted, head_class_names(request.model, head))
    second = getattr(output, "attention_logits", None)
    return RawMaps(maps.to(request.images.device), None, layer, logits, None, (0.0, 1.0), second)


def layer_for(method: str, layer: str) -> str:
    """Return the layer to ask a method of several for: the one that was named, "auto" of those that read none."""
    return layer if method in LAYERED else "auto"


def _no_layer(request: Request) -> None:
    if request.layer != "auto":
        raise UserError(f"layer is for {', '.join(LAYERED)}, soft-masks; this method reads none: leave it out.")


def _needs_branch(model: nn.Module, what: str) -> None:
    if not getattr(model, "is_abn", False):
        name = getattr(model, "name", type(model).__name__)
        free = [method for method in METHODS if not method.startswith("attention")]
        raise UserError(
            f"'{name}' is a plain network without an attention branch, so it has no {what}: "
            f"build it with create_model instead of create_backbone, or use a method that needs no branch "
            f"({', '.join(free)})."
        )
