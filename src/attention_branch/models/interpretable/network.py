"""The interpretable CNN (Zhang, Wu and Zhu, CVPR 2018, arXiv 1710.00935): filters that each watch one part.

Behind the ReLU of an interpretable layer each filter's map is multiplied by the template around its own peak, which
leaves one place and removes what lies far from it. In training a loss pulls every filter towards one place in the
images of one class, its category, and towards none in those of other classes. No part is labelled.
"""

from dataclasses import dataclass
from typing import Any, Literal, get_type_hints

import torch
from torch import Tensor, nn

from attention_branch.errors import UserError
from attention_branch.models.everywhere import processes, total
from attention_branch.models.interpretable.released import (
    FIRST_SLOPE,
    next_slope,
    released_loss,
    released_mask,
    strengths,
)
from attention_branch.models.interpretable.templates import (
    fits,
    l1_template,
    mutual_information_loss,
    own_template_loss,
    peak,
    template_bank,
)
from attention_branch.models.loss import Losses, Targets, abn_loss
from attention_branch.models.network import PlainNetwork
from attention_branch.models.output import ABNOutput, Scores
from attention_branch.models.saving import ModelConfig

VARIANTS = ("paper", "exact", "released")
MEMORY = {"paper": 0.99, "exact": 0.99, "released": 0.9}
"""Share of a filter's mean activation for a class that a batch leaves as it was: 0.9 is the released code's.

The paper takes the mean over all training images; a long memory of batches comes near it.
"""


@dataclass(frozen=True)
class FilterOptions:
    """What `create_backbone("interpretable:NAME", ...)` takes beside the backbone's own options."""

    variant: Literal["paper", "exact", "released"] = "paper"
    """Filter loss: the paper's approximation, the mutual information itself (no labels), or the released code's."""
    filter_weight: float = 1.0
    """Factor of the filter loss; 0 trains without it."""
    mask: bool = True
    """Whether maps are masked around their peaks; without, and with weight 0, it is an ordinary network."""


class InterpretableLayer(nn.Module):
    """Masks the maps of its filters and, in training, keeps them for the filter loss. It has no weights.

    `activity` (C, K) is the mean activation of each filter in the images of each class so far, 0 for a class not seen
    yet; the class with the highest is the filter's category.
    """

    activity: Tensor
    seen: Tensor
    slope: Tensor
    epoch: Tensor

    def __init__(self, filters: int, num_classes: int, options: FilterOptions) -> None:
        super().__init__()
        self.options = options
        self.num_classes = num_classes
        self.register_buffer("activity", torch.zeros(filters, num_classes))
        self.register_buffer("seen", torch.zeros(num_classes))
        self.register_buffer("slope", torch.full((filters,), FIRST_SLOPE), persistent=options.variant == "released")
        self.register_buffer("epoch", torch.ones(()), persistent=False)
        self.kept: Tensor | None = None
        self.kept_template: Tensor | None = None

    def extra_repr(self) -> str:
        """Say how many filters there are, and which loss they have."""
        return f"{len(self.activity)} filters, variant={self.options.variant}, weight={self.options.filter_weight}"

    def forward(self, x: Tensor) -> Tensor:
        """Return activations (N, C, h, w), none of them negative, masked."""
        needed = self.training and self.options.filter_weight > 0
        if not self.options.mask and not needed:
            return x
        # Kept for the loss, the template is no more made anew on the way back of a compiled pass, when the loss has
        # moved the slope. It is that of the loss, in single precision or better.
        template = self.template(_wide(x.detach()))
        if needed:
            self.kept, self.kept_template = x, template
        return x * template.clamp_min(0).to(x.dtype) if self.options.mask else x

    def train(self, mode: bool = True) -> "InterpretableLayer":
        """Change the mode; what a training pass kept is dropped."""
        self.kept = self.kept_template = None
        return super().train(mode)

    def __getstate__(self) -> dict[str, Any]:
        # A copy of the network starts without a pass: what is kept hangs on a graph, which cannot be copied.
        return self.__dict__ | {"kept": None, "kept_template": None}

    def template(self, x: Tensor) -> Tensor:
        """Return each map's own template (N, C, h, w) from -1 to 1, without tau."""
        if self.options.variant == "released":
            return released_mask(x, self.slope)
        rows, columns = peak(x)
        return l1_template(rows, columns, (x.shape[2], x.shape[3])).to(x.dtype)

    @property
    def categories(self) -> Tensor:
        """(C,) int64: the class in which each filter is most active; -1 where no class was seen."""
        return torch.where(self.seen.any(), self.activity.argmax(1), -1)

    def filter_loss(self, labels: Tensor, weights: Tensor | None) -> Tensor:
        """Return the loss of all filters for the kept pass, of labels (N,) with -1 where missing; weights (N,).

        Summed over filters, as each has its own gradient in the paper. The means over images are those over all
        processes' images.
        """
        if self.kept is None:
            raise ValueError("The filter loss needs a training pass: call the network in training mode first.")
        x = _wide(self.kept)
        labels = own_rows(labels, len(x))
        weights = None if weights is None else own_rows(weights, len(x))
        known = labels >= 0
        chosen = known.to(x.dtype) if weights is None else known.to(x.dtype) * weights.to(x.dtype)
        if self.options.variant == "released":
            own = self._own(labels)
            self._remember(x.detach().amax((2, 3)), labels, weights)
            loss = self._released(x, own, known)
            count = total(x.new_full((), float(len(x)))) / processes()
            return (loss * chosen[:, None]).sum() / count / self.epoch * self.options.filter_weight
        self._remember(x.detach().sum((2, 3)), labels, weights)
        scores = fits(x, template_bank(x.shape[2], x.shape[3], x.device).to(x.dtype))
        if self.options.variant == "exact":
            loss = mutual_information_loss(scores)
            loss = loss if weights is None else loss * weights.mean()
        else:
            rows, columns = peak(x.detach())
            place = torch.where(self._own(labels), rows * x.shape[3] + columns, x.shape[2] * x.shape[3])
            loss = (own_template_loss(scores, place) * chosen[:, None]).sum(0)
        highest = total(x.detach().amax((2, 3)).sum(0)) / total(x.new_full((), float(len(x))))
        # The processes' gradients are averaged, but the loss is the sum of their summands.
        return (loss * highest).sum() / self.epoch * self.options.filter_weight * processes()

    def _released(self, x: Tensor, own: Tensor, known: Tensor) -> Tensor:
        assert self.kept_template is not None
        mask = self.kept_template
        pulls = strengths(x.detach(), mask, own & known[:, None], ~own & known[:, None], self.slope)
        self.slope.copy_(next_slope(self.slope, pulls.slope.to(self.slope.dtype)))
        return released_loss(x, mask, pulls, self.num_classes)

    def _own(self, labels: Tensor) -> Tensor:
        """Return whether an image is of a filter's category, bool (N, C); before any class was seen, all are."""
        return (labels[:, None] == self.categories) | ~self.seen.any()

    @torch.no_grad()
    def _remember(self, activation: Tensor, labels: Tensor, weights: Tensor | None) -> None:
        """Take a batch's activations (N, C) into the filters' means by class, each image with its label's weight.

        A class goes the further towards the batch's mean the more its images' labels weigh, and begins where they weigh
        half or more: a mixed image belongs to its larger part.
        """
        dtype = self.activity.dtype
        of_class = (labels[:, None] == torch.arange(self.num_classes, device=labels.device)).to(dtype)  # (N, K)
        weighted = of_class if weights is None else of_class * weights.to(dtype)[:, None]
        sums = total(torch.cat([activation.to(dtype).T @ weighted, weighted.sum(0)[None], of_class.sum(0)[None]]))
        weight, count = sums[-2], sums[-1]
        mean = sums[:-2] / weight.clamp_min(torch.finfo(dtype).tiny)
        share = weight / count.clamp_min(1)
        step = torch.where(self.seen > 0, (1 - MEMORY[self.options.variant]) * share, (share >= 0.5).to(dtype))
        self.activity.copy_(torch.where(weight > 0, torch.lerp(self.activity, mean, step), self.activity))
        self.seen.copy_(torch.maximum(self.seen, (share >= 0.5).to(dtype)))


def _wide(x: Tensor) -> Tensor:
    return x.float() if x.dtype in (torch.bfloat16, torch.float16) else x


def own_rows(values: Tensor, count: int) -> Tensor:
    """Return this process's part of targets (N,), which may be all processes' together, in the order of ranks."""
    if len(values) == count:
        return values
    if len(values) != count * processes():
        raise ValueError(f"There are {count} images in the last training pass and {len(values)} targets.")
    start = torch.distributed.get_rank() * count
    return values[start : start + count]


class InterpretableNetwork(PlainNetwork):
    """A backbone whose top filters are interpretable; its loss is the cross-entropy plus the filter loss."""

    @property
    def layers(self) -> dict[str, InterpretableLayer]:
        """The interpretable layers by name, in the order in which they run."""
        found = self.named_modules()
        return {name: module for name, module in found if isinstance(module, InterpretableLayer)}

    @property
    def filter_categories(self) -> Tensor:
        """(C,) int64: the class of each filter of the last interpretable layer, in which it is most active.

        -1 before training, and in networks without the filter loss, which see no labels.
        """
        return list(self.layers.values())[-1].categories

    def begin_epoch(self, epoch: int) -> None:
        """Be told the epoch, counted from 0: the filter loss is divided by its number, counted from 1."""
        for layer in self.layers.values():
            layer.epoch.fill_(epoch + 1)

    def loss(
        self,
        output: ABNOutput | Scores,
        targets: Targets,
        *,
        label_smoothing: float = 0.0,
        weights: Tensor | None = None,
    ) -> Losses:
        """Return cross-entropy plus filter loss, of the last pass in training mode; `perception` is the former alone.

        Probabilities (N, K) as targets give each image the category of the highest. Called twice for a mixed batch,
        with both images' targets and their weights, it weights both filter losses alike.
        """
        plain = abn_loss(output, targets, label_smoothing=label_smoothing, weights=weights)
        assert isinstance(targets, Tensor)
        labels = targets.argmax(1) if targets.ndim == 2 else targets
        layers = [layer for layer in self.layers.values() if layer.options.filter_weight > 0]
        if not self.training or not layers:
            return plain
        with torch.autocast(labels.device.type, enabled=False):
            filters = torch.stack([layer.filter_loss(labels, weights) for layer in layers]).sum()
        return plain._replace(total=plain.total + filters)


def read_options(config: ModelConfig) -> tuple[FilterOptions, dict[str, Any]]:
    """Split a configuration's options into those of the filters and those of the backbone; `UserError` for bad ones."""
    if config.heads is not None:
        raise UserError(
            f"'{config.name}' takes one task: a filter's category is one of its classes. Give num_classes, or train a "
            "network for each head."
        )
    given = dict(config.backbone_options)
    own = {name: given.pop(name) for name in get_type_hints(FilterOptions) if name in given}
    options = FilterOptions(**own)
    if options.variant not in VARIANTS:
        raise UserError(f"Unknown variant '{options.variant}'; use one of {', '.join(VARIANTS)}.")
    weight = options.filter_weight
    if isinstance(weight, bool) or not isinstance(weight, int | float) or not 0 <= weight < float("inf"):
        raise UserError(f"filter_weight is {weight!r}; it is a factor of the filter loss, 0 or more.")
    if not isinstance(options.mask, bool):
        raise UserError(f"mask is {options.mask!r}; use True or False.")
    return options, given
