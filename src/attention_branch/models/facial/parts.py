"""Where the parts of a face are: boxes about its points, a fixed grid of boxes, and a network that finds the points."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from attention_branch.models.facial.regions import ALIGNED, POINTS
from attention_branch.models.small import conv3x3


@dataclass(frozen=True)
class Part:
    """A square about a mean of the face's points (their numbers), in units of the distance from eyes to mouth."""

    name: str
    points: tuple[int, ...]
    down: float
    """How far below the mean of its points the middle lies."""
    side: float


PARTS = (
    Part("left eye", (0,), 0.0, 1.0),
    Part("right eye", (1,), 0.0, 1.0),
    Part("eyes and brows", (0, 1), -0.1, 1.9),
    Part("nose", (2,), -0.1, 1.1),
    Part("mouth", (3, 4), 0.0, 1.3),
    Part("left cheek", (0, 3), 0.0, 1.0),
    Part("right cheek", (1, 4), 0.0, 1.0),
    Part("chin", (3, 4), 0.6, 1.5),
    Part("hair", (0, 1), -1.1, 2.4),
    Part("face", (2,), -0.2, 3.0),
)
"""The parts: *our choice*, in the place of the paper's 150 poselets, which are parts of whole persons."""

LEAST_INSIDE = 0.5
"""A part of which less than this share lies in the picture counts as missing."""


def part_boxes(points: Tensor, size: tuple[int, int]) -> Tensor:
    """Return a box a part (N, 10, 4), in shares of the picture, for points (N, 5, 2) in the same, x and y.

    `size` is the picture's (height, width) in pixels: boxes are square there.
    """
    shape = torch.tensor([size[1], size[0]], device=points.device, dtype=points.dtype)
    pixels = points * shape
    unit = (pixels[:, 3:].mean(1) - pixels[:, :2].mean(1)).norm(dim=1).clamp_min(1e-3)  # (N,)
    boxes = []
    for part in PARTS:
        middle = torch.stack([pixels[:, point] for point in part.points]).mean(0)  # (N, 2)
        middle = torch.stack([middle[:, 0], middle[:, 1] + part.down * unit], dim=1)
        half = (part.side / 2 * unit)[:, None]
        boxes.append(torch.cat([(middle - half) / shape, (middle + half) / shape], dim=1))
    return torch.stack(boxes, dim=1)


def overlapping_boxes(cells: int) -> Tensor:
    """Return the boxes (cells * cells, 4) of windows that overlap by half and cover the picture, row by row."""
    side = 2 / (cells + 1)
    starts = [number * side / 2 for number in range(cells)]
    return torch.tensor([(x, y, x + side, y + side) for y in starts for x in starts])


class PointNet(nn.Module):
    """A small network that finds a face's five points: four convolutions on the picture at 48x48, two linear layers.

    It starts from the mean points of the training faces (`mean`).
    """

    SIDE = 48

    def __init__(self) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        inputs = 3
        for width in (16, 32, 48, 64):
            layers += [conv3x3(inputs, width), nn.BatchNorm2d(width), nn.ReLU(), nn.MaxPool2d(2)]
            inputs = width
        self.layers = nn.Sequential(*layers)
        self.hidden = nn.Linear(inputs * 9, 128)
        self.points = nn.Linear(128, 2 * len(POINTS))
        nn.init.zeros_(self.points.weight)
        nn.init.zeros_(self.points.bias)
        self.mean: Tensor
        self.register_buffer("mean", torch.tensor(ALIGNED))

    def forward(self, images: Tensor) -> Tensor:
        """Return the points (N, 5, 2), x and y in shares of the picture, of normalised images (N, 3, H, W)."""
        small = F.adaptive_avg_pool2d(images, self.SIDE)
        found = self.points(F.relu(self.hidden(self.layers(small).flatten(1))))
        return self.mean + found.float().unflatten(1, (len(POINTS), 2))
