"""Weights for tests of networks: random ones by which every tensor matters, and the ways files hold them."""

from __future__ import annotations

import re

import torch


def lively(network, seed=0):
    """Give a network weights by which every tensor matters; in evaluation mode."""
    generator = torch.Generator().manual_seed(seed)
    for name, value in network.state_dict().items():
        if not value.is_floating_point():
            continue
        noise = torch.randn(value.shape, generator=generator)
        if value.ndim > 1 and name.endswith("weight"):
            noise *= 1.5 * value[0].numel() ** -0.5
        elif name.endswith("running_var"):
            noise = 0.5 + noise.abs()
        elif re.search(r"weight$|gamma", name):
            noise = 1 + 0.3 * noise
        else:
            noise *= 0.3
        value.copy_(noise)
    return network.eval()


def copied(network):
    """Copies of all tensors of a network, by name."""
    return {name: value.clone() for name, value in network.state_dict().items()}


def prefixed(weights, prefix):
    return {f"{prefix}{name}": value for name, value in weights.items()}


def wrong(weights):
    """The other copy in a file, which must not be taken."""
    return {name: value * 1.5 + 0.1 for name, value in weights.items()}
