"""The scores and matchings once more, straight from docs/benchmark.md: slow, obvious, a loop per class.

Nothing here uses the library. An image is a pair of label arrays (ground truth, prediction), each (H, W).
"""

from __future__ import annotations

import math
from functools import cache
from itertools import permutations

import numpy as np

IGNORE = 1000
BUCKETS = {"S": (0, 5), "MS": (5, 25), "ML": (25, 50), "L": (50, 100)}


def boundary(mask):
    """5.3: pixels whose (2d+1)² window holds another label or leaves the image."""
    return _boundary(mask.astype(np.int64).tobytes(), mask.shape)


@cache  # of pure Python; a bootstrap asks for the same masks again and again
def _boundary(content, shape):
    mask = np.frombuffer(content, np.int64).reshape(shape)
    height, width = shape
    d = max(1, round(0.03 * math.sqrt(height**2 + width**2)))
    result = np.ones(shape, bool)
    for y in range(d, height - d):
        for x in range(d, width - d):
            result[y, x] = (mask[y - d : y + d + 1, x - d : x + d + 1] != mask[y, x]).any()
    return result


def iou(both, predicted, labelled):
    union = predicted + labelled - both
    return 100 * both / union if union else 0.0


def matched(prediction, matching):
    if matching is None:
        return prediction
    result = np.zeros_like(prediction)
    for cluster in np.unique(prediction):
        result[prediction == cluster] = matching[int(cluster)]
    return result


def class_areas(images, matching, classes, bucket=None, boundaries=False):
    """T, P and TP of every label 0..N over all images; in a bucket (low, high] of object sizes or without."""
    totals = np.zeros((3, classes + 1), int)
    for truth, prediction in images:
        counts = truth != IGNORE
        result = matched(prediction, matching)
        if bucket is not None:
            low, high = bucket
            chosen = []
            for c in np.unique(truth[counts]):
                if c > 0:
                    size = math.ceil(100 * int((truth == c).sum()) / int(counts.sum()))
                    if low < size <= high:
                        chosen.append(c)
            if not chosen:
                continue
            counts = counts & np.isin(truth, [0, *chosen])
        in_prediction, in_truth = counts, counts
        if boundaries:
            in_prediction = counts & boundary(prediction)
            in_truth = counts & boundary(truth)
        for c in range(classes + 1):
            predicted, labelled = (result == c) & in_prediction, (truth == c) & in_truth
            totals[:, c] += predicted.sum(), labelled.sum(), (predicted & labelled).sum()
    return totals


def mean(values):
    values = list(values)
    return math.fsum(values) / len(values) if values else math.nan


def scores(images, classes, matching=None):
    """Every score of section 5, in percent, nan where one does not exist."""
    result = {}
    for prefix, boundaries in (("", False), ("B", True)):
        predicted, labelled, both = class_areas(images, matching, classes, boundaries=boundaries)
        ious = [iou(both[c], predicted[c], labelled[c]) for c in range(classes + 1)]
        result[f"m{prefix}IoU"] = mean(ious)
        result[f"{prefix}IoUs"] = ious
        for name, bucket in BUCKETS.items():
            predicted, labelled, both = class_areas(images, matching, classes, bucket, boundaries)
            result[prefix + name] = mean(
                iou(both[c], predicted[c], labelled[c]) for c in range(classes + 1) if labelled[c] > 0
            )
    result["FMeasure"] = mean(100 * fmeasure(*image, matching) for image in images)
    result["Acc"] = mean(100 * correct(*image, matching) for image in images)
    return result


def fmeasure(truth, prediction, matching):
    counts = truth != IGNORE
    foreground = (matched(prediction, matching) > 0) & counts
    objects = (truth > 0) & counts
    overlap = int((foreground & objects).sum())
    if overlap == 0:
        return 0.0
    precision = overlap / int(foreground.sum())
    recall = overlap / int(objects.sum())
    return 1.3 * precision * recall / (0.3 * precision + recall)


def correct(truth, prediction, matching):
    counts = truth != IGNORE
    result = matched(prediction, matching)[counts]
    best, best_pixels = None, 0
    for c in np.unique(result):
        pixels = int((result == c).sum())
        if c > 0 and pixels > best_pixels:
            best, best_pixels = c, pixels
    return float(best is not None and best in truth[counts])


def shared_images(images, classes, clusters):
    """6: n(k, c), the number of images that hold cluster k and class c, ignored pixels left out."""
    n = np.zeros((clusters + 1, classes + 1), int)
    for truth, prediction in images:
        counts = truth != IGNORE
        for k in np.unique(prediction[counts]):
            for c in np.unique(truth[counts]):
                if k > 0 and c > 0:
                    n[k, c] += 1
    return n


def overlapping_pixels(images, classes, clusters):
    n = np.zeros((clusters + 1, classes + 1), int)
    for truth, prediction in images:
        for k in range(1, clusters + 1):
            for c in range(1, classes + 1):
                n[k, c] += int(((prediction == k) & (truth == c)).sum())
    return n


def best_assignment(weights):
    """The largest sum of ``weights`` (K + 1, N + 1) over one-to-one assignments, found by trying all.

    A weight is a tuple; sums are compared like tuples, the first numbers first.
    """
    clusters, classes = range(1, len(weights)), range(1, len(weights[0]))
    if len(clusters) < len(classes):
        weights = [list(column) for column in zip(*weights, strict=True)]
        clusters, classes = classes, clusters
    return max(
        tuple(map(sum, zip(*(weights[k][c] for k, c in zip(chosen, classes, strict=True)), strict=True)))
        for chosen in permutations(clusters, len(classes))
    )
