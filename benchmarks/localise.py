"""Do LNets+ANet and PANDA find the face that the attributes are of? On drawn faces, whose places are known.

    python benchmarks/localise.py
    python benchmarks/localise.py --trial runs/localise/lnets-anet-0/stages/lnet-s/model

The first trains every system. With `--trial` none is: the boxes of a saved LNets+ANet are measured, and the points that
PANDA's network learns from 500 faces in ten epochs, to `trial.json`.

Data: `drawn_faces.py`, a constructed set: 64-pixel crops of two photos with a drawn face of 26 to 40 pixels at a random
place, and eight yes/no attributes that depend on the face alone, each in 40 % of the pictures. Measured on the test
pictures: accuracy over the attributes, beside a plain network and the answer `absent`; how often LNet's box and its
map's maximum lie on the face, beside boxes that know nothing; and how far PANDA's points are from the true ones, beside
the training faces' mean points. Networks share their settings, none of which was tuned on the test pictures. The record
grows case by case.
"""

import argparse
import datetime
import json
import os
import platform
import tempfile
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch

from attention_branch.data import DataSet, ImageSet, make_loader
from attention_branch.evaluation import evaluate
from attention_branch.files import read_json_lines, write_json
from attention_branch.hardware import processor
from attention_branch.models import create_backbone, load_model
from attention_branch.training import TrainConfig, attribute_stages, train
from attention_branch.training.attribute_stages import point_error
from attention_branch.training.stages import Stages
from drawn_faces import ATTRIBUTES, HEIGHTS, SIDE, SIZES, drawn_faces

SHARED = {"image_size": SIDE, "lr": 2e-3, "weight_decay": 0.01, "warmup_epochs": 1.0, "augment": "flip", "maps": 0}
LNET = ("lnet=resnet14", "lnet_options={'stem_stride': 2}")
SYSTEMS: dict[str, dict[str, Any]] = {
    "plain": {"model": "resnet14", "baseline": True, "model_options": ("stem_stride=2",)},
    "lnets-anet": {"model": "lnets-anet", "model_options": LNET},
    "panda": {
        "model": "panda",
        "model_options": ("part=32", "channels=32", "hidden=32", "whole=resnet14", "whole_options={'stem_stride': 2}"),
    },
}


def overlap(found: np.ndarray, true: np.ndarray) -> np.ndarray:
    """Return the intersection over union of boxes (N, 4) and others."""
    low, high = np.maximum(found[:, :2], true[:, :2]), np.minimum(found[:, 2:], true[:, 2:])
    inside = np.clip(high - low, 0, None).prod(1)
    areas = [(boxes[:, 2:] - boxes[:, :2]).prod(1) for boxes in (found, true)]
    return inside / (areas[0] + areas[1] - inside)


def on(points: np.ndarray, boxes: np.ndarray) -> float:
    """Return how often points (N, 2) lie in boxes (N, 4)."""
    return float(((points >= boxes[:, :2]) & (points <= boxes[:, 2:])).all(1).mean())


def box_figures(found: np.ndarray, true: np.ndarray) -> dict[str, float]:
    """Return how well boxes (N, 4) cover the true ones."""
    shared = overlap(found, true)
    return {
        "iou": float(shared.mean()),
        "iou_at_least_half": float((shared >= 0.5).mean()),
        "centre_on_face": on((found[:, :2] + found[:, 2:]) / 2, true),
    }


def controls(train_boxes: np.ndarray, true: np.ndarray, seed: int) -> dict[str, dict[str, float]]:
    """Return the figures of boxes that know nothing of the picture."""
    random, count = np.random.default_rng(seed), len(true)
    sides = (train_boxes[:, 2:] - train_boxes[:, :2]).mean(0)
    middle = np.tile([*(0.5 - sides / 2), *(0.5 + sides / 2)], (count, 1))
    corners = random.random((count, 2)) * (1 - sides)
    return {
        "mean-sized box in the middle": box_figures(middle, true),
        "mean-sized box at random": box_figures(np.concatenate([corners, corners + sides], axis=1), true),
        "whole picture": box_figures(np.tile([0.0, 0, 1, 1], (count, 1)), true),
    }


def batches(images: ImageSet, model: Any) -> list[torch.Tensor]:
    """Return a split's normalised batches."""
    return [batch["images"] for batch in make_loader(images, model.preprocessing, 100, train=False)]


def localised(model: Any, images: ImageSet) -> dict[str, Any]:
    """Return the figures of LNets' boxes and maps."""
    true = images.source.boxes / SIDE
    with torch.no_grad():
        found = [model.localise(batch) for batch in batches(images, model)]
    figures: dict[str, Any] = {}
    for name in ("faces", "head_shoulders"):
        figures[name] = box_figures(np.concatenate([getattr(one, name).numpy() for one in found]), true)
    response = torch.cat([one.response for one in found])
    height, width = response.shape[1:]
    place = response.flatten(1).argmax(1)
    points = torch.stack([(place % width + 0.5) / width, (place // width + 0.5) / height], dim=1).numpy()
    figures["maximum_of_the_map_on_face"] = on(points, true)
    return figures


def pointed(model: Any, images: ImageSet) -> dict[str, float]:
    """Return the mean error of PANDA's points, as a share of the eyes' distance, and of the mean points."""
    true = torch.from_numpy((np.stack([images.source.points(row) for row in range(len(images))]) + 0.5) / SIDE).float()
    with torch.no_grad():
        found = torch.cat([model.backbone.points(batch) for batch in batches(images, model)])
    mean = model.backbone.points.mean.expand_as(true)
    return {"points": float(point_error(found, true).mean()), "mean_points": float(point_error(mean, true).mean())}


def measured(name: str, seed: int, data: DataSet, options: argparse.Namespace) -> dict[str, Any]:
    """Train one system and return its figures."""
    began, worked = time.perf_counter(), time.process_time()
    folder = Path(options.runs) / f"{name}-{seed}"
    given: dict[str, Any] = {"resume": str(folder)} if (folder / "config.json").exists() else {"out": str(folder)}
    config = TrainConfig(
        data=data.spec, seed=seed, workers=0, accelerator="cpu", epochs=options.epochs, batch_size=options.batch,
        **SHARED, **SYSTEMS[name], **given,
    )  # fmt: skip
    run = train(config, data=data)
    model = load_model(run)
    found = evaluate(model, data.test, progress=False)
    heads = {head: one.perception for head, one in found.heads.items()}
    figures: dict[str, Any] = {
        "accuracy": float(np.mean([one.accuracy for one in heads.values()])),
        "balanced_accuracy": float(np.mean([one.balanced_accuracy for one in heads.values()])),
        "accuracy_by_head": {head: one.accuracy for head, one in heads.items()},
        "parameters": sum(one.numel() for one in model.parameters()),
        "seconds": round(time.perf_counter() - began, 1),
        "processor_seconds": round(time.process_time() - worked, 1),
    }
    if name == "lnets-anet":
        figures["boxes"] = localised(model, data.test)
    if name == "panda":
        figures["point_error"] = pointed(model, data.test)
    return figures


def learned_points(seed: int, folder: Path) -> tuple[Any, DataSet]:
    """Return PANDA with only its points learned, from 500 faces in ten epochs, and the data."""
    attribute_stages.POINT_EPOCHS = 10
    data = drawn_faces(seed, {"train": 500, "validation": 100, "test": 1000})
    torch.manual_seed(seed)
    model = create_backbone(
        "panda", heads=data.heads, image_size=SIDE, part=32, channels=2, hidden=2, whole="resnet14"
    ).eval()  # fmt: skip
    config = TrainConfig(data=data.spec, model="panda", seed=seed, workers=0)
    model.take(attribute_stages.train_points(config, data, model, Stages(folder)))
    return model, data


def trial(network: str, record: dict[str, Any], path: Path) -> None:
    """Measure a saved network's boxes and quickly learned points on test faces, and write the record."""
    with tempfile.TemporaryDirectory() as folder:
        model, data = learned_points(0, Path(folder))
    assert data.test is not None
    train_faces = drawn_faces(0, {"train": 500}).train
    assert train_faces is not None
    lnets = load_model(network)
    stages = Path(network).parents[1]
    epochs = {}
    for name in ("lnet-o", "lnet-s"):
        lines = read_json_lines(stages / name / "metrics.jsonl")
        epochs[name] = {"epochs": len(lines), "best_validation_accuracy": max(x["validation_accuracy"] for x in lines)}
    record["options"] = {"trial": "LNets of a run that was stopped; points from 500 faces, ten epochs", "seed": 0}
    record["cases"] = [
        {"system": "boxes that know nothing", "boxes": controls(
            train_faces.source.boxes / SIDE, data.test.source.boxes / SIDE, 0)},
        {"system": "lnets-anet", "trained": epochs, "boxes": localised(lnets, data.test)},
        {"system": "panda", "point_error": pointed(model, data.test)},
    ]  # fmt: skip
    write_json(path, record)
    print(json.dumps(record["cases"], indent=1))


def main() -> None:
    """Measure every system with every seed and write the record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--systems", nargs="+", default=list(SYSTEMS), choices=list(SYSTEMS))
    parser.add_argument("--train", type=int, default=SIZES["train"])
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--runs", default="runs/localise", help="where the run folders go; a stopped one goes on")
    parser.add_argument("--trial", default=None, help="a saved LNets+ANet; nothing else is trained than points")
    parser.add_argument("--out", default=None)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    folder = Path(__file__).parent / "records" / f"{datetime.date.today():%Y-%m-%d}-localise"
    path = Path(options.out) if options.out else folder / ("trial.json" if options.trial else "localise.json")
    names = ("attention-branch", "torch", "timm", "lightning", "scikit-learn", "numpy")
    record: dict[str, Any] = {
        "command": "python benchmarks/localise.py",
        "options": {key: value for key, value in vars(options).items() if key not in ("out", "runs", "trial")},
        "data": {
            "name": "drawn faces, constructed",
            "attributes": list(ATTRIBUTES),
            "heights": list(HEIGHTS),
            "images": SIZES | {"train": options.train},
        },
        "device": f"{processor()}, {options.threads} threads of {os.cpu_count()} cores",
        "versions": {name: version(name) for name in names} | {"python": platform.python_version()},
        "protocol": "figures on the test pictures, means over attributes; boxes in shares of the picture; point errors "
        "in shares of the eyes' distance; a ninth of the training pictures trains the SVMs and no network",
        "settings": {"all": SHARED, **SYSTEMS},
        "cases": [],
    }
    if options.trial:
        record["command"] += " --trial STAGES/lnet-s/model"
        record["data"]["images"] = {"train": 2700, "validation": 500, "test": 1000}
        trial(options.trial, record, path)
        return
    cases: list[dict[str, Any]] = []
    if path.exists():
        before = json.loads(path.read_text(encoding="utf-8"))
        changed = [key for key in ("train", "epochs", "batch") if before["options"][key] != vars(options)[key]]
        if changed:
            parser.error(f"{path} holds cases with another {' and '.join(changed)}; choose another --out.")
        cases = before["cases"]
    for seed in options.seeds:
        data = drawn_faces(seed, SIZES | {"train": options.train})
        assert data.train is not None
        assert data.test is not None
        shares = [float(column.mean()) for column in data.test.targets.values()]
        first = {
            "accuracy": 1 - float(np.mean(shares)),
            "boxes": controls(data.train.source.boxes / SIDE, data.test.source.boxes / SIDE, seed),
        }
        for name in ("always absent", *options.systems):
            if any((case["system"], case["seed"]) == (name, seed) for case in cases):
                continue
            found = first if name == "always absent" else measured(name, seed, data, options)
            cases.append({"system": name, "seed": seed, **found})
            record["cases"] = cases
            write_json(path, record)
            print(json.dumps({"system": name, "seed": seed, "accuracy": found["accuracy"]}), flush=True)
    print(f"Written to {path}")


if __name__ == "__main__":
    main()
