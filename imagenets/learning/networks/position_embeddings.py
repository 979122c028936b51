"""Position embeddings of vision transformers at another number of patches."""

from __future__ import annotations

import math

import torch
from torch.nn.functional import interpolate

# Added to the wanted number of patches before the ratio is formed, as DINO does (Caron et al., ICCV 2021):
# a guard against rounding that also moves the sampling points a little.
_DINO_OFFSET = 0.1


def for_picture(
    embeddings: torch.Tensor, prefix: int, grid: tuple[int, int], size: tuple[int, int]
) -> torch.Tensor:
    """Position embeddings for one picture: (1, prefix + T, D) → (1, prefix + h·w, D).

    ``grid`` is (h, w) in patches, ``size`` the picture's (height, width) in pixels; the T embeddings lie on
    a square. They stay as they are where their number is h·w and the picture is square; else they are
    interpolated (bicubic), a square grid in a picture that is not square included. The ``prefix`` embeddings
    of class and register tokens are kept. Source: docs/methods.md, Backbones.
    """
    patches = embeddings.shape[1] - prefix
    if patches == grid[0] * grid[1] and size[0] == size[1]:
        return embeddings
    side = _side(patches)
    scale = tuple((wanted + _DINO_OFFSET) / side for wanted in grid)
    return _interpolated(embeddings, prefix, scale_factor=scale)


def resized(embeddings: torch.Tensor, prefix: int, patches: int) -> torch.Tensor:
    """Bring a checkpoint's embeddings (1, prefix + T, D) to a network's: (1, prefix + patches, D), bicubic.

    Raises ValueError when T or ``patches`` is no square number.
    """
    if embeddings.shape[1] - prefix == patches:
        return embeddings
    side = _side(patches)
    return _interpolated(embeddings, prefix, size=(side, side))


def _interpolated(embeddings: torch.Tensor, prefix: int, **size: tuple[float, ...]) -> torch.Tensor:
    kept, spatial = embeddings[:, :prefix], embeddings[:, prefix:]
    side = _side(spatial.shape[1])
    square = spatial.transpose(1, 2).reshape(1, -1, side, side)
    # In float32: half precision has no bicubic interpolation on every device.
    moved = interpolate(square.float(), mode="bicubic", **size).to(embeddings.dtype)  # type: ignore[arg-type]
    return torch.cat([kept, moved.flatten(2).transpose(1, 2)], dim=1)


def _side(patches: int) -> int:
    side = math.isqrt(patches)
    if side**2 != patches or patches == 0:
        raise ValueError(f"{patches} position embeddings do not lie on a square")
    return side
