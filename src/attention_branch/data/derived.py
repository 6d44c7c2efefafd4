"""What data made of other data has in common: how its string is read, and how a class is named in it."""

import re
from collections.abc import Sequence

from attention_branch.errors import UserError, did_you_mean

_WORDNET = re.compile(r"n\d{8}(?= |$)")


def read_spec(spec: str, known: Sequence[str]) -> tuple[str, dict[str, str]]:
    """Return the other data's string and the options of `KIND:DATA,name=value,...`.

    DATA that has options or commas of its own stands in square brackets: `KIND:[digits:train=100],name=value`.
    Raises `UserError` for a string without DATA, an option that is not among the known ones, or one given twice.
    """
    kind, _, rest = spec.partition(":")
    inner, after = _in_brackets(rest) if rest.startswith("[") else _until_comma(rest)
    if not inner:
        raise UserError(f"'{spec}' names no data to be made of; write '{kind}:DATA', for instance '{kind}:photos/'.")
    if not rest.startswith("[") and "=" in inner:
        raise UserError(
            f"'{inner}' in '{spec}' has options of its own; put it in square brackets, '{kind}:[{inner},...],...', so "
            "that they can be told apart."
        )
    if after is None:
        raise UserError(f"The square bracket in '{spec}' is not closed, or is not followed by a comma; mend it.")
    options: dict[str, str] = {}
    for option in filter(None, after.split(",")):
        name, _, value = option.partition("=")
        if name not in known:
            raise UserError(
                f"'{name}' in '{spec}' is no option; there are {', '.join(known)}.{did_you_mean(name, known)}"
            )
        if name in options:
            raise UserError(f"'{name}' stands twice in '{spec}'; leave one of them out.")
        options[name] = value
    return inner, options


def _until_comma(text: str) -> tuple[str, str]:
    inner, _, after = text.partition(",")
    return inner, after


def _in_brackets(text: str) -> tuple[str, str | None]:
    depth = 0
    for place, letter in enumerate(text):
        depth += {"[": 1, "]": -1}.get(letter, 0)
        if depth == 0:
            after = text[place + 1 :]
            return text[1:place], after if after[:1] in ("", ",") else None
    return text[1:], None


def find_class(wanted: str, names: Sequence[str]) -> int | None:
    """Return the number of the class that is meant: by its name, its WordNet id, or the first of its names.

    `n01443537 goldfish, Carassius auratus` is also `n01443537` and `goldfish`. None where there is no such class, or
    more than one.
    """
    if wanted in names:
        return list(names).index(wanted)
    number = _WORDNET.match(wanted)
    if number:
        found = [place for place, name in enumerate(names) if name.startswith(number[0]) and _WORDNET.match(name)]
    else:
        found = [place for place, name in enumerate(names) if _first_name(name) == wanted]
    return found[0] if len(found) == 1 else None


def _first_name(name: str) -> str:
    return _WORDNET.sub("", name).strip().partition(",")[0]
