"""The scores of the benchmark (docs/benchmark.md, IoU to Acc), from a contingency table and a matching.

Boundary IoU is in three files: how wide a boundary is, ``imagenets/masks.py``; which pixels lie on one,
``imagenets/scoring/run_length.py``; the sums and scores, here.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from imagenets.classes import BACKGROUND
from imagenets.scoring.contingency import ContingencyTable

SCORES = ("Acc", "mIoU", "mBIoU", "S", "MS", "ML", "L", "BS", "BMS", "BML", "BL", "FMeasure")
# Change it with any change of the scores: scores of different definitions are not comparable.
SCORE_DEFINITION = 1
BOUNDARY_SCORES = ("mBIoU", "BS", "BMS", "BML", "BL")

# Largest size of the buckets S, MS and ML, in percent of the image's pixels that are not ignored.
_BUCKET_LIMITS = (5, 25, 50)
_BUCKETS = ("S", "MS", "ML", "L")


@dataclass(frozen=True)
class Evaluation:
    """Scores in percent: ``scores`` by the names of SCORES, nan if one does not exist.

    ``iou`` and ``boundary_iou`` (N + 1,) float64 are those of each label, ``pixels`` (N + 1,) int64 the
    ground-truth pixels of each that are not ignored, ``label_images`` (N + 1,) int64 the images that contain
    them.
    """

    images: int
    scores: dict[str, float]
    iou: np.ndarray
    boundary_iou: np.ndarray
    pixels: np.ndarray
    label_images: np.ndarray


@dataclass(frozen=True)
class Areas:
    """Pixels of each label, (N + 1,): predicted (T), labelled (P), both (TP): docs/benchmark.md, IoU."""

    predicted: np.ndarray
    labelled: np.ndarray
    both: np.ndarray

    def iou(self) -> np.ndarray:
        """Return TP / (T + P - TP) in percent, 0 if the union is empty."""
        union = self.predicted + self.labelled - self.both
        result: np.ndarray = 100 * self.both / np.maximum(union, 1)
        return result

    def mean_iou_of_labelled(self) -> float:
        """Return the mean IoU in percent over the labels with P > 0, nan when there is none."""
        present = self.labelled > 0
        return mean(self.iou()[present])


def evaluate(table: ContingencyTable, classes: int, matching: np.ndarray | None = None) -> Evaluation:
    """Compute every score of the benchmark (docs/benchmark.md).

    ``matching`` is indexed by predicted label and holds classes 0..``classes``; without it, predictions are
    classes. Pixels are pooled over all images before a ratio is taken; only FMeasure and Acc are
    means over images.
    """
    predicted = predicted_classes(table, matching)
    areas = {name: _sum_areas(terms, classes) for name, terms in pooled_terms(table, predicted)}
    scores = {
        "Acc": mean(100 * image_accuracy(table, predicted)),
        "FMeasure": mean(100 * image_fmeasure(table, predicted)),
        **{name: pooled_score(name, area) for name, area in areas.items()},
    }
    return Evaluation(
        images=len(table.names),
        scores={name: scores[name] for name in SCORES},
        iou=areas["mIoU"].iou(),
        boundary_iou=areas["mBIoU"].iou(),
        pixels=areas["mIoU"].labelled,
        label_images=images_by_label(table, classes),
    )


def images_by_label(table: ContingencyTable, classes: int) -> np.ndarray:
    """Count the images whose ground truth holds each label in pixels that are not ignored, (N + 1,) int64."""
    width = classes + 1
    pairs = np.unique(table.image.astype(np.int64) * width + table.ground_truth)
    return np.bincount(pairs % width, minlength=width)


def predicted_classes(table: ContingencyTable, matching: np.ndarray | None) -> np.ndarray:
    """Return the class that each row is predicted as, (R,) int64; see ``evaluate`` for ``matching``."""
    return table.prediction.astype(np.int64) if matching is None else matching[table.prediction]


def pooled_terms(table: ContingencyTable, predicted: np.ndarray) -> Iterator[tuple[str, Terms]]:
    """Yield the scores that pool pixels, by name, and what their T, P and TP add up."""
    everywhere = np.ones(table.image.size, bool)
    selections = [("mIoU", "mBIoU", everywhere)]
    selections += [(name, f"B{name}", rows) for name, rows in zip(_BUCKETS, size_buckets(table), strict=True)]
    for region, boundary, rows in selections:
        yield region, _terms(table, predicted, rows, boundary=False)
        yield boundary, _terms(table, predicted, rows, boundary=True)


def pooled_score(name: str, areas: Areas) -> float:
    """Return the score ``name`` of ``pooled_terms`` in percent, nan if it does not exist."""
    return mean(areas.iou()) if name in ("mIoU", "mBIoU") else areas.mean_iou_of_labelled()


# What T, P and TP are the sums of: labels (R,) and pixels (R,), 0 if a row does not count.
Terms = tuple[tuple[np.ndarray, np.ndarray], ...]


def _terms(table: ContingencyTable, predicted: np.ndarray, rows: np.ndarray, boundary: bool) -> Terms:
    """List what T, P and TP add up over rows (R,) bool (docs/benchmark.md, IoU and Boundary IoU)."""
    in_prediction = rows & table.on_prediction_boundary if boundary else rows
    in_ground_truth = rows & table.on_gt_boundary if boundary else rows
    both = in_prediction & in_ground_truth & (predicted == table.ground_truth)
    return (
        (predicted, table.pixels * in_prediction),
        (table.ground_truth, table.pixels * in_ground_truth),
        (predicted, table.pixels * both),
    )


def count_areas(
    table: ContingencyTable, predicted: np.ndarray, classes: int, boundary: bool = False
) -> Areas:
    """Add up T, P and TP, or those of boundary pixels; ``predicted`` (R,) are the classes after matching."""
    everywhere = np.ones(table.image.size, bool)
    return _sum_areas(_terms(table, predicted, everywhere, boundary), classes)


def _sum_areas(terms: Terms, classes: int) -> Areas:
    return Areas(*(_sums(label, pixels, classes + 1) for label, pixels in terms))


def size_buckets(table: ContingencyTable) -> list[np.ndarray]:
    """Select the rows that count in S, MS, ML and L, (R,) bool each (docs/benchmark.md, Object size).

    A class's size is its share of the image's pixels that are not ignored, in percent, rounded up. An image
    counts in a bucket that one of its classes falls into, with the pixels of those classes and of label 0.
    """
    of_image = _sums(table.image, table.pixels, len(table.names))[table.image]
    of_object = _group_sums(table.image, table.ground_truth, table.pixels)
    percent = -(-100 * of_object // of_image)
    is_object = table.ground_truth != BACKGROUND
    bucket = np.searchsorted(_BUCKET_LIMITS, percent)
    selections = []
    for index in range(len(_BUCKETS)):
        in_bucket = is_object & (bucket == index)
        counts = np.zeros(len(table.names), bool)
        counts[table.image[in_bucket]] = True
        selections.append(in_bucket | (~is_object & counts[table.image]))
    return selections


def image_fmeasure(table: ContingencyTable, predicted: np.ndarray) -> np.ndarray:
    """FMeasure of each image, (images,) float64 in 0..1 (docs/benchmark.md, FMeasure)."""
    images = len(table.names)
    labelled_rows = table.ground_truth != BACKGROUND
    predicted_rows = predicted != BACKGROUND
    labelled = _sums(table.image, table.pixels * labelled_rows, images)
    found = _sums(table.image, table.pixels * predicted_rows, images)
    both = _sums(table.image, table.pixels * (labelled_rows & predicted_rows), images)
    precision = both / np.maximum(found, 1)
    recall = both / np.maximum(labelled, 1)
    # Without overlap the numerator is 0; the denominator only must not be 0.
    result: np.ndarray = 1.3 * precision * recall / np.where(both > 0, 0.3 * precision + recall, 1)
    return result


def image_accuracy(table: ContingencyTable, predicted: np.ndarray) -> np.ndarray:
    """Acc of each image, (images,) float64, 0 or 1 (docs/benchmark.md, Acc)."""
    rows = np.flatnonzero(predicted != BACKGROUND)
    image, label = table.image[rows], predicted[rows]
    size = _group_sums(image, label, table.pixels[rows])
    order = np.lexsort((label, -size, image))
    with_foreground, first = np.unique(image[order], return_index=True)
    largest = np.full(len(table.names), -1, np.int64)
    largest[with_foreground] = label[order][first]
    correct = np.zeros(len(table.names))
    correct[table.image[table.ground_truth == largest[table.image]]] = 1
    return correct


def _group_sums(image: np.ndarray, label: np.ndarray, pixels: np.ndarray) -> np.ndarray:
    """For each row, the pixels of all rows with its image and label, int64."""
    _, place = np.unique(image.astype(np.int64) << 32 | label, return_inverse=True)
    return _sums(place, pixels, place.max(initial=-1) + 1)[place]


def _sums(index: np.ndarray, pixels: np.ndarray, size: int) -> np.ndarray:
    """Add up ``pixels`` by index into (size,) int64. Exact: float64 holds integers up to 2**53."""
    return np.bincount(index, weights=pixels, minlength=size).astype(np.int64)


def mean(values: np.ndarray) -> float:
    """Mean that does not depend on the order of the values; nan if there are none."""
    return math.fsum(values.tolist()) / len(values) if len(values) else math.nan
