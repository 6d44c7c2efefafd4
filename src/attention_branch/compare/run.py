"""`abn compare RUN DATA`: every method's maps of the same images, every metric of every map, and one page of it all."""

import os
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
import torch

from attention_branch.compare.collect import Collected, Work, collect
from attention_branch.compare.comparison import Comparison
from attention_branch.compare.cost import measure_costs
from attention_branch.compare.journal import Journal
from attention_branch.compare.measures import DEFAULT_METRICS, MEASURES
from attention_branch.compare.page import write_comparison_page
from attention_branch.compare.subset import Subset, open_subset
from attention_branch.errors import UserError, did_you_mean
from attention_branch.evaluation.run import output_folder
from attention_branch.explanations import METHODS
from attention_branch.explanations.methods import CONTROLS, LAYERED
from attention_branch.files import atomic_path, sha256, write_json
from attention_branch.hardware import processor
from attention_branch.models.saving import WEIGHTS, load_model, model_folder
from attention_branch.versions import versions

DEFAULT_METHODS = ("attention", "attention-class", "cam", "grad-cam", "grad-cam++")
DEFAULT_LIMIT = 200
JOURNAL = ".comparison.journal.jsonl"
_COST_IMAGES = 8


def compare_run(
    run: str | Path,
    data_spec: str | None = None,
    *,
    methods: Sequence[str] | None = None,
    metrics: Sequence[str] | None = None,
    limit: int | None = DEFAULT_LIMIT,
    target: str = "prediction",
    head: str | None = None,
    layer: str = "auto",
    output: str | Path | None = None,
    batch_size: int = 32,
    device: str = "cpu",
    seed: int = 0,
    progress: bool = True,
) -> Comparison:
    """Compare methods on a run, a saved network or a hub name; write comparison.json, values.npz and report.html.

    Without `data_spec` the run's own test split is used. `limit` images are drawn at random from `seed` (None or 0:
    all). The controls random, center and constant are always among the methods. `target` says whose probability is
    followed: the "prediction"'s or the "label"'s; images without a label are then left out. With several heads, `head`
    chooses one (default the first). Methods the network cannot do, and of the default metrics those the data cannot
    serve, are left out with the reason; `UserError` is raised where nothing but the controls is left, for an unknown
    name, and for a metric asked for by name that cannot be had. A broken call is continued by the same call.
    """
    wanted = _known(methods, METHODS, DEFAULT_METHODS, "method")
    asked = _known(metrics, MEASURES, DEFAULT_METRICS, "metric")
    if (limit is not None and limit < 0) or batch_size < 1:
        raise UserError(f"limit is {limit} and batch size {batch_size}; give numbers of images (limit 0: all of them).")
    if seed < 0:
        raise UserError(f"The seed is {seed}; give 0 or more.")
    if target not in ("prediction", "label"):
        raise UserError(f"Unknown target '{target}'; choose prediction or label.")
    home = output_folder(run, output, "comparison")
    folder = model_folder(run)
    model = load_model(folder, device=device)
    subset = open_subset(
        run, data_spec, model, limit=limit, seed=seed, head=head, labelled=target == "label", progress=progress
    )
    work = Work(model, subset, target=target, layer=layer, batch_size=batch_size, seed=seed)
    left_out: dict[str, dict[str, str]] = {"methods": {}, "metrics": {}}
    usable = _usable_methods(work, wanted, left_out["methods"])
    kept = _usable_metrics(subset, asked, left_out["metrics"], by_name=metrics is not None)
    record = {
        "model": str(run),
        "model_sha256": sha256(folder / WEIGHTS),
        **subset.record,
        "target": f"the {target}'s class",
        "layer": layer,
        "batch_size": batch_size,
        "noise": "seed + place of the batch's first image in the subset",
        "preprocessing": model.preprocessing.to_dict(),
        "versions": _versions(),
        "hardware": _hardware(device),
    }
    same = {key: value for key, value in record.items() if key != "model"}
    journal = Journal(home / JOURNAL, same | {"methods": usable, "metrics": kept})
    collected = collect(work, usable, kept, journal, progress=progress)
    notes = [*subset.notes, *([journal.note] if journal.note else [])]
    if journal.outdated:
        notes.append(
            f"{journal.outdated} pieces of a broken comparison in the folder were of other pixels, objects' places or "
            "classes under the same names; they were measured again."
        )
    comparison = Comparison(
        methods=usable,
        metrics=kept,
        results=collected.results(),
        answers=collected.answers(),
        likeness=collected.likeness,
        layers=collected.layers,
        costs=_costs(work, usable, collected),
        drive=collected.drive_result(),
        left_out=left_out,
        notes=notes,
        record=record | {"time": datetime.now(UTC).isoformat(timespec="seconds")},
        seed=seed,
        output=home,
    )
    write_json(home / "comparison.json", comparison.to_dict())
    with atomic_path(home / "values.npz") as temporary, temporary.open("wb") as file:
        np.savez_compressed(file, **comparison.arrays())  # type: ignore[arg-type]
    write_comparison_page(home / "report.html", work, comparison)
    journal.remove()
    return comparison


def _known(names: Sequence[str] | None, known: Iterable[str], default: Sequence[str], kind: str) -> list[str]:
    """Return the names, each once, or the default; `UserError` for one that does not exist and for none."""
    if names is None:
        return list(default)
    known = list(known)
    for name in names:
        if name not in known:
            near = did_you_mean(name, known)
            raise UserError(f"Unknown {kind} '{name}'.{near} {kind.capitalize()}s: {', '.join(known)}.")
    if not names:
        raise UserError(f"No {kind} is named; choose from {', '.join(known)}.")
    return list(dict.fromkeys(names))


def _usable_methods(work: Work, wanted: Sequence[str], left_out: dict[str, str]) -> list[str]:
    """Return the methods that this network can do, and the controls; reasons for the others go to `left_out`."""
    usable: list[str] = []
    first, of_layer = None, None
    for method in wanted:
        if method in CONTROLS:
            continue
        try:
            work.try_out(method)
        except UserError as problem:
            if work.layer != "auto" and method in LAYERED and _works(work, method):
                of_layer = of_layer or problem
            left_out[method] = str(problem)
            first = first or problem
            continue
        usable.append(method)
    if of_layer is not None and not any(method in LAYERED for method in usable):
        raise of_layer  # The layer that was named is at fault: no method can read it.
    if not usable and first is not None:
        raise first
    return usable + list(CONTROLS)


def _works(work: Work, method: str) -> bool:
    try:
        work.try_out(method, layer="auto")
    except UserError:
        return False
    return True


def _usable_metrics(subset: Subset, asked: Sequence[str], left_out: dict[str, str], *, by_name: bool) -> list[str]:
    needing = [name for name in asked if MEASURES[name].needs_regions]
    if not needing or subset.has_regions:
        return list(asked)
    if by_name:
        raise UserError(
            f"'{needing[0]}' needs the objects' places, and '{subset.record['data']}' has neither masks nor boxes; "
            "leave it out of the metrics."
        )
    for name in needing:
        left_out[name] = f"{MEASURES[name].title}: the data has neither masks nor boxes."
    return [name for name in asked if name not in needing]


def _costs(work: Work, methods: Sequence[str], collected: Collected) -> Any:
    batch = work.batch(0)
    images = batch.images[:_COST_IMAGES]
    target = work.subset.target(collected.target[: len(images)].to(images.device))
    return measure_costs(work.model, images, methods, target=target, layer=work.layer, seed=work.seed)


def _versions() -> dict[str, str]:
    found = versions()
    for name in ("numpy", "scipy", "captum"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def _hardware(device: str) -> dict[str, Any]:
    found: dict[str, Any] = {"device": device, "processor": processor(), "cores": os.cpu_count()}
    if torch.device(device).type == "cuda":
        found["gpu"] = torch.cuda.get_device_name(device)
    return found
