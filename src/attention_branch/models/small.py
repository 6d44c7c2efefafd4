"""The families for 32-pixel images (CIFAR, SVHN) that timm does not have, with timm's own interface.

Every network here has `feature_info`, `forward_features`, `forward_head`, `num_features` and `default_cfg` as a timm
model has them, so the rest of the package treats both alike. All pool globally, hence take any input size.

Depths: ResNet of basic blocks 6n+2 and of bottlenecks 9n+2 (He et al. 2016, arXiv 1512.03385, section 4.2); Wide
ResNet-28-10 (Zagoruyko & Komodakis 2016, 1605.07146); DenseNet-BC-100-12 (Huang et al. 2017, 1608.06993); ResNeXt-29
8x64d (Xie et al. 2017, 1611.05431). Shortcuts that change the shape are 1x1 projections, as in the code that the
published ABN numbers come from.

Every family takes `width`, a factor on its channels: 1 is the published network, and a wider one is the plain control
of equal size for a network with a branch (`wider.py` finds the factor).
"""

import math
from collections import OrderedDict
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from attention_branch.errors import UserError

# Mean and std of CIFAR-10's training pixels, the values the authors use for both CIFAR sets.
CIFAR_MEAN = (0.4914, 0.4822, 0.4465)
CIFAR_STD = (0.2023, 0.1994, 0.2010)


def scaled(channels: int, width: float) -> int:
    """Return `width` times as many channels, rounded, at least one; raise `UserError` for a factor that is not > 0."""
    if not 0 < width < math.inf:
        raise UserError(f"width is {width}; it is a factor on the channels and must be above 0.")
    return max(1, round(width * channels))


def conv3x3(inputs: int, outputs: int, stride: int = 1, groups: int = 1) -> nn.Conv2d:
    """Return a 3x3 convolution without bias that keeps the size at stride 1."""
    return nn.Conv2d(inputs, outputs, 3, stride, 1, groups=groups, bias=False)


def conv1x1(inputs: int, outputs: int, stride: int = 1) -> nn.Conv2d:
    """Return a 1x1 convolution without bias."""
    return nn.Conv2d(inputs, outputs, 1, stride, bias=False)


class SmallNetwork(nn.Module):
    """What the 32-pixel families share: timm's interface around `stem`, three stages and an optional last norm."""

    def __init__(
        self,
        stem: nn.Module,
        stages: list[tuple[str, nn.Module, int]],
        norm: nn.Module,
        num_classes: int,
        drop_rate: float = 0.0,
        init: str = "fan_out",
    ) -> None:
        super().__init__()
        self.stem = stem
        self.feature_info = []
        reduction = 1
        for name, stage, channels in stages:
            self.add_module(name, stage)
            self.feature_info.append({"module": name, "num_chs": channels, "reduction": reduction})
            reduction *= 2
        self.stage_names = [name for name, _, _ in stages]
        self.norm = norm
        self.num_features = stages[-1][2]
        self.num_classes = num_classes
        self.head_drop = nn.Dropout(drop_rate)
        self.fc = nn.Linear(self.num_features, num_classes)
        self.pretrained_cfg = self.default_cfg = {
            "input_size": (3, 32, 32),
            "mean": CIFAR_MEAN,
            "std": CIFAR_STD,
            "crop_pct": 1.0,
            "interpolation": "bicubic",
            "crop_mode": "squash",
            "fixed_input_size": False,
        }
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
                if init == "area":
                    # The authors' N(0, sqrt(2 / (k * k * out))) counts all output channels, groups or not.
                    fan = module.kernel_size[0] * module.kernel_size[1] * module.out_channels
                    nn.init.normal_(module.weight, 0, math.sqrt(2 / fan))

    def forward_features(self, images: Tensor) -> Tensor:
        """Return the last stage's features (N, C, H/4, W/4) of images (N, 3, H, W)."""
        x = self.stem(images)
        for name in self.stage_names:
            x = getattr(self, name)(x)
        return self.norm(x)

    def forward_head(self, features: Tensor, pre_logits: bool = False) -> Tensor:
        """Return logits (N, K), or the pooled features (N, C) when `pre_logits`."""
        pooled = self.head_drop(features.mean((2, 3)))
        return pooled if pre_logits else self.fc(pooled)

    def forward(self, images: Tensor) -> Tensor:
        """Return logits (N, K) of images (N, 3, H, W)."""
        return self.forward_head(self.forward_features(images))


class ResidualBlock(nn.Module):
    """A post-activation residual block: `convolutions`, plus the shortcut, then ReLU."""

    def __init__(self, inputs: int, outputs: int, stride: int, convolutions: nn.Module) -> None:
        super().__init__()
        self.convolutions = convolutions
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or inputs != outputs:
            self.shortcut = nn.Sequential(conv1x1(inputs, outputs, stride), nn.BatchNorm2d(outputs))

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, C, H, W) to (N, C', H/stride, W/stride)."""
        return F.relu(self.convolutions(x) + self.shortcut(x))


def basic_block(inputs: int, width: int, stride: int) -> ResidualBlock:
    """Two 3x3 convolutions."""
    layers = nn.Sequential(
        conv3x3(inputs, width, stride), nn.BatchNorm2d(width), nn.ReLU(),
        conv3x3(width, width), nn.BatchNorm2d(width),
    )  # fmt: skip
    return ResidualBlock(inputs, width, stride, layers)


def bottleneck_block(inputs: int, width: int, stride: int) -> ResidualBlock:
    """1x1, 3x3 (with the stride) and 1x1 to four times the width."""
    layers = nn.Sequential(
        conv1x1(inputs, width), nn.BatchNorm2d(width), nn.ReLU(),
        conv3x3(width, width, stride), nn.BatchNorm2d(width), nn.ReLU(),
        conv1x1(width, 4 * width), nn.BatchNorm2d(4 * width),
    )  # fmt: skip
    return ResidualBlock(inputs, 4 * width, stride, layers)


def resnext_block(inputs: int, outputs: int, stride: int, cardinality: int = 8) -> ResidualBlock:
    """1x1, grouped 3x3 (with the stride) and 1x1; a group is a quarter as wide as the output (64, 128, 256)."""
    width = cardinality * max(1, outputs // 4)
    layers = nn.Sequential(
        conv1x1(inputs, width), nn.BatchNorm2d(width), nn.ReLU(),
        conv3x3(width, width, stride, groups=cardinality), nn.BatchNorm2d(width), nn.ReLU(),
        conv1x1(width, outputs), nn.BatchNorm2d(outputs),
    )  # fmt: skip
    return ResidualBlock(inputs, outputs, stride, layers)


def residual_stages(
    block: Callable[[int, int, int], ResidualBlock], count: int, inputs: int, widths: list[int], expansion: int
) -> list[tuple[str, nn.Module, int]]:
    """Return three stages of `count` blocks; the second and third halve the resolution."""
    stages: list[tuple[str, nn.Module, int]] = []
    for number, width in enumerate(widths, start=1):
        blocks = []
        for position in range(count):
            blocks.append(block(inputs, width, 2 if number > 1 and position == 0 else 1))
            inputs = expansion * width
        stages.append((f"layer{number}", nn.Sequential(*blocks), inputs))
    return stages


def small_resnet(
    depth: int, bottleneck: bool, num_classes: int, drop_rate: float = 0.0, stem_stride: int = 1, width: float = 1.0
) -> SmallNetwork:
    """ResNet for 32-pixel images: 6n+2 layers of basic blocks or 9n+2 of bottlenecks, widths 16, 32, 64 times `width`.

    `stem_stride=2` makes it a network for 64-pixel images at the same cost.
    """
    count = (depth - 2) // (9 if bottleneck else 6)
    widths = [scaled(channels, width) for channels in (16, 32, 64)]
    stem = nn.Sequential(conv3x3(3, widths[0], stem_stride), nn.BatchNorm2d(widths[0]), nn.ReLU())
    block, expansion = (bottleneck_block, 4) if bottleneck else (basic_block, 1)
    stages = residual_stages(block, count, widths[0], widths, expansion)
    return SmallNetwork(stem, stages, nn.Identity(), num_classes, drop_rate, init="area")


def small_resnext(num_classes: int, drop_rate: float = 0.0, width: float = 1.0) -> SmallNetwork:
    """ResNeXt-29, 8x64d, stages 256, 512, 1024 times `width`; always eight groups."""
    channels = scaled(64, width)
    stem = nn.Sequential(conv3x3(3, channels), nn.BatchNorm2d(channels), nn.ReLU())
    stages = residual_stages(resnext_block, 3, channels, [scaled(c, width) for c in (256, 512, 1024)], 1)
    return SmallNetwork(stem, stages, nn.Identity(), num_classes, drop_rate)


class WideBlock(nn.Module):
    """A pre-activation block of a Wide ResNet with dropout between its convolutions (1605.07146, figure 1d)."""

    def __init__(self, inputs: int, outputs: int, stride: int, dropout: float) -> None:
        super().__init__()
        self.norm1 = nn.BatchNorm2d(inputs)
        self.conv1 = conv3x3(inputs, outputs, stride)
        self.norm2 = nn.BatchNorm2d(outputs)
        self.dropout = nn.Dropout(dropout)
        self.conv2 = conv3x3(outputs, outputs)
        self.projection = conv1x1(inputs, outputs, stride) if inputs != outputs or stride != 1 else None

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, C, H, W) to (N, C', H/stride, W/stride)."""
        activated = F.relu(self.norm1(x))
        # A projected shortcut starts from the activated input, an identity shortcut from the raw one.
        shortcut = x if self.projection is None else self.projection(activated)
        return shortcut + self.conv2(self.dropout(F.relu(self.norm2(self.conv1(activated)))))


def wide_resnet(depth: int, widen: int, num_classes: int, drop_rate: float = 0.3, width: float = 1.0) -> SmallNetwork:
    """Wide ResNet of 6n+4 layers, stages 16w, 32w, 64w; `drop_rate` is the dropout inside the blocks.

    `width` multiplies the widening factor; the stem has 16 channels at any factor (the paper's table 1).
    """
    count = (depth - 4) // 6
    stages: list[tuple[str, nn.Module, int]] = []
    inputs = 16
    for number, outputs in enumerate((scaled(c * widen, width) for c in (16, 32, 64)), start=1):
        blocks = []
        for position in range(count):
            blocks.append(WideBlock(inputs, outputs, 2 if number > 1 and position == 0 else 1, drop_rate))
            inputs = outputs
        stages.append((f"layer{number}", nn.Sequential(*blocks), outputs))
    norm = nn.Sequential(nn.BatchNorm2d(inputs), nn.ReLU())
    return SmallNetwork(conv3x3(3, 16), stages, norm, num_classes, init="area")


class DenseLayer(nn.Module):
    """BN, ReLU, 1x1 to 4k, BN, ReLU, 3x3 to k; the output joins the input (1608.06993, DenseNet-B)."""

    def __init__(self, inputs: int, growth: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.BatchNorm2d(inputs), nn.ReLU(), conv1x1(inputs, 4 * growth),
            nn.BatchNorm2d(4 * growth), nn.ReLU(), conv3x3(4 * growth, growth),
        )  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, C, H, W) to (N, C + k, H, W)."""
        return torch.cat([x, self.layers(x)], dim=1)


def small_densenet(
    depth: int, growth: int, num_classes: int, drop_rate: float = 0.0, width: float = 1.0
) -> SmallNetwork:
    """DenseNet-BC: three dense blocks of (depth - 4) / 6 layers, compression one half between them.

    `width` multiplies the growth rate. A rate that is no integer holds on average: n layers add round(n * rate), since
    whole rates alone (13, 14, ...) would step the parameters by 15 % at a time.
    """
    count = (depth - 4) // 6
    channels = scaled(2 * growth, width)
    stem = conv3x3(3, channels)
    grown = [round(i * growth * width) for i in range(count + 1)]
    if min(after - before for before, after in pairwise(grown)) < 1:
        raise UserError(f"width is {width}: some layers of growth rate {growth} would have no channel; use more.")
    stages: list[tuple[str, nn.Module, int]] = []
    for number in (1, 2, 3):
        layers = [DenseLayer(channels + before, after - before) for before, after in pairwise(grown)]
        channels += grown[-1]
        parts: OrderedDict[str, nn.Module] = OrderedDict(block=nn.Sequential(*layers))
        if number < 3:
            parts["transition"] = nn.Sequential(
                nn.BatchNorm2d(channels), nn.ReLU(), conv1x1(channels, channels // 2), nn.AvgPool2d(2)
            )
            channels //= 2
        stages.append((f"layer{number}", nn.Sequential(parts), channels))
    network = SmallNetwork(
        stem, stages, nn.Sequential(nn.BatchNorm2d(channels), nn.ReLU()), num_classes, drop_rate, init="area"
    )
    # Each transition's pooling belongs to the stage it closes, so the last two stages share a resolution.
    for info, reduction in zip(network.feature_info, (2, 4, 4), strict=True):
        info["reduction"] = reduction
    return network


SMALL: dict[str, Callable[..., SmallNetwork]] = {
    **{
        f"resnet{depth}": (
            lambda num_classes, depth=depth, **options: small_resnet(depth, False, num_classes, **options)
        )
        for depth in (14, 20, 32, 44, 56, 110)
    },
    **{
        f"resnet{depth}b": (
            lambda num_classes, depth=depth, **options: small_resnet(depth, True, num_classes, **options)
        )
        for depth in (65, 83, 164)
    },
    "wrn_28_10": lambda num_classes, **options: wide_resnet(28, 10, num_classes, **options),
    "densenet_bc_100_12": lambda num_classes, **options: small_densenet(100, 12, num_classes, **options),
    "resnext29_8x64d": lambda num_classes, **options: small_resnext(num_classes, **options),
}


def create_small(name: str, num_classes: int, **options: Any) -> SmallNetwork:
    """Build one of the networks in `SMALL`; options: `drop_rate`, `width`, for ResNets `stem_stride`."""
    return SMALL[name](num_classes=num_classes, **options)
