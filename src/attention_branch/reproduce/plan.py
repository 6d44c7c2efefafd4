"""From a cell, its data and a seed to one run: every setting, the place of its record, and what must not change."""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch

from attention_branch.data import DataSet
from attention_branch.errors import UserError
from attention_branch.reproduce.arms import backbone_options
from attention_branch.reproduce.cells import CONSTRUCTED_OPTIONS, Cell, arm_of, choose
from attention_branch.reproduce.sources import Origin
from attention_branch.training import RECIPES, TrainConfig, recipe
from attention_branch.training.config import read_model_options
from attention_branch.training.fitted import FITTERS, is_fitted

LARGE = ("imagenet", "compcars", "celeba")
"""Roles whose pictures are read from their files, batch by batch."""

_OWN = {
    **dict.fromkeys(("digits", "digits-distracted", "digits-alone"), "digits-study"),
    **dict.fromkeys(("two-level", "mosaics", "mosaics-target"), "constructed"),
}
OWN_RECIPES = frozenset(_OWN.values())
"""Recipes for data of our own construction, of which nothing was published."""

# The published settings by network; where the authors' files differ for a family, its own recipe.
_FAMILY_RECIPES = (
    ("wrn", "cifar-wrn"),
    ("densenet", "cifar-densenet"),
    ("resnext", "cifar-resnext"),
    ("attention", "cifar-attention"),
    ("resnet", "cifar-resnet110"),
)

# Settings that say where a run is computed and kept, not what it computes.
_NO_RESULT = ("data", "out", "resume", "devices", "nodes", "workers", "accelerator", "compile", "maps", "tensorboard")


@dataclass(frozen=True)
class Protocol:
    """How runs are trained: the published settings or modern ones, whole, or shortened to a smoke test."""

    name: str = "published"
    epochs: int | None = None
    train_images: int | None = None
    precision: Literal["32", "bf16"] = "32"

    @property
    def shortened(self) -> bool:
        """Whether a run is only a smoke test."""
        return self.epochs is not None or self.train_images is not None

    @property
    def label(self) -> str:
        """Return the protocol's name for files: `published`, `modern-e4-n5000`."""
        parts = [self.name]
        if self.epochs is not None:
            parts.append(f"e{self.epochs}")
        if self.train_images is not None:
            parts.append(f"n{self.train_images}")
        return "-".join(parts)


@dataclass(frozen=True)
class Job:
    """One run: what a worker needs to do it. Plain values, so that it can be sent to another process."""

    cell: Cell
    origin: Origin
    protocol: Protocol
    config: TrainConfig
    size: dict[str, Any]
    data: dict[str, Any]
    record: Path
    keep_model: bool = False

    @property
    def name(self) -> str:
        """Return the run's network, data set and arm with its seed."""
        return f"{self.cell.network}/{self.origin.name}/{self.cell.arm} seed {self.config.seed}"

    @property
    def large(self) -> bool:
        """Whether it is run from the files: its pictures are too many or too large to be kept in memory decoded."""
        return self.cell.role in LARGE or self.fitted

    @property
    def fitted(self) -> bool:
        """Whether its network is fitted in stages, which is done from the files."""
        return is_fitted(self.cell.network)

    @property
    def network(self) -> Path:
        """Return where the last epoch's network is kept."""
        folder = self.record.with_suffix("")
        return folder / "last" if self.large else folder

    @property
    def checkpoint(self) -> Path:
        """Return where an unfinished run is kept."""
        return self.record.with_suffix(".ckpt")


def native_precision(device: str) -> Literal["32", "bf16"]:
    """Return bf16 where the device computes it at full speed, else 32."""
    if device.startswith("cuda"):
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "32"
    known = getattr(torch.cpu, "_is_avx512_bf16_supported", None)
    return "bf16" if known is not None and known() else "32"


def recipe_of(cell: Cell, protocol: Protocol) -> str:
    """Return the recipe a cell is trained with; other systems have their published one, whatever the protocol."""
    system = cell.network.partition(":")[0]
    if system in RECIPES and (cell.role in LARGE or is_fitted(system)):
        return system
    if cell.role in _OWN:
        chosen = _OWN[cell.role]
    elif cell.role == "imagenet" and cell.network.startswith("vgg") and "_bn" not in cell.network:
        chosen = "imagenet-vgg"
    elif cell.role == "imagenet" and cell.network.startswith("attention"):
        chosen = "imagenet-attention" if protocol.name == "published" else "imagenet"
    elif cell.role in LARGE or cell.role == "svhn":
        chosen = cell.role
    else:
        chosen = next(name for start, name in _FAMILY_RECIPES if cell.network.startswith(start))
    if protocol.name == "modern":
        chosen = f"{'cifar' if chosen.startswith('cifar') else chosen}-modern"
    if chosen not in RECIPES:
        raise UserError(f"There are no {protocol.name} settings for {cell.role}; use --protocol published.")
    return chosen


def startable(cells: Sequence[Cell], patterns: Sequence[str], protocol: Protocol) -> tuple[list[Cell], list[Cell]]:
    """Divide the cells that patterns name (all: none) into those that can be run and those that lack their weights.

    Where the recipe starts from pretrained weights a wider network has none: nobody published weights of its width.
    From scratch it could not be compared. Raises `UserError` for a pattern that names such cells alone.
    """
    for pattern in patterns:
        named = choose(cells, [pattern])
        if all(_lacks_weights(cell, protocol) for cell in named):
            raise UserError(
                f"'{pattern}' cannot be run: {named[0].role} starts from pretrained weights, and there are none of a "
                "wider network; choose other cells."
            )
    chosen = choose(cells, patterns) if patterns else list(cells)
    lacking = [cell for cell in chosen if _lacks_weights(cell, protocol)]
    return [cell for cell in chosen if cell not in lacking], lacking


def _lacks_weights(cell: Cell, protocol: Protocol) -> bool:
    # Recipes of small pictures start from scratch, and not every set of them has modern settings to ask.
    wider = cell.role in LARGE and arm_of(cell).equal is not None
    return wider and recipe(recipe_of(cell, protocol)).pretrained


def settings(
    cell: Cell, origin: Origin, protocol: Protocol, seed: int, options: dict[str, Any], heads: int = 1
) -> TrainConfig:
    """Return the settings of one run; `options` are the backbone's in this arm, `heads` the number of labels."""
    start = recipe(recipe_of(cell, protocol))
    changes: dict[str, Any] = {"baseline": False} | arm_of(cell).settings  # a recipe may be a plain network's
    reads = FITTERS[cell.network.partition(":")[0]].reads if is_fitted(cell.network) else None
    if protocol.epochs is not None and (reads is None or "epochs" in reads):
        share = protocol.epochs / start.epochs
        # The course of the learning rate is shortened with the run.
        changes |= {"epochs": protocol.epochs, "warmup_epochs": start.warmup_epochs * share}
        milestones = sorted({round(epoch * share) for epoch in start.milestones} - {0, protocol.epochs})
        changes["milestones"] = tuple(milestones)
        if start.schedule == "steps" and not milestones:
            changes["schedule"] = "constant"
    if cell.role in ("two-level", "mosaics") and reads is None:
        # The mean of the heads' losses at the recipe's rate is their sum, which is what is trained, at rate / heads.
        changes |= {"lr": start.lr / heads, "weight_decay": start.weight_decay * heads}
    if cell.role == "mosaics" and reads is not None:
        changes["pretrained"] = False  # networks for small pictures have no weights to start from
    if origin.kind.image_size is not None:
        changes["image_size"] = origin.kind.image_size
    return dataclasses.replace(
        start,
        **changes,
        data=origin.spec,
        model=cell.network,
        model_options=tuple(f"{name}={value!r}" for name, value in options.items()),
        seed=seed,
        precision=protocol.precision if reads is None or "precision" in reads else "32",
        maps=0,
    )


def make_jobs(
    cells: list[Cell], origin: Origin, data: DataSet, protocol: Protocol, seeds: list[int], out: Path, keep_model: bool
) -> list[Job]:
    """Return the runs of cells on one data set, one a seed."""
    size: dict[str, Any] = {"heads": data.heads} if data.multitask else {"num_classes": data.num_classes}
    described = data.record()
    jobs = []
    for cell in cells:
        start = recipe(recipe_of(cell, protocol))
        own = read_model_options(start.model_options)
        if not is_fitted(cell.network):
            own |= origin.kind.options
        if cell.network.startswith("moon"):
            own["target"] = "source"  # as in the recipe: the published figure
        if cell.role == "mosaics":
            own |= CONSTRUCTED_OPTIONS.get(cell.network, {})
        options = backbone_options(arm_of(cell), cell.network, size, origin.kind.image_size, own)
        for seed in seeds:
            place = Path(origin.name) / cell.network.replace(":", "-") / cell.arm / f"{protocol.label}-seed{seed}.json"
            jobs.append(
                Job(
                    cell,
                    origin,
                    protocol,
                    settings(cell, origin, protocol, seed, options, len(data.tasks)),
                    size,
                    _described(described, origin),
                    out / place,
                    keep_model,
                )
            )
    return jobs


def _described(record: dict[str, Any], origin: Origin) -> dict[str, Any]:
    """Return what a record says of its data: no paths, so that records can be shared."""
    return {
        "name": origin.name,
        "title": origin.title,
        "stands_for": origin.kind.stands_for,
        "images": {split: entry["images"] for split, entry in record["splits"].items()},
        "split_made": record["split_made"],
        "fingerprint": record["fingerprint"],
    }


def kept_settings(config: TrainConfig) -> dict[str, Any]:
    """Return the settings that a run's result depends on, as plain values for its record."""
    values = {name: value for name, value in dataclasses.asdict(config).items() if name not in _NO_RESULT}
    return {name: list(value) if isinstance(value, tuple) else value for name, value in values.items()}
