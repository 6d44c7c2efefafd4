"""Which data stands behind a role of the tables: the official set, or a stand-in that is always named as what it is."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from attention_branch.data import DataSet, ImageSet, open_data
from attention_branch.data.cache import cache_folder
from attention_branch.data.splits import cut
from attention_branch.errors import UserError, did_you_mean


@dataclass(frozen=True)
class Kind:
    """A data set that `--data NAME=PATH` can name."""

    name: str
    role: str
    title: str
    get: str
    """What to get, from where."""
    spec: str
    """How `open_data` is told; {path} is filled in."""
    folders: tuple[str, ...] = ()
    """What the official copy holds, any of them; without it the data is 'as given'."""
    stands_for: str | None = None
    image_size: int | None = None
    classes: int | None = None
    heads: tuple[str, ...] = ()
    """Names of the labels of each picture."""
    attributes: int | None = None
    """Number of yes/no labels of each picture."""
    options: dict[str, Any] = field(default_factory=dict, hash=False)
    """Options of the backbone that these pictures need."""
    others: tuple[tuple[str, str], ...] = ()
    """Further test sets of which the error is recorded: their names, and how `open_data` is told."""


_TORCHVISION = "torchvision:{name}:{{path}}"

KINDS = {
    kind.name: kind
    for kind in (
        Kind("cifar10", "cifar10", "CIFAR-10", "'CIFAR-10 python version' from Krizhevsky's CIFAR page, unpacked to "
             "cifar-10-batches-py", _TORCHVISION.format(name="CIFAR10"), ("cifar-10-batches-py",), image_size=32,
             classes=10),
        Kind("cifar100", "cifar100", "CIFAR-100", "'CIFAR-100 python version' from Krizhevsky's CIFAR page, unpacked "
             "to cifar-100-python", _TORCHVISION.format(name="CIFAR100"), ("cifar-100-python",), image_size=32,
             classes=100),
        Kind("svhn", "svhn", "SVHN", "train_32x32.mat and test_32x32.mat from the Street View House Numbers page",
             _TORCHVISION.format(name="SVHN"), ("train_32x32.mat",), image_size=32, classes=10),
        Kind("imagenet", "imagenet", "ImageNet", "ILSVRC2012 from image-net.org: the archives of train, val and the "
             "development kit of tasks 1 and 2, or the folders train and val",
             _TORCHVISION.format(name="ImageNet"), ("train", "ILSVRC2012_img_train.tar"),
             classes=1000),
        Kind("compcars", "compcars", "Comp-Cars", "the web-nature part of CUHK's Comp-Cars, unpacked to data/",
             "compcars:{path}", ("data", "image"), heads=("model", "maker")),
        Kind("celeba", "celeba", "CelebA", "CUHK's CelebA: img_align_celeba, list_attr_celeba.txt, "
             "list_eval_partition.txt, and for the faces' points list_landmarks_align_celeba.txt", "celeba:{path}",
             ("img_align_celeba", "Img"), attributes=40),
        Kind("cifar10-jpeg", "cifar10", "CIFAR-10 (JPEG)", "CIFAR-10 with every picture stored as JPEG, as parquet "
             "files or class folders", "{path}", stands_for="CIFAR-10", image_size=32, classes=10),
        Kind("tiny-imagenet-100", "cifar100", "Tiny-ImageNet-100 at 32 px", "the first 100 classes of Tiny-ImageNet, "
             "as parquet files or class folders", "{path}", stands_for="CIFAR-100", image_size=32, classes=100),
        # 64-pixel pictures for 32-pixel networks: a stride in the stem, at the same cost.
        Kind("tiny-imagenet-100-64", "tiny", "Tiny-ImageNet-100", "the first 100 classes of Tiny-ImageNet, as parquet "
             "files or class folders", "{path}", stands_for="ImageNet", image_size=64, classes=100,
             options={"stem_stride": 2}),
        Kind("two-level", "two-level", "Tiny-ImageNet-100 in two levels (constructed)", "the first 100 classes of "
             "Tiny-ImageNet, as parquet files or class folders", "grouped:{path},groups=tiny-imagenet-100",
             stands_for="Comp-Cars", image_size=64, options={"stem_stride": 2}),
        Kind("mosaics", "mosaics", "2x2 mosaics, 16 labels (constructed)", "single-task pictures such as "
             "Tiny-ImageNet, as parquet files or class folders", "mosaics:{path},classes=16", stands_for="CelebA",
             image_size=64, options={"stem_stride": 2}),
        Kind("mosaics-target", "mosaics-target", "2x2 mosaics, one quarter counts (constructed)", "single-task "
             "pictures such as Tiny-ImageNet, as parquet files or class folders",
             "mosaics:{path},classes=16,target=one", image_size=64, options={"stem_stride": 2}, others=(
                 ("without", "mosaics:{path},classes=16,target=one,test-distractors=no,train=10,validation=10"),
             )),
        # A quarter of the pixels and of the cost, and half the classes: what a machine without a GPU learns in an hour.
        Kind("mosaics-target-32", "mosaics-target", "2x2 mosaics at 32 px, one quarter counts (constructed)",
             "single-task pictures such as Tiny-ImageNet, as parquet files or class folders",
             "mosaics:{path},classes=8,side=32,target=one", image_size=32, options={"stem_stride": 2}, others=(
                 ("without", "mosaics:{path},classes=8,side=32,target=one,test-distractors=no,train=10,validation=10"),
             )),
    )
}  # fmt: skip

DIGITS = Kind("digits", "digits", "digits (embedded)", "nothing", "{path}", image_size=64)

_BESIDE = "digits:train=10,validation=10,distractor={}"
DISTRACTED = Kind(
    "digits-distracted", "digits-distracted", "digits beside a letter", "nothing", "{path}", image_size=64,
    others=(("without", _BESIDE.format("none")), ("shapes", _BESIDE.format("shape"))),
)  # fmt: skip
"""Digits with a distractor in training and test; tested without one too, and with shapes that were never trained on."""

ALONE = Kind(
    "digits-alone", "digits-alone", "digits alone, letters in test only", "nothing", "{path}", image_size=64,
    others=(("without", _BESIDE.format("none")), ("shapes", _BESIDE.format("shape"))),
)  # fmt: skip
"""The same digits without a distractor in training."""

EMBEDDED = {
    "digits": (DIGITS, "digits:train=28000"),
    "digits-distracted": (DISTRACTED, "digits:train=28000,distractor=letter"),
    "digits-alone": (ALONE, "digits:train=28000,distractor=none,test-distractor=letter"),
}
"""Data that needs no files, and how `open_data` is told."""


@dataclass(frozen=True)
class Origin:
    """A data set at hand: its kind, what `open_data` takes, and its title."""

    kind: Kind
    spec: str
    title: str
    others: tuple[tuple[str, str], ...] = ()
    """Further test sets: their names, and what `open_data` takes."""

    @property
    def name(self) -> str:
        """The kind's name."""
        return self.kind.name


def parse_data(arguments: Sequence[str]) -> list[Origin]:
    """Read `NAME=PATH` pairs, and add the official sets that lie in the cache folder; `UserError` for unknown names."""
    found = {name: Origin(kind, spec, kind.title, kind.others) for name, (kind, spec) in EMBEDDED.items()}
    for argument in arguments:
        name, equals, path = argument.partition("=")
        if not equals or not path:
            raise UserError(f"'{argument}' names no data; write NAME=PATH, such as cifar10={cache_folder()}.")
        if name not in KINDS:
            raise UserError(
                f"'{name}' in '{argument}' is no data set of the tables; there are {', '.join(KINDS)}."
                + did_you_mean(name, KINDS)
            )
        found[name] = _origin(KINDS[name], path)
    for name, kind in KINDS.items():
        if name not in found and any((cache_folder() / folder).exists() for folder in _cached(kind)):
            found[name] = _origin(kind, str(cache_folder()))
    return list(found.values())


def _cached(kind: Kind) -> tuple[str, ...]:
    # Names such as 'train' or 'data' are no sign of a set in a folder that holds several.
    return kind.folders if kind.spec.startswith("torchvision") and kind.name != "imagenet" else ()


def _origin(kind: Kind, path: str) -> Origin:
    folder = Path(path).expanduser()
    if ":" not in path and not folder.exists():
        raise UserError(f"'{path}' of '{kind.name}' does not exist; get {kind.get}, and name its folder.")
    official = any((folder / name).exists() for name in kind.folders)
    if not kind.folders:
        others = tuple((name, spec.format(path=path)) for name, spec in kind.others)
        return Origin(kind, kind.spec.format(path=path), kind.title, others)
    if official:
        return Origin(kind, kind.spec.format(path=folder), kind.title)
    # Any form is taken, but only the official files, which are checked, bear the set's name alone.
    return Origin(kind, path, f"{kind.title} as given ({folder.name or path})")


def missing(role: str) -> str:
    """Say what to get for a role's data, in a sentence."""
    kinds = [kind for kind in KINDS.values() if kind.role == role]
    first = next((kind for kind in kinds if kind.stands_for is None), kinds[0])
    text = f"{first.title} is not here: get {first.get}, and add --data {first.name}=PATH"
    if first.spec.startswith("torchvision"):
        text += " (or set ABN_DATA)"
    for other in kinds:
        if other is not first:
            text += f"; in its place, and named so: --data {other.name}=PATH ({other.get})"
    return text + "."


def _check_labels(origin: Origin, data: DataSet) -> None:
    """Refuse data whose labels are not those of the set it is given for."""
    kind = origin.kind
    found, heads = f"{data.num_classes} classes", data.heads or {}
    if data.multitask:
        found = f"the heads {', '.join(heads)}" if len(heads) <= 4 else f"{len(heads)} heads"
        more = [head for head, classes in heads.items() if classes != 2]
        if kind.attributes == len(heads) and more:
            found += f", of which '{more[0]}' has {heads[more[0]]} classes"
    if kind.classes is not None and data.num_classes != kind.classes:
        wanted = f"{kind.classes} classes"
    elif kind.heads and set(heads) != set(kind.heads):
        wanted = f"the heads {' and '.join(kind.heads)}"
    elif kind.attributes is not None and list(heads.values()) != [2] * kind.attributes:
        wanted = f"{kind.attributes} heads of two classes"
    else:
        return
    raise UserError(
        f"'{origin.spec}' has {found}, and {kind.stands_for or kind.title} has {wanted}; name other data for "
        f"'{origin.name}'."
    )


def open_others(origin: Origin) -> dict[str, ImageSet]:
    """Open the further test sets of some data, by name."""
    found = {}
    for name, spec in origin.others:
        images = open_data(spec, seed=0, progress=False).test
        assert images is not None
        found[name] = images
    return found


def open_origin(origin: Origin) -> DataSet:
    """Open the data with the splits of the paper's protocol: train, validation cut from train, and the official test.

    A set that has validation but no test, as Tiny-ImageNet, gives its validation as test.
    """
    data = open_data(origin.spec, seed=0)
    _check_labels(origin, data)
    if data.train is None or (data.test is None and data.validation is None):
        raise UserError(f"'{origin.spec}' has no train and test split; {origin.title} needs both.")
    if data.test is None:
        data.test, data.validation = data.validation, None
        data.split_made += "; its validation split is the test split"
    if data.validation is None:
        rows = data.train.rows
        labels = np.zeros(len(data.train.source), dtype=np.int64)
        names, how = ["all"], "at random"
        targets = data.train.targets
        if isinstance(data.class_names, list) and isinstance(targets, np.ndarray):
            names, how = data.class_names, "stratified by class"
            labels[rows] = targets
        parts = cut(data.train.source, rows, labels, names, {"validation": 0.1}, 0)
        place = {int(row): number for number, row in enumerate(rows)}
        data.validation = data.train.subset([place[int(row)] for row in parts["validation"]])
        data.train = data.train.subset([place[int(row)] for row in parts["train"]])
        data.split_made += f"; validation (0.1) cut from train, {how}"
    return data
