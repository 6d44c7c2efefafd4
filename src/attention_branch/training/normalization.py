"""Batch norms over the global batch, so that a run of several processes computes what a run of one does."""

import torch
import torch.distributed as dist
from timm.layers import BatchNormAct2d, convert_sync_batchnorm
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from attention_branch.training.collectives import sum_everywhere


class GlobalBatchNorm(_BatchNorm):
    """Batch norm whose statistics are those of all processes' batches together.

    For the CPU: torch's SyncBatchNorm runs on GPUs only. Mean and variance take one reduction each, the variance from
    deviations, because the difference E[x^2] - E[x]^2 loses digits. Batches may differ in size between processes.
    """

    def forward(self, x: Tensor) -> Tensor:
        """Normalise x (N, C, ...) over all positions of all processes' images."""
        if not (self.training and dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1):
            return super().forward(x)
        axes = [0, *range(2, x.ndim)]
        shape = [1, -1] + [1] * (x.ndim - 2)
        values = x.float() if x.dtype in (torch.float16, torch.bfloat16) else x
        count = values.new_tensor([values.numel() / values.shape[1]])
        # The reductions are differentiable: a process's output depends on every process's input.
        total = sum_everywhere(torch.cat([values.sum(axes), count]))
        count = total[-1].detach()
        mean = total[:-1] / count
        deviation = values - mean.view(shape)
        variance = sum_everywhere(deviation.square().sum(axes)) / count
        if self.running_mean is not None and self.running_var is not None and self.num_batches_tracked is not None:
            with torch.no_grad():
                self.num_batches_tracked.add_(1)
                momentum = 1 / float(self.num_batches_tracked) if self.momentum is None else self.momentum
                self.running_mean.lerp_(mean.to(self.running_mean.dtype), momentum)
                unbiased = variance * (count / (count - 1).clamp_min(1))
                self.running_var.lerp_(unbiased.to(self.running_var.dtype), momentum)
        scale = (variance + self.eps).rsqrt()
        if self.affine:
            scale = scale * self.weight.to(scale.dtype)
            return (deviation * scale.view(shape) + self.bias.to(scale.dtype).view(shape)).to(x.dtype)
        return (deviation * scale.view(shape)).to(x.dtype)

    def _check_input_dim(self, x: Tensor) -> None:
        if x.ndim < 2:
            raise ValueError(f"Batch norm needs at least two dimensions, got {x.ndim}.")


class GlobalBatchNormAct(GlobalBatchNorm):
    """timm's batch norm with dropout and activation behind it, over all processes."""

    def __init__(self, norm: BatchNormAct2d) -> None:
        super().__init__(norm.num_features, norm.eps, norm.momentum, norm.affine, norm.track_running_stats)
        self.drop, self.act = norm.drop, norm.act

    def forward(self, x: Tensor) -> Tensor:
        """Normalise x (N, C, H, W), then drop out and activate."""
        return self.act(self.drop(super().forward(x)))


def synchronize_batchnorm(model: nn.Module, on_gpu: bool) -> nn.Module:
    """Return the model with its batch norms spanning all processes; parameters and their names stay the same.

    Lightning's own switch is not used: it would lose the activation inside timm's fused norms.
    """
    before = dict(model.named_modules())
    if on_gpu:
        model = convert_sync_batchnorm(model)
    else:
        _replace_children(model)
    for name, module in model.named_modules():
        if module is not before[name]:  # an attention branch's gate may hang on a norm
            module._forward_hooks.update(before[name]._forward_hooks)
    return model


def _replace_children(model: nn.Module) -> None:
    for name, child in list(model.named_children()):
        if isinstance(child, _BatchNorm):
            model.add_module(name, _global(child))
        else:
            _replace_children(child)


def _global(norm: _BatchNorm) -> GlobalBatchNorm:
    replacement = (
        GlobalBatchNormAct(norm)
        if isinstance(norm, BatchNormAct2d)
        else GlobalBatchNorm(norm.num_features, norm.eps, norm.momentum, norm.affine, norm.track_running_stats)
    )
    replacement._parameters.update(norm._parameters)
    replacement._buffers.update(norm._buffers)
    return replacement.train(norm.training)


@torch.no_grad()
def average_buffers(model: nn.Module) -> None:
    """Replace the running statistics by their mean over all processes (for batch norms that are not synchronised)."""
    for buffer in model.buffers():
        if buffer.is_floating_point():
            dist.all_reduce(buffer)
            buffer /= dist.get_world_size()
