"""The images that are compared: which of the data, drawn how, and whose class is meant."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from attention_branch.data.dataset import ImageSet, Sample
from attention_branch.errors import UserError
from attention_branch.evaluation.classes import match_classes, rename_targets
from attention_branch.evaluation.run import (
    choose_split,
    open_evaluation_data,
    recorded_data,
    trust_notes,
)
from attention_branch.explanations.targets import head_class_names, known_head


@dataclass(frozen=True)
class Batch:
    """Some images of the subset: normalised (n, 3, H, W) on the model's device, and the objects' masks or None."""

    start: int
    images: Tensor
    regions: list[Tensor | None]
    samples: list[Sample]

    def __len__(self) -> int:
        return len(self.samples)


@dataclass(frozen=True, eq=False)
class Subset:
    """N images of a data set with their labels (N,) as the model's classes, -1 where missing, of one head."""

    images: ImageSet
    labels: np.ndarray
    index: np.ndarray
    head: str | None
    class_names: list[str]
    preprocessing: Any
    notes: list[str] = field(default_factory=list)
    record: dict[str, Any] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.images)

    def batch(self, rows: range | np.ndarray, device: torch.device) -> Batch:
        """Load some images, by their places in the subset."""
        samples = [self.images[int(row)] for row in rows]
        tensors = [self.preprocessing.tensor(sample.image) for sample in samples]
        masks = [sample.region(self.preprocessing, self.head) for sample in samples]
        regions = [None if mask is None else torch.from_numpy(np.ascontiguousarray(mask)) for mask in masks]
        return Batch(int(rows[0]), torch.stack(tensors).to(device), regions, samples)

    def target(self, classes: Tensor | None) -> Any:
        """Return classes (n,) as `explain` and the metrics take them; None is the prediction."""
        return classes if self.head is None else {self.head: classes}

    @property
    def has_regions(self) -> bool:
        """Whether the place of an object is known in any of the images."""
        source = self.images.source
        places = (source.mask, source.box, source.head_masks)
        return any(place(int(row)) is not None for row in self.images.rows for place in places)


def open_subset(
    run: str | Path,
    data_spec: str | None,
    model: Any,
    *,
    limit: int | None,
    seed: int,
    head: str | None = None,
    labelled: bool = False,
    progress: bool = False,
) -> Subset:
    """Open the data as `abn evaluate` does and draw `limit` images (None: all) at random from `seed`, in random order.

    They are the images that `abn evaluate --limit` draws. The order is random because a map that one image lends to
    another would come from the same class where data is sorted by class. `labelled` leaves out images without a label.
    Raises `UserError` for data that cannot be opened, classes the model does not know, an unknown head, and where no
    image is left.
    """
    trained_on = recorded_data(run)
    spec = data_spec or trained_on.get("spec")
    if not spec:
        raise UserError(f"'{run}' records no data it was trained on; name the data to compare on.")
    data, own = open_evaluation_data(spec, trained_on, progress=progress)
    used, images, notes = choose_split(data, "test")
    if own:
        notes += trust_notes(data, used, trained_on)
    elif trained_on:
        notes.append(f"Other data than the model was trained on ('{trained_on.get('spec')}').")
    matched = match_classes(model, images.tasks, images.multitask)
    head = _head(model, head, notes)
    labels = np.full(len(images), -1)
    names = head_class_names(model, head)
    for task, (places, own_names) in matched.items():
        if head is None or task == head:
            targets = images.targets[task] if isinstance(images.targets, dict) else images.targets
            labels, names = rename_targets(targets, places), own_names
    index = np.arange(len(images))
    if labelled:
        index = index[labels >= 0]
        if not len(index):
            raise UserError(f"No image of '{spec}' has a label to follow; use --target prediction.")
        if len(index) < len(images):
            notes.append(f"{len(images) - len(index)} images without a label are left out.")
    whole, usable = len(images), len(index)
    index = np.random.default_rng(seed).permutation(index)[: limit or None]
    kept = images.subset(index)
    return Subset(
        images=kept,
        labels=labels[index],
        index=index,
        head=head,
        class_names=names or [str(number) for number in range(_classes(model, head))],
        preprocessing=model.preprocessing,
        notes=notes,
        record={
            "data": spec,
            "split": used,
            "split_images": whole,
            "images": len(kept),
            **({"labelled_images": usable} if labelled else {}),
            "subset": f"random, seed {seed}" if len(kept) < usable else "all with a label" if labelled else "all",
            "subset_fingerprint": kept.fingerprint(),
            "left_out_unreadable": len(data.left_out),
            "head": head,
            "seed": seed,
        },
    )


def _classes(model: Any, head: str | None) -> int:
    return max(2, model.heads[head]) if head is not None else int(model.num_classes)


def _head(model: Any, head: str | None, notes: list[str]) -> str | None:
    heads = list(model.heads or ())
    if head is not None:
        return known_head(heads, head)
    if len(heads) > 1:
        notes.append(f"The maps and answers are those of the head '{heads[0]}'; choose another with --head.")
    return heads[0] if heads else None
