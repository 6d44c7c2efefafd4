"""ImageNet of the ILSVRC 2012 classification task: `torchvision:ImageNet:PATH`, read from its files.

PATH holds `train/WNID/*.JPEG` and `val/WNID/*.JPEG`, as torchvision parses them, or the official archives
ILSVRC2012_img_train.tar, ILSVRC2012_img_val.tar and ILSVRC2012_devkit_t12.tar.gz, which are then unpacked once, into
these folders. Class names come from torchvision's meta.bin, or from the devkit (data/meta.mat: a table of synsets, of
which the 1,000 without children are the classes); with neither, the WordNet ids are the names. Classes are numbered in
the order of their ids, as in published weights. Facts: Russakovsky et al., arXiv 1409.0575; torchvision's ImageNet.
"""

import io
import os
import pickle
import shutil
import tarfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import scipy.io
from rich.console import Console
from torchvision.datasets import imagenet

from attention_branch.data.dataset import DataSet
from attention_branch.data.folders import FileSource, subfolders
from attention_branch.data.published import data_folder, tell_apart
from attention_branch.data.splits import assemble
from attention_branch.errors import UserError
from attention_branch.files import disk_error

CLASSES = 1_000
IMAGES = {"train": 1_281_167, "val": 50_000}
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)

_PAGE = "the page 'ImageNet Large Scale Visual Recognition Challenge 2012 (ILSVRC2012)' of image-net.org"
_DEVKIT = "ILSVRC2012_devkit_t12"


class ImageNetSource(FileSource):
    """ImageNet's picture files. They are not decoded before use: that takes long, and their number was checked."""

    decode_first = False


def open_imagenet(spec: str, *, seed: int, validation: float, test: float) -> DataSet:
    """Open `torchvision:ImageNet:PATH`; its 50,000 validation pictures are `test`, and `validation` is cut from train.

    Archives are unpacked first. A `UserError` for a copy that is not whole: 1,000 classes, 1,281,167 and 50,000 files.
    """
    root = data_folder(spec, spec.removeprefix("torchvision:ImageNet").removeprefix(":"))
    _unpack(root)
    folders = {split: {place.name: _pictures(place) for place in subfolders(root / split)} for split in IMAGES}
    _check_whole(root, folders)
    wnids = sorted(folders["train"])
    names, targets, given = [], [], []
    for split, role in (("train", "train"), ("val", "test")):
        for number, wnid in enumerate(wnids):
            mine = folders[split][wnid]
            names += [f"{split}/{wnid}/{name}" for name in mine]
            targets += [number] * len(mine)
            given += [role] * len(mine)
    data = assemble(
        ImageNetSource(root, names),
        {"label": np.array(targets, dtype=np.int64)},
        {"label": _class_names(root, wnids)},
        np.array(given, dtype=object),
        seed=seed,
        validation=validation,
        test=test,
        spec=spec,
        root=str(root.absolute()),
        normalization=(MEAN, STD),
    )
    data.split_made += f"; test is ImageNet's validation set ({IMAGES['val']:,} pictures)"
    return data


def _pictures(folder: Path) -> list[str]:
    return sorted(entry.name for entry in os.scandir(folder) if entry.name.endswith(".JPEG"))


def _check_whole(root: Path, folders: dict[str, dict[str, list[str]]]) -> None:
    way_out = f"complete it from {_PAGE}, or open a part of it as an ordinary folder, by '{root}' alone"
    for split, expected in IMAGES.items():
        found = folders[split]
        place = root / split
        if len(found) != CLASSES:
            loose = len(_pictures(place))
            unsorted = f" ({loose:,} pictures lie beside them, in no class folder)" if loose else ""
            raise UserError(
                f"'{place}' holds {len(found):,} class folders{unsorted}, and ImageNet has {CLASSES:,}; {way_out}."
            )
        count = sum(map(len, found.values()))
        if count != expected:
            raise UserError(f"'{place}' holds {count:,} JPEG files, and ImageNet has {expected:,}; {way_out}.")
    strange = sorted(set(folders["val"]) - set(folders["train"]))
    if strange:
        raise UserError(f"'{root / 'val' / strange[0]}' is no class of '{root / 'train'}'; {way_out}.")


def _unpack(root: Path) -> None:
    """Unpack the archives whose folder is not there yet; before that, see that everything is there."""
    archives = {split: root / imagenet.ARCHIVE_META[split][0] for split in IMAGES}
    todo = [split for split in IMAGES if not (root / split).is_dir()]
    lacking = [f"neither '{split}/' nor '{archives[split].name}'" for split in todo if not archives[split].is_file()]
    devkit = root / imagenet.ARCHIVE_META["devkit"][0]
    if "val" in todo and not (root / imagenet.META_FILE).is_file() and not devkit.is_file():
        lacking.append(f"no '{devkit.name}', which says the classes of the pictures in val")
    if lacking:
        raise UserError(f"ImageNet is not whole: '{root}' holds {' and '.join(lacking)}; get it from {_PAGE}.")
    for split in todo:
        _unpack_split(root, split, archives[split])


def _unpack_split(root: Path, split: str, archive: Path) -> None:
    size, free = archive.stat().st_size, shutil.disk_usage(root).free
    if free < size:
        raise UserError(
            f"'{archive}' needs {size / 1e9:.1f} GB beside it when it is unpacked, and {free / 1e9:.1f} GB are free; "
            "make room on the disk."
        )
    # A folder of another name until all is in it, so that a half unpacked one is never taken for the data.
    unfinished = root / f".{split}.unpacking"
    try:
        unfinished.mkdir()
    except FileExistsError:
        raise UserError(
            f"'{unfinished}' says that '{archive.name}' is being unpacked; wait for it or, when no process is at it "
            "any more, delete that folder."
        ) from None
    except OSError as problem:
        raise disk_error(problem, unfinished) from problem
    Console(stderr=True).print(
        f"Checking and unpacking '{archive}' ({size / 1e9:.1f} GB) into '{root / split}', once. All of ImageNet takes "
        "from half an hour on a fast disk to several hours.",
        markup=False,
        highlight=False,
        soft_wrap=True,
    )
    try:
        if split == "train":
            _verified(archive, imagenet.parse_train_archive, root, folder=unfinished.name)
        else:
            if not (root / imagenet.META_FILE).is_file():
                devkit = root / imagenet.ARCHIVE_META["devkit"][0]
                _verified(devkit, imagenet.parse_devkit_archive, root)
            _, wnids = _meta(root)
            _verified(archive, imagenet.parse_val_archive, root, wnids=wnids, folder=unfinished.name)
        unfinished.rename(root / split)
    except OSError as problem:
        raise disk_error(problem, unfinished) from problem
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


def _verified(archive: Path, parse: Any, root: Path, **arguments: Any) -> None:
    try:
        parse(root, **arguments)
    except RuntimeError as problem:
        # The archive is there, so this is torchvision's word for another checksum.
        raise UserError(
            f"'{archive}' is damaged: its MD5 is not the published one; get it again from {_PAGE}."
        ) from problem


def _class_names(root: Path, wnids: Sequence[str]) -> list[str]:
    """Return the first of each class's words; where two classes share it ('crane'), with the WordNet id behind it."""
    words = _words(root)
    first = [words.get(wnid, wnid) for wnid in wnids]
    return tell_apart(first, [f"{name} ({wnid})" for name, wnid in zip(first, wnids, strict=True)])


def _words(root: Path) -> dict[str, str]:
    if (root / imagenet.META_FILE).is_file():
        return {wnid: words[0] for wnid, words in _meta(root)[0].items()}
    folder, archive = root / _DEVKIT / "data" / "meta.mat", root / imagenet.ARCHIVE_META["devkit"][0]
    place = folder if folder.is_file() else archive
    if not place.is_file():
        return {}
    try:
        content = folder.read_bytes() if place == folder else _from_archive(archive)
        synsets = scipy.io.loadmat(io.BytesIO(content), squeeze_me=True)["synsets"]
        leaves = [row for row in synsets if row["num_children"] == 0]
        return {str(row["WNID"]): str(row["words"]).split(", ")[0] for row in leaves}
    except Exception as problem:  # SciPy's and tarfile's readers meet damaged bytes with any exception there is.
        raise UserError(f"'{place}' is damaged ({problem}); get '{_DEVKIT}.tar.gz' again from {_PAGE}.") from problem


def _from_archive(archive: Path) -> bytes:
    with tarfile.open(archive) as packed:
        member = packed.extractfile(f"{_DEVKIT}/data/meta.mat")
        assert member is not None
        return member.read()


def _meta(root: Path) -> tuple[dict[str, tuple[str, ...]], list[str]]:
    """Return what torchvision's meta.bin holds: the words of each class, and the class of each validation picture."""
    try:
        words, wnids = imagenet.load_meta_file(root)
        return dict(words), list(wnids)
    except (RuntimeError, EOFError, TypeError, ValueError, pickle.UnpicklingError) as problem:
        path = root / imagenet.META_FILE
        raise UserError(f"'{path}' is damaged; delete it, and put '{_DEVKIT}.tar.gz' beside it.") from problem
