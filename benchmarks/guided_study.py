"""Does it matter where a training image is changed? Guided augmentation against none and against random places.

    python benchmarks/guided_study.py runs cifar10-jpeg/ --seeds 0 1 2
    python benchmarks/guided_study.py summary

DATA is a folder with train.parquet and test.parquet in the Hugging Face layout, pictures of 32 pixels. Every arm trains
the same network from the same start on the same pictures in the same order: `none`; crop, drop and cutmix at the box
that the running map points at; the same three with boxes of the same sizes at random places (-random); and the recipe's
ordinary cutmix of whole batches (cutmix-batch). Arms take turns seed by seed, so that a study that is cut short has
them all. A run writes one file, ARM-seedN.json, when it is done; runs that are there are not repeated. `test_hits`
of a file are the test images answered rightly, a bit each, to compare runs image by image. The test split is looked at
once, after the last epoch; nothing is chosen by it.
"""

import argparse
import base64
import datetime
import io
import json
import platform
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet
import torch
from PIL import Image
from scipy import stats

from attention_branch.data.resident import ResidentImages
from attention_branch.files import write_json
from attention_branch.hardware import processor
from attention_branch.models import create_model
from attention_branch.training import TrainConfig, recipe
from attention_branch.training.boxes import attention_inside
from attention_branch.training.fast import EVALUATION_BATCH, FastTrainer
from attention_branch.training.guided import Guide

ARMS: dict[str, dict[str, Any]] = {
    "none": {},
    **{change: {"guided": change} for change in ("crop", "drop", "cutmix")},
    **{f"{change}-random": {"guided": change, "guided_by": "random"} for change in ("crop", "drop", "cutmix")},
    "cutmix-batch": {"cutmix": 1.0},
}
VALIDATION = 2000
RECORDS = Path(__file__).parent / "records" / f"{datetime.date.today():%Y-%m-%d}-guided-study"


def pictures(path: Path, rows: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Return pictures uint8 (N, 32, 32, 3) and labels (N,) of a parquet file, of the given rows or of all."""
    table = pyarrow.parquet.read_table(path)
    table = table if rows is None else table.take(rows)
    encoded = table.column("image").to_pylist()
    decoded = [np.asarray(Image.open(io.BytesIO(one["bytes"])).convert("RGB")) for one in encoded]
    return np.stack(decoded), np.asarray(table.column("label").to_pylist())


def settings(arm: str, seed: int, options: argparse.Namespace) -> TrainConfig:
    """Return an arm's settings: the modern CIFAR recipe, shortened, without what would blur the comparison."""
    changes = dict(ARMS[arm])
    if "guided" in changes:
        changes["guided_share"] = options.share
    return recipe(
        "cifar-modern", data="CIFAR-10 (JPEG)", model=options.network, branch=options.branch,
        model_options=(f"stem_stride={options.stride}",), epochs=options.epochs,
        warmup_epochs=1, label_smoothing=0.0, ema=None, augment="pad-crop-flip",
        precision=options.precision, seed=seed, **changes,
    )  # fmt: skip


def one_run(arm: str, seed: int, data: dict[str, Any], options: argparse.Namespace) -> dict[str, Any]:
    """Train and test one network; return its record."""
    config = settings(arm, seed, options)
    torch.manual_seed(seed)
    model = create_model(config.model, num_classes=10, branch=config.branch, stem_stride=options.stride)
    mean, std = data["normalization"]
    model.preprocessing = type(model.preprocessing)(size=(32, 32), mean=mean, std=std, resize="squash")
    trainer = FastTrainer(config, model, ResidentImages(*data["train"]))
    validation = ResidentImages(*data["validation"])
    began, curve = time.perf_counter(), []
    while not trainer.finished:
        trainer.advance()
        figures = trainer.read_figures(trainer.epoch_figures())
        curve.append({"train_loss": figures["train_loss"], "validation_error": trainer.evaluate(validation).error()})
        print(f"{arm} seed {seed} epoch {trainer.epoch}: {curve[-1]}", flush=True)
    seconds = time.perf_counter() - began
    found = trainer.evaluate(ResidentImages(*data["test"]))
    assert found.attention is not None
    hits = np.packbits(found.perception.numpy())
    return {
        "arm": arm,
        "seed": seed,
        "test_error": found.error(),
        "test_attention_error": found.error("attention"),
        "test_hits": base64.b64encode(hits.tobytes()).decode(),
        "curve": curve,
        "maps": map_figures(trainer, validation, config),
        "seconds": seconds,
        "training_seconds": trainer.seconds,
        "settings": {"guided": config.guided, "guided_by": config.guided_by, "guided_share": config.guided_share}
        | {"guided_threshold": config.guided_threshold, "cutmix": config.cutmix, "recipe": config.recipe},
    }


def map_figures(trainer: FastTrainer, images: ResidentImages, config: TrainConfig) -> dict[str, Any]:
    """Return what the last maps and the boxes read from them look like, over validation images."""
    batch = trainer.preprocessing.normalize(images.taken(torch.arange(min(EVALUATION_BATCH, len(images)))))
    change = config.guided if config.guided != "none" else "crop"
    figures: dict[str, Any] = {"boxes_of": change}
    for name, at_random in (("attended", False), ("random", True)):
        torch.manual_seed(0)
        found = Guide(trainer.model, change, at_random=at_random).changed(batch)
        cells = found.boxes * found.maps.shape[1] // 32
        # In cutmix a box is the partner's, so its own attention is that of the map before.
        maps = found.maps.roll(1, 0) if change == "cutmix" else found.maps
        held = attention_inside(maps, cells)
        area = (found.boxes[:, 2:] - found.boxes[:, :2]).prod(1).double() / 32**2
        figures |= {f"{name}_box_area": area.mean().item(), f"{name}_box_holds": held.mean().item()}
        if found.share is not None:
            figures[f"{name}_own_label"] = found.share.mean().item()
    flat = found.maps.flatten(1)
    figures |= {"map_mean": flat.mean().item(), "map_spread": flat.std(1, correction=0).mean().item()}
    return figures


def run_all(options: argparse.Namespace) -> None:
    """Train every arm with every seed, seed by seed."""
    out = Path(options.out)
    source = Path(options.data) / "train.parquet"
    known = pyarrow.parquet.read_metadata(source).num_rows
    pixels, labels = pictures(source, np.random.default_rng(0).permutation(known)[: options.images + VALIDATION])
    train = pixels[: options.images], labels[: options.images]
    channels = train[0].reshape(-1, 3) / 255
    data = {
        "train": train,
        "validation": (pixels[options.images :], labels[options.images :]),
        "test": pictures(Path(options.data) / "test.parquet"),
        "normalization": (tuple(channels.mean(0).tolist()), tuple(channels.std(0).tolist())),
    }
    common = {
        "command": f"python benchmarks/guided_study.py runs DATA --images {options.images} --epochs {options.epochs} "
        f"--share {options.share:g} --precision {options.precision} --network {options.network} "
        f"--branch {options.branch} --stride {options.stride}",
        "data": f"CIFAR-10 (JPEG): {options.images} training, {VALIDATION} validation and "
        f"{len(data['test'][1])} test images",
        "network": f"{options.network}, stem_stride={options.stride}, {options.branch} branch, {options.precision}",
        "device": f"{processor()}, {torch.get_num_threads()} thread",
        "versions": {name: version(name) for name in ("torch", "timm", "numpy")}
        | {"python": platform.python_version()},
    }
    for seed in options.seeds:
        for arm in options.arms:
            path = out / f"{arm}-seed{seed}.json"
            if path.exists():
                before = json.loads(path.read_text(encoding="utf-8"))
                if any(before[key] != common[key] for key in ("command", "data", "network")):
                    raise SystemExit(f"{path} is of other options ({before['command']}); choose another --out.")
                continue
            record = one_run(arm, seed, data, options)
            write_json(path, common | {"date": f"{datetime.date.today():%Y-%m-%d}"} | record)
            print(f"{path.name}: test error {record['test_error']:.2%}, {record['seconds']:.0f} s", flush=True)


def summarize(options: argparse.Namespace) -> None:
    """Write and print each arm's mean error and its differences from `none` and from its random control."""
    out = Path(options.out)
    records = [json.loads(path.read_text(encoding="utf-8")) for path in sorted(out.glob("*-seed*.json"))]
    commands = {record["command"] for record in records}
    if len(commands) != 1:
        raise SystemExit(f"{out} holds runs of {len(commands)} commands; give a folder with those of one.")
    errors: dict[str, dict[int, float]] = {}
    for record in records:
        errors.setdefault(record["arm"], {})[record["seed"]] = 100 * record["test_error"]
    pairs = [(arm, "none") for arm in ARMS if arm != "none"]
    pairs += [(arm, f"{arm}-random") for arm in ("crop", "drop", "cutmix")] + [("cutmix", "cutmix-batch")]
    summary = {
        "protocol": "test error in percent; a difference is the first arm's error minus the second's, seed by seed; "
        "interval: 95 % by Student's t over the seeds; nothing is corrected for several comparisons; cutmix-batch "
        "mixes every image of a batch, the guided arms the share of them that the command names",
        "command": commands.pop(),
        "arms": {arm: _mean([*errors[arm].values()]) for arm in ARMS if arm in errors},
        "errors": {arm: errors[arm] for arm in ARMS if arm in errors},
        "differences": {
            f"{one} - {other}": _mean([errors[one][seed] - errors[other][seed] for seed in _common(errors, one, other)])
            for one, other in pairs
            if _common(errors, one, other)
        },
    }
    write_json(out / "summary.json", summary)
    for name, found in {**summary["arms"], **summary["differences"]}.items():
        interval = f" ({found['interval'][0]:.2f} to {found['interval'][1]:.2f})" if found["interval"] else ""
        print(f"{name:28s} {found['mean']:7.2f}{interval}, n = {found['n']}")


def _common(errors: dict[str, dict[int, float]], one: str, other: str) -> list[int]:
    return sorted(errors.get(one, {}).keys() & errors.get(other, {}).keys())


def _mean(values: list[float]) -> dict[str, Any]:
    count, mean = len(values), float(np.mean(values))
    if count < 2:
        return {"mean": mean, "interval": None, "n": count}
    half = float(stats.t.ppf(0.975, count - 1) * np.std(values, ddof=1) / count**0.5)
    return {"mean": mean, "interval": [mean - half, mean + half], "n": count}


def main() -> None:
    """Train what is missing, or sum up what is there."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="what", required=True)
    runs = commands.add_parser("runs")
    runs.add_argument("data", metavar="DATA")
    runs.add_argument("--arms", nargs="+", choices=ARMS, default=list(ARMS))
    runs.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    runs.add_argument("--images", type=int, default=10_000, help="training images")
    runs.add_argument("--epochs", type=int, default=8)
    runs.add_argument("--share", type=float, default=0.5, help="of the images that are changed")
    runs.add_argument("--precision", choices=("32", "bf16"), default="32")
    runs.add_argument("--network", default="resnet14")
    runs.add_argument("--branch", default="lite")
    runs.add_argument("--stride", type=int, default=2, help="of the first convolution")
    summary = commands.add_parser("summary")
    for command in (runs, summary):
        command.add_argument("--out", default=str(RECORDS))
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.what == "runs":
        run_all(options)
    else:
        summarize(options)


if __name__ == "__main__":
    main()
