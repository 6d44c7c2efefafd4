"""Checkpoints of the ABN authors' code on the networks here, tensor by tensor, with the same answers.

Their code is github.com/machine-perception-robotics-group/attention_branch_network, built on bearpaw's
pytorch-classification, whose plain networks have the same names. A network here asks for each of its tensors by the
authors' name of it; what is missing, left over or of another shape is refused by name.
"""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from attention_branch.errors import UserError, did_you_mean
from attention_branch.models.network import AttentionBranchNetwork, PlainNetwork
from attention_branch.models.preprocessing import Preprocessing
from attention_branch.models.registry import create_backbone, create_model
from attention_branch.models.small import SMALL

Rules = tuple[tuple[str, str], ...]
State = dict[str, Tensor]

# The branch's own layers have the same names in all of the authors' networks.
_HEAD: Rules = (
    (r"^branch\.norm\.", "bn_att."),
    (r"^branch\.classes\.", "att_conv."),
    (r"^branch\.class_norm\.", "bn_att2."),
    (r"^branch\.scorers\.0\.", "att_conv2."),
    (r"^branch\.mappers\.0\.", "att_conv3."),
    (r"^branch\.map_norm\.", "bn_att3."),
)
_ATTENTION = ("att_", "bn_att", "stage_att")


def _numbered(container: str, names: dict[int, str]) -> Rules:
    return tuple((rf"\.{container}\.{number}\.", f".{name}.") for number, name in names.items())


_RESNET: Rules = (
    *_HEAD,
    (r"^backbone\.stem\.0\.", "conv1."),
    (r"^backbone\.stem\.1\.", "bn1."),
    (r"^branch\.stage\.blocks\.0\.", "att_layer3."),
    *_numbered("convolutions", {0: "conv1", 1: "bn1", 3: "conv2", 4: "bn2", 6: "conv3", 7: "bn3"}),
    (r"\.shortcut\.", ".downsample."),
    (r"^backbone\.", ""),
)
_WIDE: Rules = (
    *_HEAD,
    (r"^backbone\.stem\.", "conv1."),
    (r"^backbone\.norm\.0\.", "bn1."),
    (r"^backbone\.layer(\d)\.", r"block\1.layer."),
    (r"^branch\.stage\.blocks\.0\.", "att_block3.layer."),
    (r"\.norm(\d)\.", r".bn\1."),
    (r"\.projection\.", ".convShortcut."),
    (r"^backbone\.", ""),
)
_DENSE: Rules = (
    *_HEAD,
    (r"^backbone\.stem\.", "conv1."),
    (r"^backbone\.norm\.0\.", "bn."),
    (r"^backbone\.layer(\d)\.block\.", r"dense\1."),
    (r"^backbone\.layer(\d)\.transition\.0\.", r"trans\1.bn1."),
    (r"^backbone\.layer(\d)\.transition\.2\.", r"trans\1.conv1."),
    (r"^branch\.stage\.blocks\.0\.block\.", "att_dense3."),
    *_numbered("layers", {0: "bn1", 2: "conv1", 3: "bn2", 5: "conv2"}),
    (r"^backbone\.", ""),
)
_RESNEXT: Rules = (
    *_HEAD,
    (r"^backbone\.stem\.0\.", "conv_1_3x3."),
    (r"^backbone\.stem\.1\.", "bn_1."),
    (r"^backbone\.layer(\d)\.(\d+)\.", r"stage_\1.stage_\1_bottleneck_\2."),
    (r"^branch\.stage\.blocks\.0\.(\d+)\.", r"stage_att.stage_att_bottleneck_\1."),
    *_numbered(
        "convolutions",
        {0: "conv_reduce", 1: "bn_reduce", 3: "conv_conv", 4: "bn", 6: "conv_expand", 7: "bn_expand"},
    ),
    (r"\.shortcut\.0\.", ".shortcut.shortcut_conv."),
    (r"\.shortcut\.1\.", ".shortcut.shortcut_bn."),
    (r"^backbone\.fc\.", "classifier."),
)
_IMAGENET: Rules = (*_HEAD, (r"^branch\.stage\.blocks\.0\.", "att_layer4."), (r"^backbone\.", ""))
# Their squeeze-and-excitation layers belong to the block itself, and are linear where ours are 1x1 convolutions.
_SENET: Rules = (*_IMAGENET, (r"\.se\.fc", ".fc"))

_SMALL_FAMILIES = {"resnet": _RESNET, "wrn_": _WIDE, "densenet": _DENSE, "resnext": _RESNEXT}
_BLOCKS: dict[tuple[tuple[int, ...], bool], str] = {
    ((2, 2, 2, 2), False): "resnet18",
    ((3, 4, 6, 3), False): "resnet34",
    ((3, 4, 6, 3), True): "resnet50",
    ((3, 4, 23, 3), True): "resnet101",
    ((3, 8, 36, 3), True): "resnet152",
}
NETWORKS: dict[str, Rules] = {
    **{name: rules for name in SMALL for family, rules in _SMALL_FAMILIES.items() if name.startswith(family)},
    **dict.fromkeys(_BLOCKS.values(), _IMAGENET),
    # Their SE-ResNet-18 and -34 squeeze 64 channels to 4, where timm's never go below 8.
    **{f"se{name}": _SENET for (_, bottleneck), name in _BLOCKS.items() if bottleneck},
}
"""The authors' names of a network's tensors, by the network's name here."""


def load_official(
    path: str | Path, name: str, num_classes: int | None = None, *, device: str | torch.device = "cpu"
) -> AttentionBranchNetwork | PlainNetwork:
    """Load a checkpoint of the ABN authors' code onto the same network here, in eval mode.

    `path` is a .pth.tar or .pth file, in PyTorch's new or old format: a dict with 'state_dict', or a state dict; from
    DataParallel or not. It is read as tensors and plain values only, so it cannot run code. `name` is the network's
    name here: of the 32-pixel families, or `resnet18` to `resnet152` and `seresnet50` to `seresnet152` (ImageNet). What
    the authors' code builds for the depths 44, 56 and 110 is `resnet65b`, `resnet83b` and `resnet164b`. `num_classes`
    is read from the checkpoint; given, it must agree. A checkpoint without an attention branch (of bearpaw's
    pytorch-classification, or torchvision's ResNets) gives a `PlainNetwork`.

    Logits, attention logits and map are the authors' up to rounding, at any image size. The preprocessing is theirs:
    CIFAR-10's mean and std for both CIFAR sets; for ImageNet 256 pixels bilinear, centre 224.

    The authors' ResNeXt leaves the batch norm before the 1x1 convolution to the classes (`bn_att`) out of its forward
    pass, so that one is not read from the checkpoint and `branch.norm` is the identity in eval mode. In training mode
    it is a batch norm like any other: the answers change at the first step. To train the authors' network on, call
    `model.branch.norm.eval().requires_grad_(False)` after each `model.train()`.

    The authors' SENet makes its map as the sum over classes of log(1 + A), so the network has `map_form="sum-log"`.

    Raises `UserError` for a file that is no such checkpoint, or does not fit the network (the first tensor that does
    not and the network it looks like are named).
    """
    state = _read(path)
    if not isinstance(name, str) or name not in NETWORKS:
        raise UserError(
            f"'{name}' is not a network of the authors' code.{did_you_mean(str(name), NETWORKS)} "
            f"They are: {', '.join(NETWORKS)}."
        )
    rules = NETWORKS[name]
    classifier = _rename("backbone.fc.weight", rules)
    if classifier not in state or state[classifier].ndim != 2:
        raise _misfit(path, name, state, f"it lacks the matrix '{classifier}'")
    classes = state[classifier].shape[0]
    if num_classes is not None and num_classes != classes:
        raise UserError(f"'{path}' has {classes} classes, not {num_classes}; leave num_classes out.")
    model: AttentionBranchNetwork | PlainNetwork
    if any(key.startswith(_ATTENTION) for key in state):
        form: dict[str, Any] = (
            {"map_form": "sum-log"} if rules is _SENET else {"map_kernel": _map_kernel(path, name, state)}
        )
        model = create_model(name, classes, **form)
    else:
        model = create_backbone(name, classes)
    if rules in (_IMAGENET, _SENET):
        model.preprocessing = Preprocessing(interpolation="bilinear")
    model.load_state_dict(_translate(path, name, state, model))
    if rules is _RESNEXT and isinstance(model, AttentionBranchNetwork):
        _make_identity(model.branch.norm)
    return model.to(device).eval()


def _read(path: str | Path) -> State:
    """Return a checkpoint's tensors by name, without DataParallel's prefix."""
    if Path(path).is_dir():
        raise UserError(f"'{path}' is a folder; give the checkpoint itself (load_model opens folders of this package).")
    if not Path(path).is_file():
        raise UserError(f"There is no file '{path}'; give a checkpoint of the authors' code (.pth.tar or .pth).")
    try:
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as problem:  # what a damaged or a foreign file raises depends on where it breaks
        raise UserError(
            f"'{path}' could not be read as tensors and plain values: it is damaged, or holds objects that could run "
            "code; where you trust it, save its tensors alone with torch.save(checkpoint['state_dict'], FILE)."
        ) from problem
    state = checkpoint.get("state_dict", checkpoint) if isinstance(checkpoint, Mapping) else checkpoint
    if not isinstance(state, Mapping) or not state:
        raise UserError(f"'{path}' holds no state dict; give a checkpoint of the authors' code.")
    for key, value in state.items():
        if not isinstance(key, str) or not isinstance(value, Tensor):
            raise UserError(f"'{path}' holds no state dict: its '{key}' is no tensor but {type(value).__name__}.")
    return {key.removeprefix("module."): value for key, value in state.items()}


def _rename(key: str, rules: Rules) -> str:
    """Return the authors' name of a tensor."""
    for pattern, replacement in rules:
        key = re.sub(pattern, replacement, key)
    return key


def _map_kernel(path: str | Path, name: str, state: State) -> int:
    """Return the kernel of the convolution that makes the map."""
    weight = state.get("att_conv3.weight")
    if weight is None:
        raise _misfit(path, name, state, "it lacks 'att_conv3.weight'")
    kernel = tuple(weight.shape[2:])
    if kernel not in ((1, 1), (3, 3)):
        raise _misfit(path, name, state, f"'att_conv3.weight' is {tuple(weight.shape)}, no convolution of 3x3 or 1x1")
    return kernel[0]


def _translate(path: str | Path, name: str, state: State, model: nn.Module) -> State:
    """Return all tensors of a network from the authors' state; `UserError` names the first that does not fit."""
    rules, tensors, used = NETWORKS[name], {}, set()
    for key, own in model.state_dict().items():
        theirs = _rename(key, rules)
        used.add(theirs)
        if rules is _RESNEXT and theirs.startswith("bn_att."):
            tensors[key] = own  # defined in the authors' ResNeXt and never called
        elif theirs in state:
            value = state[theirs]
            wanted = _their_shape(theirs, own)
            if tuple(value.shape) != wanted:
                raise _misfit(path, name, state, f"'{theirs}' is {tuple(value.shape)} there and {wanted} in {name}")
            if own.is_floating_point() and not value.is_floating_point():
                raise _misfit(path, name, state, f"'{theirs}' is of {value.dtype}")
            tensors[key] = value.reshape(own.shape)
        elif key.endswith(".num_batches_tracked"):
            tensors[key] = own  # not written before PyTorch 0.4.1; no answer depends on it
        else:
            raise _misfit(path, name, state, f"it lacks '{theirs}'")
    extra = next((key for key in state if key not in used), None)
    if extra is not None:
        raise _misfit(path, name, state, f"{name} has no '{extra}'")
    return tensors


def _their_shape(theirs: str, own: Tensor) -> tuple[int, ...]:
    """Return the shape that a tensor has in the authors' code."""
    # A 1x1 convolution before the mean over positions is a linear layer after it, and the other way round.
    if theirs == "att_conv2.weight":
        return (*own.shape, 1, 1)
    return tuple(own.shape[:2]) if re.search(r"\.fc[12]\.weight$", theirs) else tuple(own.shape)


def _make_identity(norm: nn.BatchNorm2d) -> None:
    """Set a batch norm so that it returns its input in eval mode, up to the rounding of one float32 number."""
    norm.reset_parameters()
    assert norm.running_var is not None
    norm.running_var.fill_(1 - norm.eps)


def _misfit(path: str | Path, name: str, state: State, what: str) -> UserError:
    likely = _looks_like(state)
    if likely in NETWORKS and likely != name:
        advice = f"it looks like {likely}, so load it under that name"
    elif likely is not None and likely != name:
        advice = f"it looks like {likely}, which is none of {', '.join(NETWORKS)}"
    else:
        advice = "it is incomplete or of changed code"
    return UserError(f"'{path}' does not fit {name}: {what}; {advice}.")


def _looks_like(state: State) -> str | None:
    """Return the name of the network that the names, shapes and numbers of blocks suggest, or None."""

    def blocks(prefix: str) -> int:
        return len({match[1] for key in state if (match := re.match(rf"{prefix}(\d+)\.", key))})

    def outputs(key: str) -> int:
        return state[key].shape[0] if key in state and state[key].ndim == 4 else 0

    if count := blocks(r"stage_1\.stage_1_bottleneck_"):
        grouped = state.get("stage_1.stage_1_bottleneck_0.conv_conv.weight")
        if grouped is None or grouped.ndim != 4 or not grouped.shape[1]:
            return None
        width = grouped.shape[1]
        return f"resnext{9 * count + 2}_{grouped.shape[0] // width}x{width}d"
    if count := blocks(r"block1\.layer\."):
        return f"wrn_{6 * count + 4}_{outputs('block1.layer.0.conv1.weight') // 16}"
    if (count := blocks(r"dense1\.")) and (growth := outputs("dense1.0.conv2.weight")):
        return f"densenet_bc_{6 * count + 4}_{growth}"
    # Without a norm behind the first convolution it is a pre-activation network, which has no name here.
    if "bn1.weight" not in state:
        return None
    bottleneck = "layer1.0.conv3.weight" in state
    if blocks(r"layer4\."):
        counts = tuple(blocks(rf"layer{number}\.") for number in (1, 2, 3, 4))
        found = _BLOCKS.get((counts, bottleneck)) if outputs("layer1.0.conv1.weight") == 64 else None
        return f"se{found}" if found and "layer1.0.fc1.weight" in state else found
    count = blocks(r"layer1\.")
    if not count or outputs("layer1.0.conv1.weight") != 16:
        return None
    return f"resnet{9 * count + 2}b" if bottleneck else f"resnet{6 * count + 2}"
