"""Ten thousand hostile requests against a running server: what it answers, and what becomes of its memory.

    python benchmarks/serve_fuzz.py --requests 10000

Starts `abn serve` on an untrained ResNet-20 with bodies of at most one MiB, sends `hostile_uploads.hostile(0 ...)` over
eight connections and a good picture after every hundred. The record, benchmarks/records/DATE-serve/fuzz.json, holds the
statuses by kind, every answer that is not 4xx where it should be, and the memory along the way.
"""

import argparse
import asyncio
import datetime
import platform
import sys
import tempfile
from collections import Counter, defaultdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

import aiohttp
import numpy as np
from yarl import URL

from attention_branch.files import write_json
from attention_branch.hardware import processor, usable_cores
from hostile_uploads import hostile, picture, upload
from serve_load import HERE, Running, ready, saved


async def fuzz(server: Running, port: int, count: int) -> dict[str, Any]:
    """Send the requests; return statuses, faults and memory."""
    statuses: defaultdict[str, Counter[str]] = defaultdict(Counter)
    faults: list[dict[str, Any]] = []
    memory: list[float] = []
    numbers = iter(range(count))
    random = np.random.default_rng(1)
    good: Counter[str] = Counter()

    async def send(session: aiohttp.ClientSession, number: int) -> None:
        request = hostile(number)
        try:
            async with session.request(
                request.method,
                URL(f"http://127.0.0.1:{port}{request.path}", encoded=True),
                data=request.body,
                headers={"content-type": ""} | request.headers,
            ) as reply:
                await reply.read()
                status = str(reply.status)
        except (TimeoutError, aiohttp.ClientError) as problem:
            # A refused upload may close the connection while its body is still being sent.
            status = type(problem).__name__
        statuses[request.kind][status] += 1
        right = status.startswith("4") or (status == "200" and not request.never_good)
        if not right:
            faults.append({"number": number, "kind": request.kind, "status": status})

    async def client(session: aiohttp.ClientSession) -> None:
        for number in numbers:
            await send(session, number)
            if number % 100 == 0:
                memory.append(server.memory())
                check = upload("good", picture(random))
                async with session.post(server.address, data=check.body, headers=check.headers) as reply:
                    good[str(reply.status)] += 1
                if number % 1000 == 0:
                    print(number, f"{memory[-1]:.0f} MiB", flush=True)

    async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=60)) as session:
        await asyncio.gather(*(client(session) for _ in range(8)))
    return {
        "statuses": {kind: dict(found) for kind, found in sorted(statuses.items())},
        "faults": faults,
        "good_pictures_between": dict(good),
        "memory_mib": {
            "median of each tenth": [round(float(np.median(part))) for part in np.array_split(memory, 10)],
            "most": round(server.most),
        },
        "still_runs": server.process.poll() is None,
    }


def main() -> None:
    """Start the server, send everything, write the record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, default=10_000)
    parser.add_argument("--port", type=int, default=7991)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as place:
        folder = saved("resnet20", 32, Path(place) / "model")
        command = [sys.executable, "-m", "attention_branch.cli", "serve", str(folder), "--port", str(options.port)]
        server = Running([*command, "--max-body", "1"], options.port)
        try:
            asyncio.run(ready(server))
            found = asyncio.run(fuzz(server, options.port, options.requests))
        finally:
            server.stop()
    record = {
        "command": f"python benchmarks/serve_fuzz.py {' '.join(sys.argv[1:])}".strip(),
        "hardware": f"{usable_cores()} cores, {processor()}",
        "versions": {name: version(name) for name in ("torch", "fastapi", "uvicorn", "pillow", "aiohttp")}
        | {"python": platform.python_version()},
        "requests": options.requests,
        **found,
    }
    write_json(options.out or HERE / "records" / f"{datetime.date.today()}-serve" / "fuzz.json", record)
    print({kind: value for kind, value in record.items() if kind != "statuses"})


if __name__ == "__main__":
    main()
