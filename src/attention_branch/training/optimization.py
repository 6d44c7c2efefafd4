"""Optimisers, the learning rate's course in closed form, and the weights that are decayed."""

import math
from collections.abc import Callable

from torch import nn
from torch.optim import SGD, AdamW, Optimizer, RMSprop

from attention_branch.training.config import TrainConfig


def make_optimizer(model: nn.Module, config: TrainConfig) -> Optimizer:
    """Return SGD, AdamW or RMSprop over the model's parameters, norms and biases undecayed unless `decay_all`."""
    decayed: list[nn.Parameter] = []
    exempt: list[nn.Parameter] = []
    for parameter in model.parameters():
        if parameter.requires_grad:
            (decayed if config.decay_all or parameter.ndim > 1 else exempt).append(parameter)
    kinds = ((decayed, config.weight_decay), (exempt, 0.0))
    groups = [{"params": members, "weight_decay": decay} for members, decay in kinds if members]
    if config.optimizer == "sgd":
        return SGD(groups, lr=config.lr, momentum=config.momentum, nesterov=config.nesterov)
    if config.optimizer == "rmsprop":
        return RMSprop(groups, lr=config.lr, momentum=config.momentum)
    # One kernel for all tensors: a step of a small network on the CPU is otherwise hundreds of tiny calls.
    return AdamW(groups, lr=config.lr, betas=(config.momentum, 0.999), fused=_fused(decayed + exempt))


def _fused(parameters: list[nn.Parameter]) -> bool:
    return all(parameter.device.type in ("cpu", "cuda") for parameter in parameters)


def rate_factor(config: TrainConfig, steps_per_epoch: int) -> Callable[[int], float]:
    """Return the function from optimiser step (from 0) to the factor on `lr`; it has no state to save."""
    warmup = round(config.warmup_epochs * steps_per_epoch)
    total = config.epochs * steps_per_epoch

    def factor(step: int) -> float:
        if step < warmup:
            return (step + 1) / (warmup + 1)
        if config.schedule == "cosine":
            return 0.5 * (1 + math.cos(math.pi * min(1.0, (step - warmup) / max(1, total - warmup))))
        if config.schedule == "steps":
            return config.gamma ** sum(step // steps_per_epoch >= milestone for milestone in config.milestones)
        return 1.0

    return factor
