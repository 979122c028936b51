"""Which images are worth a look: per-image mean IoU, and the best, worst and random images by it."""

from __future__ import annotations

import random
from dataclasses import dataclass

import numpy as np

from imagenets.scoring.contingency import ContingencyTable


@dataclass(frozen=True)
class ImageLabels:
    """IoU of each label within each image: an entry for every label that occurs in it or its prediction.

    Arrays of length E, sorted by image, then label: ``image`` and ``label`` int64, ``iou`` float64 percent,
    ``union`` int64, the pixels that are labelled or predicted so.
    """

    image: np.ndarray
    label: np.ndarray
    iou: np.ndarray
    union: np.ndarray


@dataclass(frozen=True)
class ShownImages:
    """Indices of images: ``best`` from the best down, ``worst`` from the worst up, ``random`` by name."""

    best: list[int]
    worst: list[int]
    random: list[int]


def image_label_ious(table: ContingencyTable, predicted: np.ndarray) -> ImageLabels:
    """Compute TP / (T + P - TP) of every label within every image; ``predicted`` (R,) are classes.

    Nothing is pooled over images here, as the benchmark's IoU is (docs/benchmark.md, IoU). Ignored pixels
    count nowhere.
    """
    width = max(table.ground_truth.max(initial=0), predicted.max(initial=0)) + 1
    image = table.image.astype(np.int64)
    of_truth = image * width + table.ground_truth
    of_prediction = image * width + predicted
    entries, place = np.unique(np.concatenate([of_truth, of_prediction]), return_inverse=True)
    wrong = np.where(of_truth == of_prediction, 0, table.pixels)
    # A right pixel is in the union once, a wrong one in the unions of both of its labels.
    both = np.bincount(place[: image.size], table.pixels - wrong, entries.size)
    union = both + np.bincount(place, np.concatenate([wrong, wrong]), entries.size)
    return ImageLabels(entries // width, entries % width, 100 * both / union, union.astype(np.int64))


def image_mean_iou(labels: ImageLabels, images: int) -> np.ndarray:
    """Mean IoU over the labels of each image or its prediction, background included, (images,) percent.

    nan for an image all of whose pixels are ignored.
    """
    count = np.bincount(labels.image, minlength=images)
    total = np.bincount(labels.image, labels.iou, images)
    return np.where(count > 0, total / np.maximum(count, 1), np.nan)


def choose_images(mean_iou: np.ndarray, count: int, seed: int) -> ShownImages:
    """Choose ``count`` images each (fewer where there are fewer); equal images in the order of their names.

    The random ones are drawn from all images, so that they may be among the best or worst too. Images whose
    mean IoU is nan are never chosen.
    """
    scored = np.flatnonzero(~np.isnan(mean_iou))
    count = min(count, scored.size)
    rounded = mean_iou[scored].round(9)  # rounding errors of a sum do not order images
    best = scored[np.argsort(-rounded, kind="stable")][:count]
    worst = scored[np.argsort(rounded, kind="stable")][:count]
    drawn = random.Random(seed).sample(scored.tolist(), count)
    return ShownImages(best.tolist(), worst.tolist(), sorted(drawn))
