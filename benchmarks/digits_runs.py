"""What the benchmarks on the digits share: one training of a small network, and the loop over arms and seeds."""

import argparse
import dataclasses
import datetime
import json
import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from PIL import Image

import attention_branch as ab
from attention_branch.data import ImageSet, open_data
from attention_branch.evaluation.run import versions
from attention_branch.files import atomic_path, write_json
from attention_branch.hardware import processor
from attention_branch.models.cost import cost
from attention_branch.training import TrainConfig, train


def trained(config: TrainConfig, arm: str, keep: str | None) -> tuple[Any, ImageSet, dict[str, Any]]:
    """Train one network; return it as it is after the last epoch, the test images, and what its record begins with."""
    began = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        model = ab.load_model(train(dataclasses.replace(config, out=f"{folder}/run")) / "last")
    seconds = time.perf_counter() - began
    test = open_data(config.data, seed=config.seed).test
    assert test is not None
    found = cost(model, model.preprocessing.size)
    if keep:
        model.save_pretrained(Path(keep) / f"{arm}-{config.seed}")
    return model, test, {
        "arm": arm,
        "seed": config.seed,
        "parameters": found.parameters,
        "multiply_adds": found.multiply_adds,
        "test_images": len(test),
        "training_seconds": round(seconds, 1),
        "load_average": round(os.getloadavg()[0], 1),
    }  # fmt: skip


def first_of_classes(data: str) -> tuple[list[Image.Image], list[str]]:
    """Return the first test picture of each class, and the classes' names."""
    test = open_data(data).test
    assert test is not None
    rows = [int((test.targets == number).argmax()) for number in range(len(test.class_names))]
    return [test[row].image for row in rows], list(test.class_names)


def save_picture(picture: Image.Image, path: str) -> None:
    """Write a picture as a small PNG, whole or not at all."""
    with atomic_path(path) as temporary:
        picture.convert("RGB").quantize(128).save(temporary, format="PNG", optimize=True)


def options_for(description: str | None, arms: list[str]) -> argparse.ArgumentParser:
    """Return a parser of the options that these benchmarks share."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--arms", nargs="+", default=arms, choices=arms)
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--pictures", type=int, default=6000, help="training pictures")
    parser.add_argument("--epochs", type=int, default=4)
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
        key: value
        for key, value in vars(options).items()
        if key not in ("arms", "seeds", "keep", "picture", "out", "data")
    }
    record = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else about | {"options": asked, "runs": []}
    if record["options"] != asked:
        raise SystemExit(f"{path} holds runs of other options ({record['options']}); choose another --out.")
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
