"""PANDA (Zhang, Paluri, Ranzato, Darrell, Bourdev: CVPR 2014, arXiv 1311.5591): a network a part, then linear SVMs.

    image -> places of the parts -> a patch and a small network a part -+-> features side by side -> linear SVM a head
       +---------------------------> a network of the whole image ------+

Each network is trained on all heads by itself; a part that is not in the picture has features of zeros. The part
networks, the whole image's and what joins them follow the paper and its released code, which raises the features to
the power 0.3 before the SVM. The nearest thing: the paper's parts are 150 poselets of persons; here `parts` says
what they are:

    landmarks    ten squares about the eyes, nose and mouth (`face_parts.py`), as Liu et al. (ICCV 2015) adapt PANDA to
                 faces. They use the given points of test faces too; here a small network finds them in every image.
    localiser    the whole, and a 3x3 grid of overlapping windows, of where an LNet finds the face (`localiser.py`)
    grid         the same nine windows of the image itself
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from attention_branch.errors import UserError
from attention_branch.models.facial.attributes import two_sided
from attention_branch.models.facial.crops import cut, enlarged, share_inside, within
from attention_branch.models.facial.lnets_anet import CONTEXT, TrunkMaker
from attention_branch.models.facial.localiser import LNet, best_window
from attention_branch.models.facial.part_networks import PartNetworks
from attention_branch.models.facial.parts import LEAST_INSIDE, PARTS, PointNet, overlapping_boxes, part_boxes
from attention_branch.models.facial.staged import StagedNetwork
from attention_branch.models.loss import Losses, Targets, abn_loss
from attention_branch.models.output import ABNOutput, Scores
from attention_branch.models.saving import ModelConfig

PLACES = ("landmarks", "localiser", "grid")
CELLS = 3
POWER = 0.3
"""The released code's normalisation of the features that the SVMs read: sign(f) |f|^0.3."""


class Parts(NamedTuple):
    """Where a batch's parts are."""

    boxes: Tensor
    """(N, P, 4): (x0, y0, x1, y1) in shares of width and height."""
    present: Tensor
    """(N, P) bool: whether at least half of the part is in the picture."""


class EachScores(dict[str, Tensor]):
    """The mean of several networks' answers by head, and each network's own in `each`."""

    def __init__(self, mean: dict[str, Tensor], each: list[Scores]) -> None:
        super().__init__(mean)
        self.each = each


class PartModules(nn.Module):
    """What finds the parts, the part networks, and the whole image's network."""

    def __init__(
        self, places: str, parts: PartNetworks, whole: Any, points: PointNet | None, lnet: LNet | None
    ) -> None:
        super().__init__()
        self.places = places
        # Not the backbone's `num_features`: some have a layer before the classifier that widens them.
        example = torch.zeros(1, *whole.pretrained_cfg["input_size"])
        training = whole.training
        with torch.no_grad():
            width = whole.eval().forward_head(whole.forward_features(example), pre_logits=True).shape[1]
        whole.train(training)
        self.num_features: int = parts.parts * parts.num_features + int(width)
        if points is not None:
            self.points = points
        if lnet is not None:
            self.lnet = lnet
        self.parts = parts
        self.whole = whole
        self.pretrained_cfg = self.default_cfg = dict(whole.pretrained_cfg)


class Panda(StagedNetwork):
    """Part networks and a whole image's, with linear classifiers on all their features."""

    def __init__(self, config: ModelConfig, backbone: PartModules) -> None:
        self.stages = ("lnet", "parts") if backbone.places == "localiser" else ("parts",)
        super().__init__(config, backbone, int(backbone.num_features))

    @property
    def part_names(self) -> tuple[str, ...]:
        """What the parts are called, in order."""
        if self.backbone.places == "landmarks":
            return tuple(part.name for part in PARTS)
        cells = tuple(f"row {row}, column {column}" for row in (1, 2, 3) for column in (1, 2, 3))
        return ("all", *cells) if self.backbone.places == "localiser" else cells

    def stage_modules(self, stage: str) -> tuple[nn.Module, ...]:
        """Return the networks that a stage trains: `lnet`, or `parts` with the whole image's."""
        return (self.backbone.lnet,) if stage == "lnet" else (self.backbone.parts, self.backbone.whole)

    def localise(self, images: Tensor) -> Parts:
        """Return where the parts of normalised images (N, 3, H, W) are; no gradients."""
        with torch.no_grad():
            height, width = images.shape[-2:]
            if self.backbone.places == "landmarks":
                boxes = part_boxes(self.backbone.points(images), (height, width))
            else:
                cells = overlapping_boxes(CELLS).to(images.device)[None].expand(images.shape[0], -1, -1)
                boxes = cells
                if self.backbone.places == "localiser":
                    face = enlarged(best_window(self.backbone.lnet.response(images)), CONTEXT)
                    placed = [within(face, cells[:, number]) for number in range(CELLS * CELLS)]
                    boxes = torch.stack([face, *placed], dim=1)
            return Parts(boxes, share_inside(boxes) >= LEAST_INSIDE)

    def part_features(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Return the parts' features (N, P, D), zeros for those that are missing, and the whole image's (N, D')."""
        boxes, present = self.localise(images)
        side = self.backbone.parts.side
        features = self.backbone.parts(cut(images, boxes, (side, side))) * present[..., None]
        whole = self.backbone.whole
        return features, whole.forward_head(whole.forward_features(images), pre_logits=True)

    def features(self, images: Tensor) -> Tensor:
        """Return all networks' features, one vector an image (N, 1, D)."""
        parts, whole = self.part_features(images)
        return powered(torch.cat([parts.flatten(1), whole], dim=1))[:, None]

    def forward(self, images: Tensor) -> Scores:
        """Return logits by head; while the part networks are trained, with each network's own answers in `each`."""
        if self.stage != "parts":
            return super().forward(images)
        self._check_images(images)
        every = self._every_score(images)  # (N, P + 1, T)
        each = [self._by_head(two_sided(scores, self.sizes)) for scores in every.unbind(1)]
        mean = self._by_head(two_sided(every.mean(1), self.sizes))
        if isinstance(mean, dict):
            return EachScores(mean, each)
        mean.each = each  # type: ignore[attr-defined]
        return mean

    def stage_scores(self, images: Tensor) -> Tensor:
        """Return the outputs (N, T) of the LNet that is trained, or the mean over the part networks."""
        return self.backbone.lnet(images) if self.stage == "lnet" else self._every_score(images).mean(1)

    def loss(
        self,
        output: ABNOutput | Scores,
        targets: Targets,
        *,
        label_smoothing: float = 0.0,
        weights: Tensor | None = None,
    ) -> Losses:
        """Return the sum of the networks' own losses: each is trained as if it were alone.

        A part network learns nothing from an image in which its part is missing but its answer to zeros.
        """
        each = getattr(output, "each", [output])
        found = [abn_loss(one, targets, label_smoothing=label_smoothing, weights=weights) for one in each]
        return Losses(*(torch.stack(list(values)).sum() for values in zip(*found, strict=True)))

    def _every_score(self, images: Tensor) -> Tensor:
        parts, whole = self.part_features(images)
        network = self.backbone.whole
        head = network.get_classifier() if hasattr(network, "get_classifier") else network.fc
        return torch.cat([self.backbone.parts.scores(parts), head(whole)[:, None]], dim=1)


def powered(features: Tensor) -> Tensor:
    """Return sign(f) |f|^0.3, with a finite slope at zero."""
    least = 1e-4
    return features.sign() * ((features.abs() + least) ** POWER - least**POWER)


def create_panda(
    config: ModelConfig,
    heads: int,
    make: TrunkMaker,
    *,
    parts: str = "landmarks",
    part: int = 56,
    channels: int = 64,
    hidden: int = 128,
    whole: str = "resnet18",
    whole_options: dict[str, Any] | None = None,
    lnet: str = "alexnet",
    lnet_options: dict[str, Any] | None = None,
) -> Panda:
    """Build PANDA for so many heads.

    `parts` says where parts are ("landmarks", "localiser" or "grid"), `part` their side in pixels (56 or 32),
    `channels` and `hidden` how wide their networks are; `whole` and `lnet` name backbones, with options of their own.
    """
    if parts not in PLACES:
        raise UserError(f"parts is '{parts}'; use one of {', '.join(PLACES)}.")
    count = {"landmarks": len(PARTS), "localiser": CELLS * CELLS + 1, "grid": CELLS * CELLS}[parts]
    modules = PartModules(
        parts,
        PartNetworks(count, heads, part, channels, hidden),
        make(whole, heads, whole_options or {}),
        PointNet() if parts == "landmarks" else None,
        LNet(make(lnet, heads, lnet_options or {}), lnet) if parts == "localiser" else None,
    )
    return Panda(config, modules)
