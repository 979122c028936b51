"""Text-space embeddings of patches from the image tower of a vision-language model.

CLIP was trained on one vector a picture, so what its last block should do to the patches is open, and the
published methods differ in little else: ``LAST_BLOCKS`` has one row for each. Sources: MaskCLIP (Zhou et al.,
ECCV 2022), SCLIP (Wang et al., ECCV 2024), ClearCLIP (Lan et al., ECCV 2024), NACLIP (Hajimiri et al., WACV
2025); docs/zero_shot.md.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch.nn.functional import linear, normalize, scaled_dot_product_attention

from imagenets.learning.networks.last_maps import read_timm_vit
from imagenets.learning.networks.position_embeddings import DINO, grid_embeddings

NEIGHBOUR_SIGMA = 5.0  # patches; of NACLIP's Gaussian

Grid = tuple[int, int]  # height, width in patches


class LastBlock(NamedTuple):
    """What a method does in the last block, and its factor on cosines before the softmax over classes.

    Values are mixed by the attention of ``attends``, pairs of what asks and what is asked among queries and
    keys, added up; by none they stay where they are. ``keeps_residual``: the block's input is added and its
    MLP follows; else the block's output is W_o of the mixed values. ``neighbours``: near patches attend more.
    """

    attends: tuple[tuple[str, str], ...]
    keeps_residual: bool
    scale: float
    neighbours: bool = False


LAST_BLOCKS = {
    "clip": LastBlock((("q", "k"),), keeps_residual=True, scale=100.0),
    "maskclip": LastBlock((), keeps_residual=False, scale=100.0),
    "sclip": LastBlock((("q", "q"), ("k", "k")), keeps_residual=True, scale=40.0),
    "clearclip": LastBlock((("q", "q"),), keeps_residual=False, scale=50.0),
    "naclip": LastBlock((("k", "k"),), keeps_residual=False, scale=40.0, neighbours=True),
}


def neighbourhood(grid: Grid, device: torch.device | str = "cpu") -> torch.Tensor:
    """Build NACLIP's additive attention bias: (1 + h·w, 1 + h·w) float32.

    exp(−‖p_i − p_j‖² / 2σ²) between patches, σ = 5 patches; 0 in row and column of the class token.
    """
    rows, columns = (torch.arange(length, device=device, dtype=torch.float32) for length in grid)
    places = torch.cartesian_prod(rows, columns).view(-1, 2)
    bias = torch.zeros(1 + len(places), 1 + len(places), device=device)
    bias[1:, 1:] = torch.exp(-torch.cdist(places, places).square() / (2 * NEIGHBOUR_SIGMA**2))
    return bias


def clip_embeddings(visual: Any, pictures: torch.Tensor, last: LastBlock) -> torch.Tensor:  # noqa: ANN401
    """Embed the patches of pictures (B, 3, H, W), normalised, with open_clip's VisionTransformer.

    Returns unit vectors (B, E, h, w) float32 on the grid of whole patches. Position embeddings are
    interpolated by DINO's rule, as SCLIP, ClearCLIP and NACLIP do.
    """
    tokens, grid = _tokens_before_last_block(visual, pictures)
    block = visual.transformer.resblocks[-1]
    patches = visual.ln_post(_last_block(block, tokens, grid, last)[:, 1:]) @ visual.proj
    return _on_grid(patches, grid)


def siglip_embeddings(trunk: Any, pictures: torch.Tensor) -> torch.Tensor:  # noqa: ANN401
    """Embed the patches of pictures (B, 3, H, W), normalised, by the pooling of timm's SigLIP tower.

    The pooling head sees one patch at a time, whose attention to itself is 1: y = W_o v, then y + MLP(LN y).
    Returns unit vectors (B, E, h, w) float32. Position embeddings are interpolated by DINO's rule.
    """
    maps = read_timm_vit(trunk, pictures, DINO)
    pool = trunk.attn_pool
    values = pool.kv(maps.flatten(2).transpose(1, 2)).chunk(2, dim=-1)[1]
    pooled = pool.proj(values)
    return _on_grid(pooled + pool.mlp(pool.norm(pooled)), (maps.shape[2], maps.shape[3]))


def _tokens_before_last_block(visual: Any, pictures: torch.Tensor) -> tuple[torch.Tensor, Grid]:  # noqa: ANN401
    maps = visual.conv1(pictures)  # drops what fills no patch, on the right and below
    grid = (maps.shape[2], maps.shape[3])
    patches = maps.flatten(2).transpose(1, 2)
    tokens = torch.cat([visual.class_embedding.expand(len(patches), 1, -1), patches], dim=1)
    tokens = tokens + grid_embeddings(
        visual.positional_embedding[None], 1, grid, (pictures.shape[2], pictures.shape[3])
    )
    tokens = visual.ln_pre(tokens)
    for block in visual.transformer.resblocks[:-1]:
        tokens = block(tokens)
    return tokens, grid


def _last_block(block: Any, tokens: torch.Tensor, grid: Grid, last: LastBlock) -> torch.Tensor:  # noqa: ANN401
    attention = block.attn
    normed = block.ln_1(tokens)
    projected = linear(normed, attention.in_proj_weight, attention.in_proj_bias)
    by_head = projected.view(*normed.shape[:2], 3, attention.num_heads, -1).permute(2, 0, 3, 1, 4)
    parts = dict(zip("qkv", by_head, strict=True))
    bias = neighbourhood(grid, tokens.device).to(projected.dtype) if last.neighbours else None
    attended = [
        scaled_dot_product_attention(parts[asking], parts[asked], parts["v"], attn_mask=bias)
        for asking, asked in last.attends
    ]
    values = sum(attended[1:], attended[0]) if attended else parts["v"]
    mixed: torch.Tensor = attention.out_proj(values.transpose(1, 2).flatten(2))
    if not last.keeps_residual:
        return mixed
    whole: torch.Tensor = tokens + block.ls_1(mixed)
    whole += block.ls_2(block.mlp(block.ln_2(whole)))
    return whole


def _on_grid(vectors: torch.Tensor, grid: Grid) -> torch.Tensor:
    unit = normalize(vectors.float(), dim=-1)
    return unit.transpose(1, 2).reshape(len(unit), -1, *grid)
