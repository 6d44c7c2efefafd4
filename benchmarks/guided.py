"""What guided augmentation costs: training steps with and without it, in interleaved rounds.

    python benchmarks/guided.py                                   # this machine's processor, one thread
    python benchmarks/guided.py --precision bf16 --device cuda

Each case is a network, a branch, a size and a batch of random bytes, trained by the fast path (SGD, no augmentation, a
small rate, so that no loss diverges). Its kinds take turns in each round, another one first each time, so that a slow
moment of the machine meets all; the median over the rounds of the ratios to `none` in the same round counts, by the
clock and by the processor's time. The ratio of the floating-point operations is reckoned too (`--rounds 0` does only
that): it does not depend on the machine, and leaves out what takes time without them. The record goes to
benchmarks/records/DATE-guided-cost/PRECISION-DEVICE.json.
"""

import argparse
import datetime
import json
import platform
import statistics
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.flop_counter import FlopCounterMode

from attention_branch.data.resident import ResidentImages
from attention_branch.files import write_json
from attention_branch.hardware import processor
from attention_branch.models import create_model
from attention_branch.training import recipe
from attention_branch.training.fast import FastTrainer

KINDS: dict[str, dict[str, Any]] = {
    "none": {},
    "crop": {"guided": "crop"},
    "drop": {"guided": "drop"},
    "cutmix": {"guided": "cutmix"},
    "crop at random places": {"guided": "crop", "guided_by": "random"},
    "crop, share 0.5": {"guided": "crop", "guided_share": 0.5},
}
CASES = (
    ("resnet20", "lite", 32, 64, 2),
    ("resnet20", "paper", 32, 64, 2),
    ("resnet50", "lite", 128, 8, 1),
    ("resnet50", "paper", 128, 8, 1),
)
"""Network, branch, side in pixels, images in a step, steps in a turn."""


def made(case: tuple[str, str, int, int, int], kind: str, options: argparse.Namespace) -> FastTrainer:
    """Return a trainer of one kind, its first steps done."""
    network, branch, side, batch, steps = case
    config = recipe(
        "cifar", data="random bytes", model=network, branch=branch, batch_size=batch, lr=1e-3, augment="none",
        precision=options.precision, **KINDS[kind],
    )  # fmt: skip
    torch.manual_seed(0)
    generator = np.random.default_rng(0)
    pixels = generator.integers(0, 256, (4 * batch, side, side, 3), dtype=np.uint8)
    # The same few pictures again and again: enough for as many steps as there are rounds.
    pixels = np.concatenate([pixels] * max(1, -(-(options.rounds + 2) * steps // 4)))
    images = ResidentImages(pixels, generator.integers(0, 10, len(pixels)), options.device)
    trainer = FastTrainer(config, create_model(network, num_classes=10, branch=branch), images, options.device)
    trainer.advance(1)
    return trainer


def reckoned(case: tuple[str, str, int, int, int]) -> dict[str, float]:
    """Return the ratio of a step by floating-point operations alone: the way back counted as two ways forward."""
    network, branch, side, batch, _ = case
    model = create_model(network, num_classes=10, branch=branch).eval()
    counts = []
    for call in (model.attend, model):
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            call(torch.zeros(1, 3, side, side))
        counts.append(counter.get_total_flops())
    shares = {kind: settings.get("guided_share", 0.25) if settings else 0.0 for kind, settings in KINDS.items()}
    return {kind: 1 + round(share * batch) / batch * counts[0] / (3 * counts[1]) for kind, share in shares.items()}


def measured(case: tuple[str, str, int, int, int], options: argparse.Namespace) -> dict[str, Any]:
    """Return a case's ratios and seconds."""
    network, branch, side, batch, steps = case
    found: dict[str, Any] = {"network": network, "branch": branch, "side": side, "batch": batch, "steps": steps}
    found["operations_ratio"] = reckoned(case)
    if not options.rounds:
        return found
    trainers = {kind: made(case, kind, options) for kind in KINDS}
    seconds: dict[str, list[float]] = {kind: [] for kind in KINDS}
    worked: dict[str, list[float]] = {kind: [] for kind in KINDS}
    for number in range(options.rounds + 1):
        kinds = list(KINDS)
        for kind in kinds[number % len(kinds) :] + kinds[: number % len(kinds)]:
            began, work = time.perf_counter(), time.process_time()
            trainers[kind].advance(case[4])
            if options.device != "cpu":
                torch.cuda.synchronize()
            if number:  # the round before the first does not count
                seconds[kind].append(time.perf_counter() - began)
                worked[kind].append(time.process_time() - work)
    for name, times in (("ratio", seconds), ("processor_ratio", worked)):
        ratios = {kind: [one / plain for one, plain in zip(times[kind], times["none"], strict=True)] for kind in KINDS}
        found[name] = {kind: statistics.median(values) for kind, values in ratios.items()}
        found[f"{name}_range"] = {kind: [min(values), max(values)] for kind, values in ratios.items()}
    return found | {"seconds": seconds, "processor_seconds": worked}


def main() -> None:
    """Measure every case and write the record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--precision", choices=("32", "bf16"), default="32")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=7, help="0 reckons by operations only")
    parser.add_argument("--out", default=None)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    folder = Path(__file__).parent / "records" / f"{datetime.date.today():%Y-%m-%d}-guided-cost"
    path = Path(options.out) if options.out else folder / f"{options.precision}-{options.device}.json"
    record: dict[str, Any] = {
        "command": f"python benchmarks/guided.py --precision {options.precision} --device {options.device} "
        f"--threads {options.threads} --rounds {options.rounds}",
        "device": torch.cuda.get_device_name() if options.device != "cpu" else processor(),
        "threads": options.threads,
        "versions": {name: version(name) for name in ("torch", "timm")} | {"python": platform.python_version()},
        "protocol": "training steps of the fast path, share 0.25 unless said; ratio: median over the rounds of the "
        "time over that of `none` in the same round; processor_ratio: the same of the processor's time, which other "
        "work on the machine moves less; range: the smallest and largest; operations_ratio: reckoned from the "
        "floating-point operations of extractor and branch over three times those of the whole network",
        "cases": [],
    }
    for case in CASES:
        record["cases"].append(measured(case, options))
        write_json(path, record)
        for name in ("operations_ratio", "processor_ratio"):
            shown = {kind: round(value, 3) for kind, value in record["cases"][-1].get(name, {}).items()}
            print(f"{case}: {name} {json.dumps(shown)}", flush=True)
    print(f"Written to {path}")


if __name__ == "__main__":
    main()
