"""What a map costs: time and memory of a whole `explain` call beside a plain forward pass, side by side in one run."""

import os
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn

from attention_branch.explanations import explain
from attention_branch.explanations.methods import layer_for
from attention_branch.explanations.outputs import evaluating, predict

_MOST_ROUNDS, _FEWEST_ROUNDS = 15, 3
_SECONDS = 20.0
_FORWARD = "forward pass"


@dataclass(frozen=True)
class MapCost:
    """One method's cost: seconds an image, and the ratios to a plain forward pass of the same batch.

    `time_ratio` is the median over the rounds of the ratio within a round, `time_ratios` their quartiles;
    `memory_bytes` is the peak of what the call allocates beyond what was there before it.
    """

    seconds: float
    time_ratio: float
    time_ratios: tuple[float, float]
    memory_bytes: int
    memory_ratio: float | None


@dataclass(frozen=True)
class Costs:
    """The costs of methods, measured on one batch in interleaved rounds, and how they were measured."""

    methods: Mapping[str, MapCost]
    forward_seconds: float
    forward_bytes: int
    protocol: Mapping[str, Any]

    def to_dict(self) -> dict[str, Any]:
        """Return all as plain values for a JSON file."""
        return {
            "methods": {name: asdict(cost) for name, cost in self.methods.items()},
            "forward_pass": {"seconds": self.forward_seconds, "memory_bytes": self.forward_bytes},
            "protocol": dict(self.protocol),
        }


def measure_costs(
    model: nn.Module, images: Tensor, methods: Sequence[str], *, target: Any = None, layer: str = "auto", seed: int = 0
) -> Costs:
    """Measure methods on a batch of normalised images (N, 3, H, W), in three to fifteen interleaved rounds.

    The forward pass is the class scores alone, without gradients. Rounds are run for about 20 seconds.
    """

    def forward() -> Any:
        with torch.no_grad():
            return predict(model, images)

    def explaining(method: str) -> Callable[[], Any]:
        return lambda: explain(model, images, method, target, layer=layer_for(method, layer), seed=seed)

    calls: dict[str, Callable[[], Any]] = {_FORWARD: forward} | {method: explaining(method) for method in methods}
    with evaluating(model):
        for call in calls.values():
            call()
        began = time.perf_counter()
        taken: list[dict[str, float]] = []
        while len(taken) < _FEWEST_ROUNDS or (
            len(taken) < _MOST_ROUNDS and time.perf_counter() - began < _SECONDS * (1 - 1 / len(taken))
        ):
            taken.append({name: _seconds(call, images.device) for name, call in calls.items()})
        memory = {name: _peak_bytes(call, images.device) for name, call in calls.items()}
    costs = {}
    for method in methods:
        lower, ratio, upper = statistics.quantiles((row[method] / row[_FORWARD] for row in taken), method="inclusive")
        seconds = statistics.median(row[method] for row in taken) / len(images)
        costs[method] = MapCost(
            seconds=seconds,
            time_ratio=ratio,
            time_ratios=(lower, upper),
            memory_bytes=memory[method],
            memory_ratio=memory[method] / memory[_FORWARD] if memory[_FORWARD] else None,
        )
    on_gpu = images.device.type == "cuda"
    return Costs(
        methods=costs,
        forward_seconds=statistics.median(row[_FORWARD] for row in taken) / len(images),
        forward_bytes=memory[_FORWARD],
        protocol={
            "time": "the whole call: forward pass, map, map at the input's size; median of the ratios within a round",
            "rounds": len(taken),
            "images": len(images),
            "image_size": list(images.shape[-2:]),
            "forward_pass": "class scores only, no gradients",
            "memory": "torch.cuda.max_memory_allocated above what was allocated before the call"
            if on_gpu
            else "peak of the allocations of CPU tensors during the call (torch profiler)",
            "device": torch.cuda.get_device_name(images.device) if on_gpu else "cpu",
            "threads": torch.get_num_threads(),
        },
    )


def _seconds(call: Callable[[], Any], device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    began = time.perf_counter()
    call()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - began


def _peak_bytes(call: Callable[[], Any], device: torch.device) -> int:
    """Return the most bytes that the call held at once beyond what was allocated before it."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        call()
        torch.cuda.synchronize(device)
        return torch.cuda.max_memory_allocated(device) - before
    # Without this the profiler's own log lines stand between the command's.
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")
    with torch.autograd.profiler.profile(use_cpu=True, profile_memory=True) as recorded:
        call()
    events: Any = recorded.kineto_results.events()
    held = peak = 0
    for event in sorted((event for event in events if event.name() == "[memory]"), key=lambda event: event.start_ns()):
        held += event.nbytes()
        peak = max(peak, held)
    return peak
