"""The images on which a file is compared with its network: the run's own where they can be opened."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from attention_branch.data.dataset import ImageSet
from attention_branch.errors import UserError
from attention_branch.evaluation.run import open_evaluation_data, random_subset, recorded_data
from attention_branch.models.preprocessing import Preprocessing

SEED = 0


@dataclass(frozen=True)
class Pictures:
    """Normalised images to compare on (N, 3, H, W) float32, others to calibrate on, and what both are in words."""

    compare: np.ndarray
    calibrate: np.ndarray | None
    what: str
    real: bool
    calibrated_on: str = ""


def random_images(preprocessing: Preprocessing, count: int) -> Pictures:
    """Return noise in the place of images, normalised."""
    images = np.random.default_rng(SEED).standard_normal((count, 3, *preprocessing.size), dtype=np.float32)
    return Pictures(images, None, f"{count} random images (Gaussian noise, seed {SEED})", False)


def open_pictures(run: str | Path | None, data: str | None, preprocessing: Preprocessing, count: int) -> Pictures:
    """Return `count` images of the data named, else of the run's own, drawn from a seed.

    Compared is on the test or validation split, calibrated on the training or validation split, so that no image is
    used for both; data without splits is divided. Raises `UserError` where there are no such images.
    """
    recorded = recorded_data(run) if run is not None else {}
    spec = data or recorded.get("spec")
    if not spec:
        raise UserError("No data is named, and the network does not say what it was trained on; name it with --data.")
    opened, _ = open_evaluation_data(spec, recorded)
    splits = {name: images for name, images in opened.splits.items() if images is not None and len(images)}
    other = next((splits[name] for name in ("test", "validation", "train") if name in splits), None)
    if other is None:
        raise UserError(f"'{spec}' holds no images; name other data with --data.")
    name = next(key for key, images in splits.items() if images is other)
    own, of = next(((splits[key], key) for key in ("train", "validation") if key in splits and key != name), (None, ""))
    if own is None and len(other) >= 2:
        half = len(other) // 2
        own, other, of = other.subset(range(half)), other.subset(range(half, len(other))), name
    compare = _arrays(random_subset(other, count, SEED), preprocessing)
    calibrate = None if own is None else _arrays(random_subset(own, count, SEED), preprocessing)
    what = f"{len(compare)} images of {spec} ({name}, drawn with seed {SEED})"
    others = "" if calibrate is None else f"{len(calibrate)} other images of {spec} ({of}, drawn with seed {SEED})"
    return Pictures(compare, calibrate, what, True, others)


def _arrays(images: ImageSet, preprocessing: Preprocessing) -> np.ndarray:
    return np.stack([preprocessing.array(images.image(index)) for index in range(len(images))])
