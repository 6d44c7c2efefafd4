"""ANet (Liu et al., ICCV 2015, section 2.2): four convolutions, the last two with filters of their own in each cell.

The paper gives the number of convolutions and which are locally shared; kernels, channels and cells are *our reading*
after DeepID2 (Sun et al., NeurIPS 2014), which it builds on, with batch norms in addition.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from attention_branch.errors import UserError
from attention_branch.models.small import conv3x3

PATCHES = 5
"""Overlapping patches of a face region: four corners and the centre (our reading of 'multiple patches')."""

REGION, PATCH = 56, 48
"""Sides in pixels of the smallest face region and of its patches; larger ones are multiples of both."""


class LocalConv2d(nn.Module):
    """A 3x3 convolution that keeps the size, with filters of its own in each of cells x cells equal parts of the map.

    Positions read across the borders of their cell.
    """

    def __init__(self, inputs: int, outputs: int, cells: int) -> None:
        super().__init__()
        self.cells = cells
        self.weight = nn.Parameter(torch.empty(cells * cells * outputs, inputs, 3, 3))
        nn.init.kaiming_normal_(self.weight, mode="fan_in", nonlinearity="relu")

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, C, H, W) to (N, C', H, W); H and W are multiples of `cells`."""
        cells, (height, width) = self.cells, x.shape[-2:]
        tall, wide = height // cells, width // cells
        padded = F.pad(x, (1, 1, 1, 1))
        tiles = padded.unfold(2, tall + 2, tall).unfold(3, wide + 2, wide)  # (N, C, cells, cells, tall + 2, wide + 2)
        tiles = tiles.permute(0, 2, 3, 1, 4, 5).flatten(1, 3)
        made = F.conv2d(tiles, self.weight, groups=cells * cells)  # (N, cells * cells * C', tall, wide)
        made = made.unflatten(1, (cells, cells, -1)).permute(0, 3, 1, 4, 2, 5)
        return made.flatten(4, 5).flatten(2, 3)


class ANet(nn.Module):
    """Features and attributes of a face region (N, 3, side, side), side a multiple of 56.

    A patch has 6/7 of the region's side. In training each region shows one of its patches, drawn at random; in use the
    answer is the mean over all of them.
    """

    def __init__(self, num_classes: int, side: int = REGION, features: int = 256, drop_rate: float = 0.5) -> None:
        super().__init__()
        if side < REGION or side % REGION:
            raise UserError(f"face is {side}; the side of the face region must be a multiple of {REGION} pixels.")
        self.side, self.patch = side, side // REGION * PATCH
        self.num_features = features
        widths = (32, 64, 96, 128)
        layers: list[nn.Module] = []
        inputs = 3
        for width, local in zip(widths, (0, 0, 3, 2), strict=True):
            convolution = LocalConv2d(inputs, width, local) if local else conv3x3(inputs, width)
            if not local:
                nn.init.kaiming_normal_(convolution.weight, mode="fan_in", nonlinearity="relu")
            layers += [convolution, nn.BatchNorm2d(width), nn.ReLU(), nn.MaxPool2d(2)]
            inputs = width
        self.layers = nn.Sequential(*layers)
        self.features_layer = nn.Linear(inputs * (self.patch // 16) ** 2, features)
        self.head_drop = nn.Dropout(drop_rate)
        self.fc = nn.Linear(features, num_classes)

    def patches(self, regions: Tensor) -> Tensor:
        """Return the five patches of face regions (N, 3, side, side), (N, 5, 3, patch, patch)."""
        last, middle, patch = self.side - self.patch, (self.side - self.patch) // 2, self.patch
        corners = ((0, 0), (0, last), (last, 0), (last, last), (middle, middle))
        return torch.stack([regions[:, :, y : y + patch, x : x + patch] for y, x in corners], dim=1)

    def features(self, patches: Tensor) -> Tensor:
        """Return the feature vectors FC (N, features) of patches (N, 3, patch, patch)."""
        return F.relu(self.features_layer(self.layers(patches).flatten(1)))

    def region_features(self, regions: Tensor) -> Tensor:
        """Return the feature vectors of all patches of face regions, (N, 5, features)."""
        return self.features(self.patches(regions).flatten(0, 1)).unflatten(0, (-1, PATCHES))

    def forward(self, regions: Tensor) -> Tensor:
        """Return the attributes' logits (N, K)."""
        if not self.training:
            return self.fc(self.region_features(regions).mean(1))
        patches = self.patches(regions)
        drawn = torch.randint(PATCHES, (len(regions),), device=regions.device)
        shown = patches[torch.arange(len(regions), device=regions.device), drawn]
        return self.fc(self.head_drop(self.features(shown)))


def region_side(shortest: int) -> int:
    """Return the face region's side for pictures whose shorter side has so many pixels: at most that, 56 to 168."""
    return REGION * min(3, max(1, math.floor(shortest / REGION)))
