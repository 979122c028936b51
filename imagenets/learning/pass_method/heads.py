"""The network of PASS: a ResNet with image, shallow and pixel heads; docs/pass.md."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import nn
from torch.nn.functional import grid_sample, normalize

from imagenets.common.errors import InputError

if TYPE_CHECKING:
    from imagenets.learning.networks.backbones import Backbone

DIMENSIONS = 128  # of the features that are compared with the prototypes


class PassOutputs(NamedTuple):
    """Outputs of one step, for 2B large and S small crops.

    ``pooled`` (2B, C) and ``features`` (2B, D): what the backbone and the image head find in the large crops,
    unit vectors without gradient, crop 0 of all pictures first. ``scores`` (2B + S, K): cosines with the
    prototypes, large crops first. ``shallow`` (2B, K): those of the shallow stage. ``projection`` and
    ``prediction`` (2B, D, points, points): at the grids' places.
    """

    pooled: torch.Tensor
    features: torch.Tensor
    scores: torch.Tensor
    shallow: torch.Tensor
    projection: torch.Tensor
    prediction: torch.Tensor


@dataclass(frozen=True)
class HeadSizes:
    """Widths of the heads: ``hidden`` layers, ``prototypes`` (K)."""

    hidden: int
    prototypes: int


class PassNetwork(nn.Module):
    """A ResNet and the heads of PASS, named as the published checkpoints name them.

    The shallow stage is layer3, whose scores are taken against the prototypes without gradient for these.
    """

    def __init__(self, backbone: Backbone, sizes: HeadSizes) -> None:
        """Put the heads on ``backbone``. Raises InputError when it has no layer3 and layer4."""
        super().__init__()
        refuse_without_stages(backbone)
        deep, shallow, hidden = backbone.channels, _shallow_channels(backbone), sizes.hidden
        self.backbone = backbone
        self.projection_head = image_head(deep, hidden)
        self.projection_head_shallow = nn.ModuleDict(
            {"projection_head_shallow3": image_head(shallow, hidden)}
        )
        self.projection_head_pixel_shallow = nn.ModuleDict(
            {"projection_head_pixel3": pixel_head(shallow, hidden, shallow)}
        )
        self.projection_head_pixel = pixel_head(deep, hidden, DIMENSIONS)
        self.predictor_head_pixel = nn.Sequential(
            nn.Conv2d(DIMENSIONS, DIMENSIONS, 1, bias=False),
            nn.BatchNorm2d(DIMENSIONS),
            nn.ReLU(inplace=True),
            nn.Conv2d(DIMENSIONS, DIMENSIONS, 1),
        )
        self.prototypes = nn.Linear(DIMENSIONS, sizes.prototypes, bias=False)
        start_convolutions(self)

    def forward(self, large: torch.Tensor, small: Sequence[torch.Tensor], grids: torch.Tensor) -> PassOutputs:
        """Pass normalised crops through: ``large`` (2B, 3, H, W), ``small`` maybe one (S, 3, h, w).

        ``grids`` (2B, points, points, 2) as ``shared_grids`` returns them, in the order of the large crops.
        Statistics of batch norms follow from the passes: the backbone normalises large and small crops apart,
        the image head all of them together.
        """
        shallow_map, deep_map = self.backbone.maps(large)
        pooled = [maps.mean((2, 3)) for maps in (deep_map, *map(self.backbone, small))]
        features = normalize(self.projection_head(torch.cat(pooled)), dim=1)
        projection = sample(self.projection_head_pixel(deep_map), grids)
        return PassOutputs(
            pooled=normalize(pooled[0].detach(), dim=1),
            features=features[: len(large)].detach(),
            scores=self.prototypes(features),
            shallow=self._shallow_scores(shallow_map),
            projection=projection,
            prediction=self.predictor_head_pixel(projection),
        )

    def _shallow_scores(self, shallow_map: torch.Tensor) -> torch.Tensor:
        pixels = self.projection_head_pixel_shallow["projection_head_pixel3"](shallow_map)
        head = self.projection_head_shallow["projection_head_shallow3"]
        features = normalize(head(pixels.mean((2, 3))), dim=1)
        return nn.functional.linear(features, self.prototypes.weight.detach())


def image_head(channels: int, hidden: int) -> nn.Sequential:
    """Pooled vectors (B, C) to features (B, D): two linear layers with batch norms, the last plain."""
    return nn.Sequential(
        nn.Linear(channels, hidden),
        nn.BatchNorm1d(hidden),
        nn.ReLU(inplace=True),
        nn.Linear(hidden, DIMENSIONS),
        nn.BatchNorm1d(DIMENSIONS, affine=False),
    )


def pixel_head(channels: int, hidden: int, out: int) -> nn.Sequential:
    """Maps (B, C, h, w) to (B, ``out``, h, w): three 1x1 convolutions with batch norms, as ``image_head``."""
    return nn.Sequential(
        nn.Conv2d(channels, hidden, 1, bias=False),
        nn.BatchNorm2d(hidden),
        nn.ReLU(inplace=True),
        nn.Conv2d(hidden, hidden, 1, bias=False),
        nn.BatchNorm2d(hidden),
        nn.ReLU(inplace=True),
        nn.Conv2d(hidden, out, 1, bias=False),
        nn.BatchNorm2d(out, affine=False),
    )


def sample(maps: torch.Tensor, grids: torch.Tensor) -> torch.Tensor:
    """Sample maps (B, C, h, w) bilinearly at grids (B, i, j, 2), zero outside: (B, C, i, j)."""
    return grid_sample(maps, grids.to(maps.dtype), padding_mode="zeros", align_corners=False)


def start_convolutions(module: nn.Module) -> None:
    """Draw the weights of every convolution anew (Kaiming, fan-out); all else keeps PyTorch's start."""
    for part in module.modules():
        if isinstance(part, nn.Conv2d):
            nn.init.kaiming_normal_(part.weight, mode="fan_out", nonlinearity="relu")


@torch.no_grad()
def normalize_prototypes(prototypes: nn.Linear) -> None:
    """Make the prototypes (K, D) unit vectors, in place; done before each step."""
    prototypes.weight.copy_(normalize(prototypes.weight, dim=1))


def refuse_without_stages(backbone: Backbone) -> None:
    """Raise InputError when a backbone is no ResNet with layer3 and layer4."""
    if not backbone.is_resnet:
        raise InputError(
            f"backbone {backbone.name}: PASS needs the stages layer3 and layer4 of a ResNet; take resnet18 "
            "(published for mode 50) or resnet50 (300, 919)"
        )


@torch.no_grad()
def _shallow_channels(backbone: Backbone) -> int:
    """Count the channels of layer3: half of layer4's in the published ResNets, but not in every one."""
    return backbone.maps(torch.zeros(1, 3, 64, 64))[0].shape[1]


BACKBONE_PREFIX = "backbone.network."


def library_state(network: nn.Module) -> dict[str, torch.Tensor]:
    """Name a network's tensors as its checkpoint does: those of the backbone as the library names them."""
    return {name.removeprefix(BACKBONE_PREFIX): tensor for name, tensor in network.state_dict().items()}


def load_library_state(network: nn.Module, state: Mapping[str, torch.Tensor]) -> None:
    """Take back what ``library_state`` returned, all of it."""
    names = {name.removeprefix(BACKBONE_PREFIX): name for name in network.state_dict()}
    network.load_state_dict({names[name]: tensor for name, tensor in state.items()})
