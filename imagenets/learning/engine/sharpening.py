"""Label maps whose outlines follow the picture's: joint bilateral upsampling of scores.

A network's map has one place for 8 to 32 pixels, and enlarged labels end where places end. Here each pixel
takes the scores of the places around it, weighted by how near they are and how similar in colour. Source:
Kopf et al., Joint Bilateral Upsampling, SIGGRAPH 2007; docs/methods.md, Sharpening.
"""

from __future__ import annotations

import torch
from torch.nn.functional import interpolate, unfold

# Raised by hand whenever sharpened label maps change.
SHARPENING = "sharpening 1"
PLACE = 16  # pixels of the picture: side of a place whose scores are spread
CELLS = 8  # pixels of the guide along a place
RADIUS = 3  # places to each side
SIGMA_SPACE = 1.5  # places
SIGMA_COLOUR = 0.1  # of values 0..1, Euclidean over R, G, B
_LEAST = -60.0  # exponent; smaller ones make denormal numbers, which are forty times as slow


def sharpened(
    scores: torch.Tensor, picture: torch.Tensor, mean: tuple[float, ...], std: tuple[float, ...]
) -> torch.Tensor:
    """Spread scores (n, h, w) of a picture (3, H, W), normalised by ``mean`` and ``std``, along its edges.

    Scores are brought to a grid of places of about 16 x 16 pixels, and the picture, brought to 8 x 8 pixels a
    place, is the guide. Returns scores at the guide's size, float32, to be enlarged bilinearly.
    """
    # By numbers: a tensor of them would be copied to the device, and waited for.
    colours = [channel * scale + shift for channel, scale, shift in zip(picture, std, mean, strict=True)]
    rows, columns = (max(1, round(length / PLACE)) for length in picture.shape[1:])
    return joint_bilateral(
        _resized(scores.float(), rows, columns),
        _resized(torch.stack(colours), rows * CELLS, columns * CELLS),
    )


def _resized(maps: torch.Tensor, rows: int, columns: int) -> torch.Tensor:
    """Resize maps (n, …) bilinearly, averaging where that makes them smaller."""
    return interpolate(maps[None], (rows, columns), mode="bilinear", antialias=True)[0]


def joint_bilateral(scores: torch.Tensor, guide: torch.Tensor) -> torch.Tensor:
    """Enlarge scores (n, h, w) along the edges of a picture (3, c·h, c·w) of values in 0..1: (n, c·h, c·w).

    A pixel's scores are the mean over the places within RADIUS of its own, weighted by
    exp(−d² / 2 SIGMA_SPACE²) · exp(−f² / 2 SIGMA_COLOUR²): d is the distance to the place's middle in places,
    f the difference of the pixel's colour to the place's mean colour. Scores that sum up to 1 at each place
    do so at each pixel.
    """
    (number, rows, columns), cells = scores.shape, guide.shape[1] // scores.shape[1]
    colours = interpolate(guide[None], (rows, columns), mode="area")[0]
    around = torch.cat((colours, torch.ones_like(colours[:1]), scores))  # padded by zeros: no place there
    side = 2 * RADIUS + 1
    near = unfold(around[None], side, padding=RADIUS)[0].view(len(around), side**2, -1).permute(2, 1, 0)
    colour, inside, score = near[..., :3], near[..., 3], near[..., 4:]  # (h·w, places around, …)
    pixels = guide.view(3, rows, cells, columns, cells).permute(1, 3, 2, 4, 0).reshape(-1, cells**2, 3)
    exponent = (
        _by_distance(cells, guide.device) - 0.5 / SIGMA_COLOUR**2 * torch.cdist(pixels, colour).square()
    )
    weights = exponent.clamp_min_(_LEAST).exp_() * inside[:, None]  # (h·w, pixels, places around)
    found: torch.Tensor = weights @ score / weights.sum(2, keepdim=True)
    return (
        found.view(rows, columns, cells, cells, number)
        .permute(4, 0, 2, 1, 3)
        .reshape(number, rows * cells, columns * cells)
    )


def _by_distance(cells: int, device: torch.device) -> torch.Tensor:
    """Exponents −d² / 2 SIGMA_SPACE² of a place's pixels by the places around: (cells², (2 RADIUS + 1)²)."""
    inner = (torch.arange(cells, device=device) + 0.5) / cells - 0.5
    outer = torch.arange(-RADIUS, RADIUS + 1, device=device)
    pixels, places = torch.cartesian_prod(inner, inner), torch.cartesian_prod(outer, outer)
    distances = torch.cdist(pixels, places.float())
    return -0.5 / SIGMA_SPACE**2 * distances.square()
