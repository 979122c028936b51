"""The head of self-training: where a picture's object is, found in several maps of a frozen network."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import nn
from torch.nn.functional import interpolate, relu

from imagenets.learning.networks.backbones import Backbone
from imagenets.learning.networks.last_maps import SIDE, recorded

_WIDTH = 48  # channels to which every map is reduced
_GROUPS = 8  # of the group norms
_FINEST = 8  # pixels between places of the finest map in use


def finer_layers(backbone: Backbone) -> dict[str, int]:
    """Name the layers whose maps are finer than the last one, finest first, with their channels.

    Those of a ResNet's stages or of timm's ``feature_info``, with 8 pixels or more between places; none of
    networks whose maps all have one size, or their channels last, and of those that are not known to either.
    """
    network = backbone.network
    known = [layer["module"] for layer in getattr(network, "feature_info", ()) if isinstance(layer, Mapping)]
    names = ["layer2", "layer3"] if backbone.is_resnet else known
    height, width = backbone.fixed_size or (SIDE, SIDE)
    with torch.inference_mode():
        *maps, _ = maps_of(backbone, names, torch.zeros(1, 3, height, width))
    return {
        name: of_layer.shape[1]
        for name, of_layer in zip(names, maps, strict=True)
        if of_layer.ndim == 4
        and _FINEST <= round(height / of_layer.shape[2]) < backbone.stride
        # Height and width come last where they are in the pictures' proportion.
        and round(height / of_layer.shape[2]) == round(width / of_layer.shape[3])
    }


def maps_of(backbone: Backbone, layers: Sequence[str], pictures: torch.Tensor) -> list[torch.Tensor]:
    """Return outputs of ``layers`` for pictures (B, 3, H, W), normalised, and the last map behind them."""
    with recorded({name: backbone.network.get_submodule(name) for name in layers}) as found:
        last = backbone(pictures)
    return [*(found[name] for name in layers), last]


class Outlines(nn.Module):
    """Logits of foreground from several maps of a picture.

    Each map is normed and reduced to 48 channels, enlarged bilinearly to the finest and added up; a 3 × 3 and
    a 1 × 1 convolution follow, with group norms and ReLUs before them.
    Source: docs/methods.md, Self-training on the clusters.
    """

    def __init__(self, channels: Sequence[int]) -> None:
        """Make it, random, for maps with so many channels each, the finest first."""
        super().__init__()
        self.norms = nn.ModuleList(nn.BatchNorm2d(of_one, affine=False) for of_one in channels)
        self.narrow = nn.ModuleList(nn.Conv2d(of_one, _WIDTH, 1) for of_one in channels)
        self.first_norm, self.second_norm = nn.GroupNorm(_GROUPS, _WIDTH), nn.GroupNorm(_GROUPS, _WIDTH)
        self.around = nn.Conv2d(_WIDTH, _WIDTH, 3, padding=1)
        self.last = nn.Conv2d(_WIDTH, 1, 1)

    def normed(self, maps: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        """Bring each channel of maps (B, C, h, w) to mean 0 and variance 1."""
        return [norm(of_one) for norm, of_one in zip(self.norms, maps, strict=True)]

    def forward(self, normed: Sequence[torch.Tensor]) -> torch.Tensor:
        """Return the logits (B, 1, h, w) of foreground from normed maps, at the size of the first."""
        size = normed[0].shape[2:]
        reduced = [narrow(of_one) for narrow, of_one in zip(self.narrow, normed, strict=True)]
        total = torch.stack([interpolate(of_one, size, mode="bilinear") for of_one in reduced]).sum(0)
        found: torch.Tensor = self.last(relu(self.second_norm(self.around(relu(self.first_norm(total))))))
        return found
