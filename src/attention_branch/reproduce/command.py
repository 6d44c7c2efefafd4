"""`abn reproduce`: its options, and what each of its words does. Heavy imports wait until they are needed."""

import json
from pathlib import Path
from typing import Annotated, Any, Literal

from rich.console import Console
from tyro.conf import Positional, arg

from attention_branch.errors import UserError

_SEEDS = {"digits": (0, 1, 2, 3, 4), "figure4": (0,), "figure7": (0,)}
_THREE = (0, 1, 2)
_What = Literal["table1", "table2", "table3", "table4", "figure4", "figure7", "digits", "distractors", "show"]


def reproduce(
    what: Annotated[
        Positional[_What],
        arg(
            metavar="WHAT",
            help="table1 to table4: the paper's tables; figure4: CAM, Grad-CAM and the attention map side by side; "
            "figure7: one map for each of many labels; digits: the study on the embedded digits, which needs no data "
            "and is over in about an hour and a half on two cores; distractors: digits beside a letter, and mosaics "
            "of which one quarter counts, in the arms of equal cost; show: print what was published and measured.",
        ),
    ],
    *,
    cells: Annotated[
        tuple[str, ...],
        arg(help="Cells to run as NETWORK/DATA/ARM, parts left out or * for all: resnet20, '*/cifar100/residual'."),
    ] = (),
    seeds: Annotated[
        tuple[int, ...] | None, arg(help="Seeds, one run each. Left out: 0 1 2; for digits 0 1 2 3 4, for figures 0.")
    ] = None,
    data: Annotated[
        tuple[str, ...],
        arg(
            help="Data as NAME=PATH: cifar10, cifar100, svhn, imagenet, compcars, celeba; or what stands in for one "
            "and is named so: cifar10-jpeg, tiny-imagenet-100, tiny-imagenet-100-64 (figure4), two-level (table3), "
            "mosaics (table4, figure7), mosaics-target and mosaics-target-32 (distractors)."
        ),
    ] = (),
    budget: Annotated[float | None, arg(help="Stop in good order after this many minutes.")] = None,
    resume: Annotated[bool, arg(help="Go on with runs that were begun and not finished.")] = False,
    out: Annotated[
        str | None, arg(help="Folder for the records of runs, one JSON file each. Left out: runs/reproduce.")
    ] = None,
    protocol: Annotated[
        Literal["published", "modern"], arg(help="Settings of training: the paper's, or today's for the same network.")
    ] = "published",
    epochs: Annotated[
        int | None, arg(help="Make it a smoke test of so many epochs; it is shown apart and never as a result.")
    ] = None,
    train_images: Annotated[int | None, arg(help="Make it a smoke test on so many training images.")] = None,
    precision: Annotated[
        Literal["auto", "32", "bf16"],
        arg(help="Arithmetic; auto takes bfloat16 where the device computes it at full speed."),
    ] = "auto",
    device: Annotated[str, arg(help="cpu, cuda, cuda:1, ...; auto takes a GPU when there is one.")] = "auto",
    at_once: Annotated[
        int | None, arg(help="Runs that share the machine. Left out: one a core, or four on a GPU.")
    ] = None,
    keep_models: Annotated[bool, arg(help="Keep each run's last network beside its record.")] = False,
    json_output: Annotated[bool, arg(name="json", help="With show: print a list of rows as JSON and nothing else.")] = (
        False
    ),
) -> int:
    """Run the paper's tables with controls and several seeds, or show what was published and measured."""
    running: dict[str, Any] = {
        "--cells": bool(cells), "--seeds": seeds is not None, "--data": bool(data), "--budget": budget is not None,
        "--resume": resume, "--protocol": protocol != "published", "--epochs": epochs is not None,
        "--train-images": train_images is not None, "--precision": precision != "auto", "--device": device != "auto",
        "--at-once": at_once is not None, "--keep-models": keep_models,
    }  # fmt: skip
    if what == "show":
        for name, given in running.items():
            if given:
                raise UserError(f"{name} has no meaning for 'show', which runs nothing; leave it out.")
        return _show(out, json_output)
    if json_output:
        raise UserError("--json belongs to 'show'; leave it out.")
    for name, value, least in (("--epochs", epochs, 1), ("--train-images", train_images, 1), ("--at-once", at_once, 1)):
        if value is not None and value < least:
            raise UserError(f"{name} is {value}; it must be {least} or more.")
    if budget is not None and not budget > 0:
        raise UserError(f"--budget is {budget:g}; give minutes above 0.")
    chosen = _SEEDS.get(what, _THREE) if seeds is None else seeds
    if what.startswith("figure") and (len(chosen) > 1 or cells):
        raise UserError(f"{what} shows one run of each of its networks: leave out --cells, and give one of --seeds.")
    if not chosen or not 0 <= min(chosen) <= max(chosen) < 2**31 or len(set(chosen)) < len(chosen):
        listed = ", ".join(map(str, chosen)) or "none"
        raise UserError(f"--seeds are {listed}; give different whole numbers from 0 to 2147483647.")
    from attention_branch.reproduce.conduct import reproduce as run
    from attention_branch.reproduce.conduct import usable_device
    from attention_branch.reproduce.plan import Protocol, native_precision

    place = usable_device(device)
    arithmetic = native_precision(place) if precision == "auto" else precision
    run(
        what,
        cells=cells,
        seeds=chosen,
        data=data,
        budget=budget,
        resume=resume,
        out=out or "runs/reproduce",
        protocol=Protocol(protocol, epochs, train_images, arithmetic),
        device=place,
        at_once=at_once,
        keep_models=keep_models,
    )
    return 0


def _show(out: str | None, json_output: bool) -> int:
    from attention_branch.reproduce.groups import find_folders, read_groups
    from attention_branch.reproduce.page import write_tables_page
    from attention_branch.reproduce.results import all_rows
    from attention_branch.reproduce.show import print_tables

    groups = read_groups(*find_folders(out))
    if json_output:
        print(json.dumps(all_rows(groups), allow_nan=False))
        return 0
    console = Console()
    print_tables(groups, console)
    page = write_tables_page(Path(out or "runs/reproduce") / "tables.html", groups)
    console.print(f"Open {page}", highlight=False)
    return 0
