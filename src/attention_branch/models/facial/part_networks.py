"""PANDA's part networks (Zhang et al., CVPR 2014): one small convolutional network a part.

Layers are those of the released code's deploy_panda.prototxt, with batch norm in the place of local response
normalisation (*our choice*: it trains without the authors' schedule), and the paper's branch of 128 units a head.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from attention_branch.errors import UserError
from attention_branch.models.facial.anet import LocalConv2d

SIDES = (32, 56)
"""Sides in pixels a part may have: 56 in the released code; 32 for small pictures, with one pooling less."""


def part_network(side: int, channels: int) -> nn.Sequential:
    """Return a part's layers, from patches (N, 3, side, side) to (N, channels, 3, 3)."""

    def convolution(inputs: int, kernel: int, padding: int) -> list[nn.Module]:
        layer = nn.Conv2d(inputs, channels, kernel, padding=padding, bias=False)
        nn.init.kaiming_normal_(layer.weight, mode="fan_in", nonlinearity="relu")
        return [layer, nn.BatchNorm2d(channels), nn.ReLU()]

    def pooling() -> nn.Module:
        return nn.MaxPool2d(3, 2, ceil_mode=True)

    return nn.Sequential(
        *convolution(3, 5, 2), pooling(),
        *convolution(channels, 5, 0), pooling(),
        *convolution(channels, 3, 1), pooling(),
        *convolution(channels, 3, 1), *([pooling()] if side == 56 else []),
        # Each of the 3x3 positions has filters of its own.
        LocalConv2d(channels, channels, 3), nn.BatchNorm2d(channels), nn.ReLU(),
    )  # fmt: skip


class PartNetworks(nn.Module):
    """One network a part, without shared weights."""

    def __init__(self, parts: int, heads: int, side: int = 56, channels: int = 64, hidden: int = 128) -> None:
        super().__init__()
        if side not in SIDES:
            raise UserError(f"part is {side}; the side of a part must be {SIDES[0]} or {SIDES[1]} pixels.")
        self.parts, self.side = parts, side
        self.num_features = 9 * channels
        self.networks = nn.ModuleList(part_network(side, channels) for _ in range(parts))
        self.branch = nn.Parameter(torch.empty(parts, heads, self.num_features, hidden))
        nn.init.normal_(self.branch, 0, (2 / self.num_features) ** 0.5)
        self.branch_bias = nn.Parameter(torch.zeros(parts, heads, hidden))
        self.answer = nn.Parameter(torch.empty(parts, heads, hidden))
        nn.init.normal_(self.answer, 0, hidden**-0.5)
        self.answer_bias = nn.Parameter(torch.zeros(parts, heads))

    def forward(self, patches: Tensor) -> Tensor:
        """Return the features (N, P, D) of patches (N, P, 3, side, side)."""
        pairs = zip(self.networks, patches.unbind(1), strict=True)
        return torch.stack([network(patch).flatten(1) for network, patch in pairs], dim=1)

    def scores(self, features: Tensor) -> Tensor:
        """Return each part's own score a head (N, P, T) of its features (N, P, D)."""
        hidden = torch.einsum("npd,ptdh->npth", features, self.branch) + self.branch_bias
        return (F.relu(hidden) * self.answer).sum(-1) + self.answer_bias
