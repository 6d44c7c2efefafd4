"""The map of the authors' SENet code, a sum of logarithms, beside the sigmoid map: accuracy, range, where it points.

    python benchmarks/senet.py                         # three seeds, some twenty minutes on one quiet core
    python benchmarks/senet.py --keep runs/senet --picture maps.png
    python benchmarks/senet.py --arms sum-log --seeds 0

One network in every arm, timm's SE-ResNet-18 at an eighth of its width and with its last two stages at the second's
resolution: a map of 8x8 on windows around the digits (`digit_windows.py`), enlarged to 64 pixels. All are trained with
the settings of `filters.py`, tuned for none of them. The arms: `sigmoid` and `sum-log` with the paper's branch, and
`plain` without a branch. On the test split: accuracy of both branches, the map's lowest and highest value, the pointing
game beside its controls, and what other maps in the place of the network's own cost. The record goes to
benchmarks/records/DATE-senet/digits.json and grows run by run; runs that it holds are not done again.
"""

import argparse
import tempfile
from typing import Any

from PIL import Image

import attention_branch as ab
from attention_branch.data import make_loader
from attention_branch.evaluation import evaluate
from attention_branch.metrics.drive import map_drive
from attention_branch.report.strip import strip
from digit_windows import DATA
from digits_runs import first_of_classes, options_for, run_all, save_picture, trained

NETWORK = "seresnet18"
OPTIONS = ("channels=[8, 16, 32, 64]", "output_stride=8")
SIDE = 64


def run(arm: str, seed: int, options: argparse.Namespace) -> dict[str, Any]:
    """Train one network and measure it on the test split."""
    model, test, entry = trained(
        options, arm, seed, SIDE, model=NETWORK, model_options=OPTIONS, baseline=arm == "plain",
        map_form="sum-log" if arm == "sum-log" else "sigmoid", resize="squash",
    )  # fmt: skip
    found = evaluate(model, test, batch_size=250, progress=False)
    entry["accuracy"] = found.accuracy
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


def draw(options: argparse.Namespace) -> None:
    """Draw both maps of a digit of each class, one network above the other."""
    pictures, names = first_of_classes()
    strips = []
    with tempfile.TemporaryDirectory() as folder:
        for arm in ("sigmoid", "sum-log"):
            model = ab.load_model(f"{options.keep}/{arm}-0")
            maps = ab.explain(model, pictures, "attention").raw
            path = strip(pictures, maps, names, f"{folder}/{arm}.png", title=arm, value_range=model.map_range)
            strips.append(Image.open(path).convert("RGB"))
    sheet = Image.new("RGB", (strips[0].width, sum(one.height for one in strips)), "white")
    for number, one in enumerate(strips):
        sheet.paste(one, (0, number * strips[0].height))
    save_picture(sheet, options.picture)


def main() -> None:
    """Train and measure every arm with every seed, and write the record."""
    options = options_for(__doc__, ["sigmoid", "sum-log", "plain"]).parse_args()
    if options.picture:
        draw(options)
        return
    about = {
        "command": "python benchmarks/senet.py",
        "data": f"{DATA}, enlarged to {SIDE} pixels",
        "network": f"{NETWORK}, {', '.join(OPTIONS)}, branch paper, mechanism residual",
        "settings": "AdamW, weight decay 0.05, no augmentation, last epoch",
    }
    run_all(options, run, "senet", about)


if __name__ == "__main__":
    main()
