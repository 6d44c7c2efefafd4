"""What the attention branch costs in time: ABN against its plain backbone, side by side in one run.

    python benchmarks/speed.py                       # this machine's processor, the README's table
    python benchmarks/speed.py --device cuda --precision bf16 --compile

Each case times prediction with map, and a training step, of the plain backbone, the lite and the paper branch in turns,
so that a slow moment of the machine meets all three; the median of the rounds' ratios counts. The record goes to
benchmarks/records/DATE-speed-DEVICE/speed.json and is extended case by case, so a stopped run loses one case at most.
"""

import argparse
import datetime
import json
import platform
import statistics
import time
from importlib.metadata import version
from pathlib import Path

import torch

import attention_branch as ab
from attention_branch.files import write_json
from attention_branch.hardware import processor
from attention_branch.models.cost import cost

NETWORKS = {"resnet50": (1000, 224), "resnet110": (100, 32)}
KINDS = ("plain", "lite", "paper")


def build(name: str, classes: int, kind: str) -> torch.nn.Module:
    """Return the plain backbone or the network with one of the two branches."""
    torch.manual_seed(0)
    return ab.create_backbone(name, classes) if kind == "plain" else ab.create_model(name, classes, branch=kind)


def steps(model: torch.nn.Module, images: torch.Tensor, labels: torch.Tensor, training: bool, bf16: bool):
    """Return a function that does one prediction with map (no attention logits) or one training step."""
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3, momentum=0.9)
    call = model if training or not getattr(model, "is_abn", False) else lambda x: model(x, attention_logits=False)

    def predict() -> None:
        with torch.inference_mode(), torch.autocast(images.device.type, torch.bfloat16, enabled=bf16):
            call(images)

    def train() -> None:
        with torch.autocast(images.device.type, torch.bfloat16, enabled=bf16):
            output = call(images)
        ab.abn_loss(output, labels).total.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return train if training else predict


def seconds(step, device: str, least: float) -> float:
    """Return the seconds of one call, from as many as fill `least` seconds."""
    count, began = 0, time.perf_counter()
    while True:
        step()
        if device == "cuda":
            torch.cuda.synchronize()
        count += 1
        if (taken := time.perf_counter() - began) >= least:
            return taken / count


def paired(mine: list[float], plain: list[float]) -> float:
    """Return the median over the rounds of the ratio of two times taken in the same round."""
    return statistics.median(one / other for one, other in zip(mine, plain, strict=True))


def main() -> None:
    """Measure every case and write the record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--precision", choices=("32", "bf16"), default="32")
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=15, help="turns of the three networks; the median counts")
    parser.add_argument("--least", type=float, default=0.1, help="seconds measured per turn at the least")
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 32])
    parser.add_argument("--out", default=None)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    suffix = options.device + "-bf16" * (options.precision == "bf16") + "-compile" * options.compile
    folder = Path(__file__).parent / "records" / f"{datetime.date.today():%Y-%m-%d}-speed-{suffix}"
    path = Path(options.out) if options.out else folder / "speed.json"
    record = {
        "command": "python benchmarks/speed.py",
        "options": {key: value for key, value in vars(options).items() if key != "out"},
        "device": torch.cuda.get_device_name()
        if options.device == "cuda"
        else f"{processor()}, {torch.get_num_threads()} threads",
        "versions": {name: version(name) for name in ("torch", "timm")} | {"python": platform.python_version()},
        "protocol": "interleaved turns; median over the rounds of the ratio to the plain backbone in the same round; "
        "predict: inference mode, logits and map; train: forward, loss of both branches, backward, SGD step",
        "cases": [],
    }
    for name, (classes, size) in NETWORKS.items():
        models = {
            kind: build(name, classes, kind).to(options.device, memory_format=torch.channels_last) for kind in KINDS
        }
        base = cost(models["plain"]).multiply_adds
        ratios = {kind: cost(model).multiply_adds / base for kind, model in models.items()}
        for training in (False, True):
            for batch in options.batches:
                if training and batch == 1:
                    continue  # batch norms cannot learn from one image
                images = torch.randn(batch, 3, size, size, device=options.device)
                images = images.contiguous(memory_format=torch.channels_last)
                labels = torch.randint(0, classes, (batch,), device=options.device)
                run = {}
                for kind, model in models.items():
                    model.train(training)
                    ready = torch.compile(model) if options.compile else model
                    ready.is_abn = model.is_abn
                    run[kind] = steps(ready, images, labels, training, options.precision == "bf16")
                times: dict[str, list[float]] = {kind: [] for kind in KINDS}
                for kind in KINDS:
                    seconds(run[kind], options.device, options.least)
                for _ in range(options.rounds):
                    for kind in KINDS:
                        times[kind].append(seconds(run[kind], options.device, options.least))
                medians = {kind: statistics.median(values) for kind, values in times.items()}
                case = {
                    "network": name,
                    "image_size": size,
                    "classes": classes,
                    "task": "train" if training else "predict",
                    "batch": batch,
                    "images_per_second": {kind: batch / value for kind, value in medians.items()},
                    "ratio": {kind: paired(values, times["plain"]) for kind, values in times.items()},
                    "multiply_adds_ratio": ratios,
                    "seconds": times,
                }
                record["cases"].append(case)
                write_json(path, record)
                print(json.dumps({key: case[key] for key in ("network", "task", "batch", "ratio")}), flush=True)
    print(f"Written to {path}")


if __name__ == "__main__":
    main()
