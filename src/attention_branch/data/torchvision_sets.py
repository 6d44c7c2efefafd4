"""Small classic data sets through torchvision: `torchvision:CIFAR10` and its like, whole in memory as uint8.

Their files are looked for in `cache_folder()`; torchvision checks them, and downloads them when they are not there.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image
from torchvision import datasets

from attention_branch.data.cache import cache_folder
from attention_branch.data.dataset import DataSet, Source
from attention_branch.data.splits import assemble
from attention_branch.errors import UserError, did_you_mean


@dataclass(frozen=True)
class Known:
    """How torchvision opens a data set, and the (mean, std) per channel usually published for it."""

    open: Callable[..., Any]
    train: dict[str, Any]
    test: dict[str, Any]
    mean: tuple[float, float, float]
    std: tuple[float, float, float]


def _train_flag(name: str, mean: Sequence[float], std: Sequence[float]) -> Known:
    return _known(name, {"train": True}, {"train": False}, mean, std)


def _split_name(name: str, mean: Sequence[float], std: Sequence[float]) -> Known:
    return _known(name, {"split": "train"}, {"split": "test"}, mean, std)


def _known(
    name: str, train: dict[str, Any], test: dict[str, Any], mean: Sequence[float], std: Sequence[float]
) -> Known:
    r, g, b = mean if len(mean) == 3 else (mean[0],) * 3
    s, t, u = std if len(std) == 3 else (std[0],) * 3
    return Known(getattr(datasets, name), train, test, (r, g, b), (s, t, u))


KNOWN = {
    "CIFAR10": _train_flag("CIFAR10", (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)),
    "CIFAR100": _train_flag("CIFAR100", (0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762)),
    "SVHN": _split_name("SVHN", (0.4377, 0.4438, 0.4728), (0.1980, 0.2010, 0.1970)),
    "STL10": _split_name("STL10", (0.4467, 0.4398, 0.4066), (0.2603, 0.2566, 0.2713)),
    "MNIST": _train_flag("MNIST", (0.1307,), (0.3081,)),
    "FashionMNIST": _train_flag("FashionMNIST", (0.2860,), (0.3530,)),
    "KMNIST": _train_flag("KMNIST", (0.1918,), (0.3483,)),
}


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
    """Open `torchvision:NAME`; its own test split is kept, and validation is cut from train."""
    name = spec.removeprefix("torchvision:")
    if name not in KNOWN:
        by_lower = {key.lower(): key for key in KNOWN}
        near = did_you_mean(name.lower(), by_lower)
        for lower, key in by_lower.items():
            near = near.replace(f"'{lower}'", f"'torchvision:{key}'")
        raise UserError(f"There is no data set '{spec}'; known are {', '.join(KNOWN)}.{near}")
    known = KNOWN[name]
    pixels, labels, parts, given = [], [], [], []
    classes: Sequence[str] | None = None
    for split, arguments in (("train", known.train), ("test", known.test)):
        opened = _open(name, known, arguments)
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
        root=str(cache_folder()),
        normalization=(known.mean, known.std),
    )


def _open(name: str, known: Known, arguments: dict[str, Any]) -> Any:
    root = cache_folder()
    try:
        return known.open(root, download=False, **arguments)
    except RuntimeError:
        pass  # Not there, or not whole: torchvision tells both by this error.
    try:
        root.mkdir(parents=True, exist_ok=True)
        return known.open(root, download=True, **arguments)
    except (OSError, RuntimeError) as problem:
        reason = str(problem).strip().split("\n")[0][:200]
        raise UserError(
            f"{name} is not in '{root}' and could not be downloaded ({reason}); connect to the network, or put its "
            "files there (another folder: set ABN_DATA)."
        ) from problem


def _as_rgb(data: np.ndarray) -> np.ndarray:
    """Return pictures (N, H, W), (N, 3, H, W) or (N, H, W, 3) as (N, H, W, 3)."""
    if data.ndim == 3:
        return np.repeat(data[..., None], 3, axis=3)
    return np.ascontiguousarray(data.transpose(0, 2, 3, 1)) if data.shape[1] == 3 else data
