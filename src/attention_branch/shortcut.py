"""`abn demo --shortcut`: a network that is led astray by a small mark, and a report that finds out by itself.

The search (`attention_branch.evaluation.find_shortcut`) gets the network, images and the digits' masks. Where the mark
is enters only afterwards, when the findings, the maps and the accuracy are held against the truth.
"""

import dataclasses
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

from attention_branch.data import ImageSet, open_data
from attention_branch.data.digits import DigitSource
from attention_branch.data.marks import TELLS
from attention_branch.demo import clear_demo, has_fast_bfloat16
from attention_branch.evaluation import Evaluation, evaluate
from attention_branch.evaluation.run import random_subset
from attention_branch.evaluation.shortcut_finding import Share, ShortcutSearch
from attention_branch.evaluation.shortcuts import find_shortcut
from attention_branch.evaluation.wording import interval_text, percent
from attention_branch.explanations import METHODS, explain
from attention_branch.explanations.controls import CONTROLS
from attention_branch.files import write_json
from attention_branch.metrics import EnergyPointingGame, MetricResult, PointingGame
from attention_branch.metrics.statistics import bootstrap_interval
from attention_branch.models import load_model
from attention_branch.progress import progress_bar
from attention_branch.report import Bar, Facts, Figure, TableBlock, write_shortcut_report
from attention_branch.report.shortcut_page import search_figures
from attention_branch.training import recipe, train

COMPARED = ("attention", "attention-class", "cam", "grad-cam", "grad-cam++", "random", "center")
"""The methods whose maps are held against the mark."""

_SAYS = {"class": "the class, as in training", "random": "nothing of the class", "none": "nothing: there is no mark"}
_SEARCHED, _POINTED = 150, 500


def run_shortcut_demo(
    out: str | Path, *, mark: str = "colour", seed: int = 0, console: Console | None = None
) -> dict[str, Any]:
    """Train the demo's network on digits whose mark gives the class away, search for the shortcut, and write a report.

    `mark` is what codes the class, "position" or "colour". Returns what summary.json holds: `accuracy` on the test
    digits by what the mark says (class, random, none), the `drop` from class to random with its interval, `search`
    (what was found without the mark's place), `patch_on_mark` (how often that was the mark), and for each of the
    `methods` its share of maps that point at the mark and at the digit, and the mass on the mark. Raises `UserError`
    if `out` holds something that is no demo.
    """
    console = console or Console()
    began = time.perf_counter()
    out = Path(out)
    clear_demo(out)
    config = recipe("digits", out=str(out), seed=seed)
    config = dataclasses.replace(config, data=_with(config.data, f"mark={mark}"))
    if has_fast_bfloat16():
        config = dataclasses.replace(config, precision="bf16")
    train(config)
    model = load_model(out)
    trained = time.perf_counter() - began

    tests = {tells: _split(f"{config.data},test-mark={tells}", seed, "test") for tells in TELLS}
    evaluations = {tells: evaluate(model, images, batch_size=250) for tells, images in tests.items()}
    searched = random_subset(_split(config.data, seed, "validation"), _SEARCHED, seed)
    images, digits = _batch(model, searched)
    with progress_bar() as bar:
        bar.disable = not console.is_terminal
        search = find_shortcut(model, images, digits, batch_size=250, seed=seed, progress=bar)
    methods = _against_the_mark(model, random_subset(tests["class"], _POINTED, seed), seed)

    summary = _summary(mark, evaluations, search, methods) | {
        "patch_on_mark": _patch_on_mark(search, searched).to_dict(),
        "seconds_of_training": round(trained, 1),
        "seconds": round(time.perf_counter() - began, 1),
    }
    maps = explain(model, images)
    facts = {
        "network": f"{config.model}, branch {config.branch}, mechanism {config.mechanism}",
        "data": config.data,
        "seed": seed,
        "searched": f"{search.n} images of the validation split, whose mark gives the class away as in training",
        "maps held against the mark": f"{_POINTED} test images at most, drawn at random, mark as in training",
    }
    write_shortcut_report(
        out / "report.html",
        search,
        maps,
        summary=_lead(search, summary),
        figures=_figures(search, summary, methods),
        extra=[_accuracy_table(evaluations, summary), _methods_table(methods, summary)],
        facts=[Facts("The demonstration", [(name, str(value)) for name, value in facts.items()])],
        seed=seed,
    )
    write_json(out / "summary.json", summary)
    _print(console, out, search, summary, methods)
    return summary


def _with(spec: str, option: str) -> str:
    return f"{spec}{',' if ':' in spec else ':'}{option}"


def _split(spec: str, seed: int, split: str) -> ImageSet:
    return open_data(spec, seed=seed).splits[split]


def _batch(model: Any, images: ImageSet) -> tuple[Tensor, np.ndarray]:
    """Return a set's images as the network takes them, (N, 3, H, W), and the digits' masks (N, H, W)."""
    samples = list(images)
    regions = [sample.region(model.preprocessing) for sample in samples]
    assert all(region is not None for region in regions)
    return torch.stack([model.preprocessing.tensor(sample.image) for sample in samples]), np.array(regions)


def _against_the_mark(model: Any, images: ImageSet, seed: int) -> dict[str, dict[str, MetricResult]]:
    """Hold each method's maps against the mark's mask and the digit's; nothing else is told where the mark is."""
    batch, digits = _batch(model, images)
    marks = _marks(images)
    found = {}
    for method in (name for name in COMPARED if name in METHODS):
        games = {
            "at_mark": (PointingGame(seed=seed), marks),
            "at_digit": (PointingGame(seed=seed), digits),
            "mass_on_mark": (EnergyPointingGame(seed=seed), marks),
        }
        for start in range(0, len(batch), 100):
            part = slice(start, start + 100)
            maps = explain(model, batch[part], method, seed=seed + start).maps
            for game, masks in games.values():
                game.update(model, batch[part], maps, regions=masks[part])
        found[method] = {name: game.compute() for name, (game, _) in games.items()}
    return found


def _patch_on_mark(search: ShortcutSearch, images: ImageSet) -> Share:
    """Count the images whose patch, as the search found it, covers at least half of the mark."""
    marks = _marks(images)
    covered = [
        marks[int(place), y0:y1, x0:x1].sum() >= marks[int(place)].sum() / 2
        for place, (x0, y0, x1, y1) in zip(search.index, search.patches.tolist(), strict=True)
    ]
    return Share(int(sum(covered)), len(covered))


def _marks(images: ImageSet) -> np.ndarray:
    source = images.source
    assert isinstance(source, DigitSource)
    return np.stack([source.mark(int(row)) for row in images.rows])


def _summary(
    mark: str,
    evaluations: dict[str, Evaluation],
    search: ShortcutSearch,
    methods: dict[str, dict[str, MetricResult]],
) -> dict[str, Any]:
    right = {}
    for tells, evaluation in evaluations.items():
        predictions = evaluation.heads["label"].predictions
        right[tells] = (predictions.predicted == predictions.targets).astype(float)
    drop = right["class"] - right["random"]
    first = next(iter(methods.values()))
    return {
        "mark": mark,
        "test_images": len(drop),
        "accuracy": {tells: evaluation.accuracy for tells, evaluation in evaluations.items()},
        "attention_accuracy": {tells: evaluation.attention_accuracy for tells, evaluation in evaluations.items()},
        "drop": float(drop.mean()),
        "drop_interval": bootstrap_interval(drop),
        "mark_share": first["mass_on_mark"].details["region_share"],
        "search": search.to_dict(),
        "methods": {
            method: {name: result.to_dict() for name, result in results.items()} for method, results in methods.items()
        },
    }


def _lead(search: ShortcutSearch, summary: dict[str, Any]) -> str:
    accuracy = summary["accuracy"]
    return (
        f"{search.sentences()[0]} On new digits it is right in {percent(accuracy['class'])} while a small mark in the "
        f"picture gives the class away as in training, and in {percent(accuracy['random'])} when the mark says nothing."
    )


def _figures(
    search: ShortcutSearch, summary: dict[str, Any], methods: dict[str, dict[str, MetricResult]]
) -> list[Figure]:
    accuracy = summary["accuracy"]
    drop = interval_text(summary["drop_interval"])
    figures = [
        Figure(percent(accuracy["class"]), "accuracy, mark as in training", f"{summary['test_images']} test images"),
        Figure(percent(accuracy["random"]), "accuracy, mark says nothing", f"drop {drop}"),
        *search_figures(search),
    ]
    if "attention" in methods:
        own = methods["attention"]["at_mark"]
        figures.append(Figure(percent(own.mean), "attention maps point at the mark", interval_text(own.interval)))
    return figures


def _accuracy_table(evaluations: dict[str, Evaluation], summary: dict[str, Any]) -> TableBlock:
    rows: list[list[str | Bar]] = []
    for tells, evaluation in evaluations.items():
        scores = evaluation.heads["label"].perception
        interval = scores.accuracy_interval if scores else None
        second = percent(evaluation.attention_accuracy)
        rows.append(
            [
                _SAYS[tells],
                percent(evaluation.accuracy),
                interval_text(interval),
                second,
                Bar(evaluation.accuracy, interval),
            ]
        )
    return TableBlock(
        "Held against the truth: what the mark was worth",
        ("the mark says", "accuracy", "95 % interval", "attention branch", ""),
        rows,
        text=f"The same {summary['test_images']} digits on the same photos; only the mark of 6x6 pixels differs. What "
        "is lost when it says nothing is what the network owed to it.",
        note=f"Drop from the first row to the second: {percent(summary['drop'])} "
        f"({interval_text(summary['drop_interval'])}).",
        strong=frozenset({0}),
    )


def _methods_table(methods: dict[str, dict[str, MetricResult]], summary: dict[str, Any]) -> TableBlock:
    patch = summary["patch_on_mark"]
    rows: list[list[str | Bar]] = [
        [
            "the patch that the search found",
            percent(patch["share"]),
            interval_text(patch["interval"]),
            "",
            "",
            Bar(patch["share"], patch["interval"]),
        ]
    ]
    for method, results in methods.items():
        mark, digit, mass = (results[name] for name in ("at_mark", "at_digit", "mass_on_mark"))
        rows.append(
            [
                f"control: {method}" if method in CONTROLS else method,
                percent(mark.mean),
                interval_text(mark.interval),
                percent(digit.mean),
                percent(mass.mean),
                Bar(mark.mean, mark.interval),
            ]
        )
    first = next(iter(methods.values()))["at_mark"]
    return TableBlock(
        "Held against the truth: which maps point at the mark?",
        ("method", "at the mark", "95 % interval", "on the digit", "mass on the mark", ""),
        rows,
        text="The share of images whose map has its maximum on the mark, and on the digit (pointing game). A map that "
        f"shows what decides points at the mark. The mark covers {percent(summary['mark_share'])} of the picture, "
        "which is the mass that a constant map puts on it. The first row is the search's own: its patch covers at "
        f"least half of the mark (n {patch['n']}).",
        note=f"n {first.n}; tolerance {first.protocol['tolerance']:.4g} of the shorter side; mass is the map's "
        "positive part; intervals by bootstrap.",
        strong=frozenset({0, *(place for place, method in enumerate(methods, 1) if method not in CONTROLS)}),
    )


def _print(
    console: Console,
    out: Path,
    search: ShortcutSearch,
    summary: dict[str, Any],
    methods: dict[str, dict[str, MetricResult]],
) -> None:
    for sentence in search.sentences():
        console.print(sentence, soft_wrap=True)
    table = Table(title=f"{summary['test_images']} test images, the mark says", title_justify="left")
    for tells in TELLS:
        table.add_column(_SAYS[tells], justify="right")
    table.add_row(*(percent(summary["accuracy"][tells]) for tells in TELLS))
    console.print(table)
    console.print(f"The patch that the search found covers the mark in {percent(summary['patch_on_mark']['share'])}.")
    table = Table(title="maps whose maximum lies", title_justify="left")
    for heading in ("method", "on the mark", "on the digit", "mass on the mark"):
        table.add_column(heading, justify="left" if heading == "method" else "right")
    for method, results in methods.items():
        table.add_row(method, *(percent(results[name].mean) for name in ("at_mark", "at_digit", "mass_on_mark")))
    console.print(table)
    console.print(f"{summary['seconds']:.0f} s in all. Open {out / 'report.html'}", soft_wrap=True)
