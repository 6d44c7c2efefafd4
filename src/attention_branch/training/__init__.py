"""Training: typed settings and named recipes; the run itself, and Lightning with it, is imported when called."""

from pathlib import Path

from attention_branch.training.config import TrainConfig
from attention_branch.training.recipes import RECIPES, parse_train_arguments, recipe

__all__ = ["RECIPES", "TrainConfig", "parse_train_arguments", "recipe", "train"]


def train(config: TrainConfig) -> Path:
    """Train as `config` says and return the run folder; see `attention_branch.training.run` for launching it.

    Raises `UserError` for settings that cannot work, a run folder in use, a loss that is not finite, a full disk.
    """
    from attention_branch.training.run import train as run

    return run(config)
