"""Systems for yes/no attributes on mosaics of real pictures, all four beside a plain network.

    python benchmarks/attributes.py tiny-imagenet-100/      # the folder with the parquet files

Data: mosaics of four quarters, two of which show one of eight classes (a class is in 23.4 % of them), 64 pixels. One
seed draws the eight classes, the mosaics and the weights. Systems: `always absent`; `plain` (ResNet-20, a cross-entropy
a head); MOON on the same backbone with the training data's own distribution as target (`moon-source`, the form whose
figure was published) and with an even one (`moon-balanced`); LNets+ANet and PANDA with that backbone, FaceTracer and
PANDA on a grid of regions, since a mosaic has no face. The networks share every setting, none of which was tuned.
Figures are those of the epoch that is best on validation, on the test mosaics: for each head the share of right
answers, the mean of the shares among present and absent (balanced accuracy), and the average precision; then the mean
over heads. The record grows case by case.
"""

import argparse
import datetime
import json
import os
import platform
import shutil
import tempfile
import time
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch

from attention_branch.data import DataSet, open_data
from attention_branch.evaluation import evaluate
from attention_branch.files import write_json
from attention_branch.hardware import processor
from attention_branch.models import load_model
from attention_branch.training import TrainConfig, train

NETWORK = {"image_size": 64, "lr": 2e-3, "weight_decay": 0.01, "warmup_epochs": 1.0, "augment": "flip", "maps": 0}
SMALL, SMALL_LNET = "whole_options={'stem_stride': 2}", "lnet_options={'stem_stride': 2}"
MOON = {"model": "moon:resnet20"}
SYSTEMS = {
    "plain": NETWORK | {"model": "resnet20", "baseline": True, "model_options": ("stem_stride=2",)},
    "moon-source": NETWORK | MOON | {"model_options": ("stem_stride=2", "target='source'")},
    "moon-balanced": NETWORK | MOON | {"model_options": ("stem_stride=2", "target=0.5")},
    "lnets-anet": NETWORK | {"model": "lnets-anet", "model_options": ("lnet=resnet20", SMALL_LNET)},
    "panda": NETWORK
    | {
        "model": "panda",
        "model_options": ("parts=grid", "part=32", "channels=32", "hidden=32", "whole=resnet20", SMALL),
    },
    "facetracer": {"model": "facetracer", "image_size": 64},
}


def absent(data: DataSet) -> dict[str, float]:
    """Return the figures of the answer 'absent' to every head."""
    shares = [float((column == 1).mean()) for column in data.test.targets.values()]
    return {
        "accuracy": 1 - float(np.mean(shares)),
        "balanced_accuracy": 0.5,
        "average_precision": float(np.mean(shares)),
    }


def measured(name: str, seed: int, data: DataSet, options: argparse.Namespace) -> dict[str, object]:
    """Train one system and return its figures."""
    trained = "facetracer" not in name
    settings = dict(SYSTEMS[name])
    if trained:
        settings |= {"epochs": options.epochs, "batch_size": options.batch, "precision": options.precision}
    folder = Path(tempfile.mkdtemp(prefix="attributes-"))
    try:
        began, worked = time.perf_counter(), time.process_time()
        config = TrainConfig(
            data=data.spec, seed=seed, out=str(folder / "run"), workers=0, accelerator="cpu", **settings
        )
        run = train(config, data=data)
        seconds = {"seconds": time.perf_counter() - began, "processor_seconds": time.process_time() - worked}
        model = load_model(run)
        found = evaluate(model, data.test)
        reads = (
            [[" ".join(what) for what in model.reads(head)] for head in range(len(data.tasks))] if not trained else None
        )
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    heads = {head: one.perception for head, one in found.heads.items()}
    figures = ("accuracy", "balanced_accuracy", "average_precision")
    return {
        **{figure: float(np.mean([getattr(one, figure) for one in heads.values()])) for figure in figures},
        "accuracy_by_head": {head: one.accuracy for head, one in heads.items()},
        "parameters": sum(one.numel() for one in model.parameters()),
        **{key: round(value, 1) for key, value in seconds.items()},
        **({"reads": reads} if reads else {}),
    }  # fmt: skip


def main() -> None:
    """Measure every system with every seed and write the record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--systems", nargs="+", default=list(SYSTEMS), choices=list(SYSTEMS))
    parser.add_argument("--train", type=int, default=4000)
    parser.add_argument("--epochs", type=int, default=12)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--precision", default="bf16")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", default=None)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    folder = Path(__file__).parent / "records" / f"{datetime.date.today():%Y-%m-%d}-attributes"
    path = Path(options.out) if options.out else folder / "attributes.json"
    names = ("attention-branch", "torch", "timm", "lightning", "scikit-learn", "numpy")
    sizes = f"classes=8,crowd=2,train={options.train},validation=500,test=1000"
    record: dict[str, object] = {
        "command": "python benchmarks/attributes.py",
        "options": {key: value for key, value in vars(options).items() if key not in ("out", "data")},
        "data": {"name": "mosaics of Tiny-ImageNet-100", "options": sizes},
        "device": f"{processor()}, {options.threads} threads of {os.cpu_count()} cores",
        "versions": {name: version(name) for name in names} | {"python": platform.python_version()},
        "protocol": "figures of the epoch best on validation, on the test mosaics; means over heads; settings the same "
        "for all networks and not tuned; C of the SVMs and FaceTracer's number of features chosen on validation",
        "settings": {name: {key: list(v) if isinstance(v, tuple) else v for key, v in values.items()}
                     for name, values in SYSTEMS.items()},
        "cases": [],
    }  # fmt: skip
    cases: list[dict[str, object]] = []
    if path.exists():
        before = json.loads(path.read_text(encoding="utf-8"))
        changed = [
            key for key in ("train", "epochs", "batch", "precision") if before["options"][key] != vars(options)[key]
        ]
        if changed:
            parser.error(f"{path} holds cases with another {' and '.join(changed)}; choose another --out.")
        cases = before["cases"]
    for seed in options.seeds:
        data = open_data(f"mosaics:{options.data},{sizes}", seed=seed, progress=False)
        described = {"seed": seed, "fingerprint": data.record()["fingerprint"], "classes": list(data.tasks)}
        for name in ("always absent", *options.systems):
            if any((case["system"], case["seed"]) == (name, seed) for case in cases):
                continue
            found = absent(data) if name == "always absent" else measured(name, seed, data, options)
            cases.append({"system": name, **described, **found})
            record["cases"] = cases
            write_json(path, record)
            numbers = {key: value for key, value in found.items() if isinstance(value, float)}
            print(json.dumps({"system": name, "seed": seed, **numbers}), flush=True)
    print(f"Written to {path}")


if __name__ == "__main__":
    main()
