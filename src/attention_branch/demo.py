"""`abn demo`: the whole path on the embedded digits, from training to a page that shows where the network looked."""

import dataclasses
import shutil
import time
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from attention_branch.data import make_loader, open_data
from attention_branch.errors import UserError
from attention_branch.evaluation import Evaluation, evaluate
from attention_branch.files import write_json
from attention_branch.metrics.drive import map_drive
from attention_branch.metrics.drive_result import REPLACED
from attention_branch.models import load_model
from attention_branch.report import Bar, TableBlock, explain_files, write_evaluation_report
from attention_branch.training import TrainConfig, recipe, train

_MAPS = {"attention": "pointing", "center": "pointing_center", "random": "pointing_random"}
_EXPLAINED = 12
# The demo is to take three minutes, of which the imports take some ten seconds and the report about as much.
_SECONDS = 165.0


def run_demo(
    out: str | Path, *, seed: int = 0, control: bool | None = None, console: Console | None = None
) -> dict[str, Any]:
    """Train an ABN on `digits` (and a control), measure on the test split, and write pictures and report.html.

    The control is the same network with mechanism "none": its branch is trained, its map is not applied; with None it
    is trained if it will fit into three minutes. Returns what summary.json holds: `accuracy`, `attention_accuracy`,
    `pointing`, `pointing_center`, `pointing_random`, `replaced` (the accuracy with other maps in place of the network's
    own), `map_drive` (what that says), `seconds`, and the same of the control under `controls`. Raises `UserError` if
    `out` holds something that is no demo.
    """
    console = console or Console()
    began = time.perf_counter()
    out = Path(out)
    clear_demo(out)
    config = recipe("digits", out=str(out), seed=seed)
    if has_fast_bfloat16():
        config = dataclasses.replace(config, precision="bf16")
    test = open_data(config.data, seed=seed).test
    assert test is not None

    summary, evaluation = _train_and_measure(config, test)
    network = load_model(out)
    drive = map_drive(network, make_loader(test, network.preprocessing, 250, train=False, workers=0), seed=seed)
    summary["replaced"] = {name: drive.accuracy(name).mean for name in REPLACED}
    summary["replaced_interval"] = {name: drive.accuracy(name).interval for name in REPLACED}
    summary["map_drive"] = drive.sentence()
    controls: dict[str, Evaluation] = {}
    spent = time.perf_counter() - began
    if control is None:
        control = spent + summary["seconds"] <= _SECONDS
        if not control:
            console.print(
                f"Left out the control, to stay within three minutes: its training would take about as long again as "
                f"the first ({summary['seconds']:.0f} s). `abn demo --control yes` trains it in any case.",
                soft_wrap=True,
            )
    if control:
        settings = dataclasses.replace(config, mechanism="none", out=str(out / "control-none"), maps=0)
        found, controls["none"] = _train_and_measure(settings, test)
        summary["controls"] = {"none": found}

    write_json(out / "evaluation-test.json", evaluation.to_dict())
    model = load_model(out)
    write_evaluation_report(
        out / "report.html",
        model,
        test,
        evaluation,
        title="Handwritten digits in photos: where the network looked",
        controls={f"mechanism {name}": found for name, found in controls.items()},
        extra=[_replaced_table(summary)],
        facts={"Network": f"{config.model}, branch {config.branch}, mechanism {config.mechanism}", "Seed": seed},
    )
    _explain_some(out, test)
    summary["seconds"] = round(time.perf_counter() - began, 1)
    write_json(out / "summary.json", summary)
    _print(console, out, summary, len(test))
    return summary


def clear_demo(out: Path) -> None:
    """Remove an earlier demo; a `UserError` if the folder holds something else."""
    if not out.exists():
        return
    demo = (out / "summary.json").exists() or (out / "config.json").exists()
    if not out.is_dir() or (any(out.iterdir()) and not demo):
        raise UserError(f"'{out}' holds something that is not a demo; choose another folder with --out.")
    shutil.rmtree(out)


def has_fast_bfloat16() -> bool:
    """Tell whether bfloat16 is computed by the processor itself rather than imitated."""
    return torch.cuda.is_available() or torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()


def _train_and_measure(config: TrainConfig, test: Any) -> tuple[dict[str, Any], Evaluation]:
    began = time.perf_counter()
    run = train(config)
    trained = time.perf_counter() - began
    evaluation = evaluate(load_model(run), test, batch_size=250)
    summary: dict[str, Any] = {
        "mechanism": config.mechanism,
        "accuracy": evaluation.accuracy,
        "attention_accuracy": evaluation.attention_accuracy,
    }
    for name, key in _MAPS.items():
        summary[key] = evaluation.pointing[name].mean
        summary[f"{key}_interval"] = evaluation.pointing[name].interval
    return summary | {"seconds": round(trained, 1)}, evaluation


def _explain_some(out: Path, test: Any) -> None:
    """Write the first test images as files and explain them as a user's own would be."""
    folder = out / "images"
    folder.mkdir(exist_ok=True)
    for index in range(_EXPLAINED):
        sample = test[index]
        sample.image.save(folder / f"{index:02d}-digit-{sample.target}.png")
    explain_files(out, [folder], out / "explained", progress=False)


def _replaced_table(summary: dict[str, Any]) -> TableBlock:
    rows = [("the network's own map", summary["accuracy"], None)]
    intervals = summary["replaced_interval"]
    rows += [(REPLACED[name], accuracy, intervals[name]) for name, accuracy in summary["replaced"].items()]
    return TableBlock(
        "What if it had looked elsewhere?",
        ("map", "accuracy", ""),
        [[name, f"{100 * accuracy:.1f} %", Bar(accuracy, interval)] for name, accuracy, interval in rows],
        text="The same weights, the same images, another map in the place of the network's own. "
        + summary["map_drive"],
        strong=frozenset({0}),
    )


def _print(console: Console, out: Path, summary: dict[str, Any], count: int) -> None:
    table = Table(title=f"{count} test images", title_justify="left")
    for heading in ("network", "accuracy", "attention branch", "map on the digit"):
        table.add_column(heading, justify="left" if heading == "network" else "right")
    for label, found in {f"attention ({summary['mechanism']})": summary, **summary.get("controls", {})}.items():
        named = label if found is summary else f"control ({label}: map not applied)"
        cells = (found["accuracy"], found["attention_accuracy"], found["pointing"])
        table.add_row(named, *(f"{100 * cell:.1f} %" for cell in cells))
        for name, accuracy in found.get("replaced", {}).items():
            table.add_row(f"  with {REPLACED[name]}", f"{100 * accuracy:.1f} %", "", "")
    table.add_row("centred Gaussian", "", "", f"{100 * summary['pointing_center']:.1f} %")
    table.add_row("random map", "", "", f"{100 * summary['pointing_random']:.1f} %")
    console.print(table)
    console.print(summary["map_drive"], soft_wrap=True)
    console.print(
        "map on the digit: share of images whose map has its maximum within 15/224 of the side of the digit's pixels"
    )
    console.print(f"{summary['seconds']:.0f} s in all. Open {out / 'report.html'}", soft_wrap=True)
