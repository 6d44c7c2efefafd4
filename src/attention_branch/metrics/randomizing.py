"""Which modules of a network hold what it has learned, in the order they run, and new random values for them."""

import hashlib
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from attention_branch.errors import UserError, did_you_mean
from attention_branch.explanations.outputs import evaluating

ROOT = "(the network's own)"
"""The name of the parameters that no module inside the network holds."""
PARTS = ("perception branch", "attention branch", "trunk")


def learned_modules(network: nn.Module) -> dict[str, nn.Module]:
    """Return the modules that hold parameters or running statistics of their own, by name."""
    return {
        name: module
        for name, module in network.named_modules()
        if any(True for _ in module.parameters(recurse=False)) or getattr(module, "running_mean", None) is not None
    }


def _run(
    network: nn.Module, images: Tensor, begin: Callable[[str], None], end: Callable[[str], None] = lambda name: None
) -> None:
    """Run the network once on images and tell when each module begins and ends, by name."""

    def before(name: str) -> Callable[[nn.Module, Any], None]:
        def hook(_module: nn.Module, _inputs: Any) -> None:
            begin(name)

        return hook

    def after(name: str) -> Callable[[nn.Module, Any, Any], None]:
        def hook(_module: nn.Module, _inputs: Any, _output: Any) -> None:
            end(name)

        return hook

    handles = []
    for name, module in network.named_modules():
        handles += [module.register_forward_pre_hook(before(name)), module.register_forward_hook(after(name))]
    try:
        with evaluating(network), torch.no_grad():
            network(images)
    finally:
        for handle in handles:
            handle.remove()


def _starts(network: nn.Module, images: Tensor) -> dict[str, int]:
    """Return when each module that holds parameters begins to run, as a place in the order of one forward pass.

    A module that does not run by itself, because the one around it uses its parameters, counts as the one around it.
    """
    began: dict[str, int] = {}

    def begin(name: str) -> None:
        began.setdefault(name, len(began))

    _run(network, images, begin)
    starts = {}
    for name in learned_modules(network):
        around = name
        while around and around not in began:
            around = around.rpartition(".")[0]
        starts[name] = began[around]
    return starts


def stages_of(network: nn.Module, images: Tensor, max_stages: int) -> list[tuple[str, list[str]]]:
    """Return stages (name, modules) from the head down: the largest modules divided as long as there are few enough."""
    starts = _starts(network, images)
    if not starts:
        raise UserError(f"The {type(network).__name__} has no parameters that could be randomised.")
    stages = [("", sorted(starts, key=starts.__getitem__, reverse=True))]
    while True:
        for stage in sorted(stages, key=lambda stage: len(stage[1]), reverse=True):
            parts = _divided(*stage)
            if len(parts) > 1 and len(stages) - 1 + len(parts) <= max_stages:
                stages.remove(stage)
                stages += parts
                break
        else:
            break
    stages.sort(key=lambda stage: max(starts[name] for name in stage[1]), reverse=True)
    return [(name or ("all" if len(stages) == 1 else ROOT), modules) for name, modules in stages]


def _divided(name: str, modules: list[str]) -> list[tuple[str, list[str]]]:
    """Return the modules of a stage by the next part of their names that tells them apart."""
    for depth in range(name.count(".") + 2 if name else 1, max(own.count(".") for own in modules) + 2):
        parts: dict[str, list[str]] = {}
        for own in modules:
            parts.setdefault(".".join(own.split(".")[:depth]), []).append(own)
        if len(parts) > 1:
            return list(parts.items())
    return []


def modules_inside(network: nn.Module, name: str) -> list[str]:
    """Return the modules with parameters in the named one, itself included."""
    known = dict(network.named_modules())
    if name not in known:
        raise UserError(f"The network has no module '{name}' to randomise.{did_you_mean(name, known)}")
    found = [own for own in learned_modules(network) if own == name or own.startswith(f"{name}.") or not name]
    if not found:
        raise UserError(f"Module '{name}' has no parameters that could be randomised.")
    return found


def parts_of(network: nn.Module, images: Tensor) -> dict[str, list[str]]:
    """Return the modules of an ABN's perception branch, attention branch and trunk."""
    features = f"backbone.{network.place.features}"  # type: ignore[union-attr]
    ended: set[str] = set()
    late: set[str] = set()

    def begin(name: str) -> None:
        if features in ended:
            late.add(name)

    _run(network, images, begin, ended.add)
    parts: dict[str, list[str]] = {name: [] for name in PARTS}
    for name in learned_modules(network):
        if name.partition(".")[0] == "branch":
            parts["attention branch"].append(name)
            continue
        # Parts that do not run by themselves, such as an attention's projection, belong to what is around them.
        inside = any(name == begun or name.startswith(f"{begun}.") for begun in late)
        parts["perception branch" if inside else "trunk"].append(name)
    return parts


def randomize(network: nn.Module, names: Sequence[str], seed: int) -> None:
    """Give the named modules new parameters, and their running statistics back to the start; children stay."""
    for name in names:
        module = network.get_submodule(name)
        digest = hashlib.sha256(f"{seed} {name}".encode()).digest()
        state = torch.default_generator.get_state()
        torch.default_generator.manual_seed(int.from_bytes(digest[:7], "big"))
        try:
            _renew(module)
        finally:
            torch.default_generator.set_state(state)


@torch.no_grad()
def _renew(module: nn.Module) -> None:
    own = list(module.parameters(recurse=False))
    before = [parameter.detach().clone() for parameter in own]
    reset: Any = getattr(module, "reset_parameters", None)
    if callable(reset):
        # On the CPU and in float32, so that the seed alone decides the values.
        tensors = [tensor for tensor in (*own, *module.buffers(recurse=False)) if tensor.is_floating_point()]
        places = [(tensor.device, tensor.dtype) for tensor in tensors]
        for tensor in tensors:
            tensor.data = tensor.data.to("cpu", torch.float32)
        reset()
        for tensor, (device, dtype) in zip(tensors, places, strict=True):
            tensor.data = tensor.data.to(device, dtype)
    for parameter, values in zip(own, before, strict=True):
        # What a reset leaves alone: spectral_norm and weight_norm learn other tensors than the one it writes to.
        if torch.equal(parameter, values):
            drawn = torch.randn(parameter.shape, dtype=torch.float64).to(values.device)
            parameter.copy_(values.double().mean() + drawn * values.double().std(correction=0))
    if callable(reset):
        return
    running: Any = getattr(module, "reset_running_stats", None)
    if callable(running):
        running()
