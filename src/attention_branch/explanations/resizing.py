"""Bringing maps to another size."""

from torch import Tensor
from torch.nn import functional as F


def upsample(maps: Tensor, height: int, width: int) -> Tensor:
    """Resize maps (N, h, w) to (N, height, width), bilinear (align_corners=False), unless already so.

    No value leaves its map's range: interpolation rounds, and would give a constant map a spread that it has not.
    """
    if maps.shape[-2:] == (height, width):
        return maps
    resized = F.interpolate(maps[:, None], size=(height, width), mode="bilinear", align_corners=False)[:, 0]
    return resized.clamp(maps.amin((1, 2), keepdim=True), maps.amax((1, 2), keepdim=True))
