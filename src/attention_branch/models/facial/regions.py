"""Regions of a face from its five points, a grid of regions for other pictures, and regions as small patches."""

import torch
from torch import Tensor

POINTS = ("lefteye", "righteye", "nose", "leftmouth", "rightmouth")
"""The points a face is known by, in CelebA's order; left is the picture's left."""

# Where CelebA's aligned pictures of 178x218 have them on the average, to about two pixels, as shares of their sides.
_ALIGNED = ((69, 111), (108, 111), (88, 135), (71, 152), (105, 152))
ALIGNED = tuple(((x + 0.5) / 178, (y + 0.5) / 218) for x, y in _ALIGNED)

FACE = (
    "face", "hair", "forehead", "eyes", "nose", "left cheek", "right cheek", "upper lip", "mouth", "chin", "picture",
)  # fmt: skip
"""The regions of a face, and the whole picture."""

_SMALLEST = 2.0
"""Pixels a side that a region has at least, after what lies outside the picture is cut off."""


def face_boxes(points: Tensor, height: int, width: int) -> Tensor:
    """Return the boxes of `FACE` (..., 11, 4) as x0, y0, x1, y1 for points (..., 5, 2), all in pixels.

    A box's sides are multiples of the distance between the eyes, from the middle between the eyes, the nose or the
    middle of the mouth. The multiples are our reading; the picture is taken to stand upright.
    """
    left, right, nose, mouth_left, mouth_right = points.unbind(-2)
    eyes, mouth = (left + right) / 2, (mouth_left + mouth_right) / 2
    unit = (right - left).square().sum(-1).clamp_min(1).sqrt()
    (x, y), (nose_x, nose_y), (mouth_x, mouth_y) = eyes.unbind(-1), nose.unbind(-1), mouth.unbind(-1)
    outer_left, outer_right = x - 1.15 * unit, x + 1.15 * unit
    boxes = (
        (x - 1.3 * unit, y - 1.2 * unit, x + 1.3 * unit, mouth_y + 1.1 * unit),
        (x - 1.5 * unit, y - 2.1 * unit, x + 1.5 * unit, y - 0.9 * unit),
        (x - 0.9 * unit, y - 1.0 * unit, x + 0.9 * unit, y - 0.35 * unit),
        (x - 1.0 * unit, y - 0.55 * unit, x + 1.0 * unit, y + 0.3 * unit),
        (nose_x - 0.5 * unit, y + 0.1 * unit, nose_x + 0.5 * unit, nose_y + 0.3 * unit),
        (outer_left, y + 0.25 * unit, nose_x - 0.35 * unit, mouth_y + 0.1 * unit),
        (nose_x + 0.35 * unit, y + 0.25 * unit, outer_right, mouth_y + 0.1 * unit),
        (mouth_x - 0.65 * unit, nose_y + 0.15 * unit, mouth_x + 0.65 * unit, mouth_y),
        (mouth_x - 0.75 * unit, mouth_y - 0.35 * unit, mouth_x + 0.75 * unit, mouth_y + 0.4 * unit),
        (mouth_x - 0.85 * unit, mouth_y + 0.3 * unit, mouth_x + 0.85 * unit, mouth_y + 1.1 * unit),
        (torch.zeros_like(x), torch.zeros_like(x), torch.full_like(x, width), torch.full_like(x, height)),
    )
    return inside(torch.stack([torch.stack(box, dim=-1) for box in boxes], dim=-2), height, width)


def grid_boxes(count: int, height: int, width: int) -> Tensor:
    """Return the boxes (count * count + 1, 4) of a grid by rows, and of the whole picture, in pixels."""
    columns, rows = torch.arange(count) * width / count, torch.arange(count) * height / count
    y0, x0 = (values.flatten() for values in torch.meshgrid(rows, columns, indexing="ij"))
    cells = torch.stack([x0, y0, x0 + width / count, y0 + height / count], dim=1)
    return torch.cat([cells, torch.tensor([[0.0, 0.0, width, height]])])


def inside(boxes: Tensor, height: int, width: int) -> Tensor:
    """Return boxes (..., 4) without what lies outside the picture, at least two pixels a side."""
    x0, y0, x1, y1 = boxes.unbind(-1)
    x0, y0 = x0.clamp(0, width - _SMALLEST), y0.clamp(0, height - _SMALLEST)
    x1, y1 = torch.maximum(x1.clamp(max=width), x0 + _SMALLEST), torch.maximum(y1.clamp(max=height), y0 + _SMALLEST)
    return torch.stack([x0, y0, x1, y1], dim=-1)


def patches(images: Tensor, boxes: Tensor, cells: int) -> Tensor:
    """Return regions as patches (N, R, C, cells, cells): the means of images (N, C, H, W) over each box's cells.

    `boxes` (R, 4) are the same for all images, or (N, R, 4). A mean counts a pixel by how much of it the cell covers.
    """
    height, width = images.shape[-2:]
    rows = _coverage(boxes[..., 1], boxes[..., 3], cells, height).to(images.dtype)
    columns = _coverage(boxes[..., 0], boxes[..., 2], cells, width).to(images.dtype)
    each = "n" if boxes.ndim == 3 else ""
    return torch.einsum(f"nchw,{each}rph,{each}rqw->nrcpq", images, rows, columns)


def _coverage(start: Tensor, end: Tensor, cells: int, length: int) -> Tensor:
    """Return what each of a side's cells takes of each pixel (..., cells, length); a cell's shares add up to one."""
    step = ((end - start) / cells)[..., None, None]
    low = start[..., None, None] + step * torch.arange(cells, device=start.device)[:, None]
    pixels = torch.arange(length, device=start.device)
    covered = torch.minimum(pixels + 1, low + step) - torch.maximum(pixels, low)
    return covered.clamp_min(0) / step
