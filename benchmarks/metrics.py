"""What measuring a map costs: deletion and insertion beside torch-cam's, ROAD's imputation beside scipy's solver.

    python benchmarks/metrics.py                     # two threads, 224x224: the docs' table
    python benchmarks/metrics.py --device cuda --images 16

Each case times both ways in turns and takes the median of the rounds' ratios, theirs to ours: above 1 ours is faster.
Deletion and insertion: the same maps, zero baselines, 28 steps and --batch images at most in one pass (on a CPU ours
takes fewer by itself); torch-cam gets its maps handed to it, so that neither side explains, and the images each sends
through the model are counted. Each case has a process of its own: what one leaves of its memory makes the next faster
or slower. Imputation: 10 to 90 % of 8 images, by a connected map (a 7x7 grid, interpolated) and by noise; theirs is
pytorch-grad-cam's, which sets a sparse system up for every image and percentile and solves it with scipy's spsolve.
Both answers are compared.
"""

import argparse
import datetime
import json
import multiprocessing
import platform
import statistics
import time
from collections.abc import Callable
from contextlib import nullcontext
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch.nn import functional as F
from torchvision.models import get_model

from attention_branch.files import write_json
from attention_branch.hardware import processor
from attention_branch.metrics import InsertionMinusDeletion
from attention_branch.metrics.faithfulness import ranks
from attention_branch.metrics.imputation import noisy_linear_imputation

PERCENTILES = range(10, 100, 10)
STEPS = 28


class GivenMaps:
    """Hands maps to torch-cam's metric in the place of an extractor."""

    def __init__(self, model: torch.nn.Module, maps: torch.Tensor) -> None:
        self.model, self.maps = model, maps

    def __call__(self, *_: Any, **__: Any) -> list[torch.Tensor]:
        """Return the maps."""
        return [self.maps]

    def fuse_cams(self, cams: list[torch.Tensor]) -> torch.Tensor:
        """Return the only map."""
        return cams[0]

    def _hooks_off(self) -> Any:
        return nullcontext()


def maps_of(kind: str, count: int, size: int, device: str) -> torch.Tensor:
    """Return maps (count, size, size): "connected" holes or "noise"."""
    generator = torch.Generator().manual_seed(0)
    side = 7 if kind == "connected" else size
    maps = torch.rand(count, 1, side, side, generator=generator)
    return F.interpolate(maps, size=(size, size), mode="bilinear", align_corners=False)[:, 0].to(device)


def paired(ours: Callable[[], Any], theirs: Callable[[], Any], rounds: int, device: str) -> dict[str, Any]:
    """Return the median ratios, theirs to ours, of the time that passed and of the processor time, and the seconds.

    Processor time hardly depends on what else the machine does; it adds the threads' up.
    """
    seconds: dict[str, list[float]] = {"ours": [], "theirs": []}
    busy: dict[str, list[float]] = {"ours": [], "theirs": []}
    for turn in range(rounds):
        # Who begins changes from round to round.
        for name, call in sorted((("ours", ours), ("theirs", theirs)), reverse=turn % 2 == 1):
            began, used = time.perf_counter(), time.process_time()
            call()
            if device == "cuda":
                torch.cuda.synchronize()
            seconds[name].append(time.perf_counter() - began)
            busy[name].append(time.process_time() - used)
    found: dict[str, Any] = {}
    for name, times in (("ratio", seconds), ("processor_time_ratio", busy)):
        found[name] = statistics.median(b / a for a, b in zip(times["ours"], times["theirs"], strict=True))
    return found | {"seconds": seconds, "processor_seconds": busy}


def curves_case(network: str, options: argparse.Namespace) -> dict[str, Any]:
    """Time deletion and insertion of one network."""
    from torchcam.metrics import DeletionInsertionMetric

    torch.manual_seed(0)
    model = get_model(network, weights=None).to(options.device).eval()
    images = torch.randn(options.images, 3, options.size, options.size, device=options.device)
    maps = maps_of("connected", options.images, options.size, options.device)
    seen = 0

    def count(_: torch.nn.Module, inputs: tuple[torch.Tensor]) -> None:
        nonlocal seen
        seen += len(inputs[0])

    metric = InsertionMinusDeletion(steps=STEPS, insertion_baseline="zero", batch_size=options.batch)
    theirs = DeletionInsertionMetric(
        GivenMaps(model, maps), torch.nn.Softmax(dim=-1), steps=STEPS, batch_size=options.batch
    )
    handle = model.register_forward_pre_hook(count)
    metric.update(model, images, maps)
    ours_seen, seen = seen, 0
    theirs.update(images)
    theirs_seen = seen
    handle.remove()
    deletion, insertion = metric.parts()
    summary = theirs.summary()
    case = paired(
        lambda: metric.update(model, images, maps), lambda: theirs.update(images), options.rounds, options.device
    )
    return case | {
        "network": network,
        "images": options.images,
        "forward_images": {"ours": ours_seen, "theirs": theirs_seen},
        "ratio_per_forward_image": case["ratio"] * ours_seen / theirs_seen,
        "difference": {
            "deletion": abs(deletion.compute().mean - summary["deletion_auc"]),
            "insertion": abs(insertion.compute().mean - summary["insertion_auc"]),
        },
    }


def imputation_case(kind: str, options: argparse.Namespace) -> dict[str, Any]:
    """Time the imputation of 8 images at nine percentiles."""
    from pytorch_grad_cam.metrics.road import NoisyLinearImputer

    generator = torch.Generator().manual_seed(1)
    images = F.avg_pool2d(torch.randn(8, 3, options.size, options.size, generator=generator), 5, 1, 2) * 4
    limits = torch.tensor([round(options.size**2 * percent / 100) for percent in PERCENTILES])
    removed = ranks(maps_of(kind, 8, options.size, "cpu"))[:, None] < limits[:, None, None]
    here, holes = images.to(options.device), removed.to(options.device)
    solver = NoisyLinearImputer(noise=0.0)
    answers: dict[str, torch.Tensor] = {}

    def ours() -> None:
        answers["ours"] = noisy_linear_imputation(here, holes, noise=0)

    def theirs() -> None:
        answers["theirs"] = torch.stack(
            [
                torch.stack([solver(image, kept) for kept in masks])
                for image, masks in zip(images, (~removed).float(), strict=True)
            ]
        )

    case = paired(ours, theirs, options.solver_rounds, options.device)
    difference = (answers["ours"].cpu() - answers["theirs"]).abs().max().item()
    return case | {"holes": kind, "images": 8, "percentiles": list(PERCENTILES), "largest_difference": difference}


def main() -> None:
    """Measure every case and write the record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu")
    parser.add_argument(
        "--networks", nargs="*", default=["resnet18", "resnet50", "mobilenet_v3_small"], help="torchvision's names"
    )
    parser.add_argument("--images", type=int, default=2, help="images of deletion and insertion")
    parser.add_argument("--batch", type=int, default=32, help="images in one forward pass")
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=9, help="of deletion and insertion")
    parser.add_argument("--solver-rounds", type=int, default=3, help="of the imputation")
    parser.add_argument("--out", default=None)
    options = parser.parse_args()
    folder = Path(__file__).parent / "records" / f"{datetime.date.today():%Y-%m-%d}-metrics-{options.device}"
    path = Path(options.out) if options.out else folder / "metrics.json"
    names = ("torch", "torchvision", "scipy", "torchcam", "grad-cam")
    record: dict[str, Any] = {
        "command": "python benchmarks/metrics.py",
        "options": {key: value for key, value in vars(options).items() if key != "out"},
        "device": torch.cuda.get_device_name() if options.device == "cuda" else processor(),
        "versions": {name: version(name) for name in names} | {"python": platform.python_version()},
        "protocol": "interleaved turns, median of the rounds' ratios of theirs to ours: above 1 ours is faster",
        "deletion_and_insertion": [],
        "imputation": [],
    }
    cases = [(curves_case, "deletion_and_insertion", network) for network in options.networks]
    cases += [(imputation_case, "imputation", kind) for kind in ("connected", "noise")]
    with multiprocessing.get_context("spawn").Pool(
        1, initializer=torch.set_num_threads, initargs=(options.threads,), maxtasksperchild=1
    ) as alone:
        for measure, group, case in cases:
            record[group].append(alone.apply(measure, (case, options)))
            write_json(path, record)
            _print(record[group][-1])
    print(f"Written to {path}")


def _print(case: dict[str, Any]) -> None:
    print(json.dumps({key: value for key, value in case.items() if not key.endswith("seconds")}), flush=True)


if __name__ == "__main__":
    main()
