"""Intervals of scores: percentile bootstrap over the images, from a contingency table.

The images of an evaluation are a sample; another sample would have other scores. A resample draws as many
images as there are, with replacement, and is scored like any set of images (docs/benchmark.md); an image
drawn twice counts twice. The matching stays fixed. The 95% interval of a score lies between
the 2.5th and the 97.5th percentile of its values (Efron and Tibshirani, An Introduction to the Bootstrap,
1993, chapter 13), interpolated linearly between neighbours.

The contribution of an image to T, P and TP of a class does not depend on the resample, and most images have
few classes. A resample is therefore a column of integers, how often each image was drawn, and all totals are
the product of a sparse matrix with these columns. Totals are exact integers, so each resample has exactly the
score that ``metrics.evaluate`` computes for the images drawn.

On generated populations of known scores (``benchmarks/bench_bootstrap.py --coverage``), with as many images
per class as in the benchmark, 93 of 100 such intervals contain the population's mIoU, at least as many as
basic and BCa ones. If a score is a mean over the labels that occur (a size bucket), or each label is in only
a few images, the bias of a sample's score exceeds the width of the interval, and none of the three methods
corrects that; ``outside_intervals`` finds the clearest cases.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
from scipy.sparse import csr_array, vstack

from imagenets.scoring.contingency import ContingencyTable
from imagenets.scoring.metrics import (
    SCORES,
    Areas,
    image_accuracy,
    image_fmeasure,
    mean,
    pooled_score,
    pooled_terms,
    predicted_classes,
)

Interval = tuple[float, float]

# Resamples whose totals are computed at once; this limits memory and does not change results.
_BLOCK = 64
_PERCENTILES = (2.5, 97.5)


@dataclass(frozen=True)
class Bootstrap:
    """95% intervals, (low, high) in percent by the names of SCORES, and how they were found.

    (nan, nan) where a score exists in no resample.
    """

    resamples: int
    seed: int
    intervals: dict[str, Interval]


def bootstrap_intervals(
    table: ContingencyTable, classes: int, matching: np.ndarray | None, resamples: int, seed: int
) -> Bootstrap:
    """Find the 95% interval of every score; ``matching`` is that of ``metrics.evaluate``."""
    scores = bootstrap_scores(table, classes, matching, resamples, seed)
    return Bootstrap(resamples, seed, percentile_intervals(scores))


def outside_intervals(scores: Mapping[str, float], intervals: Mapping[str, Interval]) -> list[str]:
    """Names of the scores that lie outside their own intervals.

    A resample lacks a third of the images, and with them rare labels, which biases its scores.
    """
    return [name for name, (low, high) in intervals.items() if scores[name] < low or scores[name] > high]


def drawn_images(images: int, resamples: int, seed: int) -> Iterator[np.ndarray]:
    """Draw ``images`` indices with replacement, (images,) int64 in 0..images - 1, for each resample.

    Equal arguments draw equal images, whatever is scored: this pairs comparisons.
    """
    generator = np.random.default_rng(seed)
    for _ in range(resamples):
        yield generator.integers(images, size=images)


def bootstrap_scores(
    table: ContingencyTable, classes: int, matching: np.ndarray | None, resamples: int, seed: int
) -> dict[str, np.ndarray]:
    """Score each resample of the table's images: (resamples,) float64, percent, by the names of SCORES.

    ``matching`` is that of ``metrics.evaluate``. A score that does not exist in a resample is nan there.
    """
    predicted = predicted_classes(table, matching)
    images = len(table.names)
    names, counts = _image_counts(table, predicted, classes)
    accuracy, fmeasure = 100 * image_accuracy(table, predicted), 100 * image_fmeasure(table, predicted)
    scores: dict[str, list[float]] = {name: [] for name in SCORES}
    draws = drawn_images(images, resamples, seed)
    while block := list(itertools.islice(draws, _BLOCK)):
        times_drawn = np.stack([np.bincount(drawn, minlength=images) for drawn in block], axis=1)
        totals = np.ascontiguousarray((counts @ times_drawn).T)
        for drawn, total in zip(block, totals.reshape(len(block), len(names), 3, classes + 1), strict=True):
            for name, areas in zip(names, total, strict=True):
                scores[name].append(pooled_score(name, Areas(*areas)))
            scores["Acc"].append(mean(accuracy[drawn]))
            scores["FMeasure"].append(mean(fmeasure[drawn]))
    return {name: np.array(values) for name, values in scores.items()}


def _image_counts(
    table: ContingencyTable, predicted: np.ndarray, classes: int
) -> tuple[list[str], csr_array]:
    """List the scores that pool pixels, and what each image adds to their T, P and TP.

    Sparse (scores · 3 · (N + 1), images) int64, scores and T, P, TP in this order.
    """
    names: list[str] = []
    blocks: list[csr_array] = []
    for name, terms in pooled_terms(table, predicted):
        names.append(name)
        for label, pixels in terms:
            counts = pixels > 0
            where = (label[counts], table.image[counts])
            blocks.append(csr_array((pixels[counts], where), shape=(classes + 1, len(table.names))))
    return names, vstack(blocks, format="csr")


def percentile_intervals(resampled: Mapping[str, np.ndarray]) -> dict[str, Interval]:
    """Return the 95% percentile interval of each score (or difference of scores), in percent.

    Resamples in which a score does not exist are left out of its interval; (nan, nan) if it exists in none.
    """
    intervals = {}
    for name, values in resampled.items():
        exist = values[~np.isnan(values)]
        low, high = np.percentile(exist, _PERCENTILES).tolist() if exist.size else (math.nan, math.nan)
        intervals[name] = low, high
    return intervals
