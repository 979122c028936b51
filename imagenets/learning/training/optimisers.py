"""LARS, and the parameter groups of AdamW with layer decay."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

_UNDECAYED = ("pos_embed", "cls_token", "reg_token")


class Lars(Optimizer):
    """SGD with momentum whose gradients have, tensor by tensor, a length in proportion to the weights'.

    For weights w and gradient g of lengths above zero, g becomes
    (g + wd·w) · trust · ‖w‖ / (‖g‖ + wd·‖w‖ + 1e-8); a tensor of length zero keeps its raw gradient, without
    weight decay. Then plain SGD: m ← momentum·m + g (m = g at first), w ← w − lr·m. All tensors are treated
    so, biases and batch norms included; one without a gradient stays as it is, its momentum too.

    Source: You et al., Large Batch Training of Convolutional Networks, 2017; docs/finetuning.md, LARS.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float,
        momentum: float = 0.9,
        weight_decay: float = 0.0,
        trust: float = 0.001,
    ) -> None:
        """Optimise tensors or groups of tensors; ``lr`` is the absolute learning rate."""
        defaults = {"lr": lr, "momentum": momentum, "weight_decay": weight_decay, "trust": trust}
        super().__init__(params, defaults)

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Move all tensors that have a gradient by one step."""
        for group in self.param_groups:
            weights = [weight for weight in group["params"] if weight.grad is not None]
            if weights:
                self._step_group(group, weights, [weight.grad for weight in weights])

    def _step_group(
        self, group: dict[str, Any], weights: list[torch.Tensor], gradients: list[torch.Tensor]
    ) -> None:
        decay = group["weight_decay"]
        # All lengths in a few kernels, and none of them is waited for.
        lengths = torch._foreach_norm(weights), torch._foreach_norm(gradients)
        for weight, gradient, length, gradient_length in zip(weights, gradients, *lengths, strict=True):
            scale = group["trust"] * length / (gradient_length + decay * length + 1e-8)
            scaled = (length > 0) & (gradient_length > 0)
            moved = torch.where(scaled, (gradient + decay * weight) * scale, gradient)
            state = self.state[weight]
            if "momentum" in state:
                state["momentum"].mul_(group["momentum"]).add_(moved)
            else:
                state["momentum"] = moved
            weight.sub_(state["momentum"] * group["lr"])


def layer_decay_groups(
    network: nn.Module, layer_of: Callable[[str], int], layers: int, layer_decay: float, weight_decay: float
) -> list[dict[str, Any]]:
    """Group trainable tensors for AdamW: one group for each layer, with and without weight decay.

    ``layer_of(name)`` is the layer of a tensor, 0 for the stem to ``layers`` for the head. A group has its
    ``params`` with their ``names``, ``weight_decay``, and ``scale`` = layer_decay^(layers − layer), which
    ``set_rate`` multiplies the learning rate by. Tensors of one dimension, position embeddings and class
    tokens do not decay.

    Source: docs/finetuning.md, Optimiser; BEiT (Bao et al., ICLR 2022) for the layer decay.
    """
    groups: dict[tuple[int, bool], dict[str, Any]] = {}
    for name, weight in network.named_parameters():
        if not weight.requires_grad:
            continue
        layer = layer_of(name)
        decays = weight.ndim > 1 and name.rpartition(".")[2] not in _UNDECAYED
        if (layer, decays) not in groups:
            decay, scale = weight_decay if decays else 0.0, layer_decay ** (layers - layer)
            groups[layer, decays] = {"params": [], "names": [], "weight_decay": decay, "scale": scale}
        groups[layer, decays]["params"].append(weight)
        groups[layer, decays]["names"].append(name)
    return list(groups.values())


def set_rate(optimiser: Optimizer, rate: float) -> None:
    """Set the learning rate of all groups, times each group's ``scale`` where it has one."""
    for group in optimiser.param_groups:
        group["lr"] = rate * group.get("scale", 1.0)


def cosine(progress: float, highest: float, lowest: float) -> float:
    """Fall from ``highest`` to ``lowest`` along half a cosine; ``progress`` from 0 to 1.

    lowest + ½ (highest − lowest)(1 + cos(π progress)). Source: Loshchilov & Hutter, SGDR, ICLR 2017;
    docs/finetuning.md, Schedules.
    """
    return lowest + 0.5 * (highest - lowest) * (1 + math.cos(math.pi * progress))


def warm_up_and_cosine(epoch: float, epochs: float, warm_up: float, highest: float, lowest: float) -> float:
    """Rise linearly from 0 in the first ``warm_up`` epochs, then ``cosine`` over the rest.

    ``epoch`` counts with its fraction: at step s of S in epoch e it is e + s / S.
    """
    if epoch < warm_up:
        return highest * epoch / warm_up
    return cosine((epoch - warm_up) / (epochs - warm_up), highest, lowest)
