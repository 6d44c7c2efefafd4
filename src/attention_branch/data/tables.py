"""Tables in the Hugging Face layout: parquet files here, or a data set of the hub by its name.

The `datasets` library turns both into Arrow files that are mapped into memory: any row is read without the others, and
forked workers share the map. Pictures stay encoded until they are asked for.
"""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from attention_branch.data.cache import cache_folder
from attention_branch.data.dataset import Box, DataSet, Source
from attention_branch.data.images import natural_key, open_image
from attention_branch.data.labels import Column, encode, name_heads
from attention_branch.data.splits import ALIASES, assemble
from attention_branch.errors import UserError, did_you_mean
from attention_branch.files import disk_error

_IMAGE_NAMES = ("image", "img", "picture", "jpg", "png", "bytes")
_LABEL_NAMES = ("label", "labels")
_BOX_NAMES = ("bbox", "box")


class TableSource(Source):
    """The rows of an Arrow table; `parts` names what they came from: (name, number of rows, stamp) in order."""

    def __init__(self, table: Any, image: str, parts: Sequence[tuple[str, int, tuple[str, int, int]]]) -> None:
        self.images = table.select_columns([image])
        self.column = image
        self.parts = list(parts)
        self.ends = np.cumsum([count for _, count, _ in parts])
        box = next((name for name in _BOX_NAMES if name in table.column_names), None)
        self.boxes = None if box is None else table.data.column(box)

    def __len__(self) -> int:
        return int(self.ends[-1])

    def _part(self, row: int) -> tuple[int, int]:
        part = int(np.searchsorted(self.ends, row, side="right"))
        return part, row - (int(self.ends[part - 1]) if part else 0)

    def image(self, row: int) -> Image.Image:
        """Return one picture as RGB."""
        content = self.encoded(row)
        if content is None:
            raise UserError(
                f"'{self.id(row)}' has no picture in its column '{self.column}'; fill in or remove the row."
            )
        return open_image(content, self.id(row))

    def id(self, row: int) -> str:
        """Return `file:row`, such as `train.parquet:17`."""
        part, inside = self._part(row)
        return f"{self.parts[part][0]}:{inside}"

    def encoded(self, row: int) -> bytes | None:
        """Return the picture's stored bytes, or those of the file that the row names."""
        value = self.images[row][self.column]
        if not isinstance(value, dict):
            return value
        if value.get("bytes") is None and value.get("path") and Path(value["path"]).is_file():
            return Path(value["path"]).read_bytes()
        return value.get("bytes")

    def stamp(self, row: int) -> tuple[str, int, int] | None:
        """Return a name that holds the file and the row, with the file's size and time of change."""
        part, inside = self._part(row)
        name, size, modified = self.parts[part][2]
        return f"{name}#{inside}", size, modified

    def box(self, row: int) -> Box | None:
        """Return the object's box, if the table has one."""
        value = None if self.boxes is None else self.boxes[row].as_py()
        if value is None:
            return None
        if len(value) != 4:
            raise UserError(f"The bbox of '{self.id(row)}' has {len(value)} numbers; it must be [x0, y0, x1, y1].")
        x0, y0, x1, y1 = (float(number) for number in value)
        return x0, y0, x1, y1


def parquet_files(folder: Path) -> list[Path]:
    """Return the parquet files of a folder where Hugging Face puts them: in it, in `data/`, in folders of splits."""
    found = list(folder.glob("*.parquet"))
    for inner in ("data", *ALIASES):
        found += (folder / inner).glob("*.parquet")
    return sorted((file for file in found if not file.name.startswith(".")), key=lambda file: natural_key(str(file)))


def _split_of(file: Path) -> str:
    words = [*re.split(r"[^a-z]+", file.stem.lower()), file.parent.name.lower()]
    return next((ALIASES[word] for word in words if word in ALIASES), "")


def open_parquet(
    root: Path,
    files: Sequence[Path],
    *,
    spec: str,
    seed: int,
    validation: float,
    test: float,
    columns: Sequence[str] | None = None,
) -> DataSet:
    """Open parquet files; several are told apart by the split in their names, a single one is cut by us."""
    import datasets
    from pyarrow import ArrowException
    from pyarrow.parquet import read_metadata

    splits = dict.fromkeys(files, "") if len(files) == 1 else {file: _split_of(file) for file in files}
    if any(splits.values()):
        ignored = [file.name for file, split in splits.items() if not split]
        splits = {file: split for file, split in splits.items() if split}
    else:
        ignored = []
    tables, parts, given = [], [], []
    for file, split in splits.items():
        try:
            count = read_metadata(file).num_rows
            if count:
                tables.append(
                    _quietly(
                        datasets,
                        "parquet",
                        data_files=[str(file)],
                        split="train",
                        cache_dir=str(cache_folder() / "tables"),
                    )
                )
        except OSError as problem:
            if problem.filename is not None and Path(problem.filename) == Path(file):
                raise UserError(f"'{file}' cannot be read ({problem.strerror}).") from problem
            raise disk_error(problem, cache_folder() / "tables") from problem
        except (ArrowException, datasets.exceptions.DatasetGenerationError) as problem:
            raise UserError(f"'{file}' is no readable parquet file ({_first_line(problem)}); replace it.") from problem
        if not count:
            continue
        state = file.stat()
        parts.append(
            (file.relative_to(root).as_posix(), count, (str(file.absolute()), state.st_size, state.st_mtime_ns))
        )
        given += [split] * count
    if not tables:
        raise UserError(f"'{spec}' holds no rows; write one for each picture.")
    for table, part in zip(tables, parts, strict=True):
        if table.features != tables[0].features:
            raise UserError(f"'{part[0]}' and '{parts[0][0]}' differ in columns or class names; write them alike.")
    table = datasets.concatenate_datasets(tables)
    data = _open_table(
        table,
        parts,
        given,
        spec=spec,
        columns=columns,
        seed=seed,
        validation=validation,
        test=test,
        root=str(root.absolute()),
    )
    data.ignored = ignored
    return data


def open_hub(spec: str, *, seed: int, validation: float, test: float, columns: Sequence[str] | None = None) -> DataSet:
    """Open `hf:NAME` or `hf:NAME:config=...,revision=...,image=...,label=...` with `datasets.load_dataset`."""
    import datasets

    name, _, text = spec.removeprefix("hf:").partition(":")
    options = {}
    for option in filter(None, text.split(",")):
        key, _, value = option.partition("=")
        if key not in ("config", "revision", "image", "label") or not value:
            raise UserError(f"'{option}' in '{spec}' is not understood; write config=, revision=, image= or label=.")
        options[key] = value
    if not name:
        raise UserError("'hf:' needs the name of a data set, as in 'hf:uoft-cs/cifar10'.")
    try:
        loaded = _quietly(datasets, name, options.get("config"), revision=options.get("revision"))
    except Exception as problem:  # The hub, the network and every data set's own files fail in their own ways.
        raise UserError(
            f"The data set '{name}' could not be loaded from the Hugging Face hub ({_first_line(problem)}); check its "
            "name and the network, or give a folder with its parquet files."
        ) from problem
    tables, parts, given, unknown = [], [], [], []
    for key, table in loaded.items():
        split = ALIASES.get(str(key), "" if len(loaded) == 1 else None)
        if split is None or not len(table):
            unknown.append(str(key))
            continue
        tables.append(table.flatten_indices() if table._indices is not None else table)
        parts.append((f"{name}/{key}", len(table), (f"hf:{name}/{key}/{table._fingerprint}", 0, 0)))
        given += [split] * len(table)
    if not tables:
        raise UserError(f"'{spec}' has no split named train, validation or test, only {', '.join(unknown)}.")
    if "label" in options:
        columns = [options["label"]]
    data = _open_table(
        datasets.concatenate_datasets(tables),
        parts,
        given,
        spec=spec,
        columns=columns,
        image=options.get("image"),
        seed=seed,
        validation=validation,
        test=test,
    )
    data.ignored = unknown
    return data


def _quietly(datasets: Any, *arguments: Any, **options: Any) -> Any:
    """Call `load_dataset` without the bars it draws for files that are already here."""
    shown = arguments[0] == "parquet" and not datasets.are_progress_bars_disabled()
    if shown:
        datasets.disable_progress_bars()
    try:
        return datasets.load_dataset(*arguments, **options)
    finally:
        if shown:
            datasets.enable_progress_bars()


def _first_line(problem: BaseException) -> str:
    cause = problem.__cause__ or problem
    return (str(cause).strip().split("\n")[0] or type(cause).__name__)[:200]


def _open_table(
    table: Any,
    parts: Sequence[tuple[str, int, tuple[str, int, int]]],
    given: Sequence[str],
    *,
    spec: str,
    columns: Sequence[str] | None,
    image: str | None = None,
    **options: Any,
) -> DataSet:
    from datasets import Image as ImageFeature

    image = _image_column(table, image, spec)
    if isinstance(table.features[image], ImageFeature):
        table = table.cast_column(image, ImageFeature(decode=False))
    source = TableSource(table, image, parts)
    labels = _label_columns(table, columns, image, spec)
    heads, multitask = name_heads([(name, _encode(table, name, source)) for name in labels])
    splits = np.array(given, dtype=object)
    test = splits == "test"
    unlabelled = bool(test.any()) and all((column.numbers[test] == -1).all() for column in heads)
    if unlabelled:
        splits[test] = "unlabelled"
    data = assemble(
        source,
        {column.head: column.numbers for column in heads},
        {column.head: column.classes for column in heads},
        splits,
        multitask=multitask,
        spec=spec,
        **options,
    )
    if unlabelled:
        data.split_made += "; the test split has no labels and is left aside"
    return data


def _image_column(table: Any, chosen: str | None, spec: str) -> str:
    from datasets import Image as ImageFeature

    names = table.column_names
    if chosen is not None:
        if chosen not in names:
            raise UserError(f"'{spec}' has no column '{chosen}', only {', '.join(names)}.{did_you_mean(chosen, names)}")
        return chosen
    typed = [name for name in names if isinstance(table.features[name], ImageFeature)]
    usual = [name for name in _IMAGE_NAMES if name in names]
    for name in [*usual, *typed]:
        if name in typed or _holds_bytes(table.features[name]):
            return name
    raise UserError(f"'{spec}' has no column of pictures among {', '.join(names)}; name the picture's bytes 'image'.")


def _holds_bytes(feature: Any) -> bool:
    inner = feature.get("bytes") if isinstance(feature, dict) else feature
    return getattr(inner, "dtype", None) in ("binary", "large_binary")


def _label_columns(table: Any, chosen: Sequence[str] | None, image: str, spec: str) -> list[str]:
    from datasets import ClassLabel

    names = [name for name in table.column_names if name != image]
    for name in chosen or ():
        if name not in names:
            raise UserError(f"'{spec}' has no column '{name}', only {', '.join(names)}.{did_you_mean(name, names)}")
    if chosen:
        return list(chosen)
    usual = [name for name in _LABEL_NAMES if name in names]
    if usual:
        return usual[:1]
    typed = [
        name
        for name in names
        if isinstance(table.features[name], ClassLabel) or getattr(table.features[name], "dtype", None) == "bool"
    ]
    if not typed:
        has = ", ".join(names) or "nothing else"
        raise UserError(
            f"'{spec}' has no column 'label' beside '{image}' ({has}); name the label columns with columns=[...]."
        )
    return typed


def _encode(table: Any, name: str, source: Source) -> list[Column]:
    from datasets import ClassLabel

    feature = table.features[name]
    values = table.data.column(name).to_pylist()
    if isinstance(feature, ClassLabel):
        numbers = np.array([-1 if value is None else value for value in values], dtype=np.int64)
        if len(feature.names) < 2:
            raise UserError(f"The column '{name}' has one class, and a classifier needs two or more.")
        return [Column(name, tuple(feature.names), numbers)]
    inner = getattr(feature, "feature", None)
    if isinstance(inner, ClassLabel):
        values = [None if value is None else [inner.names[item] for item in value] for value in values]
    return encode(name, values, lambda row: f"'{source.id(row)}'")
