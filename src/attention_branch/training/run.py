"""A training run from its settings to its folder.

One process, on the GPU if there is one, else on the CPU:

    abn train photos/ --model resnet50 --recipe finetune

All GPUs of this machine, or four of them; two processes on the CPU:

    abn train photos/ --model resnet50 --recipe imagenet
    abn train photos/ --model resnet50 --recipe imagenet --devices 4
    abn train photos/ --model resnet50 --recipe imagenet --accelerator cpu --devices 2

Two nodes of eight GPUs, the same line on each; under SLURM Lightning reads the ranks from srun's environment:

    torchrun --nnodes 2 --nproc-per-node 8 --rdzv-backend c10d --rdzv-endpoint HOST:29500 \\
        $(which abn) train photos/ --recipe imagenet --out runs/two-nodes
    srun --nodes 2 --ntasks-per-node 8 --gpus-per-node 8 \\
        abn train photos/ --recipe imagenet --devices 8 --nodes 2 --out runs/two-nodes

Continue after a stop of any kind: abn train --resume runs/two-nodes
"""

import importlib.util
import inspect
import logging
import os
import shlex
import signal
import sys
import warnings
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import torch
from lightning.fabric.utilities.warnings import PossibleUserWarning
from lightning.pytorch.callbacks import TQDMProgressBar
from lightning.pytorch.strategies import DDPStrategy
from torch.nn.parallel import DistributedDataParallel

from attention_branch.data import DataSet, ImageLoader, make_loader, open_data
from attention_branch.data.opening import run_name
from attention_branch.errors import UserError
from attention_branch.models import PlainNetwork
from attention_branch.training.annotated import START, Lesson, MapTeacher, open_lesson
from attention_branch.training.arguments import read_run
from attention_branch.training.building import Trainable, make_model
from attention_branch.training.checkpoints import CheckpointFiles
from attention_branch.training.config import TrainConfig, check_resume, check_settings
from attention_branch.training.fitted import FITTERS, check_fitted, device_of, fit, is_fitted
from attention_branch.training.guided import check_guide
from attention_branch.training.journal import CHECKPOINT, Journal, read_metrics
from attention_branch.training.module import Classifier
from attention_branch.training.normalization import synchronize_batchnorm
from attention_branch.training.run_record import announce, summarize, write_config


class EpochBatches:
    """The training loader, told the epoch each time it is started, and cut to whole optimiser steps."""

    def __init__(self, loader: ImageLoader, accumulate: int) -> None:
        self.loader, self.accumulate = loader, accumulate
        self.trainer: L.Trainer | None = None

    def __len__(self) -> int:
        return len(self.loader) // self.accumulate * self.accumulate

    def __iter__(self) -> Iterator[Any]:
        # Lightning starts the first epoch's iteration before it sets the epoch of samplers, after a resume as well.
        assert self.trainer is not None
        self.loader.set_epoch(self.trainer.fit_loop.epoch_progress.current.processed)
        return islice(iter(self.loader), len(self))


def train(
    config: TrainConfig,
    *,
    data: DataSet | None = None,
    device: str | None = None,
    callbacks: Sequence[L.Callback] = (),
) -> Path:
    """Train as `config` says and return the run folder; see the package's `train`."""
    check_settings(config)
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.WARNING)
    first = _rank() == 0
    folder = Path(config.resume) if config.resume else Path(config.out) if config.out else _free_folder(config)
    previous = _previous(config, folder)
    data = data or open_data(config.data, seed=config.seed)
    _check_data(config, data, previous)
    torch.manual_seed(config.seed)
    if is_fitted(config.model):
        return _fit_in_stages(config, data, folder, previous, device)
    lesson = open_lesson(config, data, folder, previous)
    model = make_model(config, data) if lesson is None else lesson.model
    check_guide(config, model)
    trainer, world = make_trainer(config, folder, device)
    _check_processes(config, data, world)
    loaders = make_loaders(config, data, model, trainer, lesson)
    batches = EpochBatches(loaders[0], config.accumulate)
    batches.trainer = trainer
    journal = Journal(folder, data, config.maps, config.tensorboard)
    trainer.callbacks += [*callbacks, journal]
    if first:
        announce(config, data, model, folder, world)
        write_config(config, folder, data, model, previous, lesson.record if lesson else None)
        if lesson:
            print(lesson.sentence(), flush=True)
            lesson.start.save_pretrained(folder / START)
    on_gpu = trainer.strategy.root_device.type == "cuda"
    if world > 1 and config.sync_batchnorm:
        synchronize_batchnorm(model, on_gpu)
    train_set = lesson.train if lesson else data.train
    targets = train_set.targets if train_set else {}
    columns = targets.values() if isinstance(targets, dict) else [targets]
    missing = any(bool((np.asarray(column) < 0).any()) for column in columns)
    module = Classifier(
        model.to(memory_format=torch.channels_last),
        config,
        len(batches) // config.accumulate,
        gather=world > 1 and missing,
        teacher=MapTeacher(lesson.start, weight=config.map_weight, keep=config.keep_weight) if lesson else None,
    )
    checkpoint = folder / CHECKPOINT
    _fit(trainer, module, batches, loaders[1], checkpoint if config.resume and checkpoint.exists() else None, journal)
    if first:
        summarize(folder, model, config)
    return folder


def _fit_in_stages(
    config: TrainConfig, data: DataSet, folder: Path, previous: dict[str, Any] | None, device: str | None
) -> Path:
    """Fit a system that Lightning does not train, in the same kind of run folder; one process does it."""
    check_fitted(config)
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise UserError(f"'{config.model}' is fitted by one process; start it without torchrun.")
    chosen = device_of(config, device)
    model = make_model(config, data)
    assert isinstance(model, PlainNetwork)
    check = FITTERS[config.model.partition(":")[0]].check
    if check is not None:
        check(config, data, model)
    announce(config, data, model, folder, 1)
    write_config(config, folder, data, model, previous)
    fit(config, data, model, folder, chosen)
    return folder


def _rank() -> int:
    """Return this process's number as far as the environment tells before processes have met."""
    for name in ("RANK", "SLURM_PROCID", "LOCAL_RANK"):
        if os.environ.get(name, "").isdigit():
            return int(os.environ[name])
    return 0


def _free_folder(config: TrainConfig) -> Path:
    name = f"{Path(config.start).name}-corrected" if config.start else f"{config.model}-{run_name(config.data)}"
    name = "".join(letter if letter.isalnum() or letter in "-_." else "-" for letter in name)
    folder, number = Path("runs") / name, 1
    while folder.exists() and _rank() == 0:
        number += 1
        folder = Path("runs") / f"{name}-{number}"
    return folder


def _previous(config: TrainConfig, folder: Path) -> dict[str, Any] | None:
    """Return the config.json of the run to continue; None for a new run, whose folder must be free."""
    if config.resume:
        previous = read_run(folder)
        check_resume(config, previous["settings"])
        return previous
    if _rank() == 0 and folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        if (folder / "config.json").exists():
            done = len(read_metrics(folder))
            raise UserError(
                f"'{folder}' already holds a run of {done} epochs; continue it with --resume {folder}, or choose "
                "another --out."
            )
        raise UserError(f"'{folder}' exists and is not an empty folder; choose another --out.")
    return None


def _check_data(config: TrainConfig, data: DataSet, previous: dict[str, Any] | None) -> None:
    if not data.train:
        raise UserError(f"'{config.data}' has no training images; add a train split.")
    if not data.validation:
        raise UserError(
            f"'{config.data}' has no validation images to choose the best epoch by; add a validation split."
        )
    # Fewer images than one batch make one batch, unless it is to be cut into pieces.
    if config.batch_size > len(data.train) and config.accumulate > 1:
        raise UserError(
            f"batch_size is {config.batch_size}, more than the {len(data.train)} training images of '{config.data}'; "
            f"use --batch-size {max(1, len(data.train) // 4)}, for instance."
        )
    if previous and previous.get("data", {}).get("fingerprint") != data.record()["fingerprint"]:
        raise UserError(
            f"'{config.data}' no longer holds the images that '{config.resume}' was trained on; restore them, or "
            "start a new run."
        )
    if config.tensorboard and importlib.util.find_spec("tensorboard") is None:
        raise UserError("tensorboard is not installed; pip install 'attention-branch[tensorboard]', or leave it out.")


def make_trainer(config: TrainConfig, folder: Path, device: str | None = None) -> tuple[L.Trainer, int]:
    """Return Lightning's trainer and how many processes there are; `device` is the only one where it is named."""
    if device is not None:
        alone = torch.device(device)
        chosen: list[int] | int = 1 if alone.type == "cpu" else [alone.index or 0]
        accelerator = "cpu" if alone.type == "cpu" else "gpu"
        return _lightning(config, folder, accelerator, chosen, 1, "auto"), 1
    launched = int(os.environ.get("LOCAL_WORLD_SIZE", 0))  # set by torchrun
    nodes = int(os.environ["WORLD_SIZE"]) // launched if launched and "WORLD_SIZE" in os.environ else config.nodes
    devices: int | str = config.devices or launched or "auto"
    if launched and config.devices and config.devices != launched:
        raise UserError(f"devices is {config.devices}, but torchrun started {launched} processes a node; leave it out.")
    gpus = torch.cuda.device_count()
    if config.accelerator == "gpu" and not gpus and not torch.backends.mps.is_available():
        raise UserError(
            "accelerator is gpu, but torch sees none; use --accelerator cpu, or install a torch for your GPU."
        )
    if config.accelerator != "cpu" and gpus and isinstance(devices, int) and devices > gpus:
        raise UserError(f"devices is {devices}, but there are {gpus} GPUs; use --devices {gpus}, or --accelerator cpu.")
    if devices == "auto" and config.accelerator == "cpu":
        devices = 1
    on_gpu = config.accelerator != "cpu" and gpus > 0
    many = nodes > 1 or (isinstance(devices, int) and devices > 1) or (devices == "auto" and on_gpu and gpus > 1)
    trainer = _lightning(config, folder, config.accelerator, devices, nodes, _ddp(config) if many else "auto")
    return trainer, trainer.world_size


def _lightning(
    config: TrainConfig, folder: Path, accelerator: str, devices: list[int] | int | str, nodes: int, strategy: Any
) -> L.Trainer:
    bar = [TQDMProgressBar(refresh_rate=10)] if sys.stderr.isatty() else []
    return L.Trainer(
        max_epochs=config.epochs,
        accelerator=accelerator,
        devices=devices,
        num_nodes=nodes,
        strategy=strategy,
        precision="bf16-mixed" if config.precision == "bf16" else "32-true",
        accumulate_grad_batches=config.accumulate,
        gradient_clip_val=config.gradient_clip,
        callbacks=list(bar),
        plugins=[CheckpointFiles()],
        default_root_dir=folder,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=bool(bar),
        enable_model_summary=False,
        num_sanity_val_steps=0,
        use_distributed_sampler=False,
        benchmark=accelerator != "cpu" and torch.cuda.device_count() > 0,
    )


def _ddp(config: TrainConfig) -> DDPStrategy:
    # Batch norms are kept equal by us, so that evaluating uneven shares of the images needs no meeting of processes.
    # torch 2.11 knows the switch by its older name.
    known = inspect.signature(DistributedDataParallel).parameters
    buffers = "forward_sync_buffers" if "forward_sync_buffers" in known else "broadcast_buffers"
    # The mechanism `none` and a constant map leave the map's weights without a gradient. A static graph allows that at
    # no cost, but it does not go together with accumulation (an assertion in torch's reducer).
    static = config.accumulate == 1
    unused = not config.baseline and (config.mechanism == "none" or config.map_control == "constant")
    return DDPStrategy(
        static_graph=static,
        find_unused_parameters=not static and unused,
        gradient_as_bucket_view=True,
        **{buffers: False},
    )


def _check_processes(config: TrainConfig, data: DataSet, world: int) -> None:
    if config.batch_size % (world * config.accumulate):
        whole = world * config.accumulate
        raise UserError(
            f"batch_size {config.batch_size} does not divide among {world} processes and {config.accumulate} pieces; "
            f"use a multiple of {whole}, such as {max(1, round(config.batch_size / whole)) * whole}."
        )
    if data.validation and len(data.validation) < world:
        raise UserError(
            f"{len(data.validation)} validation images are too few for {world} processes; use fewer devices."
        )


def make_loaders(
    config: TrainConfig, data: DataSet, model: Trainable, trainer: L.Trainer, lesson: Lesson | None = None
) -> tuple[ImageLoader, ImageLoader]:
    """Return the batches of training and of validation."""
    assert data.train is not None
    assert data.validation is not None
    validation = data.validation
    if config.map_control == "shuffled":
        # Another image's map must be one of any class, whatever the order of the split.
        validation = validation.subset(np.random.default_rng(0).permutation(len(validation)))
    piece = config.batch_size // config.accumulate
    shared: dict[str, Any] = {
        "workers": config.workers,
        "seed": config.seed,
        "num_replicas": trainer.world_size,
        "rank": trainer.global_rank,
        "normalized": False,
    }
    return (
        make_loader(
            lesson.train if lesson else data.train,
            model.preprocessing,
            piece,
            train=True,
            augment=config.augment,
            maps=lesson.maps if lesson else None,
            annotated_share=config.annotated_share,
            **shared,
        ),
        make_loader(validation, model.preprocessing, piece, train=False, **shared),
    )


def _fit(
    trainer: L.Trainer, module: Classifier, batches: Any, validation: Any, checkpoint: Path | None, journal: Journal
) -> None:
    try:
        fit_network(trainer, module, batches, validation, checkpoint)
    except SystemExit:
        if not journal.interrupted:
            raise
        if trainer.is_global_zero:
            print(f"\nStopped. Continue with: abn train --resume {shlex.quote(str(journal.folder))}", flush=True)
        raise SystemExit(130) from None


def fit_network(trainer: L.Trainer, module: Classifier, batches: Any, validation: Any, checkpoint: Path | None) -> None:
    """Let Lightning train, from a checkpoint where there is one; Ctrl-C ends it with SystemExit."""
    torch.set_float32_matmul_precision("high")
    previous = signal.getsignal(signal.SIGINT)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", PossibleUserWarning)
            warnings.filterwarnings("ignore", "`isinstance.treespec, LeafSpec")
            trainer.fit(module, batches, validation, ckpt_path=checkpoint, weights_only=True)
    finally:
        signal.signal(signal.SIGINT, previous)
