"""From attention maps to boxes: how large the attended region is, where it lies, and how much attention a box holds.

A box is (top, left, bottom, right), bottom and right excluded, int64 (N, 4), in cells of the map; an empty one is all
zero. Everything stays on the device: no value is read, so that no step waits.

WS-DAN (Hu et al., arXiv 1901.09891, section 3.2) takes the bounding box of all places of one of its 32 maps that are
above a threshold, the map stretched to its own range. Our reading for ABN's one map, whose noise is spread over the
image: the box has the size of the region around the map's maximum, and lies where it holds the most attention. Size
and place are told apart, so that a control can have the one and not the other.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor


def stretched(maps: Tensor) -> Tensor:
    """Return maps (N, h, w) on their own range: minimum 0, maximum 1; a map without a range becomes 0 everywhere."""
    flat = maps.float().flatten(1)
    low, high = flat.amin(1)[:, None, None], flat.amax(1)[:, None, None]
    span = high - low
    return torch.where(span > 0, (maps - low) / torch.where(span > 0, span, 1), 0)


def region_around_maximum(maps: Tensor, threshold: float) -> Tensor:
    """Return the cells connected with the maximum that are at least `threshold`, for stretched maps; bool (N, h, w).

    Cells touch at their sides and corners. Paths longer than h + w cells, which only mazes have, are cut off.
    """
    height, width = maps.shape[1:]
    above = maps >= threshold
    cells = torch.arange(height * width, device=maps.device).view(1, height, width)
    region = (cells == maps.flatten(1).argmax(1).view(-1, 1, 1)) & above
    for _ in range(height + width):
        # Grown by a cell up and down, then to the sides; several times as fast as a max-pooling on a CPU.
        tall = region.clone()
        tall[:, 1:] |= region[:, :-1]
        tall[:, :-1] |= region[:, 1:]
        region = tall.clone()
        region[:, :, 1:] |= tall[:, :, :-1]
        region[:, :, :-1] |= tall[:, :, 1:]
        region &= above
    return region


def attended_sizes(maps: Tensor, threshold: float, limits: tuple[float, float]) -> Tensor:
    """Return the height and width in cells of the attended region's bounding box, int64 (N, 2); 0 for a flat map.

    `limits` are the smallest and largest share of the map's side that either may take.
    """
    maps = stretched(maps)
    region = region_around_maximum(maps, threshold)
    sizes = []
    for axis in (1, 2):
        taken = region.any(3 - axis).long()  # (N, cells along the axis)
        cells = taken.shape[1]
        extent = cells - taken.flip(1).argmax(1) - taken.argmax(1)
        least = max(1, math.ceil(limits[0] * cells - 1e-9))
        most = max(least, math.floor(limits[1] * cells + 1e-9))
        sizes.append(extent.clamp(least, most))
    return torch.stack(sizes, dim=1) * (maps.amax((1, 2)) > 0)[:, None]


def attended_boxes(maps: Tensor, sizes: Tensor) -> Tensor:
    """Return the boxes of `sizes` (N, 2) that hold the most of the stretched maps (N, h, w), the first of equals.

    The sums are differences of a summed-area table of whole millionths, so that they are exact and equals stay equal.
    """
    count, height, width = maps.shape
    millionths = (stretched(maps) * 1e6).round().long()
    table = F.pad(millionths.cumsum(1).cumsum(2), (1, 0, 1, 0)).flatten(1)  # (N, (h + 1) * (w + 1))
    tall, wide = sizes[:, 0].view(-1, 1, 1), sizes[:, 1].view(-1, 1, 1)
    top = torch.arange(height, device=maps.device).view(1, -1, 1)
    left = torch.arange(width, device=maps.device).view(1, 1, -1)
    bottom, right = (top + tall).clamp_max(height), (left + wide).clamp_max(width)

    def corner(row: Tensor, column: Tensor) -> Tensor:
        return table.gather(1, (row * (width + 1) + column).expand(count, height, width).flatten(1))

    held = corner(bottom, right) - corner(top, right) - corner(bottom, left) + corner(top, left)
    fits = ((top + tall <= height) & (left + wide <= width)).flatten(1)
    place = torch.where(fits, held, -1).argmax(1)
    return _boxes(place // width, place % width, sizes)


def random_boxes(sizes: Tensor, grid: tuple[int, int]) -> Tensor:
    """Return boxes of `sizes` (N, 2) in cells at places of a `grid` (h, w) drawn evenly by the global generator."""
    draws = torch.rand(len(sizes), 2, device=sizes.device)
    free = torch.stack([grid[0] - sizes[:, 0], grid[1] - sizes[:, 1]], dim=1) + 1
    place = torch.minimum((draws * free).long(), free - 1)  # a draw close to 1 may round up to it
    return _boxes(place[:, 0], place[:, 1], sizes)


def _boxes(top: Tensor, left: Tensor, sizes: Tensor) -> Tensor:
    boxes = torch.stack([top, left, top + sizes[:, 0], left + sizes[:, 1]], dim=1)
    return boxes * (sizes.amin(1) > 0)[:, None]


def in_pixels(boxes: Tensor, grid: tuple[int, int], size: tuple[int, int]) -> Tensor:
    """Return boxes in cells of a `grid` (h, w) as boxes in pixels of images of `size` (H, W), edges rounded."""
    scale = [size[0] / grid[0], size[1] / grid[1]]
    return torch.stack([(boxes[:, edge] * scale[edge % 2]).round().long() for edge in range(4)], dim=1)


def inside(boxes: Tensor, size: tuple[int, int]) -> Tensor:
    """Return which places of a grid or image of `size` (H, W) lie in each box, bool (N, 1, H, W)."""
    top, left, bottom, right = (boxes[:, edge].view(-1, 1, 1, 1) for edge in range(4))
    rows = torch.arange(size[0], device=boxes.device).view(1, 1, -1, 1)
    columns = torch.arange(size[1], device=boxes.device).view(1, 1, 1, -1)
    return (rows >= top) & (rows < bottom) & (columns >= left) & (columns < right)


def attention_inside(maps: Tensor, boxes: Tensor) -> Tensor:
    """Return the share of each stretched map's sum that its box (in cells) holds, (N,); for a flat map its area's."""
    weights = stretched(maps)
    weights = torch.where(weights.amax((1, 2), keepdim=True) > 0, weights, 1)
    held = (weights * inside(boxes, (maps.shape[1], maps.shape[2]))[:, 0]).sum((1, 2))
    return held / weights.sum((1, 2))
