"""What the loaders of published data sets share: the folder that is named, the files that a list names, class names."""

import os
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from attention_branch.errors import UserError, did_you_mean

ARCHIVE_SUFFIXES = (".zip", ".tar", ".gz", ".tgz", ".7z", ".rar")


def data_folder(spec: str, place: str) -> Path:
    """Return the folder `place` that stands at the end of `spec`; a `UserError` where there is none."""
    kind = spec[: len(spec) - len(place)].rstrip(":")
    if not place.strip():
        raise UserError(f"'{spec}' does not say where the files are; give their folder, as in '{kind}:PATH'.")
    path = Path(place).expanduser()
    if path.is_file():
        what = "a file to unpack first" if path.suffix.lower() in ARCHIVE_SUFFIXES else "a file"
        raise UserError(f"'{path}' in '{spec}' is {what}; give the folder that holds the unpacked data set.")
    if not path.is_dir():
        parent = path.parent
        beside = [entry.name for entry in parent.iterdir()] if parent.is_dir() else []
        near = did_you_mean(path.name, beside)
        raise UserError(f"The folder '{path}' of '{spec}' does not exist; check the path.{near}")
    return path


def missing_files(root: Path, names: Sequence[str]) -> list[str]:
    """Return those of the names (relative, with slashes) that are no entry of their folder, in order.

    Every folder is listed once, which takes far less time than asking for hundreds of thousands of files one by one.
    """
    entries: dict[str, set[str]] = {}
    missing = []
    for name in names:
        folder, _, file = name.rpartition("/")
        if folder not in entries:
            entries[folder] = _entries(root / folder)
        if file not in entries[folder]:
            missing.append(name)
    return missing


def _entries(folder: Path) -> set[str]:
    try:
        return {entry.name for entry in os.scandir(folder)}
    except (FileNotFoundError, NotADirectoryError):
        return set()


def quoted(names: Sequence[str], few: int = 3) -> str:
    """Return names for a sentence: `'a', 'b', 'c' and 12 more`."""
    shown = ", ".join(f"'{name}'" for name in names[:few])
    return f"{shown} and {len(names) - few:,} more" if len(names) > few else shown


def tell_apart(names: Sequence[str], *longer: Sequence[str]) -> list[str]:
    """Return the names, with those that occur more than once replaced by their longer forms, one form after the other.

    The last form must be unique.
    """
    told = list(names)
    for forms in longer:
        times = Counter(told)
        told = [form if times[name] > 1 else name for name, form in zip(told, forms, strict=True)]
    return told
