"""How long runs will take on this machine, from steps that are measured, one network at a time."""

import dataclasses
import time

import numpy as np
import torch

from attention_branch.data import DataSet
from attention_branch.data.resident import ResidentImages
from attention_branch.models.cost import cost
from attention_branch.reproduce.arrays import Arrays
from attention_branch.reproduce.plan import Job
from attention_branch.training.building import make_model
from attention_branch.training.fast import FastTrainer

_BATCH = 16
_STEPS = 2


def estimate(jobs: list[Job], arrays: dict[str, Arrays]) -> float:
    """Return the seconds all jobs take one after the other on the CPU, with one thread.

    A step of 16 pictures is timed for the cheapest arm of each network; the other arms are taken to be slower as they
    have more multiply-adds, and an evaluated picture to cost a third of a trained one.
    """
    total = 0.0
    measured: dict[tuple[str, str], tuple[float, int]] = {}
    counted: dict[tuple[str, str, str], int] = {}
    for job in jobs:
        data = arrays[job.origin.name].described(job.origin.spec)
        key = (job.origin.name, job.cell.network, job.cell.arm)
        if key not in counted:
            counted[key] = cost(make_model(job.config, data)).multiply_adds
        if key[:2] not in measured:
            measured[key[:2]] = (_seconds_per_image(job, data), counted[key])
        seconds, multiply_adds = measured[key[:2]]
        images = job.data["images"]
        trained = job.protocol.train_images or images["train"]
        seen = trained + (images["validation"] + images["test"]) / 3
        total += seconds * counted[key] / multiply_adds * seen * job.config.epochs
    return total


def estimate_large(jobs: list[Job]) -> float:
    """Return the same for runs on large pictures, which take all cores one after the other."""
    total = 0.0
    measured: dict[str, float] = {}
    for job in jobs:
        if job.cell.name not in measured:
            tasks = {head: ("0", "1", *map(str, range(2, size))) for head, size in job.size.get("heads", {}).items()}
            tasks = tasks or {"label": tuple(map(str, range(job.size["num_classes"])))}
            data = DataSet(spec="", seed=0, tasks=tasks, multitask="heads" in job.size)
            measured[job.cell.name] = _seconds_per_image(job, data, threads=torch.get_num_threads(), batch=2)
        images = job.data["images"]
        seen = images["train"] + images.get("validation", 0) / 3
        total += measured[job.cell.name] * (seen * job.config.epochs + images.get("test", 0) / 3)
    return total


def _seconds_per_image(job: Job, data: DataSet, *, threads: int = 1, batch: int = _BATCH) -> float:
    """Time a few steps."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        config = dataclasses.replace(
            job.config, batch_size=batch, pretrained=False, mixup=0.0, cutmix=0.0, augment="none", compile=False
        )
        model = make_model(config, data)
        height, width = model.preprocessing.size
        pixels = np.zeros((batch * (_STEPS + 1), height, width, 3), dtype=np.uint8)
        columns = len(model.heads) if model.heads else None
        targets = np.zeros((len(pixels), columns) if columns else len(pixels), dtype=np.int64)
        trainer = FastTrainer(config, model, ResidentImages(pixels, targets))
        trainer.advance(1)
        began = time.perf_counter()
        trainer.advance(_STEPS)
        return (time.perf_counter() - began) / (batch * _STEPS)
    finally:
        torch.set_num_threads(before)
