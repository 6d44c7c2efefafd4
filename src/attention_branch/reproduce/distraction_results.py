"""What the runs of a study say of distractors: what they cost an arm, and where its maps lie; over seeds."""

from typing import Any

import numpy as np

from attention_branch.explanations.controls import CONTROLS
from attention_branch.reproduce.groups import Group, over_seeds
from attention_branch.reproduce.paired import paired

COMPARED = ("plain", "wider-multiply-adds", "none")
"""Arms whose loss by distractors every other arm's is compared with."""

_PREFIX, _WITHOUT = "test_error_", "without"
_PLACES = ("on_object", "on_distractor", "on_distractor_where_wrong")


def distraction_line(group: Group, arms: dict[str, Group]) -> dict[str, Any] | None:
    """Return an arm's figures in percent, None where its runs know of no distractor.

    `tests` has the error on further test sets; `cost` the error less that without distractors, and `less_cost` by how
    much it is more than that of another arm, paired by seed. `maps` holds by method how often the maximum lies on the
    object and on the distractor, and the density there (1: that of a constant map); `own` is false of the controls.
    """
    if not all(record.get("distraction") for record in group.records):
        return None
    names = [name.removeprefix(_PREFIX) for name in group.records[0]["last"] if name.startswith(_PREFIX)]
    tests = {name: group.summary("last", _PREFIX + name) for name in names}
    costs = _costs(group)
    less = {
        other: found.to_dict()
        for other in COMPARED
        if other != group.arm and other in arms and (found := paired(costs, _costs(arms[other]))) is not None
    }
    return {
        "tests": tests,
        "cost": None if np.isnan(list(costs.values())).any() else over_seeds(np.array(list(costs.values()))),
        "less_cost": less,
        "maps": _maps(group),
    }


def _costs(group: Group) -> dict[int, float]:
    """Return the points of error that distractors cost, by seed; NaN where a run was not tested without."""
    cost = 100 * (group.values("last", "test_error") - group.values("last", _PREFIX + _WITHOUT))
    return dict(zip(group.seeds, cost.tolist(), strict=True))


def _maps(group: Group) -> dict[str, dict[str, Any]]:
    found = {}
    for method in group.records[0]["distraction"]:
        runs = [record["distraction"][method] for record in group.records if method in record["distraction"]]
        runs = [one for one in runs if one.get("n")]
        if not runs:
            continue
        line: dict[str, Any] = {"own": method not in CONTROLS}
        for name in _PLACES:
            values = [one[name] for one in runs if name in one]
            line[name] = over_seeds(100 * np.array(values)) if values else None
        for place in ("object", "distractor"):
            density = [one[f"mass_on_{place}"] / one[f"{place}_area"] for one in runs]
            line[f"density_on_{place}"] = over_seeds(np.array(density))
        found[method] = line
    return dict(sorted(found.items(), key=lambda item: item[0] in CONTROLS))
