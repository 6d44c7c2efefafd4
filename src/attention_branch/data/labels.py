"""A column of raw labels becomes class numbers: binary, multi-class, or several at once; -1 where one is missing."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from attention_branch.data.images import natural_key
from attention_branch.errors import UserError

MISSING_WORDS = frozenset({"", "nan", "null", "na", "n/a"})
"""Words that stand for a missing label, in any case. 'none' is not among them: it is a good class name."""

_BINARY_WORDS = (("false", "true"), ("no", "yes"))
# More classes than this, and more than half of the rows different, is a text or a measurement, not a label.
_TOO_MANY = 100


@dataclass(frozen=True)
class Column:
    """One head: its class names, and the class number of each row (-1 = missing)."""

    head: str
    classes: tuple[str, ...]
    numbers: np.ndarray


def encode(head: str, values: Sequence[Any], place: Callable[[int], str]) -> list[Column]:
    """Return the head of a column, or one binary head per value where rows hold lists.

    Binary are 0/1, -1/1, true/false and yes/no. Whole numbers are classes in their order, -1 among others of 0 and more
    a missing label; words are classes in natural order. `place(row)` names the line of a row in messages.
    """
    if any(isinstance(value, list | tuple) for value in values):
        return _several(head, values, place)
    plain = [_plain(head, value, place, row) for row, value in enumerate(values)]
    kinds = {type(value) for value in plain if value is not None}
    if not kinds:
        raise UserError(f"The column '{head}' is empty; fill in its labels or remove it.")
    if kinds == {int}:
        return [_whole(head, plain, place)]
    words = [None if value is None else str(value) for value in plain]
    lower = {word.lower() for word in words if word is not None}
    for pair in _BINARY_WORDS:
        if lower <= set(pair):
            return [_column(head, pair, [None if word is None else word.lower() for word in words])]
    return [_classes(head, words, place)]


def _plain(head: str, value: Any, place: Callable[[int], str], row: int) -> int | str | None:
    """Return a raw value as a whole number, a word, or None."""
    if value is None or (isinstance(value, float) and np.isnan(value)):
        return None
    if isinstance(value, bool | np.bool_):
        return "true" if value else "false"
    if isinstance(value, float) and value.is_integer():
        return int(value)
    if isinstance(value, int | np.integer):
        return int(value)
    if not isinstance(value, str):
        raise UserError(f"{place(row)}: the label '{value}' of '{head}' is no class; use a whole number or a word.")
    word = value.strip()
    if word.lower() in MISSING_WORDS:
        return None
    try:
        return int(word)
    except ValueError:
        pass
    try:
        number = float(word)
    except ValueError:
        return word
    return int(number) if number.is_integer() else word


def _whole(head: str, values: Sequence[Any], place: Callable[[int], str]) -> Column:
    present = {value for value in values if value is not None}
    if present <= {0, 1}:
        return _column(head, ("0", "1"), _texts(values))
    if present == {-1, 1}:
        return _column(head, ("-1", "1"), _texts(values))
    for row, value in enumerate(values):
        if value is not None and value < -1:
            raise UserError(
                f"{place(row)}: the label {value} of '{head}' is out of range; classes count from 0, -1 means missing."
            )
    return _classes(head, _texts([None if value == -1 else value for value in values]), place)


def _texts(values: Sequence[Any]) -> list[str | None]:
    return [None if value is None else str(value) for value in values]


def _classes(head: str, words: Sequence[str | None], place: Callable[[int], str]) -> Column:
    names = sorted({word for word in words if word is not None}, key=natural_key)
    if len(names) < 2:
        only = f"one class, '{names[0]}'" if names else "no labels"
        raise UserError(f"The column '{head}' has {only}, and a classifier needs two or more; mend or remove it.")
    if len(names) > _TOO_MANY and len(names) > len(words) / 2:
        raise UserError(
            f"The column '{head}' has {len(names)} different values in {len(words)} rows, so it is no label; name the "
            "label columns with columns=[...], or remove it."
        )
    return _column(head, names, words)


def _column(head: str, names: Sequence[str], words: Sequence[str | None]) -> Column:
    number: dict[str | None, int] = {name: value for value, name in enumerate(names)}
    number[None] = -1
    return Column(head, tuple(names), np.array([number[word] for word in words], dtype=np.int64))


def _several(head: str, values: Sequence[Any], place: Callable[[int], str]) -> list[Column]:
    rows: list[set[str] | None] = []
    for row, value in enumerate(values):
        if value is None or (isinstance(value, str) and value.strip().lower() in MISSING_WORDS):
            rows.append(None)
        elif isinstance(value, list | tuple):
            rows.append({str(item).strip() for item in value} - {""})
        else:
            raise UserError(f"{place(row)}: '{head}' holds '{value}' where other lines hold lists; write it as a list.")
    names = sorted({name for row in rows if row is not None for name in row}, key=natural_key)
    if not names:
        raise UserError(f"The column '{head}' holds only empty lists; fill in its labels or remove it.")
    return [
        Column(name, ("0", "1"), np.array([-1 if row is None else int(name in row) for row in rows], dtype=np.int64))
        for name in names
    ]


def name_heads(columns: Sequence[tuple[str, list[Column]]]) -> tuple[list[Column], bool]:
    """Put the encoded columns of a table together; return the heads and whether they make a multi-task data set.

    A single head is called 'label'. Heads of the same name in two columns are told apart by the columns' names.
    """
    found = [(name, column) for name, encoded in columns for column in encoded]
    if len(found) == 1 and found[0][1].head == found[0][0]:
        only = found[0][1]
        return [Column("label", only.classes, only.numbers)], False
    names = [column.head for _, column in found]
    heads = [
        Column(f"{name}={column.head}", column.classes, column.numbers) if names.count(column.head) > 1 else column
        for name, column in found
    ]
    return heads, True
