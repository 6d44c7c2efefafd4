"""What finished runs say together: mean and spread over seeds, arm against arm, the published number beside ours."""

import math
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from attention_branch.evaluation.odds import attribute_odds
from attention_branch.models.registry import stands_alone
from attention_branch.reproduce.arms import ARMS
from attention_branch.reproduce.cells import cells_of, note_on
from attention_branch.reproduce.distraction_results import distraction_line
from attention_branch.reproduce.groups import Group, machines, over_seeds, versions
from attention_branch.reproduce.paired import Difference, paired
from attention_branch.reproduce.published import ACCURACY, ODDS, PUBLISHED, Published
from attention_branch.reproduce.sources import missing

REFERENCES = (
    "plain", "none", "product", "residual", "sum-log", "constant", "shuffled",
    "wider-parameters", "wider-multiply-adds",
)  # fmt: skip
"""Arms that every other arm is compared with."""


def difference(first: Group, second: Group, place: str = "last", name: str = "test_error") -> Difference | None:
    """Compare two arms over the seeds both have; None where there is none.

    Paired t-test (Student): runs of one seed share the order of images and their augmentation. The interval is for the
    mean over further seeds on this test set, not over further test sets.
    """
    errors = [dict(zip(group.seeds, 100 * group.values(place, name), strict=True)) for group in (first, second)]
    return paired(*errors)


def table_rows(groups: Iterable[Group]) -> list[dict[str, Any]]:
    """Return the published numbers with ours beside them: one row a number and data set, `ours` null where there is
    none.

    Whole runs only; smoke tests stand in `studies`.
    """
    whole = [group for group in groups if not group.shortened]
    rows: list[dict[str, Any]] = []
    for number in PUBLISHED:
        found = []
        for place, cell in enumerate(cells_of(number)):
            mine = [g for g in whole if (g.network, g.role, g.arm) == (cell.network, cell.role, cell.arm)]
            for group in mine:
                found.append(_row(number, group, whole, authors=place == 0))
        rows += found or [_open_row(number)]
    return rows


def _row(number: Published, group: Group, groups: Sequence[Group], *, authors: bool) -> dict[str, Any]:
    ours = _odds(group, groups) if number.column == ODDS else _ours(number, group)
    plain = [g for g in groups if g.study == group.study and g.arm == "plain" and group.arm != "plain"]
    less = paired(_errors(number, group), _errors(number, plain[0])) if plain and number.column != ODDS else None
    return _number(number) | {
        "ours": ours,
        # Points of error, of the same network without a branch over the same seeds.
        "less_plain": less.to_dict() if less else None,
        "network": group.network,
        "authors_depth": authors,
        "arm": group.arm,
        "reason": None if ours else "the runs hold no such figure",
    }


def _errors(number: Published, group: Group, place: str = "last") -> dict[int, float]:
    """Return the error behind a number by seed, in percent; NaN where a run lacks it."""
    if number.table != "table3":
        return dict(zip(group.seeds, 100 * group.values(place, "test_error"), strict=True))
    found = [record[place].get("test_accuracy_by_head", {}).get(number.column) for record in group.records]
    return {
        seed: math.nan if share is None else 100 * (1 - share) for seed, share in zip(group.seeds, found, strict=True)
    }


def _ours(number: Published, group: Group) -> dict[str, Any] | None:
    """Return the last epoch's figure in the published unit, and apart from it what the best epoch would have said."""
    last, chosen, best = (_summary(number, group, place) for place in ("last", "best_on_validation", "best_on_test"))
    if last is None:
        return None
    branch = None if number.table == "table3" else group.summary("last", "test_attention_error")
    branch = _accuracy(branch) if number.unit == ACCURACY else branch
    return _described(group, last) | {"attention_branch": branch, "best_on_validation": chosen, "best_on_test": best}


def _summary(number: Published, group: Group, place: str) -> dict[str, Any] | None:
    """Return mean and deviation over seeds in the published unit; None where a run lacks the figure."""
    errors = np.array(list(_errors(number, group, place).values()))
    if np.isnan(errors).any():
        return None
    return _accuracy(over_seeds(errors)) if number.unit == ACCURACY else over_seeds(errors)


def _described(group: Group, summary: dict[str, Any]) -> dict[str, Any]:
    nothing = {"attention_branch": None, "best_on_validation": None, "best_on_test": None}
    described = {"data": group.data, "protocol": group.protocol, "seeds": group.seeds}
    return summary | described | {"shipped": group.shipped, "machines": group.machines} | nothing


def _odds(group: Group, groups: Sequence[Group]) -> dict[str, Any] | None:
    """Return on how many attributes the paper's network has the higher accuracy than this one, over shared seeds."""
    others = [g for g in groups if g.arm == "residual" and (g.study == group.study or _beside(group, g))]
    won = _heads_won(others[0], group) if others else []
    return _described(group, over_seeds(np.array(won, dtype=float))) if won else None


def _beside(system: Group, other: Group) -> bool:
    """Tell whether a network was run on the same pictures as a system of its own, which has no arm with attention."""
    fingerprints = [group.records[0]["data"].get("fingerprint") for group in (system, other)]
    same = (system.role, system.data, system.shortened) == (other.role, other.data, other.shortened)
    return stands_alone(system.network) and same and fingerprints[0] == fingerprints[1]


def _heads_won(first: Group, second: Group) -> list[int]:
    """Return for each seed both have on how many heads the first is right more often; ties do not count."""
    by_seed = {record["seed"]: record["last"].get("test_accuracy_by_head") for record in second.records}
    counts = []
    for record in first.records:
        ours, theirs = record["last"].get("test_accuracy_by_head"), by_seed.get(record["seed"])
        if ours and theirs:
            counts.append(attribute_odds(ours, theirs).better)
    return counts


def _accuracy(summary: dict[str, Any] | None) -> dict[str, Any] | None:
    return None if summary is None else summary | {"mean": 100 - summary["mean"]}


def _number(number: Published) -> dict[str, Any]:
    return {
        "table": number.table,
        "row": number.row,
        "column": number.column,
        "published": number.value,
        "unit": number.unit,
        "printed": number.printed,
        "published_is_own_run": number.own,
        "note": note_on(number),
    }


def _open_row(number: Published) -> dict[str, Any]:
    first = cells_of(number)[0]
    return _number(number) | {
        "ours": None,
        "less_plain": None,
        "network": first.network,
        "authors_depth": True,
        "arm": first.arm,
        "reason": f"not run ({first.name}). {missing(first.role)}",
    }


def studies(groups: Iterable[Group]) -> list[dict[str, Any]]:
    """Return every network and data set with all its arms side by side, each arm compared with the references.

    Arms of other settings, other images or another source (one's own runs, shipped ones) are other studies.
    """
    by_study: dict[tuple[Any, ...], dict[str, Group]] = {}
    for group in groups:
        by_study.setdefault(group.study, {})[group.arm] = group
    return [_study(arms) for arms in by_study.values()]


def _study(arms: dict[str, Group]) -> dict[str, Any]:
    any_arm = next(iter(arms.values()))
    first = any_arm.records[0]
    lines = []
    for name in ARMS:
        if name not in arms:
            continue
        group = arms[name]
        maps = [record["map"] for record in group.records if record.get("map")]
        on_object = [one["on_object"] for one in maps if one.get("on_object") is not None and not one["alarm"]]
        areas = [one["object_area"] for one in maps if one.get("object_area") is not None]
        won = _heads_won(group, arms["plain"]) if "plain" in arms else []
        compared = {
            other: found.to_dict()
            for other in REFERENCES
            if other != name and other in arms and (found := difference(group, arms[other])) is not None
        }
        lines.append(
            {
                "arm": name,
                "title": ARMS[name].title,
                "parameters": group.records[0]["cost"]["parameters"],
                "multiply_adds": group.records[0]["cost"]["multiply_adds"],
                "last": group.summary(),
                "attention_branch": group.summary("last", "test_attention_error"),
                "best_on_validation": group.summary("best_on_validation"),
                "best_on_test": group.summary("best_on_test"),
                "seeds": group.seeds,
                "errors": [round(100 * value, 4) for value in group.values("last", "test_error").tolist()],
                "map_on_object": 100 * float(np.mean(on_object)) if on_object else None,
                "object_area": 100 * float(np.mean(areas)) if areas else None,
                "heads_won": None if name == "plain" or not won else over_seeds(np.array(won, dtype=float)),
                "heads": len(group.records[0]["last"].get("test_accuracy_by_head", ())) or None,
                "map_alarms": sum(one["alarm"] is not None for one in maps),
                "distraction": distraction_line(group, arms),
                "less": compared,
            }
        )
    heads = lines[0]["heads"]
    images = dict(first["data"]["images"])
    images["train"] = first["protocol"]["train_images"] or images["train"]  # a smoke test may take a part
    return {
        "role": any_arm.role,
        "data": any_arm.data,
        "stands_for": first["data"]["stands_for"],
        "network": any_arm.network,
        "protocol": any_arm.protocol,
        "shipped": any_arm.shipped,
        "smoke_test": any_arm.shortened,
        "images": images,
        "error": f"error (%), mean over {heads} labels" if heads else "top-1 error (%)",
        "hardware": first["hardware"],
        "machines": machines(record for group in arms.values() for record in group.records),
        "versions": versions(record for group in arms.values() for record in group.records),
        "arms": lines,
    }


def all_rows(groups: Sequence[Group]) -> list[dict[str, Any]]:
    """Return what `abn reproduce show --json` prints: the tables' rows, then one row an arm of every study.

    The arms' rows have the table `arms`, or `smoke tests`; nothing was published of them, so `published` is null.
    """
    rows = table_rows(groups)
    for study in studies(groups):
        described = {
            name: study[name]
            for name in ("network", "protocol", "shipped", "stands_for", "images", "hardware", "machines")
        }
        for line in study["arms"]:
            rows.append(
                {
                    "table": "smoke tests" if study["smoke_test"] else "arms",
                    "row": f"{study['network']}, {study['data']}",
                    "column": line["arm"],
                    "published": None,
                    "note": None,
                    "unit": "error %",
                    "ours": line["last"] | {"data": study["data"], "protocol": study["protocol"]},
                    **described,
                    **{name: value for name, value in line.items() if name not in ("last", "title")},
                }
            )
    return rows
