"""Points that two crops of one picture share, as sampling grids of both."""

from __future__ import annotations

import torch

POINTS = 7
NOWHERE = -2.0  # outside of [-1, 1], where sampled features are zero


def shared_grids(
    first: torch.Tensor, second: torch.Tensor, points: int = POINTS
) -> tuple[torch.Tensor, torch.Tensor]:
    """Sample the overlap of two crops at ``points`` x ``points`` places: two grids (B, points, points, 2).

    ``first`` and ``second`` (B, 5) float tell the crops: left, top, width, height in pixels of the picture,
    and 1 where the crop is flipped left to right. A grid holds (x, y) in -1..1 as
    ``torch.nn.functional.grid_sample`` takes it; place (i, j) of both is the same point of the picture, and
    the outermost points lie on the overlap's border. Without overlap (touching crops included) all is
    ``NOWHERE``. Source: docs/methods.md, PASS, Pixel to pixel.
    """
    low = torch.maximum(first[:, :2], second[:, :2])
    high = torch.minimum(first[:, :2] + first[:, 2:4], second[:, :2] + second[:, 2:4])
    steps = torch.linspace(0, 1, points, device=first.device, dtype=first.dtype)
    places = low[:, None] + (high - low)[:, None] * steps[None, :, None]  # (B, points, 2): x and y
    overlap = (high > low).all(1)[:, None, None, None]
    return _grid(places, first, overlap), _grid(places, second, overlap)


def _grid(places: torch.Tensor, crop: torch.Tensor, overlap: torch.Tensor) -> torch.Tensor:
    relative = (places - crop[:, None, :2]) / crop[:, None, 2:4]
    x, y = relative.unbind(2)
    x = torch.where(crop[:, 4:] > 0, 1 - x, x)
    points = places.shape[1]
    grid = torch.stack((x[:, None].expand(-1, points, -1), y[:, :, None].expand(-1, -1, points)), 3)
    return torch.where(overlap, 2 * grid - 1, torch.full_like(grid, NOWHERE))
