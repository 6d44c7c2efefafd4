"""How fast training on small pictures is: the authors' loop, ours through Lightning, and the fast path, side by side.

    git clone https://github.com/machine-perception-robotics-group/attention_branch_network
    python benchmarks/throughput.py --official attention_branch_network
    python benchmarks/throughput.py --official attention_branch_network --device cuda --networks resnet20

official: the authors' network in a loop that does what their cifar.py does: PIL pictures through torchvision's crop,
flip and normalisation in a DataLoader (their 4 workers on a GPU; on a CPU none, 1 or 2, the fastest of a trial), a
blocking copy of each batch, loss and two accuracies read in every step, SGD. Their progress bar is left out.
plain: our network as `abn train` trains it: Lightning's Trainer, our loader. fast: `FastTrainer`. Both also in
bfloat16; on a GPU the fast path compiled as well, and 1, 2, 4 and 8 runs sharing it as `abn reproduce` runs them.

All train the ABN (paper branch, residual) on random bytes with the network's recipe, at a small rate so that no loss
diverges. Kinds take turns, forwards and backwards, so that a slow moment of the machine meets all; the median over the
rounds of the ratios within a round counts. A turn's first steps are not timed (kernels are chosen, graphs captured,
what workers made in advance is used up); starting an epoch and evaluating are not part of it. The record goes to
benchmarks/records/DATE-throughput-DEVICE/throughput.json, network by network: one that is there is not measured again.
"""

import argparse
import datetime
import gc
import json
import logging
import platform
import shlex
import statistics
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from attention_branch.files import write_json
from attention_branch.hardware import processor, usable_cores
from attention_branch.reproduce.plan import native_precision
from attention_branch.reproduce.worker import STEPS_AT_ONCE
from official_code import source_digest
from throughput_kinds import RECIPES, Fast, Official, Surroundings, Taken, make

KINDS = ("official", "plain", "plain bf16", "fast", "fast bf16", "fast bf16 compile")
SHARING = (1, 2, 4, 8)
PROTOCOL = (
    "training steps only; interleaved turns, forwards and backwards; times as fast: median over the rounds of the "
    "ratio to another kind's time in the same round, by the clock and (alone on a CPU) by the processor's time of the "
    "main process; minutes: 300 epochs of 45,000 images at the median speed, without evaluation and epochs' starts"
)


def minutes(images_per_second: float, runs: int = 1) -> float:
    """Return the minutes in which `runs` runs together train for 300 epochs of 45,000 images each."""
    return runs * 300 * 45_000 / images_per_second / 60


def measure_kinds(made: dict[str, Any], around: Surroundings, rounds: int) -> dict[str, Any]:
    """Return the speed of every kind, one at a time."""
    taken: dict[str, list[Taken]] = {kind: [] for kind in made}
    for turn in range(rounds):
        for kind in list(made) if turn % 2 == 0 else reversed(made):
            taken[kind].append(made[kind].turn())
        print(f"{around.network}: round {turn + 1} of {rounds}", flush=True)
    images = around.batch * around.steps
    speed = {kind: images / statistics.median(each.seconds for each in values) for kind, values in taken.items()}
    pairs = [("fast", "plain"), ("fast bf16", "plain bf16"), ("fast bf16 compile", "plain bf16")]
    pairs = [pair for pair in pairs if made.keys() >= set(pair)]
    pairs += [(kind, "official") for kind in made if kind != "official" and "official" in made]

    def ratios(clock: str) -> dict[str, float]:
        return {
            f"{kind} / {other}": statistics.median(
                getattr(theirs, clock) / getattr(mine, clock)
                for mine, theirs in zip(taken[kind], taken[other], strict=True)
            )
            for kind, other in pairs
        }

    return {
        "images_per_second": speed,
        "minutes_for_300_epochs": {kind: minutes(value) for kind, value in speed.items()},
        "times_as_fast": ratios("seconds"),
        "times_as_fast_by_processor_time": None if around.on_gpu else ratios("processor"),
        "turns": {kind: [each._asdict() for each in values] for kind, values in taken.items()},
    }


def shared_seconds(runs: list[Fast], around: Surroundings, steps: int) -> float:
    """Return the seconds in which each of some runs takes its steps, in turns as in `abn reproduce`."""
    for run in runs:
        run.take(around.lead)
    began = around.now()
    for _ in range(steps // STEPS_AT_ONCE):
        for run in runs:
            run.take(STEPS_AT_ONCE)
    return around.now().since(began).seconds


def measure_sharing(around: Surroundings, rounds: int) -> dict[str, Any]:
    """Return the speed of several runs that share the GPU, in all and in multiples of one run's."""
    precision = native_precision(around.device)
    steps = max(1, round(around.steps / STEPS_AT_ONCE)) * STEPS_AT_ONCE
    runs: list[Fast] = []
    fitting, full = [], None
    for count in SHARING:
        try:
            while len(runs) < count:
                runs.append(Fast(around, precision))
                runs[-1].take(around.lead)
            around.now()
        except torch.OutOfMemoryError:
            full = f"{count} runs do not fit into the device's memory"
            break
        fitting.append(count)
    del runs[max(fitting, default=0) :]
    gc.collect()
    torch.cuda.empty_cache()
    taken: dict[int, list[float]] = {count: [] for count in fitting}
    for turn in range(rounds):
        for count in fitting if turn % 2 == 0 else reversed(fitting):
            taken[count].append(shared_seconds(runs[:count], around, steps))
        print(f"{around.network}: round {turn + 1} of {rounds} with runs together", flush=True)
    images = around.batch * steps
    speed = {count: count * images / statistics.median(values) for count, values in taken.items()}
    return {
        "precision": precision,
        "steps": steps,
        "steps_in_turn": STEPS_AT_ONCE,
        "images_per_second": speed,
        "times_one_run": {
            count: statistics.median(count * one / many for one, many in zip(taken[1], values, strict=True))
            for count, values in taken.items()
        },
        "minutes_for_300_epochs_of_all": {count: minutes(value, count) for count, value in speed.items()},
        "full": full,
        "seconds": taken,
    }


def choose_workers(around: Surroundings, official: str) -> tuple[int, dict[int, float]]:
    """Return the number of workers of the authors' loader, and the images per second of the trial on a CPU."""
    if around.on_gpu:
        return 4, {}
    images = around.batch * around.steps
    trial = {workers: images / Official(around, official, workers).turn().seconds for workers in (0, 1, 2)}
    return max(trial, key=lambda workers: trial[workers]), trial


def measure(options: argparse.Namespace, network: str) -> tuple[dict[str, Any], Surroundings]:
    """Return a network's case without the runs together."""
    around = Surroundings(network, options.device, options.batch, options.steps)
    kinds = [kind for kind in options.kinds if kind != "official" or options.official]
    workers, trial = options.workers, {}
    if "official" in kinds and workers is None:
        workers, trial = choose_workers(around, options.official)
        options.workers = workers
    config = around.config("32")
    case = {
        "network": network,
        "command": _command(),
        "parameters": sum(parameter.numel() for parameter in around.model(config).parameters()),
        "recipe": config.recipe,
        "augment": config.augment,
        "batch": around.batch,
        "pictures": len(around.pixels),
        "steps": around.steps,
        "untimed_steps": around.lead,
        "official_workers": workers,
        "official_workers_trial": trial,
    }
    made = {kind: make(kind, around, options.official, workers or 0) for kind in kinds}
    return case | measure_kinds(made, around, options.rounds), around


def header(options: argparse.Namespace) -> dict[str, Any]:
    """Return what a later reader needs to know of the machine and the software."""
    on_gpu = options.device.startswith("cuda")
    names = ("torch", "torchvision", "lightning", "timm", "numpy", "pillow")
    software = {name: version(name) for name in names} | {"python": platform.python_version()}
    if on_gpu:
        software |= {"cuda": str(torch.version.cuda), "cudnn": str(torch.backends.cudnn.version())}
    return {
        "device": torch.cuda.get_device_name(options.device) if on_gpu else processor(),
        "threads": torch.get_num_threads(),
        "cores": usable_cores(),
        "versions": software,
        "official_code": source_digest(options.official) if options.official else None,
        "float32": "on GPUs products in TF32 where they have it (torch's 'high', cuDNN's default)",
        "protocol": PROTOCOL,
    }


def begun(path: Path, head: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the cases already in the record; end the program when it comes from another machine or software."""
    if not path.exists():
        return []
    earlier = json.loads(path.read_text(encoding="utf-8"))
    different = [key for key, value in head.items() if earlier.get(key) != value]
    if different:
        raise SystemExit(f"'{path}' was measured with other {', '.join(different)}; choose another --out.")
    return earlier["cases"]


def show(case: dict[str, Any]) -> None:
    """Print a network's figures."""
    name = case["network"]
    for kind, speed in case["images_per_second"].items():
        print(f"{name:10s} {kind:18s} {speed:10.1f} images/s  {minutes(speed):10.1f} min for 300 epochs")
    by_processor = case["times_as_fast_by_processor_time"] or {}
    for pair, ratio in case["times_as_fast"].items():
        print(f"{name:10s} {pair:30s} x{ratio:.2f}" + f" ({by_processor[pair]:.2f})" * bool(by_processor))
    together = case.get("sharing", {"images_per_second": {}})
    for count, speed in together["images_per_second"].items():
        print(f"{name:10s} {count} runs {speed:10.1f} images/s in all, x{together['times_one_run'][count]:.2f} of one")


def main() -> None:
    """Measure every network and write the record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--official", metavar="DIR", help="a checkout of the authors' code")
    parser.add_argument("--networks", nargs="+", choices=RECIPES, default=list(RECIPES))
    parser.add_argument("--kinds", nargs="+", choices=KINDS, help="left out: all that the device is for")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, help="timed steps in a turn; left out: by network and device")
    parser.add_argument("--batch", type=int, help="images in a step; left out: 128, on a CPU by network")
    parser.add_argument("--workers", type=int, help="of the authors' loader; left out: 4, on a CPU by a trial")
    parser.add_argument("--threads", type=int, default=2, help="on a CPU")
    parser.add_argument("--out", metavar="FILE.json")
    options = parser.parse_args()
    on_gpu = options.device.startswith("cuda")
    options.kinds = options.kinds or [kind for kind in KINDS if on_gpu or "compile" not in kind]
    if not on_gpu:
        torch.set_num_threads(options.threads)
    torch.set_float32_matmul_precision("high")
    torch.backends.cudnn.benchmark = True
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.WARNING)
    folder = Path(__file__).parent / "records" / f"{datetime.date.today():%Y-%m-%d}-throughput-{options.device}"
    path = Path(options.out) if options.out else folder / "throughput.json"
    head = header(options)
    cases = begun(path, head)
    for network in options.networks:
        case = next((case for case in cases if case["network"] == network), None)
        around = None
        if case is None:
            case, around = measure(options, network)
            cases.append(case)
            write_json(path, head | {"cases": cases})
        if on_gpu and "sharing" not in case:
            gc.collect()
            torch.cuda.empty_cache()
            around = around or Surroundings(network, options.device, case["batch"], case["steps"])
            case["sharing"] = measure_sharing(around, options.rounds)
            write_json(path, head | {"cases": cases})
        show(case)
    print(f"Written to {path}")


def _command() -> str:
    words = sys.argv[1:]
    places = [number + 1 for number, word in enumerate(words) if word in ("--official", "--out")]
    shown = [words[number - 1].strip("-").upper() if number in places else word for number, word in enumerate(words)]
    return f"python benchmarks/throughput.py {shlex.join(shown)}".strip()


if __name__ == "__main__":
    main()
