"""Augmentation guided by attention: training images are zoomed, erased or mixed where the network looks.

    crop     the attended box fills the image              WS-DAN's attention cropping (arXiv 1901.09891, section 3.3)
    drop     the attended box becomes the mean colour      WS-DAN's attention dropping (section 3.3)
    cutmix   the partner's attended box is pasted at the   box and place: SaliencyMix (arXiv 2006.01791) and Attentive
             same place; labels by attention               CutMix (arXiv 2003.13048); labels: SnapMix (arXiv 2012.04846)

Ours: the map is the network's own, of this moment (Attentive CutMix asks another, pretrained network, SaliencyMix a
saliency filter, PuzzleMix, arXiv 2009.06962, the loss's gradient); the changed images take the place of the plain ones
(WS-DAN shows them besides, in two further steps); the erased place is a box (WS-DAN erases all that is above the
threshold); SnapMix's two shares, which need not add up to 1, are divided by their sum.

A pass without gradients makes the maps, for some of a batch's images only: batches come in random order, so that the
first ones are as good as drawn. It runs in evaluation mode, up to the attention branch, and leaves no trace in the
batch norms' statistics.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from attention_branch.errors import UserError
from attention_branch.models import AttentionBranchNetwork
from attention_branch.training.boxes import (
    attended_boxes,
    attended_sizes,
    attention_inside,
    in_pixels,
    inside,
    random_boxes,
)
from attention_branch.training.building import Trainable
from attention_branch.training.config import TrainConfig, check_shares
from attention_branch.training.mixing import Mixed, Targets, mix

CHANGES = {"crop": (0.5, 1.0), "drop": (0.25, 0.5), "cutmix": (0.25, 0.75)}
"""The changes, and the smallest and largest share of the image's side that a box may take.

Ours: a map may be high in one cell or almost everywhere. A box of 2 pixels is no picture, an image erased whole no
training example. What is erased is a sixteenth to a quarter of the image; Random Erasing (arXiv 1708.04896) takes 0.02
to 0.4 of it.
"""


class Changed(NamedTuple):
    """Images (N, 3, H, W) changed by attention, and why: their maps (N, h, w), the boxes in pixels (N, 4).

    `share` (N,) is what remains of each image's own label; None where labels stay.
    """

    images: Tensor
    maps: Tensor
    boxes: Tensor
    share: Tensor | None


class Guide:
    """Changes some of a batch's normalised images where a network looks: `guide(images, targets)`.

    `source` is the network whose maps are read: the one that is trained, or its running average. With several heads
    the mean of their maps counts. `share` of the images are changed, at least one of a batch (two for cutmix); a place
    counts as attended above `threshold` of its map's own range. With `at_random` the boxes keep their sizes and lie
    anywhere, and cutmix mixes labels by area: the control. A flat map has no box: crop and drop leave its image as it
    is, cutmix pastes nothing of it. Raises `UserError` for a network without a map of its own and for numbers out of
    range.
    """

    def __init__(
        self, source: nn.Module, change: str, *, share: float = 0.25, threshold: float = 0.5, at_random: bool = False
    ) -> None:
        if change not in CHANGES:
            raise UserError(f"Unknown change '{change}'; use one of {', '.join(CHANGES)}.")
        check_shares(share, threshold)
        if not isinstance(source, AttentionBranchNetwork) or source.map_control != "own":
            raise UserError(
                f"Attention cannot guide {change}: the network has no map of its own; leave out --guided, or train a "
                "network with an attention branch."
            )
        self.source, self.change = source, change
        self.share, self.threshold, self.at_random = share, threshold, at_random

    def __call__(self, images: Tensor, targets: Targets) -> Mixed:
        """Return a batch whose first images are changed; labels are mixed with those of their partners."""
        chosen = max(2 if self.change == "cutmix" else 1, round(self.share * len(images)))
        if self.change == "cutmix" and len(images) < 2:
            return Mixed(images, targets, None, 1.0)
        found = self.changed(images[:chosen])
        together = images.clone()
        together[:chosen] = found.images
        if found.share is None:
            return Mixed(together, targets, None, 1.0)
        share = found.share.new_ones(len(images))
        share[:chosen] = found.share
        if isinstance(targets, dict):
            return Mixed(together, targets, {head: _partners(t, chosen) for head, t in targets.items()}, share)
        return Mixed(together, targets, _partners(targets, chosen), share)

    @torch.no_grad()
    def changed(self, images: Tensor) -> Changed:
        """Return all of some images changed, with maps and boxes; in cutmix each is the next one's partner."""
        maps = self._maps(images)
        grid, size = (maps.shape[1], maps.shape[2]), (images.shape[2], images.shape[3])
        if min(grid) < 2:
            raise UserError(
                f"A map of {grid[0]}x{grid[1]} cells is too coarse to guide {self.change}; use larger images, or leave "
                "out --guided."
            )
        sizes = attended_sizes(maps, self.threshold, CHANGES[self.change])
        boxes = random_boxes(sizes, grid) if self.at_random else attended_boxes(maps, sizes)
        if self.change == "cutmix":
            return self._mixed(images, maps, boxes.roll(1, 0), grid)
        pixels = in_pixels(boxes, grid, size)
        if self.change == "crop":
            return Changed(zoomed(images, pixels), maps, pixels, None)
        # Normalised images: the mean colour is 0.
        return Changed(images.masked_fill(inside(pixels, size), 0), maps, pixels, None)

    def _mixed(self, images: Tensor, maps: Tensor, boxes: Tensor, grid: tuple[int, int]) -> Changed:
        """Paste the partner's `boxes` at the same place."""
        pixels = in_pixels(boxes, grid, (images.shape[2], images.shape[3]))
        pasted = inside(pixels, (images.shape[2], images.shape[3]))
        if self.at_random:
            share = 1 - pasted.float().mean((1, 2, 3))
        else:
            # What is left of the own attention, and what arrives of the partner's.
            left, arrived = 1 - attention_inside(maps, boxes), attention_inside(maps.roll(1, 0), boxes)
            share = torch.where(left + arrived > 0, left / (left + arrived), 1.0)
        return Changed(torch.where(pasted, images.roll(1, 0), images), maps, pixels, share)

    def _maps(self, images: Tensor) -> Tensor:
        kind = images.device.type
        # Without the cache: it would hand the training pass weights converted here, through which no gradient flows.
        with (
            _at_rest(self.source),
            torch.autocast(
                kind, torch.get_autocast_dtype(kind), enabled=torch.is_autocast_enabled(kind), cache_enabled=False
            ),
        ):
            attention, _ = self.source.attend(images)
        return attention.float().mean(1)


def make_guide(config: TrainConfig, model: Trainable, average: nn.Module | None) -> Guide | None:
    """Return the guide that the settings ask for; `average` is the network of averaged weights, where there is one."""
    if config.guided == "none":
        return None
    if config.guided_by == "ema" and average is None:
        raise UserError("guided_by is ema, but there is no average of the weights; add --ema 0.999, for instance.")
    return Guide(
        average if config.guided_by == "ema" and average is not None else model,
        config.guided,
        share=config.guided_share,
        threshold=config.guided_threshold,
        at_random=config.guided_by == "random",
    )


def check_guide(config: TrainConfig, model: Trainable) -> None:
    """Raise `UserError` if a network's maps cannot guide what the settings ask for: by one pass of a blank picture."""
    guide = make_guide(config, model, model)
    if guide is not None:
        guide.changed(torch.zeros(1, 3, *model.preprocessing.size))


def guide_batch(guide: Guide | None, images: Tensor, targets: Targets) -> Mixed:
    """Return a batch changed where attention points; unchanged without a guide."""
    return Mixed(images, targets, None, 1.0) if guide is None else guide(images, targets)


def mix_guided(guided: Mixed, config: TrainConfig) -> Mixed:
    """Mix a batch as a whole as the settings say; one that a guided cutmix has mixed stays."""
    if guided.neighbours is not None:
        return guided
    return mix(guided.images, guided.targets, config.mixup, config.cutmix)


def zoomed(images: Tensor, boxes: Tensor) -> Tensor:
    """Return images (N, 3, H, W) filled by their boxes (N, 4; pixels), bilinear; an empty box leaves the image.

    As if the box was cut out and resized (align_corners=False): no pixel outside of it is read.
    """
    axes = []
    for axis, pixels in enumerate(images.shape[2:]):
        first, end = boxes[:, axis, None].float(), boxes[:, axis + 2, None].float()
        end = torch.where(end > first, end, float(pixels))
        place = torch.arange(pixels, device=images.device) + 0.5
        read = first + place * (end - first) / pixels - 0.5
        read = torch.minimum(torch.maximum(read, first), end - 1)
        axes.append((2 * read + 1) / pixels - 1)  # grid_sample's own scale
    rows, columns = (axes[0][:, :, None], axes[1][:, None, :])
    grid = torch.stack(torch.broadcast_tensors(columns, rows), dim=-1)
    return F.grid_sample(images, grid.to(images.dtype), mode="bilinear", padding_mode="border", align_corners=False)


def _partners(targets: Tensor, chosen: int) -> Tensor:
    return torch.cat([targets[:chosen].roll(1, 0), targets[chosen:]])


@contextmanager
def _at_rest(network: nn.Module) -> Iterator[None]:
    """Put all of a network into evaluation mode, and each module back to what it was."""
    busy = [module for module in network.modules() if module.training]
    for module in busy:
        module.training = False
    try:
        yield
    finally:
        for module in busy:
            module.training = True
