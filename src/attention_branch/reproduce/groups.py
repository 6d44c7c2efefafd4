"""Which finished runs are of one kind, so that a mean over their seeds means something, and how the kinds are told."""

import dataclasses
import hashlib
import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from attention_branch.errors import UserError
from attention_branch.reproduce import record as records
from attention_branch.reproduce.arms import ARMS
from attention_branch.reproduce.plan import OWN_RECIPES, kept_settings
from attention_branch.training import TrainConfig

SHIPPED = "shipped with the package"

# Settings in which the arms of one study differ by what they are, and the options that make a network wider.
_OF_ARMS = frozenset(name for arm in ARMS.values() for name in arm.settings)
_WIDENING = ("width=", "channels=", "growth_rate=")
_NAMED = 3
"""So many settings are named where runs differ in them; more are told by a hash."""


@dataclass(frozen=True)
class Group:
    """The finished runs of one network, data set, arm, protocol and source, one a seed."""

    network: str
    role: str
    arm: str
    data: str
    protocol: str
    """In words, with what tells it from other groups: the precision, settings, images, 'shipped with the package'."""
    shortened: bool
    records: tuple[dict[str, Any], ...]
    shipped: bool = False
    """Whether the records came with the package."""
    study: tuple[Any, ...] = ()
    """What the arms of one study share: data with its fingerprint, settings but the arm's own, source."""

    @property
    def seeds(self) -> list[int]:
        """The seeds, rising."""
        return [record["seed"] for record in self.records]

    @property
    def machines(self) -> list[str]:
        """The processors or GPUs that the runs were made on, in the order of the seeds."""
        return machines(self.records)

    def values(self, place: str, name: str) -> np.ndarray:
        """Return one figure of every run, such as ('last', 'test_error'), as a share."""
        return np.array([record[place].get(name, math.nan) for record in self.records])

    def summary(self, place: str = "last", name: str = "test_error") -> dict[str, Any] | None:
        """Return mean and standard deviation over seeds in percent; None where a run lacks the figure."""
        values = 100 * self.values(place, name)
        return None if np.isnan(values).any() else over_seeds(values)


def over_seeds(values: np.ndarray) -> dict[str, Any]:
    """Return mean, standard deviation (None of one value) and number of values."""
    spread = float(values.std(ddof=1)) if len(values) > 1 else None
    return {"mean": float(values.mean()), "std": spread, "n": len(values)}


def machines(runs: Iterable[dict[str, Any]]) -> list[str]:
    """Return the processors or GPUs of some records, each once."""
    hardware = [record["hardware"] for record in runs]
    return list(dict.fromkeys(str(one.get("gpu") or one.get("processor") or one["device"]) for one in hardware))


def versions(runs: Iterable[dict[str, Any]]) -> dict[str, str]:
    """Return the versions of the software behind some records; where they differ, each once."""
    found: dict[str, dict[str, None]] = {}
    for record in runs:
        for name, version in record["versions"].items():
            found.setdefault(name, {})[version] = None
    return {name: ", ".join(seen) for name, seen in found.items()}


_Runs = dict[tuple[str, str, int], dict[str, Any]]
"""The records of one study by arm, hash of the settings, and seed."""


def read_groups(own: Sequence[Path], shipped: Sequence[Path] = ()) -> list[Group]:
    """Return the finished runs under some folders, grouped.

    Runs are of one group when all but the seed is the same: network, arm, data with its fingerprint, every setting,
    and whether they are one's own or came with the package. A run that is in both, to the letter, appears once; of two
    runs of one group and seed the first that is found counts. Groups that would bear the same words are told apart by
    the settings in which they differ, or by the first digits of a fingerprint or hash.
    """
    mine, theirs = _read(own), _read(shipped)
    for study in mine.keys() & theirs.keys():
        _once(mine[study], theirs[study])
    groups = []
    for came_with, found in ((False, mine), (True, theirs)):
        for study, runs in found.items():
            groups += _grouped(study, runs, came_with)
    return _told_apart(groups)


def _read(folders: Sequence[Path]) -> dict[tuple[Any, ...], _Runs]:
    found: dict[tuple[Any, ...], _Runs] = {}
    for folder in folders:
        for path in sorted(folder.rglob("*-seed*.json")):
            if path.name.startswith("."):
                continue  # a file that is being written, or was when the power went
            try:
                record = records.read(path)
            except UserError as problem:
                Console(stderr=True).print(f"Left out: {problem}", highlight=False, markup=False, soft_wrap=True)
                continue
            if not records.is_finished(record):
                continue
            assert record is not None
            cell, data, settings = record["cell"], record["data"], _settings(record)
            study = (
                cell["network"], cell["role"], data["title"], label(record), record["protocol"]["shortened"],
                data.get("fingerprint", ""), json.dumps(shared_settings(settings), sort_keys=True),
            )  # fmt: skip
            run = (cell["arm"], _hash(settings), record["seed"])
            found.setdefault(study, {}).setdefault(run, record)
    return found


def _settings(record: dict[str, Any]) -> dict[str, Any]:
    """Return all settings but the seed; one that did not exist when the record was written had its default."""
    settings = json.loads(json.dumps(kept_settings(TrainConfig()))) | record["settings"]
    return {name: value for name, value in settings.items() if name != "seed"}


def shared_settings(settings: dict[str, Any]) -> dict[str, Any]:
    """Return the settings that all arms of a network have in common."""
    shared = {name: value for name, value in settings.items() if name not in _OF_ARMS}
    shared["model_options"] = [one for one in shared.get("model_options", ()) if not one.startswith(_WIDENING)]
    return shared


def _hash(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def _once(mine: _Runs, theirs: _Runs) -> None:
    """Leave each run of a study that is in both sources, to the letter, in one of them.

    Copies of the shipped records and nothing else are the shipped ones; else a copy counts among one's own.
    """
    same = {run for run, record in mine.items() if theirs.get(run) == record}
    fewer = mine if len(same) == len(mine) else theirs
    for run in same:
        del fewer[run]


def _grouped(study: tuple[Any, ...], runs: _Runs, came_with: bool) -> list[Group]:
    network, role, data, protocol, shortened, *_ = study
    arms: dict[str, dict[str, list[dict[str, Any]]]] = {}
    for (arm, settings, _), record in runs.items():
        arms.setdefault(arm, {}).setdefault(settings, []).append(record)
    groups = []
    for arm, variants in arms.items():
        for number, found in enumerate(variants.values()):
            # An arm's own settings differ only where the package gave the arm others in between.
            words = protocol + (f", other settings of the arm ({number + 1})" if number else "")
            ordered = tuple(sorted(found, key=lambda record: record["seed"]))
            key = (*study, came_with, number)
            groups.append(Group(network, role, arm, data, words, shortened, ordered, came_with, key))
    return groups


def _told_apart(groups: list[Group]) -> list[Group]:
    """Add to the groups' protocols what differs between those of the same words, and where shipped ones come from."""
    by_words: dict[tuple[Any, ...], dict[tuple[str, str], None]] = {}
    for group in groups:
        by_words.setdefault(_words(group), {})[group.study[5], group.study[6]] = None
    told = []
    for group in groups:
        alike = list(by_words[_words(group)])
        images, shared = group.study[5], group.study[6]
        text = group.protocol + _differing(shared, [other for _, other in alike])
        if len({other for other, _ in alike}) > 1:
            text += f", images {images[:6]}"
        told.append(dataclasses.replace(group, protocol=f"{text}; {SHIPPED}" if group.shipped else text))
    return told


def _words(group: Group) -> tuple[Any, ...]:
    # The whole of a study is told alike, so that its arms stay together.
    return (group.network, group.role, group.data, group.study[3], group.shortened)


def _differing(shared: str, others: Sequence[str]) -> str:
    every = [json.loads(other) for other in dict.fromkeys(others)]
    mine = json.loads(shared)
    names = sorted({name for other in every for name in other if any(one.get(name) != other[name] for one in every)})
    if len(names) > _NAMED:
        return f", settings {_hash(mine)[:6]}"
    return "".join(f", {name} {mine.get(name)}" for name in names)


def label(record: dict[str, Any]) -> str:
    """Return the protocol with what tells it from others: epochs and images where shortened, the precision."""
    settings, protocol = record["settings"], record["protocol"]
    kinds = {"published": "published settings, ", "modern": "modern settings, "}
    text = kinds[protocol["name"]] if protocol["recipe"] not in OWN_RECIPES else ""
    text += f"recipe {protocol['recipe']}, {settings['epochs']} epochs"
    if protocol["train_images"]:
        text += f", {protocol['train_images']} images"
    return text + (", bf16" if settings["precision"] == "bf16" else "")


def find_folders(out: str | Path | None) -> tuple[list[Path], list[Path]]:
    """Return where records lie: the folder of one's own runs, and those of the records that came with the package."""
    own = Path(out) if out is not None else Path("runs/reproduce")
    if out is not None and not own.is_dir():
        raise UserError(f"There is no folder '{out}' with runs; name the one that abn reproduce wrote to.")
    shipped = Path(__file__).parent / "records"
    in_clone = Path(__file__).parents[3] / "benchmarks" / "records" / "reproduce"
    return [folder for folder in (own,) if folder.is_dir()], [one for one in (shipped, in_clone) if one.is_dir()]
