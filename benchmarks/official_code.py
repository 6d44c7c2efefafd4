"""The ABN authors' own networks, built from a checkout of their code (none of it is in this repository).

git clone https://github.com/machine-perception-robotics-group/attention_branch_network
"""

import hashlib
import importlib
import re
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType

from torch import nn

SOURCE = "https://github.com/machine-perception-robotics-group/attention_branch_network"
NETWORKS = (
    "resnet20", "resnet32", "resnet65b", "resnet83b", "resnet164b", "wrn_28_10", "densenet_bc_100_12",
    "resnext29_8x64d", "resnet18", "resnet34", "resnet50", "resnet101", "resnet152",
)  # fmt: skip
IMAGENET = ("resnet18", "resnet34", "resnet50", "resnet101", "resnet152")


def official_network(directory: str | Path, name: str, num_classes: int) -> nn.Module:
    """Return the authors' network with random weights, in training mode; `name` is the network's name here.

    Its forward pass returns (attention logits, logits, map), for ImageNet (attention logits, logits, [map, g, g']),
    and takes images of `image_size(name)` only. Raises `ValueError` for a name that their code does not build, and
    `FileNotFoundError` for a directory without their code.
    """
    if name not in NETWORKS:
        raise ValueError(f"The authors' code does not build '{name}'; it builds {', '.join(NETWORKS)}.")
    family = "imagenet" if name in IMAGENET else "cifar"
    if not (Path(directory) / "models" / family / "resnet.py").is_file():
        raise FileNotFoundError(f"'{directory}' holds no models/{family}/resnet.py; give a checkout of {SOURCE}.")
    with _foreign_models(Path(directory), family) as models:
        if family == "imagenet":
            return getattr(models, name)(num_classes=num_classes)
        if name == "wrn_28_10":
            return models.wrn(num_classes=num_classes, depth=28, widen_factor=10, dropRate=0.3)
        if name == "densenet_bc_100_12":
            return models.densenet(num_classes=num_classes, depth=100, growthRate=12, compressionRate=2)
        if name == "resnext29_8x64d":
            return models.resnext(num_classes=num_classes, depth=29, cardinality=8, widen_factor=4)
        depth = int(re.sub(r"\D", "", name))
        # For a depth of 6n+2 from 44 on, their code takes n bottlenecks a stage, which makes 9n+2 layers.
        return models.resnet(num_classes=num_classes, depth=(depth - 2) // 9 * 6 + 2 if name.endswith("b") else depth)


def image_size(name: str) -> int:
    """Return the only image side in pixels that the authors' network takes: its poolings have a fixed size."""
    return 224 if name in IMAGENET else 32


def source_digest(directory: str | Path) -> str:
    """Return the SHA-256 over the files of the authors' models, by which a record names the code it was made with."""
    digest = hashlib.sha256()
    root = Path(directory) / "models"
    for path in sorted(root.rglob("*.py"), key=lambda path: path.relative_to(root).as_posix()):
        digest.update(path.relative_to(root).as_posix().encode() + b"\0" + path.read_bytes() + b"\0")
    return digest.hexdigest()


@contextmanager
def _foreign_models(directory: Path, family: str) -> Iterator[ModuleType]:
    """Import the checkout's `models.cifar` or `models.imagenet`, leaving this process and the checkout as they were."""

    def theirs() -> list[str]:
        return [name for name in sys.modules if name.partition(".")[0] in ("models", "utils")]

    hidden = {name: sys.modules.pop(name) for name in theirs()}
    writes, sys.dont_write_bytecode = sys.dont_write_bytecode, True
    sys.path.insert(0, str(directory.resolve()))
    importlib.invalidate_caches()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # they initialise by functions that PyTorch renamed
            yield importlib.import_module(f"models.{family}")
    finally:
        sys.path.remove(str(directory.resolve()))
        sys.dont_write_bytecode = writes
        for name in theirs():
            del sys.modules[name]
        sys.modules.update(hidden)
