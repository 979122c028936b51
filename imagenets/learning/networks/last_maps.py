"""How the last feature map of each kind of network is read.

A reader ``read(network, pictures, rule)`` returns the map (B, C, h, w) of pictures (B, 3, H, W), normalised;
``rule`` is that of the position embeddings, for networks that have one.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from imagenets.common.errors import InputError
from imagenets.learning.networks.position_embeddings import grid_embeddings

# Modules behind the feature map, at the top of a network.
HEADS = ("fc", "classifier", "head", "heads", "head_dist", "avgpool", "attn_pool", "attnpool")
SIDE = 224  # pixels, of the picture on which a network's map is measured

Maps = tuple[torch.Tensor, torch.Tensor]
Read = Callable[[Any, torch.Tensor, str], torch.Tensor]


@contextmanager
def recorded(modules: Mapping[str, nn.Module]) -> Iterator[dict[str, torch.Tensor]]:
    """Record what modules return, by their names, in the order in which they were called."""
    found: dict[str, torch.Tensor] = {}

    def note(name: str, output: torch.Tensor) -> None:
        found.pop(name, None)
        found[name] = output

    hooks = [
        module.register_forward_hook(lambda module, inputs, output, name=name: note(name, output))
        for name, module in modules.items()
    ]
    try:
        yield found
    finally:
        for hook in hooks:
            hook.remove()


def blocks_and_norm(network: Any) -> tuple[Any, nn.Module]:  # noqa: ANN401 - of either library
    """Blocks of a ViT that return tokens (B, T, C), and the norm behind the last; none of other networks."""
    part = getattr(network, "encoder", network)
    blocks = getattr(part, "blocks", getattr(part, "layers", None))
    norm = getattr(part, "norm", getattr(part, "ln", None))
    return (blocks, norm) if isinstance(norm, nn.Module) and blocks is not None else ((), nn.Identity())


def read_resnet(network: nn.Module, pictures: torch.Tensor, rule: str = "") -> torch.Tensor:
    """Last map of a ResNet of either library."""
    return resnet_maps(network, pictures)[1]


def resnet_maps(network: Any, pictures: torch.Tensor) -> Maps:  # noqa: ANN401 - of either library
    """Outputs of ``layer3`` and ``layer4``: (B, C3, h3, w3), (B, C, h, w)."""
    activation = network.relu if hasattr(network, "relu") else network.act1
    x = network.maxpool(activation(network.bn1(network.conv1(pictures))))
    layer3 = network.layer3(network.layer2(network.layer1(x)))
    return layer3, network.layer4(layer3)


def _cropped(pictures: torch.Tensor, patch: tuple[int, int]) -> tuple[torch.Tensor, tuple[int, int]]:
    """Leave out, on the right and below, what fills no patch; also returns the grid (h, w) of patches."""
    height, width = pictures.shape[2] // patch[0], pictures.shape[3] // patch[1]
    return pictures[:, :, : height * patch[0], : width * patch[1]], (height, width)


def as_grid(tokens: torch.Tensor, grid: tuple[int, int]) -> torch.Tensor:
    """Lay tokens (B, …, C), of which the last h·w are patches, on their grid: (B, C, h, w)."""
    patches = tokens[:, tokens.shape[1] - grid[0] * grid[1] :]
    return patches.transpose(1, 2).reshape(len(tokens), -1, *grid)


def read_torchvision_vit(network: Any, pictures: torch.Tensor, rule: str) -> torch.Tensor:  # noqa: ANN401
    """Last map of torchvision's ViT, of any size: the patch tokens behind the last norm."""
    cropped, grid = _cropped(pictures, network.conv_proj.kernel_size)
    tokens = network.conv_proj(cropped).flatten(2).transpose(1, 2)
    tokens = torch.cat([network.class_token.expand(len(tokens), -1, -1), tokens], dim=1)
    encoder = network.encoder
    tokens = tokens + grid_embeddings(encoder.pos_embedding, 1, grid, pictures.shape[2:], rule)  # type: ignore[arg-type]
    return as_grid(encoder.ln(encoder.layers(encoder.dropout(tokens))), grid)


def read_timm_vit(network: Any, pictures: torch.Tensor, rule: str) -> torch.Tensor:  # noqa: ANN401
    """Last map of a plain ViT, of any size: the patch tokens behind the last norm."""
    tokens, grid = _embedded(network, pictures, rule)
    return as_grid(network.norm(network.blocks(tokens)), grid)


def read_timm_eva(network: Any, pictures: torch.Tensor, rule: str) -> torch.Tensor:  # noqa: ANN401
    """The same of a ViT that turns queries and keys by their places as well (EVA02-CLIP, PE)."""
    tokens, grid = _embedded(network, pictures, rule)
    turned = None if network.rope is None else network.rope.get_embed(shape=grid)
    for block in network.blocks:
        tokens = block(tokens, rope=turned)
    return as_grid(network.norm(tokens), grid)


def covered_prefix(network: Any) -> int:  # noqa: ANN401
    """Number of prefix tokens of one of timm's ViTs that have position embeddings."""
    covered: int = 0 if network.no_embed_class else network.num_prefix_tokens
    return covered


def _embedded(network: Any, pictures: torch.Tensor, rule: str) -> tuple[torch.Tensor, tuple[int, int]]:  # noqa: ANN401
    """Tokens (B, T, C) that go into the blocks of one of timm's ViTs, and the grid (h, w) of the patches."""
    cropped, grid = _cropped(pictures, network.patch_embed.proj.kernel_size)
    embed = network.patch_embed
    tokens = embed.norm(embed.proj(cropped).flatten(2).transpose(1, 2))
    first = [getattr(network, name, None) for name in ("cls_token", "dist_token", "reg_token")]
    prefix = [token.expand(len(tokens), -1, -1) for token in first if token is not None]
    positions = network.pos_embed
    covered = covered_prefix(network)
    if positions is not None:
        positions = grid_embeddings(positions, covered, grid, pictures.shape[2:], rule)  # type: ignore[arg-type]
        tokens = tokens if covered else tokens + positions
    tokens = torch.cat([*prefix, tokens], dim=1)
    if positions is not None and covered:
        tokens = tokens + positions
    return network.norm_pre(network.pos_drop(tokens)), grid


def read_convnext(network: Any, pictures: torch.Tensor, rule: str) -> torch.Tensor:  # noqa: ANN401
    """Last map of timm's ConvNeXt; ``norm`` does nothing but in DINOv3's, which has it at every place."""
    features: torch.Tensor = network.norm(network.forward_features(pictures))
    return features


def read_naflex_vit(network: Any, pictures: torch.Tensor, rule: str) -> torch.Tensor:  # noqa: ANN401
    """Last map of timm's NaFlex ViT."""
    cropped, grid = _cropped(pictures, network.embeds.patch_size)
    return as_grid(network.forward_features(cropped), grid)


def read_timm(network: Any, pictures: torch.Tensor, rule: str) -> torch.Tensor:  # noqa: ANN401
    """Last map of any other model of timm: (B, C, h, w), channels last, or tokens."""
    embed = getattr(network, "patch_embed", None)
    patch = getattr(embed, "patch_size", None)
    if getattr(network, "dynamic_img_size", False) and patch is not None:
        pictures, _ = _cropped(pictures, patch)
    features = network.forward_features(pictures)
    if not isinstance(features, torch.Tensor):
        raise InputError(f"{type(network).__name__} has no single feature map; take another backbone")
    if features.ndim == 4:
        return features.permute(0, 3, 1, 2) if getattr(network, "output_fmt", "") == "NHWC" else features
    return as_grid(features, _token_grid(features, network, pictures))


def _token_grid(tokens: torch.Tensor, network: Any, pictures: torch.Tensor) -> tuple[int, int]:  # noqa: ANN401
    """Work out the grid (h, w) of tokens (B, T, C); those of class and registers come before it."""
    height, width = pictures.shape[2:]
    patches = tokens.shape[1] - getattr(network, "num_prefix_tokens", 0)
    rows = round(math.sqrt(patches * height / width))
    if rows == 0 or patches % rows:
        raise InputError(
            f"{type(network).__name__}: {patches} tokens are no grid of a picture of {width} x {height}"
        )
    return rows, patches // rows


def reader_of_layer(layer: str) -> Read:
    """Return a reader of the output of the submodule ``layer``, (B, C, h, w)."""

    def read(network: nn.Module, pictures: torch.Tensor, rule: str) -> torch.Tensor:
        with recorded({layer: network.get_submodule(layer)}) as found:
            network(pictures)
        return found[layer]

    return read


def last_map_layer(network: nn.Module) -> str:
    """Name of the submodule that returns the last feature map (B, C, h, w) of more than one place.

    Raises InputError when there is none.
    """
    inside = {
        name: module
        for name, module in network.named_modules()
        if name and name.partition(".")[0] not in HEADS
    }
    with torch.inference_mode(), recorded(inside) as found:
        network(torch.zeros(1, 3, SIDE, SIDE))
    for name, output in reversed(found.items()):
        if isinstance(output, torch.Tensor) and output.ndim == 4 and min(output.shape[1:]) > 1:
            return name
    raise InputError(f"{type(network).__name__} has no feature map; take another backbone")
