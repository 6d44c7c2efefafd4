"""On how many heads one result is better than another: the "odds" of attribute recognition."""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from attention_branch.errors import UserError, did_you_mean
from attention_branch.evaluation.evaluation import Evaluation


@dataclass(frozen=True)
class Odds:
    """How many of `of` heads are better, equal and worse, and both means of the heads' accuracies, in [0, 1].

    An equal head counts as not better. `same_images` says whether both results are of the same images; None where one
    of them does not tell.
    """

    better: int
    equal: int
    worse: int
    of: int
    mean: float
    other_mean: float
    same_images: bool | None

    def sentence(self) -> str:
        """Return the odds in words."""
        on = ", on other images" if self.same_images is False else ""
        return (
            f"Better on {self.better} of {self.of} heads (equal on {self.equal}, worse on {self.worse}{on}); mean "
            f"accuracy {100 * self.mean:.2f} % against {100 * self.other_mean:.2f} %."
        )


@dataclass(frozen=True)
class HeadAccuracies:
    """The accuracies of one result by head, what it is called in messages, and the fingerprint of its images."""

    accuracies: dict[str, float]
    name: str
    images: str | None = None


Result = Evaluation | HeadAccuracies | str | Path | Mapping[str, Any]


def attribute_odds(first: Result, second: Result) -> Odds:
    """Count the heads on which the first result's accuracy is higher than the second's (CVPR 2019, table 4, "odds").

    A result is an `Evaluation`, what `abn evaluate` wrote (the file's path, or its values), or plain accuracies
    {head: share}. Heads are matched by name; an equal accuracy is not better. Raises `UserError` for a result without
    heads and for heads that only one of the two has.
    """
    mine, others = head_accuracies(first), head_accuracies(second)
    for one, other, which in ((mine, others, "second"), (others, mine, "first")):
        for head in one.accuracies:
            if head not in other.accuracies:
                raise UserError(
                    f"The {which} result, {other.name}, has no head '{head}'.{did_you_mean(head, other.accuracies)} "
                    "Odds need the same heads."
                )
    pairs = [(mine.accuracies[head], others.accuracies[head]) for head in mine.accuracies]
    known = mine.images is not None and others.images is not None
    return Odds(
        better=sum(one > other for one, other in pairs),
        equal=sum(one == other for one, other in pairs),
        worse=sum(one < other for one, other in pairs),
        of=len(pairs),
        mean=sum(one for one, _ in pairs) / len(pairs),
        other_mean=sum(other for _, other in pairs) / len(pairs),
        same_images=mine.images == others.images if known else None,
    )


def head_accuracies(result: Result) -> HeadAccuracies:
    """Read the heads' accuracies of a result; `UserError` for a file that is none, one task, and a head without."""
    if isinstance(result, HeadAccuracies):
        return result
    name = f"'{result}'" if isinstance(result, str | Path) else "the one given"
    values: Any = result
    if isinstance(result, Evaluation):
        values = result.to_dict()
    elif isinstance(result, str | Path):
        values = _read(Path(result))
    if not isinstance(values, Mapping):
        raise UserError(f"{name} is no result of `abn evaluate`; give its evaluation-SPLIT.json.")
    heads: Any = values
    images = None
    if "record" in values or "heads" in values:
        heads, images = values.get("heads"), (values.get("record") or {}).get("images_fingerprint")
    if not isinstance(heads, Mapping) or not heads:
        raise UserError(f"{name} is the result of one task; odds count the heads of several.")
    return HeadAccuracies({head: _accuracy(head, value, name) for head, value in heads.items()}, name, images)


def _accuracy(head: str, value: Any, name: str) -> float:
    if isinstance(value, Mapping):
        value = (value.get("perception") or {}).get("accuracy")
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= 1 or math.isnan(value):
        raise UserError(
            f"The head '{head}' of {name} has no accuracy from 0 to 1, but {value!r}; odds need all heads'."
        )
    return float(value)


def _read(path: Path) -> Any:
    if path.is_dir():
        raise UserError(f"'{path}' is a folder; give the file, such as '{path / 'evaluation-test.json'}'.")
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as problem:
        raise UserError(f"There is no file '{path}'; give the evaluation-SPLIT.json of another run.") from problem
    except OSError as problem:
        raise UserError(f"'{path}' cannot be read ({problem.strerror}).") from problem
    except ValueError as problem:
        raise UserError(f"'{path}' is no JSON ({problem}); give what `abn evaluate` wrote.") from problem
