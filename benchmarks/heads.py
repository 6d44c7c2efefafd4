"""What many heads cost in memory: 40 binary heads on ResNet-50 at 224 pixels, by the number of heads run at once.

    python benchmarks/heads.py

Each case runs in a process of its own and reports its peak resident memory. The record goes to
benchmarks/records/DATE-heads/heads.json.
"""

import argparse
import datetime
import json
import platform
import resource
import subprocess
import sys
import time
from importlib.metadata import version
from pathlib import Path

import torch

import attention_branch as ab
from attention_branch.files import write_json

CASES = [(task, chunk) for task in ("predict", "train") for chunk in (1, 8, 40)]


def measure(task: str, chunk: int, heads: int, batch: int) -> dict[str, float | int | str]:
    """Return the seconds and the peak memory of one prediction or training step."""
    torch.set_num_threads(2)
    torch.manual_seed(0)
    model = ab.create_model("resnet50", heads={f"attribute-{number}": 2 for number in range(heads)}, branch="lite")
    model.task_chunk = chunk
    images = torch.randn(batch, 3, 224, 224)
    began = time.perf_counter()
    if task == "train":
        targets = {name: torch.zeros(batch, dtype=torch.long) for name in model.heads}
        ab.abn_loss(model(images), targets).total.backward()
    else:
        with torch.inference_mode():
            model.eval()(images)
    return {
        "task": task,
        "task_chunk": chunk,
        "seconds": round(time.perf_counter() - began, 2),
        "peak_gib": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20, 2),
    }


def main() -> None:
    """Measure every case in a process of its own and write the record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--heads", type=int, default=40)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--case", nargs=2, metavar=("TASK", "CHUNK"), help="measure one case here and print it")
    options = parser.parse_args()
    if options.case:
        print(json.dumps(measure(options.case[0], int(options.case[1]), options.heads, options.batch)))
        return
    cases = []
    for task, chunk in CASES:
        sizes = ["--heads", str(options.heads), "--batch", str(options.batch)]
        command = [sys.executable, __file__, "--case", task, str(chunk), *sizes]
        cases.append(json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout))
        print(cases[-1], flush=True)
    path = Path(__file__).parent / "records" / f"{datetime.date.today():%Y-%m-%d}-heads" / "heads.json"
    versions = {name: version(name) for name in ("torch", "timm")} | {"python": platform.python_version()}
    what = {"network": "resnet50", "branch": "lite", "image_size": 224, "heads": options.heads, "batch": options.batch}
    write_json(path, {"command": "python benchmarks/heads.py", **what, "versions": versions, "cases": cases})
    print(f"Written to {path}")


if __name__ == "__main__":
    main()
