"""What a search for a shortcut is given: images and objects that fit together, and the head whose answers are asked."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from attention_branch.errors import UserError
from attention_branch.explanations.outputs import checked_images, device_of, predict, unwrapped
from attention_branch.explanations.targets import known_head
from attention_branch.metrics.metric import as_tensor

LEAST_IMAGES = 10


def usable(model: nn.Module, images: Tensor, regions: Any) -> tuple[Tensor, Tensor | None, Tensor, int]:
    """Check images and regions and leave out images without a region where others have one."""
    device = device_of(model)
    images = checked_images(images) if device is None else checked_images(images).to(device)
    index = torch.arange(len(images))
    masks = None
    if regions is not None:
        if not isinstance(regions, (Tensor, np.ndarray, Sequence)) or len(regions) != len(images):
            given = f"{len(regions)} regions" if isinstance(regions, (Tensor, np.ndarray, Sequence)) else repr(regions)
            raise UserError(f"There are {len(images)} images and {given}; give one region per image.")
        known = [place for place, region in enumerate(regions) if region is not None]
        index = torch.tensor(known, dtype=torch.int64)
        if known:
            found = [as_tensor(regions[place], "A region") != 0 for place in known]
            odd = next((mask for mask in found if mask.shape != images.shape[-2:]), None)
            if odd is not None:
                raise UserError(
                    f"Regions of {tuple(odd.shape)} for images of {tuple(images.shape[-2:])}; give masks at the "
                    "network's input size (Sample.region makes them)."
                )
            masks = torch.stack(found).to(images.device)
            # An object that was cropped away is nowhere to be beside of.
            inside = masks.flatten(1).any(1).cpu()
            masks, index = masks[inside], index[inside]
    if len(index) < LEAST_IMAGES:
        raise UserError(f"{len(index)} images are too few to search for a shortcut; give {LEAST_IMAGES} or more.")
    return images[index], masks, index, len(images) - len(index)


def searched_head(model: nn.Module, image: Tensor, head: str | None) -> str | None:
    """Return the head whose answers are searched; `UserError` where the network has several and none is named."""
    scores, named = predict(model, image), getattr(unwrapped(model), "heads", None)
    heads = list(named) if isinstance(named, Mapping) else list(scores) if not isinstance(scores, Tensor) else []
    if head is not None:
        return known_head(heads, head)
    if len(heads) > 1:
        raise UserError(f"The model has {len(heads)} heads; choose one with head='{heads[0]}' ({', '.join(heads)}).")
    return heads[0] if heads else None
