"""Attention roll-out of vision transformers: how much each patch reaches the class token through all layers."""

from typing import Any

import torch
from torch import Tensor, nn

from attention_branch.errors import UserError
from attention_branch.explanations.layers import token_grid, trunk


def rollout(model: nn.Module, images: Tensor) -> tuple[Tensor, Any, str]:
    """Return maps (N, h, w), what the model answered, and how many layers were rolled out.

    The product over layers of (W + I) / 2, W the attention averaged over heads (Abnar and Zuidema, ACL 2020, section
    3); the class token's row over the patches, or the mean over all patches' rows where there is no class token.
    Raises `UserError` for a network without global self-attention.
    """
    root, _ = trunk(model)
    joint: Tensor | None = None
    layers = 0

    def take(weights: Tensor) -> None:
        nonlocal joint, layers
        if weights.ndim != 4 or weights.shape[0] != len(images) or weights.shape[2] != weights.shape[3]:
            raise UserError(
                f"'{_name(model)}' attends within windows, to a reduced set of tokens or once for each head's map, so "
                "its attention cannot be rolled out; use grad-cam."
            )
        mean = weights.detach().mean(1)
        mean = mean if mean.dtype == torch.float64 else mean.float()
        step = (mean + torch.eye(mean.shape[-1], device=mean.device, dtype=mean.dtype)) / 2
        joint = step if joint is None else step @ joint
        layers += 1

    handles, fused = [], []
    for module in root.modules():
        if isinstance(module, nn.MultiheadAttention):
            handles.append(module.register_forward_pre_hook(_ask_for_weights, with_kwargs=True))
            handles.append(module.register_forward_hook(lambda _module, _inputs, output: take(output[1])))
            continue
        dropout = getattr(module, "attn_drop", None)
        if isinstance(dropout, nn.Module) and hasattr(module, "fused_attn"):
            # timm's attention: its plain path, equal to the fused one, passes the weights through its dropout.
            fused.append((module, module.fused_attn))
            handles.append(dropout.register_forward_hook(lambda _module, _inputs, output: take(output)))
    try:
        for module, _ in fused:
            module.fused_attn = False  # type: ignore[assignment]
        output = model(images)
    finally:
        for module, was in fused:
            module.fused_attn = was
        for handle in handles:
            handle.remove()
    if joint is None:
        raise UserError(f"'{_name(model)}' has no self-attention to roll out; use grad-cam.")
    height, width = images.shape[-2:]
    prefix, size = token_grid(joint.shape[-1], root, height, width)
    # timm's networks with registers but no class token say so by an empty cls_token.
    classless = prefix == 0 or getattr(root, "cls_token", prefix) is None
    row = joint[:, prefix:, prefix:].mean(1) if classless else joint[:, 0, prefix:]
    return row.unflatten(1, size), output, f"attention of {layers} layers, rolled out (class-agnostic)"


def _ask_for_weights(_module: nn.Module, inputs: Any, options: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    # What a caller gives by position after these four would be given twice.
    by_name = dict(zip(("need_weights", "attn_mask", "average_attn_weights", "is_causal"), inputs[4:], strict=False))
    return inputs[:4], by_name | options | {"need_weights": True, "average_attn_weights": False}


def _name(model: nn.Module) -> str:
    return str(getattr(model, "name", type(model).__name__))
