"""k-means over features that lie in files, in bounded memory."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from sklearn.cluster import KMeans, MiniBatchKMeans
from sklearn.metrics import pairwise_distances_argmin
from threadpoolctl import threadpool_limits

from imagenets.common.errors import InputError

# Up to here Lloyd's algorithm has all images at once: 100,000 features of 2,048 numbers are 0.8 GB. Mode 50
# (64,431 images) is below; of 300 and 919, this many random images give the first centres.
LLOYD_IMAGES = 100_000
STARTS = 4  # of Lloyd's algorithm; the best counts
EPOCHS = 5  # of mini-batches over all images, where they are more


def fit_centres(chunks: Sequence[Path], clusters: int, seed: int) -> np.ndarray:
    """Cluster the features in ``chunks``, files of (n, D) numbers in random order: centres (K, D) float32.

    A file is an array (.npy), or has it under the name ``features`` (.npz).

    Lloyd's algorithm on the first LLOYD_IMAGES; where there are more, mini-batch k-means over all of them
    goes on from there, a file a step. The same input gives the same centres: one thread does the sums, so
    that their order is fixed.

    Raises InputError when there are fewer images than clusters.
    """
    first, rows = [], 0
    for chunk in chunks:
        if rows < LLOYD_IMAGES:
            first.append(_load(chunk)[: LLOYD_IMAGES - rows])
            rows += len(first[-1])
    if rows < clusters:
        raise InputError(f"{rows} training images cannot make {clusters} clusters; use more images")
    with threadpool_limits(1):
        lloyd = KMeans(clusters, n_init=STARTS, random_state=seed)
        lloyd.fit(np.concatenate(first).astype(np.float32))
        result: np.ndarray = lloyd.cluster_centers_
        if sum(len(_load(chunk)) for chunk in chunks) == rows:
            return result
        first.clear()
        batches = MiniBatchKMeans(clusters, init=result, n_init=1, random_state=seed)
        for chunk in list(chunks) * EPOCHS:
            batches.partial_fit(_load(chunk).astype(np.float32))
        result = batches.cluster_centers_
        return result


def _load(chunk: Path) -> np.ndarray:
    content = np.load(chunk, mmap_mode="r")
    if isinstance(content, np.ndarray):
        return content
    with content:
        features: np.ndarray = content["features"]
    return features


def cluster_ids(features: np.ndarray, centres: np.ndarray) -> np.ndarray:
    """Cluster 1..K of each feature vector (n, D): the nearest of the ``centres`` (K, D); (n,) integers."""
    result: np.ndarray = pairwise_distances_argmin(features.astype(np.float32), centres) + 1
    return result
