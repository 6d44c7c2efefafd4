"""Where the gate sits in a backbone, found by watching one forward pass and proved before it is used.

The backbone stays whole. `locate` names the place: the features g that the attention branch reads are the input of the
last stage, and the map multiplies either g itself or, where the stage begins with a norm that would erase a factor per
position, that norm's output. Vision transformers are gated at `norm1` of their last blocks, patch tokens only. `prove`
checks the place in float64, because `feature_info` alone is not to be trusted.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from attention_branch.errors import UserError
from attention_branch.models.probing import perturbed, relative_change, reproduces

WORKS_INSTEAD = "Works for instance: resnet50, efficientnet_b0, convnext_tiny, swin_tiny_patch4_window7_224, resnet20."


@dataclass(frozen=True)
class GatePlace:
    """Where the features leave a backbone and where the map enters it again; all modules by name."""

    features: str
    """Module whose output is g(x), what the attention branch reads."""
    stage: tuple[str, ...]
    """Modules of the last stage in the order they run on g; the branch copies them."""
    tail: tuple[str, ...]
    """Modules that lead from g to the head in order; empty when the backbone cannot be resumed at g."""
    gates: tuple[str, ...]
    """Modules whose output the map multiplies; empty when it multiplies g itself."""
    layout: str
    """Layout of g: 'NCHW', 'NHWC' or 'NLC' (tokens)."""
    prefix_tokens: int
    """Tokens before the patch tokens (class token, registers), which no map touches."""
    channels: int
    """Channels of g."""
    stage_channels: int
    """Channels of the last stage's output."""
    reason: str
    """Why the gate sits there, in words."""


class _Reached(Exception):
    """Carries the features out of a backbone, so that what comes after them is not computed."""

    def __init__(self, value: Any) -> None:
        self.value = value


def output_until(backbone: nn.Module, name: str, images: Tensor) -> Any:
    """Return the output of the named module for images, computing nothing behind it."""

    def stop(_module: nn.Module, _inputs: Any, output: Any) -> None:
        raise _Reached(output)

    handle = backbone.get_submodule(name).register_forward_hook(stop)
    try:
        backbone(images)
    except _Reached as reached:
        return reached.value
    finally:
        handle.remove()
    raise RuntimeError(f"Module '{name}' did not run.")


def outputs_of(backbone: nn.Module, names: tuple[str, ...], images: Tensor) -> tuple[list[Any], Any]:
    """Return what the named modules put out for images, and the backbone's own answer, of one pass."""
    seen: dict[str, Any] = {}

    def watch(name: str) -> Any:
        def hook(_module: nn.Module, _inputs: Any, output: Any) -> None:
            # The first run's, as `output_until` gives; a copy, because what follows may work in place.
            seen.setdefault(name, output.clone() if isinstance(output, Tensor) else output)

        return hook

    handles = [backbone.get_submodule(name).register_forward_hook(watch(name)) for name in names]
    try:
        answer = backbone(images)
    finally:
        for handle in handles:
            handle.remove()
    return [seen[name] for name in names], answer


def run_sequence(backbone: nn.Module, names: tuple[str, ...], x: Tensor) -> Tensor:
    """Run the named modules one after the other."""
    for name in names:
        x = backbone.get_submodule(name)(x)
    return x


def to_maps(x: Tensor, place: GatePlace, size: tuple[int, int] | None = None) -> Tensor:
    """Bring features of any layout to (N, C, h, w); tokens need the grid's `size`."""
    if place.layout == "NHWC":
        return x.permute(0, 3, 1, 2)
    if place.layout == "NLC":
        assert size is not None
        patches = x[:, place.prefix_tokens :]
        return patches.transpose(1, 2).unflatten(2, size)
    return x


def weight(x: Tensor, factor: Tensor, place: GatePlace) -> Tensor:
    """Multiply features of any layout by a factor (N, 1, h, w), resized to their grid; prefix tokens stay."""
    factor = factor.to(x.dtype)
    if place.layout == "NLC":
        if factor.shape[-2] * factor.shape[-1] != x.shape[1] - place.prefix_tokens:
            raise ValueError(f"A factor of {tuple(factor.shape[-2:])} does not fit {x.shape[1]} tokens.")
        column = factor.flatten(2).transpose(1, 2)
        if place.prefix_tokens:
            column = torch.cat([column.new_ones(column.shape[0], place.prefix_tokens, 1), column], dim=1)
        return x * column
    size = x.shape[1:3] if place.layout == "NHWC" else x.shape[2:4]
    factor = resize_map(factor, (size[0], size[1]))
    return x * (factor.permute(0, 2, 3, 1) if place.layout == "NHWC" else factor)


def resize_map(attention: Tensor, size: tuple[int, int]) -> Tensor:
    """Resize maps (N, T, h, w) bilinearly; maps that fit already pass untouched."""
    if tuple(attention.shape[-2:]) == tuple(size):
        return attention
    return F.interpolate(attention, size=size, mode="bilinear", align_corners=False)


# --- finding the place -------------------------------------------------------------------------------------------


@dataclass
class _Call:
    """One module's run in the trace: what went in, what came out, and when it began and ended."""

    name: str
    start: int
    end: int = -1
    inputs: Any = None
    output: Any = None


def _trace(backbone: Any, images: Tensor) -> list[_Call]:
    """Return every module run of `forward_features`, in the order in which they began."""
    calls: list[_Call] = []
    open_calls: list[_Call] = []
    clock = iter(range(10**9))
    handles = []

    def enter(name: str) -> Any:
        def hook(_module: nn.Module, inputs: tuple[Any, ...]) -> None:
            open_calls.append(_Call(name, next(clock), inputs=inputs))
            calls.append(open_calls[-1])

        return hook

    def leave(_module: nn.Module, _inputs: Any, output: Any) -> None:
        call = open_calls.pop()
        call.end, call.output = next(clock), output

    for name, module in backbone.named_modules():
        if name:
            handles += [module.register_forward_pre_hook(enter(name)), module.register_forward_hook(leave)]
    try:
        with torch.no_grad():
            backbone.forward_features(images)
    finally:
        for handle in handles:
            handle.remove()
    return calls


def _following(calls: list[_Call], name: str) -> list[_Call]:
    """Return the runs that continue where the named module ended: at each level of nesting, its later siblings."""
    last = [call for call in calls if call.name == name][-1]
    found: list[_Call] = []
    scope = name
    while scope:
        scope = scope.rpartition(".")[0]
        prefix = f"{scope}." if scope else ""
        siblings = [
            call
            for call in calls
            if call.start > last.end
            and call.name.startswith(prefix)
            and "." not in call.name[len(prefix) :]
            # A container whose inside has begun before the features were ready is covered by its own children.
            and not name.startswith(f"{call.name}.")
        ]
        found += [call for call in siblings if all(call.start > other.end for other in found)]
    return found


def _is_position_norm(module: nn.Module, x: Any) -> bool:
    """Tell whether a leaf module's output does not change when each position of its input is scaled on its own."""
    if not isinstance(x, Tensor) or x.ndim not in (3, 4) or not x.is_floating_point():
        return False
    # Measured, not read off the class name: timm has a dozen norm classes and some normalise more than a position.
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(x.shape, generator=generator, dtype=x.dtype) + x
    with torch.no_grad():
        base = module(x)
        if not isinstance(base, Tensor) or not base.any():
            return False
        for shape in ((*x.shape[:-1], 1), (x.shape[0], 1, *x.shape[2:])):
            scale = 1 + torch.rand(shape, generator=generator, dtype=x.dtype)
            if relative_change(module(x * scale), base) < 1e-3:
                return True
    return False


def _feature_info(backbone: nn.Module) -> list[dict[str, Any]]:
    info = getattr(backbone, "feature_info", None)
    info = getattr(info, "info", info)
    return [dict(entry) for entry in info] if info else []


def _features_module(backbone: nn.Module, info: list[dict[str, Any]]) -> tuple[str, str, bool]:
    """Return the module before the last stage, the module that ends it, and whether the network is isotropic."""
    last = info[-1]["module"]
    if len({entry["reduction"] for entry in info}) == 1:
        # One resolution throughout: the last quarter of the blocks is the perception branch.
        count = max(1, len(info) // 4)
        return info[-1 - count]["module"], last, True
    if type(backbone).__name__ == "VGG":
        # timm's entry is the end of the last block of convolutions, behind which only a pooling is left. The stage
        # here is that block with its pooling (conv5_1 to pool5 of VGG16), so g ends at the pooling before it.
        pools = [name for name, module in backbone.named_modules() if isinstance(module, nn.MaxPool2d)]
        return pools[-2], last, False
    return info[-2]["module"], last, False


def locate(backbone: nn.Module, name: str, images: Tensor) -> GatePlace:
    """Find the gate's place in a backbone (eval mode, any float type) by one forward pass on example images.

    Raises `UserError` when the backbone has no place where one tensor carries the features.
    """
    info = _feature_info(backbone)
    if len(info) < 2:
        raise UserError(f"'{name}' does not say where its stages end, so it cannot be gated. {WORKS_INSTEAD}")
    features, last, isotropic = _features_module(backbone, info)
    calls = _trace(backbone, images)
    names = {call.name for call in calls}
    for wanted in (features, last):
        if wanted not in names:
            raise UserError(f"'{name}' cannot be gated: its module '{wanted}' does not run by itself. {WORKS_INSTEAD}")
    source = [call for call in calls if call.name == features][-1]
    if not isinstance(source.output, Tensor):
        kind = type(source.output).__name__
        raise UserError(f"'{name}' cannot be gated: '{features}' passes on a {kind}, not one tensor. {WORKS_INSTEAD}")
    following = _following(calls, features)
    tail = [call.name for call in following]
    stage = tuple(tail[: tail.index(last) + 1]) if last in tail else tuple(tail)
    layout, prefix = layout_of(backbone, source.output)
    ending = [call for call in calls if call.name == last][-1].output
    if not isinstance(ending, Tensor) or not stage:
        raise UserError(f"'{name}' cannot be gated: its last stage does not end in one tensor. {WORKS_INSTEAD}")
    gates, reason = _gates(backbone, calls, source, stage, isotropic, layout)
    axis = 1 if layout == "NCHW" else -1
    return GatePlace(
        features=features,
        stage=stage,
        tail=tuple(tail),
        gates=gates,
        layout=layout,
        prefix_tokens=prefix,
        channels=source.output.shape[axis],
        stage_channels=ending.shape[axis],
        reason=reason,
    )


def layout_of(backbone: nn.Module, features: Tensor) -> tuple[str, int]:
    """Return a backbone's layout of features, and the number of tokens before those of patches."""
    if features.ndim == 3:
        return "NLC", int(getattr(backbone, "num_prefix_tokens", 0))
    return ("NHWC" if getattr(backbone, "output_fmt", "NCHW") == "NHWC" else "NCHW"), 0


def _gates(
    backbone: nn.Module, calls: list[_Call], source: _Call, stage: tuple[str, ...], isotropic: bool, layout: str
) -> tuple[tuple[str, ...], str]:
    """Choose what the map multiplies, and say why."""
    if isotropic and layout == "NLC":
        norms = tuple(f"{block}.norm1" for block in stage if hasattr(backbone.get_submodule(block), "norm1"))
        if norms:
            return norms, (
                f"no stages: gates the output of norm1 in the last {len(norms)} blocks, patch tokens only, because "
                "the first norm of a block erases a factor put on its input"
            )
    parents = {call.name.rpartition(".")[0] for call in calls}
    first = next((call for call in calls if call.start > source.end and call.name not in parents), None)
    if first is not None:
        module = backbone.get_submodule(first.name)
        if first.inputs and _is_position_norm(module, first.inputs[0]):
            return (first.name,), (
                f"the last stage begins with a norm per position ({type(module).__name__}), which would erase the map "
                "at the stage's input: gates the output of that norm"
            )
    return (), "input of the last stage, as in the paper"


# --- proof -------------------------------------------------------------------------------------------------------


@contextmanager
def gated(backbone: nn.Module, place: GatePlace, factor: Tensor) -> Iterator[None]:
    """Run the backbone with a fixed factor (N, 1, h, w) at its gate."""

    def hook(_module: nn.Module, _inputs: Any, output: Tensor) -> Tensor:
        return weight(output, factor, place)

    handles = [backbone.get_submodule(gate).register_forward_hook(hook) for gate in place.gates or (place.features,)]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def grid_size(features: Tensor, place: GatePlace, images: Tensor, backbone: Any) -> tuple[int, int]:
    """Return the height and width of the features' grid."""
    if place.layout == "NCHW":
        return features.shape[2], features.shape[3]
    if place.layout == "NHWC":
        return features.shape[1], features.shape[2]
    patch = backbone.patch_embed.patch_size if hasattr(backbone, "patch_embed") else None
    if patch is not None:
        height, width = images.shape[-2] // patch[0], images.shape[-1] // patch[1]
        if height * width == features.shape[1] - place.prefix_tokens:
            return height, width
    side = round((features.shape[1] - place.prefix_tokens) ** 0.5)
    return side, side


@dataclass(frozen=True)
class Proof:
    """What `prove` measured: relative changes of the logits or features, in float64."""

    identity: float
    """Logits with a factor of one against the plain backbone's: must be 0."""
    effect: float
    """Logits with random factors in [1, 2] against the plain backbone's: must be above 1e-3."""
    stage_reproduced: bool
    """Whether running the stage's modules one by one gives the stage's output."""
    tail_reproduced: bool
    """Whether running the tail's modules on g and then the head gives the logits."""


@dataclass(frozen=True)
class Construction:
    """How a network was put together: where the gate sits, what was proved, what the branch's stage is."""

    place: GatePlace
    proof: Proof
    stage_note: str
    map_size: tuple[int, int]
    """Map size at the backbone's own image size."""


def prove(backbone: nn.Module, place: GatePlace, name: str, images: Tensor) -> Proof:
    """Check the place on a float64 copy with perturbed weights; raise `UserError` if the gate does not work there."""
    generator = torch.Generator().manual_seed(0)
    probe = perturbed(backbone, generator)
    images = images.double()
    with torch.no_grad():
        (features, ending), logits = outputs_of(probe, (place.features, place.stage[-1]), images)
        size = grid_size(features, place, images, probe)
        shape = (images.shape[0], 1, *size)
        with gated(probe, place, torch.ones(shape, dtype=images.dtype)):
            identity = relative_change(probe(images), logits)
        with gated(probe, place, 1 + torch.rand(shape, generator=generator, dtype=images.dtype)):
            effect = relative_change(probe(images), logits)
        stage_reproduced = reproduces(lambda: run_sequence(probe, place.stage, features), ending)
        tail_reproduced = reproduces(lambda: probe.forward_head(run_sequence(probe, place.tail, features)), logits)
    if not (identity < 1e-9 and effect > 1e-3):
        raise UserError(
            f"'{name}' cannot be gated: a random map at '{(place.gates or (place.features,))[0]}' moves its answer by "
            f"only {effect:.1e} (more than 1e-3 is needed). {WORKS_INSTEAD}"
        )
    return Proof(identity, effect, stage_reproduced, tail_reproduced)
