"""What each published number was measured on: rows of the tables as networks, columns as data, and the cells to run."""

import fnmatch
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from attention_branch.errors import UserError, did_you_mean
from attention_branch.models.registry import stands_alone
from attention_branch.reproduce.arms import ARMS, Arm
from attention_branch.reproduce.published import ODDS, PUBLISHED, Published
from attention_branch.reproduce.sources import KINDS

# Table 1's rows as networks: first what the authors' code builds under that name, then the true depth.
DEPTHS = {
    "ResNet20": ("resnet20",),
    "ResNet32": ("resnet32",),
    "ResNet44": ("resnet65b", "resnet44"),
    "ResNet56": ("resnet83b", "resnet56"),
    "ResNet110": ("resnet164b", "resnet110"),
}
_MECHANISM = {"g(x)": "plain", "g(x)*M(x)": "product", "g(x)*(1+M(x))": "residual"}

# Table 2's rows as networks, for 32-pixel data and for ImageNet. Depths on ImageNet: those whose published error is the
# row's (ResNet-152, SE-ResNet-152, WRN-50-2); DenseNet-161 and ResNeXt-50 (32x4d) are our reading.
_FAMILIES = {
    "VGGNet": (None, "vgg16"),
    "VGGNet+BN": (None, "vgg16_bn"),
    "VGGNet+CAM": (None, "vgg16_cam"),
    "VGGNet+BN+CAM": (None, "vgg16_bn_cam"),
    "ResNet": ("resnet164b", "resnet152"),
    # ResNet ends in global average pooling: as it is, it is its own CAM network.
    "ResNet+CAM": (None, "resnet152"),
    "WideResNet": ("wrn_28_10", "wide_resnet50_2"),
    "DenseNet": ("densenet_bc_100_12", "densenet161"),
    "ResNeXt": ("resnext29_8x64d", "resnext50_32x4d"),
    "SENet": (None, "seresnet152"),
}
_QUOTED = ("ResNet", "CIFAR10")
"""The number of Table 2 that is not the authors' own run of a ResNet: He et al., arXiv 1512.03385, table 6."""

_TABLE3 = {"VGG16": "vgg16", "ResNet101": "resnet101"}
_TABLE4 = {"ResNet101": "resnet101", "ABN": "resnet101", "FaceTracer": "facetracer", "MOON": "moon"}
_TABLE4 |= {"PANDA-1": "panda", "LNet+ANet": "lnets-anet"}
NOT_BUILT = frozenset({"Attention", "AttentionNeXt"})
"""Rows of other systems than ABN and its backbones that are not part of the package."""

ROLES = {
    "CIFAR10": "cifar10",
    "CIFAR100": "cifar100",
    "SVHN": "svhn",
    "ImageNet": "imagenet",
    "model": "compcars",
    "maker": "compcars",
    "average accuracy": "celeba",
    "odds": "celeba",
}
"""The data a column was measured on."""


@dataclass(frozen=True)
class Cell:
    """One network on one data set's role in one arm; several seeds of it are runs."""

    network: str
    role: str
    arm: str

    @property
    def name(self) -> str:
        """Return `network/role/arm`, as `--cells` takes it."""
        return f"{self.network}/{self.role}/{self.arm}"


def networks_of(number: Published) -> tuple[str, ...]:
    """Return the backbones of a published number, the authors' own first; none for systems that are not built."""
    if number.table == "table1":
        return DEPTHS[number.row]
    row = number.row.removesuffix("+ABN")
    if number.table == "table2":
        small, large = _FAMILIES.get(row, (None, None))
        chosen = large if number.column == "ImageNet" else small
        if (number.row, number.column) == _QUOTED:
            return ("resnet164b", "resnet110")
        return (chosen,) if chosen else ()
    if number.table == "table3":
        return (_TABLE3[row],)
    return (_TABLE4[row],) if row in _TABLE4 else ()


def cells_of(number: Published) -> tuple[Cell, ...]:
    """Return the cells that measure a published number, the authors' own network first."""
    if number.table == "table1":
        role, arm = "cifar100", _MECHANISM[number.column]
    else:
        role, arm = ROLES[number.column], "residual" if number.row.endswith("ABN") else "plain"
    return tuple(Cell(network, role, arm) for network in networks_of(number))


def note_on(number: Published) -> str | None:
    """Return what a reader must know to compare a published number with ours, a sentence; None where there is nothing.

    Source: the authors' ABN_CelebA_Chainer (M * g, no sigmoid before it); He et al., table 6 (6.43 % at 110 layers).
    """
    if number.table == "table2" and (number.row, number.column) == _QUOTED:
        return (
            "Quoted from He et al., whose ResNet-110 has basic blocks; the network of the row ResNet+ABN has 164 "
            "layers of bottlenecks. Both are run."
        )
    # The odds of another network count the attributes on which ABN is better, which we count for those we run.
    counted = number.column == ODDS and number.row not in NOT_BUILT
    if number.table != "table4" or not (number.row == "ABN" or counted):
        return _SYSTEMS.get(number.row)
    return (
        "The authors' CelebA code multiplies by the map alone, g(x)*M(x), and its maps are raw, without a sigmoid; our "
        "ABN is the arm residual, g(x)*(1+M(x)) with a sigmoid."
    )


_SYSTEMS = {
    "FaceTracer": "The published average is of a rebuilt system on CelebA (Liu et al., ICCV 2015: HOG and colour "
    "histograms of regions at the true landmarks, SVMs); ours has the features of the paper of 2008 and linear SVMs.",
    "PANDA-1": "The published average is of PANDA rebuilt on CelebA's aligned faces, with parts at the true landmarks "
    "of test faces too (Liu et al., ICCV 2015, PANDA-l); ours finds the points in each picture by a small network.",
    "LNet+ANet": "Published: both LNets pretrained on ImageNet, ANet on face identities, all trained on CelebA's "
    "pictures in the wild; ours has no identities, and looks at the aligned pictures that this data set has.",
    "MOON": "The published average is that of the network whose loss is not moved to another distribution "
    "(target='source'), as is ours here; the balanced network answers worse on a test split as unbalanced as CelebA's.",
}
"""Notes on other systems' averages. Their odds have the note on ABN, which is what is counted there."""

CONSTRUCTED = {"table3": ("resnet20", "two-level"), "table4": ("resnet20", "mosaics")}
"""Networks and data of our own construction for tables whose data is not at hand."""

CONSTRUCTED_SYSTEMS = {"table4": ("facetracer", "panda", "lnets-anet", "moon:resnet20")}
"""Systems of their own that are run on that data too; MOON there on the others' backbone."""

CONSTRUCTED_OPTIONS: dict[str, dict[str, Any]] = {
    "panda": {"part": 32, "channels": 32, "whole": "resnet20", "whole_options": {"stem_stride": 2}},
    "lnets-anet": {"lnet": "resnet20", "lnet_options": {"stem_stride": 2}},
}
"""Their options there: networks for small pictures, like the others' backbone."""

BESIDE = {"table1": "cifar10"}
"""Data that a table's networks are run on too, without a published number: a second look at the same question."""

SEVERAL_HEADS = ("compcars", "celeba", "two-level", "mosaics")
"""Roles whose pictures have several labels."""

FIGURES = {
    "figure4": (("resnet152", "imagenet", ("plain", "residual")), ("resnet20", "tiny", ("plain", "residual"))),
    "figure7": (("resnet101", "celeba", ("residual",)), ("resnet20", "mosaics", ("residual",))),
}
"""Networks, data and arms that a figure shows: the paper's first, then a stand-in's."""


def cells_for(what: str) -> list[Cell]:
    """Return all cells of a table, figure or of `digits`, every arm of every network; of other systems `plain`."""
    if what in FIGURES:
        return [Cell(network, role, arm) for network, role, arms in FIGURES[what] for arm in arms]
    if what == "digits":
        pairs = {("resnet14", "digits"): None}
    else:
        numbers = [number for number in PUBLISHED if number.table == what]
        pairs = dict.fromkeys((cell.network, cell.role) for number in numbers for cell in cells_of(number))
        if what in BESIDE:
            pairs |= {(network, BESIDE[what]): None for network, _ in pairs}
        if what in CONSTRUCTED:
            pairs[CONSTRUCTED[what]] = None
            pairs |= {(name, CONSTRUCTED[what][1]): None for name in CONSTRUCTED_SYSTEMS.get(what, ())}
    return [
        Cell(network, role, arm.name)
        for network, role in pairs
        for arm in ARMS.values()
        if (role in SEVERAL_HEADS or not arm.several_heads) and (arm.name == "plain" or not stands_alone(network))
    ]


_ROLE_OF = {kind.name: kind.role for kind in KINDS.values()}
"""A stand-in's cells are those of what it stands for."""


def choose(cells: Sequence[Cell], patterns: Sequence[str]) -> list[Cell]:
    """Return the cells that any pattern names: `resnet20/cifar100/residual`, `resnet20`, `*/cifar100/*`.

    Raises `UserError` for a pattern that names none.
    """
    chosen: dict[Cell, None] = {}
    for pattern in patterns:
        parts = pattern.strip("/").split("/")
        parts[1:2] = [_ROLE_OF.get(part, part) for part in parts[1:2]]
        whole = "/".join([*parts, *"**"[len(parts) - 1 :]])
        found = [cell for cell in cells if fnmatch.fnmatchcase(cell.name, whole)] if pattern and len(parts) < 4 else []
        if not found:
            raise UserError(_no_cell(cells, pattern))
        chosen.update(dict.fromkeys(found))
    return [cell for cell in cells if cell in chosen]


def _no_cell(cells: Sequence[Cell], pattern: str) -> str:
    parts = pattern.strip("/").split("/")
    known = [{cell.network for cell in cells}, {cell.role for cell in cells}, {cell.arm for cell in cells}]
    for part, names, what in zip(parts, known, ("network", "data set", "arm"), strict=False):
        if not any(fnmatch.fnmatchcase(name, part) for name in names):
            listed = ", ".join(sorted(names))
            near = did_you_mean(part, names)
            return f"No cell matches '{pattern}': '{part}' is no {what} here; there are {listed}.{near}"
    return f"No cell matches '{pattern}'; a cell is NETWORK/DATA/ARM, such as '{cells[0].name}'."


def arm_of(cell: Cell) -> Arm:
    """Return the arm of a cell."""
    return ARMS[cell.arm]
