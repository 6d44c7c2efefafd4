"""A training step as one CUDA graph: thousands of small kernels for one call of the host."""

import warnings
from collections.abc import Callable

import torch
from torch import Tensor, nn

from attention_branch.training.mixing import Mixed, Targets

WARM_UP_STEPS = 3
"""Steps run before a graph is captured, so that libraries have chosen their kernels; they are undone."""


def captured_step(
    learn: Callable[[Mixed], None],
    example: Mixed,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    sums: Tensor,
    stream: torch.cuda.Stream,
) -> Callable[[Mixed], None]:
    """Capture `learn` as a CUDA graph; return the function that copies a batch in and replays it.

    `stream`, a side stream, must be the current one. Weights, statistics, the optimiser's state and `sums` are left as
    they were.
    """
    still = Mixed(example.images.clone(), _cloned(example.targets), None, 1.0)
    places = [*model.state_dict().values(), sums]
    kept = [value.clone() for value in places]
    kept_state = _copied_state(optimizer) if any(optimizer.state.values()) else None
    with warnings.catch_warnings():
        # Adam warns of a step outside of a graph; these are the ones it cannot be captured without.
        warnings.filterwarnings("ignore", "This instance was constructed with capturable=True")
        for _ in range(WARM_UP_STEPS):
            learn(still)
    # The gradients must be made inside, in the graph's own memory.
    optimizer.zero_grad(set_to_none=True)
    graph = torch.cuda.CUDAGraph()
    # thread_local: the thread that pins a loader's batches calls CUDA meanwhile.
    with torch.cuda.graph(graph, stream=stream, capture_error_mode="thread_local"):
        learn(still)
    # What the warm-up changed is put back in place: the graph knows the tensors by their addresses.
    with torch.no_grad():
        for place, value in zip(places, kept, strict=True):
            place.copy_(value)
        _restore_state(optimizer, kept_state)

    def replay(mixed: Mixed) -> None:
        still.images.copy_(mixed.images)
        _copy_targets(still.targets, mixed.targets)
        graph.replay()

    return replay


def _cloned(targets: Targets) -> Targets:
    if isinstance(targets, dict):
        return {head: value.clone() for head, value in targets.items()}
    return targets.clone()


def _copy_targets(still: Targets, targets: Targets) -> None:
    if isinstance(still, dict):
        assert isinstance(targets, dict)
        for head, value in targets.items():
            still[head].copy_(value)
    else:
        assert isinstance(targets, Tensor)
        still.copy_(targets)


def _copied_state(optimizer: torch.optim.Optimizer) -> list[dict[str, Tensor]]:
    return [
        {name: value.clone() for name, value in state.items() if isinstance(value, Tensor)}
        for state in optimizer.state.values()
    ]


def _restore_state(optimizer: torch.optim.Optimizer, kept: list[dict[str, Tensor]] | None) -> None:
    """Put the optimiser's tensors back in place; with nothing kept, to zero, where momenta and counts begin."""
    for number, state in enumerate(optimizer.state.values()):
        for name, value in state.items():
            if isinstance(value, Tensor):
                value.copy_(kept[number][name]) if kept is not None else value.zero_()
