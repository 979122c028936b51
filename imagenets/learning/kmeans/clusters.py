"""k-means over foregrounds: pictures described by hand or by a network, clustered, written as label maps."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
from sklearn.cluster import KMeans, MiniBatchKMeans
from threadpoolctl import threadpool_limits
from torch.nn.functional import adaptive_avg_pool2d, interpolate, normalize

from imagenets.classes import IGNORE, Mode
from imagenets.common.errors import InputError
from imagenets.common.workers import available_cores
from imagenets.learning.engine.inference import (
    ENGINE,
    Batch,
    Running,
    load_arrays,
    store_arrays,
    write_label_maps,
)
from imagenets.learning.images import Images, Reading
from imagenets.learning.kmeans.features import colour_and_texture
from imagenets.learning.kmeans.foregrounds import (
    border_distance,
    by_hand,
    centre_weight,
    otsu,
    smoothed,
    smoothed_and_cut,
)
from imagenets.learning.networks.backbones import Backbone, Size
from imagenets.scoring.counting import CountRequest, count_masks
from imagenets.scoring.matching import find_matching
from imagenets.scoring.metrics import evaluate

# Raised by hand whenever foregrounds, features or clusters change.
CODE = f"{ENGINE}, k-means 2"
FOREGROUNDS = ("handmade", "features")
# Up to here Lloyd's algorithm has all images at once: 100,000 features of 2,048 numbers are 0.8 GB. Mode 50
# (64,431 images) is below; of 300 and 919, the first centres come from this many random images.
LLOYD_IMAGES = 100_000
RESTARTS = 10  # of Lloyd's algorithm; the smallest objective counts
EPOCHS = 5  # of mini-batches over all images, where they are more
_PRINTED = ("Acc", "mIoU", "mBIoU", "FMeasure")

Described = tuple[torch.Tensor, torch.Tensor]


@dataclass(frozen=True)
class Descriptor:
    """How pictures become vectors.

    ``describe`` takes a batch and returns feature vectors (B, D) float32 and foregrounds (B, H, W) bool at
    the pictures' size, never empty. ``identity`` names all that both depend on, apart from this code.
    """

    reading: Reading
    describe: Callable[[Batch], Described]
    identity: str


def handmade() -> Descriptor:
    """Describe pictures without a network: ``by_hand`` and ``colour_and_texture``, in the workers."""
    reading = Reading(mean=(0, 0, 0), std=(1, 1, 1), beside=_described_by_hand)
    return Descriptor(reading, _collected, "handmade")


def _described_by_hand(image: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    found = by_hand(image)
    return colour_and_texture(image, found), found


def _collected(batch: Batch) -> Described:
    vectors, inside = (torch.from_numpy(np.stack(of_all)) for of_all in zip(*batch.beside, strict=True))
    return vectors.to(batch.pictures.device), inside.to(batch.pictures.device)


def network(backbone: Backbone, identity: str, foreground: str, size: Size = None) -> Descriptor:
    """Describe pictures by the mean of a network's last map over the foreground, at length 1.

    ``foreground``, one of FOREGROUNDS, says how the foreground is found; ``identity`` names the weights,
    ``size`` is that of ``Backbone.reading``.
    """
    beside = by_hand if foreground == "handmade" else None
    reading = replace(backbone.reading(size), beside=beside)
    describe = partial(_describe_by_network, backbone)
    return Descriptor(reading, describe, f"{foreground}, {identity}, size {reading.size_text}")


def _describe_by_network(backbone: Backbone, batch: Batch) -> Described:
    maps = batch.through(backbone)
    if batch.beside:
        inside = torch.from_numpy(np.stack(batch.beside)).to(maps.device)
    else:
        inside = network_foregrounds(backbone, maps, batch.pictures)
    shares = adaptive_avg_pool2d(inside[:, None].float(), (maps.shape[2], maps.shape[3]))
    return normalize((maps * shares).sum((2, 3))), inside


def network_foregrounds(backbone: Backbone, maps: torch.Tensor, pictures: torch.Tensor) -> torch.Tensor:
    """Find the objects of pictures (B, 3, H, W), normalised, in their last maps (B, C, h, w): (B, H, W) bool.

    The guess is what is above Otsu's threshold: in coarse maps, those of convolutional networks, of the
    vectors' lengths, weighted to the middle; in fine ones, those of ViTs, of the distances from the border.
    The bilateral solver takes it to the edges; from a coarse map's, GrabCut continues.
    Source: docs/methods.md, Foregrounds.
    """
    coarse = is_coarse(backbone)
    if coarse:
        salience = maps.norm(dim=1) * torch.from_numpy(centre_weight(*maps.shape[2:])).to(maps.device)
    else:
        salience = border_distance(maps)
    guesses = above_threshold(salience, pictures.shape[2:]).cpu().numpy()
    images = rgb_pictures(pictures, backbone.mean, backbone.std)
    refine = smoothed_and_cut if coarse else smoothed
    # OpenCV and SciPy's products release the interpreter: threads are enough.
    with ThreadPoolExecutor(available_cores()) as pool:
        found = list(pool.map(refine, images, guesses))
    return torch.from_numpy(np.stack(found)).to(maps.device)


def is_coarse(backbone: Backbone) -> bool:
    """Say whether a network's map needs GrabCut: stride 16 or more, and no ViT of patches of 16 or less."""
    patches = getattr(backbone.network, "patch_embed", None) or getattr(backbone.network, "conv_proj", None)
    return backbone.stride > 16 or (backbone.stride == 16 and patches is None)


def above_threshold(salience: torch.Tensor, size: Sequence[int]) -> torch.Tensor:
    """Enlarge (B, h, w), less Otsu's threshold, bilinearly to ``size`` (H, W), and take what is above 0.

    (B, H, W) bool; where all is equal, a picture without contrast, everything is foreground.
    """
    above = (salience - otsu(salience))[:, None]
    inside = interpolate(above, size=tuple(size), mode="bilinear", align_corners=False)[:, 0] > 0
    return inside | ~inside.flatten(1).any(dim=1)[:, None, None]


def rgb_pictures(pictures: torch.Tensor, mean: Sequence[float], std: Sequence[float]) -> np.ndarray:
    """Take normalised pictures (B, 3, H, W) back to (B, H, W, 3) uint8 RGB."""
    shift, scale = (torch.tensor(of, device=pictures.device).view(3, 1, 1) for of in (mean, std))
    levels = ((pictures * scale + shift) * 255).round().clamp(0, 255).byte()
    return levels.permute(0, 2, 3, 1).contiguous().cpu().numpy()


def store_features(
    descriptor: Descriptor, images: Images, store: Path, code: str, running: Running
) -> list[Path]:
    """Keep ``features`` (n, D) float16 of images in files of ``store``; see ``store_arrays``."""

    def step(batch: Batch) -> list[dict[str, torch.Tensor]]:
        vectors, _ = descriptor.describe(batch)
        return [{"features": vector[None].half()} for vector in vectors]

    return store_arrays(images, store, f"{descriptor.identity}, {code}", step, descriptor.reading, running)


def fit_centres(chunks: Sequence[Path], clusters: int, restarts: int, seed: int) -> np.ndarray:
    """Cluster the features in ``chunks``, files of ``store_features`` in random order: (K, D) float32.

    Lloyd's algorithm on the first LLOYD_IMAGES, ``restarts`` times; where there are more, mini-batch k-means
    over all of them continues from there, a file a step. The same input has the same centres: one thread does
    the sums, so that their order is fixed.

    Raises InputError when there are fewer images than clusters.
    """
    first: list[np.ndarray] = []
    rows = 0
    for chunk in chunks:
        features = load_arrays([chunk], "features")
        if rows < LLOYD_IMAGES:
            first.append(features[: LLOYD_IMAGES - rows])
        rows += len(features)
    if rows < clusters:
        raise InputError(f"{rows} training images cannot make {clusters} clusters; use more images")
    with threadpool_limits(1):
        fitted = KMeans(clusters, n_init=restarts, random_state=seed)
        fitted.fit(np.concatenate(first).astype(np.float32))
        if rows > LLOYD_IMAGES:
            first.clear()
            fitted = MiniBatchKMeans(clusters, init=fitted.cluster_centers_, n_init=1, random_state=seed)
            for chunk in list(chunks) * EPOCHS:
                fitted.partial_fit(load_arrays([chunk], "features").astype(np.float32))
    centres: np.ndarray = fitted.cluster_centers_
    return centres


def nearest_centres(vectors: torch.Tensor, centres: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Distance of each of (B, D) vectors to the nearest of (K, D) centres, and which it is, 0..K - 1."""
    found = torch.cdist(vectors, centres, compute_mode="donot_use_mm_for_euclid_dist").min(dim=1)
    return found.values, found.indices


def radii(chunks: Sequence[Path], centres: np.ndarray, share: float) -> np.ndarray:
    """Distance from each of the ``centres`` (K, D) within which all but a ``share`` of its images lie: (K,).

    The images are those of ``chunks``, files of ``store_features``; 0 for a cluster without images.
    """
    of_centres = torch.from_numpy(centres.astype(np.float32))
    vectors = (torch.from_numpy(load_arrays([chunk], "features").astype(np.float32)) for chunk in chunks)
    parts = zip(*(nearest_centres(of_chunk, of_centres) for of_chunk in vectors), strict=True)
    distances, clusters = (torch.cat(part).numpy() for part in parts)
    found = np.zeros(len(centres), np.float32)
    for cluster in np.unique(clusters):
        found[cluster] = np.quantile(distances[clusters == cluster], 1 - share)
    return found


def write_clusters(
    descriptor: Descriptor,
    images: Images,
    targets: Sequence[Path],
    centres: np.ndarray,
    running: Running,
    radius: np.ndarray | None = None,
) -> int:
    """Write label maps: the id 1..K of the nearest of the ``centres`` (K, D) on the foreground, else 0.

    With ``radius`` (K,), foregrounds that are farther from their centre get 1000 (ignore) in place of the id.
    Returns how many were written; see ``write_label_maps``.
    """
    device = running.processes.device
    of_centres = torch.from_numpy(centres.astype(np.float32)).to(device)
    limits = None if radius is None else torch.from_numpy(radius).to(device)

    def step(batch: Batch) -> torch.Tensor:
        vectors, inside = descriptor.describe(batch)
        distances, nearest = nearest_centres(vectors, of_centres)
        labels = nearest + 1
        if limits is not None:
            labels = torch.where(distances > limits[nearest], IGNORE, labels)
        return inside * labels[:, None, None]

    return write_label_maps(images, targets, step, descriptor.reading, running)


def matched_scores(
    truth: Path, predictions: Sequence[Path], mode: Mode, clusters: int
) -> dict[str, tuple[float, float]]:
    """Mean and standard deviation (n - 1) of the scores of several runs, each with a matching of its own.

    ``predictions`` are the folders of label maps of cluster ids; scores are percentages by their names, and
    ``mIoU of occurring classes``, the mean over the labels that the ground truth ``truth`` holds, background
    too.
    """
    rows: list[list[float]] = []
    for folder in predictions:
        table = count_masks(CountRequest(truth, folder, mode, clusters))
        matching = find_matching(table, "image", mode.classes, clusters)
        scored = evaluate(table, mode.classes, matching.for_table(table))
        rows.append([scored.scores[name] for name in _PRINTED] + [scored.iou[scored.pixels > 0].mean()])
    names = (*_PRINTED, "mIoU of occurring classes")
    return dict(
        zip(names, zip(np.mean(rows, 0).tolist(), np.std(rows, 0, ddof=1).tolist(), strict=True), strict=True)
    )
