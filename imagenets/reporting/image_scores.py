"""Mean IoU of single images, and the best, worst and random images."""

from __future__ import annotations

import itertools
import random
from dataclasses import dataclass

import numpy as np

from imagenets.common.tables import csv_text, or_empty
from imagenets.scoring.contingency import ContingencyTable
from imagenets.scoring.metrics import image_accuracy, image_fmeasure

IMAGES_PER_GROUP = 8  # of a page


@dataclass(frozen=True)
class ImageLabels:
    """IoU of each label within each image: an entry for every label that occurs in it or its prediction.

    Arrays of length E, sorted by image, then label: ``image`` and ``label`` int64, ``iou`` float64 percent,
    ``truth`` and ``prediction`` int64, the pixels that are labelled and predicted.
    """

    image: np.ndarray
    label: np.ndarray
    iou: np.ndarray
    truth: np.ndarray
    prediction: np.ndarray


def image_label_ious(table: ContingencyTable, predicted: np.ndarray) -> ImageLabels:
    """Compute TP / (T + P - TP) of every label within every image; ``predicted`` (R,) are classes.

    Unlike the benchmark's IoU (docs/benchmark.md, IoU), nothing is pooled over images. Ignored pixels are not
    counted.
    """
    width = max(table.ground_truth.max(initial=0), predicted.max(initial=0)) + 1
    image = table.image.astype(np.int64)
    of_truth = image * width + table.ground_truth
    of_prediction = image * width + predicted
    entries, place = np.unique(np.concatenate([of_truth, of_prediction]), return_inverse=True)
    # Sums of integers in float64: exact up to 2**53.
    truth = np.bincount(place[: image.size], table.pixels, entries.size)
    prediction = np.bincount(place[image.size :], table.pixels, entries.size)
    right = np.where(of_truth == of_prediction, table.pixels, 0)
    both = np.bincount(place[: image.size], right, entries.size)
    iou = 100 * both / (truth + prediction - both)
    pixels = (sums.astype(np.int64) for sums in (truth, prediction))
    return ImageLabels(entries // width, entries % width, iou, *pixels)


def image_mean_iou(labels: ImageLabels, images: int) -> np.ndarray:
    """Mean IoU over the labels of each image or its prediction, background included, (images,) percent.

    nan for an image all of whose pixels are ignored.
    """
    count = np.bincount(labels.image, minlength=images)
    total = np.bincount(labels.image, labels.iou, images)
    return np.where(count > 0, total / np.maximum(count, 1), np.nan)


def image_csv(table: ContingencyTable, predicted: np.ndarray) -> str:
    """Format the scores of every image as CSV, in the order of the names; ``predicted`` (R,) are classes.

    mIoU is that of ``image_mean_iou``, empty if all pixels are ignored; the means of FMeasure and Acc are the
    scores of the run. All in percent. ``pixels`` are those that are not ignored, ``labels`` and
    ``predicted`` the labels in them.
    """
    images = len(table.names)
    mean_iou = image_mean_iou(image_label_ious(table, predicted), images).tolist()
    fmeasure = (100 * image_fmeasure(table, predicted)).tolist()
    accuracy = (100 * image_accuracy(table, predicted)).tolist()
    pixels = np.bincount(table.image, table.pixels, images).astype(np.int64).tolist()
    labels, guesses = (
        _labels_by_image(table.image, side, images) for side in (table.ground_truth, predicted)
    )
    columns = (table.names, map(or_empty, mean_iou), fmeasure, accuracy, pixels, labels, guesses)
    header = ("name", "mIoU", "FMeasure", "Acc", "pixels", "labels", "predicted")
    return csv_text(header, zip(*columns, strict=True))


def _labels_by_image(image: np.ndarray, label: np.ndarray, images: int) -> list[str]:
    """Write the labels of every image in order, separated by spaces."""
    pairs = np.unique(image.astype(np.int64) << 32 | label.astype(np.int64))
    ends = np.searchsorted(pairs >> 32, np.arange(images + 1))
    written = (pairs & 0xFFFFFFFF).astype(str).tolist()
    return [" ".join(written[start:end]) for start, end in itertools.pairwise(ends.tolist())]


def choose_images(mean_iou: np.ndarray, seed: int, count: int = IMAGES_PER_GROUP) -> dict[str, list[int]]:
    """Choose ``count`` images each (fewer where there are fewer), by the titles of a page's groups.

    They are the worst from the worst up, the best from the best down and random ones, in the order of their
    names, as equal images are. The random ones are drawn from all images, so that they may be among the best
    or worst too. Images whose mean IoU is nan are never chosen.
    """
    scored = np.flatnonzero(~np.isnan(mean_iou))
    count = min(count, scored.size)
    rounded = mean_iou[scored].round(9)  # rounding errors of a sum do not order images
    return {
        "Worst": scored[np.argsort(rounded, kind="stable")][:count].tolist(),
        "Best": scored[np.argsort(-rounded, kind="stable")][:count].tolist(),
        "Random": sorted(random.Random(seed).sample(scored.tolist(), count)),
    }
