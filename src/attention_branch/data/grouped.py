"""Single-task data with a second, coarser head: each class belongs to a group, and both are asked for.

Stands where data with two levels of its own is not at hand (a car's model and its maker): what is learned is real, the
groups are those of a table. Ready-made tables lie in `groups/`; each is our own reading of the classes' names.
"""

import json
from collections.abc import Callable, Sequence
from importlib.resources import files
from pathlib import Path

import numpy as np

from attention_branch.data.dataset import DataSet, ImageSet
from attention_branch.data.derived import find_class, read_spec
from attention_branch.errors import UserError, did_you_mean

HEADS = ("class", "group")


def tables() -> list[str]:
    """Return the names of the ready-made tables."""
    folder = files("attention_branch.data") / "groups"
    return sorted(entry.name.removesuffix(".json") for entry in folder.iterdir() if entry.name.endswith(".json"))


def open_grouped(spec: str, *, opened: Callable[[str], DataSet]) -> DataSet:
    """Open `grouped:DATA,groups=TABLE`: the heads `class` and `group` for single-task DATA, which `opened` reads.

    TABLE is a JSON file {group: [class, ...]} that names every class of the data once, by its name, its WordNet id or
    the first of its names, or a ready-made table by its name. Raises `UserError` for a table that is none, a class that
    the data does not have, and one in no group or in two.
    """
    inner, options = read_spec(spec, ("groups",))
    if not options.get("groups"):
        raise UserError(
            f"'{spec}' names no table of groups; write groups=FILE.json ({{group: [class, ...]}}) or one of the "
            f"ready-made {', '.join(tables())}."
        )
    table = _read(options["groups"])
    data = opened(inner)
    if data.multitask:
        raise UserError(f"'{inner}' has several tasks, and groups are made of the classes of one; give other data.")
    names = next(iter(data.tasks.values()))
    groups = _groups(table, names, options["groups"], inner)
    tasks = dict(zip(HEADS, (names, tuple(table)), strict=True))
    splits = {split: _with_groups(images, groups, tasks) for split, images in data.splits.items()}
    return DataSet(
        spec=spec,
        seed=data.seed,
        tasks=tasks,
        multitask=True,
        split_made=f"{data.split_made}; groups of the table '{Path(options['groups']).name}'",
        root=data.root,
        normalization=data.normalization,
        left_out=data.left_out,
        ignored=data.ignored,
        train=splits.get("train"),
        validation=splits.get("validation"),
        test=splits.get("test"),
    )


def _with_groups(images: ImageSet, groups: np.ndarray, tasks: dict[str, tuple[str, ...]]) -> ImageSet:
    """Return the same pictures with both heads; a missing class is a missing group."""
    classes = np.full(len(images.source), -1)
    classes[images.rows] = images.targets
    coarse = np.where(classes >= 0, groups[np.maximum(classes, 0)], -1)
    targets = dict(zip(HEADS, (classes, coarse), strict=True))
    return ImageSet(images.source, targets, tasks, multitask=True, rows=images.rows)


def _read(name: str) -> dict[str, list[str]]:
    """Return a table, from its file or from those that come with the package."""
    path = Path(name).expanduser()
    try:
        if name in tables():
            text = (files("attention_branch.data") / "groups" / f"{name}.json").read_text(encoding="utf-8")
        else:
            text = path.read_text(encoding="utf-8")
        table = json.loads(text)
    except FileNotFoundError as problem:
        raise UserError(
            f"There is no table of groups '{name}'; give a JSON file or one of {', '.join(tables())}."
            + did_you_mean(name, tables())
        ) from problem
    except OSError as problem:
        raise UserError(f"The table of groups '{name}' cannot be read ({problem.strerror}).") from problem
    except ValueError as problem:
        raise UserError(f"The table of groups '{name}' is no JSON ({problem}); mend it.") from problem
    fine = isinstance(table, dict) and len(table) > 1
    lists = table.values() if fine else ()
    if not fine or not all(isinstance(own, list) and own and all(isinstance(c, str) for c in own) for own in lists):
        raise UserError(
            f"The table of groups '{name}' must be {{group: [class, ...]}} with two groups or more; mend it."
        )
    return table


def _groups(table: dict[str, list[str]], names: Sequence[str], source: str, inner: str) -> np.ndarray:
    """Return the number of each class's group (K,)."""
    found = np.full(len(names), -1)
    for number, (group, members) in enumerate(table.items()):
        for member in members:
            place = find_class(member, names)
            if place is None:
                raise UserError(
                    f"'{inner}' has no class '{member}', which '{source}' puts into the group '{group}'; mend the "
                    f"table.{did_you_mean(member, names)}"
                )
            if found[place] >= 0:
                raise UserError(
                    f"'{source}' names the class '{names[place]}' twice, the second time in the group '{group}'; "
                    "leave one of them out."
                )
            found[place] = number
    if (found < 0).any():
        left = names[int(np.flatnonzero(found < 0)[0])]
        raise UserError(f"The class '{left}' of '{inner}' is in no group of '{source}'; add it to one.")
    return found
