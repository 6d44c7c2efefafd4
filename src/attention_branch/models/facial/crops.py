"""Boxes on a batch of pictures, and the pictures in them, cut out inside a network.

A box is (x0, y0, x1, y1) in shares of the picture's width and height, so that it means the same at every size.
"""

import torch
import torch.nn.functional as F
from torch import Tensor


def cut(images: Tensor, boxes: Tensor, size: tuple[int, int]) -> Tensor:
    """Return what lies in the boxes (N, P, 4) of pictures (N, C, H, W), resized to (h, w): (N, P, C, h, w).

    Each pixel is the mean of four bilinear samples; outside of a picture all channels are 0, the mean colour of
    normalised pictures. Gradients reach the pictures.
    """
    height, width = size
    rows, columns = (
        (torch.arange(2 * count, device=images.device, dtype=boxes.dtype) + 0.5) / (2 * count)
        for count in (height, width)
    )
    x0, y0, x1, y1 = boxes.unbind(-1)  # (N, P)
    x = x0[..., None] + (x1 - x0)[..., None] * columns  # (N, P, 2w)
    y = y0[..., None] + (y1 - y0)[..., None] * rows  # (N, P, 2h)
    parts = boxes.shape[1]
    grid = torch.stack(
        [x[:, :, None, :].expand(-1, -1, 2 * height, -1), y[..., None].expand(-1, -1, -1, 2 * width)], dim=-1
    )
    # All boxes of a picture below one another: the picture itself is not copied.
    seen = F.grid_sample(images, (2 * grid - 1).flatten(1, 2), align_corners=False)  # (N, C, P * 2h, 2w)
    return F.avg_pool2d(seen, 2).unflatten(2, (parts, height)).transpose(1, 2)


def within(outer: Tensor, inner: Tensor) -> Tensor:
    """Return boxes (N, 4), given in shares of the boxes `outer` (N, 4), in shares of the whole pictures."""
    corner, extent = outer[:, :2], outer[:, 2:] - outer[:, :2]
    return torch.cat([corner + inner[:, :2] * extent, corner + inner[:, 2:] * extent], dim=1)


def enlarged(boxes: Tensor, factor: float) -> Tensor:
    """Return boxes (N, 4) with sides `factor` times as long about their centres, moved to lie in the picture."""
    centre = (boxes[:, :2] + boxes[:, 2:]) / 2
    half = ((boxes[:, 2:] - boxes[:, :2]) * factor).clamp(max=1) / 2
    centre = torch.minimum(torch.maximum(centre, half), 1 - half)
    return torch.cat([centre - half, centre + half], dim=1)


def share_inside(boxes: Tensor) -> Tensor:
    """Return which share of each box's area (..., 4) lies in the picture."""
    low, high = boxes[..., :2], boxes[..., 2:]
    inside = (high.clamp(0, 1) - low.clamp(0, 1)).prod(-1)
    return inside / (high - low).prod(-1).clamp_min(1e-12)
