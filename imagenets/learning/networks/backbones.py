"""torchvision's and timm's models by name, as networks that return their last feature map.

No weights come with them and nothing is downloaded: ``checkpoints.load_backbone`` reads the user's file.
"""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Collection, Mapping
from dataclasses import replace
from typing import Any, Literal, NamedTuple

import torch
from torch import nn

from imagenets.common.errors import InputError
from imagenets.learning.images import IMAGENET_MEAN, IMAGENET_STD, Reading
from imagenets.learning.networks import last_maps
from imagenets.learning.networks.families import OWN_MODELS, PLAIN, Family, family_of
from imagenets.learning.networks.last_maps import SIDE, Maps, Read
from imagenets.learning.networks.position_embeddings import RULES

_SHOWN = 3  # names like one that is unknown
# Both libraries have these names, for different layouts of weights; ConvNeXt's own files are timm's.
_TIMM_FIRST = ("convnext_",)

_TORCHVISIONS = {"drop_path_rate": "stochastic_depth_prob"}  # timm's names of options

NATIVE: Literal["native"] = "native"  # the size of pictures that a network was made for
Size = int | Literal["native"] | None


class _Built(NamedTuple):
    """How a network is used: ``read`` returns its last map (B, C, h, w) of pictures (B, 3, H, W)."""

    network: nn.Module
    read: Read
    fixed_size: tuple[int, int] | None = None  # height, width of the only pictures that it takes
    mean: tuple[float, ...] = IMAGENET_MEAN
    std: tuple[float, ...] = IMAGENET_STD
    padding_unknown: bool = False
    native_size: tuple[int, int] = (SIDE, SIDE)
    family: Family = PLAIN


class Backbone(nn.Module):
    """A network without its head; called with normalised pictures (B, 3, H, W) it returns its last map.

    ``network`` is the library's own module, and its tensors have the library's own names (except for the
    head, which is gone). ``channels`` is C of the map (B, C, h, w), ``stride`` the pixels between its places
    (an integer, near enough where a network has no whole one). ``fixed_size`` is (height, width) where the
    network takes pictures of one size only, else None. ``mean`` and ``std`` (R, G, B) normalise values in
    0..1. The map joins those of the last ``layers`` blocks, each behind the last norm, the last one's last.
    """

    def __init__(self, name: str, built: _Built, layers: int = 1) -> None:
        """Measure a network's map; left in evaluation mode."""
        super().__init__()
        self.layers = layers
        self.name = name
        self.network = built.network
        self.fixed_size, self.native_size = built.fixed_size, built.native_size
        self.mean, self.std = built.mean, built.std
        self.family = built.family
        self.positions = built.family.positions
        self._read = built.read
        self.network.register_load_state_dict_post_hook(_forget_caches)  # type: ignore[no-untyped-call]
        self.eval()
        height, width = self.fixed_size or (SIDE, SIDE)
        with torch.inference_mode():
            last = self(torch.zeros(1, 3, height, width))
        self.channels: int = last.shape[1]
        stride = height / last.shape[2]
        # Borders without padding make a map a little smaller; such networks halve the size a few times.
        halved = built.padding_unknown
        self.stride: int = max(1, 2 ** round(math.log2(stride)) if halved else round(stride))

    @property
    def is_resnet(self) -> bool:
        """Whether this is a ResNet of either library, so that ``maps`` returns ``layer3`` and ``layer4``.

        Networks that merely call a stage ``layer4`` (``legacy_seresnet18``) are none.
        """
        return self._read is last_maps.read_resnet

    @property
    def patch(self) -> int | None:
        """Side of the patches in pixels, where what fills none, on the right and below, is left out.

        None where the map is of the whole picture.
        """
        in_patches = (
            last_maps.read_timm_vit,
            last_maps.read_torchvision_vit,
            last_maps.read_timm_eva,
            last_maps.read_naflex_vit,
        )
        if self._read in in_patches or getattr(self.network, "dynamic_img_size", False):
            return self.stride
        return None

    def reading(self, size: Size = None, *, stretched: bool = False) -> Reading:
        """Say how images become pictures for this network.

        ``size`` is the shorter side in pixels, or NATIVE, the network's own; both sides are rounded to whole
        patches. None is the benchmark's 256, from which what fills no patch is cut off, so that a map lies
        where it was computed; ``stretched`` leaves it there, as the published prediction of fine-tuned
        networks does, and the map is taken for one of the whole image.

        Raises InputError where the network takes one size only, and another is asked for.
        """
        reading = Reading(self.mean, self.std, fixed_size=self.fixed_size)
        if self.fixed_size is not None:
            if size not in (None, NATIVE, *self.fixed_size):
                raise InputError(f"size {size}: {self.name} takes {self.fixed_size[0]} only")
            return reading
        patch = self.patch or 1
        if size is None:
            return reading if stretched else replace(reading, cut=patch)
        side = size if isinstance(size, int) else min(self.native_size)
        return replace(reading, side=side, multiple=patch)

    def forward(self, pictures: torch.Tensor) -> torch.Tensor:
        """Return the last map (B, C, h, w) of pictures (B, 3, H, W), normalised."""
        if self.layers == 1:
            return self._read(self.network, pictures, self.positions)
        blocks, norm = last_maps.blocks_and_norm(self.network)
        earlier = {str(number): block for number, block in enumerate(blocks[-self.layers : -1])}
        with last_maps.recorded(earlier) as found:
            last = self._read(self.network, pictures, self.positions)
        grid = (last.shape[2], last.shape[3])
        return torch.cat([*(last_maps.as_grid(norm(each), grid) for each in found.values()), last], dim=1)

    @property
    def covered_tokens(self) -> int | None:
        """Number of class and register tokens that have position embeddings before the patches' own.

        None where the network has no position embeddings, or its library interpolates them.
        """
        if self._read is last_maps.read_torchvision_vit:
            return 1
        if (
            self._read not in (last_maps.read_timm_vit, last_maps.read_timm_eva)
            or self.network.pos_embed is None
        ):
            return None
        return last_maps.covered_prefix(self.network)

    @property
    def about(self) -> str:
        """Say how pictures are normalised, positions interpolated, and which tokens are left out."""
        values = f"mean {_numbers(self.mean)}, std {_numbers(self.std)}"
        if self.covered_tokens is not None:
            values += f"; positions: {RULES[self.positions]}"
        elif getattr(self.network, "rope", None) is not None or hasattr(self.network, "embeds"):
            values += "; positions: the network's own, for any size"
        tokens = (
            1
            if self._read is last_maps.read_torchvision_vit
            else getattr(self.network, "num_prefix_tokens", 0)
        )
        return values + (f"; tokens left out: {tokens}" if tokens else "")

    def maps(self, pictures: torch.Tensor) -> Maps:
        """Return the outputs of ``layer3`` and ``layer4`` of a ResNet: (B, C3, h3, w3), (B, C, h, w).

        Raises ValueError for other networks.
        """
        if not self.is_resnet:
            raise ValueError(f"{self.name} is no ResNet: it has no layer3 and layer4")
        return last_maps.resnet_maps(self.network, pictures)


def _forget_caches(network: nn.Module, _keys: object = None) -> None:
    """Drop what a network has derived from its weights, after these have changed.

    LeViT, TinyViT, EfficientFormer and others of timm keep their attention biases from the first pass in
    evaluation mode, and drop them when they change to training mode.
    """
    training = network.training
    network.train().train(training)


def _numbers(values: tuple[float, ...]) -> str:
    return " ".join(f"{value:.3f}" for value in values)


def make_backbone(
    name: str,
    *,
    output_stride: int | None = None,
    drop_path: float = 0.0,
    layers: int = 1,
    options: Mapping[str, Any] | None = None,
) -> Backbone:
    """Make a network of random weights: torchvision's where it has one of this name, else timm's.

    ``timm/NAME`` and ``torchvision/NAME`` choose; ``convnext_…`` without either is timm's, whose names of
    tensors are those of the published files. ``output_stride`` 16 leaves out the last halving of a ResNet
    (``layer4`` with stride 1; its first block dilation 1, the others 2). ``drop_path`` is the rate of
    stochastic depth of the last block, for networks that have it; ``layers`` last blocks of a ViT are joined.
    ``options`` go to timm's constructor (``depth``, ``num_heads`` …). Names that neither library has:
    ``families.OWN_MODELS``.

    Raises InputError when there is no such network, or it cannot do what is asked.
    """
    library, _, bare = name.rpartition("/")
    if library not in ("", *_LIBRARIES):
        raise InputError(
            f"backbone {name}: before the / stands torchvision or timm; a model of Hugging Face has timm's "
            f"name here{_near(bare, _names_of_timm())}"
        )
    options = {**({"drop_path_rate": drop_path} if drop_path else {}), **(options or {})}
    wanted = [library] if library else ["torchvision", "timm"]
    if not library and bare.startswith(_TIMM_FIRST):
        wanted.reverse()
    known: list[str] = []
    for candidate in wanted:
        built = _LIBRARIES[candidate](bare, options, known)
        if built is not None:
            if output_stride is not None:
                _set_output_stride(name, built, output_stride)
            if layers > 1:
                _check_layers(name, built.network, layers)
            return Backbone(name, built, layers)
    if not known:
        raise InputError(
            "backbones need torchvision or timm, and neither is installed: bash setup.sh methods"
        )
    raise InputError(
        f"backbone {name}: neither torchvision nor timm as installed has this model{_near(bare, known)}"
    )


def _near(name: str, known: Collection[str]) -> str:
    """Hint at names with all the words of this one (dinov2-small), else at those of like spelling."""
    words = set(re.split(r"[-_]", name.lower()))
    with_all = [each for each in set(known) if words <= set(each.split("_"))]
    with_all.sort(key=lambda each: (not each.startswith(name), len(each), each))
    near = with_all[:_SHOWN] or difflib.get_close_matches(name.lower(), sorted(set(known)))
    return f"; near: {', '.join(near)}" if near else ""


def _names_of_timm() -> list[str]:
    try:
        import timm
    except ImportError:
        return []
    return [*timm.list_models(), *OWN_MODELS]


def _from_torchvision(name: str, options: Mapping[str, Any], known: list[str]) -> _Built | None:
    try:
        from torchvision import models
    except ImportError:
        return None
    names = models.list_models(module=models)
    known += names
    if name not in names:
        return None
    own = {_TORCHVISIONS.get(key, key): value for key, value in options.items()}
    if name in ("googlenet", "inception_v3"):
        own |= {"aux_logits": False, "init_weights": False}
    try:
        network = models.get_model(name, weights=None, **own)
    except TypeError as error:
        raise InputError(f"backbone {name}: torchvision's has no drop path") from error
    _remove_heads(network)
    if isinstance(network, models.ResNet):
        return _Built(network, last_maps.read_resnet)
    if isinstance(network, models.VisionTransformer):
        return _Built(network, last_maps.read_torchvision_vit)
    layer = last_maps.last_map_layer(network.eval())
    fixed = (SIDE, SIDE) if isinstance(network, models.MaxVit) else None
    return _Built(network, last_maps.reader_of_layer(layer), fixed, padding_unknown=True)


def _from_timm(name: str, options: Mapping[str, Any], known: list[str]) -> _Built | None:
    try:
        import timm
        import timm.data
        import timm.layers
        from timm.models.convnext import ConvNeXt
        from timm.models.eva import Eva
        from timm.models.naflexvit import NaFlexVit
        from timm.models.resnet import ResNet
        from timm.models.vision_transformer import VisionTransformer
    except ImportError:
        return None
    built_as, own = OWN_MODELS.get(name, (name, {}))
    if not timm.is_model(built_as):
        known += _names_of_timm()
        return None
    family = family_of(name.partition(".")[0])
    if "mlp_layer" in own:  # a class, by its name
        own = {**own, "mlp_layer": getattr(timm.layers, own["mlp_layer"])}
    asked = {**family.options, **own, **options}
    try:
        network: Any = timm.create_model(built_as, pretrained=False, num_classes=0, **asked)
        config = timm.data.resolve_model_data_config(network)  # type: ignore[attr-defined, no-untyped-call]
    except (TypeError, RuntimeError) as error:  # RuntimeError: an unknown tag behind the dot
        raise InputError(f"backbone {name}: {error}") from error
    # A bare name stands for an architecture, which people pre-trained with ImageNet's mean; a name with a
    # tag (vit_base_patch16_224.augreg_in21k) for certain weights, and that of some families for the family's.
    own_values = "." in name or family.own_values
    mean, std = (config["mean"], config["std"]) if own_values else (IMAGENET_MEAN, IMAGENET_STD)
    native = tuple(config["input_size"][1:])
    norm, fc_norm = getattr(network, "norm", None), getattr(network, "fc_norm", None)
    if isinstance(norm, nn.Identity) and isinstance(fc_norm, nn.Module):
        network.norm = fc_norm  # a norm behind the average of all tokens: of each token here
    if fc_norm is not None:
        network.fc_norm = nn.Identity()
    if isinstance(network, ConvNeXt):
        network.norm = network.head.norm if "dinov3" in name else nn.Identity()
    _remove_heads(network)
    if family.name == "PE" and network.rope is not None:
        network.rope.ref_feat_shape = None  # the authors do not rescale the grid's coordinates
    kinds: dict[type[nn.Module], Read] = {
        ResNet: last_maps.read_resnet,
        VisionTransformer: last_maps.read_timm_vit,
        NaFlexVit: last_maps.read_naflex_vit,
        ConvNeXt: last_maps.read_convnext,
    }
    read = next((kinds[kind] for kind in kinds if isinstance(network, kind)), last_maps.read_timm)
    if isinstance(network, Eva) and _positions_by_rule(network):
        read = last_maps.read_timm_eva
    fixed = None
    if read is last_maps.read_timm and network.pretrained_cfg.get("fixed_input_size"):
        fixed = None if getattr(network, "dynamic_img_size", False) else native
    return _Built(network, read, fixed, mean, std, native_size=native, family=family)


def _positions_by_rule(network: Any) -> bool:  # noqa: ANN401
    """Whether an EVA-like network has position embeddings, and takes pictures of any size."""
    return network.pos_embed is not None and network.dynamic_img_size and not network.rope_mixed


_LIBRARIES = {"torchvision": _from_torchvision, "timm": _from_timm}


def _remove_heads(network: nn.Module) -> None:
    """Replace what lies behind the feature map by nothing, so that no tensor is left that is not used."""
    for name, _ in list(network.named_children()):
        if name in last_maps.HEADS:
            setattr(network, name, nn.Identity())


def _set_output_stride(name: str, built: _Built, output_stride: int) -> None:
    """Set a ResNet to output stride 32 (as it is) or 16: docs/methods.md, Backbones."""
    if built.read is not last_maps.read_resnet or output_stride not in (16, 32):
        raise InputError(f"backbone {name}: only ResNets have an output stride to choose, 16 or 32")
    if output_stride == 32:
        return
    if any(isinstance(module, nn.AvgPool2d) for module in built.network.layer4.modules()):  # type: ignore[union-attr]
        raise InputError(f"backbone {name}: its shortcuts pool, so that its output stride stays 32")
    for number, block in enumerate(built.network.layer4):  # type: ignore[arg-type]
        for convolution in (module for module in block.modules() if isinstance(module, nn.Conv2d)):
            convolution.stride = (1, 1)
            if number > 0 and convolution.kernel_size == (3, 3):
                convolution.dilation = convolution.padding = (2, 2)


def _check_layers(name: str, network: nn.Module, layers: int) -> None:
    blocks, _ = last_maps.blocks_and_norm(network)
    if len(blocks) < layers:
        raise InputError(f"cannot join {layers} layers: {name} has {len(blocks)} blocks of tokens")
