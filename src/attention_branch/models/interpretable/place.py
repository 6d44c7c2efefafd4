"""Where a backbone's interpretable layers go: behind its last convolutions, and behind one more of their size.

The paper makes the filters of the top convolution interpretable and adds a 3x3 convolution of as many filters above it,
whose filters are interpretable too (section 4). In networks with skip connections, where a map is a sum of many
filters' maps, the authors' later paper (1901.02413) makes only one layer interpretable, the top one. Our reading of
that: the added convolution, because the last block's own output is such a sum.
"""

from collections import OrderedDict
from collections.abc import Callable

import torch
from timm.models.densenet import DenseNet
from timm.models.resnet import ResNet
from timm.models.vgg import VGG
from torch import Tensor, nn

from attention_branch.errors import UserError
from attention_branch.models.interpretable.network import FilterOptions, InterpretableLayer
from attention_branch.models.small import SmallNetwork
from attention_branch.models.vgg import VggCam

WORKS = "Works: timm's VGG, ResNet and DenseNet, the 32-pixel families and CAM's networks, such as interpretable:{}."

TOP = "interpretable"


def insert(backbone: nn.Module, name: str, num_classes: int, options: FilterOptions, *, fresh: bool) -> None:
    """Put interpretable layers into a backbone, in place; `fresh` draws a VGG's fully connected layers anew.

    Raises `UserError` for a backbone without a place for them.
    """

    def layer(filters: int) -> InterpretableLayer:
        return InterpretableLayer(filters, num_classes, options)

    if isinstance(backbone, SmallNetwork):
        # Networks of pre-activation blocks end in a norm and ReLU; their maps are those behind it.
        end = backbone.norm if isinstance(backbone.norm, nn.Sequential) else backbone.get_submodule("layer3")
        assert isinstance(end, nn.Sequential)
        end.add_module(TOP, _top(backbone.num_features, layer, norm=True))
    elif isinstance(backbone, ResNet):
        assert isinstance(backbone.layer4, nn.Sequential)
        backbone.layer4.add_module(TOP, _top(backbone.num_features, layer, norm=True))
    elif isinstance(backbone, DenseNet):
        backbone.features.add_module(TOP, _top(backbone.num_features, layer, norm=True))
    elif isinstance(backbone, VggCam):
        backbone.features.append(layer(backbone.feature_info[-2]["num_chs"]))
        backbone.cam.append(layer(backbone.num_features))  # its own 3x3 convolution is the one above
    elif isinstance(backbone, VGG):
        _into_vgg(backbone, layer, options, fresh)
    else:
        raise UserError(
            f"'{name}' has no place for interpretable filters: its last stage does not end in the maps of a "
            f"convolution behind a ReLU. {WORKS.format('resnet20, interpretable:vgg16')}"
        )


def _top(channels: int, layer: Callable[[int], nn.Module], *, norm: bool) -> nn.Sequential:
    """Return a 3x3 convolution to as many channels, with its norm where the network has norms, and the layer."""
    convolution = nn.Conv2d(channels, channels, 3, padding=1, bias=not norm)
    nn.init.kaiming_normal_(convolution.weight, mode="fan_out", nonlinearity="relu")
    if convolution.bias is not None:
        nn.init.zeros_(convolution.bias)
    parts: list[tuple[str, nn.Module]] = [("conv", convolution)]
    if norm:
        parts.append(("norm", nn.BatchNorm2d(channels)))
    return nn.Sequential(OrderedDict([*parts, ("act", nn.ReLU()), ("filters", layer(channels))]))


def _into_vgg(backbone: VGG, layer: Callable[[int], nn.Module], options: FilterOptions, fresh: bool) -> None:
    """Put both layers into a VGG's convolutions, before their last pooling.

    The released code masks the added convolution's maps behind the pooling, where its next layer begins.
    """
    channels = backbone.feature_info[-1]["num_chs"]
    norm = any(isinstance(module, nn.BatchNorm2d) for module in backbone.features)
    pool = backbone.features.pop(-1)
    above = [*_top(channels, layer, norm=norm)]
    backbone.features.append(layer(channels))
    backbone.features.extend([*above[:-1], pool, above[-1]] if options.variant == "released" else [*above, pool])
    backbone.feature_info[-1]["module"] = f"features.{len(backbone.features) - 1}"
    if fresh:
        # The paper starts its fully connected layers at random, on pretrained convolutions as well.
        for module in (*backbone.pre_logits.modules(), *backbone.head.modules()):
            if isinstance(module, nn.Conv2d | nn.Linear):
                module.reset_parameters()


@torch.no_grad()
def smallest_side(backbone: nn.Module, images: Tensor) -> int:
    """Return the fewest pixels a side at which every interpretable map still has 2x2 positions."""
    grids: list[int] = []
    handles = [
        module.register_forward_hook(lambda _module, _inputs, output: grids.append(min(output.shape[-2:])))
        for module in backbone.modules()
        if isinstance(module, InterpretableLayer)
    ]
    training = backbone.training
    try:
        backbone.eval()(images)
    finally:
        backbone.train(training)
        for handle in handles:
            handle.remove()
    return 2 * -(-images.shape[-1] // min(grids))
