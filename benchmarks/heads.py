"""What many heads cost in time and memory: 40 binary heads on ResNet-50 at 224 pixels, in every form there is.

    python benchmarks/heads.py                       # this machine's processor, in about ten minutes
    python benchmarks/heads.py --device cuda --batch 32

The forms are: the perception branch run head by head (`loop`: `task_chunk` 1), in groups of eight heads, for all heads
at once, one perception pass that all heads share (`perception="shared"`), and the plain backbone with as many heads.
All take turns in each round, so that a slow moment of the machine meets them all; the median of the rounds' ratios
counts. Peak memory is that of a process of its own for each case. The record goes to
benchmarks/records/DATE-heads-shared/heads.json (-DEVICE where it is not the processor) and grows case by case.
"""

import argparse
import datetime
import json
import platform
import statistics
import subprocess
import sys
import time
from importlib.metadata import version
from pathlib import Path

import torch

import attention_branch as ab
from attention_branch.files import write_json
from attention_branch.hardware import processor
from attention_branch.models.cost import cost

FORMS = ("plain", "shared", "loop", "chunks of 8", "all at once")
TASKS = ("predict", "train")


def build(form: str, options: argparse.Namespace) -> torch.nn.Module:
    """Return a network of one form, from the same seed."""
    torch.manual_seed(0)
    heads = {f"attribute-{number}": 2 for number in range(options.heads)}
    if form == "plain":
        return ab.create_backbone(options.network, heads=heads).to(options.device)
    perception = "shared" if form == "shared" else "separate"
    model = ab.create_model(options.network, heads=heads, branch=options.branch, perception=perception)
    model.task_chunk = {"loop": 1, "chunks of 8": 8}.get(form, options.heads)
    return model.to(options.device)


def step(model: torch.nn.Module, images: torch.Tensor, task: str) -> None:
    """Predict with the maps, or do a training step without the optimiser's."""
    if task == "predict":
        call = {"attention_logits": False} if model.is_abn else {}
        with torch.inference_mode():
            model.eval()(images, **call)
    else:
        targets = {name: torch.zeros(len(images), dtype=torch.long, device=images.device) for name in model.heads}
        ab.abn_loss(model.train()(images), targets).total.backward()
        model.zero_grad(set_to_none=True)
    if images.is_cuda:
        torch.cuda.synchronize()


def peak_gib(form: str, task: str, options: argparse.Namespace) -> float:
    """Return the peak memory of one step in this process: all of it on a CPU, torch's tensors on a GPU."""
    images = torch.randn(options.batch, 3, options.size, options.size, device=options.device)
    model = build(form, options)
    if images.is_cuda:
        torch.cuda.reset_peak_memory_stats()
    else:
        # Building a network proves its gate on copies of it; the peak is counted from here on (proc(5), clear_refs).
        Path("/proc/self/clear_refs").write_text("5")
    step(model, images, task)
    if images.is_cuda:
        return torch.cuda.max_memory_allocated() / 2**30
    # Not getrusage: what it gives begins with the memory of the process that started this one.
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) / 2**20


def in_own_process(form: str, task: str, options: argparse.Namespace) -> float:
    """Return `peak_gib` of a process that does nothing else."""
    given = [f"--{name}={getattr(options, name)}" for name in ("network", "branch", "device")]
    given += [f"--{name}={getattr(options, name)}" for name in ("heads", "batch", "size", "threads")]
    command = [sys.executable, __file__, "--case", form, task, *given]
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


Times = dict[str, list[float]]


def seconds(models: dict[str, torch.nn.Module], task: str, options: argparse.Namespace) -> tuple[Times, Times]:
    """Return the seconds of one step of each form in each round, on the clock and of the processor.

    A round before them does not count.
    """
    images = torch.randn(options.batch, 3, options.size, options.size, device=options.device)
    taken: Times = {form: [] for form in models}
    worked: Times = {form: [] for form in models}
    for number in range(options.rounds + 1):
        forms = list(models)
        # Another one begins each round, so that none always follows the same other.
        for form in forms[number % len(forms) :] + forms[: number % len(forms)]:
            began, work = time.perf_counter(), time.process_time()
            step(models[form], images, task)
            if number:
                taken[form].append(time.perf_counter() - began)
                worked[form].append(time.process_time() - work)
    return taken, worked


def ratios(mine: list[float], others: list[float]) -> list[float]:
    """Return the ratio of two times taken in the same round, for each round."""
    return [one / other for one, other in zip(mine, others, strict=True)]


def main() -> None:
    """Measure every case and write the record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--network", default="resnet50")
    parser.add_argument("--branch", default="lite")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--heads", type=int, default=40)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--size", type=int, default=224, help="side of the images in pixels")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--case", nargs=2, metavar=("FORM", "TASK"), help="print one case's peak memory in GiB")
    parser.add_argument("--out", default=None)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    if options.case:
        print(peak_gib(*options.case, options))
        return
    suffix = "" if options.device == "cpu" else f"-{options.device}"
    folder = Path(__file__).parent / "records" / f"{datetime.date.today():%Y-%m-%d}-heads-shared{suffix}"
    path = Path(options.out) if options.out else folder / "heads.json"
    models = {form: build(form, options) for form in FORMS}
    base = cost(models["plain"], (options.size, options.size)).multiply_adds
    record = {
        "command": "python benchmarks/heads.py",
        "options": {key: value for key, value in vars(options).items() if key not in ("out", "case")},
        "device": torch.cuda.get_device_name()
        if options.device == "cuda"
        else f"{processor()}, {torch.get_num_threads()} threads",
        "versions": {name: version(name) for name in ("torch", "timm")} | {"python": platform.python_version()},
        "protocol": "interleaved turns, another form first in each round; ratio: median over the rounds of the time "
        "over that of the plain backbone in the same round, range: the smallest and largest; processor_ratio: the same "
        "of the processor's time, which other work on the machine moves less; predict: inference mode, "
        "logits and maps; train: forward, loss of both branches, backward; peak memory: a process of its own for each "
        "case (CPU: all of the process; GPU: torch's tensors)",
        "multiply_adds_ratio": {
            form: cost(model, (options.size, options.size)).multiply_adds / base for form, model in models.items()
        },
        "cases": [],
    }
    for task in TASKS:
        times, worked = seconds(models, task, options)
        for form, own in times.items():
            to_plain = ratios(own, times["plain"])
            case = {
                "task": task,
                "form": form,
                "ratio": statistics.median(to_plain),
                "range": [min(to_plain), max(to_plain)],
                "ratio_to_loop": statistics.median(ratios(own, times["loop"])),
                "processor_ratio": statistics.median(ratios(worked[form], worked["plain"])),
                "processor_ratio_to_loop": statistics.median(ratios(worked[form], worked["loop"])),
                "median_seconds": statistics.median(own),
                "peak_gib": in_own_process(form, task, options),
                "seconds": own,
                "processor_seconds": worked[form],
            }
            record["cases"].append(case)
            write_json(path, record)
            print(json.dumps({key: value for key, value in case.items() if not key.endswith("seconds")}), flush=True)
    print(f"Written to {path}")


if __name__ == "__main__":
    main()
