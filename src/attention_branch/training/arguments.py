"""The reading of `abn train`'s arguments on top of a recipe's settings, or of an earlier run's."""

import argparse
import dataclasses
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import tyro

from attention_branch.errors import UserError
from attention_branch.training.config import TrainConfig
from attention_branch.training.recipes import recipe


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


# What cannot be done to a human map is left out; what moves the picture stays.
_WITHOUT_OPERATIONS = {
    "trivial": "none", "trivial-augment": "random-resized-crop", "pad-crop-flip-trivial": "pad-crop-flip"
}  # fmt: skip


def human_map_settings(start: str | Path, annotations: str | Path = "", **changes: Any) -> TrainConfig:
    """Return the settings to teach a network human maps: `train(human_map_settings("runs/a", "maps/", epochs=10))`.

    The recipe is "human-maps" unless `changes` name another. Network, data, split and augmentation are those of
    `start`: a run's, or, for a saved network or a hub name, the network's own, and the data must be named. Raises
    `UserError` for a run or network that cannot be read.
    """
    from attention_branch.models.saving import CONFIG, model_folder

    folder = model_folder(start)
    network = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
    size = network["preprocessing"]["size"]
    own: dict[str, Any] = {
        name: network[name]
        for name in ("mechanism", "branch", "map_kernel", "map_form", "map_control", "perception")
        if network.get(name) is not None
    }
    own |= {"model": network["name"], "baseline": network.get("mechanism") is None, "image_size": tuple(size)}
    own |= {"resize": network["preprocessing"]["resize"]}
    own |= {"model_options": tuple(f"{name}={value!r}" for name, value in network["backbone_options"].items())}
    settings = run_record(start).get("settings")
    if settings:
        own |= {name: settings[name] for name in ("data", "seed", "batch_size", "precision", "accelerator")}
        own["augment"] = _WITHOUT_OPERATIONS.get(settings["augment"], settings["augment"])
    name = changes.pop("recipe", "human-maps")
    return recipe(name, **own | {"start": str(start), "annotations": str(annotations) or None} | changes)


def run_record(start: str | Path) -> dict[str, Any]:
    """Return config.json of a run, or of the run that a folder of weights lies in; empty for other networks."""
    for run in (Path(start), Path(start).resolve().parent):
        try:
            return read_run(run)
        except UserError:  # the config.json of a saved network, or none
            continue
    return {}


def parse_train_arguments(arguments: Sequence[str], prog: str = "abn train") -> TrainConfig:
    """Read the arguments of `abn train`: a recipe's settings, or with --resume a run's, then what is overridden.

    With --from the recipe is "human-maps" unless another is named, and the network's own settings come on top of it.

    Raises `UserError` for an unknown recipe or run; other mistakes and --help print and exit as tyro does.
    """
    early = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    early.add_argument("--recipe")
    early.add_argument("--resume")
    early.add_argument("--from", dest="start")
    try:
        chosen, _ = early.parse_known_args(list(arguments))
    except argparse.ArgumentError as problem:
        raise UserError(f"{problem}; give a name after it.") from problem
    if chosen.resume:
        start = resumed_settings(chosen.resume)
    elif chosen.start:
        start = human_map_settings(chosen.start, recipe=chosen.recipe or "human-maps")
    else:
        start = recipe(chosen.recipe or "default")
    if not start.data:
        start = replace(start, data=tyro.MISSING)
    return tyro.cli(
        TrainConfig,
        default=start,
        args=list(arguments),
        prog=prog,
        description="Train a classifier that shows where it looked. The defaults below are the chosen recipe's.",
    )
