"""What an explanation costs beside a plain forward pass: ours, torch-cam's and pytorch-grad-cam's in one run.

    python benchmarks/explain.py                     # ResNet-50, batch 8, two threads: the docs' table
    python benchmarks/explain.py --device cuda --batch 64

Time: every kind in turns, median over the rounds of the ratio to the plain forward pass of the same round. Memory: the
highest sum of live allocations during one call above what was there before it (torch's own profile of allocations, CPU
or GPU), as a multiple of the plain forward pass's. The plain pass runs in inference mode. The libraries are used as
their readmes show: set up once, then called per batch, maps for the predicted classes.
"""

import argparse
import datetime
import gc
import json
import platform
import statistics
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

import torch
from torchvision.models import get_model

import attention_branch as ab
from attention_branch.files import write_json
from attention_branch.hardware import processor

OURS = ("cam", "grad-cam", "grad-cam++", "hires-cam", "layer-cam")


def others(model: torch.nn.Module, images: torch.Tensor) -> dict[str, Callable[[], object]]:
    """Return one call for each method of the two libraries."""
    import pytorch_grad_cam
    import torchcam.methods

    calls: dict[str, Callable[[], object]] = {}
    for name, kind in (("cam", "CAM"), ("grad-cam", "GradCAM"), ("grad-cam++", "GradCAMpp"), ("layer-cam", "LayerCAM")):
        options = {"fc_layer": "fc"} if name == "cam" else {}

        def torch_cam(kind=kind, options=options):
            with getattr(torchcam.methods, kind)(model, target_layer="layer4", **options) as extractor:
                # Frozen weights need an input that asks for gradients; it is how that library is used without training.
                scores = model(images)
                return extractor(scores.argmax(1).tolist(), scores)

        calls[f"torch-cam {name}"] = torch_cam
    for name, kind in (
        ("grad-cam", "GradCAM"),
        ("grad-cam++", "GradCAMPlusPlus"),
        ("hires-cam", "HiResCAM"),
        ("layer-cam", "LayerCAM"),
    ):

        def grad_cam(kind=kind):
            # Made anew for each call: its hooks stay while it lives and would slow every other kind.
            with getattr(pytorch_grad_cam, kind)(model, [model.layer4]) as extractor:
                return extractor(input_tensor=images, targets=None)

        calls[f"pytorch-grad-cam {name}"] = grad_cam
    return calls


def peak_bytes(call: Callable[[], object], device: str) -> int:
    """Return the most bytes alive during a call above those alive before it."""
    gc.collect()
    if device == "cuda":
        torch.cuda.synchronize()
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        call()
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated() - before
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        result = call()
    del result
    alive = most = 0
    for event in profile.profiler.kineto_results.events():
        if event.name() == "[memory]":
            alive += event.nbytes()
            most = max(most, alive)
    return most


def main() -> None:
    """Measure and write the record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--network", default="resnet50", help="a torchvision ResNet")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--out", default=None)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    model = get_model(options.network, weights=None).to(options.device).eval()
    images = torch.randn(options.batch, 3, options.size, options.size, device=options.device)

    def plain() -> torch.Tensor:
        with torch.inference_mode():
            return model(images)

    calls: dict[str, Callable[[], object]] = {"plain": plain}
    calls |= {f"ours {name}": lambda name=name: ab.explain(model, images, name) for name in OURS}
    calls["ours grad-cam, 8 classes of one image"] = lambda: ab.explain(model, images[:1], "grad-cam", list(range(8)))
    with torch.inference_mode():
        one = images[:1].clone()

    def plain_one() -> torch.Tensor:
        with torch.inference_mode():
            return model(one)

    calls["plain, one image"] = plain_one
    calls |= others(model, images)

    def seconds(call: Callable[[], object]) -> float:
        began = time.perf_counter()
        call()
        if options.device == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter() - began

    memory = {}
    for name, call in calls.items():
        call()
        memory[name] = peak_bytes(call, options.device)
    times: dict[str, list[float]] = {name: [] for name in calls}
    for turn in range(options.rounds):
        for name, call in calls.items():
            times[name].append(seconds(call))
        print(f"round {turn + 1} of {options.rounds}", flush=True)

    def base(name: str) -> str:
        return "plain, one image" if "one image" in name else "plain"

    cases = {
        name: {
            "time_ratio": statistics.median(a / b for a, b in zip(values, times[base(name)], strict=True)),
            "memory_ratio": memory[name] / memory[base(name)],
            "peak_mib": memory[name] / 2**20,
            "seconds": values,
        }
        for name, values in times.items()
    }
    folder = Path(__file__).parent / "records" / f"{datetime.date.today():%Y-%m-%d}-explain-{options.device}"
    path = Path(options.out) if options.out else folder / "explain.json"
    names = ("torch", "torchvision", "torchcam", "grad-cam")
    write_json(
        path,
        {
            "command": "python benchmarks/explain.py",
            "options": {key: value for key, value in vars(options).items() if key != "out"},
            "device": torch.cuda.get_device_name() if options.device == "cuda" else processor(),
            "versions": {name: version(name) for name in names} | {"python": platform.python_version()},
            "protocol": "interleaved turns, median of the rounds' ratios to the plain forward pass (inference mode); "
            "memory: highest sum of live allocations during one call, as a multiple of the plain pass's",
            "cases": cases,
        },
    )
    for name, case in cases.items():
        print(f"{name:40s} time x{case['time_ratio']:.2f}  memory x{case['memory_ratio']:.2f}")
    print(json.dumps({"written": str(path)}))


if __name__ == "__main__":
    main()
