"""The record of one run: a JSON file that says what was run, on what, and what came out."""

import base64
import json
import os
import platform
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch

from attention_branch.errors import UserError
from attention_branch.files import write_text
from attention_branch.hardware import processor
from attention_branch.reproduce.plan import Job, kept_settings
from attention_branch.training import TrainConfig

FORMAT = 1
FINISHED = "finished"

# What is read of a record, by its name: the entries of an object, none of a plain value.
_FIELDS: dict[str, tuple[str, ...]] = {
    "status": (),
    "seed": (),
    "cell": ("network", "role", "arm"),
    "protocol": ("name", "recipe", "shortened", "train_images"),
    "settings": ("epochs", "precision"),
    "data": ("title", "stands_for", "images"),
}
_FINISHED_FIELDS: dict[str, tuple[str, ...]] = {
    "last": ("test_error",),
    "best_on_validation": ("test_error",),
    "cost": ("parameters", "multiply_adds"),
    "hardware": ("device",),
    "versions": ("torch",),
}


def begin(job: Job) -> dict[str, Any]:
    """Return the record of a run that has not begun."""
    return {
        "format": FORMAT,
        "status": "unfinished",
        "cell": {"network": job.cell.network, "role": job.cell.role, "arm": job.cell.arm},
        "protocol": {
            "name": job.protocol.name,
            "recipe": job.config.recipe,
            "shortened": job.protocol.shortened,
            "train_images": job.protocol.train_images,
        },
        "seed": job.config.seed,
        "settings": kept_settings(job.config),
        "data": job.data,
        "epochs_done": 0,
        "curves": {},
    }


def surroundings(device: str, threads: int, at_once: int = 1) -> dict[str, Any]:
    """Return hardware and versions, without names of machines or paths; `at_once` runs at most shared the machine."""
    hardware: dict[str, Any] = {"device": device, "cores": os.cpu_count(), "processor": processor()}
    hardware["runs_at_once"] = at_once
    if device.startswith("cuda"):
        hardware["gpu"] = torch.cuda.get_device_name(device)
    else:
        hardware["threads"] = threads
    names = ("attention-branch", "torch", "torchvision", "timm", "numpy")
    return {
        "hardware": hardware,
        "versions": {name: version(name) for name in names} | {"python": platform.python_version()},
    }


def read(path: Path) -> dict[str, Any] | None:
    """Return a record, None where there is none; `UserError` for a damaged file."""
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (ValueError, OSError) as problem:
        raise UserError(
            f"'{path}' cannot be read ({problem}); remove it, and the run begins anew, or goes on from the .ckpt "
            "beside it with --resume."
        ) from problem
    if not isinstance(record, dict) or record.get("format") != FORMAT:
        raise UserError(f"'{path}' is no record of this version's runs; move it away.")
    wanted = _FIELDS | (_FINISHED_FIELDS if record.get("status") == FINISHED else {})
    for name, inner in wanted.items():
        value = record.get(name)
        whole = isinstance(value, dict) and set(inner) <= set(value) if inner else value is not None
        if not whole:
            raise UserError(f"'{path}' is damaged: its '{name}' is missing or not whole; move it away.")
    return record


def check_same(job: Job, record: dict[str, Any]) -> None:
    """Raise a `UserError` when a record is of other settings or other data than the run that would continue it."""
    way_out = "name another folder with --out, or remove it and the .ckpt beside it"
    wanted = begin(job)
    if record["data"].get("fingerprint") != job.data["fingerprint"]:
        raise UserError(f"'{job.record}' was run on other images than those '{job.origin.name}' holds now; {way_out}.")
    # A setting that did not exist when the record was written had its default.
    defaults = kept_settings(TrainConfig())
    theirs, ours = (json.loads(json.dumps(defaults | values)) for values in (record["settings"], wanted["settings"]))
    for name in sorted(theirs):
        if theirs[name] != ours.get(name):
            if name == "precision":
                way_out = f"give --precision {theirs[name]} as there, or {way_out}"
            raise UserError(
                f"'{job.record}' is a run of another configuration: {name} is {theirs[name]} there and "
                f"{ours.get(name)} here; {way_out}."
            )


def write(path: Path, record: dict[str, Any]) -> None:
    """Write a record whole or not at all, one line a key: curves of 300 epochs would fill pages otherwise."""
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = [f"{json.dumps(key)}: {json.dumps(value, allow_nan=False)}" for key, value in record.items()]
    write_text(path, "{\n" + ",\n".join(lines) + "\n}\n")


def write_unfinished(path: Path, record: dict[str, Any]) -> None:
    """Write the record of a run under way, but not over a finished one, which counts until the new run has finished."""
    if not is_finished(read(path)):
        write(path, record)


def pack(right: np.ndarray) -> dict[str, Any]:
    """Return bools of any shape as base64 of packed bits, with the shape."""
    bits = np.packbits(right.astype(bool).ravel())
    return {"shape": list(right.shape), "bits": base64.b64encode(bits.tobytes()).decode("ascii")}


def unpack(packed: dict[str, Any]) -> np.ndarray:
    """Return the bools of `pack`."""
    shape = tuple(packed["shape"])
    bits = np.frombuffer(base64.b64decode(packed["bits"]), dtype=np.uint8)
    return np.unpackbits(bits, count=int(np.prod(shape))).astype(bool).reshape(shape)


def is_finished(record: dict[str, Any] | None) -> bool:
    """Tell whether a record counts: only runs that reached their last epoch do."""
    return record is not None and record["status"] == FINISHED
