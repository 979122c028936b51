"""What PASS finds in pictures with a backbone and its attention; docs/pass.md."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from torch.nn.functional import conv2d, interpolate, normalize

from imagenets.common.errors import InputError
from imagenets.common.whole_files import whole_file
from imagenets.learning.engine.inference import ENGINE, ArrayStep, Batch, LabelStep, load_arrays
from imagenets.learning.images import IMAGENET_MEAN, IMAGENET_STD, Reading
from imagenets.learning.networks.backbones import Backbone
from imagenets.learning.pass_method.attention import PixelAttention, enlarged
from imagenets.learning.pass_method.thresholds import count_steps

# Raised by hand whenever features or labels change.
CODE = f"{ENGINE}, attended features 1"
LABEL_READING = Reading(IMAGENET_MEAN, IMAGENET_STD)
CLUSTER_READING = Reading(IMAGENET_MEAN, IMAGENET_STD, crop=224)


def load_centroids(path: Path, channels: int) -> np.ndarray:
    """Read centroids (K, C) float32 of ``channels`` C. Raises InputError, naming the file, for others."""
    try:
        centroids = np.load(path, allow_pickle=False)
    except (ValueError, EOFError) as error:
        raise InputError(f"{path}: no NumPy file of centroids ({error}); cluster.py makes one") from error
    if not isinstance(centroids, np.ndarray) or centroids.ndim != 2 or centroids.shape[1] != channels:
        shape = getattr(centroids, "shape", "no array")
        raise InputError(f"{path}: centroids are {shape}, but the backbone has {channels} channels")
    if not np.issubdtype(centroids.dtype, np.floating) or not np.isfinite(centroids).all():
        raise InputError(f"{path}: centroids must be finite numbers")
    return centroids.astype(np.float32)


def feature_step(backbone: Backbone, attention: PixelAttention) -> ArrayStep:
    """Pool the attended features of each picture, for clustering: ``features`` (1, C).

    The features that are pooled are not of unit length, other than in training.
    """

    def step(batch: Batch) -> Sequence[Mapping[str, torch.Tensor]]:
        features = enlarged(batch.through(backbone))
        weights: torch.Tensor = attention(normalize(features, dim=1))
        return [{"features": row[None]} for row in (features * weights).mean((2, 3))]

    return step


def label_step(
    backbone: Backbone, attention: PixelAttention, centroids: torch.Tensor, threshold: float
) -> LabelStep:
    """Label each pixel by its nearest centroid (K, C), 1..K, and 0 where attention is below ``threshold``."""

    def step(batch: Batch) -> Sequence[torch.Tensor]:
        # A tensor of float32 is compared with the threshold as float32; equal ones stay foreground.
        return [
            torch.where(attended < threshold, 0, clusters)
            for clusters, attended in _full_size(batch, backbone, attention, centroids)
        ]

    return step


def sweep_step(backbone: Backbone, attention: PixelAttention, centroids: torch.Tensor) -> ArrayStep:
    """Count each picture's pixels for all thresholds: ``rows`` (R, 4), and their ``image`` (R,)."""

    def step(batch: Batch) -> Sequence[Mapping[str, torch.Tensor]]:
        counted = []
        found = _full_size(batch, backbone, attention, centroids)
        for index, mask, (clusters, attended) in zip(batch.indices, batch.masks, found, strict=True):
            rows = count_steps(mask, clusters, attended)
            counted.append({"rows": rows, "image": torch.full_like(rows[:, 0], index)})
        return counted

    return step


def _full_size(
    batch: Batch, backbone: Backbone, attention: PixelAttention, centroids: torch.Tensor
) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Return each picture's clusters (H, W) int32 and mean attention (H, W) float32, in its image's size."""
    vectors = normalize(enlarged(batch.through(backbone)), dim=1)
    attended = attention(vectors).mean(1, keepdim=True)
    # Cosines with all centroids; of equal ones the first counts.
    clusters = conv2d(vectors, normalize(centroids, dim=1)[:, :, None, None]).argmax(1, keepdim=True) + 1
    return [
        (
            interpolate(labels[None].float(), size, mode="nearest")[0, 0].int(),
            interpolate(of_one[None], size, mode="bilinear", align_corners=False)[0, 0],
        )
        for labels, of_one, size in zip(clusters, attended, batch.sizes, strict=True)
    ]


def join_features(parts: Sequence[Path], images: int, path: Path) -> None:
    """Join what ``store_arrays`` kept of ``images`` to ``path``, (n, C) float32; only a part is in memory."""
    path.parent.mkdir(parents=True, exist_ok=True)
    width = load_arrays(parts[:1], "features").shape[1]
    with whole_file(path) as temporary:
        joined = np.lib.format.open_memmap(temporary, "w+", np.float32, (images, width))
        place = 0
        for part in parts:
            rows = load_arrays([part], "features")
            joined[place : place + len(rows)] = rows
            place += len(rows)
        joined.flush()
