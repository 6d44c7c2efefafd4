"""Do an interpretable CNN's filters keep to one place, and what does it cost in accuracy?

    python benchmarks/filters.py                                   # the embedded digits, about an hour on one thread
    python benchmarks/filters.py --data tiny-imagenet-100/ --size 64 --train 10000 --epochs 6
    python benchmarks/filters.py --arms paper=30 paper=300 --seeds 0 --split validation

The arms are one network, a ResNet with one more 3x3 convolution: `ordinary` (no mask, no loss), `mask` (masked around
each map's peak, no loss) and VARIANT=WEIGHT (masked, with the filter loss of that variant and weight). After training
the maps of the added convolution's filters, as they are masked, are measured on `--split`: location instability and
part interpretability, of all filters and of the quarter that is most active, and beside them those of a control that
puts every filter's peak in a random cell. A digit's parts are its box and the box's upper and lower half; Tiny-ImageNet
has one box an image, so that part interpretability there asks only whether a filter is on the object. Weights were
chosen on the validation split. The record goes to benchmarks/records/DATE-interpretable-cnn/NAME.json and grows run by
run; runs that it holds already are not done again.
"""

import argparse
import datetime
import json
import platform
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch

import attention_branch as ab
from attention_branch.data import open_data
from attention_branch.data.dataset import DataSet, ImageSet
from attention_branch.data.resident import decoded, resident
from attention_branch.explanations.filters import filter_maps
from attention_branch.files import write_json
from attention_branch.hardware import processor
from attention_branch.metrics.statistics import MetricResult
from attention_branch.training import recipe
from attention_branch.training.building import make_model
from attention_branch.training.fast import FastTrainer

ARMS = ("ordinary", "mask", "paper=300", "exact=300", "released=30")
FIXED = {"ordinary": {"filter_weight": 0.0, "mask": False}, "mask": {"filter_weight": 0.0}}


def arm_options(arm: str) -> dict[str, Any]:
    """Return what an arm sets of the network."""
    if arm in FIXED:
        return FIXED[arm]
    variant, _, weight = arm.partition("=")
    return {"variant": variant, "filter_weight": float(weight)}


def settings(options: argparse.Namespace, arm: str, seed: int) -> Any:
    """Return the training settings of one run."""
    digits = options.data.startswith("digits")
    chosen = [f"{name}={value!r}" for name, value in arm_options(arm).items()]
    return recipe(
        "digits",
        data=options.data,
        model=f"interpretable:{options.network}",
        model_options=("stem_stride=2", *chosen),
        image_size=options.size,
        epochs=options.epochs,
        lr=options.lr,
        augment="none" if digits else "pad-crop-flip",
        batch_size=options.batch,
        precision=options.precision,
        seed=seed,
    )


def part_boxes(images: ImageSet, digits: bool, preprocessing: ab.Preprocessing) -> torch.Tensor:
    """Return the parts' boxes (N, P, 4) at the network's size: of a digit the whole, its upper and its lower half."""
    boxes = []
    for row in range(len(images)):
        region = images[row].region(preprocessing)
        down, across = np.flatnonzero(region.any(1)), np.flatnonzero(region.any(0))
        if not len(down):
            boxes.append([[np.nan] * 4] * (3 if digits else 1))
            continue
        left, right, top, bottom = across[0], across[-1] + 1, down[0], down[-1] + 1
        middle = (top + bottom) / 2
        parts = [[left, top, right, bottom]]
        if digits:
            parts += [[left, top, right, middle], [left, middle, right, bottom]]
        boxes.append(parts)
    return torch.tensor(np.array(boxes, dtype=np.float64))


def figures(result: MetricResult, active: torch.Tensor) -> dict[str, Any]:
    """Return a result of all filters, and its mean over those that are most active."""
    values = result.values[active]
    return {
        "mean": result.mean, "interval": result.interval, "filters": result.n, **result.counts,
        "most_active": float(values[~values.isnan()].mean()),
    }  # fmt: skip


def measured(maps: torch.Tensor, boxes: torch.Tensor, labels: torch.Tensor, size: int) -> dict[str, Any]:
    """Return both measures of the filters' maps (N, C, h, w), in the images of each filter's class."""
    steady = ab.metrics.location_instability(maps, ab.metrics.part_centres(boxes), (size, size), labels=labels)
    count, parts = boxes.shape[:2]
    masks = ab.metrics.box_masks(boxes.flatten(0, 1).nan_to_num(-1), size, size).unflatten(0, (count, parts))
    on_part = ab.metrics.part_interpretability(maps, masks)
    active = steady.details["peaks"].argsort(descending=True)[: maps.shape[1] // 4]
    return {
        "location_instability": figures(steady, active),
        "part_interpretability": figures(on_part, active),
        "protocols": [steady.protocol, on_part.protocol],
        "classes_with_filters": len(steady.details["classes"].unique()),
    }


def random_peaks(maps: torch.Tensor, seed: int) -> torch.Tensor:
    """Return maps whose positions are shuffled, each in another way: the control without any place."""
    generator = torch.Generator().manual_seed(seed)
    order = torch.rand(maps.flatten(2).shape, generator=generator).argsort(2)
    return maps.flatten(2).gather(2, order).view(maps.shape)


def run(options: argparse.Namespace, arm: str, seed: int, data: DataSet) -> dict[str, Any]:
    """Train one network and measure it."""
    began = time.perf_counter()
    config = settings(options, arm, seed)
    torch.manual_seed(seed)
    model = make_model(config, data)
    train = data.train
    if options.train and options.train < len(train):
        train = train.subset(np.sort(np.random.default_rng(0).permutation(len(train))[: options.train]))
    trainer = FastTrainer(config, model, resident(train, model.preprocessing))
    history = []
    while not trainer.finished:
        trainer.advance()
        history.append(trainer.read_figures(trainer.epoch_figures()))
    images: ImageSet = getattr(data, options.split)
    held = resident(images, model.preprocessing)
    error = trainer.evaluate(held).error()
    model.eval()
    pixels = decoded(images, model.preprocessing)
    batches = (
        model.preprocessing.normalize(torch.from_numpy(part).permute(0, 3, 1, 2))
        for part in np.array_split(pixels, max(1, len(pixels) // 250))
    )
    maps = filter_maps(model, batches)
    boxes = part_boxes(images, options.data.startswith("digits"), model.preprocessing)
    labels = torch.from_numpy(np.array(images.targets))
    if options.keep:
        model.save_pretrained(Path(options.keep) / f"{arm.replace('=', '-')}-seed{seed}")
    return {
        "arm": arm,
        "seed": seed,
        "accuracy": 1 - error,
        **measured(maps, boxes, labels, options.size),
        "random_places": measured(random_peaks(maps, seed), boxes, labels, options.size),
        "training": history,
        "seconds": time.perf_counter() - began,
    }


def main() -> None:
    """Run every arm and seed that the record does not hold yet."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="digits:train=14000")
    parser.add_argument("--name", default="digits", help="name of the record")
    parser.add_argument("--network", default="resnet14")
    parser.add_argument("--size", type=int, default=64)
    parser.add_argument("--train", type=int, default=None, help="training images; all unless given")
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--lr", type=float, default=0.04)
    parser.add_argument("--precision", default="32", choices=("32", "bf16"))
    parser.add_argument("--arms", nargs="+", default=ARMS)
    parser.add_argument("--seeds", type=int, nargs="+", default=(0, 1, 2))
    parser.add_argument("--split", default="test", choices=("validation", "test"))
    parser.add_argument("--keep", default=None, help="folder for the trained networks")
    parser.add_argument("--out", default=None)
    options = parser.parse_args()
    torch.set_num_threads(1)
    folder = Path(__file__).parent / "records" / f"{datetime.date.today():%Y-%m-%d}-interpretable-cnn"
    path = Path(options.out) if options.out else folder / f"{options.name}.json"
    fixed = {
        key: getattr(options, key)
        for key in ("network", "size", "train", "epochs", "batch", "lr", "precision", "split")
    }
    data = open_data(options.data, seed=0)
    record: dict[str, Any] = {
        "command": "python benchmarks/filters.py",
        "options": fixed | {"data": options.name},
        "data": {name: len(getattr(data, name)) for name in ("train", "validation", "test") if getattr(data, name)},
        "device": f"{processor()}, {torch.get_num_threads()} thread",
        "versions": {name: version(name) for name in ("torch", "timm")} | {"python": platform.python_version()},
        "runs": [],
    }
    if path.exists():
        before = json.loads(path.read_text(encoding="utf-8"))
        if before["options"] != record["options"]:
            parser.error(f"{path} holds runs of other options; choose another --name or --out.")
        record["runs"] = before["runs"]
    for seed in options.seeds:
        for arm in options.arms:
            if any((done["arm"], done["seed"]) == (arm, seed) for done in record["runs"]):
                continue
            record["runs"].append(run(options, arm, seed, data))
            write_json(path, record)
            last = record["runs"][-1]
            print(
                f"{arm} seed {seed}: accuracy {last['accuracy']:.4f}, instability "
                f"{last['location_instability']['mean']:.4f} (most active "
                f"{last['location_instability']['most_active']:.4f}, random places "
                f"{last['random_places']['location_instability']['mean']:.4f}), part interpretability "
                f"{last['part_interpretability']['mean']:.4f}, {last['seconds']:.0f} s",
                flush=True,
            )
    print(f"Written to {path}")


if __name__ == "__main__":
    main()
