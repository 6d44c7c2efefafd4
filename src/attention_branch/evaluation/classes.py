"""Which class of the data is which class of the model: matched by name, never by position alone."""

from collections.abc import Mapping, Sequence

import numpy as np
from torch import nn

from attention_branch.errors import UserError, did_you_mean
from attention_branch.explanations.targets import head_class_names

SINGLE = "label"
"""The head's name where there is only one task."""


def match_classes(
    model: nn.Module, tasks: Mapping[str, Sequence[str]], multitask: bool
) -> dict[str, tuple[np.ndarray, list[str]]]:
    """Return for every head of the data the model's class index per data class, and the model's class names.

    The data's classes may be a permutation or a subset of the model's. Raises `UserError` for a class or a head the
    model does not know, and where one side has several heads and the other one task.
    """
    heads: Mapping[str, int] | None = getattr(model, "heads", None)
    if bool(heads) != multitask:
        kinds = ("several heads", "one task")
        mine, theirs = kinds if heads else kinds[::-1]
        raise UserError(f"The model has {mine}, the data has {theirs}; evaluate on data of the kind it was trained on.")
    matched = {}
    for head, names in tasks.items():
        if heads and head not in heads:
            raise UserError(f"The model has no head '{head}'.{did_you_mean(head, heads)} Heads: {', '.join(heads)}.")
        own = head_class_names(model, head if heads else None)
        size = max(2, heads[head]) if heads else int(getattr(model, "num_classes"))  # noqa: B009
        where = f"Head '{head}'" if heads else "The model"
        if own is None:
            if len(names) != size:
                raise UserError(
                    f"{where} has {size} classes without names and the data {len(names)}, so they cannot be matched; "
                    "set model.class_names first."
                )
            matched[head] = np.arange(size), [str(name) for name in names]
            continue
        places = {name: index for index, name in enumerate(own)}
        for name in names:
            if name not in places:
                raise UserError(
                    f"{where} does not know the data's class '{name}'.{did_you_mean(name, own)} "
                    "Classes are matched by name; rename the data's class or leave its images out."
                )
        matched[head] = np.array([places[name] for name in names], dtype=np.int64), own
    return matched


def rename_targets(targets: np.ndarray, places: np.ndarray) -> np.ndarray:
    """Return data class indices as the model's; -1 (missing) stays."""
    return np.where(targets >= 0, places[np.maximum(targets, 0)], -1)
