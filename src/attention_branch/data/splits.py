"""Which picture belongs to which split: as the data says, else cut by us, stratified, and the same every time.

A sample's place is decided by the SHA-256 of (seed, name) within its class. So the split does not depend on the order
of a directory listing, and a picture that is added later moves hardly any other. Model selection needs a validation
split that is not the test split: a missing one is always cut from train, never from test.
"""

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from attention_branch.data.dataset import SPLITS, DataSet, ImageSet, Source
from attention_branch.errors import UserError

ALIASES = {
    "train": "train",
    "training": "train",
    "validation": "validation",
    "val": "validation",
    "valid": "validation",
    "dev": "validation",
    "test": "test",
    "testing": "test",
}
"""Names of splits in folders, files and tables, by what they mean here."""


def check_fractions(validation: float, test: float) -> None:
    """Refuse shares that no split can have."""
    for name, share in (("validation", validation), ("test", test)):
        if not 0 <= share <= 1:
            raise UserError(f"{name}={share} is no share of the data; use a number from 0 to 1, such as 0.1.")
    if validation + test > 1 + 1e-9:
        raise UserError(f"validation={validation} and test={test} are more than all of the data; their sum may be 1.")


def assemble(
    source: Source,
    targets: Mapping[str, np.ndarray],
    tasks: Mapping[str, Sequence[str]],
    given: np.ndarray,
    *,
    seed: int,
    validation: float,
    test: float,
    multitask: bool = False,
    **described: Any,
) -> DataSet:
    """Make the bundle from one source and the split each row says it belongs to ('' where it says nothing).

    `described` goes to `DataSet` as it is (spec, root, normalization, ...).
    """
    check_fractions(validation, test)
    rows = {name: np.flatnonzero(given == name) for name in SPLITS}
    loose = np.flatnonzero(given == "")
    present = [name for name in SPLITS if len(rows[name])]
    shares: dict[str, float] = {}
    if not present:
        rows["train"], shares = loose, {"validation": validation, "test": test}
    elif present == ["train"]:
        shares = {"validation": validation, "test": test}
    elif present == ["train", "test"]:
        shares = {"validation": validation}
    shares = {name: share for name, share in shares.items() if share > 0}
    made = "as the data gives it" if present else ""
    if shares:
        first = next(iter(targets))
        labels = np.asarray(targets[first]) if not multitask else np.zeros(len(source), dtype=np.int64)
        names = list(tasks[first]) if not multitask else ["all"]
        rows |= cut(source, rows["train"], labels, names, shares, seed)
        how = "at random" if multitask else "stratified by class"
        parts = " and ".join(f"{name} ({share:g})" for name, share in shares.items())
        made = (
            f"{parts} cut from {'train' if present else 'all pictures'}, {how}, by the SHA-256 of (seed {seed}, name)"
        )
    sets = {
        name: ImageSet(source, targets, tasks, multitask=multitask, rows=rows[name])
        for name in SPLITS
        if len(rows[name])
    }
    kept = {head: tuple(names) for head, names in tasks.items()}
    return DataSet(
        seed=seed,
        tasks=kept,
        train=sets.get("train"),
        validation=sets.get("validation"),
        test=sets.get("test"),
        multitask=multitask,
        split_made=made,
        **described,
    )


def cut(
    source: Source, rows: np.ndarray, labels: np.ndarray, names: Sequence[str], shares: Mapping[str, float], seed: int
) -> dict[str, np.ndarray]:
    """Return train and the cut splits, as rows; each class gives every split its share, and at least one picture."""
    parts: dict[str, list[np.ndarray]] = {"train": [], **{name: [] for name in shares}}
    keeps_train = sum(shares.values()) < 1 - 1e-9
    for label in np.unique(labels[rows]):
        mine = np.array(sorted(rows[labels[rows] == label], key=lambda row: _key(source, row, seed)))
        needed = len(shares) + keeps_train
        if len(mine) < needed and label >= 0:
            wanted = ", ".join([*shares, "train"] if keeps_train else shares)
            raise UserError(
                f"The class '{names[label]}' has {len(mine)} picture{'s' * (len(mine) != 1)} and cannot be split into "
                f"{wanted}; it needs at least {needed}, or folders train/, val/ and test/ of your own."
            )
        begin = 0
        for number, (name, share) in enumerate(shares.items()):
            left_over = needed - number - 1
            count = min(max(1, round(share * len(mine))), max(0, len(mine) - begin - left_over))
            if not keeps_train and number == len(shares) - 1:
                count = len(mine) - begin
            parts[name].append(mine[begin : begin + count])
            begin += count
        parts["train"].append(mine[begin:])
    empty = np.empty(0, dtype=np.int64)
    return {name: np.sort(np.concatenate([empty, *pieces])) for name, pieces in parts.items()}


def _key(source: Source, row: int, seed: int) -> bytes:
    return hashlib.sha256(f"{seed}\n{source.id(int(row))}".encode("utf-8", "surrogateescape")).digest()
