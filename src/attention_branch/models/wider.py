"""Plain networks of a family, only wider: the controls that cost what a network with an attention branch costs.

A branch adds parameters and multiply-adds (a ResNet-20 with the paper's branch has 1.8 times the parameters and 2.4
times the multiply-adds). Whether the attention helps, or only the extra cost, is told by a plain network of equal cost.
"""

from collections.abc import Callable
from typing import Any

import torch
from timm.models.densenet import DenseNet
from timm.models.resnet import ResNet
from timm.models.vgg import VGG

from attention_branch.errors import UserError
from attention_branch.models.cost import cost
from attention_branch.models.network import PlainNetwork
from attention_branch.models.registry import create_backbone
from attention_branch.models.residual_attention import ResidualAttentionNetwork
from attention_branch.models.small import SmallNetwork
from attention_branch.models.vgg import vgg_channels

# Factors on the channels are searched in steps of 1/2000: finer than one channel of any layer of these families.
_STEPS = 2000
_LARGEST = 16
_TOLERANCE = 0.1


def wider_backbone(
    name: str,
    num_classes: int | None = None,
    *,
    parameters: int | None = None,
    multiply_adds: int | None = None,
    image_size: int | tuple[int, int] | None = None,
    heads: dict[str, int] | None = None,
    **options: Any,
) -> dict[str, Any]:
    """Return backbone options of the plain network `name`, scaled in width, that comes nearest to a target.

    The target is either a count of `parameters` or of the `multiply_adds` of one image (as `cost` counts them, at
    `image_size` or the network's own size). All channels are scaled by one factor and rounded; depth, groups and
    strides stay. `create_backbone(name, num_classes, **result)` builds the network; the values are plain, for
    config.json. Raises `UserError` for a family whose width is no option, and for a target that no width comes within
    10 % of.
    """
    if (parameters is None) == (multiply_adds is None):
        raise UserError("Give either parameters or multiply_adds as the target of a wider network.")
    target = int(parameters if parameters is not None else multiply_adds or 0)
    unit = "parameters" if parameters is not None else "multiply-adds"
    if target < 1:
        raise UserError(f"The target is {target} {unit}; give a count above 0.")

    def build(chosen: dict[str, Any]) -> PlainNetwork:
        # Without storage: only shapes are needed, and a wide VGG would fill gigabytes.
        with torch.device("meta"):
            return create_backbone(name, num_classes, heads=heads, image_size=image_size, **chosen)

    widened = _widening(name, build(options).backbone, options)
    counts: dict[int, int] = {}
    multiplied: dict[int, int] = {}

    def count(step: int) -> int:
        if step not in counts:
            network = build(widened(step / _STEPS))
            counts[step] = size = sum(parameter.numel() for parameter in network.parameters())
            if unit != "parameters":
                # Of networks that differ in width alone, those of as many parameters are the same.
                if size not in multiplied:
                    multiplied[size] = cost(network).multiply_adds
                counts[step] = multiplied[size]
        return counts[step]

    step = _nearest(count, target)
    if abs(count(step) - target) > _TOLERANCE * target:
        raise UserError(
            f"No width of '{name}' comes within 10 % of {target:,} {unit}; the nearest has {count(step):,}. Give a "
            "target nearer to the network's own."
        )
    return widened(step / _STEPS)


def _widening(name: str, backbone: Any, options: dict[str, Any]) -> Callable[[float], dict[str, Any]]:
    """Return what turns a factor on the channels into the backbone's options."""
    family = type(backbone)
    if family in (SmallNetwork, ResidualAttentionNetwork):
        width = float(options.get("width", 1.0))
        return lambda factor: {**options, "width": round(factor * width, 6)}
    if family is ResNet:
        expansion = backbone.layer1[0].expansion
        own = [info["num_chs"] // expansion for info in backbone.feature_info[1:]]
    elif family is VGG:
        own = list(options.get("channels") or vgg_channels(name))
    elif family is DenseNet:
        growth = backbone.features.denseblock1.denselayer1.conv2.out_channels
        return lambda factor: {**options, "growth_rate": max(1, round(factor * growth))}
    else:
        raise UserError(
            f"'{name}' ({family.__name__}) has no width to choose; the 32-pixel families, Residual Attention Networks, "
            "timm's ResNet (with ResNeXt, SE-ResNet and Wide ResNet), DenseNet and VGG do."
        )
    return lambda factor: {**options, "channels": [max(1, round(factor * channels)) for channels in own]}


def _nearest(count: Callable[[int], int], target: int) -> int:
    """Return the step whose count, which grows with the step, is nearest to the target."""
    least, most = _STEPS // 8, _LARGEST * _STEPS
    # Counts grow about as the factor squared, so a guess on that curve comes close.
    low = high = min(max(least, round(_STEPS * (target / count(_STEPS)) ** 0.5)), most)
    stride = _STEPS // 256
    while count(low) >= target and low > least:
        low, high, stride = max(least, low - stride), low, 2 * stride
    while count(high) < target and high < most:
        low, high, stride = high, min(most, high + stride), 2 * stride
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if count(middle) < target else (low, middle)
    return min((low, high), key=lambda step: abs(count(step) - target))
