"""Which class a cluster stands for (docs/benchmark.md, Matching), found from a contingency table."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.optimize import linear_sum_assignment
from scipy.sparse import csr_array

from imagenets.classes import BACKGROUND
from imagenets.common.errors import InputError
from imagenets.scoring.contingency import ContingencyTable

METHODS = ("image", "pixel", "majority")

# Sums of whole numbers up to here are exact in float64, the type of the assignment solver.
_EXACT = 2**53


@dataclass(frozen=True)
class Matching:
    """A matching found: ``classes`` (K + 1,) int64 is the class of each cluster, 0 for none.

    ``images`` and ``pixels`` (K + 1,) int64 are what each cluster shares with its class: images that hold
    both, and overlapping pixels. Both are 0 for a cluster without class. ``object_pixels`` are all pixels
    of the ground truth's classes.
    """

    classes: np.ndarray
    images: np.ndarray
    pixels: np.ndarray
    object_pixels: int

    @property
    def percent_of_objects(self) -> float:
        """Share of the objects' pixels that lie in their own class's clusters, in percent."""
        return 100 * int(self.pixels.sum()) / max(self.object_pixels, 1)


def find_matching(table: ContingencyTable, method: str, classes: int, clusters: int) -> Matching:
    """Match clusters 1..``clusters`` to classes 1..``classes``; cluster 0 is always 0.

    ``image``: one-to-one, most images in which cluster and class occur together, then most overlapping
    pixels. ``pixel``: one-to-one, most overlapping pixels. ``majority``: each cluster takes the class that
    it overlaps most, the smallest id on a tie, 0 if it overlaps none.
    """
    images = shared_images(table, classes, clusters)
    pixels = overlapping_pixels(table, classes, clusters)
    if method == "majority":
        chosen = _majority(pixels)
    elif method == "pixel":
        chosen = _assign(pixels, clusters, classes)
    elif method == "image":
        chosen = _assign(_lexicographic(images, pixels), clusters, classes)
    else:
        raise ValueError(f"no such method: {method}")
    every = np.arange(clusters + 1)
    chosen_images = np.asarray(images[every, chosen]).ravel() * (chosen != BACKGROUND)
    chosen_pixels = np.asarray(pixels[every, chosen]).ravel() * (chosen != BACKGROUND)
    object_pixels = int(table.pixels[table.ground_truth != BACKGROUND].sum())
    return Matching(chosen, chosen_images, chosen_pixels, object_pixels)


def shared_images(table: ContingencyTable, classes: int, clusters: int) -> csr_array:
    """n(k, c): images whose prediction holds cluster k and whose ground truth class c (docs/benchmark.md).

    Sparse (K + 1, N + 1) int64; background is left out on both sides, as ignored pixels are.
    """
    holds_cluster = _incidence(table.image, table.prediction, len(table.names), clusters)
    holds_class = _incidence(table.image, table.ground_truth, len(table.names), classes)
    return (holds_cluster.T @ holds_class).tocsr()


def _incidence(image: np.ndarray, label: np.ndarray, images: int, labels: int) -> csr_array:
    foreground = label != BACKGROUND
    pairs = np.unique(image[foreground] * np.int64(labels + 1) + label[foreground])
    ones = np.ones(pairs.size, np.int64)
    return csr_array((ones, (pairs // (labels + 1), pairs % (labels + 1))), shape=(images, labels + 1))


def overlapping_pixels(table: ContingencyTable, classes: int, clusters: int) -> csr_array:
    """Pixels that cluster k and class c have in common, sparse (K + 1, N + 1) int64, background left out."""
    both = (table.prediction != BACKGROUND) & (table.ground_truth != BACKGROUND)
    where = (table.prediction[both], table.ground_truth[both])
    return csr_array((table.pixels[both], where), shape=(clusters + 1, classes + 1))


def _lexicographic(first: csr_array, second: csr_array) -> csr_array:
    """Weights whose largest one-to-one sum is the largest of ``first`` and, among those, of ``second``."""
    # No assignment sums up to more than the largest entry of every column.
    scale = int(second.max(axis=0).sum()) + 1
    if (int(first.max(axis=0).sum()) + 1) * scale > _EXACT:
        raise InputError("too many pixels to match exactly; evaluate fewer images (--names)")
    return first * scale + second


def _assign(weights: csr_array, clusters: int, classes: int) -> np.ndarray:
    """One-to-one assignment of largest total weight, (K + 1,) int64; clusters without a class get 0."""
    # A cluster without weight is only there to be left over; as many are kept as there are classes to fill.
    weighted = np.flatnonzero(np.diff(weights.indptr))
    spare = np.setdiff1d(np.arange(1, clusters + 1), weighted)[: max(0, classes - weighted.size)]
    candidates = np.union1d(weighted, spare)
    dense = weights[candidates].toarray()[:, 1:].astype(np.float64)
    rows, columns = linear_sum_assignment(dense, maximize=True)
    assigned = np.zeros(clusters + 1, np.int64)
    assigned[candidates[rows]] = columns + 1
    return assigned


def _majority(weights: csr_array) -> np.ndarray:
    """Class of the largest weight for each cluster, the smallest id on a tie, (K + 1,) int64."""
    entries = weights.tocoo()
    cluster, label = entries.coords
    order = np.lexsort((label, -entries.data, cluster))
    matched, best = np.unique(cluster[order], return_index=True)
    chosen = np.zeros(weights.shape[0], np.int64)
    chosen[matched] = label[order][best]
    return chosen
