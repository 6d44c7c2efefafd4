"""The server under load: latency and losses at 64 clients, and its throughput beside a plain handler's.

    python benchmarks/serve_load.py --networks resnet20@32 resnet50@224 --clients 64 --seconds 120

For each network five servers answer the same pictures: `abn serve` on the saved network as it comes (with onnxruntime
beside torch) and with `--engine torch`, `abn serve` on its exported ONNX file and on that of `--precision int8`, and
`plain_handler.py`. They take turns, one process at a time with the machine to itself, in rounds of `--round` seconds;
the medians of the rounds' ratios count. Then `abn serve` runs for `--seconds`.
A client sends one picture after the other over one connection; a 429 or 503 is waited for as Retry-After says, at most
2 s. A request that neither is answered nor refused within 60 s counts as hung, a broken connection as lost.
The record goes to benchmarks/records/DATE-serve/load.json and grows network by network.
"""

import argparse
import asyncio
import datetime
import io
import platform
import re
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from importlib.metadata import version
from pathlib import Path
from typing import Any

import aiohttp
import numpy as np
import torch
from PIL import Image

import attention_branch as ab
from attention_branch.files import write_json
from attention_branch.hardware import processor, usable_cores

HERE = Path(__file__).parent
PACKAGES = ("torch", "onnxruntime", "fastapi", "uvicorn", "pillow", "aiohttp")


def pictures(side: int, count: int = 64) -> list[bytes]:
    """Return JPEG pictures of about a phone's preview size, or of the network's own where that is tiny."""
    random = np.random.default_rng(0)
    size = (640, 480) if side >= 128 else (side, side)
    found = []
    for _ in range(count):
        small = Image.fromarray(random.integers(0, 256, (12, 16, 3), dtype=np.uint8))
        buffer = io.BytesIO()
        small.resize(size, Image.Resampling.BICUBIC).save(buffer, "JPEG", quality=90)
        found.append(buffer.getvalue())
    return found


def saved(name: str, side: int, folder: Path) -> Path:
    """Save an untrained network: what it answers does not matter to how long it takes."""
    torch.manual_seed(0)
    classes = 1000 if side >= 128 else 100
    model = ab.create_model(name, num_classes=classes, branch="lite", image_size=side)
    model.eval().save_pretrained(folder)
    return folder


def written(folder: Path, sent: list[bytes]) -> Path:
    """Write pictures as data that int8 takes its ranges from."""
    for number, content in enumerate(sent):
        path = folder / f"class{number % 2}" / f"{number}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    return folder


class Running:
    """A server in a process of its own."""

    def __init__(self, command: list[str], port: int) -> None:
        self.process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        self.address = f"http://127.0.0.1:{port}/v1/predict"
        self.most = 0.0

    def memory(self) -> float:
        """Return the process's resident memory in MiB, and remember the most."""
        text = Path(f"/proc/{self.process.pid}/status").read_text()
        now = int(re.search(r"VmRSS:\s+(\d+)", text)[1]) / 1024  # type: ignore[index]
        self.most = max(self.most, now)
        return now

    def stop(self) -> None:
        """End the server and wait for it."""
        self.process.send_signal(signal.SIGINT)
        try:
            self.process.wait(20)
        except subprocess.TimeoutExpired:
            self.process.kill()


async def ready(server: Running) -> None:
    """Wait until a server answers."""
    async with aiohttp.ClientSession() as session:
        while server.process.poll() is None:
            try:
                async with session.get(server.address.rpartition("/")[0]):
                    return
            except aiohttp.ClientError:
                await asyncio.sleep(0.2)
    raise RuntimeError(f"The server has ended before it answered: {server.process.args!r}")


async def load(server: Running, sent: list[bytes], clients: int, seconds: float) -> dict[str, Any]:
    """Let clients send pictures for some seconds; return what came back and how long it took."""
    counts: Counter[str] = Counter()
    times: list[float] = []
    refused_times: list[float] = []
    memory = [server.memory()]
    end = time.monotonic() + seconds
    limit = aiohttp.ClientTimeout(total=60)

    async def client(number: int, session: aiohttp.ClientSession) -> None:
        turn = number
        while time.monotonic() < end:
            form = aiohttp.FormData()
            form.add_field("files", sent[turn % len(sent)], filename="a.jpg", content_type="image/jpeg")
            turn += clients
            begun = time.monotonic()
            try:
                async with session.post(server.address, data=form) as reply:
                    await reply.read()
            except TimeoutError:
                counts["hung"] += 1
                continue
            except aiohttp.ClientError:
                counts["lost"] += 1
                continue
            counts[str(reply.status)] += 1
            if reply.status == 200:
                times.append(time.monotonic() - begun)
            elif reply.status in (429, 503):
                refused_times.append(time.monotonic() - begun)
                await asyncio.sleep(min(2.0, float(reply.headers.get("Retry-After", 1))))

    async def watch() -> None:
        while time.monotonic() < end:
            await asyncio.sleep(1)
            memory.append(server.memory())

    begun = time.monotonic()
    connector = aiohttp.TCPConnector(limit=clients)
    async with aiohttp.ClientSession(connector=connector, timeout=limit) as session:
        await asyncio.gather(watch(), *(client(number, session) for number in range(clients)))
    took = time.monotonic() - begun
    quantiles = (
        dict(zip(("p50", "p95", "p99", "max"), np.quantile(times, [0.5, 0.95, 0.99, 1]), strict=True))
        if (times)
        else {}
    )
    return {
        "seconds": round(took, 1),
        "statuses": dict(counts),
        "images_per_second": round(len(times) / took, 2),
        "latency_s": {name: round(float(value), 3) for name, value in quantiles.items()},
        "longest_refusal_s": round(max(refused_times), 3) if refused_times else None,
        "memory_mib": {
            "first": round(memory[0]),
            "median": round(statistics.median(memory)),
            "last": round(memory[-1]),
        },
    }


def commands(folder: Path, port: int, batch: int) -> dict[str, list[str]]:
    """Return how each server is started."""
    serve = [sys.executable, "-m", "attention_branch.cli", "serve"]
    options = ["--port", str(port), "--batch-size", str(batch)]
    return {
        "torch": [*serve, str(folder), *options, "--engine", "torch"],
        "default": [*serve, str(folder), *options],
        "onnx": [*serve, str(folder.with_suffix(".onnx")), *options],
        "int8": [*serve, str(folder.with_suffix(".int8.onnx")), *options],
        "plain": [sys.executable, str(HERE / "plain_handler.py"), str(folder), str(port)],
    }


def measure(command: list[str], port: int, sent: list[bytes], clients: int, seconds: float) -> dict[str, Any]:
    """Start a server, warm it up for some requests, put it under load, stop it."""
    server = Running(command, port)
    try:
        asyncio.run(ready(server))
        asyncio.run(load(server, sent, min(8, clients), 3))
        return asyncio.run(load(server, sent, clients, seconds))
    finally:
        server.stop()


def main() -> None:
    """Measure every network and write the record after each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", nargs="+", default=["resnet20@32", "resnet50@224"])
    parser.add_argument("--clients", type=int, default=64)
    parser.add_argument("--seconds", type=float, default=120)
    parser.add_argument("--round", type=float, default=15)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--port", type=int, default=7990)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    out = options.out or HERE / "records" / f"{datetime.date.today()}-serve" / "load.json"
    record: dict[str, Any] = {
        "command": f"python benchmarks/serve_load.py {' '.join(sys.argv[1:])}",
        "hardware": f"{usable_cores()} cores, {processor()}",
        "versions": {
            name: version(name) for name in ("torch", "onnxruntime", "fastapi", "uvicorn", "pillow", "aiohttp")
        }
        | {"python": platform.python_version()},
        "date": str(datetime.date.today()),
        "networks": {},
    }
    for named in options.networks:
        name, _, side = named.partition("@")
        with tempfile.TemporaryDirectory() as place:
            folder = saved(name, int(side), Path(place) / "model")
            sent, started = pictures(int(side)), commands(folder, options.port, options.batch)
            ab.export(folder, folder.with_suffix(".onnx"), attention_logits=True, data="random")
            data = str(written(Path(place) / "data", sent))
            given: dict[str, Any] = {"precision": "int8", "data": data, "images": 8}
            ab.export(folder, folder.with_suffix(".int8.onnx"), attention_logits=True, **given)
            rounds: list[dict[str, Any]] = []
            for turn in range(options.rounds):
                order = list(started) if turn % 2 == 0 else list(reversed(started))
                done = {
                    kind: measure(started[kind], options.port, sent, options.clients, options.round) for kind in order
                }
                rounds.append(done)
                print(named, {kind: found["images_per_second"] for kind, found in done.items()}, flush=True)
            ratios = {
                kind: round(
                    statistics.median(
                        one[kind]["images_per_second"] / one["plain"]["images_per_second"] for one in rounds
                    ),
                    2,
                )
                for kind in ("default", "torch", "onnx", "int8")
            }
            long = {
                kind: measure(started[kind], options.port, sent, options.clients, options.seconds)
                for kind in ("default", "onnx")
            }
            record["networks"][named] = {"ratio_to_plain": ratios, "rounds": rounds, "long": long}
            print(named, ratios, long, flush=True)
        write_json(out, record)


if __name__ == "__main__":
    main()
