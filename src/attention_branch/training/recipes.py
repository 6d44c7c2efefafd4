"""Named settings, each number beside its source, and the reading of `abn train`'s arguments on top of them."""

import argparse
import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import tyro

from attention_branch.errors import UserError, did_you_mean
from attention_branch.training.config import TrainConfig

RECIPES: dict[str, TrainConfig] = {
    # From scratch on a folder of any size: the optimiser and schedule that need the least tuning.
    "default": TrainConfig(
        epochs=30,
        optimizer="adamw",
        lr=1e-3,  # AdamW's default in torch
        weight_decay=0.05,  # ConvNeXt (arXiv 2201.03545), table 5
        warmup_epochs=1,
        augment="flip",
    ),
    # The ABN authors' cifar.py (machine-perception-robotics-group/attention_branch_network).
    "cifar": TrainConfig(
        recipe="cifar",
        model="resnet110",
        epochs=300,  # README's command
        batch_size=128,  # cifar.py's default; the paper's text says 256
        optimizer="sgd",
        lr=0.1,
        momentum=0.9,
        weight_decay=5e-4,  # cifar.py's default; the README's ResNet-110 command has 1e-4
        decay_all=True,  # torch.optim.SGD over all parameters
        schedule="steps",
        milestones=(150, 225),
        gamma=0.1,  # WRN-28-10's log has 0.2
        augment="pad-crop-flip",  # RandomCrop(32, padding=4), horizontal flip
    ),
    # The ABN authors' imagenet.py, that is PyTorch's ImageNet example.
    "imagenet": TrainConfig(
        recipe="imagenet",
        model="resnet50",
        epochs=90,
        batch_size=256,
        optimizer="sgd",
        lr=0.1,
        momentum=0.9,
        weight_decay=1e-4,
        decay_all=True,
        schedule="steps",
        milestones=(30, 60),  # PyTorch's example divides by 10 every 30 epochs; the authors' logs drop one epoch later
        gamma=0.1,
        augment="random-resized-crop",
    ),
    # A folder of hundreds to some ten thousand images on pretrained weights.
    "finetune": TrainConfig(
        recipe="finetune",
        model="resnet50",
        pretrained=True,
        epochs=20,
        batch_size=64,
        optimizer="adamw",
        lr=1e-4,  # the order used for fine-tuning in "ResNet strikes back" (arXiv 2110.00476) and timm's examples
        weight_decay=0.05,
        schedule="cosine",
        warmup_epochs=1,
        label_smoothing=0.1,  # Szegedy et al., arXiv 1512.00567
        gradient_clip=1.0,
        augment="random-resized-crop",
    ),
    # The embedded digits in a minute or two on two cores. Many distinct pictures, each seen a few times, teach more in
    # the same time than few seen often; the stride in the stem pays for them. Learning rate, batch size, weight decay
    # and label smoothing were chosen on the validation split.
    "digits": TrainConfig(
        recipe="digits",
        data="digits:train=28000",
        model="resnet14",
        model_options=("stem_stride=2",),
        mechanism="product",
        branch="lite",
        image_size=64,  # the pictures' own size
        epochs=4,
        batch_size=64,
        optimizer="sgd",
        lr=0.1,
        momentum=0.9,
        nesterov=True,
        weight_decay=1e-3,
        schedule="cosine",
        warmup_epochs=0.6,
        label_smoothing=0.1,
        augment="none",  # place, size and colour are random already; a mirrored digit is another sign
    ),
}


def recipe(name: str, **changes: Any) -> TrainConfig:
    """Return a recipe's settings with some changed: `recipe("cifar", data="torchvision:CIFAR100", seed=1)`."""
    if name not in RECIPES:
        raise UserError(f"Unknown recipe '{name}'; use one of {', '.join(RECIPES)}.{did_you_mean(name, RECIPES)}")
    known = {item.name for item in dataclasses.fields(TrainConfig)}
    for change in changes:
        if change not in known:
            raise UserError(f"Unknown setting '{change}'.{did_you_mean(change, known)}")
    return dataclasses.replace(RECIPES[name], **changes)


def read_run(run: str | Path) -> dict[str, Any]:
    """Return a run folder's config.json; a `UserError` when it is none."""
    path = Path(run) / "config.json"
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError) as problem:
        raise UserError(
            f"'{run}' is no run folder: it has no config.json; name the folder a run was written to."
        ) from problem
    except ValueError as problem:
        raise UserError(f"'{path}' is damaged ({problem}); start a new run with another output folder.") from problem
    if not isinstance(record, dict) or not isinstance(record.get("settings"), dict):
        raise UserError(f"'{path}' is not a training run's; name the folder a run was written to.")
    return record


def resumed_settings(run: str | Path) -> TrainConfig:
    """Return the settings of an earlier run, set to continue it."""
    known = {item.name for item in dataclasses.fields(TrainConfig)}
    values: dict[str, Any] = {
        name: tuple(value) if isinstance(value, list) else value
        for name, value in read_run(run)["settings"].items()
        if name in known
    }
    return TrainConfig(**values | {"resume": str(run), "out": None})


def parse_train_arguments(arguments: Sequence[str], prog: str = "abn train") -> TrainConfig:
    """Read the arguments of `abn train`: a recipe's settings, or with --resume a run's, then what is overridden.

    Raises `UserError` for an unknown recipe or run; other mistakes and --help print and exit as tyro does.
    """
    early = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    early.add_argument("--recipe")
    early.add_argument("--resume")
    try:
        chosen, _ = early.parse_known_args(list(arguments))
    except argparse.ArgumentError as problem:
        raise UserError(f"{problem}; give a name after it.") from problem
    start = resumed_settings(chosen.resume) if chosen.resume else recipe(chosen.recipe or "default")
    if not start.data:
        start = dataclasses.replace(start, data=tyro.MISSING)
    return tyro.cli(
        TrainConfig,
        default=start,
        args=list(arguments),
        prog=prog,
        description="Train a classifier that shows where it looked. The defaults below are the chosen recipe's.",
    )
