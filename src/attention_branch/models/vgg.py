"""VGG networks that timm does not build: other widths."""

from itertools import pairwise
from typing import Any

import timm
from timm.models.vgg import VGG, cfgs
from torch import nn

from attention_branch.errors import UserError


def is_vgg(name: str) -> bool:
    """Tell whether a timm name, with or without the tag of its weights, is one of the VGG family."""
    return name.split(".")[0] in timm.list_models(module="vgg")


def vgg_channels(name: str) -> list[int]:
    """Return the channels of a VGG's five blocks of convolutions: 64, 128, 256, 512, 512."""
    layers = _layers(name)
    return [int(before) for before, layer in pairwise(layers) if layer == "M"]


def create_wide_vgg(name: str, num_classes: int, channels: list[int], **options: Any) -> VGG:
    """Build a timm VGG whose five blocks of convolutions have other `channels`; 4096 stays the fully connected width.

    Raises `UserError` unless there is one positive number a block.
    """
    usual = vgg_channels(name)
    if len(channels) != len(usual) or min(channels) < 1:
        raise UserError(f"channels is {channels}; '{name}' takes one positive number a block, such as {usual}.")
    layers: list[str | int] = []
    block = 0
    for layer in _layers(name):
        layers.append("M" if layer == "M" else int(channels[block]))
        block += layer == "M"
    norm = nn.BatchNorm2d if name.split(".")[0].endswith("_bn") else None
    network = VGG(layers, num_classes=num_classes, norm_layer=norm, **options)
    config = timm.get_pretrained_cfg(name)
    assert config is not None
    network.pretrained_cfg = network.default_cfg = config.to_dict()
    return network


def _layers(name: str) -> list[str | int]:
    return cfgs[name.split(".")[0].split("_")[0]]
