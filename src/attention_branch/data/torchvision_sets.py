"""Small classic data sets through torchvision: `torchvision:CIFAR10` and its like, whole in memory as uint8.

Their files are looked for in `cache_folder()`; torchvision checks them, and downloads them when they are not there.
`torchvision:CIFAR10:PATH` reads those of a folder, and downloads nothing.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from torchvision import datasets
from torchvision.datasets.utils import check_integrity

from attention_branch.data.cache import cache_folder
from attention_branch.data.dataset import DataSet, Source
from attention_branch.data.published import data_folder, quoted
from attention_branch.data.splits import assemble
from attention_branch.errors import UserError, did_you_mean


@dataclass(frozen=True)
class Known:
    """How torchvision opens a data set, the (mean, std) per channel usually published for it, and its own page."""

    open: Callable[..., Any]
    train: dict[str, Any]
    test: dict[str, Any]
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    page: str


def _train_flag(name: str, mean: Sequence[float], std: Sequence[float], page: str) -> Known:
    return _known(name, {"train": True}, {"train": False}, mean, std, page)


def _split_name(name: str, mean: Sequence[float], std: Sequence[float], page: str) -> Known:
    return _known(name, {"split": "train"}, {"split": "test"}, mean, std, page)


def _known(
    name: str, train: dict[str, Any], test: dict[str, Any], mean: Sequence[float], std: Sequence[float], page: str
) -> Known:
    r, g, b = mean if len(mean) == 3 else (mean[0],) * 3
    s, t, u = std if len(std) == 3 else (std[0],) * 3
    return Known(getattr(datasets, name), train, test, (r, g, b), (s, t, u), page)


_CIFAR = "The CIFAR-10 and CIFAR-100 datasets (Alex Krizhevsky, University of Toronto)"

KNOWN = {
    "CIFAR10": _train_flag("CIFAR10", (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616), _CIFAR),
    "CIFAR100": _train_flag("CIFAR100", (0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762), _CIFAR),
    "SVHN": _split_name(
        "SVHN",
        (0.4377, 0.4438, 0.4728),
        (0.1980, 0.2010, 0.1970),
        "The Street View House Numbers (SVHN) Dataset (Stanford), format 2, cropped digits",
    ),
    "STL10": _split_name(
        "STL10", (0.4467, 0.4398, 0.4066), (0.2603, 0.2566, 0.2713), "STL-10 dataset (Adam Coates, Stanford)"
    ),
    "MNIST": _train_flag("MNIST", (0.1307,), (0.3081,), "The MNIST database of handwritten digits (Yann LeCun)"),
    "FashionMNIST": _train_flag("FashionMNIST", (0.2860,), (0.3530,), "Fashion-MNIST (Zalando Research)"),
    "KMNIST": _train_flag("KMNIST", (0.1918,), (0.3483,), "KMNIST Dataset (ROIS-DS Center for Open Data)"),
}
ALL_NAMES = (*KNOWN, "ImageNet")
"""Names after `torchvision:`. ImageNet is read from its files, by a loader of its own."""


class ArraySource(Source):
    """Pictures in memory, uint8 (N, H, W, 3); `parts` names them: (name, number of rows) in order."""

    decoded = True

    def __init__(self, pixels: np.ndarray, parts: Sequence[tuple[str, int]]) -> None:
        self._pixels, self.parts = pixels, list(parts)

    def __len__(self) -> int:
        return len(self._pixels)

    def image(self, row: int) -> Image.Image:
        """Return one picture as RGB."""
        return Image.fromarray(self._pixels[row])

    def id(self, row: int) -> str:
        """Return `name:row`, such as `CIFAR10/train:17`, in the order of the official files."""
        for name, count in self.parts:
            if row < count:
                return f"{name}:{row}"
            row -= count
        raise IndexError(row)

    def pixels(self) -> np.ndarray:
        """Return all pictures."""
        return self._pixels


def open_torchvision(spec: str, *, seed: int, validation: float, test: float) -> DataSet:
    """Open `torchvision:NAME` or `torchvision:NAME:PATH`; its own test split is kept, validation is cut from train.

    Of SVHN `train` and `test` are read, never `extra`; its label 10 becomes the class 0, the digit that it stands for.
    """
    name, colon, place = spec.removeprefix("torchvision:").partition(":")
    if name not in KNOWN:
        by_lower = {key.lower(): key for key in ALL_NAMES}
        near = did_you_mean(name.lower(), by_lower)
        for lower, key in by_lower.items():
            near = near.replace(f"'{lower}'", f"'torchvision:{key}'")
        raise UserError(f"There is no data set '{spec}'; known are {', '.join(ALL_NAMES)}.{near}")
    known = KNOWN[name]
    root = _root(known, data_folder(spec, place)) if colon else cache_folder()
    pixels, labels, parts, given = [], [], [], []
    classes: Sequence[str] | None = None
    for split, arguments in (("train", known.train), ("test", known.test)):
        opened = _open(name, known, arguments, root, download=not colon)
        values = np.asarray(opened.targets if hasattr(opened, "targets") else opened.labels, dtype=np.int64)
        pixels.append(_as_rgb(np.asarray(opened.data)))
        labels.append(values)
        parts.append((f"{name}/{split}", len(values)))
        given += [split] * len(values)
        classes = getattr(opened, "classes", classes)
    numbers = np.concatenate(labels)
    if classes is None:
        classes = [str(number) for number in range(int(numbers.max()) + 1)]
    return assemble(
        ArraySource(np.concatenate(pixels), parts),
        {"label": numbers},
        {"label": list(classes)},
        np.array(given, dtype=object),
        seed=seed,
        validation=validation,
        test=test,
        spec=spec,
        root=str(root.absolute()),
        normalization=(known.mean, known.std),
    )


def _root(known: Known, folder: Path) -> Path:
    """Return the folder that torchvision wants: the one that holds `cifar-10-batches-py`, not that folder itself."""
    own = getattr(known.open, "base_folder", None)
    return folder.absolute().parent if folder.name == own and not (folder / folder.name).exists() else folder


def _open(name: str, known: Known, arguments: dict[str, Any], root: Path, download: bool) -> Any:
    try:
        return known.open(root, download=False, **arguments)
    # Not there, or not whole: torchvision tells both by a RuntimeError, and MNIST's reader a bad file by others.
    except (RuntimeError, AssertionError, IndexError, TypeError, ValueError) as problem:
        reason: Exception = problem
    if not download:
        archive = getattr(known.open, "filename", None)
        put = f"unpack '{archive}' there" if isinstance(archive, str) else "put its files there, unpacked"
        wrong = _what_is_wrong(name, known, root, reason)
        raise UserError(f"{wrong}; from the page '{known.page}', {put}.") from reason
    try:
        root.mkdir(parents=True, exist_ok=True)
        return known.open(root, download=True, **arguments)
    except (OSError, RuntimeError, AssertionError, IndexError, TypeError, ValueError) as problem:
        raise UserError(
            f"{_what_is_wrong(name, known, root, problem)}, and it could not be downloaded ({_first_line(problem)}); "
            f"connect to the network, put its files there (from the page '{known.page}'), or name their folder, as in "
            f"'torchvision:{name}:PATH' (another folder for all data: set ABN_DATA)."
        ) from problem


def _what_is_wrong(name: str, known: Known, root: Path, problem: Exception) -> str:
    """Say which of the official files are missing in a folder, and which are there with another checksum."""
    files = _official_files(name, known)
    missing = [file for file in files if not (root / file).is_file()]
    damaged = [file for file, md5 in files.items() if file not in missing and not check_integrity(root / file, md5)]
    told = [f"missing: {quoted(missing)}"] if missing else []
    told += [f"damaged (another MD5 than the published): {quoted(damaged)}"] if damaged else []
    if not told:
        told = [f"a file cannot be read: {_first_line(problem)}"]
    return f"{name} is not whole in '{root}' ({'; '.join(told)})"


def _first_line(problem: Exception) -> str:
    return (str(problem).strip() or type(problem).__name__).split("\n")[0][:200]


def _official_files(name: str, known: Known) -> dict[str, str | None]:
    """Return the files that torchvision reads, relative to its folder, with their MD5 where it has one."""
    kind: Any = known.open
    if hasattr(kind, "split_list"):
        return {file: md5 for _, file, md5 in (kind.split_list[split] for split in ("train", "test"))}
    if hasattr(kind, "train_list"):
        files = dict((*kind.train_list, *kind.test_list))
        if hasattr(kind, "meta"):
            files[kind.meta["filename"]] = kind.meta["md5"]
        return {f"{kind.base_folder}/{file}": md5 for file, md5 in files.items()}
    # MNIST and its like are read unpacked; the MD5 that torchvision has is of the packed files.
    return {f"{name}/raw/{Path(file).stem}": None for file, _ in kind.resources}


def _as_rgb(data: np.ndarray) -> np.ndarray:
    """Return pictures (N, H, W), (N, 3, H, W) or (N, H, W, 3) as (N, H, W, 3)."""
    if data.ndim == 3:
        return np.repeat(data[..., None], 3, axis=3)
    return np.ascontiguousarray(data.transpose(0, 2, 3, 1)) if data.shape[1] == 3 else data
