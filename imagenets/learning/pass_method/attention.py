"""Pixel attention of PASS: which pixels matter, learnt on a frozen backbone; docs/pass.md."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import nn
from torch.nn.functional import interpolate, normalize

from imagenets.learning.pass_method.heads import (
    DIMENSIONS,
    HeadSizes,
    image_head,
    refuse_without_stages,
    start_convolutions,
)

if TYPE_CHECKING:
    from imagenets.learning.networks.backbones import Backbone


class PixelAttention(nn.Module):
    """Attention of each pixel and channel, in 0..1, from unit vectors (B, C, h, w)."""

    def __init__(self, channels: int) -> None:
        """Attend to maps of ``channels``."""
        super().__init__()
        self.atten = nn.Sequential(
            nn.Conv2d(channels, channels, 1),
            nn.BatchNorm2d(channels),
            nn.ReLU(inplace=True),
            nn.Conv2d(channels, channels, 1),
            nn.BatchNorm2d(channels),
        )
        # Beside the last batch norm's bias it has no use of its own, but published checkpoints hold it.
        self.threshold = nn.Parameter(torch.zeros(1, channels, 1, 1))
        start_convolutions(self)

    def forward(self, vectors: torch.Tensor) -> torch.Tensor:
        """Return the attention (B, C, h, w) of vectors (B, C, h, w) of length 1 at each pixel."""
        return torch.sigmoid(self.atten(vectors) + self.threshold)


class AttentionOutputs(NamedTuple):
    """As ``PassOutputs``: ``pooled`` (2B, C), ``features`` (2B, D) and ``scores`` (2B, K)."""

    pooled: torch.Tensor
    features: torch.Tensor
    scores: torch.Tensor


class AttentionNetwork(nn.Module):
    """A frozen backbone and image head around the attention; only attention and prototypes are trained.

    As published, the whole network is in training mode, so that the frozen batch norms use the statistics
    of the batch and their running ones drift away from those of the pre-training.
    """

    def __init__(self, backbone: Backbone, sizes: HeadSizes) -> None:
        """Put attention, image head and prototypes on ``backbone``, and freeze backbone and head."""
        super().__init__()
        refuse_without_stages(backbone)
        self.backbone = backbone.requires_grad_(False)
        self.projection_head = image_head(backbone.channels, sizes.hidden).requires_grad_(False)
        self.fbg = PixelAttention(backbone.channels)
        self.prototypes = nn.Linear(DIMENSIONS, sizes.prototypes, bias=False)

    def forward(self, crops: torch.Tensor) -> AttentionOutputs:
        """Pass normalised crops (2B, 3, H, W) through."""
        vectors = normalize(enlarged(self.backbone(crops)), dim=1)
        pooled = (vectors * self.fbg(vectors)).mean((2, 3))
        features = normalize(self.projection_head(pooled), dim=1)
        return AttentionOutputs(
            normalize(pooled.detach(), dim=1), features.detach(), self.prototypes(features)
        )


def enlarged(maps: torch.Tensor) -> torch.Tensor:
    """Enlarge maps (B, C, h, w) bilinearly: (B, C, 4h, 4w), which brings stride 32 to 8."""
    height, width = maps.shape[2:]
    return interpolate(maps, (4 * height, 4 * width), mode="bilinear", align_corners=False)
