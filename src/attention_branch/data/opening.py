"""One string names the data: look at what it is, open it, and leave out what cannot be read."""

import os
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from attention_branch.data.celeba import open_celeba
from attention_branch.data.compcars import open_compcars
from attention_branch.data.dataset import DataSet
from attention_branch.data.digits import open_digits
from attention_branch.data.folders import open_class_folders
from attention_branch.data.grouped import open_grouped
from attention_branch.data.imagenet import open_imagenet
from attention_branch.data.images import IMAGE_SUFFIXES
from attention_branch.data.metadata import FILE_NAMES, metadata_files, open_metadata
from attention_branch.data.mosaics import open_mosaics
from attention_branch.data.published import ARCHIVE_SUFFIXES
from attention_branch.data.splits import check_fractions
from attention_branch.data.tables import open_hub, open_parquet, parquet_files
from attention_branch.data.torchvision_sets import ALL_NAMES, KNOWN, open_torchvision
from attention_branch.data.verify import leave_out_broken
from attention_branch.errors import UserError, did_you_mean

DATA_NAMES = ("digits", *(f"torchvision:{name}" for name in KNOWN))
"""Data sets that need no files of the user's own."""

_KINDS = (
    "a folder of class folders, a folder with metadata.csv, a parquet file, hf:NAME, torchvision:NAME, compcars:PATH, "
    "celeba:PATH, mosaics:DATA, grouped:DATA,groups=TABLE or digits"
)
_PREFIXES = ("torchvision", "hf", "compcars", "celeba", "mosaics", "grouped", "digits")


def open_data(
    spec: str | Path,
    *,
    seed: int = 0,
    validation: float = 0.1,
    test: float = 0.2,
    columns: Sequence[str] | None = None,
    verify: bool = True,
    progress: bool = True,
) -> DataSet:
    """Open a data set by one string: a folder, a parquet file, `hf:NAME`, `torchvision:NAME` or `digits`.

    `torchvision:NAME:PATH`, `compcars:PATH` and `celeba:PATH` read the official files of published sets in a folder.
    `mosaics:DATA,...` and `grouped:DATA,groups=TABLE` make data of several heads of any of these.

    `validation` and `test` are the shares of all pictures (of train, where the data has splits) that are cut by us for
    a split the data lacks; `test=1, validation=0` puts all of an unsplit folder into test. Data with train and
    validation but no test keeps `test` as None. `columns` names the label columns of a table. With `verify`, every
    picture is decoded once, and those that cannot be are left out and listed in `left_out`; verdicts are remembered in
    the cache folder, so that the next opening is quick. Bad input raises `UserError`.
    """
    check_fractions(validation, test)
    opened = partial(
        open_data, seed=seed, validation=validation, test=test, columns=columns, verify=verify, progress=progress
    )
    if str(spec).startswith("mosaics:"):
        return open_mosaics(str(spec), seed=seed, validation=validation, opened=opened)
    if str(spec).startswith("grouped:"):
        return open_grouped(str(spec), opened=opened)
    try:
        data = _open(str(spec), seed=seed, validation=validation, test=test, columns=columns, progress=progress)
    except PermissionError as problem:
        raise UserError(f"No permission to read '{problem.filename}'; change its permissions.") from problem
    if verify:
        leave_out_broken(data, progress)
    return data


def _open(
    spec: str, *, seed: int, validation: float, test: float, columns: Sequence[str] | None, progress: bool
) -> DataSet:
    if spec == "digits" or spec.startswith("digits:"):
        return open_digits(spec, seed)
    if spec == "torchvision:ImageNet" or spec.startswith("torchvision:ImageNet:"):
        return open_imagenet(spec, seed=seed, validation=validation, test=test)
    if spec.startswith("compcars:"):
        return open_compcars(spec, seed=seed, validation=validation, test=test, progress=progress)
    if spec.startswith("celeba:"):
        return open_celeba(spec, seed=seed, validation=validation, test=test)
    if spec.startswith("torchvision:"):
        return open_torchvision(spec, seed=seed, validation=validation, test=test)
    if spec.startswith("hf:"):
        return open_hub(spec, seed=seed, validation=validation, test=test, columns=columns)
    path = Path(spec).expanduser()
    if path.name in FILE_NAMES and path.is_file():
        path = path.parent
    if path.is_dir():
        return _open_folder(path, spec=spec, seed=seed, validation=validation, test=test, columns=columns)
    if path.is_file():
        if path.suffix.lower() == ".parquet":
            return open_parquet(
                path.parent, [path], spec=spec, seed=seed, validation=validation, test=test, columns=columns
            )
        raise UserError(f"'{spec}' is a file{_what(path)}; give {_KINDS}.")
    raise _unknown(spec, path)


def _open_folder(
    root: Path, *, spec: str, seed: int, validation: float, test: float, columns: Sequence[str] | None
) -> DataSet:
    listed = metadata_files(root)
    tables = [] if listed else parquet_files(root)
    if listed:
        return open_metadata(root, listed, spec=spec, seed=seed, validation=validation, test=test, columns=columns)
    if tables:
        return open_parquet(root, tables, spec=spec, seed=seed, validation=validation, test=test, columns=columns)
    return open_class_folders(root, spec=spec, seed=seed, validation=validation, test=test)


def _what(path: Path) -> str:
    suffix = path.suffix.lower()
    if suffix in ARCHIVE_SUFFIXES:
        return " to unpack first"
    return ", a single picture" if suffix in IMAGE_SUFFIXES else " of a kind that is not read"


def run_name(spec: str) -> str:
    """Return a short name of a data set for its runs: `CIFAR10`, `celeba`, else the last part of the path or name."""
    kind, _, rest = spec.partition(":")
    if kind == "torchvision" and rest:
        return rest.partition(":")[0]
    if kind in ("compcars", "celeba") and rest:
        return kind
    return Path(spec.split(":")[-1].split("=")[0]).name or "data"


def _unknown(spec: str, path: Path) -> UserError:
    kind, colon, rest = spec.partition(":")
    if not colon and kind.lower() in ("compcars", "celeba", "imagenet"):
        known = "torchvision:ImageNet" if kind.lower() == "imagenet" else kind.lower()
        return UserError(f"'{spec}' does not say where the files are; give their folder, as in '{known}:PATH'.")
    near = did_you_mean(kind.lower(), _PREFIXES) if colon and os.sep not in kind else ""
    if near:
        for prefix in _PREFIXES:
            near = near.replace(f"'{prefix}'", f"'{prefix}:{rest}'")
        return UserError(f"There is no data set '{spec}'; give {_KINDS}.{near}")
    parent = path.parent
    beside = [entry.name for entry in parent.iterdir()] if parent.is_dir() else []
    looks_like_path = os.sep in spec or spec.startswith((".", "~"))
    if looks_like_path:
        if not parent.is_dir():
            return UserError(f"The folder '{parent}' of '{spec}' does not exist; check the path.")
        return UserError(f"'{spec}' does not exist; check the path.{did_you_mean(path.name, beside)}")
    names = {name.lower(): name for name in (*DATA_NAMES, "compcars:PATH", "celeba:PATH", *ALL_NAMES, *beside)}
    near = did_you_mean(spec.lower(), names)
    for lower, name in names.items():
        near = near.replace(f"'{lower}'", f"'torchvision:{name}'" if name in ALL_NAMES else f"'{name}'")
    return UserError(f"There is no data set '{spec}'; give {_KINDS}.{near}")
