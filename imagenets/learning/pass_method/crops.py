"""The crops of each picture that PASS learns from; docs/pass.md, Augmentation."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from imagenets.images import read_image
from imagenets.learning.images import IMAGENET_MEAN
from imagenets.learning.training.augmentation import (
    PUBLISHED_COLOURS,
    Colours,
    as_tensor,
    cropped,
    distort,
    random_crop,
)
from imagenets.learning.training.order import generator

MEAN = IMAGENET_MEAN
STD = (0.228, 0.224, 0.225)  # as published: red has 0.228 here, and the field's 0.229 everywhere else


@dataclass(frozen=True)
class CropSettings:
    """Crops of one size: how many, their side in pixels, and the share of the picture's area they cover."""

    count: int
    side: int
    scale: tuple[float, float]

    def __str__(self) -> str:
        """Write it as run settings show it."""
        return f"{self.count} x {self.side} of {self.scale[0]:g}..{self.scale[1]:g}"


class CropReader:
    """Reads pictures as crops, whose randomness is a function of seed, epoch and picture."""

    def __init__(
        self,
        folder: Path,
        images: Sequence[str],
        seed: int,
        large: CropSettings,
        small: CropSettings | None,
        colours: Colours = PUBLISHED_COLOURS,
    ) -> None:
        """Cut ``large`` crops and, where given, ``small`` ones from ``<folder>/<image>``."""
        self.folder = folder
        # An array, not a list: the counters of a million strings would be copied into every worker.
        self.images = np.array([image.encode(errors="surrogateescape") for image in images])
        self.seed, self.colours = seed, colours
        self.sizes = [large] if small is None else [large, small]

    def read(self, epoch: int, index: int) -> tuple[torch.Tensor, ...]:
        """Read one picture: rectangles (n, 5) float32 of the large crops, then the crops of each size.

        A rectangle is left, top, width and height in pixels of the picture, and 1 where it is flipped. Crops
        are (n, 3, side, side) uint8.
        """
        picture = read_image(self.folder / self.name(index))
        random = generator(self.seed, epoch, index)
        rectangles: list[tuple[int, ...]] = []
        of_sizes = []
        for size in self.sizes:
            tensors = []
            for _ in range(size.count):
                rectangle = random_crop(random, *picture.size, size.scale)
                rectangles.append(rectangle)
                cut = cropped(picture, rectangle, size.side)
                tensors.append(as_tensor(distort(random, cut, self.colours)))
            of_sizes.append(torch.stack(tensors))
        return (torch.tensor(rectangles[: self.sizes[0].count], dtype=torch.float32), *of_sizes)

    def name(self, index: int) -> str:
        """Name a picture: ``<wnid>/<file>``."""
        return bytes(self.images[index]).decode(errors="surrogateescape")


def views(crops: torch.Tensor) -> torch.Tensor:
    """Order a batch's crops (B, n, …) by view: (n · B, …), the first crop of all pictures first."""
    return crops.transpose(0, 1).flatten(0, 1)


POINTS = 7
NOWHERE = -2.0  # outside of [-1, 1], where sampled features are zero


def shared_grids(first: torch.Tensor, second: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Sample the overlap of two crops at POINTS x POINTS places: two grids (B, POINTS, POINTS, 2).

    ``first`` and ``second`` (B, 5) float are the crops: left, top, width, height in pixels of the picture,
    and 1 where the crop is flipped left to right. A grid holds (x, y) in -1..1 as
    ``torch.nn.functional.grid_sample`` takes it; place (i, j) of both is the same point of the picture, and
    the outermost points lie on the overlap's border. Without overlap (touching crops included) all is
    ``NOWHERE``. Source: docs/pass.md, Losses.
    """
    low = torch.maximum(first[:, :2], second[:, :2])
    high = torch.minimum(first[:, :2] + first[:, 2:4], second[:, :2] + second[:, 2:4])
    steps = torch.linspace(0, 1, POINTS, device=first.device, dtype=first.dtype)
    places = low[:, None] + (high - low)[:, None] * steps[None, :, None]  # (B, POINTS, 2): x and y
    overlap = (high > low).all(1)[:, None, None, None]
    return _grid(places, first, overlap), _grid(places, second, overlap)


def _grid(places: torch.Tensor, crop: torch.Tensor, overlap: torch.Tensor) -> torch.Tensor:
    relative = (places - crop[:, None, :2]) / crop[:, None, 2:4]
    x, y = relative.unbind(2)
    x = torch.where(crop[:, 4:] > 0, 1 - x, x)
    grid = torch.stack((x[:, None].expand(-1, POINTS, -1), y[:, :, None].expand(-1, -1, POINTS)), 3)
    return torch.where(overlap, 2 * grid - 1, torch.full_like(grid, NOWHERE))
