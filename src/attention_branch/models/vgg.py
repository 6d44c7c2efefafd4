"""VGG networks that timm does not build: other widths, and the ones class activation maps were introduced with."""

from itertools import pairwise
from typing import Any

import timm
from timm.models.vgg import VGG, cfgs
from torch import Tensor, nn

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


CAM_NETWORKS = tuple(f"{name}_cam" for name in ("vgg16", "vgg16_bn", "vgg19", "vgg19_bn"))
CAM_UNITS = 1024


class VggCam(nn.Module):
    """CAM's VGG (Zhou et al., CVPR 2016, arXiv 1512.04150, section 3), with timm's interface.

    What follows the last block of convolutions of a VGG, its pooling and the fully connected layers, is replaced by a
    3x3 convolution of 1024 units, global average pooling and one linear layer. As in the authors' released network the
    convolution has two groups and dropout stands before the linear layer. With batch norm (`norm`) there is one behind
    the new convolution as behind every other, which is our reading.
    """

    def __init__(
        self,
        features: nn.Sequential,
        feature_info: list[dict[str, Any]],
        num_classes: int,
        *,
        norm: bool,
        drop_rate: float = 0.5,
    ) -> None:
        super().__init__()
        self.features = features
        convolution = nn.Conv2d(feature_info[-1]["num_chs"], CAM_UNITS, 3, padding=1, groups=2)
        self.cam = nn.Sequential(convolution, *([nn.BatchNorm2d(CAM_UNITS)] if norm else []), nn.ReLU())
        self.feature_info = [
            *feature_info,
            {"module": "cam", "num_chs": CAM_UNITS, "reduction": feature_info[-1]["reduction"]},
        ]
        self.num_features = CAM_UNITS
        self.num_classes = num_classes
        self.head_drop = nn.Dropout(drop_rate)
        self.fc = nn.Linear(CAM_UNITS, num_classes)
        # As timm draws a VGG's own layers.
        nn.init.kaiming_normal_(convolution.weight, mode="fan_out", nonlinearity="relu")
        nn.init.normal_(self.fc.weight, 0, 0.01)
        for layer in (convolution, self.fc):
            assert layer.bias is not None
            nn.init.zeros_(layer.bias)

    def forward_features(self, images: Tensor) -> Tensor:
        """Return the new convolution's output (N, 1024, H/16, W/16) of images (N, 3, H, W)."""
        return self.cam(self.features(images))

    def forward_head(self, features: Tensor, pre_logits: bool = False) -> Tensor:
        """Return logits (N, K), or the pooled features (N, 1024) when `pre_logits`."""
        pooled = self.head_drop(features.mean((2, 3)))
        return pooled if pre_logits else self.fc(pooled)

    def forward(self, images: Tensor) -> Tensor:
        """Return logits (N, K) of images (N, 3, H, W)."""
        return self.forward_head(self.forward_features(images))


def create_cam(
    name: str,
    num_classes: int,
    pretrained: bool = False,
    *,
    drop_rate: float = 0.5,
    pretrained_cfg_overlay: dict[str, Any] | None = None,
) -> VggCam:
    """Build one of the networks in `CAM_NETWORKS`; `pretrained` takes the convolutions' weights of timm's VGG.

    The new convolution and the linear layer start at random either way.
    """
    base = name.removesuffix("_cam")
    norm = base.endswith("_bn")
    if pretrained:
        overlay = {"pretrained_cfg_overlay": pretrained_cfg_overlay} if pretrained_cfg_overlay else {}
        source: Any = timm.create_model(base, pretrained=True, num_classes=0, **overlay)
    else:
        # The fully connected layers are thrown away, so they get a single unit in the place of 4096.
        source = VGG(_layers(base), norm_layer=nn.BatchNorm2d if norm else None, mlp_ratio=1 / 4096)
    network = VggCam(source.features[:-1], source.feature_info[:-1], num_classes, norm=norm, drop_rate=drop_rate)
    config = timm.get_pretrained_cfg(base)
    assert config is not None
    network.pretrained_cfg = network.default_cfg = config.to_dict() | {"pool_size": (14, 14), "classifier": "fc"}
    return network


def _layers(name: str) -> list[str | int]:
    return cfgs[name.split(".")[0].split("_")[0]]
