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
        start = replace(start, data=tyro.MISSING)
    return tyro.cli(
        TrainConfig,
        default=start,
        args=list(arguments),
        prog=prog,
        description="Train a classifier that shows where it looked. The defaults below are the chosen recipe's.",
    )
