"""Residual Attention Networks (Wang et al., CVPR 2017, arXiv 1704.06904), with timm's interface.

An attention module runs its features through a trunk, F, and through a mask branch that pools them down, looks at the
whole picture and comes up again to a soft mask M of F's own shape; it hands on (1 + M) F ("residual") or M F ("naive").

The ImageNet networks follow the authors' prototxt files (github.com/fwang91/residual-attention-network): pre-activation
bottlenecks, or ResNeXt's 32x4d units in AttentionNeXt. Depth counts the trunk: 12 layers a module and 20 around them.
For CIFAR no file was published. Depth 36m + 20 and residual units of He et al. are the paper's; the widths 64, 128 and
256 and the masks of 3, 2 and 1 poolings are our reading: for ten classes they give 1.96 and 5.20 million
parameters where the paper states 1.9 and 5.1 for 92 and 236 layers. For 452 they give 10.07, the paper 8.6: its three
numbers do not lie on one line in m, as those of equal modules must, so no widths give them all.

Where ours differs from the files: poolings are padded (so that any picture size works), and a mask comes up to the size
of what it meets. Their `Interp` layer is taken to align corners, as in the Caffe branch it comes from.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from attention_branch.errors import UserError
from attention_branch.models.preprocessing import IMAGENET_MEAN, IMAGENET_STD
from attention_branch.models.small import CIFAR_MEAN, CIFAR_STD, ResidualBlock, conv1x1, conv3x3, scaled

LEARNING = ("residual", "naive")
MASKS = ("mixed", "channel", "spatial")

MakeUnit = Callable[[int, int, int], nn.Module]


class PreActivationUnit(nn.Module):
    """BN, ReLU, 1x1; BN, ReLU, 3x3 (with the stride); BN, ReLU, 1x1 to four times the width (1603.05027)."""

    def __init__(self, inputs: int, outputs: int, stride: int = 1) -> None:
        super().__init__()
        width = outputs // 4
        self.norm = nn.BatchNorm2d(inputs)
        self.convolutions = nn.Sequential(
            conv1x1(inputs, width), nn.BatchNorm2d(width), nn.ReLU(),
            conv3x3(width, width, stride), nn.BatchNorm2d(width), nn.ReLU(),
            conv1x1(width, outputs),
        )  # fmt: skip
        self.projection = None if stride == 1 and inputs == outputs else conv1x1(inputs, outputs, stride)

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, C, H, W) to (N, C', H/stride, W/stride)."""
        activated = F.relu(self.norm(x))
        # A projection starts from the activated input, an identity shortcut from the raw one.
        shortcut = x if self.projection is None else self.projection(activated)
        return shortcut + self.convolutions(activated)


def next_unit(inputs: int, outputs: int, stride: int = 1) -> ResidualBlock:
    """Return ResNeXt's unit of 32 groups: 1x1 to half the output, grouped 3x3 (with the stride), 1x1, then ReLU."""
    width = outputs // 2
    layers = nn.Sequential(
        conv1x1(inputs, width), nn.BatchNorm2d(width), nn.ReLU(),
        conv3x3(width, width, stride, groups=32), nn.BatchNorm2d(width), nn.ReLU(),
        conv1x1(width, outputs), nn.BatchNorm2d(outputs),
    )  # fmt: skip
    return ResidualBlock(inputs, outputs, stride, layers)


class SoftMask(nn.Module):
    """The mask branch: features (N, C, h, w) to a soft mask M (N, C, h, w).

    `poolings` times a max pooling and a residual unit (two at the bottom), then up again bilinearly, a unit at each
    step, with what was there on the way down added through a unit of its own; two 1x1 convolutions to the scores x.
    M is sigmoid(x) for "mixed" (the paper's choice); x over its norm across channels for "channel", in [-1, 1]; for
    "spatial" the sigmoid of x standardised over positions, channel by channel.
    """

    def __init__(self, channels: int, poolings: int, make_unit: MakeUnit, kind: str, preactivated: bool) -> None:
        super().__init__()
        self.kind = kind
        self.down = nn.ModuleList(make_unit(channels, channels, 1) for _ in range(poolings))
        self.bottom = make_unit(channels, channels, 1)
        self.skips = nn.ModuleList(make_unit(channels, channels, 1) for _ in range(poolings - 1))
        self.up = nn.ModuleList(make_unit(channels, channels, 1) for _ in range(poolings - 1))
        self.scores = nn.Sequential(
            *([nn.BatchNorm2d(channels), nn.ReLU()] if preactivated else []),
            conv1x1(channels, channels), nn.BatchNorm2d(channels), nn.ReLU(),
            conv1x1(channels, channels),
        )  # fmt: skip

    @property
    def value_range(self) -> tuple[float, float]:
        """The values a mask can have."""
        return (-1.0, 1.0) if self.kind == "channel" else (0.0, 1.0)

    def forward(self, features: Tensor) -> Tensor:
        """Return M (N, C, h, w) of features (N, C, h, w)."""
        x, passed = features, []
        for unit in self.down:
            x = unit(F.max_pool2d(x, 3, 2, 1))
            passed.append(x)
        x = self.bottom(x)
        for unit, skip, there in zip(self.up, self.skips, reversed(passed[:-1]), strict=True):
            x = unit(skip(there) + _raised(x, there))
        x = self.scores(_raised(x, features))
        if self.kind == "channel":
            return F.normalize(x, dim=1)
        if self.kind == "spatial":
            # Not F.instance_norm, which refuses a single position in training.
            variance, mean = torch.var_mean(x, (2, 3), correction=0, keepdim=True)
            x = (x - mean) * (variance + 1e-5).rsqrt()
        return torch.sigmoid(x)


def _raised(x: Tensor, like: Tensor) -> Tensor:
    return F.interpolate(x, size=like.shape[-2:], mode="bilinear", align_corners=True)


class AttentionModule(nn.Module):
    """A residual unit, then (1 + M) F of its trunk F (two units) and its mask M, then a residual unit."""

    def __init__(
        self, channels: int, poolings: int, make_unit: MakeUnit, attention: str, mask: str, preactivated: bool
    ) -> None:
        super().__init__()
        self.attention = attention
        self.first = make_unit(channels, channels, 1)
        self.trunk = nn.Sequential(make_unit(channels, channels, 1), make_unit(channels, channels, 1))
        self.mask = SoftMask(channels, poolings, make_unit, mask, preactivated)
        self.last = make_unit(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, C, h, w) to the same shape."""
        x = self.first(x)
        features, mask = self.trunk(x), self.mask(x)
        return self.last(features + features * mask if self.attention == "residual" else features * mask)


@dataclass(frozen=True)
class Plan:
    """What tells one network from another: its stages' widths and modules, its units, and the size of its pictures."""

    modules: tuple[int, int, int]
    """Attention modules of the three stages."""
    cifar: bool = False
    """Whether it starts with a 3x3 convolution at full size and ends with three units of the third stage's width."""
    grouped: bool = False
    """Whether its units are ResNeXt's."""


class ResidualAttentionNetwork(nn.Module):
    """Three stages of a residual unit and attention modules, then three residual units, pooling and a linear layer.

    `attention` is "residual", (1 + M) F, or "naive", M F. `mask` is the mask's last activation (`SoftMask`). `width` is
    a factor on the channels. Raises `UserError` for other values.
    """

    layer1: nn.Sequential
    layer2: nn.Sequential
    layer3: nn.Sequential

    def __init__(
        self,
        plan: Plan,
        num_classes: int,
        *,
        attention: str = "residual",
        mask: str = "mixed",
        width: float = 1.0,
        drop_rate: float = 0.0,
    ) -> None:
        super().__init__()
        if attention not in LEARNING:
            raise UserError(f"Unknown attention '{attention}'; use one of {', '.join(LEARNING)}.")
        if mask not in MASKS:
            raise UserError(f"Unknown mask '{mask}'; use one of {', '.join(MASKS)}.")
        make_unit: MakeUnit = next_unit if plan.grouped else PreActivationUnit
        # Multiples of what the units divide: a quarter's width, or half of it in 32 groups.
        least = 64 if plan.grouped else 4
        base = least * scaled((64 if plan.cifar else 256) // least, width)
        stem = scaled(16 if plan.cifar else 64, width)
        self.stem = (
            conv3x3(3, stem)
            if plan.cifar
            else nn.Sequential(
                nn.Conv2d(3, stem, 7, 2, 3, bias=False), nn.BatchNorm2d(stem), nn.ReLU(), nn.MaxPool2d(3, 2, 1)
            )
        )
        reduction, inputs = (1 if plan.cifar else 4), stem
        self.feature_info: list[dict[str, Any]] = []
        for number, count in enumerate(plan.modules, start=1):
            channels, stride = base * 2 ** (number - 1), 1 if number == 1 else 2
            parts = [make_unit(inputs, channels, stride)]
            for _ in range(count):
                parts.append(AttentionModule(channels, 4 - number, make_unit, attention, mask, not plan.grouped))
            self.add_module(f"layer{number}", nn.Sequential(*parts))
            reduction, inputs = reduction * stride, channels
            self.feature_info.append({"module": f"layer{number}", "num_chs": channels, "reduction": reduction})
        channels, stride = (inputs, 1) if plan.cifar else (2 * inputs, 2)
        self.layer4 = nn.Sequential(
            make_unit(inputs, channels, stride), make_unit(channels, channels, 1), make_unit(channels, channels, 1)
        )
        self.feature_info.append({"module": "layer4", "num_chs": channels, "reduction": reduction * stride})
        self.norm = nn.Identity() if plan.grouped else nn.Sequential(nn.BatchNorm2d(channels), nn.ReLU())
        self.num_features, self.num_classes = channels, num_classes
        self.head_drop = nn.Dropout(drop_rate)
        self.fc = nn.Linear(channels, num_classes)
        self.pretrained_cfg = self.default_cfg = {
            "input_size": (3, 32, 32) if plan.cifar else (3, 224, 224),
            "mean": CIFAR_MEAN if plan.cifar else IMAGENET_MEAN,
            "std": CIFAR_STD if plan.cifar else IMAGENET_STD,
            "crop_pct": 1.0 if plan.cifar else 0.875,
            "interpolation": "bicubic",
            "crop_mode": "squash" if plan.cifar else "center",
            "fixed_input_size": False,
        }
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward_features(self, images: Tensor) -> Tensor:
        """Return the last features (N, C, h, w) of images (N, 3, H, W); h is H/32, of the CIFAR networks H/4."""
        x = self.layer3(self.layer2(self.layer1(self.stem(images))))
        return self.norm(self.layer4(x))

    def forward_head(self, features: Tensor, pre_logits: bool = False) -> Tensor:
        """Return logits (N, K), or the pooled features (N, C) when `pre_logits`."""
        pooled = self.head_drop(features.mean((2, 3)))
        return pooled if pre_logits else self.fc(pooled)

    def forward(self, images: Tensor) -> Tensor:
        """Return logits (N, K) of images (N, 3, H, W)."""
        return self.forward_head(self.forward_features(images))


RESIDUAL_ATTENTION: dict[str, Plan] = {
    "attention56": Plan((1, 1, 1)),
    "attention92": Plan((1, 2, 3)),
    "attentionnext56": Plan((1, 1, 1), grouped=True),
    # 36 m + 20 layers, m modules a stage.
    **{f"attention{depth}_cifar": Plan(((depth - 20) // 36,) * 3, cifar=True) for depth in (56, 92, 236, 452)},
}


def create_residual_attention(name: str, num_classes: int, **options: Any) -> ResidualAttentionNetwork:
    """Build one of the networks in `RESIDUAL_ATTENTION`; options: `attention`, `mask`, `width`, `drop_rate`."""
    return ResidualAttentionNetwork(RESIDUAL_ATTENTION[name], num_classes, **options)
