"""Sums over all processes for what a network's own loss takes over the global batch; one process changes nothing."""

import torch
import torch.distributed as dist
from torch import Tensor


def processes() -> int:
    """Return how many processes work on one batch."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def total(x: Tensor) -> Tensor:
    """Return the sum of all processes' x, without gradients."""
    if processes() == 1:
        return x.detach()
    x = x.detach().clone()
    dist.all_reduce(x)
    return x


def highest(x: Tensor) -> Tensor:
    """Return the highest over the first axis of all processes' x (N, ...), without gradients."""
    top = x.detach().amax(0)
    if processes() > 1:
        dist.all_reduce(top, op=dist.ReduceOp.MAX)
    return top


def total_with_gradients(x: Tensor) -> Tensor:
    """Return the sum of all processes' x; on the way back every process's gradient of the sum reaches every x."""
    if processes() == 1:
        return x
    from torch.distributed.nn.functional import all_reduce

    return all_reduce(x)


def logsumexp(x: Tensor) -> Tensor:
    """Return log(sum(exp(x))) over the first axis of all processes' x (N, ...) together, with gradients."""
    if processes() == 1:
        return torch.logsumexp(x, dim=0)
    top = highest(x)
    return total_with_gradients((x - top).exp().sum(0)).log() + top
