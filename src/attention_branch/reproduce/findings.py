"""What a study's figures say, in sentences that follow from its intervals and nothing else."""

from typing import Any

from attention_branch.report.statements import Statement

_QUESTIONS = (
    ("plain", "the plain backbone"),
    ("none", "deep supervision alone (the branch trained, its map not applied)"),
    ("product", "the same network with the product g(x)*M(x)"),
    ("sum-log", "the same network with a sum of logarithms as its map (the authors' SENet code)"),
    ("constant", "the same network with a constant map"),
    ("shuffled", "the same network with another image's map"),
    ("wider-parameters", "a wider plain network of the same parameters"),
    ("wider-multiply-adds", "a wider plain network of the same multiply-adds"),
)


_SUBJECTS = {"residual": "The paper's network"}


def statements(study: dict[str, Any], arm: str = "residual") -> list[Statement]:
    """Return one sentence for each control that the paper's network (or another arm) was compared with."""
    lines = {line["arm"]: line for line in study["arms"]}
    if arm not in lines:
        return []
    found = []
    for name, title in _QUESTIONS:
        compared = lines[arm]["less"].get(name)
        if compared is not None:
            found.append(_sentence(_SUBJECTS.get(arm, arm), title, compared))
    return found


def _sentence(subject: str, title: str, compared: dict[str, Any]) -> Statement:
    points, n = compared["mean"], compared["n"]
    if compared["interval"] is None:
        return Statement(
            f"{subject} against {title}: {points:+.2f} points of error with one seed, which settles nothing.", "unsure"
        )
    low, high = compared["interval"]
    interval = f"{points:+.2f} points of error, from {low:+.2f} to {high:+.2f}, {n} seeds"
    if not compared["clear"]:
        return Statement(f"{subject}: no clear difference from {title} ({interval}).", "unsure")
    if points < 0:
        return Statement(f"{subject}: clearly better than {title} ({interval}).", "right")
    return Statement(f"{subject}: clearly worse than {title} ({interval}).", "wrong")
