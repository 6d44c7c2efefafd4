"""From a name to a network: every timm backbone that passes the proof, and the 32-pixel families."""

from collections.abc import Mapping
from dataclasses import asdict, replace
from numbers import Integral
from typing import Any

import timm
import timm.data
import torch
from torch import nn

from attention_branch.errors import UserError, did_you_mean
from attention_branch.models.alexnet import AlexNetFeatures
from attention_branch.models.branch import MAP_FORMS, AttentionBranch, LiteStage, StageChoice, copy_stage
from attention_branch.models.facial.facetracer import FaceTracer
from attention_branch.models.facial.lnets_anet import create_lnets_anet
from attention_branch.models.facial.moon import Moon, backbone_config
from attention_branch.models.facial.panda import create_panda
from attention_branch.models.gate import Construction, GatePlace, Proof, grid_size, locate, output_until, prove
from attention_branch.models.heads import PERCEPTIONS, prove_shared
from attention_branch.models.interpretable.network import InterpretableNetwork, read_options
from attention_branch.models.interpretable.place import insert, smallest_side
from attention_branch.models.network import MAP_CONTROLS, MECHANISMS, AttentionBranchNetwork, Network, PlainNetwork
from attention_branch.models.preprocessing import Preprocessing
from attention_branch.models.residual_attention import RESIDUAL_ATTENTION, create_residual_attention
from attention_branch.models.saving import ModelConfig, check_class_names
from attention_branch.models.small import SMALL, create_small
from attention_branch.models.vgg import CAM_NETWORKS, create_cam, create_wide_vgg, is_vgg

BRANCHES = ("paper", "lite")

ATTRIBUTE_SYSTEMS = ("facetracer", "panda", "lnets-anet", "moon")
"""Systems for yes/no attributes (`attributes.py`); `moon:NAME` is MOON on another backbone."""

INTERPRETABLE = (
    *SMALL, *CAM_NETWORKS, "vgg16", "vgg16_bn", "vgg19", "resnet18", "resnet34", "resnet50", "resnet101", "resnet152",
    "densenet121",
)  # fmt: skip
"""Some of the networks that `interpretable:NAME` is made of; timm's other VGGs, ResNets and DenseNets work too."""

KINDS: dict[str, tuple[str, ...]] = {
    "32-pixel family": tuple(SMALL),
    "CAM's network": CAM_NETWORKS,
    "Residual Attention Network": tuple(RESIDUAL_ATTENTION),
    "facial attributes system": ATTRIBUTE_SYSTEMS,
    "interpretable CNN; also of timm's other VGGs, ResNets and DenseNets": tuple(
        f"interpretable:{name}" for name in INTERPRETABLE
    ),
}
"""The networks of this package by kind; all others are timm's."""

ALONE: frozenset[str] = frozenset({"interpretable", *ATTRIBUTE_SYSTEMS})
"""Systems of their own, on which no attention branch is put: names, or what stands before a name's colon."""


def list_backbones() -> list[str]:
    """Return the names that `create_backbone` knows, kind by kind, then timm's."""
    return [*(name for names in KINDS.values() for name in names), *timm.list_models()]


def stands_alone(name: str) -> bool:
    """Tell whether a network is a system of its own, on which no attention branch is put."""
    return name.partition(":")[0] in ALONE


def create_model(
    name: str,
    num_classes: int | None = None,
    *,
    heads: dict[str, int] | None = None,
    pretrained: bool = False,
    mechanism: str = "residual",
    branch: str = "paper",
    map_kernel: int = 3,
    map_form: str = "sigmoid",
    map_control: str = "own",
    perception: str = "separate",
    class_names: Any = None,
    image_size: int | tuple[int, int] | None = None,
    **backbone_options: Any,
) -> AttentionBranchNetwork:
    """Build an Attention Branch Network on a named backbone.

    Give `num_classes` for a single task or `heads={"smiling": 2, ...}` for several (1 means one sigmoid logit).
    `mechanism` is g * (1 + M) for "residual", g * M for "product", g for "none" (the branch is trained, its map not
    applied: the deep-supervision control). `branch` is "paper" or "lite" (at most 5 % more multiply-adds).
    `map_kernel` is 3 (the published numbers) or 1 (the paper's figure). `map_form` is "sigmoid", or "sum-log": the map
    of the authors' SENet code, the sum over classes of log(1 + A), without a bound. `map_control` makes a control
    network, in training and in use: the map is 0.5 everywhere ("constant"), or that of the image before in the batch
    ("shuffled", for batches in random order). `perception`, with several heads, is "separate" (the perception branch is
    run once a head, on g gated by its map: the paper's section 3.4) or "shared" (run once on g; each head's map weights
    the last features, which the backbone's own head reads). `image_size` is for backbones of fixed size; further
    options (`drop_rate`, ...) go to the backbone. Raises `UserError` for a backbone that cannot be gated, or not in
    this way.
    """
    if stands_alone(name):
        raise UserError(f"'{name}' is a system of its own without an attention branch; use create_backbone.")
    if mechanism not in MECHANISMS:
        raise UserError(f"Unknown mechanism '{mechanism}'; use one of {', '.join(MECHANISMS)}.")
    if branch not in BRANCHES:
        raise UserError(f"Unknown branch '{branch}'; use one of {', '.join(BRANCHES)}.")
    if map_kernel not in (1, 3):
        raise UserError(f"map_kernel is {map_kernel}; use 3 (the published numbers) or 1 (the paper's figure).")
    if map_form not in MAP_FORMS:
        raise UserError(f"Unknown map_form '{map_form}'; use one of {', '.join(MAP_FORMS)}.")
    if map_form == "sum-log" and map_kernel != 3:
        raise UserError("map_form='sum-log' makes the map without a convolution: leave map_kernel out.")
    if map_form == "sum-log" and map_control == "constant":
        raise UserError(
            "map_control='constant' is 0.5 everywhere, the middle of a map in [0, 1]; a map of map_form='sum-log' has "
            "no bound and so no middle: use map_control='shuffled'."
        )
    if map_control not in MAP_CONTROLS:
        raise UserError(f"Unknown map_control '{map_control}'; use one of {', '.join(MAP_CONTROLS)}.")
    if perception not in PERCEPTIONS:
        raise UserError(f"Unknown perception '{perception}'; use one of {', '.join(PERCEPTIONS)}.")
    if perception == "shared" and (heads is None or len(heads) < 2):
        raise UserError(
            "perception='shared' is for several heads, which share one perception branch; this network has one: leave "
            "it out."
        )
    config = _config(name, num_classes, heads, image_size, backbone_options)
    config.mechanism, config.branch, config.perception = mechanism, branch, perception
    config.map_kernel, config.map_form, config.map_control = map_kernel, map_form, map_control
    config.class_names = check_class_names(class_names, config)
    model = build(config, pretrained=pretrained)
    assert isinstance(model, AttentionBranchNetwork)
    return model


def create_backbone(
    name: str,
    num_classes: int | None = None,
    *,
    heads: dict[str, int] | None = None,
    pretrained: bool = False,
    class_names: Any = None,
    image_size: int | tuple[int, int] | None = None,
    **backbone_options: Any,
) -> PlainNetwork:
    """Build the same network without a branch: the baseline. Arguments as in `create_model`."""
    config = _config(name, num_classes, heads, image_size, backbone_options)
    config.class_names = check_class_names(class_names, config)
    model = build(config, pretrained=pretrained)
    assert isinstance(model, PlainNetwork)
    return model


def _config(
    name: str,
    num_classes: int | None,
    heads: dict[str, int] | None,
    image_size: int | tuple[int, int] | None,
    options: dict[str, Any],
) -> ModelConfig:
    if (num_classes is None) == (heads is None):
        raise UserError("Give either num_classes (one task) or heads={name: number of classes} (several).")
    if num_classes is not None:
        if not isinstance(num_classes, Integral):
            raise UserError(f"num_classes is {num_classes!r}, not a whole number; several tasks go in heads.")
        num_classes = int(num_classes)
        if num_classes < 2:
            raise UserError(f"num_classes is {num_classes}; a classifier needs at least 2.")
    if heads is not None and (not _whole_numbers(heads) or min(heads.values()) < 1):
        raise UserError("heads must name at least one task, each with 1 (one sigmoid logit) or more classes.")
    size = (image_size, image_size) if isinstance(image_size, int) else image_size
    return ModelConfig(
        name=name,
        num_classes=num_classes,
        heads={task: int(count) for task, count in heads.items()} if heads else None,
        image_size=size,
        backbone_options=dict(options),
    )


def _whole_numbers(heads: Any) -> bool:
    return isinstance(heads, Mapping) and bool(heads) and all(isinstance(count, Integral) for count in heads.values())


def build(config: ModelConfig, *, pretrained: bool = False, weights_follow: bool = False) -> Network:
    """Build the network a configuration describes, fill in what its backbone fixes, and prove its gate.

    Where `weights_follow`, weights are loaded afterwards, and no draws are made for the branch's stage alone.
    """
    if config.name.partition(":")[0] in ATTRIBUTE_SYSTEMS:
        return _attribute_system(config, pretrained)
    total = sum(config.heads.values()) if config.heads else int(config.num_classes or 0)
    if config.name.partition(":")[0] == "interpretable":
        return _interpretable(config, pretrained)
    backbone = _backbone(config, total, pretrained)
    complete(config, backbone)
    if config.mechanism is None:
        return PlainNetwork(config, backbone)
    backbone.eval()
    images, place = _locate(config, backbone)
    proof = prove(backbone, place, config.name, images)
    if not proof.tail_reproduced:
        place = GatePlace(**{**asdict(place), "tail": ()})
    with torch.no_grad():
        features = output_until(backbone, place.features, images)
        size = grid_size(features, place, images, backbone)
        # From scratch the branch's stage starts from draws of its own, as in the paper; a pretrained one is a copy.
        source = backbone if pretrained or weights_follow else _backbone(config, total, False).eval()
        choice = _stage(config, source, place, proof, features, size)
    sizes = list(config.heads.values()) if config.heads else [total]
    # The paper replaces VGG's fully connected layers by 3x3 convolutions in the branch; one, to the K classes, is our
    # reading of it. Everywhere else the convolution to the classes is 1x1.
    class_kernel = 3 if type(backbone).__name__ == "VGG" and config.branch == "paper" else 1
    branch = AttentionBranch(choice.stage, choice.channels, sizes, config.map_kernel, class_kernel, config.map_form)
    last: GatePlace | None = None
    coarsest = size
    if config.perception == "shared":
        last, coarsest = prove_shared(backbone, place, config.name, images)
    if config.fixed_size is None:
        config.smallest_side = 2 * max(1, round(images.shape[-1] / coarsest[1]))
    elif min(coarsest) < 2:
        raise UserError(
            f"Images of {images.shape[-2]}x{images.shape[-1]} are too small for {config.name}: the map would have a "
            "single position. Choose a larger image_size."
        )
    stride = max(1, round(images.shape[-1] / size[1]))
    model = AttentionBranchNetwork(config, backbone, place, branch, last)
    native = model.preprocessing.size
    model.check_size(*native)
    model.construction = Construction(place, proof, choice.note, (native[0] // stride, native[1] // stride))
    return model.train()


def _interpretable(config: ModelConfig, pretrained: bool) -> InterpretableNetwork:
    """Build `interpretable:NAME`: the backbone NAME with interpretable layers in it."""
    options, rest = read_options(config)
    assert config.num_classes is not None
    base = replace(config, name=config.name.partition(":")[2], backbone_options=rest)
    backbone = _backbone(base, config.num_classes, pretrained)
    complete(config, backbone)
    insert(backbone, config.name, config.num_classes, options, fresh=pretrained)
    side = 32 if base.name in SMALL else 64
    config.smallest_side = smallest_side(backbone, torch.zeros(1, 3, side, side))
    return InterpretableNetwork(config, backbone).train()


def _attribute_system(config: ModelConfig, pretrained: bool) -> PlainNetwork:
    """Build a system for yes/no attributes."""
    name, colon, _ = config.name.partition(":")
    if name == "moon":
        plain = backbone_config(config)
        backbone = _backbone(plain, len(config.heads or "1"), pretrained)
        complete(plain, backbone)
        config.preprocessing, config.fixed_size = config.preprocessing or plain.preprocessing, plain.fixed_size
        return Moon(config, backbone)
    if colon:
        how = {"panda": ", and its network is chosen by the option whole", "lnets-anet": " and by the option lnet"}
        raise UserError(
            f"'{config.name}' has a name after the colon, and '{name}' is built by its name alone{how.get(name, '')}."
        )
    if name == "facetracer":
        if pretrained:
            raise UserError(f"There are no pretrained weights for '{name}'; leave pretrained out.")
        return FaceTracer(config)
    heads = len(config.heads or "1")

    def make(trunk: str, outputs: int, options: dict[str, Any]) -> nn.Module:
        return _trunk(trunk, outputs, options, config.image_size, pretrained)

    create: dict[str, Any] = {"lnets-anet": create_lnets_anet, "panda": create_panda}
    model: Any = _call(name, lambda: create[name](config, heads, make, **config.backbone_options))
    complete(config, model.backbone)
    config.smallest_side = max(getattr(module, "smallest_side", 1) for module in model.modules())
    return model


def _trunk(
    name: str, outputs: int, options: dict[str, Any], image_size: tuple[int, int] | None, pretrained: bool
) -> nn.Module:
    """Build a backbone that is a part of a system."""
    if name == "alexnet":
        return _call(name, lambda: AlexNetFeatures(outputs, pretrained, **options), pretrained)
    return _backbone(ModelConfig(name=name, image_size=image_size, backbone_options=options), outputs, pretrained)


def _backbone(config: ModelConfig, total: int, pretrained: bool) -> nn.Module:
    name, options = config.name, dict(config.backbone_options)
    if name in SMALL or name in RESIDUAL_ATTENTION:
        if pretrained:
            raise UserError(
                f"There are no pretrained weights for '{name}'; leave pretrained out, or use a timm backbone."
            )
        create_own = create_small if name in SMALL else create_residual_attention
        return _call(name, lambda: create_own(name, total, **options))
    if name in CAM_NETWORKS:
        return _call(name, lambda: create_cam(name, total, pretrained, **options), pretrained)
    hub = name.startswith("hf-hub:")
    if not name:
        raise UserError("No backbone is named; put one behind the colon, such as interpretable:resnet20.")
    if name.partition(":")[0] == "interpretable":
        raise UserError("An interpretable CNN is made of a plain backbone; write interpretable: once.")
    if not hub and not timm.is_model(name):
        raise UserError(f"Unknown backbone '{name}'.{did_you_mean(name, list_backbones())} `abn models` lists all.")
    if "channels" in options and is_vgg(name):
        if pretrained:
            raise UserError(f"There are no pretrained weights for '{name}' with other channels; leave pretrained out.")
        return _call(name, lambda: create_wide_vgg(name, total, **options))

    def create(**size: Any) -> nn.Module:
        return timm.create_model(name, pretrained=pretrained, num_classes=total, **size, **options)

    if config.image_size is not None:
        try:
            return _call(name, lambda: create(img_size=config.image_size), pretrained)
        except UserError as problem:
            if "img_size" not in str(problem):  # Only networks tied to one size take that argument; the rest need none.
                raise
    return _call(name, create, pretrained)


def _call(name: str, create: Any, pretrained: bool = False) -> nn.Module:
    try:
        return create()
    except TypeError as problem:
        raise UserError(f"'{name}' does not take these options ({problem}); leave them out.") from problem
    except (RuntimeError, OSError, ValueError) as problem:
        if not pretrained:
            raise
        reason = str(problem).splitlines()[0] if str(problem) else type(problem).__name__
        raise UserError(
            f"The pretrained weights of '{name}' could not be loaded ({reason}); connect to the network once, or leave "
            "pretrained out."
        ) from problem


def complete(config: ModelConfig, backbone: Any) -> None:
    """Fill in the preprocessing and the sizes a backbone takes."""
    config_dict = timm.data.resolve_model_data_config(backbone)
    embed = getattr(backbone, "patch_embed", None)
    strict = bool(getattr(embed, "strict_img_size", False)) or bool(
        (getattr(backbone, "pretrained_cfg", None) or getattr(backbone, "default_cfg", {})).get("fixed_input_size")
    )
    if getattr(backbone, "dynamic_img_size", False) or config.backbone_options.get("dynamic_img_size"):
        strict = False
    size = tuple(config.image_size or config_dict["input_size"][1:])
    embedded = getattr(embed, "img_size", None)
    if strict:
        config.fixed_size = tuple(embedded) if embedded else size
        size = config.fixed_size
    if config.preprocessing is None:
        squash = config_dict.get("crop_mode") == "squash"
        config.preprocessing = Preprocessing(
            size=(int(size[0]), int(size[1])),
            mean=tuple(config_dict["mean"]),
            std=tuple(config_dict["std"]),
            resize="squash" if squash else "crop",
            crop_pct=float(config_dict["crop_pct"]),
            interpolation=config_dict["interpolation"]
            if config_dict["interpolation"] in ("bicubic", "bilinear", "nearest")
            else "bicubic",
        )


def _locate(config: ModelConfig, backbone: nn.Module) -> tuple[torch.Tensor, GatePlace]:
    """Find the gate on example images, as small as the backbone takes them: the proof's cost grows with their size."""
    assert config.preprocessing is not None
    native = config.fixed_size or config.preprocessing.size
    small = (16, 16) if config.name in SMALL or config.name.endswith("_cifar") else (64, 64)
    sizes = [native] if config.fixed_size else [small, native]
    problem: Exception | None = None
    for size in sizes:
        images = torch.randn(2, 3, *size, generator=torch.Generator().manual_seed(0))
        try:
            with torch.no_grad():
                backbone(images)
        except (RuntimeError, ValueError, AssertionError, IndexError) as raised:
            problem = raised
            continue
        return images, locate(backbone, config.name, images)
    raise UserError(f"'{config.name}' does not run on images of {native[0]}x{native[1]}: {problem}.")


def _stage(
    config: ModelConfig,
    backbone: nn.Module,
    place: GatePlace,
    proof: Proof,
    features: torch.Tensor,
    size: tuple[int, int],
) -> StageChoice:
    if config.branch == "lite":
        channels = lite_channels(place)
        return StageChoice(LiteStage(place, channels), channels, f"depthwise 3x3 and 1x1 to {channels} channels")
    return copy_stage(backbone, place, features, size, reproduced=proof.stage_reproduced)


def lite_channels(place: GatePlace) -> int:
    """Return the width of the lite branch: a quarter of g's channels, at least 32."""
    return max(32, place.channels // 4)
