"""Comp-Cars: `compcars:PATH`, the web pictures of CUHK's Comprehensive Cars, with the car's model and maker as heads.

PATH is the folder that holds `data/`, or `data/` itself, joined and unzipped from data.z01 ... data.zip:

    data/image/MAKER/MODEL/YEAR/NAME.jpg     MAKER and MODEL are numbers from 1, such as 78/1/2014/3ac218c0c6c378.jpg;
                                             YEAR may be `unknown`; MODEL counts through all makers
    data/label/MAKER/MODEL/YEAR/NAME.txt     line 1: viewpoint (-1 uncertain, 1 front, 2 rear, 3 side, 4 front and side,
                                             5 rear and side); line 2: number of boxes; line 3: the box, x1 y1 x2 y2, in
                                             pixels counted from 1: 1 <= x1 < x2 <= width, 1 <= y1 < y2 <= height
    data/misc/make_model_name.mat            the cells make_names and model_names, in the order of the numbers; some
                                             names are empty
    data/train_test_split/classification/    train.txt and test.txt, MAKER/MODEL/YEAR/NAME.jpg a line

The whole set has 136,726 pictures of 163 makers and 1,716 models. The lists for classification have 16,016 and 14,939
pictures of 431 models of 75 makers; these lists are read here. The ABN paper has 36,451 and 15,626 pictures of 432
models and 75 makers: 52,077, or 70 to 30. Lists made by others count 52,083 pictures of the 431 models in the whole
set, so the paper probably cut a split of its own from these; which pictures it took is not known. Source: Yang, Luo,
Loy, Tang, "A Large-Scale Car Dataset for Fine-Grained Categorization and Verification", CVPR 2015, arXiv 1506.08959,
and public loaders of the files.
"""

import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import scipy.io

from attention_branch.data.dataset import Box, DataSet
from attention_branch.data.folders import FileSource
from attention_branch.data.published import data_folder, missing_files, quoted, tell_apart
from attention_branch.data.splits import assemble
from attention_branch.data.verify import in_threads
from attention_branch.errors import UserError

LISTED = {"train": 16_016, "test": 14_939}
"""Pictures in the published lists for classification."""

_PAGE = "the page 'The Comprehensive Cars (CompCars) dataset' (CUHK Multimedia Laboratory)"
_LISTS = "train_test_split/classification"
_NAMES = "misc/make_model_name.mat"
_LINE = re.compile(r"(\d+)/(\d+)/\w+/[^/\s]+\.jpg")


def open_compcars(spec: str, *, seed: int, validation: float, test: float, progress: bool) -> DataSet:
    """Open `compcars:PATH`: the heads `model` and `maker`, the published train and test, validation cut from train.

    The classes are those of the lists, in the order of their numbers. A sample's box is the car's. A `UserError` for a
    copy that is not whole.
    """
    root = _data_folder(data_folder(spec, spec.removeprefix("compcars:")))
    names, given = [], []
    for split, count in LISTED.items():
        mine = _listed(root / _LISTS / f"{split}.txt", count)
        names += mine
        given += [split] * len(mine)
    labels = [f"{name.removesuffix('.jpg')}.txt" for name in names]
    _must_be_there(root, "image", names)
    _must_be_there(root, "label", labels)
    boxes: list[Box | None] = [None] * len(names)
    files = [root / "label" / label for label in labels]
    for row, box in in_threads(lambda row: _box(files[row]), range(len(files)), "Reading boxes", progress):
        boxes[row] = box
    numbers = np.array([[int(number) for number in name.split("/")[:2]] for name in names], dtype=np.int64)
    makers, maker = np.unique(numbers[:, 0], return_inverse=True)
    models, first, model = np.unique(numbers[:, 1], return_index=True, return_inverse=True)
    maker_names, model_names = _names(root / _NAMES, makers, models, numbers[first, 0])
    return assemble(
        FileSource(root / "image", names, boxes),
        {"model": model.ravel(), "maker": maker.ravel()},
        {"model": model_names, "maker": maker_names},
        np.array(given, dtype=object),
        seed=seed,
        validation=validation,
        test=test,
        multitask=True,
        spec=spec,
        root=str(root.absolute()),
    )


def _data_folder(folder: Path) -> Path:
    """Return the folder `data`; a `UserError` where the archive was not unpacked, or not to its end."""
    wanted = [f"{_LISTS}/train.txt", f"{_LISTS}/test.txt", _NAMES, "image", "label"]
    root = folder if (folder / "image").is_dir() or not (folder / "data").is_dir() else folder / "data"
    missing = [name for name in wanted if not (root / name).exists()]
    beside = folder.parent if folder.name == "data" else folder
    parts = sorted(path.name for path in beside.glob("data.z*"))
    if not missing:
        return root
    if parts:
        raise UserError(
            f"'{beside}' holds the archive of Comp-Cars ({quoted(parts)}) and not all of its content (missing: "
            f"{quoted(missing)}); with all parts together join them by 'zip -F data.zip --out joined.zip', and unzip "
            "joined.zip with the password of the set's instructions."
        )
    raise UserError(
        f"'{root}' is not a whole copy of Comp-Cars (missing: {quoted(missing)}); get the web-nature data from {_PAGE}."
    )


def _listed(file: Path, count: int) -> list[str]:
    try:
        lines = file.read_text(encoding="ascii").splitlines()
    except UnicodeDecodeError as problem:
        raise UserError(f"'{file}' is damaged (byte {problem.start} is no ASCII); unzip the set again.") from None
    names = []
    for number, line in enumerate(lines, 1):
        name = line.strip()
        if name and not _LINE.fullmatch(name):
            raise UserError(f"'{file}' line {number}: '{name[:80]}' is no MAKER/MODEL/YEAR/NAME.jpg; unzip it again.")
        names += [name] if name else []
    if len(names) != count:
        raise UserError(f"'{file}' lists {len(names):,} pictures, and the published list {count:,}; unzip it again.")
    return names


def _must_be_there(root: Path, folder: str, names: Sequence[str]) -> None:
    missing = missing_files(root / folder, names)
    if missing:
        raise UserError(
            f"{len(missing):,} of the {len(names):,} files that Comp-Cars' lists name are not in '{root / folder}' "
            f"({quoted(missing)}); unzip the set again, from all parts of its archive."
        )


def _box(file: Path) -> Box | None:
    """Return the first box of a label file with sides between pixels, from 0; None where it has none, or an empty one.

    Line 3 counts pixels from 1 and its corners belong to the car: x1 = 1 is the side 0, x2 = width the side width.
    """
    try:
        numbers = [int(word) for word in file.read_text(encoding="ascii").split()]
    except ValueError:
        numbers = []
    if len(numbers) < 2 or (len(numbers) - 2) % 4 or (numbers[1] > 0 and len(numbers) == 2):
        raise UserError(
            f"'{file}' is damaged: a viewpoint, the number of boxes and x1 y1 x2 y2 are expected; unzip it again."
        )
    if len(numbers) == 2:
        return None
    x1, y1, x2, y2 = (float(number) for number in numbers[2:6])
    return (x1 - 1, y1 - 1, x2, y2) if x1 <= x2 and y1 <= y2 else None


def _names(file: Path, makers: np.ndarray, models: np.ndarray, maker_of: np.ndarray) -> tuple[list[str], list[str]]:
    """Return the names of makers and models by their numbers, the number itself where a name is empty.

    A model's name that occurs twice is told apart by its maker's, and by its number where that does not suffice.
    """
    try:
        table = scipy.io.loadmat(file)
        cells = {key: [_text(cell) for cell in table[key].ravel()] for key in ("make_names", "model_names")}
    except Exception as problem:  # SciPy meets damaged bytes with any exception there is.
        raise UserError(f"'{file}' is damaged ({problem}); unzip it again.") from problem
    for key, numbers in (("make_names", makers), ("model_names", models)):
        if numbers[0] < 1 or numbers[-1] > len(cells[key]):
            wrong = numbers[0] if numbers[0] < 1 else numbers[-1]
            raise UserError(
                f"'{file}' has {len(cells[key]):,} {key}, and the lists use number {wrong}; unzip it again."
            )
    maker = {number: cells["make_names"][number - 1] or f"maker {number}" for number in map(int, makers)}
    plain = [cells["model_names"][number - 1] or f"model {number}" for number in map(int, models)]
    with_maker = [
        name if name.startswith(maker[int(owner)]) else f"{maker[int(owner)]} {name}"
        for name, owner in zip(plain, maker_of, strict=True)
    ]
    with_number = [f"{name} ({number})" for name, number in zip(with_maker, models, strict=True)]
    names = [maker[int(number)] for number in makers]
    twice = [f"{name} ({number})" for name, number in zip(names, makers, strict=True)]
    return tell_apart(names, twice), tell_apart(plain, with_maker, with_number)


def _text(cell: np.ndarray) -> str:
    return str(cell.item()).strip() if cell.size == 1 else ""
