"""`abn evaluate RUN DATA`: load, evaluate on the right split, say which one it was, write it down."""

import json
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from attention_branch.data import open_data
from attention_branch.data.dataset import SPLITS, DataSet, ImageSet
from attention_branch.errors import UserError
from attention_branch.evaluation.evaluate import evaluate
from attention_branch.evaluation.evaluation import Evaluation
from attention_branch.files import require_folder, sha256, write_json
from attention_branch.metrics.pointing import TOLERANCE
from attention_branch.models.saving import WEIGHTS, load_model, model_folder
from attention_branch.versions import versions


def evaluate_run(
    run: str | Path,
    data_spec: str | None = None,
    split: str = "test",
    *,
    output: str | Path | None = None,
    batch_size: int = 64,
    workers: int = 0,
    limit: int | None = None,
    device: str = "cpu",
    tolerance: float = TOLERANCE,
    seed: int = 0,
    progress: bool = True,
    report: Callable[..., Any] | None = None,
) -> Evaluation:
    """Evaluate a run, a saved network or a hub name on a data set, and write evaluation-<split>.json into the run.

    Without `data_spec` the run's own data is opened; its recorded seed makes the same split again. Other data that has
    no splits of its own is evaluated whole. Without a test split
    the validation split is used, and the first note says so. `limit` takes that many images at random, from `seed`.
    `report(path, model, images, evaluation)` writes a page of it, report.html in the same folder.
    Raises `UserError` for an unknown split, data without the split, and classes the model does not know.
    """
    if split not in SPLITS:
        raise UserError(f"Unknown split '{split}'; choose one of {', '.join(SPLITS)}.")
    if limit is not None and limit < 1:
        raise UserError(f"limit is {limit}; give the number of images to evaluate, 1 or more.")
    home = output_folder(run, output)
    folder = model_folder(run)
    model = load_model(folder, device=device)
    trained_on = recorded_data(run)
    spec = data_spec or trained_on.get("spec")
    if not spec:
        raise UserError(f"'{run}' records no data it was trained on; name the data to evaluate on.")
    data, own = open_evaluation_data(spec, trained_on, progress=progress)
    used, images, notes = choose_split(data, split)
    if own:
        notes += trust_notes(data, used, trained_on)
    elif trained_on:
        notes.append(f"Other data than the model was trained on ('{trained_on.get('spec')}').")
    if limit is not None and limit < len(images):
        notes.append(f"{limit} of the {len(images)} images, drawn at random with seed {seed}.")
        images = random_subset(images, limit, seed)
    record = {
        "model": str(run),
        "model_sha256": sha256(folder / WEIGHTS),
        "data": spec,
        "split": used,
        "images": len(images),
        "images_fingerprint": images.fingerprint(),
        "left_out": len(data.left_out),
        "preprocessing": model.preprocessing.to_dict(),
        "versions": versions(),
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    evaluation = evaluate(
        model,
        images,
        batch_size=batch_size,
        workers=workers,
        tolerance=tolerance,
        seed=seed,
        notes=notes,
        record=record,
        progress=progress,
    )
    write_json(home / f"evaluation-{used}.json", evaluation.to_dict())
    if report is not None:
        report(home / "report.html", model, images, evaluation)
    return evaluation


def output_folder(run: str | Path, output: str | Path | None, own: str = "") -> Path:
    """Return the folder to write into: the one that was named, else the folder `own` of the run, or of this place.

    Raises `UserError` where no folder can stand.
    """
    if output is not None:
        return require_folder(output)
    return require_folder((Path(run) if Path(run).is_dir() else Path()) / own)


def open_evaluation_data(spec: str, trained_on: dict[str, Any], *, progress: bool = False) -> tuple[DataSet, bool]:
    """Open data as the training did if it is the training's own, with the same split; other data as one test set.

    Returns the data and whether it is the training's own: by its name, or by the same pictures under another name.
    """
    data = open_data(spec, seed=trained_on.get("seed", 0), progress=progress)
    recorded = trained_on.get("splits", {}).get("train", {}).get("fingerprint")
    same_pictures = recorded is not None and data.train is not None and data.train.fingerprint() == recorded
    if not trained_on or trained_on.get("spec") == spec or same_pictures:
        return data, bool(trained_on)
    return open_data(spec, seed=0, validation=0, test=1, progress=progress), False


def choose_split(data: DataSet, split: str) -> tuple[str, ImageSet, list[str]]:
    """Return the split to use, its images and what a reader must know about the choice."""
    images = data.splits.get(split)
    if images is not None and len(images):
        return split, images, []
    if split == "test" and data.validation is not None and len(data.validation):
        note = f"'{data.spec}' has no test split, so these figures are of its validation split, which chose the model."
        return "validation", data.validation, [note]
    there = [name for name, images in data.splits.items() if len(images)]
    raise UserError(f"'{data.spec}' has no {split} split; it has {', '.join(there) or 'no images'}.")


def random_subset(images: ImageSet, count: int, seed: int) -> ImageSet:
    """Return `count` images drawn without replacement from a seed, in the data's order."""
    chosen = np.random.default_rng(seed).permutation(len(images))[:count]
    return images.subset(np.sort(chosen))


def recorded_data(run: str | Path) -> dict[str, Any]:
    """Return what a run's config.json records about its data; empty where there is none."""
    # The folder of the weights itself, RUN/model or RUN/last, belongs to the run above it.
    for path in (Path(run) / "config.json", Path(run).resolve().parent / "config.json"):
        if not path.is_file():
            continue
        try:
            values = json.loads(path.read_text(encoding="utf-8"))
        except ValueError as problem:
            raise UserError(f"'{path}' is damaged ({problem}); the run cannot be traced to its data.") from problem
        record = values.get("data") if isinstance(values, dict) else None
        if isinstance(record, dict):
            return record
    return {}


def trust_notes(data: DataSet, used: str, trained_on: dict[str, Any]) -> list[str]:
    """Say where the images may have been trained on: the run's own data whose split is not the recorded one."""
    if used == "train":
        return ["These are the images the model was trained on; the figures say nothing about new ones."]
    recorded = trained_on.get("splits", {}).get(used, {}).get("fingerprint")
    if recorded and recorded != data.splits[used].fingerprint():
        return [
            f"The {used} split differs from the one recorded when the model was trained: images were added, removed or "
            "renamed since, so some may have been trained on."
        ]
    return []
