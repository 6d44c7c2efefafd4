"""The attention branch: from features g(x) to the map M(x) and to the branch's own class scores.

Structure (Fukui et al., CVPR 2019, figure 2, in the form of the authors' code): stage -> BN -> 1x1 conv to K -> BN ->
ReLU = A; M = sigmoid(BN(3x3 conv A -> 1)); class scores = mean over positions of (1x1 conv K -> K of A). The `paper`
branch's stage is a copy of the backbone's last stage at stride 1, the `lite` branch's stage is a depthwise-separable
convolution. The authors' SENet makes its map in another form, M = sum over classes of log(1 + A).
"""

import copy
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from attention_branch.models.gate import GatePlace, to_maps

MAP_FORMS = ("sigmoid", "sum-log")
"""M = sigmoid(BN(conv A)) in [0, 1], or M = sum over classes of log(1 + A), from 0 up without a bound."""

_POOLS = (nn.MaxPool2d, nn.AvgPool2d, nn.LPPool2d)


class StageCopy(nn.Module):
    """The last stage's modules with every stride taken out: (features of any layout) -> (N, C', h, w)."""

    def __init__(self, backbone: nn.Module, place: GatePlace) -> None:
        super().__init__()
        self.place = place
        self.blocks = nn.ModuleList(copy.deepcopy(backbone.get_submodule(name)) for name in place.stage)
        self.upsample = 1
        _remove_strides(self.blocks)

    def forward(self, features: Tensor, size: tuple[int, int]) -> Tensor:
        """Return maps (N, C', h, w) of features whose grid is `size`."""
        x = features
        if self.upsample > 1:
            # Patch merging halves the grid without a stride that could be removed: enter it at double size.
            maps = to_maps(x, self.place, size)
            maps = F.interpolate(maps, scale_factor=self.upsample, mode="bilinear", align_corners=False)
            x = maps.permute(0, 2, 3, 1) if self.place.layout == "NHWC" else maps
        for block in self.blocks:
            x = block(x)
        return to_maps(x, self.place, size)


def _remove_strides(module: nn.Module) -> None:
    for name, child in list(module.named_children()):
        stride = getattr(child, "stride", 1)
        strided = any(
            step > 1 for step in (stride if isinstance(stride, tuple) else (stride,)) if isinstance(step, int)
        )
        if isinstance(child, nn.Conv2d) and strided:
            child.stride = (1, 1)
            if type(child) is nn.Conv2d and any(kernel % 2 == 0 for kernel in child.kernel_size):
                child.padding = "same"  # equal padding on both sides cannot keep the size of an even kernel
        elif strided and (isinstance(child, _POOLS) or "Pool" in type(child).__name__):
            setattr(module, name, nn.Identity())
        else:
            _remove_strides(child)


class ConvStage(nn.Module):
    """Two residual blocks of 3x3 convolutions, for backbones whose last stage cannot be copied at stride 1."""

    def __init__(self, place: GatePlace, channels: int) -> None:
        super().__init__()
        self.place = place
        self.project = nn.Sequential(nn.Conv2d(place.channels, channels, 1, bias=False), nn.BatchNorm2d(channels))
        self.blocks = nn.ModuleList(
            nn.Sequential(
                nn.Conv2d(channels, channels, 3, padding=1, bias=False), nn.BatchNorm2d(channels), nn.ReLU(),
                nn.Conv2d(channels, channels, 3, padding=1, bias=False), nn.BatchNorm2d(channels),
            )
            for _ in range(2)
        )  # fmt: skip

    def forward(self, features: Tensor, size: tuple[int, int]) -> Tensor:
        """Return maps (N, C', h, w) of features whose grid is `size`."""
        x = self.project(to_maps(features, self.place, size))
        for block in self.blocks:
            x = F.relu(x + block(x))
        return x


class LiteStage(nn.Module):
    """Depthwise 3x3, then 1x1 to a few channels: the branch that costs next to nothing."""

    def __init__(self, place: GatePlace, channels: int) -> None:
        super().__init__()
        self.place = place
        self.layers = nn.Sequential(
            nn.BatchNorm2d(place.channels),
            nn.Conv2d(place.channels, place.channels, 3, padding=1, groups=place.channels, bias=False),
            nn.Conv2d(place.channels, channels, 1, bias=False),
            nn.BatchNorm2d(channels),
            nn.ReLU(),
        )

    def forward(self, features: Tensor, size: tuple[int, int]) -> Tensor:
        """Return maps (N, C', h, w) of features whose grid is `size`."""
        return self.layers(to_maps(features, self.place, size))


@dataclass(frozen=True)
class StageChoice:
    """The stage a branch got, its output channels, and what to say about it."""

    stage: nn.Module
    channels: int
    note: str


def copy_stage(
    backbone: nn.Module, place: GatePlace, features: Tensor, size: tuple[int, int], *, reproduced: bool
) -> StageChoice:
    """Copy the backbone's last stage at stride 1, or replace it by plain blocks where a copy does not fit.

    `features` (g of example images, grid `size`) decide: the copy must run and give maps of the grid's size. A stage
    whose modules one by one were not proved to reproduce it (`reproduced`) is replaced at once.
    """
    stage = StageCopy(backbone, place).eval()
    for factor in (1, 2) if reproduced else ():
        stage.upsample = factor
        try:
            with torch.no_grad():
                maps = stage(features, size)
        except (TypeError, ValueError, RuntimeError, AssertionError, AttributeError, IndexError):
            break
        if tuple(maps.shape[-2:]) == size:
            entered = ", entered at double size" if factor == 2 else ""
            return StageChoice(stage, maps.shape[1], f"copy of {', '.join(place.stage)} at stride 1{entered}")
        if place.layout == "NLC":
            break
    channels = min(place.stage_channels, 512)
    note = f"two plain residual blocks of {channels} channels ({', '.join(place.stage)} cannot be copied at stride 1)"
    return StageChoice(ConvStage(place, channels), channels, note)


class AttentionBranch(nn.Module):
    """Features -> (class activations A, map M); `scores` and `evidence` read A.

    `sizes` holds the number of classes of each head; A's channels are divided among the heads, so each head's map is
    made from its own classes. The order of the heads is the order of the maps. `map_form` is one of `MAP_FORMS`; the
    sum of logarithms has no weights of its own.
    """

    def __init__(
        self,
        stage: nn.Module,
        channels: int,
        sizes: list[int],
        map_kernel: int = 3,
        class_kernel: int = 1,
        map_form: str = "sigmoid",
    ) -> None:
        super().__init__()
        self.map_form = map_form
        # One sigmoid logit needs two activations: A is never negative, so a single one could not say both yes and no.
        self.widths = [max(2, size) for size in sizes]
        total = sum(self.widths)
        self.stage = stage
        self.norm = nn.BatchNorm2d(channels)
        self.classes = nn.Conv2d(channels, total, class_kernel, padding=class_kernel // 2, bias=False)
        self.class_norm = nn.BatchNorm2d(total)
        self.scorers = nn.ModuleList(
            nn.Linear(width, size, bias=False) for width, size in zip(self.widths, sizes, strict=True)
        )
        if map_form == "sigmoid":
            self.mappers = nn.ModuleList(
                nn.Conv2d(width, 1, map_kernel, padding=map_kernel // 2, bias=False) for width in self.widths
            )
            self.map_norm = nn.BatchNorm2d(len(sizes))
        self._start_upright()

    def _start_upright(self) -> None:
        """Draw the weights so that A starts as evidence for its class and M grows with it.

        The sign of a random map convolution decides at the start whether the map is high on or off the object, and on
        small nets training does not turn it round: on the embedded digits the map's maximum fell on the digit in 28 %
        of the images with a random start and in 94 % with this one.
        """
        nn.init.kaiming_normal_(self.classes.weight, mode="fan_out", nonlinearity="relu")
        for mapper in self.mappers if self.map_form == "sigmoid" else ():
            assert isinstance(mapper, nn.Conv2d)
            nn.init.kaiming_normal_(mapper.weight, mode="fan_out", nonlinearity="relu")
            with torch.no_grad():
                mapper.weight.abs_()
        for scorer in self.scorers:
            assert isinstance(scorer, nn.Linear)
            with torch.no_grad():
                if scorer.out_features == 1:
                    scorer.weight.copy_(torch.tensor([[-1.0, 1.0]]))
                else:
                    nn.init.eye_(scorer.weight)

    def forward(self, features: Tensor, size: tuple[int, int]) -> tuple[Tensor, Tensor]:
        """Return A (N, sum of widths, h, w), never negative, and M (N, T, h, w), in [0, 1] or of no bound."""
        x = self.norm(self.stage(features, size))  # (N, C', h, w)
        activations = F.relu(self.class_norm(self.classes(x)))  # (N, K, h, w)
        if self.map_form == "sum-log":
            # float32, as below: a sum over a thousand classes would lose its small terms in bfloat16.
            logs = [part.float().log1p().sum(1, keepdim=True) for part in self.split(activations)]
            return activations, torch.cat(logs, dim=1)
        raw = [mapper(part) for mapper, part in zip(self.mappers, self.split(activations), strict=True)]
        # float32 even under autocast: bfloat16 has only 2 digits near 1, too few to rank positions by.
        return activations, torch.sigmoid(self.map_norm(torch.cat(raw, dim=1)).float())

    def split(self, activations: Tensor) -> tuple[Tensor, ...]:
        """Divide A among the heads."""
        return torch.split(activations, self.widths, dim=1)

    def scores(self, activations: Tensor) -> list[Tensor]:
        """Return each head's class scores (N, K).

        The paper's 1x1 convolution followed by the mean over positions equals the mean followed by the same matrix,
        which saves (h * w - 1) of h * w of its cost.
        """
        return [scorer(part.mean((2, 3))) for scorer, part in zip(self.scorers, self.split(activations), strict=True)]

    def evidence(self, activations: Tensor) -> list[Tensor]:
        """Return each head's scores per position (N, K, h, w); their mean over positions is `scores`."""
        return [
            F.conv2d(part, scorer.get_parameter("weight")[:, :, None, None])
            for scorer, part in zip(self.scorers, self.split(activations), strict=True)
        ]
