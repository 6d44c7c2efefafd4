"""LNet (Liu et al., ICCV 2015, section 2.1): a network that is trained on attributes alone and finds what they are of.

The response map is the mean over the channels of the last convolutional features. The paper scores windows by the
mean of their responses, proposes them by EdgeBoxes, and keeps those above a threshold found with background pictures.
*Our reading*, for want of both: the window, of all on the map's grid, in which the responses exceed a threshold of the
map's own by the largest sum. A larger window wins for as long as what it adds lies above the threshold.
"""

import functools
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from attention_branch.errors import UserError
from attention_branch.models.gate import layout_of

MOST_CELLS = 16
"""Longest side of the grid on which windows are compared; a finer map is averaged to it."""

THRESHOLD = 0.4
"""Where between a map's mean (0) and its maximum (1) the threshold lies."""


@functools.lru_cache(maxsize=16)
def windows(height: int, width: int) -> Tensor:
    """Return all windows (M, 4) on a grid as (x0, y0, x1, y1) in cells, the largest first.

    Their sides are a quarter of the grid's shorter side or longer, one at most twice the other; and the whole grid.
    """
    least = max(1, min(height, width) // 4)
    sides = [
        (h, w)
        for h in range(least, height + 1)
        for w in range(least, width + 1)
        if (h <= 2 * w and w <= 2 * h) or (h, w) == (height, width)
    ]
    found = [
        (x, y, x + w, y + h)
        for h, w in sorted(sides, key=lambda side: -side[0] * side[1])
        for y in range(height - h + 1)
        for x in range(width - w + 1)
    ]
    with torch.inference_mode(mode=False):
        return torch.tensor(found)


def best_window(response: Tensor, threshold: float = THRESHOLD) -> Tensor:
    """Return the box (N, 4) in shares of the picture where a map (N, h, w) exceeds its threshold by the largest sum.

    A map that is the same everywhere has the whole picture as its window.
    """
    height, width = response.shape[-2:]
    if max(height, width) > MOST_CELLS:
        scale = MOST_CELLS / max(height, width)
        height, width = max(1, round(height * scale)), max(1, round(width * scale))
        response = F.adaptive_avg_pool2d(response[:, None], (height, width))[:, 0]
    response = response.float()
    mean, highest = response.mean((1, 2)), response.amax((1, 2))
    spread = highest - mean
    # Rounding is no place: what differs by less counts as flat.
    spread = torch.where(spread > 1e-5 * highest.abs(), spread, torch.inf)
    excess = (response - mean[:, None, None]) / spread[:, None, None] - threshold * (spread < torch.inf)[:, None, None]
    sums = F.pad(excess.cumsum(1).cumsum(2), (1, 0, 1, 0)).flatten(1)  # up to each corner of the grid
    known = windows(height, width).to(response.device)
    x0, y0, x1, y1 = known.unbind(1)
    row = width + 1
    score = sums[:, y1 * row + x1] - sums[:, y0 * row + x1] - sums[:, y1 * row + x0] + sums[:, y0 * row + x0]
    sides = torch.tensor([width, height, width, height], device=response.device, dtype=response.dtype)
    return known[score.argmax(1)].to(response.dtype) / sides


class LNet(nn.Module):
    """A backbone with an output for each attribute, read for where it responds."""

    def __init__(self, trunk: Any, name: str) -> None:
        super().__init__()
        self.trunk = trunk
        example = torch.zeros(1, *self.trunk.pretrained_cfg["input_size"])
        training = trunk.training
        with torch.no_grad():
            features = self.trunk.eval().forward_features(example)
        trunk.train(training)
        if not isinstance(features, Tensor) or layout_of(trunk, features)[0] != "NCHW":
            raise UserError(
                f"'{name}' cannot localise: its last features are no grid of channels (N, C, h, w); use a "
                "convolutional network, such as resnet18."
            )

    def forward(self, images: Tensor) -> Tensor:
        """Return the attributes' logits (N, K) of images (N, 3, H, W)."""
        return self.trunk(images)

    def response(self, images: Tensor) -> Tensor:
        """Return the response map (N, h, w): the mean over channels of the last convolutional features."""
        return self.trunk.forward_features(images).mean(1)
