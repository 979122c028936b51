#!/usr/bin/env python3
"""Measure time and memory of 1,000 bootstrap resamples of a generated table of 12,419 images and 919 classes.

For comparison, a few resamples are scored one by one: the table of the drawn images, then evaluate().
With --coverage: how many percent of the intervals contain the score of a known population, for three kinds of
intervals from the same resamples (percentile, basic, BCa).
"""

from __future__ import annotations

import argparse
import resource
import sys
import time
from pathlib import Path

import numpy as np
from scipy.stats import norm

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from imagenets.classes import MODES
from imagenets.scoring.bootstrap import bootstrap_scores, drawn_images, percentile_intervals
from imagenets.scoring.contingency import ContingencyTable, Rows, make_table
from imagenets.scoring.metrics import evaluate

PLAIN_RESAMPLES = 5
POPULATION = 20_000  # images of the population whose scores are known
IMAGE_PIXELS = 10_000  # of each of them
GROUPS = 50  # of images that are left out in turn, for BCa


def generated_table(images: int, classes: int, generator: np.random.Generator) -> ContingencyTable:
    """Per image one to three objects and one to five predicted classes, inside and on boundaries."""
    rows = []
    for image in range(images):
        truth = np.append(0, generator.integers(1, classes + 1, generator.integers(1, 4)))
        wrong = generator.integers(1, classes + 1, generator.integers(0, 4))
        predicted = np.concatenate([[0], truth[1:2], wrong])
        kinds = np.unique(np.array(np.meshgrid(truth, predicted, [0, 1], [0, 1])).reshape(4, -1), axis=1)
        scale = 10 ** generator.uniform(2, 5, classes + 1)
        pixels = generator.integers(1, scale[kinds[0]])
        truths, predictions, on_gt, on_prediction = kinds
        image_column = np.full(pixels.size, image)
        rows.append(Rows(image_column, truths, predictions, on_gt, on_prediction, pixels))
    names = [f"n{image:08d}/image.png" for image in range(images)]
    return make_table(names, np.full(images, classes), rows)


def resampled_table(table: ContingencyTable, drawn: np.ndarray) -> ContingencyTable:
    """The table of the images drawn, one drawn twice as two images."""
    first = np.searchsorted(table.image, drawn)
    sizes = np.searchsorted(table.image, drawn, side="right") - first
    image = np.repeat(np.arange(drawn.size), sizes)
    rows = np.arange(image.size) - np.repeat(np.cumsum(sizes) - sizes, sizes) + np.repeat(first, sizes)
    columns = (getattr(table, name)[rows] for name in Rows._fields[1:])
    names = [f"{place}" for place in range(drawn.size)]
    return make_table(names, table.largest_prediction[drawn], [Rows(image, *columns)])


def known_population(images: int, classes: int, generator: np.random.Generator) -> ContingencyTable:
    """One object an image; sizes and how often it is found depend on the class, as they do in life."""
    easy = generator.uniform(0.1, 0.9, classes + 1)
    size = generator.uniform(0.02, 0.6, classes + 1)
    rows = []
    for image in range(images):
        truth = int(generator.integers(1, classes + 1))
        right = generator.random() < easy[truth]
        predicted = truth if right else int(generator.integers(1, classes + 1))
        objects = int(np.clip(size[truth] * np.exp(generator.normal(0, 0.7)), 0.005, 0.95) * IMAGE_PIXELS)
        both = int(objects * generator.beta(4 * easy[truth], 4 * (1 - easy[truth])))
        beside = int((IMAGE_PIXELS - objects) * 0.1 * generator.random())
        areas = {(truth, predicted): both, (truth, 0): objects - both, (0, predicted): beside}
        areas[0, 0] = IMAGE_PIXELS - objects - beside
        cells = [
            (*labels, on_both, on_both, share)
            for labels, pixels in areas.items()
            for on_both, share in ((1, pixels // 5), (0, pixels - pixels // 5))
            if share
        ]
        columns = np.array(cells).T
        rows.append(Rows(np.full(columns.shape[1], image), *columns))
    names = [f"n{image:08d}/image.png" for image in range(images)]
    return make_table(names, np.full(images, classes), rows)


def three_intervals(
    score: float, resampled: np.ndarray, left_out: np.ndarray
) -> dict[str, tuple[float, float]]:
    """Percentile, basic and BCa interval (Efron and Tibshirani 1993, chapters 13 and 14) of one score.

    ``left_out`` are the scores without each of some groups of images, which BCa needs.
    """
    resampled = resampled[~np.isnan(resampled)]
    low, high = np.percentile(resampled, (2.5, 97.5))
    below = np.mean(resampled < score) + np.mean(resampled == score) / 2
    bias = norm.ppf(np.clip(below, 0.5 / resampled.size, 1 - 0.5 / resampled.size))
    away = left_out.mean() - left_out
    spread = (away**2).sum()
    acceleration = (away**3).sum() / (6 * spread**1.5) if spread > 0 else 0.0
    shifted = bias + np.array([-1.96, 1.96])
    places = norm.cdf(bias + shifted / (1 - acceleration * shifted))
    bca = np.percentile(resampled, 100 * np.clip(places, 0, 1))
    return {"percentile": (low, high), "basic": (2 * score - high, 2 * score - low), "BCa": tuple(bca)}


def print_coverage(images: int, classes: int, samples: int, resamples: int) -> None:
    """Draw samples of a population, and count the intervals that hold the population's score."""
    generator = np.random.default_rng(0)
    population = known_population(POPULATION, classes, generator)
    truth = evaluate(population, classes).scores
    hits = {name: dict.fromkeys(("percentile", "basic", "BCa"), 0) for name in truth}
    for sample in range(samples):
        drawn = np.sort(generator.choice(POPULATION, images, replace=False))
        table = resampled_table(population, drawn)
        scores = evaluate(table, classes).scores
        resampled = bootstrap_scores(table, classes, None, resamples, seed=sample)
        groups = np.array_split(generator.permutation(images), GROUPS)
        without = [
            evaluate(resampled_table(table, np.setdiff1d(np.arange(images), group)), classes).scores
            for group in groups
        ]
        for name, value in scores.items():
            left_out = np.array([of[name] for of in without])
            for way, (low, high) in three_intervals(value, resampled[name], left_out).items():
                hits[name][way] += bool(low <= truth[name] <= high)
    print(f"{samples} samples of {images} images and {classes} classes, {resamples} resamples; 95 is wanted")
    for name, ways in hits.items():
        print(f"{name:9}", *(f"{way} {100 * count / samples:5.1f}" for way, count in ways.items()))


def main() -> None:
    """Print seconds, peak memory and the ratio to the plain way."""
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("--resamples", type=int, default=1000, help="number of resamples (default: 1000)")
    parser.add_argument(
        "--coverage", action="store_true", help="measure coverage of the intervals, not time; takes minutes"
    )
    arguments = parser.parse_args()
    resamples = arguments.resamples
    if arguments.coverage:
        for images in (MODES["50"].validation, 150):  # as the benchmark has them; three of a class
            print_coverage(images, MODES["50"].classes, samples=120, resamples=500)
        return
    mode = MODES["919"]
    table = generated_table(mode.validation, mode.classes, np.random.default_rng(0))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    print(f"table: {len(table.names)} images, {mode.classes} classes, {table.pixels.size} rows")

    start = time.perf_counter()
    scores = bootstrap_scores(table, mode.classes, None, resamples, seed=0)
    seconds = time.perf_counter() - start
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    print(
        f"{resamples} resamples: {seconds:.1f} s; peak memory {peak / 1024:.0f} MiB "
        f"({before / 1024:.0f} MiB before)"
    )

    start = time.perf_counter()
    for place, drawn in enumerate(drawn_images(mode.validation, PLAIN_RESAMPLES, seed=0)):
        plain = evaluate(resampled_table(table, drawn), mode.classes).scores
        if not all(np.array_equal(plain[name], scores[name][place], equal_nan=True) for name in plain):
            raise SystemExit("the two ways differ")
    plain_seconds = (time.perf_counter() - start) / PLAIN_RESAMPLES
    print(
        f"the plain way: {plain_seconds:.2f} s a resample, "
        f"{plain_seconds * resamples / seconds:.0f} times as long; the same scores to the last digit"
    )
    print(f"mIoU: 95% interval {percentile_intervals(scores)['mIoU']}")


if __name__ == "__main__":
    main()
