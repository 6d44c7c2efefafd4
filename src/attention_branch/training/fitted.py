"""Systems that are fitted in stages and not trained by Lightning: their run, and what fits which.

A fitter fills a network in place: `fit(config, data, model, stages)`. It asks `stages` for each of its intermediate
results (`stages.tensors`, `stages.array`), which are kept in the run folder until the run is whole, so that a stopped
run goes on with `--resume`; `stages.device` is where to compute, `stages.through` shows progress. A further system is
one module with such a function and one line in `FITTERS`. `features_of` makes features of all pictures of a split,
`svm.fit_svms` a linear SVM a head.

The run folder is that of `abn train`: config.json, `model/` and `last/` (the same network), one line in metrics.jsonl,
summary.json.
"""

import dataclasses
import shlex
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from attention_branch.data import DataSet, ImageSet, make_loader
from attention_branch.errors import UserError
from attention_branch.files import json_line, write_json, write_text
from attention_branch.models import PlainNetwork, abn_loss
from attention_branch.training.config import FREE_ON_RESUME, TrainConfig
from attention_branch.training.recipes import RECIPES
from attention_branch.training.stages import Stages
from attention_branch.training.tally import Tally

FitFunction = Callable[[TrainConfig, DataSet, PlainNetwork, Stages], None]

BATCH = 64
"""Pictures whose features are computed at once."""

LOOKED_AT = 4096
"""Training pictures, drawn at random, that the figures on the training split are of."""


@dataclass(frozen=True)
class Fitter:
    """How a system is fitted, and the settings it reads beside those that every run has."""

    fit: FitFunction
    reads: frozenset[str] = frozenset()
    check: Callable[[TrainConfig, DataSet, PlainNetwork], None] | None = None
    """Raises `UserError` for data that the system cannot be fitted to, before anything is written."""


def _facetracer(config: TrainConfig, data: DataSet, model: PlainNetwork, stages: Stages) -> None:
    from attention_branch.training.facetracer import fit_facetracer

    fit_facetracer(config, data, model, stages)


def _lnets_anet(config: TrainConfig, data: DataSet, model: PlainNetwork, stages: Stages) -> None:
    from attention_branch.training.attribute_stages import fit_lnets_anet

    fit_lnets_anet(config, data, model, stages)


def _panda(config: TrainConfig, data: DataSet, model: PlainNetwork, stages: Stages) -> None:
    from attention_branch.training.attribute_stages import fit_panda

    fit_panda(config, data, model, stages)


def _check_networks(config: TrainConfig, data: DataSet, model: PlainNetwork) -> None:
    from attention_branch.training.attribute_stages import check_data

    check_data(config, data, model)


GRADIENTS = frozenset(
    {
        "epochs", "batch_size", "accumulate", "optimizer", "lr", "momentum", "nesterov", "weight_decay", "decay_all",
        "gradient_clip", "schedule", "warmup_epochs", "milestones", "gamma", "label_smoothing", "mixup", "cutmix",
        "augment", "ema", "precision", "pretrained",
    }
)  # fmt: skip
"""Settings that are read where the parts of a system are trained by gradients."""

FITTERS: dict[str, Fitter] = {
    "facetracer": Fitter(_facetracer),
    "panda": Fitter(_panda, GRADIENTS, _check_networks),
    "lnets-anet": Fitter(_lnets_anet, GRADIENTS, _check_networks),
}
"""Fitters by the network's name, or by what stands before its colon. Each imports its module when it is called."""

_ALWAYS = (FREE_ON_RESUME - {"compile", "tensorboard"}) | {
    "data", "model", "model_options", "image_size", "resize", "seed", "baseline",
}  # fmt: skip


def is_fitted(name: str) -> bool:
    """Tell whether a network is fitted in stages."""
    return name.partition(":")[0] in FITTERS


def check_fitted(config: TrainConfig) -> None:
    """Raise a `UserError` for the first setting that was changed and has no meaning for the system."""
    reads = FITTERS[config.model.partition(":")[0]].reads | _ALWAYS
    starts = (TrainConfig(), RECIPES.get(config.recipe, TrainConfig()))
    for item in dataclasses.fields(TrainConfig):
        value = getattr(config, item.name)
        if item.name not in reads and all(value != getattr(start, item.name) for start in starts):
            raise UserError(
                f"{item.name} has no meaning for '{config.model}', which is fitted in stages and not by gradient "
                "descent on the whole network; leave it out."
            )
    if (config.devices or 1) > 1 or config.nodes > 1:
        raise UserError(f"'{config.model}' is fitted by one process; leave out devices and nodes.")


def device_of(config: TrainConfig, device: str | None = None) -> str:
    """Return the one device to compute on, the given one or what the settings say."""
    if device is not None:
        return device
    found = torch.cuda.is_available()
    if config.accelerator == "gpu" and not found:
        raise UserError("accelerator is gpu, but torch sees none; use --accelerator cpu.")
    return "cuda" if found and config.accelerator != "cpu" else "cpu"


def fit(config: TrainConfig, data: DataSet, model: PlainNetwork, folder: Path, device: str) -> None:
    """Fit a network in its run folder, or go on where that was stopped, and write what `abn train` writes.

    A run that is whole stays as it is. Ctrl-C ends with the exit status 130 and says how to go on.
    """
    stages = Stages(folder, device, config.workers)
    if (folder / "summary.json").exists():
        stages.clear()
        return
    model.to(device).eval()
    try:
        FITTERS[config.model.partition(":")[0]].fit(config, data, model, stages)
        fitted = stages.seconds()
        line = _figures(data, model, config)
    except KeyboardInterrupt:
        print(f"\nStopped. Continue with: abn train --resume {shlex.quote(str(folder))}", flush=True)
        raise SystemExit(130) from None
    assert data.train is not None
    seconds = stages.seconds()
    line |= {
        "images_per_second": round(len(data.train) / fitted, 2),
        "train_seconds": round(fitted, 3),
        "best": True,
        "seconds": round(seconds, 3),
    }
    for name in ("last", "model"):
        model.save_pretrained(folder / name)
    write_text(folder / "metrics.jsonl", json_line(line))
    summary = {key: value for key, value in line.items() if key.startswith("validation_")} | {
        "epochs": 1,
        "best_epoch": 0,
        "seconds": round(seconds, 1),
        "images_per_second": line["images_per_second"],
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "alarm": None,
        "seed": config.seed,
    }
    write_json(folder / "summary.json", summary)
    stages.clear()
    print(f"Fitted in {seconds:.0f} s: validation accuracy {line['validation_accuracy']:.1%}.", flush=True)


def _figures(data: DataSet, model: PlainNetwork, config: TrainConfig) -> dict[str, float]:
    """Return the line of metrics.jsonl as far as it is losses and accuracies."""
    assert data.train is not None
    assert data.validation is not None
    line: dict[str, float] = {"epoch": 0, "step": 0, "lr": 0.0}
    for split, images in (("train", some(data.train, LOOKED_AT, config.seed)), ("validation", data.validation)):
        tally = Tally()
        tally.reset(model.device)
        with torch.no_grad():
            for batch in make_loader(images, model.preprocessing, BATCH, train=False, workers=config.workers):
                output = model(batch["images"].to(model.device))
                targets = batch["targets"]
                targets = (
                    {head: values.to(model.device) for head, values in targets.items()}
                    if isinstance(targets, dict)
                    else targets.to(model.device)
                )
                tally.add(output, targets, abn_loss(output, targets))
        line |= {f"{split}_{name}": value for name, value in tally.read(False).items()}
    return line


def some(images: ImageSet, most: int, seed: int) -> ImageSet:
    """Return at most so many pictures of a split, drawn by the seed, in the order of the split."""
    if len(images) <= most:
        return images
    return images.subset(np.sort(np.random.default_rng(seed).permutation(len(images))[:most]))


def truths(images: ImageSet) -> np.ndarray:
    """Return 0, 1 or -1 (missing) for every picture and head, int64 (N, T)."""
    targets = images.targets
    return np.stack(list(targets.values()), axis=1) if isinstance(targets, dict) else targets[:, None]


def features_of(
    make: Callable[[Tensor], Tensor],
    images: ImageSet,
    model: PlainNetwork,
    stages: Stages,
    title: str,
    dtype: str = "float32",
) -> Iterator[np.ndarray]:
    """Yield the features (N, ...) that `make` returns for batches of normalised images on the device, as arrays."""
    loader = make_loader(images, model.preprocessing, BATCH, train=False, workers=stages.workers)
    with torch.no_grad():
        for batch in stages.through(loader, title, len(loader)):
            yield make(batch["images"].to(stages.device)).cpu().numpy().astype(dtype)
