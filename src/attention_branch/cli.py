"""The `abn` command: one function per subcommand, nothing else. Heavy imports wait until a command needs them."""

import io
import json
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import Annotated, Literal

import tyro
from rich.console import Console
from tyro.conf import Positional, arg

from attention_branch import __version__
from attention_branch.errors import UserError, did_you_mean
from attention_branch.export.command import export
from attention_branch.hardware import chosen_device
from attention_branch.light import without
from attention_branch.reproduce.command import reproduce
from attention_branch.serve.command import serve

Device = Annotated[str, arg(help="cpu, cuda, cuda:1, ...; auto takes a GPU when there is one.")]


def demo(
    *,
    out: Annotated[
        str | None,
        arg(help="Run folder to write; a demo that stands there is replaced. Left out: runs/demo, runs/demo-shortcut."),
    ] = None,
    seed: Annotated[int, arg(help="Seed of the digits, the start weights and the order of images.")] = 0,
    control: Annotated[
        Literal["auto", "yes", "no"],
        arg(help="Also train the same network with its map not applied; auto does if three minutes suffice for both."),
    ] = "auto",
    shortcut: Annotated[
        bool,
        arg(help="Instead: train with a small mark that gives the class away, and let the report find that out."),
    ] = False,
    mark: Annotated[
        Literal["colour", "position"] | None,
        arg(help="With --shortcut: what of the mark gives the class away. Left out: its colour."),
    ] = None,
) -> int:
    """Train on handwritten digits in real photos, measure where the network looked, and write a report."""
    if shortcut:
        if control != "auto":
            raise UserError("--control belongs to the demo without --shortcut; leave one of them out.")
        from attention_branch.shortcut import run_shortcut_demo

        run_shortcut_demo(out or "runs/demo-shortcut", mark=mark or "colour", seed=seed, console=Console())
        return 0
    if mark is not None:
        raise UserError(f"--mark {mark} says what the mark of --shortcut is; add --shortcut.")
    from attention_branch.demo import run_demo

    run_demo(out or "runs/demo", seed=seed, control={"yes": True, "no": False}.get(control), console=Console())
    return 0


def evaluate(
    run: Annotated[Positional[str], arg(metavar="RUN", help="A run, a saved network's folder or a hub name.")],
    data: Annotated[
        Positional[str | None], arg(metavar="[DATA]", help="Data to evaluate on. Left out: the data it was trained on.")
    ] = None,
    *,
    split: Annotated[Literal["test", "validation", "train"], arg(help="Split to evaluate on.")] = "test",
    limit: Annotated[int | None, arg(help="Take this many images at random.")] = None,
    out: Annotated[str | None, arg(help="Folder for evaluation-SPLIT.json and report.html. Left out: the run.")] = None,
    batch_size: Annotated[int, arg(help="Images at once.")] = 64,
    workers: Annotated[int, arg(help="Processes that load images.")] = 0,
    device: Device = "auto",
    report: Annotated[bool, arg(help="Also write report.html: right, wrong and least certain images.")] = True,
    odds: Annotated[
        str | None, arg(help="Also count the heads that are better than in this evaluation-SPLIT.json.")
    ] = None,
    json_output: Annotated[bool, arg(name="json", help="Print the result as JSON and nothing else.")] = False,
) -> int:
    """Measure a network: accuracy, both branches, calibration, per class, and where its map points."""
    from attention_branch.evaluation import attribute_odds, evaluate_run
    from attention_branch.evaluation.odds import head_accuracies
    from attention_branch.report import write_evaluation_report

    # Read before the long work, and before a file of the same name is written.
    other = head_accuracies(odds) if odds is not None else None
    evaluation = evaluate_run(
        run,
        data,
        split,
        output=out,
        batch_size=batch_size,
        workers=workers,
        limit=limit,
        device=chosen_device(device),
        report=write_evaluation_report if report else None,
        progress=not json_output,
    )
    counted = attribute_odds(evaluation, other) if other is not None else None
    if json_output:
        print(json.dumps(evaluation.to_dict() | ({"odds": asdict(counted)} if counted else {}), allow_nan=False))
        return 0
    evaluation.print(Console())
    if counted:
        print(counted.sentence())
    return 0


def explain(
    run: Annotated[
        Positional[str],
        arg(metavar="RUN", help="A run, a saved network's folder, a hub name, or an exported model.onnx."),
    ],
    images: Annotated[
        Positional[tuple[str, ...]], arg(metavar="IMAGES...", help="Image files, folders, or quoted patterns.")
    ],
    *,
    out: Annotated[str, arg(help="Folder to write pictures, maps, predictions.jsonl and report.html into.")] = (
        "explained"
    ),
    method: Annotated[
        Literal[
            "attention",
            "attention-class",
            "cam",
            "grad-cam",
            "grad-cam++",
            "hires-cam",
            "layer-cam",
            "filters",
            "rollout",
            "soft-masks",
            "integrated-gradients",
            "occlusion",
            "random",
            "center",
            "constant",
        ],
        arg(
            help="attention is the network's map (where it looked, whatever the class); attention-class the branch's "
            "evidence for one class; the cam methods read a layer; filters shows the filter of a layer that adds most "
            "to the class; rollout is for vision transformers, soft-masks for Residual Attention Networks; "
            "integrated-gradients and occlusion need captum; random, center and constant are controls."
        ),
    ] = "attention",
    target: Annotated[
        str | None, arg(help="Class (name or index) to explain; with several heads HEAD or HEAD=CLASS.")
    ] = None,
    layer: Annotated[
        str, arg(help="Layer that a cam method, filters or soft-masks reads, by name; auto chooses and says which.")
    ] = "auto",
    scan_layers: Annotated[
        bool,
        arg(
            help="Instead of pictures: rank the layers by insertion minus deletion on these images (grad-cam, or the "
            "cam method named), print the table and write layers.json."
        ),
    ] = False,
    top: Annotated[int, arg(help="Classes listed per image.")] = 5,
    stretch: Annotated[bool, arg(help="Spread the colours over each map's own extremes; every picture says so.")] = (
        False
    ),
    batch_size: Annotated[int, arg(help="Images at once.")] = 16,
    device: Device = "auto",
) -> int:
    """Show where a network looked: one picture per image, predictions.jsonl and report.html."""
    from attention_branch.report import explain_files

    if scan_layers:
        from attention_branch.evaluation.layer_scan import scan_files

        for given, name in ((layer != "auto", "--layer"), (stretch, "--stretch"), (top != 5, "--top")):
            if given:
                raise UserError(f"{name} has no meaning for --scan-layers, which tries all layers and draws nothing.")
        reads_none = method == "attention"
        scan_files(
            run,
            images,
            out,
            method="grad-cam" if reads_none else method,
            target=target,
            batch_size=batch_size,
            device=chosen_device(device),
            console=Console(),
        )
        return 0
    done = explain_files(
        run,
        images,
        out,
        method=method,
        target=target,
        layer=layer,
        top_k=top,
        batch_size=batch_size,
        stretch=stretch,
        device="cpu" if run.endswith(".onnx") else chosen_device(device),
    )
    for line in done.lines():
        print(line)
    return done.exit_code


def compare(
    run: Annotated[Positional[str], arg(metavar="RUN", help="A run, a saved network's folder or a hub name.")],
    data: Annotated[
        Positional[str | None], arg(metavar="[DATA]", help="Data to compare on. Left out: the data it was trained on.")
    ] = None,
    *,
    methods: Annotated[
        str | None,
        arg(
            help="Methods of explain, with commas between them; random, center and constant always come along. "
            "Unless given: attention,attention-class,cam,grad-cam,grad-cam++."
        ),
    ] = None,
    metrics: Annotated[
        str | None,
        arg(help="Metrics, with commas between them. Unless given: the docs' set, which takes minutes."),
    ] = None,
    limit: Annotated[int, arg(help="Images, drawn at random from the seed; 0 takes all.")] = 200,
    seed: Annotated[int, arg(help="Seed of the draw, of noise and of the intervals.")] = 0,
    target: Annotated[
        Literal["prediction", "label"], arg(help="Whose class is explained, and whose probability is followed.")
    ] = "prediction",
    head: Annotated[str | None, arg(help="Head of a network with several. Left out: the first.")] = None,
    layer: Annotated[str, arg(help="Layer that the cam methods read, by name; auto chooses and says which.")] = "auto",
    out: Annotated[str | None, arg(help="Folder to write into. Left out: RUN/comparison.")] = None,
    batch_size: Annotated[int, arg(help="Images at once.")] = 32,
    device: Device = "auto",
    json_output: Annotated[bool, arg(name="json", help="Print the result as JSON and nothing else.")] = False,
) -> int:
    """Compare ways to explain a network: every map measured on the same images, on one page in plain words."""
    from attention_branch.compare import compare_run, print_comparison

    comparison = compare_run(
        run,
        data,
        methods=_names(methods),
        metrics=_names(metrics),
        limit=limit,
        seed=seed,
        target=target,
        head=head,
        layer=layer,
        output=out,
        batch_size=batch_size,
        device=chosen_device(device),
        progress=not json_output,
    )
    if json_output:
        print(json.dumps(comparison.to_dict(), allow_nan=False))
    else:
        print_comparison(comparison, Console())
        print(f"Open {comparison.output / 'report.html'}")
    return 0


def check(
    data: Annotated[Positional[str], arg(metavar="DATA", help="Data to read: a folder, a parquet file, hf:NAME, ...")],
    *,
    json_output: Annotated[bool, arg(name="json", help="Print the findings as JSON and nothing else.")] = False,
) -> int:
    """Read every image of a data set once and list the broken, empty, duplicate and odd ones."""
    from attention_branch.data import check_data

    report = check_data(data, progress=not json_output)
    if json_output:
        print(json.dumps(report.to_dict(), allow_nan=False))
    else:
        report.print(Console())
    return 0 if report.sound else 1


def info(
    name: Annotated[Positional[str], arg(metavar="NAME", help="Backbone: a timm name or a 32-pixel family.")],
    *,
    classes: Annotated[int, arg(help="Number of classes.")] = 1000,
    image_size: Annotated[int | None, arg(help="Side of the square input. Left out: the backbone's own.")] = None,
    map_kernel: Annotated[Literal[3, 1], arg(help="Kernel of the convolution that makes the map.")] = 3,
    json_output: Annotated[bool, arg(name="json", help="Print as JSON and nothing else.")] = False,
) -> int:
    """Print what a network costs with and without its attention branch, and where the gate sits and why."""
    from attention_branch.models.cost import describe
    from attention_branch.report.cost_table import print_costs

    found = describe(name, classes, map_kernel=map_kernel, image_size=image_size)
    if json_output:
        print(json.dumps(found))
        return 0
    print_costs(found, Console())
    return 0


def models(
    pattern: Annotated[Positional[str], arg(metavar="PATTERN", help="Part of a name, or a pattern: '*next*'.")] = "*",
) -> int:
    """List the networks by name and kind: this package's own, then timm's."""
    import fnmatch

    from attention_branch.models import list_backbones
    from attention_branch.models.registry import KINDS

    groups = {name: f"({kind})" for kind, names in KINDS.items() for name in names}
    wanted = pattern if "*" in pattern else f"*{pattern}*"
    found = [name for name in list_backbones() if fnmatch.fnmatch(name, wanted)]
    if not found:
        raise UserError(f"No backbone matches '{pattern}'; `abn models` lists all of them.")
    for name in found:
        print(f"{name} {groups.get(name, '')}".rstrip())
    return 0


def train(arguments: Sequence[str]) -> int:
    """Train a classifier that shows where it looked, on a folder, a table or a named data set."""
    from attention_branch.training import parse_train_arguments
    from attention_branch.training import train as run_training

    run_training(parse_train_arguments(arguments))
    return 0


COMMANDS: dict[str, Callable[..., int]] = {
    "demo": demo,
    "train": train,
    "evaluate": evaluate,
    "explain": explain,
    "compare": compare,
    "serve": serve,
    "export": export,
    "reproduce": reproduce,
    "check": check,
    "models": models,
    "info": info,
}


def _names(listed: str | None) -> list[str] | None:
    return None if listed is None else [name.strip() for name in listed.split(",") if name.strip()]


def _overview() -> None:
    console = Console()
    console.print("abn: image classifiers that show where they looked (Attention Branch Networks).\n")
    console.print("usage: abn COMMAND ...        abn COMMAND --help says more\n", markup=False)
    for name, function in COMMANDS.items():
        console.print(f"  {name:<10}{(function.__doc__ or '').splitlines()[0]}", markup=False, highlight=False)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run `abn`. Exits with 0, with 2 for what the user can mend, with 130 when interrupted."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    if isinstance(sys.stdout, io.TextIOWrapper):
        # A file's name may hold bytes that are no text.
        sys.stdout.reconfigure(errors="backslashreplace")
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        _overview()
        sys.exit(0)
    if arguments[0] == "--version":
        print(f"attention-branch {__version__}")
        sys.exit(0)
    try:
        name, rest = arguments[0], arguments[1:]
        if name not in COMMANDS:
            raise UserError(f"Unknown command '{name}'.{did_you_mean(name, COMMANDS)} `abn --help` lists all.")
        function = COMMANDS[name]
        if function is train:
            sys.exit(train(rest))
        sys.exit(tyro.cli(function, args=rest, prog=f"abn {name}"))
    except UserError as problem:
        print(f"abn: {problem}", file=sys.stderr)
        sys.exit(2)
    except ModuleNotFoundError as problem:
        if (said := without(problem, arguments[0])) is None:
            raise
        print(f"abn: {said}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("abn: interrupted.", file=sys.stderr)
        sys.exit(130)
    except BrokenPipeError:
        # The reader of our output went away (`abn models | head`).
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(0)


if __name__ == "__main__":
    main()
