"""What a run says of itself at its beginning and its end: the first line, config.json, summary.json."""

import dataclasses
import platform
import shlex
import shutil
import statistics
import sys
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

from attention_branch.data import DataSet
from attention_branch.files import write_json
from attention_branch.models.registry import stands_alone
from attention_branch.training.building import Trainable
from attention_branch.training.config import TrainConfig
from attention_branch.training.journal import read_metrics


def announce(config: TrainConfig, data: DataSet, model: Trainable, folder: Path, world: int) -> None:
    """Print what is trained on what, and where it goes."""
    assert data.train is not None
    assert data.validation is not None
    millions = sum(parameter.numel() for parameter in model.parameters()) / 1e6
    kind = "" if model.is_abn or stands_alone(config.model) else " without a branch"
    test = f", {len(data.test)} test (not touched)" if data.test else ""
    print(
        f"{config.model}{kind}, {millions:.3f} M parameters, on {config.data}: "
        f"{len(data.train)} training and {len(data.validation)} validation images{test}; {world} process"
        f"{'es' if world > 1 else ''}; writing to {folder}",
        flush=True,
    )
    if data.left_out:
        name, reason = data.left_out[0]
        print(f"Left out {len(data.left_out)} images that cannot be read, the first: {name} ({reason}).", flush=True)


def write_config(
    config: TrainConfig,
    folder: Path,
    data: DataSet,
    model: Trainable,
    previous: dict[str, Any] | None,
    annotations: dict[str, Any] | None = None,
) -> None:
    """Write config.json, and remove what a kill left of unfinished writes."""
    now = datetime.now(UTC).isoformat(timespec="seconds")
    names = ("attention-branch", "torch", "torchvision", "timm", "lightning", "numpy")
    record: dict[str, Any] = {
        "settings": dataclasses.asdict(config) | {"resume": None, "out": str(folder)},
        "data": data.record(),
        "model": model.config.to_dict(),
        **({"annotations": annotations} if annotations else {}),
        "versions": {name: version(name) for name in names} | {"python": platform.python_version()},
        "command": shlex.join(sys.argv),
        "started": previous["started"] if previous else now,
        "resumed": [*previous.get("resumed", []), now] if previous else [],
    }
    if previous:
        parts = ("checkpoints", "maps", "guided", "counterexamples", "stages")
        for place in (folder, *(folder / name for name in parts)):
            for left in place.glob(".*"):  # what a kill left of an unfinished write
                shutil.rmtree(left) if left.is_dir() else left.unlink()
    write_json(folder / "config.json", record)


def summarize(folder: Path, model: Trainable, config: TrainConfig) -> None:
    """Write summary.json, and print which epoch's network is kept."""
    lines = read_metrics(folder)
    best = next(line for line in reversed(lines) if line["best"])
    summary = {key: best[key] for key in best if key.startswith("validation_")} | {
        "epochs": len(lines),
        "best_epoch": best["epoch"],
        "seconds": round(sum(line["seconds"] for line in lines), 1),
        "images_per_second": statistics.median(line["images_per_second"] for line in lines),
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "alarm": lines[-1].get("alarm"),
        "seed": config.seed,
    }
    write_json(folder / "summary.json", summary)
    which = "Kept: the last" if config.annotations else "Best"
    print(
        f"{which} of {len(lines)} epochs: {best['epoch'] + 1}, validation accuracy {best['validation_accuracy']:.1%}.",
        flush=True,
    )
