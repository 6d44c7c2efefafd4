"""CelebA: `celeba:PATH`, aligned faces with 40 yes/no attributes as heads, in the official splits.

PATH is the folder of the official downloads, or of torchvision's (all in `celeba/`):

    Img/img_align_celeba/000001.jpg ...      img_align_celeba.zip, unzipped: 202,599 pictures of 178x218
    Anno/list_attr_celeba.txt                line 1: number of pictures; line 2: 40 names; then `000001.jpg -1 1 ...`
    Eval/list_eval_partition.txt             `000001.jpg 0`: 0 train, 1 validation, 2 test
    Anno/list_landmarks_align_celeba.txt     if there; line 2: lefteye_x lefteye_y ...; then `000001.jpg 69 109 ...`

Source: Liu, Luo, Wang, Tang, "Deep Learning Face Attributes in the Wild", ICCV 2015, arXiv 1411.7766.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from attention_branch.data.dataset import DataSet
from attention_branch.data.folders import FileSource
from attention_branch.data.published import data_folder, missing_files, quoted
from attention_branch.data.splits import assemble
from attention_branch.errors import UserError
from attention_branch.models.facial.regions import POINTS

IMAGES = {"train": 162_770, "validation": 19_867, "test": 19_962}
"""Pictures in the official splits."""
ATTRIBUTES = 40
_FARTHEST = 10_000
"""Pixels: a point farther away is a damaged line."""

_PAGE = "the page 'Large-scale CelebFaces Attributes (CelebA) Dataset' (CUHK Multimedia Laboratory)"
_NUMBERS = {"-1": 0, "1": 1}


class FaceSource(FileSource):
    """CelebA's pictures, with five points of each face where their file is there."""

    def __init__(self, root: Path, names: Sequence[str], points: np.ndarray | None) -> None:
        """Take the names and the points (N, 5, 2), x and y."""
        super().__init__(root, names)
        self._points = points
        self.point_names = POINTS if points is not None else ()

    def points(self, row: int) -> np.ndarray | None:
        """Return the face's five points (5, 2), x and y."""
        return None if self._points is None else self._points[row].astype(np.float64)

    def picture_size(self, row: int) -> tuple[int, int]:
        """Return (height, width) from the file's head, without decoding the picture."""
        with Image.open(self.path(row)) as picture:
            return picture.height, picture.width


def open_celeba(spec: str, *, seed: int, validation: float, test: float) -> DataSet:
    """Open `celeba:PATH`: a head with the classes `no` (-1) and `yes` (1) for each attribute, in the official order.

    The pictures have points (`ImageSet.points`) where the file of landmarks is there. Raises `UserError` for a copy
    that is not whole, or damaged.
    """
    folder = data_folder(spec, spec.removeprefix("celeba:"))
    base = next((place for place in (folder / "celeba", folder / "CelebA") if place.is_dir()), folder)
    attributes = _find_file(base, "Anno", "list_attr_celeba.txt")
    partition = _find_file(base, "Eval", "list_eval_partition.txt")
    pictures = _find_pictures(base)
    heads, names, values = _read_attributes(attributes)
    given = _read_partition(partition, names)
    _check_whole(partition, given)
    missing = missing_files(pictures, names)
    if missing:
        raise UserError(
            f"{len(missing):,} of CelebA's {len(names):,} pictures are not in '{pictures}' ({quoted(missing)}); unzip "
            "'img_align_celeba.zip' again."
        )
    return assemble(
        FaceSource(pictures, names, _read_points(base, names)),
        {head: values[:, column] for column, head in enumerate(heads)},
        dict.fromkeys(heads, ("no", "yes")),
        given,
        seed=seed,
        validation=validation,
        test=test,
        multitask=True,
        spec=spec,
        root=str(pictures.absolute()),
    )


def _find_file(base: Path, folder: str, name: str) -> Path:
    for place in (base / folder / name, base / name):
        if place.is_file():
            return place
    other = Path(name).with_suffix(".csv").name
    instead = f" ('{other}' is a copy in another form)" if (base / other).is_file() else ""
    raise UserError(f"There is no '{name}' in '{base}' or its '{folder}/'{instead}; get it from {_PAGE}.")


def _find_pictures(base: Path) -> Path:
    name = "img_align_celeba"
    places = [base / "Img" / name, base / name]
    for place in places:
        if place.is_dir():
            # Unzipped into a folder of its own name, it lies twice in it.
            return place / name if (place / name).is_dir() else place
    archives = [place.with_suffix(".zip") for place in places if place.with_suffix(".zip").is_file()]
    if archives:
        raise UserError(f"'{archives[0]}' is not unpacked; unzip it where it lies, into '{name}/'.")
    raise UserError(f"There is no '{name}/' in '{base}' or its 'Img/'; unzip '{name}.zip' there, from {_PAGE}.")


def _lines(file: Path) -> list[str]:
    try:
        return file.read_text(encoding="ascii").splitlines()
    except UnicodeDecodeError as problem:
        raise UserError(f"'{file}' is damaged (byte {problem.start} is no ASCII); get it again from {_PAGE}.") from None


def _read_attributes(file: Path) -> tuple[list[str], list[str], np.ndarray]:
    """Return the 40 names, the pictures' files, and 0 or 1 for each picture and attribute."""
    again = f"get it again from {_PAGE}"
    lines = _lines(file)
    while lines and not lines[-1].strip():
        lines.pop()
    heads = lines[1].split() if len(lines) > 1 else []
    if len(heads) != ATTRIBUTES or len(set(heads)) != ATTRIBUTES:
        raise UserError(f"'{file}' line 2 holds {len(set(heads))} names, not {ATTRIBUTES} attributes; {again}.")
    if lines[0].strip() != str(len(lines) - 2):
        raise UserError(
            f"'{file}' says in line 1 that it holds '{lines[0].strip()[:20]}' pictures, and {len(lines) - 2:,} lines "
            f"follow; {again}."
        )
    names, rows = [], bytearray()
    for number, line in enumerate(lines[2:], 3):
        name, *values = line.split() or [""]
        if len(values) != ATTRIBUTES:
            raise UserError(
                f"'{file}' line {number} has {len(values) + bool(name)} columns, not {ATTRIBUTES + 1}; {again}."
            )
        try:
            rows += bytes(map(_NUMBERS.__getitem__, values))
        except KeyError as problem:
            raise UserError(f"'{file}' line {number} holds {problem}, which is neither -1 nor 1; {again}.") from None
        names.append(name)
    return heads, names, np.frombuffer(bytes(rows), dtype=np.uint8).reshape(len(names), ATTRIBUTES)


def _read_points(base: Path, names: list[str]) -> np.ndarray | None:
    """Return five points of each named picture, int16 (N, 5, 2), or None where their file is not there."""
    name = "list_landmarks_align_celeba.txt"
    file = next((place for place in (base / "Anno" / name, base / name) if place.is_file()), None)
    if file is None:
        return None
    again = f"get it again from {_PAGE}, or remove it"
    lines = _lines(file)
    wanted = [f"{point}_{axis}" for point in POINTS for axis in "xy"]
    if len(lines) < 2 or lines[1].split() != wanted:
        raise UserError(f"'{file}' line 2 is not '{' '.join(wanted)}'; {again}.")
    found: dict[str, list[int]] = {}
    for number, line in enumerate(lines[2:], 3):
        words = line.split()
        if not words:
            continue
        try:
            values = [int(word) for word in words[1:]]
        except ValueError:
            values = []
        if len(values) != 2 * len(POINTS) or not all(-_FARTHEST <= value <= _FARTHEST for value in values):
            raise UserError(
                f"'{file}' line {number} is no picture and {2 * len(POINTS)} whole numbers (pixels); {again}."
            )
        found[words[0]] = values
    if not lines[0].strip().isdigit() or int(lines[0]) != len(found):
        raise UserError(f"'{file}' line 1 is '{lines[0][:40]}', and the file names {len(found):,} pictures; {again}.")
    missing = [picture for picture in names if picture not in found]
    if missing:
        raise UserError(f"'{file}' lacks {len(missing):,} of the pictures ({quoted(missing, 1)}); {again}.")
    return np.array([found[picture] for picture in names], dtype=np.int16).reshape(len(names), len(POINTS), 2)


def _read_partition(file: Path, names: list[str]) -> np.ndarray:
    """Return the split of each of the named pictures."""
    splits = dict(zip("012", IMAGES, strict=True))
    found: dict[str, str] = {}
    for number, line in enumerate(_lines(file), 1):
        words = line.split()
        if words and (len(words) != 2 or words[1] not in splits):
            raise UserError(f"'{file}' line {number}: '{line[:40]}' is no picture and 0, 1 or 2; get it from {_PAGE}.")
        if words:
            found[words[0]] = splits[words[1]]
    if len(found) != len(names) or any(name not in found for name in names):
        other = [name for name in names if name not in found] or sorted(set(found) - set(names))
        raise UserError(
            f"'{file}' names {len(found):,} pictures and the attributes {len(names):,}, not the same ones (such as "
            f"{quoted(other, 1)}); get both again from {_PAGE}."
        )
    return np.array([found[name] for name in names], dtype=object)


def _check_whole(file: Path, given: np.ndarray) -> None:
    for split, expected in IMAGES.items():
        count = int((given == split).sum())
        if count != expected:
            raise UserError(
                f"'{file}' puts {count:,} pictures into {split}, and CelebA has {expected:,} there; get it again from "
                f"{_PAGE}, or list a part of it in a metadata.csv."
            )
