"""The pictures of a data set's split, or of the data that a run was trained on; needs torch, as reading data does."""

from pathlib import Path
from typing import Any

from attention_branch.data.dataset import SPLITS
from attention_branch.errors import UserError
from attention_branch.evaluation.run import choose_split, open_evaluation_data, random_subset, recorded_data
from attention_branch.serve.uploads import png_bytes


class SplitPictures:
    """The pictures of a data set's split, with their labels."""

    def __init__(self, images: Any, title: str) -> None:
        self.images, self.title = images, title
        self.names = list(images.ids)

    def labels(self, index: int) -> dict[str, str] | None:
        """Return the true class by head; heads without a label are left out."""
        found = {
            head: self.images.tasks[head][number]
            for head, number in self.images.targets_of(index).items()
            if number >= 0
        }
        return found or None

    def content(self, index: int) -> bytes:
        """Return the stored bytes, or a PNG of a picture that is stored decoded."""
        stored = self.images.source.encoded(int(self.images.rows[index]))
        return stored if stored is not None else png_bytes(self.images.image(index))


def run_pictures(run: str | Path, data: str | None, split: str, limit: int) -> SplitPictures | None:
    """Return `limit` pictures of a split, drawn at random from seed 0; None, said, where a run's own cannot be opened.

    Without `data` it is the data that the run was trained on. Raises `UserError` for data that was named and cannot be
    opened, and for an unknown split.
    """
    if split not in SPLITS:
        raise UserError(f"Unknown split '{split}'; choose one of {', '.join(SPLITS)}.")
    if limit < 1:
        raise UserError(f"limit is {limit}; give the number of pictures to go through, 1 or more.")
    trained_on = recorded_data(run)
    spec = data or trained_on.get("spec")
    if not spec:
        return None
    try:
        opened, _ = open_evaluation_data(spec, trained_on)
        used, images, _ = choose_split(opened, split)
    except UserError as problem:
        if data is not None:
            raise
        print(f"No queue of pictures: {problem} --images and --data name others.")
        return None
    if len(images) > limit:
        images = random_subset(images, limit, 0)
    return SplitPictures(images, f"{spec}, {used}")
