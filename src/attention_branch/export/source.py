"""What is exported: a run, a saved network, a hub name, timm's network by name, or a module from Python."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
import timm
from torch import nn

from attention_branch.errors import UserError, did_you_mean
from attention_branch.explanations.outputs import unwrapped
from attention_branch.files import sha256_of
from attention_branch.models.foreign import as_plain
from attention_branch.models.network import Network
from attention_branch.models.saving import load_model, model_folder

TIMM = "timm:"


@dataclass(frozen=True)
class Source:
    """A network to export, the name it goes by, and the run it comes from, where there is one."""

    network: Network
    name: str
    run: Path | None


def open_source(model: nn.Module | str | Path) -> Source:
    """Return the network that a name or module stands for; `UserError` where there is none."""
    if isinstance(model, nn.Module):
        network = unwrapped(model)
        if not isinstance(network, Network):
            known: Any = getattr(network, "pretrained_cfg", None) or {}
            network = as_plain(network, known.get("architecture") or type(network).__name__)
        return Source(network, network.name, None)
    name = str(model)
    if name.startswith(TIMM):
        return Source(_from_timm(name.removeprefix(TIMM)), name, None)
    folder = model_folder(model)
    return Source(load_model(folder), name, Path(model) if Path(model).is_dir() else None)


def weights_sha256(network: nn.Module) -> str:
    """Return the SHA-256 of a network's weights as `save_pretrained` writes them (model.safetensors)."""
    tensors = {name: value.detach().cpu().contiguous().clone() for name, value in network.state_dict().items()}
    return sha256_of(safetensors.torch.save(tensors, {"format": "pt"}))


def _from_timm(name: str) -> Network:
    """Return a pretrained network of timm, with ImageNet's class names where those are its classes."""
    if not name or not timm.is_model(name.partition(".")[0]):
        hint = did_you_mean(name, timm.list_models())
        raise UserError(f"timm has no network '{name}'.{hint} `abn models` lists them.")
    try:
        backbone: Any = timm.create_model(name, pretrained=True)
    except Exception as problem:  # timm and the hub's client raise what they like where weights cannot be fetched.
        reason = str(problem).splitlines()[0] if str(problem) else type(problem).__name__
        raise UserError(
            f"timm's weights of '{name}' could not be loaded ({reason}); connect to the network once, or check the "
            "name."
        ) from problem
    return as_plain(backbone, name, class_names=_imagenet_names(backbone))


def _imagenet_names(backbone: Any) -> list[str] | None:
    from timm.data import ImageNetInfo, infer_imagenet_subset

    subset = infer_imagenet_subset(backbone)
    if subset is None:
        return None
    info = ImageNetInfo(subset)
    # The first of the words that WordNet has for a class: "tench, Tinca tinca".
    names = [info.index_to_description(index).partition(",")[0] for index in range(info.num_classes())]
    return names if len(names) == backbone.num_classes else None
