"""Label maps whose outlines follow the picture's: joint bilateral upsampling of scores.

A network's map has one place for 8 to 32 pixels, and enlarged labels end where places end. Here each pixel
takes the scores of the places around it, weighted by how near they are and how similar in colour. Source:
Kopf et al., Joint Bilateral Upsampling, SIGGRAPH 2007; docs/methods.md, Sharpening.
"""

from __future__ import annotations

import torch
from torch.nn.functional import interpolate

# Raised by hand whenever sharpened label maps change.
SHARPENING = "sharpening 1"
PLACE, GUIDE = 16, 2  # pixels of the picture: side of a place whose scores are spread, and of a guide's pixel
RADIUS = 3  # places to each side
SIGMA_SPACE = 1.5  # places
SIGMA_COLOUR = 0.1  # of values 0..1, Euclidean over R, G, B
_LEAST = -60.0  # exponent; smaller ones make denormal numbers, which are forty times as slow


def sharpened(
    scores: torch.Tensor, picture: torch.Tensor, mean: tuple[float, ...], std: tuple[float, ...]
) -> torch.Tensor:
    """Spread scores (n, h, w) of a picture (3, H, W), normalised by ``mean`` and ``std``, along its edges.

    Scores are brought to places of 16 x 16 pixels, and the picture, brought to half its size, is the guide.
    Returns (n, H / 2, W / 2) float32, to be enlarged bilinearly.
    """
    shift, scale = (picture.new_tensor(of).view(3, 1, 1) for of in (mean, std))
    return joint_bilateral(
        _resized(scores.float(), picture, PLACE), _resized(picture * scale + shift, picture, GUIDE)
    )


def _resized(maps: torch.Tensor, picture: torch.Tensor, side: int) -> torch.Tensor:
    """Bring maps (n, …) to cells of ``side`` pixels of a picture, averaging where that makes them smaller."""
    size = [max(1, round(length / side)) for length in picture.shape[1:]]
    return interpolate(maps[None], size, mode="bilinear", antialias=True)[0]


def joint_bilateral(scores: torch.Tensor, guide: torch.Tensor) -> torch.Tensor:
    """Enlarge scores (n, h, w) along the edges of a picture (3, H, W) of values in 0..1: (n, H, W) float32.

    A pixel's scores are the mean over the places within RADIUS of the one nearest to it, weighted by
    exp(−d² / 2 SIGMA_SPACE²) · exp(−c² / 2 SIGMA_COLOUR²): d is the distance to the place's middle in places,
    c the difference of the pixel's colour to the place's mean colour. Scores that sum up to 1 at each place
    do so at each pixel.
    """
    rows, columns = scores.shape[1:]
    height, width = guide.shape[1:]
    colours = interpolate(guide[None], (rows, columns), mode="area")[0]
    y, near_y = _places(height, rows, guide.device)
    x, near_x = _places(width, columns, guide.device)
    total = torch.zeros(height, width, device=guide.device)
    found = torch.zeros(len(scores), height, width, device=guide.device)
    for i in range(-RADIUS, RADIUS + 1):
        row, of_row = _neighbour(y, near_y + i, rows)
        for j in range(-RADIUS, RADIUS + 1):
            column, of_column = _neighbour(x, near_x + j, columns)
            difference = (guide - colours[:, row][:, :, column]).square_().sum(0)
            likeness = difference.mul_(-0.5 / SIGMA_COLOUR**2).clamp_min_(_LEAST).exp_()
            weight = likeness * of_row[:, None] * of_column
            total += weight
            found += weight * scores[:, row][:, :, column]
    return found / total


def _places(pixels: int, places: int, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """Where each pixel's middle lies among the middles of places (0, 1, …), and the nearest of them."""
    position = (torch.arange(pixels, device=device) + 0.5) * places / pixels - 0.5
    return position, position.round().long().clamp_(0, places - 1)


def _neighbour(position: torch.Tensor, place: torch.Tensor, places: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Index of a place for each pixel of a line, and its weight by distance: 0 where there is none."""
    weight = torch.exp(-0.5 * ((position - place) / SIGMA_SPACE).square())
    inside = (place >= 0) & (place < places)
    return place.clamp(0, places - 1), weight * inside
