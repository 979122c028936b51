"""k-means as PASS does it: on unit vectors, many restarts, centroids as they come; docs/pass.md."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from scipy.optimize import linear_sum_assignment
from sklearn.cluster import KMeans, MiniBatchKMeans
from sklearn.metrics import normalized_mutual_info_score, pairwise_distances_argmin
from sklearn.metrics.cluster import contingency_matrix
from threadpoolctl import threadpool_limits

from imagenets.common.errors import InputError

ITERATIONS = 20
RESTARTS = 30
# Up to here one thread does the sums, so that the same input has the same bits; above, all threads work.
EXACT_ROWS = 100_000
EPOCHS = 5  # of mini-batches, where features do not fit into memory
_BLOCK = 16_384  # rows


def fit_centroids(
    features: np.ndarray, clusters: int, restarts: int = RESTARTS, seed: int = 0, memory: float = 2**34
) -> np.ndarray:
    """Cluster features (n, C) float32, brought to length 1: centroids (K, C) float32, not of length 1.

    Lloyd's algorithm from random rows, ``ITERATIONS`` iterations, ``restarts`` times; the run of the
    smallest objective counts. It holds one copy of the features: 4 n C bytes. Where that is more than
    ``memory`` bytes (``features`` may be a file's memory map), a random part that fits is clustered so, and
    mini-batches of all rows, ``EPOCHS`` times over, continue from there: close to the published procedure,
    but not it.

    Raises InputError when there are fewer rows than clusters, or numbers that are not finite.
    """
    rows, width = features.shape
    if rows < clusters:
        raise InputError(f"{rows} images cannot make {clusters} clusters; ask for fewer")
    random = np.random.default_rng(seed)
    fitting = max(clusters, int(memory / (4 * width)))
    chosen = np.arange(rows) if rows <= fitting else np.sort(random.choice(rows, fitting, replace=False))
    with threadpool_limits(1 if rows <= EXACT_ROWS else None):
        first = _unit_copy(features, chosen)
        # In place: scikit-learn would make a copy to subtract the mean from.
        lloyd = KMeans(
            clusters,
            init="random",
            n_init=restarts,
            max_iter=ITERATIONS,
            tol=0,
            random_state=seed,
            copy_x=False,
        )
        lloyd.fit(first)
        if rows <= fitting:
            return np.asarray(lloyd.cluster_centers_, np.float32)
        del first
        batches = MiniBatchKMeans(clusters, init=lloyd.cluster_centers_, n_init=1, random_state=seed)
        for _ in range(EPOCHS):
            order = random.permutation(rows)
            for start in range(0, rows, _BLOCK):
                batches.partial_fit(unit_rows(features[np.sort(order[start : start + _BLOCK])]))
        return np.asarray(batches.cluster_centers_, np.float32)


def nearest_rows(features: np.ndarray, centroids: np.ndarray) -> np.ndarray:
    """Cluster 1..K of each row of features (n, C), brought to length 1: the nearest centroid, (n,) int64."""
    labels = [
        pairwise_distances_argmin(unit_rows(features[start : start + _BLOCK]), centroids)
        for start in range(0, len(features), _BLOCK)
    ]
    return np.concatenate(labels).astype(np.int64) + 1


def unit_rows(features: np.ndarray) -> np.ndarray:
    """Divide rows (n, C) by their length (and 1e-8, against nothing): float32."""
    rows = np.asarray(features, np.float32)
    lengths = np.linalg.norm(rows, axis=1, keepdims=True)
    return np.asarray(rows / (lengths + np.float32(1e-8)), np.float32)


class Agreement(NamedTuple):
    """How clusters agree with class folders: ``nmi`` in 0..1, and ``accuracy`` in percent, one to one."""

    nmi: float
    accuracy: float


def agreement(clusters: np.ndarray, folders: np.ndarray) -> Agreement:
    """Compare the clusters (n,) of images with their folders (n,), for diagnosis: no label is made of it."""
    shared = contingency_matrix(folders, clusters)
    best = linear_sum_assignment(shared, maximize=True)
    nmi = normalized_mutual_info_score(folders, clusters)
    return Agreement(float(nmi), 100 * float(shared[best].sum()) / len(clusters))


def _unit_copy(features: np.ndarray, chosen: np.ndarray) -> np.ndarray:
    copy = np.empty((len(chosen), features.shape[1]), np.float32)
    for start in range(0, len(chosen), _BLOCK):
        copy[start : start + _BLOCK] = unit_rows(features[chosen[start : start + _BLOCK]])
    if not np.isfinite(copy).all():
        raise InputError("features are not finite; is the checkpoint whole?")
    return copy
