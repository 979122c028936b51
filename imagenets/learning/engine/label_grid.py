"""The grid of stride 8, to which maps are enlarged where labels are looked at."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch.nn.functional import interpolate

STRIDE = 8  # pixels


def grid_size(size: Sequence[int], stride: int) -> tuple[int, int]:
    """Size (rows, columns) of the grid for a map of ``size`` (h, w) and a network of this stride."""
    factor = max(stride, STRIDE)
    return size[0] * factor // STRIDE, size[1] * factor // STRIDE


def enlarged_maps(maps: torch.Tensor, stride: int) -> torch.Tensor:
    """Enlarge maps (B, C, h, w) of this stride to the grid: bilinear, align_corners False."""
    size = grid_size(maps.shape[-2:], stride)
    if size == tuple(maps.shape[-2:]):
        return maps
    return interpolate(maps, size=size, mode="bilinear", align_corners=False)
