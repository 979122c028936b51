"""Backbones with a head that returns logits of the labels 0..N, and the files that hold such networks."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn.functional import adaptive_avg_pool2d, interpolate

from imagenets.common.errors import InputError
from imagenets.learning.images import Reading
from imagenets.learning.networks.backbones import Backbone, Size, make_backbone
from imagenets.learning.networks.checkpoint_files import named_tensors, read_checkpoint, some
from imagenets.learning.networks.object_head import Outlines, finer_layers, maps_of

SEMI, PASS, SELF, PROBE = "semi-supervised", "pass", "self-training", "linear-probe"
RECIPES = (SEMI, PASS, SELF, PROBE)
ON_CLUSTERS = (PASS, SELF)  # learn label maps of train, whose labels are clusters
PATCH = 4  # of a ConvNeXt's head: places that it finds along a side of each place of the map
_NORM_EPS = 1e-6
_BACKBONE = "backbone.network."  # before the library's own names
_STEM = r"(patch_embed|pos_embed|cls_token|reg_token|norm_pre|(conv|bn)1|stem)\b"


class SegmentationNetwork(nn.Module):
    """A backbone and a head: pictures (B, 3, H, W), normalised → logits (B, N + 1, h, w).

    - Vision transformers of timm: the last norm is replaced by a new one, ``fc_norm``; head 1×1 convolution.
    - ConvNeXt: a new norm ``seg_norm`` on the last map; a 1×1 convolution to (N + 1)·16 channels, which are
      laid out as 4 × 4 places of N + 1 channels each.
    - A linear probe of any network: a batch norm ``probe_norm`` and a 1×1 convolution on its map.
    - Self-training of any network, which stays as it is: ``outlines`` find the object in several maps, and
      the 1×1 convolution on the last map, averaged over the object, its label. Logits are 0 for background
      and, for a label, that of the object less what the picture's label is ahead by.
    - All others: a 1×1 convolution on the last map. In the semi-supervised recipe of a ResNet the logits
      are then enlarged by 2 (bilinear), as the published networks do it.

    ``weights`` has the library's own names of tensors, and ``head.weight``, ``head.bias``.
    Source: docs/finetuning.md, Heads.
    """

    def __init__(self, backbone: Backbone, classes: int, recipe: str) -> None:
        """Put a new head for ``classes`` (N) on a backbone; random, as the recipe starts it."""
        super().__init__()
        self.backbone = backbone
        self.kind = kind_of(backbone, recipe)
        self.labels = classes + 1
        self.upsample_2x = self.kind == "resnet" and recipe == SEMI
        channels = backbone.channels
        if self.kind == PROBE:
            self.probe_norm = nn.BatchNorm2d(channels)
        if self.kind == "vit":
            backbone.network.norm = nn.Identity()
            self.fc_norm = nn.LayerNorm(channels, _NORM_EPS)
        if self.kind == "convnext":
            backbone.network.norm = nn.Identity()  # DINOv3's has one
            self.seg_norm = nn.LayerNorm(channels, _NORM_EPS)
        if self.kind == SELF:
            backbone.requires_grad_(False)
            self.finer = finer_layers(backbone)
            self.outlines = Outlines([*self.finer.values(), channels])
        self.head = nn.Conv2d(channels, outputs_of(self.kind, classes), 1)
        self._start_head(recipe)

    def _start_head(self, recipe: str) -> None:
        weight, bias = self.head.weight, self.head.bias
        assert bias is not None
        if self.kind == "resnet" or recipe == PASS:
            nn.init.kaiming_normal_(weight, mode="fan_out", nonlinearity="relu")
        elif self.kind == "convnext":
            nn.init.trunc_normal_(weight, std=0.02)
            nn.init.zeros_(bias)
        else:
            nn.init.trunc_normal_(weight, std=2e-5)

    def train(self, mode: bool = True) -> SegmentationNetwork:
        """Switch to training or evaluation; a network that stays as it is keeps its norms' statistics."""
        super().train(mode)
        if self.kind == SELF:
            self.backbone.eval()
        return self

    def forward(self, pictures: torch.Tensor) -> torch.Tensor:
        """Return the logits (B, N + 1, h, w)."""
        if self.kind == SELF:
            return self._object_logits(pictures)
        features = self.backbone(pictures)
        if self.kind == PROBE:
            features = self.probe_norm(features)
        if self.kind == "vit":
            features = _channels_normed(self.fc_norm, features)
        if self.kind == "convnext":
            return _spread(self.head(_channels_normed(self.seg_norm, features)), self.labels)
        logits: torch.Tensor = self.head(features)
        if self.upsample_2x:
            return interpolate(logits, scale_factor=2, mode="bilinear")
        return logits

    def _object_logits(self, pictures: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            maps = maps_of(self.backbone, list(self.finer), pictures)
        normed = self.outlines.normed(maps)
        found = self.outlines(normed)
        of_places = self.head(normed[-1])
        shares = adaptive_avg_pool2d(found.detach().sigmoid(), of_places.shape[2:])
        whole = shares.sum((2, 3)).clamp(min=torch.finfo(shares.dtype).tiny)  # 0 where there is no object
        of_object = (of_places * shares).sum((2, 3)) / whole
        behind = of_object - of_object.amax(1, keepdim=True)
        return torch.cat([torch.zeros_like(found), found + behind[:, :, None, None]], 1)

    def take_probe(self, norm: nn.Module, head: nn.Module) -> None:
        """Take the weights and running values of a probe's norm and head."""
        self.probe_norm.load_state_dict(norm.state_dict())
        self.head.load_state_dict(head.state_dict())

    def weights(self) -> dict[str, torch.Tensor]:
        """Return all tensors: the backbone's under its library's own names, and the head's."""
        return {name.removeprefix(_BACKBONE): value for name, value in self.state_dict().items()}

    def load_weights(self, weights: Mapping[str, torch.Tensor], path: Path | str) -> None:
        """Load what ``weights`` returned; all must be there. Raises InputError, naming the file ``path``."""
        own = self.weights()
        counters = {name for name in own if name.endswith("num_batches_tracked")}
        missing = [name for name in own if name not in weights and name not in counters]
        surplus = [name for name in weights if name not in own]
        shapes = [
            f"{name} is {tuple(weights[name].shape)}, not {tuple(own[name].shape)}"
            for name in own
            if name in weights and weights[name].shape != own[name].shape
        ]
        faults = [
            f"{len(names)} tensors {what} ({some(names)})"
            for what, names in (("missing", missing), ("too many", surplus), ("of another shape", shapes))
            if names
        ]
        if faults:
            raise InputError(f"{path}: no {self.backbone.name} with a head: {'; '.join(faults)}")
        self.load_state_dict(
            {
                name: weights.get(name.removeprefix(_BACKBONE), value)
                for name, value in self.state_dict().items()
            }
        )

    @property
    def layers(self) -> int:
        """Number of the head's layer, for ``layer_of``; 0 where layers are not distinguished."""
        return max(self.layer_of(name) for name, _ in self.named_parameters())

    def layer_of(self, name: str) -> int:
        """Layer of a tensor, by its name in ``named_parameters``: 0 for the stem, the highest for the head.

        Blocks count, and a ConvNeXt's downsamplings. Other networks than ResNets, timm's vision transformers
        and ConvNeXts are one layer. Source: docs/finetuning.md, Optimiser.
        """
        bare = name.removeprefix(_BACKBONE)
        blocks = self._blocks()
        if not blocks or re.match(_STEM, bare):
            return 0
        inside = (number for number, block in enumerate(blocks, 1) if bare.startswith(f"{block}."))
        return next(inside, len(blocks) + 1)

    def _blocks(self) -> list[str]:
        """Names of the blocks whose layers are distinguished, from the stem to the head."""
        network: Any = self.backbone.network
        if self.kind == "vit":
            return [f"blocks.{number}" for number in range(len(network.blocks))]
        if self.kind == "resnet":
            stages = [f"layer{stage}" for stage in range(1, 5)]
            return [f"{stage}.{number}" for stage in stages for number in range(len(getattr(network, stage)))]
        blocks = []
        for stage, part in enumerate(network.stages if self.kind == "convnext" else ()):
            blocks += [f"stages.{stage}.downsample"] if stage else []
            blocks += [f"stages.{stage}.blocks.{number}" for number in range(len(part.blocks))]
        return blocks


def outputs_of(kind: str, classes: int) -> int:
    """Number of channels of the head of a network for ``classes`` (N)."""
    if kind == SELF:
        return classes  # background is where no object is
    return (classes + 1) * (PATCH**2 if kind == "convnext" else 1)


def kind_of(backbone: Backbone, recipe: str = SEMI) -> str:
    """Kind of a backbone: ``vit`` (timm's), ``resnet``, ``convnext`` (timm's), ``other``; or SELF, PROBE."""
    if recipe in (SELF, PROBE):
        return recipe
    if backbone.is_resnet:
        return "resnet"
    network, name = backbone.network, type(backbone.network).__name__
    if name == "VisionTransformer" and hasattr(network, "blocks"):
        return "vit"
    return "convnext" if name == "ConvNeXt" and hasattr(network, "stem") else "other"


def _channels_normed(norm: nn.Module, features: torch.Tensor) -> torch.Tensor:
    normed: torch.Tensor = norm(features.permute(0, 2, 3, 1))
    return normed.permute(0, 3, 1, 2)


def _spread(channels: torch.Tensor, labels: int) -> torch.Tensor:
    """Lay (B, p·p·labels, h, w), the labels varying fastest, out as (B, labels, p·h, p·w)."""
    batch, _, height, width = channels.shape
    places = channels.view(batch, PATCH, PATCH, labels, height, width)
    return places.permute(0, 3, 4, 1, 5, 2).reshape(batch, labels, PATCH * height, PATCH * width)


def fresh_norm(network: SegmentationNetwork, tensors: Mapping[str, torch.Tensor]) -> bool:
    """Take ``fc_norm`` from a checkpoint's tensors if it has one that fits; True if it starts anew.

    MAE's pre-trained files have none, its fine-tuned ones do. False for networks without ``fc_norm`` too.
    """
    if network.kind != "vit":
        return False
    for part in ("weight", "bias"):
        own = getattr(network.fc_norm, part)
        found = [
            value
            for name, value in tensors.items()
            if re.search(rf"(^|\.)fc_norm\.{part}$", name) and value.shape == own.shape
        ]
        if not found:
            return True
        with torch.no_grad():
            own.copy_(found[0])
    return False


@dataclass(frozen=True)
class Saved:
    """A fine-tuned network as a file holds it; ``about`` is what a run here recorded, else nothing."""

    path: Path
    weights: dict[str, torch.Tensor]
    recipe: str
    about: Mapping[str, Any]

    def network(
        self, backbone: str | None = None, output_stride: int | None = None, classes: int | None = None
    ) -> SegmentationNetwork:
        """Build the network and load the weights: all must fit, and be for ``classes`` (N) where given.

        Raises InputError when the file is of another backbone or another number of classes, or none is
        named.
        """
        recorded = self.about.get("backbone")
        own_stride = self.about.get("output_stride") or 32
        name = backbone or recorded
        if name is None:
            raise InputError(f"{self.path}: does not say which network it is; name the backbone")
        if recorded and name != recorded:
            raise InputError(f"{self.path}: is of backbone {recorded}, not of {name}")
        if recorded and output_stride not in (None, own_stride):
            raise InputError(f"{self.path}: has output stride {own_stride}, not {output_stride}")
        stride = output_stride or self.about.get("output_stride")
        made = make_backbone(name, output_stride=stride, layers=self.about.get("layers", 1))
        made.positions = self.about.get("positions", made.positions)
        kind = kind_of(made, self.recipe)
        network = SegmentationNetwork(made, self._classes(kind, classes), self.recipe)
        network.load_weights(self.weights, self.path)
        return network.eval()

    def reading(self, network: SegmentationNetwork, size: Size = None) -> Reading:
        """Say how images become pictures: of ``size``, or as in a probe's training, else as published."""
        return network.backbone.reading(size or self.about.get("size"), stretched=self.recipe != PROBE)

    def _classes(self, kind: str, wanted: int | None) -> int:
        """Number of classes that the head is for. Raises InputError when it is not the one wanted."""
        outputs = len(self.weights["head.weight"])
        places = outputs_of(kind, 1) - outputs_of(kind, 0)
        if outputs % places or outputs < outputs_of(kind, 1):
            raise InputError(f"{self.path}: a head of {outputs} channels is none of a {kind}")
        classes = (outputs - outputs_of(kind, 0)) // places
        if wanted is not None and classes != wanted:
            raise InputError(
                f"{self.path}: has {classes} classes, the mode has {wanted}; take the file's own mode"
            )
        return classes


def read_saved(path: Path) -> Saved:
    """Read a fine-tuned network: a run's ``last.pth``, or a published file in its own layout.

    Published are PASS's (``state_dict``, names after ``module.``, ``last_layer``) and those of
    semi-supervised fine-tuning (``model``; ``head``, or ``seg_head.fc`` of a ConvNeXt). Raises InputError,
    naming the file, for anything else, OSError when it cannot be read.
    """
    content = read_checkpoint(path).content
    part = next(
        (content[key] for key in ("model", "state_dict") if isinstance(content.get(key), Mapping)), content
    )
    weights = {_own_name(name): tensor for name, tensor in named_tensors(part).items()}
    if any(name.endswith(".conv_dw.rates") for name in weights):
        raise InputError(f"{path}: is an RF-ConvNeXt, which is left out here; see docs/finetuning.md")
    if not {"head.weight", "head.bias"} <= weights.keys() or weights["head.weight"].ndim != 4:
        raise InputError(
            f"{path}: no fine-tuned network: it has no head of 1 x 1 convolutions; take what finetune.py "
            "wrote, or a published fine-tuned file"
        )
    about = {key: value for key, value in content.items() if not isinstance(value, Mapping)}
    ours = about.get("recipe") in RECIPES and isinstance(about.get("backbone"), str)
    if not ours:
        is_pass = any("last_layer." in name for name in named_tensors(part))
        return Saved(path, weights, PASS if is_pass else SEMI, {})
    return Saved(path, weights, about["recipe"], about)


def _own_name(name: str) -> str:
    """Name that our networks have for a tensor of a published file."""
    name = name.removeprefix("module.")
    return re.sub(r"^(last_layer|seg_head\.fc)\.", "head.", name)
