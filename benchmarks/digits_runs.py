"""What the benchmarks on the digits share: one training of a small network, and the loop over arms and seeds."""

import argparse
import datetime
import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from attention_branch.data import ImageSet, open_data
from attention_branch.data.digits import CLASS_NAMES
from attention_branch.data.resident import ResidentImages
from attention_branch.files import atomic_path, write_json
from attention_branch.hardware import processor
from attention_branch.models.cost import cost
from attention_branch.training import recipe
from attention_branch.training.building import make_model
from attention_branch.training.fast import FastTrainer
from attention_branch.versions import versions
from digit_windows import DATA, windows


def trained(
    options: argparse.Namespace, arm: str, seed: int, side: int, **settings: Any
) -> tuple[Any, ImageSet, dict[str, Any]]:
    """Train one network on windows, enlarged to `side`; return it after the last epoch, the test windows, its record.

    AdamW with the rate of `benchmarks/filters.py`. Normalised as the digits are.
    """
    config = recipe(
        "default", data=DATA, image_size=side, optimizer="adamw", epochs=options.epochs, batch_size=options.batch,
        lr=options.lr, weight_decay=0.05, precision=options.precision, augment="none", seed=seed, **settings,
    )  # fmt: skip
    torch.manual_seed(seed)
    model = make_model(config, open_data("digits", seed=0))
    images, test = windows("train", options.train), windows("test", options.held)
    pixels = np.stack([np.asarray(model.preprocessing.image(images.image(row))) for row in range(len(images))])
    trainer = FastTrainer(config, model, ResidentImages(pixels, images.targets))
    began, worked, losses = time.perf_counter(), time.process_time(), []
    while not trainer.finished:
        trainer.advance()
        losses.append(trainer.read_figures(trainer.epoch_figures())["train_loss"])
    seconds = {"seconds": time.perf_counter() - began, "processor_seconds": time.process_time() - worked}
    model.eval()
    if options.keep:
        model.save_pretrained(Path(options.keep) / f"{arm}-{seed}")
    found = cost(model, (side, side))
    return model, test, {
        "arm": arm,
        "seed": seed,
        "parameters": found.parameters,
        "multiply_adds": found.multiply_adds,
        "test_images": len(test),
        "train_losses": losses,
        **{name: round(value, 1) for name, value in seconds.items()},
    }  # fmt: skip


def first_of_classes() -> tuple[list[Image.Image], list[str]]:
    """Return the first test window of each class, and the classes' names."""
    test = windows("test", len(CLASS_NAMES))
    return [test.image(row) for row in range(len(test))], list(CLASS_NAMES)


def save_picture(picture: Image.Image, path: str) -> None:
    """Write a picture as a small PNG, whole or not at all."""
    with atomic_path(path) as temporary:
        picture.convert("RGB").quantize(128).save(temporary, format="PNG", optimize=True)


def options_for(description: str | None, arms: list[str]) -> argparse.ArgumentParser:
    """Return a parser of the options that these benchmarks share."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--arms", nargs="+", default=arms, choices=arms)
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--train", type=int, default=12800, help="training windows")
    parser.add_argument("--held", type=int, default=1000, help="test windows")
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--lr", type=float, default=0.004)
    parser.add_argument("--precision", default="32")
    parser.add_argument("--keep", default=None, help="folder to save the networks in")
    parser.add_argument("--picture", default=None, help="draw what the networks in --keep, seed 0, see; train nothing")
    parser.add_argument("--out", default=None)
    return parser


def run_all(
    options: argparse.Namespace,
    run: Callable[[str, int, argparse.Namespace], dict[str, Any]],
    name: str,
    about: dict[str, Any],
) -> None:
    """Call `run` for every arm and seed that the record of benchmarks/records/DATE-NAME does not hold yet."""
    folder = Path(__file__).parent / "records" / f"{datetime.date.today():%Y-%m-%d}-{name}"
    path = Path(options.out) if options.out else folder / "digits.json"
    asked = {
        key: value for key, value in vars(options).items() if key not in ("arms", "seeds", "keep", "picture", "out")
    }
    record = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else about | {"options": asked, "runs": []}
    if record["options"] != asked:
        raise SystemExit(f"{path} holds runs of other options ({record['options']}); choose another --out.")
    torch.set_num_threads(1)
    for seed in options.seeds:
        for arm in options.arms:
            if any((one["arm"], one["seed"]) == (arm, seed) for one in record["runs"]):
                continue
            found = run(arm, seed, options)
            hardware = {"processor": processor(), "threads": torch.get_num_threads(), "cores": os.cpu_count()}
            record["runs"].append(found | {"hardware": hardware, "versions": versions()})
            write_json(path, record)
            shown = {key: value for key, value in found.items() if isinstance(value, str | int | float)}
            print(json.dumps(shown), flush=True)
