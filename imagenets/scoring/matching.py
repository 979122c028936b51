"""Which class a cluster stands for (docs/benchmark.md, Matching): found, read, written, applied."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from scipy.optimize import linear_sum_assignment
from scipy.sparse import csr_array

from imagenets.classes import BACKGROUND, MAX_LABEL, MODES
from imagenets.common.errors import InputError, listed
from imagenets.scoring.contingency import ContingencyTable

METHODS = ("image", "pixel", "majority")
MISSING = -1  # stands for the class of a cluster that a matching does not contain

# Sums of integers up to here are exact in float64, the type of the assignment solver.
_EXACT = 2**53


@dataclass(frozen=True, eq=False)
class Matching:
    """Which class each cluster stands for.

    ``classes`` (K + 1,) int64 is indexed by cluster: a class 1..N, 0 for none, MISSING for a cluster that
    the matching does not hold. ``path`` is the file it was read from, ``sha256`` the digest of that file's
    bytes; None for a matching just found. ``method``, one of METHODS, is how it was found, None if unknown.
    """

    classes: np.ndarray
    path: Path | None = None
    sha256: str | None = None
    method: str | None = None

    @classmethod
    def of(cls, classes: Mapping[int, int], path: Path | None = None, sha256: str | None = None) -> Matching:
        """Lay out a mapping, cluster to class."""
        laid_out = np.full(max(classes, default=-1) + 1, MISSING, np.int64)
        laid_out[list(classes)] = list(classes.values())
        return cls(laid_out, path, sha256)

    @property
    def clusters(self) -> int:
        """The largest cluster, K."""
        return self.classes.size - 1

    @property
    def one_to_one(self) -> bool:
        """Does no class have more than one cluster?"""
        matched = self.classes[self.classes > BACKGROUND]
        return np.unique(matched).size == matched.size

    def held(self) -> dict[int, int]:
        """Class of each cluster that the matching holds, in order."""
        clusters = np.flatnonzero(self.classes != MISSING)
        return dict(zip(clusters.tolist(), self.classes[clusters].tolist(), strict=True))

    def text(self) -> str:
        """Format as the benchmark's matching file: JSON, cluster to class, keys in order."""
        return json.dumps(self.held()) + "\n"

    def lacking(self, labels: np.ndarray) -> list[int]:
        """List the clusters among ``labels``, any shape, that the matching does not hold, in order."""
        used = np.unique(labels)
        known = used[used < self.classes.size]
        return [*known[self.classes[known] == MISSING].tolist(), *used[used >= self.classes.size].tolist()]

    def check_clusters(self, clusters: int, fewer: bool = False) -> None:
        """Raise InputError when the matching is not of clusters 0..``clusters`` (or ``fewer``)."""
        if self.clusters == clusters or (fewer and self.clusters < clusters):
            return
        if any(mode.classes == self.clusters for mode in MODES.values()):
            cure = f"is it of mode {self.clusters}? Use that mode, or the matching of these predictions"
        else:
            cure = (
                f"give the matching of these predictions; if it is, match.py was given {self.clusters} "
                "clusters, or a mode of so many classes: pass the same here"
            )
        raise InputError(
            f"{self.path or 'matching'}: a matching of {self.clusters} clusters, but the predictions have "
            f"{clusters} by mode and number of clusters: {cure}"
        )

    def for_table(self, table: ContingencyTable) -> np.ndarray:
        """Return ``classes``, which holds every cluster that the table's predictions use.

        Raises InputError, naming the clusters and the file, if it does not.
        """
        lacking = [f"cluster {cluster}" for cluster in self.lacking(table.prediction)]
        if lacking:
            raise InputError(
                f"{self.path or 'matching'}: {len(lacking)} clusters of the predictions are not in this "
                f"matching; run match.py on the same predictions:\n{listed(lacking)}",
                lacking,
            )
        return self.classes


def class_lookup(matching: Matching | None) -> np.ndarray:
    """Class of every label that a mask can hold, (65,536,) int64; 0 if the matching has none.

    Without a matching, labels are classes.
    """
    if matching is None:
        return np.arange(MAX_LABEL + 1)
    lookup = np.zeros(MAX_LABEL + 1, np.int64)
    size = min(lookup.size, matching.classes.size)
    lookup[:size] = np.maximum(matching.classes[:size], BACKGROUND)
    return lookup


def read_matching(path: Path, classes: int) -> Matching:
    """Read a matching file.

    Raises InputError if it is missing, not such JSON, or has classes outside 0..``classes``.
    """
    try:
        content = path.read_bytes()
    except FileNotFoundError as error:
        raise InputError(
            f"{path}: no such matching; run match.py first, or give its path or the folder of results"
        ) from error
    matching = parse_matching(content, classes, str(path))
    return Matching.of(matching, path, hashlib.sha256(content).hexdigest())


def parse_matching(content: bytes, classes: int, where: str) -> dict[int, int]:
    """Read the content of a matching file: cluster to class.

    Raises InputError as ``read_matching`` does; ``where`` names the file in messages.
    """
    try:
        pairs = json.loads(content.decode(), object_pairs_hook=_Entries)
    except (ValueError, RecursionError) as error:  # also for numbers of thousands of digits
        raise InputError(f"{where}: not JSON ({error}); run match.py again") from error
    if not isinstance(pairs, _Entries) or not pairs:
        raise InputError(f'{where}: not a matching; it must look like {{"0": 0, "1": 17, …}}')
    problems = [problem for key, value in pairs if (problem := _entry_problem(key, value, classes))]
    if problems:
        raise InputError(
            f"{where}: {len(problems)} entries of the matching are wrong:\n{listed(problems)}", problems
        )
    matching = {int(key): value for key, value in pairs}
    if len(matching) < len(pairs):
        raise InputError(f"{where}: a cluster is in it more than once; run match.py again")
    return matching


class _Entries(list[tuple[str, Any]]):
    """A JSON object as the list of its pairs, so that duplicate keys are seen."""


def _entry_problem(key: str, value: object, classes: int) -> str | None:
    if not (key.isascii() and key.isdecimal() and len(key) <= 5) or str(int(key)) != key:
        return f"{key[:20]!r} is no cluster id"
    if type(value) is not int or not 0 <= value <= classes:
        return f"cluster {key}: {value!r} is no class in 0..{classes}"
    return None


def find_matching(table: ContingencyTable, method: str, classes: int, clusters: int) -> Matching:
    """Match clusters 1..``clusters`` to classes 1..``classes``; cluster 0 is always 0.

    ``image``: one-to-one, most images in which cluster and class occur together, then most overlapping
    pixels. ``pixel``: one-to-one, most overlapping pixels. ``majority``: each cluster takes the class that
    it overlaps most, the smallest id on a tie, 0 if it overlaps none.

    Raises ValueError, naming label and image, when the table has other labels.
    """
    pixels = overlapping_pixels(table, classes, clusters)
    if method == "majority":
        chosen = _majority(pixels)
    elif method == "pixel":
        chosen = _assign(pixels, clusters, classes)
    elif method == "image":
        chosen = _assign(_lexicographic(shared_images(table, classes, clusters), pixels), clusters, classes)
    else:
        raise ValueError(f"no such method: {method}")
    return Matching(chosen, method=method)


@dataclass(frozen=True, eq=False)
class SharedWithClass:
    """What each cluster shares with its class, (K + 1,) int64; 0 for a cluster without one.

    ``images`` hold both; ``pixels`` overlap. ``object_pixels`` are all pixels of the ground truth's classes.
    """

    images: np.ndarray
    pixels: np.ndarray
    object_pixels: int

    @property
    def percent_of_objects(self) -> float:
        """Share of the objects' pixels that lie in their own class's clusters, in percent."""
        return 100 * int(self.pixels.sum()) / max(self.object_pixels, 1)


def shared_with_class(table: ContingencyTable, matching: Matching, classes: int) -> SharedWithClass:
    """Count what every cluster of a matching to classes 1..``classes`` shares with its class.

    Raises ValueError as ``find_matching`` does.
    """
    every = np.arange(matching.clusters + 1)
    chosen = np.maximum(matching.classes, BACKGROUND)
    matched = chosen != BACKGROUND
    images, pixels = (
        np.asarray(counts(table, classes, matching.clusters)[every, chosen]).ravel() * matched
        for counts in (shared_images, overlapping_pixels)
    )
    return SharedWithClass(images, pixels, int(table.pixels[table.ground_truth != BACKGROUND].sum()))


def shared_images(table: ContingencyTable, classes: int, clusters: int) -> csr_array:
    """n(k, c) of docs/benchmark.md, Matching: images whose prediction holds k and whose ground truth c.

    Sparse (K + 1, N + 1) int64; background is left out on both sides, as ignored pixels are.
    """
    _refuse_larger_labels(table, classes, clusters)
    holds_cluster = _incidence(table.image, table.prediction, len(table.names), clusters)
    holds_class = _incidence(table.image, table.ground_truth, len(table.names), classes)
    return (holds_cluster.T @ holds_class).tocsr()


def _refuse_larger_labels(table: ContingencyTable, classes: int, clusters: int) -> None:
    for what, labels, largest in (
        ("prediction", table.prediction, clusters),
        ("ground truth", table.ground_truth, classes),
    ):
        outside = np.flatnonzero(labels > largest)
        if outside.size:
            image = table.names[int(table.image[outside[0]])]
            raise ValueError(f"{what} of {image}: label {labels[outside[0]]} is outside 0..{largest}")


def _incidence(image: np.ndarray, label: np.ndarray, images: int, labels: int) -> csr_array:
    foreground = label != BACKGROUND
    # int64 before the product: NumPy 1 keeps int32 with a scalar, and overflows.
    pairs = np.unique(image[foreground].astype(np.int64) * (labels + 1) + label[foreground])
    ones = np.ones(pairs.size, np.int64)
    return csr_array((ones, (pairs // (labels + 1), pairs % (labels + 1))), shape=(images, labels + 1))


def overlapping_pixels(table: ContingencyTable, classes: int, clusters: int) -> csr_array:
    """Pixels that cluster k and class c have in common, sparse (K + 1, N + 1) int64, background left out."""
    _refuse_larger_labels(table, classes, clusters)
    both = (table.prediction != BACKGROUND) & (table.ground_truth != BACKGROUND)
    where = (table.prediction[both], table.ground_truth[both])
    return csr_array((table.pixels[both], where), shape=(clusters + 1, classes + 1))


def _lexicographic(first: csr_array, second: csr_array) -> csr_array:
    """Weights whose largest one-to-one sum is the largest of ``first`` and, among those, of ``second``."""
    # The sum of an assignment is at most that of the largest entries of all columns.
    scale = int(second.max(axis=0).sum()) + 1
    if (int(first.max(axis=0).sum()) + 1) * scale > _EXACT:
        raise InputError("too many pixels to match exactly; evaluate fewer images")
    return first * scale + second


def _assign(weights: csr_array, clusters: int, classes: int) -> np.ndarray:
    """One-to-one assignment of largest total weight, (K + 1,) int64; clusters without a class get 0."""
    # Clusters without weight are left over; as many are kept as there are classes to fill.
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
    cluster, label = entries.row, entries.col
    order = np.lexsort((label, -entries.data, cluster))
    matched, best = np.unique(cluster[order], return_index=True)
    chosen = np.zeros(weights.shape[0], np.int64)
    chosen[matched] = label[order][best]
    return chosen
