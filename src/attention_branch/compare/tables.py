"""The tables and charts of a comparison."""

import numpy as np

from attention_branch.compare.comparison import Comparison
from attention_branch.compare.measures import MEASURES
from attention_branch.evaluation.wording import percent
from attention_branch.explanations.methods import CONTROLS
from attention_branch.metrics.drive_result import OWN, REPLACED
from attention_branch.metrics.statistics import FEWEST, MetricResult
from attention_branch.report.charts import Curves, Interval, Intervals, Line, Panel
from attention_branch.report.page import Bar, Block, TableBlock
from attention_branch.report.statements import Cell, Sheet, Tables

CLEAR = f"the 95 % interval excludes zero, p < 0.05, and at least {FEWEST} images differ"
"""What makes a paired difference clear, in words."""


def metrics_sheet(comparison: Comparison) -> Sheet:
    """Return every metric of every method, metrics below each other."""
    rows = []
    for metric in comparison.metrics:
        measure, best = MEASURES[metric], comparison.best(metric)
        cells = []
        for method in comparison.methods:
            result = comparison.results[method][metric]
            cells.append(
                Cell(measure.text(result.mean), _interval(metric, result.interval), "best" if method == best else "")
            )
        rows.append((_title(metric), measure.meaning, cells))
    return Sheet(
        "Every measure, every method",
        comparison.methods,
        rows,
        text="Below each mean stands its 95 % interval. ↑: higher is better, ↓: lower is better; without an arrow "
        "there is no better. The last three columns are the controls: maps that know nothing of the image.",
        note=f"★ marks a method that is better than every other one by clear paired differences: {CLEAR}. Without a "
        f"star no method is ahead for sure. Nothing is corrected for the number of comparisons. n = {comparison.n}.",
        quiet=frozenset(CONTROLS),
    )


def differences(comparison: Comparison) -> list[Block]:
    """Return the main method against each reference as a chart, and every method against each as a folded table."""
    main = comparison.main
    blocks: list[Block] = []
    for reference in comparison.references:
        if reference == main or reference == "random":
            continue
        rows = []
        for metric in comparison.metrics:
            up, found = comparison.higher_is_better(metric), comparison.difference(main, reference, metric)
            if up is None or found.interval is None:
                continue
            sign = 1 if up else -1
            low, high = sorted(sign * edge for edge in found.interval)
            verdict = comparison.verdict(main, reference, metric)
            rows.append(
                Interval(
                    name=MEASURES[metric].title,
                    detail=f"Wilcoxon {_p_value(found.p_value)}; n = {found.n}",
                    value=sign * found.mean,
                    low=low,
                    high=high,
                    text=f"{_signed(metric, found.mean)}{' points' if MEASURES[metric].share else ''} "
                    f"({_interval(metric, found.interval, signed=True)})",
                    remark="no clear difference" if verdict == "unclear" else verdict,
                    verdict={"better": "right", "worse": "wrong"}.get(verdict, ""),
                )
            )
        blocks.append(
            Intervals(
                f"{main} against {reference}",
                rows,
                text=f"The difference of {main} and {reference}, image by image, with its 95 % interval. Each row has "
                "its own scale about zero, in the middle, and the better side is always right. A difference is clear "
                f"where {CLEAR}.",
            )
        )
    blocks.append(
        Tables(
            "Every method against the references",
            [_difference_sheet(comparison, reference) for reference in comparison.references],
            text="Method minus reference, image by image: mean, 95 % interval and p of Wilcoxon's signed-rank test; "
            "shares in percentage points. Grey: no clear difference; clear is one where " + CLEAR + ".",
        )
    )
    return blocks


def _difference_sheet(comparison: Comparison, reference: str) -> Sheet:
    others = [method for method in comparison.methods if method != reference]
    rows = []
    for metric in comparison.metrics:
        cells = []
        for method in others:
            found, verdict = (
                comparison.difference(method, reference, metric),
                comparison.verdict(method, reference, metric),
            )
            kind = {"better": "right", "worse": "wrong", "unclear": "quiet"}.get(verdict, "")
            detail = f"{_interval(metric, found.interval, signed=True)}\n{_p_value(found.p_value)}"
            cells.append(Cell(_signed(metric, found.mean), detail, kind))
        rows.append((_title(metric), "", cells))
    return Sheet(
        f"against {reference}",
        others,
        rows,
        quiet=frozenset(CONTROLS),
    )


def curves(comparison: Comparison) -> Curves:
    """Return deletion and insertion curves, one panel a method in the order of insertion - deletion."""
    panels = []
    if {"deletion", "insertion"} <= set(comparison.metrics):
        area = {
            method: comparison.results[method]["insertion"].mean - comparison.results[method]["deletion"].mean
            for method in comparison.methods
        }
        noise = comparison.results["random"]
        for method in sorted(comparison.methods, key=lambda name: -area[name]):
            own = comparison.results[method]
            lines = [
                Line("insertion", _curve(own["insertion"]), "up"),
                Line("deletion", _curve(own["deletion"]), "down"),
            ]
            if method != "random":
                lines += [Line("noise", _curve(noise["insertion"])), Line("", _curve(noise["deletion"]))]
            panels.append(
                Panel(
                    f"control: {method}" if method in CONTROLS else method,
                    f"insertion − deletion {area[method]:.3f}".replace("-", "−"),
                    lines,
                    method in CONTROLS,
                )
            )
    return Curves(
        "Taking away and putting in",
        panels,
        across="share of the pixels changed, %",
        up="probability of the class, %",
        text="Deletion takes the pixels away that the map calls most important first: the probability of the class "
        "(up) should fall fast. Insertion puts them into a blurred image first: it should rise fast. Blue is where "
        "insertion lies above deletion, orange where it lies below; blue less orange is the number above each panel: "
        "the larger, the more the map knows about the answer. Dotted lines: noise. Best first.",
    )


def _curve(result: MetricResult) -> list[tuple[float, float]]:
    curve = result.details["curve"]
    return list(zip(curve["share"], curve["score"], strict=True))


def drive(comparison: Comparison) -> list[Block]:
    """Return what the answers lose with other maps in the place of the network's own."""
    found = comparison.drive
    if found is None:
        return []
    rows: list[list[str | Bar]] = []
    for name, row in found.rows.items():
        result = row.accuracy if found.labelled else row.agreement
        drop = "" if name == OWN else f"{_signed_points(-row.drop.mean)} ({_points_interval(row.drop.interval)})"
        rows.append(
            [
                "the network's own map" if name == OWN else REPLACED[name],
                percent(result.mean),
                drop,
                "" if name == OWN else _p_value(row.drop.p_value),
                percent(row.agreement.mean),
                Bar(result.mean, result.interval),
            ]
        )
    what = "accuracy" if found.labelled else "same answer"
    return [
        TableBlock(
            "Does the map drive the answer?",
            ("map given to the network", what, "change in points", "test", "same answer as with its own", ""),
            rows,
            text="The same weights, the same images, another map in the place of the network's own. Only a map that is "
            "part of the computation can be asked this; one that is drawn after the answer cannot.",
            note=found.sentence(),
            strong=frozenset({0}),
        )
    ]


def costs(comparison: Comparison) -> TableBlock:
    """Return time and memory of a map by method, beside a plain forward pass."""
    found, rows = comparison.costs, []
    if found is None:
        return TableBlock("What a map costs", (), [])
    for method, cost in found.methods.items():
        rows.append(
            [
                method,
                f"{1000 * cost.seconds:.1f} ms",
                f"{cost.time_ratio:.2f} ×",
                f"{cost.time_ratios[0]:.2f} to {cost.time_ratios[1]:.2f}",
                f"{cost.memory_bytes / 2**20:.1f} MiB",
                "–" if cost.memory_ratio is None else f"{cost.memory_ratio:.2f} ×",
            ]
        )
    how = found.protocol
    rows.insert(
        0,
        [
            "plain forward pass",
            f"{1000 * found.forward_seconds:.1f} ms",
            "1.00 ×",
            "",
            f"{found.forward_bytes / 2**20:.1f} MiB",
            "1.00 ×",
        ],
    )
    return TableBlock(
        "What a map costs",
        (
            "method",
            "time an image",
            "of a forward pass",
            "quartiles",
            f"memory, {how['images']} images",
            "of a forward pass",
        ),
        rows,
        text="A forward pass gives the answer alone. Measured side by side in this run; quartiles far apart mean that "
        "the machine was busy with other things.",
        note=f"Time: {how['time']}; {how['rounds']} rounds, {how['images']} images of "
        f"{how['image_size'][0]}x{how['image_size'][1]} pixels at once, {how['device']}, {how['threads']} threads. "
        f"Memory: {how['memory']}; weights and images are not counted.",
        strong=frozenset({0}),
    )


def likeness(comparison: Comparison) -> Sheet:
    """Return how alike the methods' maps are, by rank correlation."""
    methods = list(dict.fromkeys(method for pair in comparison.likeness for method in pair))
    rows = []
    for first in methods:
        cells = []
        for second in methods:
            values = comparison.likeness.get((first, second), comparison.likeness.get((second, first)))
            known = values[~np.isnan(values)] if values is not None else np.zeros(0)
            cells.append(
                Cell(_number(float(known.mean())) if len(known) else "", "", "quiet" if first == second else "")
            )
        rows.append((first, "", cells))
    return Sheet(
        "How alike the maps are",
        methods,
        rows,
        text="Mean rank correlation (Spearman) of two methods' maps over the images: 1 means the same order of places, "
        "0 none in common.",
        note="At the image's size. Noise and the constant map order no places and are not in the table.",
        quiet=frozenset(CONTROLS),
    )


def _title(metric: str) -> str:
    """Return a metric's title with an arrow to its better side, which never begins a line."""
    measure = MEASURES[metric]
    return measure.title + {True: "\u00a0↑", False: "\u00a0↓", None: ""}[measure.higher_is_better]


def _interval(metric: str, interval: tuple[float, float] | None, *, signed: bool = False) -> str:
    if interval is None:
        return "–"
    measure = MEASURES[metric]
    if signed:
        return " to ".join(measure.signed(edge) for edge in interval)
    return f"{measure.text(interval[0]).removesuffix(' %')} to {measure.text(interval[1])}"


def _signed(metric: str, value: float) -> str:
    return MEASURES[metric].signed(value)


def _signed_points(value: float) -> str:
    return f"{100 * value:+z.1f}".replace("-", "−")


def _points_interval(drop: tuple[float, float] | None) -> str:
    """Return the interval of a drop as that of the change, which has the other sign."""
    return "–" if drop is None else f"{_signed_points(-drop[1])} to {_signed_points(-drop[0])}"


def _number(value: float) -> str:
    return f"{value:.2f}".replace("-", "−")


def _p_value(value: float | None) -> str:
    if value is None:
        return "p –"
    return "p < 0.001" if value < 0.001 else f"p = {value:.3f}"
