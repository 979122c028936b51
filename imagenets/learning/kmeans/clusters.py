"""Foregrounds, features and clusters of images by a network: k-means without a label, on the engine."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch.nn.functional import adaptive_avg_pool2d, interpolate, normalize

from imagenets.learning.engine.inference import Batch, Running, store_arrays, write_label_maps
from imagenets.learning.images import Images, Reading
from imagenets.learning.kmeans.foregrounds import foreground as handmade_foreground
from imagenets.learning.networks.backbones import Backbone

FOREGROUNDS = ("handmade", "features")
_BORDER = 0.1  # width of what counts as border, as a part of the map's sides


def store_features(
    backbone: Backbone, images: Images, store: Path, identity: str, foreground: str, running: Running
) -> list[Path]:
    """Keep ``features`` (n, C) float16 of images, unit vectors, in files of ``store``; see ``store_arrays``.

    A feature is the mean of the network's last map over the foreground, which is found as ``foreground``, one
    of FOREGROUNDS, says.
    """

    def step(batch: Batch) -> list[dict[str, torch.Tensor]]:
        vectors, _ = described(backbone, batch, foreground)
        return [{"features": vector[None].half()} for vector in vectors]

    reading = _reading(backbone, foreground)
    return store_arrays(images, store, f"{foreground} {identity}", step, reading, running)


def write_clusters(
    backbone: Backbone,
    images: Images,
    targets: Sequence[Path],
    centres: np.ndarray,
    foreground: str,
    running: Running,
) -> int:
    """Write label maps: the id 1..K of the nearest of the ``centres`` (K, C) on the foreground, else 0.

    Gives how many were made; see ``write_label_maps``.
    """
    nearest_of = torch.from_numpy(centres.astype(np.float32)).to(running.processes.device)

    def step(batch: Batch) -> torch.Tensor:
        vectors, inside = described(backbone, batch, foreground)
        ids = torch.cdist(vectors, nearest_of).argmin(dim=1) + 1
        return inside * ids[:, None, None]

    return write_label_maps(images, targets, step, _reading(backbone, foreground), running)


def described(backbone: Backbone, batch: Batch, foreground: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Features (B, C), unit vectors, and foregrounds (B, H, W) bool at the pictures' size."""
    maps = backbone(batch.pictures).float()
    if foreground == "handmade":
        inside = torch.from_numpy(np.stack(batch.beside)).to(maps.device)
    else:
        salience = principal_salience(maps)
        above = salience - threshold(salience)
        size = batch.pictures.shape[2:]
        inside = interpolate(above[:, None], size=size, mode="bilinear", align_corners=False)[:, 0] > 0
        inside |= ~inside.flatten(1).any(dim=1)[:, None, None]  # a picture without contrast is all foreground
    shares = adaptive_avg_pool2d(inside[:, None].float(), maps.shape[2:])
    means = (maps * shares).sum((2, 3)) / shares.sum((2, 3))
    return normalize(means), inside


def principal_salience(maps: torch.Tensor) -> torch.Tensor:
    """Project the vectors of maps (B, C, h, w) on their first principal component, image by image: (B, h, w).

    The component separates object from ground, as DINOv2's authors show (Oquab et al., 2023); its sign is
    chosen so that the border, which is mostly ground, is negative in the mean.
    """
    vectors = maps.flatten(2).transpose(1, 2)  # (B, P, C)
    vectors = vectors - vectors.mean(dim=1, keepdim=True)
    # Of the P x P products, which are fewer than C x C where maps are small.
    _, directions = torch.linalg.eigh(vectors @ vectors.transpose(1, 2))
    salience = directions[:, :, -1].reshape(len(maps), *maps.shape[2:])
    border = torch.ones(maps.shape[2:], dtype=torch.bool, device=maps.device)
    rows, columns = (max(1, round(_BORDER * length)) for length in border.shape)
    border[rows:-rows, columns:-columns] = False
    sign = torch.where(salience[:, border].mean(dim=1) > 0, -1.0, 1.0)
    signed: torch.Tensor = salience * sign[:, None, None]
    return signed


def threshold(values: torch.Tensor) -> torch.Tensor:
    """Otsu's threshold of each of maps (B, h, w), of more than one place: (B, 1, 1).

    It is in the middle of the gap in the sorted values that leaves most variance between the two sides. With
    equal values only it is their value. Source: Otsu, A Threshold Selection Method from Gray-Level
    Histograms, 1979, here without a histogram.
    """
    ordered = values.flatten(1).double().sort(dim=1).values
    number = ordered.shape[1]
    below = torch.arange(1, number, device=values.device)
    sums = ordered.cumsum(dim=1)
    low, high = sums[:, :-1] / below, (sums[:, -1:] - sums[:, :-1]) / (number - below)
    best = (below * (number - below) * (high - low).square()).argmax(dim=1, keepdim=True)
    found = (ordered.gather(1, best) + ordered.gather(1, best + 1)) / 2
    return found.to(values.dtype)[:, :, None]


def _reading(backbone: Backbone, foreground: str) -> Reading:
    beside = handmade_foreground if foreground == "handmade" else None
    return Reading(backbone.mean, backbone.std, fixed_size=backbone.fixed_size, beside=beside)
