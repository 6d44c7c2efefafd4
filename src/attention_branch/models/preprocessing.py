"""From a picture to the tensor a network takes; saved with the weights so that both always travel together.

Nothing here needs torch before a tensor is asked for: `array` gives the same numbers without it.
"""

import functools
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Self

import numpy as np
from PIL import Image

if TYPE_CHECKING:
    import torch
    from torch import Tensor

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)

_INTERPOLATION = {
    "bicubic": Image.Resampling.BICUBIC,
    "bilinear": Image.Resampling.BILINEAR,
    "nearest": Image.Resampling.NEAREST,
}


@dataclass(frozen=True)
class Preprocessing:
    """Resize, crop and normalise one RGB picture for a network.

    `size` is (height, width) in pixels; `mean` and `std` are per channel on the [0, 1] scale. `resize="crop"` scales
    the shorter side to size / crop_pct and cuts out the centre; `resize="squash"` scales both sides to `size`, aspect
    ignored.
    """

    size: tuple[int, int] = (224, 224)
    mean: tuple[float, float, float] = IMAGENET_MEAN
    std: tuple[float, float, float] = IMAGENET_STD
    resize: str = "crop"
    crop_pct: float = 0.875
    interpolation: str = "bicubic"

    def __post_init__(self) -> None:
        if self.resize not in ("crop", "squash"):
            raise ValueError(f"resize is '{self.resize}'; it must be 'crop' or 'squash'.")
        if self.interpolation not in _INTERPOLATION:
            raise ValueError(f"interpolation is '{self.interpolation}'; it must be one of {', '.join(_INTERPOLATION)}.")

    def image(self, picture: Image.Image) -> Image.Image:
        """Return the part of an RGB picture that the network sees, at the network's size, before normalising."""
        height, width = self.size
        if (picture.height, picture.width) == (height, width) and (self.resize == "squash" or self.crop_pct == 1):
            return picture
        tall, wide = self._scaled(picture.height, picture.width)
        if (tall, wide) != (picture.height, picture.width):
            picture = picture.resize((wide, tall), _INTERPOLATION[self.interpolation])
        top, left = self._corner((tall, wide))
        return picture.crop((left, top, left + width, top + height))

    def pixels_to_scale(self, picture_size: tuple[int, int]) -> int:
        """Return how many pixels a picture of (height, width) has at the moment before its middle is cut out.

        Cropping scales the shorter side: a long thin picture becomes enormous on its way.
        """
        tall, wide = self._scaled(*picture_size)
        return tall * wide

    def _corner(self, scaled: tuple[int, int]) -> tuple[int, int]:
        """Return (top, left) of what is cut out of the middle of a picture of (height, width), as torchvision does."""
        return round((scaled[0] - self.size[0]) / 2.0), round((scaled[1] - self.size[1]) / 2.0)

    def _scaled(self, tall: int, wide: int) -> tuple[int, int]:
        """Return the (height, width) a picture is scaled to before its centre is cut out."""
        height, width = self.size
        if self.resize == "squash":
            return height, width
        # The smallest scaling at which the picture covers size / crop_pct in both directions keeps its aspect.
        scale = max(height / self.crop_pct / tall, width / self.crop_pct / wide)
        return max(height, round(tall * scale)), max(width, round(wide * scale))

    def geometry(self, picture_size: tuple[int, int]) -> tuple[tuple[float, float], tuple[int, int]]:
        """Return what `image` does to a picture of (height, width): its factors, then the corner of what is cut out.

        Both are for (vertical, horizontal); the corner (top, left) is in pixels of the scaled picture.
        """
        if picture_size == tuple(self.size) and (self.resize == "squash" or self.crop_pct == 1):
            return (1.0, 1.0), (0, 0)
        scaled = self._scaled(*picture_size)
        return (scaled[0] / picture_size[0], scaled[1] / picture_size[1]), self._corner(scaled)

    def tensor(self, picture: Image.Image) -> "Tensor":
        """Return an RGB picture as a normalised float32 tensor (3, H, W)."""
        import torch

        return self.normalize(torch.from_numpy(np.array(self.image(picture))).permute(2, 0, 1))

    def array(self, picture: Image.Image) -> np.ndarray:
        """Return an RGB picture as a normalised float32 array (3, H, W): the numbers of `tensor`, without torch."""
        return self.array_of_view(self.image(picture))

    def array_of_view(self, view: Image.Image) -> np.ndarray:
        """Return what `image` returned as a normalised float32 array (3, H, W)."""
        pixels = np.asarray(view)
        found = np.empty((3, *pixels.shape[:2]), dtype=np.float32)
        # A byte has 256 values: to look each pixel's up takes a quarter of the time of computing it.
        for channel, levels in enumerate(_levels(tuple(self.mean), tuple(self.std))):
            levels.take(pixels[..., channel], out=found[channel], mode="clip")
        return found

    def normalize(self, images: "Tensor") -> "Tensor":
        """Normalise images (..., 3, H, W), uint8 or float in [0, 1]."""
        import torch

        images = images.float() / 255 if images.dtype == torch.uint8 else images
        mean, std = self._constants(images)
        return (images - mean) / std

    def denormalize(self, images: "Tensor") -> "Tensor":
        """Return normalised images (..., 3, H, W) to floats in [0, 1], clamped."""
        mean, std = self._constants(images)
        return (images * std + mean).clamp(0, 1)

    def _constants(self, like: "Tensor") -> "tuple[Tensor, Tensor]":
        return _column(tuple(self.mean), like.dtype, like.device), _column(tuple(self.std), like.dtype, like.device)

    def to_dict(self) -> dict[str, Any]:
        """Return the settings as plain values for a JSON file."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Self:
        """Rebuild from `to_dict`'s values (lists become tuples)."""
        plain: dict[str, Any] = {
            key: tuple(value) if isinstance(value, list) else value for key, value in values.items()
        }
        return cls(**plain)


@functools.lru_cache(maxsize=32)
def _levels(mean: tuple[float, ...], std: tuple[float, ...]) -> np.ndarray:
    """Return what each of the 256 values of a byte becomes, float32 (3, 256)."""
    levels = np.arange(256, dtype=np.float32) / np.float32(255)
    centre, spread = (np.array(values, dtype=np.float32)[:, None] for values in (mean, std))
    return (levels - centre) / spread


@functools.lru_cache(maxsize=32)
def _column(values: tuple[float, ...], dtype: "torch.dtype", device: "torch.device") -> "Tensor":
    """Return values as (3, 1, 1) on a device; kept, because a copy to a GPU would wait for it at every step."""
    import torch

    with torch.inference_mode(mode=False):
        return torch.tensor(values, dtype=dtype, device=device).view(3, 1, 1)
