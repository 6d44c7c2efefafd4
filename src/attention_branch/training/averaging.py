"""The running average of a network's weights and statistics, for a network that stays where it is."""

import torch
from timm.utils.model_ema import ModelEmaV3
from torch import nn


class RunningAverage(ModelEmaV3):
    """timm's average with warm-up, to the last bit, whose tensors are listed once and not in every step.

    With resnet164b and its branch an update takes a twelfth of the time. The network must not be moved afterwards: its
    statistics would become other tensors.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        super().__init__(model, decay=decay, use_warmup=True)
        pairs = list(zip(self.module.state_dict().values(), model.state_dict().values(), strict=True))
        floating = [pair for pair in pairs if pair[0].is_floating_point()]
        counters = [pair for pair in pairs if not pair[0].is_floating_point()]
        self._averages, self._values = [pair[0] for pair in floating], [pair[1] for pair in floating]
        self._counters, self._counted = [pair[0] for pair in counters], [pair[1] for pair in counters]

    @torch.no_grad()
    def follow(self, step: int) -> None:
        """Take in the network's weights after optimiser step `step`, counted from 1."""
        torch._foreach_lerp_(self._averages, self._values, weight=1 - self.get_decay(step))
        torch._foreach_copy_(self._counters, self._counted)
