"""Residual against naive attention and a plain network of equal cost, and where the soft masks point, on the digits.

    python benchmarks/residual_attention.py                         # three seeds, some twenty minutes on one quiet core
    python benchmarks/residual_attention.py --keep runs/residual --picture masks.png
    python benchmarks/residual_attention.py --arms naive --seeds 0

The arms: `residual` and `naive`, Attention-56 for CIFAR at a quarter of its width on windows of 32 pixels around the
digits (`digit_windows.py`); `plain`, a ResNet-20 made so narrow that it has as many multiply-adds. All are trained with
the same settings, those of `filters.py`, tuned for none of them. On the test split: accuracy; of the attention arms the
pointing game of every module's mask, Grad-CAM and the controls, and insertion minus deletion of the last mask, Grad-CAM
and the controls. The record goes to benchmarks/records/DATE-residual-attention/digits.json and grows run by run; runs
that it holds are not done again.
"""

import argparse
from typing import Any

import torch

import attention_branch as ab
from attention_branch.evaluation import evaluate
from attention_branch.explanations.soft_mask_figure import soft_mask_figure
from attention_branch.explanations.soft_masks import mask_names
from attention_branch.metrics import InsertionMinusDeletion, PointingGame
from attention_branch.models.cost import cost
from attention_branch.models.wider import wider_backbone
from digit_windows import DATA
from digits_runs import first_of_classes, options_for, run_all, save_picture, trained

NETWORK, WIDTH, SIDE = "attention56_cifar", 0.25, 32
CONTROLS = ("center", "random")


def network_of(arm: str) -> tuple[str, dict[str, Any]]:
    """Return an arm's network and its options."""
    if arm != "plain":
        return NETWORK, {"width": WIDTH, "attention": arm}
    target = cost(ab.create_backbone(NETWORK, 10, width=WIDTH), (SIDE, SIDE)).multiply_adds
    return "resnet20", wider_backbone("resnet20", 10, multiply_adds=target, image_size=SIDE)


def described(result: Any) -> dict[str, Any]:
    """Return a metric's mean, interval and number of images."""
    return {"mean": result.mean, "interval": result.interval, "n": result.n}


def measure(model: Any, images: torch.Tensor, regions: torch.Tensor, steps_on: int) -> dict[str, Any]:
    """Return where the maps point on all images, and insertion minus deletion on the first `steps_on`."""
    names = mask_names(model)
    asked = {f"soft-masks {name.removeprefix('backbone.')}": ("soft-masks", name) for name in names}
    asked |= {name: (name, "auto") for name in ("grad-cam", *CONTROLS)}
    pointing, faithful = {}, {}
    for name, (method, layer) in asked.items():
        explained = ab.explain(model, images, method, layer=layer)
        game = PointingGame()
        game.update(None, None, explained.maps, regions=regions)
        pointing[name] = described(game.compute())
        if method == "soft-masks" and layer != names[-1]:
            continue
        metric = InsertionMinusDeletion()
        metric.update(model, images[:steps_on], explained.maps[:steps_on])
        faithful[name] = described(metric.compute())
    return {"pointing": pointing, "insertion_minus_deletion": faithful}


def run(arm: str, seed: int, options: argparse.Namespace) -> dict[str, Any]:
    """Train one network and measure it on the test split."""
    name, chosen = network_of(arm)
    model, test, entry = trained(
        options, arm, seed, SIDE, model=name, baseline=True,
        model_options=tuple(f"{key}={value!r}" for key, value in chosen.items()),
    )  # fmt: skip
    samples = [test[row] for row in range(len(test))]
    images = torch.stack([model.preprocessing.tensor(sample.image) for sample in samples])
    entry |= {
        "network": name,
        "options": chosen,
        "accuracy": evaluate(model, test, batch_size=250, progress=False).accuracy,
    }
    if arm != "plain":
        regions = torch.stack([torch.from_numpy(sample.region(model.preprocessing)) for sample in samples])
        count = min(options.maps, len(images))
        entry |= measure(model, images[:count], regions[:count], min(options.faithful, count))
    return entry


def main() -> None:
    """Train and measure every arm with every seed, and write the record."""
    parser = options_for(__doc__, ["residual", "naive", "plain"])
    parser.add_argument("--maps", type=int, default=300, help="test pictures whose maps are measured")
    parser.add_argument("--faithful", type=int, default=100, help="of these, pictures for insertion and deletion")
    options = parser.parse_args()
    if options.picture:
        pictures, names = first_of_classes()
        model = ab.load_model(f"{options.keep}/residual-0")
        save_picture(soft_mask_figure(model, pictures[1:6], labels=names[1:6]), options.picture)
        return
    about = {
        "command": "python benchmarks/residual_attention.py",
        "data": DATA,
        "settings": "AdamW, weight decay 0.05, no augmentation, last epoch",
        "pointing": f"first {options.maps} test windows, tolerance 15/224 of the side",
        "insertion_minus_deletion": f"first {options.faithful} test windows, of the predicted class",
    }
    run_all(options, run, "residual-attention", about)


if __name__ == "__main__":
    main()
