"""Do an interpretable CNN's filters keep to one place, and what does it cost in accuracy?

    python benchmarks/filters.py                                          # fifteen runs of 800 steps
    python benchmarks/filters.py --arms mask paper=0.3 paper=1 paper=3 --seeds 0 --split validation --out scan.json
    python benchmarks/filters.py --picture docs/pictures/interpretable-filters.png --keep runs/

The data are the embedded digits, each cut out of its photo as a window of 32x32 at a random place around it, so that a
small network learns them in minutes. The arms are one network, ResNet-14 of half the width with one more 3x3
convolution: `ordinary` (no mask, no loss), `mask` (masked around each map's peak, no loss) and VARIANT=WEIGHT (masked,
with the filter loss of that variant and weight). After training, the maps of the added convolution's filters, as they
are masked, are measured on `--split`: location instability and part interpretability, of all filters and of the quarter
that is most active, and beside them those of a control with the same values at random places. A digit's parts are its
box and the box's upper and lower half. The weights of the default arms are those with the lowest location instability
on the validation split (seed 0, scan.json) among the weights with which the network is within two points as accurate
there as with the mask alone. The record goes to benchmarks/records/DATE-interpretable-cnn/digits.json and grows run by
run; runs that it holds are not done again.
"""

import argparse
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

import attention_branch as ab
from attention_branch.data import ImageSet, open_data
from attention_branch.data.resident import ResidentImages
from attention_branch.explanations.filters import filter_maps
from attention_branch.metrics.statistics import MetricResult
from attention_branch.report import filter_figure
from attention_branch.training import recipe
from attention_branch.training.building import make_model
from attention_branch.training.fast import FastTrainer
from digit_windows import DATA, SIDE, windows
from digits_runs import run_all, save_picture

ARMS = ("ordinary", "mask", "paper=1", "exact=0.1", "released=30")
TITLES = {"ordinary": "ordinary network", "mask": "mask alone"}
FIXED: dict[str, dict[str, Any]] = {
    "ordinary": {"filter_weight": 0.0, "mask": False},
    "mask": {"filter_weight": 0.0},
}


def parts(images: ImageSet) -> np.ndarray:
    """Return boxes (N, 3, 4) of the parts: the digit, its upper and its lower half."""
    found = np.empty((len(images), 3, 4))
    for row in range(len(images)):
        mask = images.source.mask(row)
        (y0, y1), (x0, x1) = (
            (inked[0], inked[-1] + 1) for inked in (np.flatnonzero(mask.any(axis)) for axis in (1, 0))
        )
        middle = (y0 + y1) / 2
        found[row] = [[x0, y0, x1, y1], [x0, y0, x1, middle], [x0, middle, x1, y1]]
    return found


def build(options: argparse.Namespace, arm: str, seed: int) -> tuple[Any, Any]:
    """Return the settings of one run and its network."""
    variant, _, weight = arm.partition("=")
    chosen = FIXED.get(arm) or {"variant": variant, "filter_weight": float(weight)}
    config = recipe(
        "digits",
        model="interpretable:resnet14",
        model_options=("width=0.5", *(f"{name}={value!r}" for name, value in chosen.items())),
        image_size=SIDE,
        optimizer="adamw",
        epochs=options.epochs,
        batch_size=options.batch,
        lr=options.lr,
        weight_decay=0.05,
        seed=seed,
    )
    torch.manual_seed(seed)
    return config, make_model(config, open_data("digits", seed=0))


def figures(result: MetricResult, active: Tensor) -> dict[str, Any]:
    """Return a result of all filters, and its mean over those that are most active."""
    values = result.values[active]
    known = values[~values.isnan()]
    return {
        "mean": result.mean if result.n else None,
        "interval": result.interval,
        "filters": result.n,
        **result.counts,
        "most_active": float(known.mean()) if len(known) else None,
    }


def measured(maps: Tensor, boxes: Tensor, labels: Tensor) -> dict[str, Any]:
    """Return both measures of the filters' maps (N, C, h, w), the first in the images of each filter's class."""
    steady = ab.metrics.location_instability(maps, ab.metrics.part_centres(boxes), (SIDE, SIDE), labels=labels)
    masks = ab.metrics.box_masks(boxes.flatten(0, 1), SIDE, SIDE).unflatten(0, tuple(boxes.shape[:2]))
    on_part = ab.metrics.part_interpretability(maps, masks)
    active = steady.details["peaks"].argsort(descending=True)[: maps.shape[1] // 4]
    return {
        "location_instability": figures(steady, active),
        "part_interpretability": figures(on_part, active),
        "classes_with_filters": len(steady.details["classes"].unique()),
        "protocols": [steady.protocol, on_part.protocol],
    }


def random_places(maps: Tensor, seed: int) -> Tensor:
    """Return maps whose positions are shuffled, each in another way: the control without any place."""
    generator = torch.Generator().manual_seed(seed)
    order = torch.rand(maps.flatten(2).shape, generator=generator).argsort(2)
    return maps.flatten(2).gather(2, order).view(maps.shape)


def run(arm: str, seed: int, options: argparse.Namespace) -> dict[str, Any]:
    """Train one network and measure it."""
    began = time.process_time()
    config, model = build(options, arm, seed)
    train = windows("train", options.train)
    trainer = FastTrainer(config, model, ResidentImages(train.source.pixels(), train.targets))
    history = []
    while not trainer.finished:
        trainer.advance()
        history.append(trainer.read_figures(trainer.epoch_figures()))
    held = windows(options.split, options.held)
    pictures, labels = held.source.pixels(), held.targets
    error = trainer.evaluate(ResidentImages(pictures, labels)).error()
    model.eval()
    images = model.preprocessing.normalize(torch.from_numpy(pictures).permute(0, 3, 1, 2))
    maps = filter_maps(model, images, batch_size=250)
    where, classes = torch.from_numpy(parts(held)), torch.from_numpy(labels)
    if options.keep:
        model.save_pretrained(Path(options.keep) / f"{arm.replace('=', '-')}-seed{seed}")
    return {
        "arm": arm,
        "seed": seed,
        "accuracy": 1 - error,
        **measured(maps, where, classes),
        "random_places": measured(random_places(maps, seed), where, classes),
        "training": history,
        "processor_seconds": time.process_time() - began,
    }


def draw_filters(options: argparse.Namespace) -> None:
    """Draw the most active filters of two trained networks, side by side."""
    pictures = windows(options.split, options.held).source.pixels()
    shown = []
    for arm in (options.arms[0], options.arms[-1]):
        model = ab.load_model(Path(options.keep) / f"{arm.replace('=', '-')}-seed0")
        images = model.preprocessing.normalize(torch.from_numpy(pictures).permute(0, 3, 1, 2))
        shown.append(filter_figure(model, images, rows=6, columns=6, title=TITLES.get(arm, f"mask and loss: {arm}")))
    sheet = Image.new("RGB", (sum(picture.width for picture in shown), shown[0].height), "white")
    for number, picture in enumerate(shown):
        sheet.paste(picture, (sum(other.width for other in shown[:number]), 0))
    save_picture(sheet, options.picture)


def main() -> None:
    """Run every arm and seed that the record does not hold yet, or draw what is kept."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--train", type=int, default=12800, help="training images")
    parser.add_argument("--held", type=int, default=1000, help="images to measure on")
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--lr", type=float, default=0.004)
    parser.add_argument("--arms", nargs="+", default=ARMS)
    parser.add_argument("--seeds", type=int, nargs="+", default=(0, 1, 2))
    parser.add_argument("--split", default="test", choices=("validation", "test"))
    parser.add_argument("--keep", default=None, help="folder of the trained networks")
    parser.add_argument("--picture", default=None, help="draw the first and the last of --arms, seed 0, from --keep")
    parser.add_argument("--out", default=None)
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.picture:
        draw_filters(options)
        return
    about = {
        "command": "python benchmarks/filters.py",
        "data": DATA,
        "network": "interpretable:resnet14, width 0.5 (32 filters of 8x8), float32, AdamW",
    }
    run_all(options, run, "interpretable-cnn", about)


if __name__ == "__main__":
    main()
