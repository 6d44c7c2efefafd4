"""The map of the authors' SENet code, a sum of logarithms, beside the sigmoid map: accuracy, range, where it points.

    python benchmarks/senet.py                         # three seeds, about half an hour on one quiet core
    python benchmarks/senet.py --arms sum-log --seeds 0

One network in every arm, timm's SE-ResNet-18 at an eighth of its width and with its last two stages at the second's
resolution (a map of 8x8 on pictures of 64 pixels), trained on the digits with the settings of the recipe
`digits-study`. The arms: `sigmoid` and `sum-log` with the paper's branch, and `plain` without a branch. On the test
split: accuracy of both branches, the map's lowest and highest value, the pointing game beside its controls, and what
other maps in the place of the network's own cost. The record goes to benchmarks/records/DATE-senet/digits.json and
grows run by run; runs that it holds are not done again.
"""

import argparse
import dataclasses
import datetime
import json
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

import attention_branch as ab
from attention_branch.data import make_loader, open_data
from attention_branch.evaluation import evaluate
from attention_branch.evaluation.run import versions
from attention_branch.files import write_json
from attention_branch.hardware import processor
from attention_branch.metrics.drive import map_drive
from attention_branch.models.cost import cost
from attention_branch.training import recipe, train

NETWORK = "seresnet18"
OPTIONS = ("channels=[8, 16, 32, 64]", "output_stride=8")
SIDE = 64


def run(arm: str, seed: int, options: argparse.Namespace) -> dict[str, Any]:
    """Train one network and measure it on the test split."""
    config = recipe(
        "digits-study",
        data=options.data,
        model=NETWORK,
        model_options=OPTIONS,
        baseline=arm == "plain",
        map_form="sum-log" if arm == "sum-log" else "sigmoid",
        image_size=SIDE,
        resize="squash",
        epochs=options.epochs,
        precision=options.precision,
        seed=seed,
        maps=0,
    )
    began = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        model = ab.load_model(train(dataclasses.replace(config, out=f"{folder}/run")) / "last")
    seconds = time.perf_counter() - began
    test = open_data(options.data, seed=seed).test
    assert test is not None
    found = evaluate(model, test, batch_size=250)
    counted = cost(model, (SIDE, SIDE))
    entry: dict[str, Any] = {
        "arm": arm,
        "seed": seed,
        "parameters": counted.parameters,
        "multiply_adds": counted.multiply_adds,
        "test_images": len(test),
        "accuracy": found.accuracy,
        "training_seconds_on_a_busy_machine": round(seconds, 1),
    }
    if options.keep:
        model.save_pretrained(Path(options.keep) / f"{arm}-{seed}")
    if arm != "plain":
        drive = map_drive(model, make_loader(test, model.preprocessing, 250, train=False, workers=0), seed=seed)
        entry |= {
            "attention_accuracy": found.attention_accuracy,
            "map": found.maps,
            "alarm": found.alarm,
            "pointing": {name: {"mean": one.mean, "interval": one.interval} for name, one in found.pointing.items()},
            "with_other_maps": {name: drive.accuracy(name).mean for name in drive.rows},
            "map_drive": drive.sentence(),
        }
    return entry


def main() -> None:
    """Train and measure every arm with every seed, and write the record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--arms", nargs="+", default=["sigmoid", "sum-log", "plain"])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--pictures", type=int, default=6000, help="training pictures")
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--precision", default="32")
    parser.add_argument("--keep", default=None, help="folder to save the networks in")
    parser.add_argument("--out", default=None)
    options = parser.parse_args()
    options.data = f"digits:train={options.pictures},validation=500,test=1000"
    folder = Path(__file__).parent / "records" / f"{datetime.date.today():%Y-%m-%d}-senet"
    path = Path(options.out) if options.out else folder / "digits.json"
    record = json.loads(path.read_text()) if path.is_file() else {"runs": []}
    for seed in options.seeds:
        for arm in options.arms:
            if any((one["arm"], one["seed"]) == (arm, seed) for one in record["runs"]):
                continue
            record["runs"].append(run(arm, seed, options))
            record |= {
                "command": "python benchmarks/senet.py",
                "data": options.data,
                "network": f"{NETWORK}, {', '.join(OPTIONS)}, branch paper, mechanism residual",
                "settings": f"recipe digits-study, {options.epochs} epochs, last epoch, {options.precision}",
                "hardware": {"processor": processor(), "threads": torch.get_num_threads(), "shared": True},
                "versions": versions(),
            }
            write_json(path, record)
            print(json.dumps(record["runs"][-1]), flush=True)


if __name__ == "__main__":
    main()
