"""A folder of pictures with `metadata.csv` or `metadata.jsonl`: one row a picture, its labels in columns.

The layout is that of Hugging Face's imagefolder: `file_name` relative to the metadata file, the other columns labels.
`split` (train, validation, test) and `bbox` ([x0, y0, x1, y1] in pixels) are understood, too.
"""

import csv
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from attention_branch.data.dataset import Box, DataSet
from attention_branch.data.folders import FileSource, split_folders
from attention_branch.data.labels import MISSING_WORDS, encode, name_heads
from attention_branch.data.splits import ALIASES, assemble
from attention_branch.errors import UserError, did_you_mean

FILE_NAMES = ("metadata.csv", "metadata.jsonl")
_NOT_LABELS = ("file_name", "split", "bbox")


@dataclass(frozen=True)
class Row:
    """One line of a metadata file: where it stands, its picture relative to the data's folder, its split and values."""

    place: str
    name: str
    split: str
    values: dict[str, Any]


def metadata_files(root: Path) -> dict[str, Path]:
    """Return the metadata file of the folder itself (under ''), or those of its split folders; none: an empty dict."""
    here = _metadata_in(root)
    if here is not None:
        return {"": here}
    found = {split: _metadata_in(folder) for split, folder in split_folders(root).items()}
    return {split: path for split, path in found.items() if path is not None}


def _metadata_in(folder: Path) -> Path | None:
    present = [folder / name for name in FILE_NAMES if (folder / name).is_file()]
    if len(present) > 1:
        raise UserError(f"'{folder}' has both {FILE_NAMES[0]} and {FILE_NAMES[1]}; keep one of them.")
    return present[0] if present else None


def open_metadata(
    root: Path,
    files: dict[str, Path],
    *,
    spec: str,
    seed: int,
    validation: float,
    test: float,
    columns: Sequence[str] | None = None,
) -> DataSet:
    """Open the pictures that metadata files list; a single label column makes a single task, several a multi-task set.

    `columns` chooses the label columns; without it all columns but `file_name`, `split` and `bbox` are labels.
    """
    rows = [row for split, file in files.items() for row in _read(file, root, split)]
    if not rows:
        raise UserError(f"'{next(iter(files.values()))}' lists no pictures; write one line for each.")
    names = list(dict.fromkeys(name for row in rows for name in row.values))
    labels = list(columns) if columns is not None else [name for name in names if name not in _NOT_LABELS]
    if not labels:
        raise UserError(
            f"'{next(iter(files.values()))}' has no label column; add one beside file_name, such as 'label'."
        )
    for name in labels:
        if name not in names:
            raise UserError(
                f"'{next(iter(files.values()))}' has no column '{name}'; it has {', '.join(names)}."
                + did_you_mean(name, names)
            )
    values = {name: _with_lists([row.values.get(name) for row in rows]) for name in labels}
    heads, multitask = name_heads([(name, encode(name, values[name], lambda row: rows[row].place)) for name in labels])
    boxes = [_box(row) for row in rows]
    source = FileSource(root, [row.name for row in rows], boxes if any(boxes) else None, [row.place for row in rows])
    given = np.array([_split(row) for row in rows], dtype=object)
    if (given == "").any() and (given != "").any():
        row = rows[int(np.flatnonzero(given == "")[0])]
        raise UserError(f"{row.place}: the split is missing, other lines have one; write train, validation or test.")
    return assemble(
        source,
        {column.head: column.numbers for column in heads},
        {column.head: column.classes for column in heads},
        given,
        seed=seed,
        validation=validation,
        test=test,
        multitask=multitask,
        spec=spec,
        root=str(root.absolute()),
    )


def _read(file: Path, root: Path, split: str) -> list[Row]:
    try:
        text = file.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as problem:
        raise UserError(f"'{file}' is not UTF-8 text (byte {problem.start}); save it as UTF-8.") from None
    lines = _csv_lines(file, text) if file.suffix == ".csv" else _json_lines(file, text)
    folder = file.parent.relative_to(root)
    rows: list[Row] = []
    seen: dict[str, int] = {}
    for number, values in lines:
        place = f"'{file}' line {number}"
        name = values.get("file_name")
        if not isinstance(name, str) or not name.strip():
            raise UserError(f"{place}: file_name is missing; name the picture's file, relative to the metadata file.")
        path = PurePosixPath(name.strip().replace("\\", "/"))
        if path.is_absolute() or ".." in path.parts:
            raise UserError(
                f"{place}: the file '{name}' lies outside of the folder; use a path inside '{file.parent}'."
            )
        whole = (PurePosixPath(folder.as_posix()) / path).as_posix()
        if whole in seen:
            raise UserError(f"{place}: '{name}' is already on line {seen[whole]}; keep one of the two lines.")
        seen[whole] = number
        rows.append(Row(place, whole, split, values))
    # As in imagefolder, pictures kept in train/ and test/ below one metadata file belong to these splits.
    tops = [ALIASES.get(PurePosixPath(row.name).parts[0].lower(), "") for row in rows]
    if not split and all(tops) and not any("split" in row.values for row in rows):
        return [Row(row.place, row.name, top, row.values) for row, top in zip(rows, tops, strict=True)]
    return rows


def _csv_lines(file: Path, text: str) -> list[tuple[int, dict[str, Any]]]:
    reader = csv.DictReader(text.splitlines(keepends=True), strict=True)
    lines = []
    try:
        header = reader.fieldnames or []
        if "file_name" not in header:
            near = did_you_mean("file_name", header)
            raise UserError(
                f"'{file}' has no column 'file_name' in line 1 ({', '.join(header)}); rename one to it.{near}"
            )
        if len(set(header)) < len(header):
            twice = next(name for name in header if header.count(name) > 1)
            raise UserError(f"'{file}' line 1 has the column '{twice}' twice; rename one of them.")
        for values in reader:
            extra, short = values.pop(None, None), [name for name, value in values.items() if value is None]
            if extra is not None or short:
                count = len(header) + (len(extra) if extra else -len(short))
                raise UserError(
                    f"'{file}' line {reader.line_num} has {count} values for {len(header)} columns; mend the commas."
                )
            lines.append((reader.line_num, dict(values)))
    except csv.Error as problem:
        raise UserError(f"'{file}' line {reader.reader.line_num} is no CSV ({problem}); mend or remove it.") from None
    return lines


def _json_lines(file: Path, text: str) -> list[tuple[int, dict[str, Any]]]:
    lines = []
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        try:
            values = json.loads(line)
        except json.JSONDecodeError as problem:
            raise UserError(f"'{file}' line {number} is no JSON ({problem.msg}); mend or remove it.") from None
        if not isinstance(values, dict):
            raise UserError(f'\'{file}\' line {number} is no JSON object; write {{"file_name": ..., "label": ...}}.')
        lines.append((number, values))
    return lines


def _with_lists(values: list[Any]) -> list[Any]:
    """Turn the 'a|b' of a CSV file into lists, when any row of the column has a bar."""
    if not any(isinstance(value, str) and "|" in value for value in values):
        return values
    return [
        value.split("|") if isinstance(value, str) and value.strip().lower() not in MISSING_WORDS else value
        for value in values
    ]


def _split(row: Row) -> str:
    name = row.values.get("split")
    if row.split or name in (None, ""):
        return row.split
    split = ALIASES.get(str(name).strip().lower())
    if split is None:
        raise UserError(f"{row.place}: '{name}' is no split; write train, validation or test.")
    return split


def _box(row: Row) -> Box | None:
    value = row.values.get("bbox")
    if value is None or (isinstance(value, str) and value.strip().lower() in MISSING_WORDS):
        return None
    try:
        numbers = json.loads(value) if isinstance(value, str) else value
        x0, y0, x1, y1 = (float(number) for number in numbers)
    except (ValueError, TypeError):
        raise UserError(f"{row.place}: the bbox '{value}' is not four numbers [x0, y0, x1, y1] in pixels.") from None
    if not (x0 < x1 and y0 < y1):
        raise UserError(f"{row.place}: the bbox '{value}' is empty; write [x0, y0, x1, y1] with x0 < x1 and y0 < y1.")
    return x0, y0, x1, y1
