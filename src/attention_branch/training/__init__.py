"""Training: typed settings and named recipes; the run itself, and Lightning with it, is imported when called."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from attention_branch.training.arguments import human_map_settings, parse_train_arguments
from attention_branch.training.config import TrainConfig
from attention_branch.training.recipes import RECIPES, recipe

if TYPE_CHECKING:
    from lightning import Callback

    from attention_branch.data import DataSet

__all__ = ["RECIPES", "TrainConfig", "human_map_settings", "parse_train_arguments", "recipe", "train"]


def train(
    config: TrainConfig,
    *,
    data: "DataSet | None" = None,
    device: str | None = None,
    callbacks: "Sequence[Callback]" = (),
) -> Path:
    """Train as `config` says and return the run folder; see `attention_branch.training.run` for launching it.

    `data` is the set to train on when its splits are not those that `config.data` and `config.seed` give; a continued
    run must be given the same splits. `device` ("cpu", "cuda", "cuda:1") is the one device to compute on, in the place
    of `config.accelerator` and `config.devices`. `callbacks` are Lightning's. Raises `UserError` for settings that
    cannot work, a run folder in use, a loss that is not finite, a full disk.
    """
    from attention_branch.training.run import train as run

    return run(config, data=data, device=device, callbacks=callbacks)
