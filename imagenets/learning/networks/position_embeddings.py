"""Position embeddings of vision transformers at another number of patches, by the rule of the family.

Each family's authors interpolate in a way of their own, and features differ by it (docs/checkpoints.md,
Position embeddings).
"""

from __future__ import annotations

import math

import torch
from torch.nn.functional import interpolate

# Rules, and what a user reads about them.
DINO, ANTIALIAS, BICUBIC, BILINEAR, RADIO = "dino", "antialias", "bicubic", "bilinear", "radio"
RULES = {
    DINO: "bicubic by the factors (h + 0.1)/side and (w + 0.1)/side",
    ANTIALIAS: "bicubic to h x w, antialiased",
    BICUBIC: "bicubic to h x w",
    BILINEAR: "bilinear to h x w",
    RADIO: "bilinear to a square of the longer side, cut to h x w",
}
# Added to the wanted number of patches before the ratio is formed, as DINO does (Caron et al., ICCV 2021):
# a guard against rounding that also moves the sampling points a little.
_DINO_OFFSET = 0.1


def grid_embeddings(
    embeddings: torch.Tensor, prefix: int, grid: tuple[int, int], size: tuple[int, int], rule: str = DINO
) -> torch.Tensor:
    """Position embeddings for one picture: (1, prefix + T, D) → (1, prefix + h·w, D).

    ``grid`` is (h, w) in patches, ``size`` the picture's (height, width) in pixels; the T embeddings lie on
    a square. They stay as they are where they fit (T = h·w, and the picture is square); else they are
    interpolated by the ``rule``. The ``prefix`` embeddings of class and register tokens are kept.
    Raises ValueError when T is no square number. Source: docs/checkpoints.md, Position embeddings.
    """
    side = _side(embeddings.shape[1] - prefix)
    fits = grid == (side, side) if rule in (BILINEAR, RADIO) else side**2 == grid[0] * grid[1]
    if fits and (rule in (BILINEAR, RADIO) or size[0] == size[1]):
        return embeddings
    return _moved(embeddings, prefix, grid, rule)


def resized(embeddings: torch.Tensor, prefix: int, patches: int) -> torch.Tensor:
    """Bring a checkpoint's embeddings (1, prefix + T, D) to a network's: (1, prefix + patches, D), bicubic.

    Raises ValueError when T or ``patches`` is no square number.
    """
    side = _side(patches)
    if embeddings.shape[1] - prefix == patches:
        return embeddings
    return _moved(embeddings, prefix, (side, side), BICUBIC)


def on_a_square(embeddings: torch.Tensor, prefix: int) -> bool:
    """Return whether embeddings (1, prefix + T, D) are those of a square grid."""
    patches = embeddings.shape[1] - prefix
    return embeddings.ndim == 3 and patches > 0 and math.isqrt(patches) ** 2 == patches


def _moved(embeddings: torch.Tensor, prefix: int, grid: tuple[int, int], rule: str) -> torch.Tensor:
    kept, patches = embeddings[:, :prefix], embeddings[:, prefix:]
    side = _side(patches.shape[1])
    # In float32: half precision has no bicubic interpolation on every device.
    square = patches.transpose(1, 2).reshape(1, -1, side, side).float()
    if rule == DINO:
        scale = ((grid[0] + _DINO_OFFSET) / side, (grid[1] + _DINO_OFFSET) / side)
        moved = interpolate(square, scale_factor=scale, mode="bicubic")
    elif rule == RADIO:
        longer = max(grid)
        moved = interpolate(square, size=(longer, longer), mode="bilinear")[:, :, : grid[0], : grid[1]]
    else:
        mode = "bilinear" if rule == BILINEAR else "bicubic"
        moved = interpolate(square, size=grid, mode=mode, antialias=rule == ANTIALIAS)
    return torch.cat([kept, moved.flatten(2).transpose(1, 2).to(embeddings.dtype)], dim=1)


def _side(patches: int) -> int:
    side = math.isqrt(patches)
    if side**2 != patches or patches == 0:
        raise ValueError(f"{patches} position embeddings do not lie on a square")
    return side
