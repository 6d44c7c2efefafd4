"""A whole split of small pictures as uint8 on one device, cropped and mirrored there: no loader, no waiting for it.

The batches are those of `make_loader`, bit for bit: the same order, and the same changes to each picture.
"""

from typing import Any

import numpy as np
import torch
from torch import Tensor

from attention_branch.data.augment import BATCH_AUGMENTATIONS, uniforms
from attention_branch.data.dataset import ImageSet
from attention_branch.data.loader import BatchPlan
from attention_branch.errors import UserError
from attention_branch.models.preprocessing import Preprocessing

_DRAWS = 3
"""Numbers the changes below read of a sample's `uniforms`."""


def decoded(images: ImageSet, preprocessing: Preprocessing) -> np.ndarray:
    """Return all pictures of a split as the network sees them, uint8 (N, H, W, 3)."""
    height, width = preprocessing.size
    pixels = images.source.pixels()
    as_it_is = preprocessing.resize == "squash" or preprocessing.crop_pct == 1
    if pixels is not None and pixels.shape[1:3] == (height, width) and as_it_is:
        return pixels[images.rows]
    result = np.empty((len(images), height, width, 3), dtype=np.uint8)
    for number in range(len(images)):
        result[number] = np.asarray(preprocessing.image(images.image(number)))
    return result


def stacked_targets(images: ImageSet) -> np.ndarray:
    """Return the class numbers int64 (N,), or (N, T) with one column a head; -1 = missing."""
    targets = images.targets
    return np.stack(list(targets.values()), axis=1) if isinstance(targets, dict) else targets


class ResidentImages:
    """Pictures uint8 (N, H, W, 3) and class numbers (N,) or (N, T) of one split, kept on a device.

    For training it holds the order of one epoch, so that every run needs one of its own.
    """

    def __init__(self, pixels: np.ndarray, targets: np.ndarray, device: str | torch.device = "cpu") -> None:
        self.device = torch.device(device)
        if len(pixels) != len(targets):
            raise ValueError(f"{len(pixels)} pictures and {len(targets)} targets.")
        self.pixels = pixels
        self.on_device = None
        if self.device.type != "cpu":
            # A copy: torch warns of arrays that cannot be written, such as files mapped into memory.
            self.on_device = torch.from_numpy(np.array(pixels)).to(self.device)
        self.targets = torch.from_numpy(np.array(targets, dtype=np.int64)).to(self.device)
        self._order: np.ndarray = np.empty(0, dtype=np.int64)
        self._draws: np.ndarray = np.empty((0, _DRAWS))
        self._moved: dict[str, Tensor] = {}

    def __len__(self) -> int:
        return len(self.pixels)

    def begin_epoch(self, plan: BatchPlan, augment: str) -> None:
        """Draw an epoch's order and changes, and send them to the device at once."""
        if augment not in BATCH_AUGMENTATIONS:
            raise UserError(
                f"The augmentation '{augment}' works on single pictures, not on the device; use one of "
                f"{', '.join(BATCH_AUGMENTATIONS)}."
            )
        self.plan, self.augment = plan, augment
        self._order = plan.order()
        self._draws = uniforms(plan.seed, plan.epoch, self._order, _DRAWS)
        if self.on_device is not None:
            self._moved = {"order": self._send(self._order), **self._windows(augment)}

    def batch(self, number: int) -> tuple[Tensor, Tensor]:
        """Return the epoch's batch of that number: uint8 (B, 3, H, W), channels last, and its targets."""
        begin = number * self.plan.batch_size
        part = slice(begin, min(begin + self.plan.batch_size, len(self)))
        if self.on_device is None:
            rows = self._order[part]
            pictures = BATCH_AUGMENTATIONS[self.augment](self.pixels[rows], self._draws[part])
            return torch.from_numpy(np.ascontiguousarray(pictures)).permute(0, 3, 1, 2), self.targets[rows]
        chosen = {name: values[part] for name, values in self._moved.items()}
        index = chosen.pop("order")
        if not chosen:
            return self.on_device[index].permute(0, 3, 1, 2), self.targets[index]
        return _cut(self.on_device, index, **chosen).permute(0, 3, 1, 2), self.targets[index]

    def taken(self, index: Tensor) -> Tensor:
        """Return pictures as they are, uint8 (B, 3, H, W), channels last, by their numbers (on the device)."""
        if self.on_device is None:
            return torch.from_numpy(self.pixels[index.numpy()]).permute(0, 3, 1, 2)
        return self.on_device[index].permute(0, 3, 1, 2)

    def _send(self, values: np.ndarray) -> Tensor:
        tensor = torch.from_numpy(np.ascontiguousarray(values))
        if self.device.type == "cuda":
            tensor = tensor.pin_memory()
        return tensor.to(self.device, non_blocking=True)

    def _windows(self, augment: str) -> dict[str, Tensor]:
        """Return what `augment` does to each picture of the epoch as a window's corner and a mirroring."""
        if augment == "none":
            return {}
        height, width = self.pixels.shape[1:3]
        count = len(self._order)
        top = left = np.zeros(count, dtype=np.int64)
        mirrored = self._draws[:, 0] < 0.5
        if augment.startswith("pad-crop"):
            pad_y, pad_x = height // 8, width // 8
            top = (self._draws[:, 0] * (2 * pad_y + 1)).astype(np.int64) - pad_y
            left = (self._draws[:, 1] * (2 * pad_x + 1)).astype(np.int64) - pad_x
            mirrored = self._draws[:, 2] < 0.5 if augment == "pad-crop-flip" else np.zeros(count, dtype=bool)
        return {"top": self._send(top), "left": self._send(left), "mirrored": self._send(mirrored)}


def _cut(pixels: Tensor, index: Tensor, top: Tensor, left: Tensor, mirrored: Tensor) -> Tensor:
    """Return windows uint8 (B, H, W, 3) of the pictures' own size, black outside of them, mirrored where told."""
    _, height, width, _ = pixels.shape
    rows = torch.arange(height, device=pixels.device)[None] + top[:, None]  # (B, H)
    across = torch.arange(width, device=pixels.device)[None]
    across = torch.where(mirrored[:, None], width - 1 - across, across)
    columns = across + left[:, None]  # (B, W)
    inside = ((rows >= 0) & (rows < height))[:, :, None] & ((columns >= 0) & (columns < width))[:, None]
    taken = pixels[index[:, None, None], rows.clamp(0, height - 1)[:, :, None], columns.clamp(0, width - 1)[:, None]]
    return taken * inside[..., None]


def resident(images: ImageSet, preprocessing: Preprocessing, device: Any = "cpu") -> ResidentImages:
    """Decode a split and keep it on a device; 50,000 pictures of 32 pixels take 150 MB there."""
    return ResidentImages(decoded(images, preprocessing), stacked_targets(images), device)
