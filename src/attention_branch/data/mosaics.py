"""Constructed data of several labels whose places are known: 2x2 mosaics of the pictures of single-task data.

This is a construction and no real data set: objects meet that never do, and each fills its quarter. It is for one
question, which real attributes leave open: does the map of a head lie on what the head is asked about? Every head is
one of the chosen classes, present or absent, and its place are the quarters that show it. A mosaic's four pictures
come from the split it belongs to, so that no picture is in two splits. Every mosaic is a pure function of
(seed, split, index) and of the pictures it is made of.

With `target=one` the question is another: one quarter shows a class that is to be told, the other three show pictures
of classes that are never asked for. They are distractors, and their place is known too.
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from PIL import Image

from attention_branch.data.dataset import SPLITS, DataSet, ImageSet, Source
from attention_branch.data.derived import find_class, read_spec
from attention_branch.data.splits import cut
from attention_branch.errors import UserError, did_you_mean
from attention_branch.models.preprocessing import Preprocessing

SIZES = {"train": 20000, "validation": 2000, "test": 2000}
STATES = ("absent", "present")
"""The two classes of every head."""

GREY = 128
"""The colour of quarters without a distractor."""

_OPTIONS = ("classes", *SIZES, "side", "crowd", "target", "distractors", "test-distractors")
_CLASSES, _SIDE, _CELLS = 16, 64, 4
_ANSWERS = ("yes", "no")
# Mosaics that take more than this are put together when they are asked for.
_MOST_BYTES = 1 << 30


class MosaicSource(Source):
    """The mosaics of one split: `pictures` are what they are made of, `plan` (N, 4) says which picture fills a quarter.

    `classes` (N, 4) is the head each quarter shows, as its number among `heads`, or -1. Quarters count by rows.
    """

    decoded = True

    def __init__(
        self, pictures: ImageSet, plan: np.ndarray, classes: np.ndarray, heads: Sequence[str], split: str, side: int
    ) -> None:
        self.pictures, self.plan, self.classes = pictures, plan, classes
        self.heads, self.split, self.side = tuple(heads), split, side
        self._cell = Preprocessing(size=(side // 2, side // 2), crop_pct=1.0)
        self._pixels: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.plan)

    def image(self, row: int) -> Image.Image:
        """Return one mosaic, from memory if the set was put together."""
        if self._pixels is not None:
            return Image.fromarray(self._pixels[row])
        quarters = np.stack([self._quarter(int(place)) for place in self.plan[row]])[None]
        return Image.fromarray(_together(self._shown(quarters, self.classes[[row]]))[0])

    def id(self, row: int) -> str:
        """Return the mosaic's name, which holds those of its four pictures."""
        made_of = "+".join(self.pictures.id(int(place)) for place in self.plan[row])
        return f"mosaics-{self.side}/{self.split}/{row}/{made_of}"

    def head_masks(self, row: int) -> dict[str, np.ndarray]:
        """Return the quarters of each head that the mosaic shows, uint8 (side, side)."""
        half = self.side // 2
        masks: dict[str, np.ndarray] = {}
        for quarter, number in enumerate(self.classes[row]):
            if number >= 0:
                mask = masks.setdefault(self.heads[number], np.zeros((self.side, self.side), dtype=np.uint8))
                top, left = half * (quarter // 2), half * (quarter % 2)
                mask[top : top + half, left : left + half] = 1
        return masks

    def pixels(self) -> np.ndarray | None:
        """Return all mosaics, uint8 (N, side, side, 3); None where they would take more than a GiB."""
        if self._pixels is None and len(self) * self.side**2 * 3 <= _MOST_BYTES:
            used, places = np.unique(self.plan, return_inverse=True)
            quarters = np.stack([self._quarter(int(place)) for place in used])
            self._pixels = _together(self._shown(quarters[places.reshape(self.plan.shape)], self.classes))
        return self._pixels

    def _shown(self, quarters: np.ndarray, classes: np.ndarray) -> np.ndarray:
        """Return what is seen of quarters (N, 4, h, h, 3) that show the heads `classes` (N, 4)."""
        return quarters

    def _quarter(self, place: int) -> np.ndarray:
        """Return a picture's middle square at the size of a quarter, uint8 (side / 2, side / 2, 3)."""
        return np.asarray(self._cell.image(self.pictures.image(place)))


class TargetSource(MosaicSource):
    """Mosaics of which one quarter is to be told: `mask` is its place, `distractor` that of the others.

    Without `distractors` the others are grey, and there is no place of any; the quarter that counts stays the same.
    """

    def __init__(self, *mosaic: Any, distractors: bool = True) -> None:
        super().__init__(*mosaic)
        self.distractors = distractors

    def id(self, row: int) -> str:
        """Return the mosaic's name, which holds those of its pictures, also of those that are not shown."""
        kind = "target" if self.distractors else "target-alone"
        return super().id(row).replace("mosaics-", f"mosaics-{kind}-", 1)

    def head_masks(self, row: int) -> None:  # type: ignore[override]
        """Return None: there is one question, and `mask` is its place."""
        return None

    def mask(self, row: int) -> np.ndarray:
        """Return the place of the quarter that counts, uint8 (side, side)."""
        (mask,) = super().head_masks(row).values()
        return mask

    def distractor(self, row: int) -> np.ndarray | None:
        """Return the place of the other quarters, uint8 (side, side); None where they are grey."""
        return 1 - self.mask(row) if self.distractors else None

    def _shown(self, quarters: np.ndarray, classes: np.ndarray) -> np.ndarray:
        if self.distractors:
            return quarters
        return np.where((classes < 0)[..., None, None, None], np.uint8(GREY), quarters)


def _together(quarters: np.ndarray) -> np.ndarray:
    """Return mosaics (N, 2h, 2h, 3) of quarters (N, 4, h, h, 3)."""
    count, _, half = quarters.shape[:3]
    grid = quarters.reshape(count, 2, 2, half, half, 3).transpose(0, 1, 3, 2, 4, 5)
    return np.ascontiguousarray(grid.reshape(count, 2 * half, 2 * half, 3))


def draw(seed: int, split: str, index: int, members: Sequence[np.ndarray], heads: int, crowd: int) -> np.ndarray:
    """Return the class of each quarter and the number of its picture, int64 (2, 4).

    `members` are the numbers of each class's pictures, the classes with a head first. `crowd` quarters show one of the
    `heads` classes, each drawn evenly and on its own, so that a class may come twice; the others show one without.
    """
    random = np.random.default_rng([seed, SPLITS.index(split), index])
    shown = random.integers(heads, size=crowd)
    others = random.integers(heads, len(members), size=_CELLS - crowd) if crowd < _CELLS else shown[:0]
    classes = random.permutation(np.concatenate([shown, others]))
    pictures = [members[number][random.integers(len(members[number]))] for number in classes]
    return np.stack([classes, np.array(pictures)])


def open_mosaics(spec: str, *, seed: int, validation: float, opened: Callable[[str], DataSet]) -> DataSet:
    """Open `mosaics:DATA[,classes=16,train=20000,validation=2000,test=2000,side=64,crowd=4]`, or with `target=one`.

    DATA is single-task data as `open_data` takes it, read by `opened`. `classes` is how many of its classes get a head,
    drawn from the seed, or their names with `|` between them; `side` the mosaic's in pixels; `crowd` how many of the
    four quarters show a class with a head. `target=one` asks for the class of one quarter, and the others show classes
    that are never asked for; `distractors=no` leaves them grey, `test-distractors=no` in test alone. Where DATA has no
    test split, its validation split makes the test mosaics, and the share `validation` of its training pictures those
    for validation. Raises `UserError` for a bad option, data of several tasks, unknown classes, and a class of which a
    split has no picture.
    """
    inner, options = read_spec(spec, _OPTIONS)
    sizes = {name: _whole(name, options, default, spec, 10, 1_000_000) for name, default in SIZES.items()}
    side = _whole("side", options, _SIDE, spec, 16, 2048)
    one = _one_target(options, spec)
    crowd = 1 if one else _whole("crowd", options, _CELLS, spec, 1, _CELLS)
    if side % 2:
        raise UserError(f"The side {side} in '{spec}' does not divide into two equal quarters; use an even number.")
    if seed < 0:
        raise UserError(f"The seed {seed} is negative; use a whole number from 0 upwards.")
    data = opened(inner)
    if data.multitask:
        raise UserError(f"'{inner}' has several tasks, and a mosaic needs pictures of one class each; give other data.")
    names = next(iter(data.tasks.values()))
    chosen = _chosen(options.get("classes"), names, seed, spec)
    others = [number for number in range(len(names)) if number not in chosen]
    if crowd < _CELLS and not others:
        raise UserError(
            f"All classes of '{inner}' have a head in '{spec}', so nothing is left for the {_CELLS - crowd} other "
            f"quarters; choose fewer classes{'' if one else ', or crowd=4'}."
        )
    order = [*chosen, *others] if crowd < _CELLS else chosen
    heads = tuple(names[number] for number in chosen)
    pictures, moved = _splits(data, validation)
    splits = {}
    for split, images in pictures.items():
        members = _members(images, order, names, split, spec)
        drawn = np.stack([draw(seed, split, i, members, len(chosen), crowd) for i in range(sizes[split])])
        classes = np.where(drawn[:, 0] < len(chosen), drawn[:, 0], -1)
        parts = (images, drawn[:, 1], classes, heads, split, side)
        if one:
            answer = options.get("distractors", "yes")
            answer = options.get("test-distractors", answer) if split == "test" else answer
            # One quarter has a class, the others have -1.
            labels = {"label": classes.max(1)}
            splits[split] = ImageSet(TargetSource(*parts, distractors=answer == "yes"), labels, {"label": heads})
            continue
        source = MosaicSource(*parts)
        present = {head: (classes == number).any(1).astype(np.int64) for number, head in enumerate(heads)}
        splits[split] = ImageSet(source, present, dict.fromkeys(heads, STATES), multitask=True)
    share = 1 - (1 - 1 / len(chosen)) ** crowd
    made = f"constructed: mosaics of four pictures of one split each; a class is in {100 * share:.1f} % of them"
    if one:
        made = "constructed: mosaics of four pictures of one split each, of which one counts"
        alone = [split for split in splits if not splits[split].source.distractors]  # type: ignore[attr-defined]
        made += f"; the others are grey in {', '.join(alone)}" if alone else ""
    return DataSet(
        spec=spec,
        seed=seed,
        tasks={"label": heads} if one else dict.fromkeys(heads, STATES),
        multitask=not one,
        split_made=f"{made}; the pictures' splits: {data.split_made}{moved}",
        root=data.root,
        normalization=data.normalization,
        left_out=data.left_out,
        ignored=data.ignored,
        train=splits.get("train"),
        validation=splits.get("validation"),
        test=splits.get("test"),
    )


def _one_target(options: dict[str, str], spec: str) -> bool:
    """Return whether one quarter alone is asked for; `UserError` for options that do not fit together."""
    if options.get("target", "one") != "one":
        raise UserError(
            f"'target' is '{options['target']}' in '{spec}'; it can be one: the class of one quarter is asked for."
        )
    one = "target" in options
    for name in ("distractors", "test-distractors"):
        if name in options and not one:
            raise UserError(f"'{name}' in '{spec}' has a meaning only with target=one; add it, or leave '{name}' out.")
        if options.get(name, "yes") not in _ANSWERS:
            raise UserError(f"'{name}' is '{options[name]}' in '{spec}'; it can be yes or no.")
    if one and "crowd" in options:
        raise UserError(f"'{spec}' has crowd and target=one, with which one quarter has a class; leave crowd out.")
    return one


def _whole(name: str, options: dict[str, str], default: int, spec: str, least: int, most: int) -> int:
    text = options.get(name, str(default))
    if not text.isascii() or not text.isdigit() or not least <= int(text) <= most:
        raise UserError(f"'{name}' is '{text}' in '{spec}'; it must be a whole number from {least} to {most}.")
    return int(text)


def _chosen(wanted: str | None, names: Sequence[str], seed: int, spec: str) -> list[int]:
    """Return the numbers of the classes that get a head, in the data's order."""
    count = min(_CLASSES, len(names)) if wanted is None else int(wanted) if wanted.isascii() and wanted.isdigit() else 0
    if count:
        if not 2 <= count <= len(names):
            raise UserError(
                f"'classes' is {count} in '{spec}', whose data has {len(names)}; use a number from 2 to {len(names)}."
            )
        return sorted(np.random.default_rng(seed).permutation(len(names))[:count].tolist())
    listed = [name for name in (wanted or "").split("|") if name]
    numbers = []
    for name in listed:
        number = find_class(name, names)
        if number is None:
            raise UserError(f"'{name}' in '{spec}' is not the name of one class.{did_you_mean(name, names)}")
        numbers.append(number)
    if len(set(numbers)) < max(2, len(listed)):
        raise UserError(
            f"'classes' is '{wanted}' in '{spec}'; give how many, or two or more different names with | between them."
        )
    return sorted(numbers)


def _splits(data: DataSet, validation: float) -> tuple[dict[str, ImageSet], str]:
    """Return the pictures of each split, and what was done to the data's own splits."""
    if data.test is not None or data.train is None or data.validation is None:
        return data.splits, ""
    said = "; for want of a test split its validation split makes the test mosaics"
    if not validation:
        return {"train": data.train, "test": data.validation}, said
    train = data.train
    (head, names), source = next(iter(data.tasks.items())), train.source
    labels = np.full(len(source), -1)
    labels[train.rows] = train.targets
    rows = cut(source, train.rows, labels, names, {"validation": validation}, data.seed)
    parts = {name: ImageSet(source, {head: labels}, data.tasks, rows=rows[name]) for name in ("train", "validation")}
    said += f", and {validation:g} of its training pictures, stratified by class, those for validation"
    return {**parts, "test": data.validation}, said


def _members(images: ImageSet, order: Sequence[int], names: Sequence[str], split: str, spec: str) -> list[np.ndarray]:
    """Return the numbers of each class's pictures in a split."""
    members = [np.flatnonzero(images.targets == number) for number in order]
    for number, found in zip(order, members, strict=True):
        if not len(found):
            raise UserError(
                f"The {split} split of the data in '{spec}' has no picture of the class '{names[number]}'; choose "
                "other classes."
            )
    return members
