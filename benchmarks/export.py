"""What an export takes, how near its file is to the network, and what an answer to a given map costs.

    python benchmarks/export.py --out FOLDER [--run RUN] [--images 500]

Random weights, seed 0: resnet20 at 32 pixels and resnet50 at 224, both with the lite branch: seconds, bytes, parity;
then medians of 20 single-image calls in onnxruntime: whole graph, features, answer to a given map (2 threads). With a
run also the drift of fp16 and int8 on images of its data.
"""

import argparse
import json
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np
import torch

import attention_branch as ab
from attention_branch.files import write_json
from attention_branch.hardware import processor
from attention_branch.onnx_model import OnnxModel
from attention_branch.versions import versions

TIMES, THREADS = 20, 2


def milliseconds(calls) -> dict[str, dict[str, float]]:
    """Return median, least and largest time of `TIMES` calls of each, in turns, after three rounds for warming up."""
    taken: dict[str, list[float]] = {name: [] for name in calls}
    for count in range(TIMES + 3):
        for name, call in calls.items():
            began = time.perf_counter()
            call()
            if count >= 3:
                taken[name].append(1000 * (time.perf_counter() - began))
    return {
        name: {"median": round(statistics.median(all_), 2), "least": round(min(all_), 2), "most": round(max(all_), 2)}
        for name, all_ in taken.items()
    }


def measure(name: str, classes: int, folder: Path) -> dict:
    """Export a network of random weights and time its file."""
    torch.manual_seed(0)
    network = ab.create_model(name, classes, branch="lite").eval()
    done = ab.export(network, folder / f"{name}.onnx", data="random")
    model = OnnxModel.load(done.path, threads=THREADS)
    side = network.preprocessing.size[0]
    images = np.random.default_rng(0).standard_normal((1, 3, side, side), dtype=np.float32)
    given = np.random.default_rng(1).random((1, *model.map_size), dtype=np.float32)
    _, features = model.run_with_features(images)
    with torch.no_grad():
        expected = network(torch.from_numpy(images), attention=torch.from_numpy(given)).logits.numpy()
    return {
        "network": name,
        "pixels": side,
        "classes": classes,
        "export_seconds": round(done.seconds, 1),
        "bytes": done.bytes,
        "parity": done.details["parity"],
        "given_map_difference": float(np.abs(model.answer(features, given) - expected).max()),
        "milliseconds": milliseconds(
            {
                "whole graph": lambda: model.run(images),
                "whole graph with features": lambda: model.run_with_features(images),
                "answer to a given map": lambda: model.answer(features, given),
            }
        ),
    }


def main() -> None:
    """Measure and write export.json."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", required=True)
    parser.add_argument("--run")
    parser.add_argument("--images", type=int, default=500)
    arguments = parser.parse_args()
    torch.set_num_threads(THREADS)
    found: dict = {"threads": THREADS, "calls": TIMES, "cpu": processor(), "versions": {}}
    found["versions"] = versions("torch", "timm", "onnx", "onnxscript", "onnxruntime", "numpy")
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        found["networks"] = [measure("resnet20", 10, folder), measure("resnet50", 1000, folder)]
        if arguments.run:
            found["run"] = json.loads((Path(arguments.run) / "summary.json").read_text(encoding="utf-8"))
            found["precisions"] = {}
            for precision in ("32", "fp16", "int8"):
                path = folder / f"{precision}.onnx"
                done = ab.export(arguments.run, path, precision=precision, images=arguments.images)
                model = OnnxModel.load(path, threads=THREADS)
                image = np.zeros((1, 3, *model.preprocessing.size), dtype=np.float32)
                found["precisions"][precision] = {
                    "bytes": done.bytes,
                    "parity": done.details["parity"],
                    "drift": done.details.get("drift"),
                    "milliseconds": milliseconds({"whole graph": lambda model=model, image=image: model.run(image)}),
                }
    write_json(Path(arguments.out) / "export.json", found)
    print(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
