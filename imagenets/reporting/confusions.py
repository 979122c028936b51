"""Confusions: which class was predicted as which, and what each cluster covers."""

from __future__ import annotations

import io
from dataclasses import dataclass

import numpy as np

from imagenets.classes import BACKGROUND, MAX_LABEL
from imagenets.scoring.contingency import ContingencyTable
from imagenets.scoring.matching import MISSING, Matching, shared_with_class


@dataclass(frozen=True)
class Confusions:
    """Confused labels, most pixels first; arrays of length C, int64.

    ``pixels`` of the label ``ground_truth`` were predicted as another label, ``prediction``.
    """

    ground_truth: np.ndarray
    prediction: np.ndarray
    pixels: np.ndarray


@dataclass(frozen=True)
class MatchedCluster:
    """A cluster and the class that a matching maps it to.

    ``images`` and ``pixels`` are what both have in common: images that hold both, and overlapping pixels (0
    for label 0). ``size`` are all pixels of the cluster, ``mostly`` the ground-truth label under most of them
    (None for a cluster that no prediction uses). Ignored pixels are not counted.
    """

    cluster: int
    label: int
    images: int
    pixels: int
    size: int
    mostly: int | None


def find_confusions(table: ContingencyTable, predicted: np.ndarray) -> Confusions:
    """Add up every confusion over all images; ``predicted`` (R,) are the classes after matching."""
    wrong = predicted != table.ground_truth
    sums = _pair_sums(table.ground_truth[wrong], predicted[wrong], table.pixels[wrong])
    ground_truth, prediction, pixels = sums
    order = np.lexsort((prediction, ground_truth, -pixels))
    return Confusions(ground_truth[order], prediction[order], pixels[order])


def confusion_matrix(table: ContingencyTable, predicted: np.ndarray, classes: int) -> np.ndarray:
    """Add up the pixels of all images by label and prediction, (N + 1, N + 1) int64, ignored ones left out.

    Rows are ground truth, columns ``predicted`` (R,), the classes after matching, all 0..``classes``. IoU is
    the diagonal over row plus column minus diagonal.
    """
    width = classes + 1
    cells = table.ground_truth.astype(np.int64) * width + predicted
    # Exact: float64 holds integers up to 2**53.
    return np.bincount(cells, table.pixels, width * width).astype(np.int64).reshape(width, width)


def confusion_npz(table: ContingencyTable, predicted: np.ndarray, classes: int) -> bytes:
    """Pack the confusion matrix as a .npz file: ``labels`` (N + 1,) and ``pixels`` (N + 1, N + 1), int64."""
    buffer = io.BytesIO()
    matrix = confusion_matrix(table, predicted, classes)
    np.savez_compressed(buffer, labels=np.arange(classes + 1, dtype=np.int64), pixels=matrix)
    return buffer.getvalue()


def matched_clusters(table: ContingencyTable, matching: Matching, classes: int) -> list[MatchedCluster]:
    """Compare every cluster of a matching except 0 with its class, in the order of ids.

    ``table`` has the clusters as predictions; every one of them is in ``matching``. Clusters beyond 65,535,
    which no mask can hold, are left out.
    """
    shared = shared_with_class(table, matching, classes)
    size = np.bincount(table.prediction, table.pixels, matching.clusters + 1).astype(np.int64)
    mostly = _largest_labels(table)
    return [
        MatchedCluster(
            cluster,
            label,
            int(shared.images[cluster]),
            int(shared.pixels[cluster]),
            int(size[cluster]),
            mostly.get(cluster),
        )
        for cluster, label in enumerate(matching.classes[: MAX_LABEL + 1].tolist())
        if cluster != BACKGROUND and label != MISSING
    ]


def _largest_labels(table: ContingencyTable) -> dict[int, int]:
    """For each predicted label, the ground-truth label under most of it, the smallest on a tie."""
    prediction, label, pixels = _pair_sums(table.prediction, table.ground_truth, table.pixels)
    order = np.lexsort((label, -pixels, prediction))
    found, first = np.unique(prediction[order], return_index=True)
    return dict(zip(found.tolist(), label[order][first].tolist(), strict=True))


def _pair_sums(
    first: np.ndarray, second: np.ndarray, pixels: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Add up ``pixels`` by pairs of labels: both labels and the sum, (pairs,) int64 each."""
    keys, place = np.unique(first.astype(np.int64) << 32 | second.astype(np.int64), return_inverse=True)
    return keys >> 32, keys & 0xFFFFFFFF, np.bincount(place, pixels, keys.size).astype(np.int64)
