"""LNets+ANet (Liu, Luo, Wang, Tang: Deep Learning Face Attributes in the Wild, ICCV 2015, arXiv 1411.7766).

    image -> LNet_o -> response -> head and shoulders -> LNet_s -> response -> face -> ANet -> linear SVM a head

No box or landmark is used: both LNets are trained on the image's attributes, and what they respond to is where the face
is taken to be. ANet looks at five overlapping patches of the face, enlarged a little; every patch's features get the
same linear classifiers, whose scores are averaged.

As in the paper: the cascade, what each network is trained on, the mean over channels as response, filters local to
cells in ANet's last two convolutions, patches, averaged SVM scores. *Our reading*: the windows (`localiser.py`), ANet's
layers (`anet.py`), the enlargement, all parts cut out of the network's input and not of the picture as stored. *The
nearest thing*: ANet starts at random (in the paper from face identities), the LNets too without `pretrained`. Patches
are computed one by one; the paper's interweaved operation gives the same features sooner.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from attention_branch.models.facial.anet import ANet, region_side
from attention_branch.models.facial.crops import cut, enlarged, within
from attention_branch.models.facial.localiser import LNet, best_window
from attention_branch.models.facial.staged import StagedNetwork
from attention_branch.models.saving import ModelConfig

CONTEXT = 1.2
"""How much a window is enlarged before it is cut out ('a small factor' in the paper)."""

FACE_THRESHOLD = 0.0
"""LNet_s's threshold is its map's mean: the face fills much of what it sees, and a higher one cut out pieces of faces
(validation pictures of benchmarks/localise.py). LNet_o's is that of `localiser.py`."""

TrunkMaker = Callable[[str, int, dict[str, Any]], nn.Module]
"""Makes a backbone of a name, with so many outputs and further options."""


class Localised(NamedTuple):
    """Where a batch's faces were found; boxes (N, 4) are (x0, y0, x1, y1) in shares of width and height."""

    faces: Tensor
    """As ANet sees them."""
    head_shoulders: Tensor
    """As LNet_s sees them."""
    response: Tensor
    """LNet_o's map (N, h, w) over the image."""
    face_response: Tensor
    """LNet_s's map (N, h, w) over the head and shoulders."""


class Cascade(nn.Module):
    """The three networks."""

    def __init__(self, lnet_o: LNet, lnet_s: LNet, anet: ANet) -> None:
        super().__init__()
        self.lnet_o, self.lnet_s, self.anet = lnet_o, lnet_s, anet
        self.pretrained_cfg = self.default_cfg = dict(lnet_o.trunk.pretrained_cfg)
        self.num_features = anet.num_features


class LNetsANet(StagedNetwork):
    """The cascade with its linear classifiers."""

    stages = ("lnet-o", "lnet-s", "anet")

    def __init__(self, config: ModelConfig, backbone: Cascade) -> None:
        super().__init__(config, backbone, backbone.num_features)

    def stage_modules(self, stage: str) -> tuple[nn.Module, ...]:
        """Return the network that a stage trains."""
        return (getattr(self.backbone, stage.replace("-", "_")),)

    def localise(self, images: Tensor) -> Localised:
        """Return where the faces of normalised images (N, 3, H, W) are, with both response maps; no gradients."""
        with torch.no_grad():
            upper, response = self._head_shoulders(images)
            side = min(images.shape[-2:])
            face_response = self.backbone.lnet_s.response(cut(images, upper[:, None], (side, side))[:, 0])
            faces = enlarged(within(upper, best_window(face_response, FACE_THRESHOLD)), CONTEXT)
        return Localised(faces, upper, response, face_response)

    def features(self, images: Tensor) -> Tensor:
        """Return ANet's features of the face's five patches (N, 5, D)."""
        return self.backbone.anet.region_features(self._faces(images))

    def stage_scores(self, images: Tensor) -> Tensor:
        """Return the outputs (N, T) of the network that is trained."""
        if self.stage == "lnet-o":
            return self.backbone.lnet_o(images)
        if self.stage == "lnet-s":
            side = min(images.shape[-2:])
            with torch.no_grad():
                upper, _ = self._head_shoulders(images)
                seen = cut(images, upper[:, None], (side, side))[:, 0]
            return self.backbone.lnet_s(seen)
        return self.backbone.anet(self._faces(images))

    def _head_shoulders(self, images: Tensor) -> tuple[Tensor, Tensor]:
        response = self.backbone.lnet_o.response(images)
        return enlarged(best_window(response), CONTEXT), response

    def _faces(self, images: Tensor) -> Tensor:
        side = self.backbone.anet.side
        return cut(images, self.localise(images).faces[:, None], (side, side))[:, 0]


def create_lnets_anet(
    config: ModelConfig,
    heads: int,
    make: TrunkMaker,
    *,
    lnet: str = "alexnet",
    lnet_options: dict[str, Any] | None = None,
    face: int | None = None,
    features: int = 256,
    drop_rate: float = 0.5,
) -> LNetsANet:
    """Build the cascade for so many heads.

    `lnet` names the backbone of both LNets, `lnet_options` are its own; `face` is the side in pixels of the face region
    that ANet sees (56, 112 or 168; left out: by the image's size); `features` and `drop_rate` are ANet's.
    """
    lnets = [LNet(make(lnet, heads, lnet_options or {}), lnet) for _ in range(2)]
    size = config.image_size or tuple(lnets[0].trunk.pretrained_cfg["input_size"][1:])
    anet = ANet(heads, face or region_side(min(size)), features, drop_rate)
    return LNetsANet(config, Cascade(lnets[0], lnets[1], anet))
