"""`explain`, the one call for every kind of map."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn

from attention_branch.errors import UserError, did_you_mean
from attention_branch.explanations.methods import METHODS, Request
from attention_branch.explanations.outputs import (
    checked_images,
    device_of,
    eager,
    evaluating,
    preprocessing_of,
    unwrapped,
)
from attention_branch.explanations.resizing import upsample
from attention_branch.explanations.result import Explanation
from attention_branch.explanations.targets import Target, head_class_names


def explain(
    model: nn.Module | Callable[[Tensor], Any],
    images: Tensor | Image.Image | Sequence[Image.Image],
    method: str = "attention",
    target: Target = None,
    *,
    layer: str | nn.Module = "auto",
    seed: int = 0,
) -> Explanation:
    """Explain a batch of normalised images (N, 3, H, W), or pictures that the model's preprocessing makes so.

    Any classifier will do: one of ours, timm's, torchvision's, a module or a function that returns a tensor, tuple
    or dict. Methods: "attention" (the network's own map M; class-agnostic) and "attention-class" (its branch's evidence
    for a class), for networks with an attention branch; "cam", "grad-cam", "grad-cam++", "hires-cam", "layer-cam" (read
    a `layer`); "filters" (the one filter of a `layer` that adds most to the class's score); "rollout" (vision
    transformers; class-agnostic); "soft-masks" (Residual Attention Networks; reads an attention module, the last or
    `layer`; class-agnostic); "integrated-gradients" and "occlusion" (need captum); the controls "random" (from `seed`),
    "center" (Gaussian, sigma 0.25 of the side) and "constant".
    `target`: None is the prediction; an index, a class name, one of these per image, a callable from logits to indices;
    with several heads a head's name or {head: class}. Several classes of one image give as many maps from one forward
    pass. `layer`: a module's name or the module; "auto" chooses, and `Explanation.layer` says what and why.
    The model is run in eval mode, once, eagerly, and left as it was: no hook, gradient or other state stays.
    Raises `UserError` for an unknown method, class, head or layer, and where the model has no such map.
    """
    compute = METHODS.get(method) if isinstance(method, str) else None
    if compute is None:
        hint = did_you_mean(str(method), METHODS)
        raise UserError(f"Unknown method '{method}'.{hint} Methods: {', '.join(METHODS)}.")
    network = unwrapped(model)
    # A caller's inference mode or no_grad must not reach the graph that some methods need.
    with torch.inference_mode(False), eager(), evaluating(network, warn=True):
        batch = as_batch(network, images)
        result = compute(Request(network, batch, target, layer, seed))
    raw = result.raw.float() if result.raw.dtype in (torch.float16, torch.bfloat16) else result.raw
    if not torch.isfinite(raw).all():
        raise UserError(
            f"'{method}' yields NaN or infinite values for this network: its activations or scores overflow."
        )
    return Explanation(
        maps=upsample(raw, batch.shape[-2], batch.shape[-1]),
        raw=raw,
        target=result.target,
        method=method,
        layer=result.layer,
        logits=_for_each(result.logits, len(raw)),
        images=denormalized(network, batch).expand(len(raw), -1, -1, -1),
        value_range=result.value_range,
        head=result.head,
        class_names=head_class_names(network, result.head),
        attention_logits=_for_each(result.attention_logits, len(raw)),
        filters=result.filters,
    )


def _for_each(scores: Any, count: int) -> Any:
    """Repeat one image's scores (1, K) for each of its maps."""
    if isinstance(scores, Mapping):
        return {name: _for_each(part, count) for name, part in scores.items()}
    return scores.expand(count, -1) if isinstance(scores, Tensor) and len(scores) != count else scores


def as_batch(model: nn.Module, images: Tensor | Image.Image | Sequence[Image.Image]) -> Tensor:
    """Return images as a normalised batch (N, 3, H, W) on the model's device; `UserError` for what is no image."""
    if not isinstance(images, Tensor):
        pictures = list(images) if isinstance(images, Sequence) and not isinstance(images, str) else [images]
        if not all(isinstance(picture, Image.Image) for picture in pictures) or not pictures:
            raise UserError("images must be a normalised float tensor (N, 3, H, W), or pictures opened with Pillow.")
        preprocessing = preprocessing_of(model)
        if preprocessing is None:
            raise UserError(
                "This network does not say how pictures are prepared for it (only networks of this package do); "
                "give a normalised float tensor (N, 3, H, W)."
            )
        images = torch.stack([preprocessing.tensor(picture.convert("RGB")) for picture in pictures])
        images = images.to(next((p.dtype for p in model.parameters() if p.is_floating_point()), images.dtype))
    images = checked_images(images)
    if len(images) == 0:
        raise UserError("There is no image to explain; give one or more.")
    device = device_of(model)
    batch = images if device is None else images.to(device)
    # What was made in inference mode cannot be part of a graph.
    return batch.clone() if batch.is_inference() else batch


def denormalized(model: nn.Module, batch: Tensor) -> Tensor:
    """Return a batch as pictures in [0, 1], by the model's preprocessing or stretched where it has none."""
    preprocessing = preprocessing_of(model)
    if preprocessing is not None and batch.shape[1] == 3:
        return preprocessing.denormalize(batch.float())
    low, high = batch.float().amin((1, 2, 3), keepdim=True), batch.float().amax((1, 2, 3), keepdim=True)
    return (batch.float() - low) / (high - low).clamp_min(1e-12)
