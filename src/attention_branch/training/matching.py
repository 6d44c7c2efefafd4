"""Which pictures of a data set the annotated ones are: a training picture gets its map, a test picture is refused."""

import hashlib
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from attention_branch.annotations import Annotation
from attention_branch.data.dataset import DataSet, ImageSet
from attention_branch.data.images import open_image
from attention_branch.data.joined import with_files
from attention_branch.errors import UserError, did_you_mean


def match_annotations(annotations: Sequence[Annotation], data: DataSet) -> tuple[ImageSet, dict[int, dict[int, Path]]]:
    """Return the training pictures, with those annotated ones behind them that are not among them, and the maps.

    The maps' files come by index and by number of the head. Raises `UserError` for an annotated picture of validation
    or test (figures measured by it would be worth nothing), labels and heads that the data does not know, and a label
    that contradicts the data's.
    """
    assert data.train is not None
    places = find_pictures(annotations, data)
    heads = list(data.tasks)
    files: dict[int, dict[int, Path]] = {}
    added: dict[str, int] = {}
    new: list[Annotation] = []
    labels: dict[str, list[int]] = {head: [] for head in heads}
    for one in annotations:
        key = one.record["image_sha256"]
        split, index = places.get(key, ("", -1))
        if split not in ("", "train"):
            raise UserError(
                f"The annotation '{one.name}' is of '{data.splits[split].id(index)}', a {split} picture of "
                f"'{data.spec}': what is trained on it can no longer be measured by it. Remove the annotation, and "
                "annotate training pictures or new ones."
            )
        given = _class_numbers(one, data)
        if split == "train":
            _check_label(one, given, data, index)
        elif key in added:
            index = added[key]
            for head, number in given.items():
                kept = labels[head][index - len(data.train)]
                if number >= 0 and kept >= 0 and number != kept:
                    raise UserError(f"'{one.name}' and another annotation give its picture two labels; mend one.")
                labels[head][index - len(data.train)] = max(number, kept)
        else:
            index = added[key] = len(data.train) + len(new)
            new.append(one)
            for head in heads:
                labels[head].append(given[head])
        mine = files.setdefault(index, {})
        for task in _tasks(one, data):
            # A map for one head comes before one for all of them.
            if one.head is not None or task not in mine:
                mine[task] = one.map
    return with_files(data.train, [one.image for one in new], labels), files


def find_pictures(annotations: Sequence[Annotation], data: DataSet) -> dict[str, tuple[str, int]]:
    """Return (split, index) of the annotated pictures that are in a data set, by the SHA-256 of their bytes.

    A picture is the same if its bytes are; or its decoded pixels, where the data stores pictures decoded or the
    annotation's "source" is the picture's name. Test and validation come before training: a picture that is in two
    splits is a leak.
    """
    bytes_of = {one.record["image_sha256"]: one.image for one in annotations}
    sizes = {path.stat().st_size for path in bytes_of.values()}
    named = {str(one.record.get("source")): one.record["image_sha256"] for one in annotations}
    pixels: dict[str, str] = {}
    found: dict[str, tuple[str, int]] = {}
    for split in sorted(data.splits):  # test, train, validation
        for index, key in _matches(data.splits[split], bytes_of, sizes, named, pixels):
            if found.get(key, ("train", 0))[0] == "train":
                found[key] = (split, index)
    return found


def _matches(
    images: ImageSet, bytes_of: dict[str, Path], sizes: set[int], named: dict[str, str], pixels: dict[str, str]
) -> Iterator[tuple[int, str]]:
    source = images.source
    stored: np.ndarray | None = None
    looked = False
    for index, row in enumerate(images.rows.tolist()):
        stamp = source.stamp(row)
        candidate = named.get(source.id(row))
        content = source.encoded(row) if stamp is None or stamp[1] in sizes else None
        if content is not None and len(content) in sizes:
            digest = hashlib.sha256(content).hexdigest()
            if digest in bytes_of:
                yield index, digest
                continue
        if (stamp is not None or content is not None) and candidate is None:
            continue
        if not pixels:
            pixels.update({_pixels(np.asarray(open_image(path))): key for key, path in bytes_of.items()})
        if not looked:
            stored, looked = source.pixels(), True
        key = pixels.get(_pixels(np.asarray(source.image(row)) if stored is None else stored[row]))
        if key is not None:
            yield index, key


def _pixels(picture: np.ndarray) -> str:
    return hashlib.sha256(repr(picture.shape).encode() + np.ascontiguousarray(picture).tobytes()).hexdigest()


def _tasks(one: Annotation, data: DataSet) -> list[int]:
    """Return the numbers of the heads that a map is for."""
    heads = list(data.tasks)
    if one.head is None:
        return list(range(len(heads)))
    if one.head not in heads:
        raise UserError(
            f"The annotation '{one.name}' is for the head '{one.head}', but '{data.spec}' has {', '.join(heads)}; mend "
            f"or remove it.{did_you_mean(one.head, heads)}"
        )
    return [heads.index(one.head)]


def _class_numbers(one: Annotation, data: DataSet) -> dict[str, int]:
    """Return the class number that an annotation names for each head, -1 where it names none."""
    heads = list(data.tasks)
    named = one.label
    if isinstance(named, str):
        if len(heads) > 1:
            raise UserError(
                f"The annotation '{one.name}' has the label '{named}', but '{data.spec}' has the heads "
                f"{', '.join(heads)}; write a label for each of them."
            )
        named = {heads[0]: named}
    numbers = dict.fromkeys(heads, -1)
    for head, label in (named or {}).items():
        if head not in heads or label not in data.tasks[head]:
            known = heads if head not in heads else data.tasks[head]
            wrong = head if head not in heads else label
            raise UserError(
                f"The annotation '{one.name}' has the label '{label}' for '{head}', which '{data.spec}' does not know; "
                f"mend it.{did_you_mean(wrong, known)}"
            )
        numbers[head] = data.tasks[head].index(label)
    return numbers


def _check_label(one: Annotation, given: dict[str, int], data: DataSet, index: int) -> None:
    assert data.train is not None
    for head, own in data.train.targets_of(index).items():
        if given[head] >= 0 and own >= 0 and given[head] != own:
            names = data.tasks[head]
            raise UserError(
                f"The annotation '{one.name}' calls '{data.train.id(index)}' {names[given[head]]}, the data calls it "
                f"{names[own]}; mend the label in one of them."
            )
