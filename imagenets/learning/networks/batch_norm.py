"""Batch norm over the batch of all processes; unlike PyTorch's SyncBatchNorm on CPUs (gloo) too."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm


class _Sum(torch.autograd.Function):
    """The sum over all processes, whose gradient is the sum of all processes' gradients."""

    @staticmethod
    def forward(ctx: Any, values: torch.Tensor) -> torch.Tensor:  # noqa: ANN401 - autograd's
        total = values.clone()
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> torch.Tensor:  # noqa: ANN401 - autograd's
        total = gradients[0].clone()
        dist.all_reduce(total)
        return total


class SynchronisedBatchNorm(_BatchNorm):
    """Batch norm of (B, C, …) with mean and variance over the batches of all processes.

    In eval mode, and where there is one process, it is PyTorch's own. The names of its tensors are too.
    Processes may have different numbers of rows; a process without any is not allowed.
    """

    def _check_input_dim(self, values: torch.Tensor) -> None:
        if values.dim() < 2:
            raise ValueError(f"batch norm needs (B, C, …), not {tuple(values.shape)}")

    def forward(self, values: torch.Tensor) -> torch.Tensor:
        """Normalise (B, C, …)."""
        alone = not (dist.is_initialized() and dist.get_world_size() > 1)
        if alone or not self.training:
            own: torch.Tensor = super().forward(values)
            return own
        self._check_input_dim(values)
        others = [dim for dim in range(values.dim()) if dim != 1]
        channels = (1, -1, *[1] * (values.dim() - 2))
        wide = values.float() if values.dtype in (torch.float16, torch.bfloat16) else values
        rows = wide.new_tensor([values.numel() // values.shape[1]])
        sums = _Sum.apply(torch.cat((wide.sum(others), rows)))
        count, mean = sums[-1], sums[:-1] / sums[-1]
        centred = wide - mean.view(channels)
        # From centred values: the difference of two large sums would lose the digits.
        variance = _Sum.apply(centred.square().sum(others)) / count
        self._follow(mean.detach(), variance.detach(), count.detach())
        normalised = centred * torch.rsqrt(variance + self.eps).view(channels)
        if self.affine:
            normalised = normalised * self.weight.view(channels) + self.bias.view(channels)
        result: torch.Tensor = normalised.to(values.dtype)
        return result

    def _follow(self, mean: torch.Tensor, variance: torch.Tensor, count: torch.Tensor) -> None:
        """Move the running statistics on, as PyTorch does (the variance without bias)."""
        if not self.track_running_stats or self.running_mean is None or self.running_var is None:
            return
        assert self.num_batches_tracked is not None
        self.num_batches_tracked.add_(1)
        share = self.momentum if self.momentum is not None else 1.0 / float(self.num_batches_tracked)
        self.running_mean.lerp_(mean.to(self.running_mean.dtype), share)
        unbiased = variance * (count / (count - 1).clamp(min=1))
        self.running_var.lerp_(unbiased.to(self.running_var.dtype), share)


def synchronised(network: nn.Module, device: torch.device) -> nn.Module:
    """Make all batch norms of a network synchronised, in place of their tensors; give the network.

    On CUDA they become PyTorch's SyncBatchNorm, which has kernels of its own, elsewhere
    SynchronisedBatchNorm. A network that is itself a batch norm is given back as another object.
    """
    if device.type == "cuda":
        converted: nn.Module = nn.SyncBatchNorm.convert_sync_batchnorm(network)  # type: ignore[no-untyped-call]
        return converted
    if isinstance(network, _BatchNorm):
        return _converted(network)
    for name, child in network.named_children():
        other = synchronised(child, device)
        if other is not child:
            setattr(network, name, other)
    return network


def _converted(norm: _BatchNorm) -> _BatchNorm:
    made = SynchronisedBatchNorm(
        norm.num_features, norm.eps, norm.momentum, norm.affine, norm.track_running_stats
    )
    made.weight, made.bias = norm.weight, norm.bias
    made.running_mean, made.running_var = norm.running_mean, norm.running_var
    made.num_batches_tracked = norm.num_batches_tracked
    made.training = norm.training
    return made
