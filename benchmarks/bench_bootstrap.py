#!/usr/bin/env python3
"""Time 1,000 bootstrap resamples of a generated table of 12,419 images and 919 classes, and their memory.

For comparison, a few resamples are scored the plain way: the table of the images drawn, then evaluate().
"""

from __future__ import annotations

import argparse
import resource
import sys
import time
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from imagenets.classes import MODES
from imagenets.scoring.bootstrap import bootstrap_scores, drawn_images, percentile_intervals
from imagenets.scoring.contingency import ContingencyTable, Rows, make_table
from imagenets.scoring.metrics import evaluate

PLAIN_RESAMPLES = 5


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


def main() -> None:
    """Print seconds, peak memory and the ratio to the plain way."""
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("--resamples", type=int, default=1000)
    resamples = parser.parse_args().resamples
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
