"""Objects' places as masks: boxes drawn as masks, and maps brought to the size of the masks they are held against."""

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

from attention_branch.errors import UserError
from attention_branch.explanations.resizing import upsample
from attention_branch.metrics.metric import Regions, as_tensor

_SHAPE = "Masks have shape (N, H, W), or (H, W) each; these have {}. Boxes become masks by box_masks."


def box_masks(boxes: Tensor | np.ndarray | Sequence[Sequence[float]], height: int, width: int) -> Tensor:
    """Return masks (N, height, width) of boxes (N, 4), x0, y0, x1, y1 in pixels, x1 and y1 exclusive.

    A pixel belongs to the box when its centre lies in it. Raises `UserError` for another shape.
    """
    edges = as_tensor(boxes, "boxes").double()
    edges = edges.reshape(0, 4) if edges.numel() == 0 else edges
    if edges.ndim != 2 or edges.shape[1] != 4:
        raise UserError(f"Boxes have shape (N, 4), x0, y0, x1, y1; these have {tuple(edges.shape)}.")
    x0, y0, x1, y1 = (edges[:, side, None] for side in range(4))
    columns = torch.arange(width, device=edges.device) + 0.5
    rows = torch.arange(height, device=edges.device) + 0.5
    across = (columns >= x0) & (columns < x1)
    down = (rows >= y0) & (rows < y1)
    return down[:, :, None] & across[:, None, :]


def paired_with_masks(
    maps: Tensor, regions: Regions | None, batch_size: int
) -> Iterator[tuple[Tensor, Tensor, Tensor, Tensor]]:
    """Yield (numbers (n,), maps as given (n, h, w), maps at the masks' size (n, H, W), masks (n, H, W) bool).

    Masks of one size come together, at most `batch_size` at once; images whose region is None or empty do not come at
    all. A map of another size is resized to its mask's, bilinear (align_corners=False): the mask is never touched.
    Raises `UserError` for masks of another shape.
    """
    groups: dict[tuple[int, ...], tuple[list[int], list[Tensor]]] = {}
    assert regions is not None  # the metrics that come here say needs_regions
    for number, region in enumerate(regions):
        if region is None:
            continue
        inside = as_tensor(region, "A region").to(maps.device) != 0
        if inside.ndim != 2:
            shape = tuple(regions.shape) if isinstance(regions, (Tensor, np.ndarray)) else tuple(inside.shape)
            raise UserError(_SHAPE.format(shape))
        if inside.any():
            numbers, masks = groups.setdefault(tuple(inside.shape), ([], []))
            numbers.append(number)
            masks.append(inside)
    for size, (numbers, masks) in groups.items():
        for start in range(0, len(numbers), batch_size):
            stop = start + batch_size
            chosen = torch.tensor(numbers[start:stop], device=maps.device)
            given = maps[chosen]
            resized = given
            if tuple(given.shape[-2:]) != size:
                resized = upsample(given, size[0], size[1])
            yield chosen, given, resized, torch.stack(masks[start:stop])
