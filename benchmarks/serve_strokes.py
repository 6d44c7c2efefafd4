"""How long a stroke on the page takes: a map of one's own goes to the server, the new answer comes back.

    python benchmarks/serve_strokes.py --networks resnet50@224 resnet18@224 resnet20@32 --strokes 40

For each network, with the lite and the paper branch, `abn serve` runs on the saved network (torch) and on its exported
file (onnxruntime). One picture is opened; every stroke is a whole HTTP request with another map, one after the other.
Beside it the time of a whole prediction of the same picture. The record, benchmarks/records/DATE-serve/strokes.json,
holds medians and 95 % quantiles in milliseconds.
"""

import argparse
import asyncio
import datetime
import platform
import statistics
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import torch

import attention_branch as ab
from attention_branch.files import write_json
from attention_branch.hardware import processor, usable_cores
from serve_load import HERE, PACKAGES, Running, commands, pictures, ready


def measured(command: list[str], port: int, content: bytes, strokes: int) -> dict[str, Any]:
    """Start a server, ask it, stop it; return milliseconds."""
    server = Running(command, port)
    random = np.random.default_rng(0)
    files = {"files": ("a.jpg", content, "image/jpeg")}
    try:
        asyncio.run(ready(server))
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=60) as client:
            opened = client.post("/v1/images", files=files).json()
            shape = np.array(opened["maps"][0]["values"]).shape
            taken: dict[str, list[float]] = {"stroke": [], "prediction": []}
            for _ in range(strokes + 5):
                body = {"maps": {"label": random.random(shape).tolist()}}
                begun = time.perf_counter()
                client.post(f"/v1/images/{opened['id']}/answer", json=body).raise_for_status()
                taken["stroke"].append(1000 * (time.perf_counter() - begun))
                begun = time.perf_counter()
                client.post("/v1/predict", files=files).raise_for_status()
                taken["prediction"].append(1000 * (time.perf_counter() - begun))
    finally:
        server.stop()
    return {
        name: {
            "median_ms": round(statistics.median(times[5:]), 1),
            "p95_ms": round(float(np.quantile(times[5:], 0.95)), 1),
        }
        for name, times in taken.items()
    }


def main() -> None:
    """Measure every network and write the record after each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", nargs="+", default=["resnet50@224", "resnet18@224", "resnet20@32"])
    parser.add_argument("--branches", nargs="+", default=["lite", "paper"])
    parser.add_argument("--strokes", type=int, default=40)
    parser.add_argument("--port", type=int, default=7992)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    record: dict[str, Any] = {
        "command": f"python benchmarks/serve_strokes.py {' '.join(sys.argv[1:])}".strip(),
        "hardware": f"{usable_cores()} cores, {processor()}",
        "versions": {name: version(name) for name in PACKAGES} | {"python": platform.python_version()},
        "date": str(datetime.date.today()),
        "networks": {},
    }
    for named in options.networks:
        name, _, side = named.partition("@")
        for branch in options.branches:
            torch.manual_seed(0)
            model = ab.create_model(name, num_classes=1000, branch=branch, image_size=int(side)).eval()
            with tempfile.TemporaryDirectory() as place:
                folder = Path(place) / "model"
                model.save_pretrained(folder)
                ab.export(folder, folder.with_suffix(".onnx"), attention_logits=True, data="random")
                content, started = pictures(int(side), 1)[0], commands(folder, options.port, 16)
                found = {
                    kind: measured(started[kind], options.port, content, options.strokes) for kind in ("torch", "onnx")
                }
            record["networks"][f"{named} {branch}"] = found
            print(named, branch, found, flush=True)
            write_json(options.out or HERE / "records" / f"{datetime.date.today()}-serve" / "strokes.json", record)


if __name__ == "__main__":
    main()
