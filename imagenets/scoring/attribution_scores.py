"""The formulas that compare an attribution map with the object in its image.

``values`` (P,) are the map's values at the pixels that count, floating point or uint8, finite, in row-major
order, and ``inside`` (P,) bool: which of them are the target class's; void pixels (label 1000) are left out
before. What Quantus does otherwise: docs/explanations.md, Scores.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

# Exactly the floating-point numbers nearest to 0.05, 0.10, … 0.95.
IOU_THRESHOLDS = np.arange(1, 20) / 20
TIES = ("first", "any", "share")  # which of several largest values is the pointing game's
_BINS = 256  # of Otsu's histogram


def pointing_game(values: np.ndarray, near: np.ndarray, ties: str = "first") -> float:
    """Does the largest value lie where ``near`` (P,) bool is set, in the target or close enough to it? 0..1.

    ``ties``: of several largest values, the ``first`` in row order, ``any`` that hits, or the ``share`` that
    hits. Pointing game: Zhang et al., Top-down Neural Attention by Excitation Backprop,
    ECCV 2016.
    """
    if ties == "first":
        return float(near[values.argmax()])
    hits = near[values == values.max()]
    return float(hits.any() if ties == "any" else hits.mean())


def energy(values: np.ndarray, inside: np.ndarray) -> float:
    """Share of the sum of positive values that lies inside the target, 0..1; 0 where none is positive.

    Energy-based pointing game: Wang et al., Score-CAM, CVPR Workshops 2020.
    """
    share = relevance_mass(np.maximum(values, 0), inside)
    return 0.0 if math.isnan(share) else share


def attribution_localization(values: np.ndarray, inside: np.ndarray) -> float:
    """Share of the sum of absolute values that lies inside the target, 0..1; 0 where all are 0.

    Kohlbrenner et al., Towards Best Practice in Explaining Neural Network Decisions with LRP, IJCNN 2020.
    """
    return energy(np.abs(values), inside)


def relevance_mass(values: np.ndarray, inside: np.ndarray) -> float:
    """Share of the sum of the values, signs kept, that lies inside the target; nan where the sum is 0.

    In 0..1 where no value is negative, else any number. Relevance mass accuracy: Arras et al., CLEVR-XAI,
    Information Fusion 2022.
    """
    scaled = _scaled_by_largest(values)
    total = scaled.sum()
    return float(scaled[inside].sum() / total) if total else math.nan


class Ranking(NamedTuple):
    """Pixels at or above each distinct value, from the largest value down, (V,) int64.

    ``hits`` are inside the target, ``misses`` outside.
    """

    hits: np.ndarray
    misses: np.ndarray


def rank_pixels(values: np.ndarray, inside: np.ndarray) -> Ranking:
    """Order the pixels by their values, once for all scores that need it."""
    order = values.argsort()[::-1]
    ordered = values[order]
    last_of_value = np.flatnonzero(np.append(ordered[1:] != ordered[:-1], True))
    hits = inside[order].cumsum(dtype=np.int64)[last_of_value]
    return Ranking(hits, last_of_value + 1 - hits)


def hits_among(ranking: Ranking, count: int) -> float:
    """Number of pixels inside the target among the ``count`` largest values, ``count`` at least 1.

    Where equal values stand at the border, each counts with the share of them that still fits in: the
    expectation over all orders of the ties.
    """
    reached = ranking.hits + ranking.misses
    place = int(np.searchsorted(reached, count))  # the value at which the count is full
    before = reached[place - 1] if place else 0
    hits_before = ranking.hits[place - 1] if place else 0
    share = (count - before) / (reached[place] - before)
    return float(hits_before + share * (ranking.hits[place] - hits_before))


def relevance_rank(ranking: Ranking) -> float:
    """Share of the target's size that lies inside it, among as many largest values; nan without a target.

    Relevance rank accuracy: Arras et al., CLEVR-XAI, Information Fusion 2022.
    """
    size = int(ranking.hits[-1])
    return hits_among(ranking, size) / size if size else math.nan


def top_k_intersection(ranking: Ranking, k: int) -> float:
    """Share of the ``k`` largest values inside the target, 0..1; nan with no more than ``k`` pixels.

    Theiner et al., Interpretable Semantic Photo Geolocation, WACV 2022.
    """
    pixels = int(ranking.hits[-1] + ranking.misses[-1])
    return hits_among(ranking, k) / k if k < pixels else math.nan


def average_precision(ranking: Ranking) -> float:
    """Average precision over the distinct values, 0..1: the sum of ΔR · P; nan without a target.

    Not interpolated, as scikit-learn's ``average_precision_score``.
    """
    size = int(ranking.hits[-1])
    if not size:
        return math.nan
    gained = np.diff(ranking.hits, prepend=0)
    return float((gained * (ranking.hits / (ranking.hits + ranking.misses))).sum() / size)


def roc_auc(ranking: Ranking) -> float:
    """Area under the pixel ROC curve, 0..1; nan where all pixels or none are inside.

    It is the probability that a pixel inside has a larger value than one outside, a tie counting half
    (Mann and Whitney, 1947), and so exact. Fawcett, An Introduction to ROC Analysis, Pattern Recognition
    Letters 2006.
    """
    positives, negatives = int(ranking.hits[-1]), int(ranking.misses[-1])
    if not (positives and negatives):
        return math.nan
    # A pixel outside is below all hits of larger values, and ties with those of its own value.
    above = np.concatenate([[0], ranking.hits[:-1]]) + ranking.hits
    return int((np.diff(ranking.misses, prepend=0) * above).sum()) / (2 * positives * negatives)


def sparseness(values: np.ndarray) -> float:
    """Gini index of the absolute values, scaled by their largest, plus 1e-7; 0 where all are equal, below 1.

    Chalasani et al., Concise Explanations of Neural Networks using Adversarial Training, ICML 2020.
    """
    ordered = np.sort(np.abs(_scaled_by_largest(values))) + 1e-7
    n = ordered.size
    ranks = 2 * np.arange(1, n + 1) - n - 1
    return float((ranks * ordered).sum() / (n * ordered.sum()))


def complexity(values: np.ndarray) -> float:
    """Entropy of the absolute values' shares p, −Σ p ln(p + 1e-12), in nats; nan where all are 0.

    Small where few pixels have all; ln P where all have the same. Bhatt et al., Evaluating and Aggregating
    Feature-based Model Explanations, IJCAI 2020.
    """
    weights = np.abs(_scaled_by_largest(values))
    total = weights.sum()
    if total == 0:
        return math.nan
    shares = weights / total
    return float(-(shares * np.log(shares + 1e-12)).sum())


def _scaled_by_largest(values: np.ndarray) -> np.ndarray:
    """Divide by the largest absolute value, so that no sum overflows."""
    wide = values.astype(np.float64)
    largest = np.abs(wide).max()
    return wide / largest if largest else wide


def scale_to_unit(values: np.ndarray) -> np.ndarray:
    """Scale values (P,) to 0..1 by their own minimum and maximum, float64; a constant map becomes all 0."""
    halved = values.astype(np.float64) / 2  # exact, and no difference of huge values overflows
    low, high = halved.min(), halved.max()
    scaled: np.ndarray = np.zeros(values.shape) if low == high else (halved - low) / (high - low)
    return scaled


def iou_at_thresholds(scaled: np.ndarray, inside: np.ndarray) -> np.ndarray:
    """IoU of the target and the map, scaled to 0..1, cut at IOU_THRESHOLDS, (19,) float64, 0..1.

    What is at least the threshold is the prediction; a constant map predicts nothing.

    Cut at every threshold: Choe et al., Evaluating Weakly Supervised Object Localization Methods
    Right, CVPR 2020, here with masks in place of boxes.
    """
    # For each threshold, how many pixels reach it: those that reach it and no more, and all that reach more.
    reached = np.searchsorted(IOU_THRESHOLDS, scaled, side="right")
    size = IOU_THRESHOLDS.size + 1
    predicted = np.bincount(reached, minlength=size)[:0:-1].cumsum()[::-1]
    both = np.bincount(reached[inside], minlength=size)[:0:-1].cumsum()[::-1]
    union = predicted + np.count_nonzero(inside) - both
    result: np.ndarray = both / np.maximum(union, 1)
    return result


def otsu_threshold(scaled: np.ndarray) -> float:
    """Threshold of the largest variance between the two classes, values (P,) of 0..1 in 256 bins.

    It is the centre of the last bin of the lower class; what is larger is the upper class. Otsu, A Threshold
    Selection Method from Gray-Level Histograms, IEEE Transactions SMC 1979.
    """
    counts, edges = np.histogram(scaled, bins=_BINS, range=(0, 1))
    centres = (edges[:-1] + edges[1:]) / 2
    below, above = counts.cumsum()[:-1], counts[::-1].cumsum()[::-1][1:]
    sums = counts * centres
    mean_below = sums.cumsum()[:-1] / np.maximum(below, 1)
    mean_above = sums[::-1].cumsum()[::-1][1:] / np.maximum(above, 1)
    return float(centres[np.argmax(below * above * (mean_below - mean_above) ** 2)])


def two_class_counts(predicted: np.ndarray, inside: np.ndarray) -> np.ndarray:
    """Intersection and union in pixels of the object, then of the background, (4,) int64."""
    both, either = np.count_nonzero(predicted & inside), np.count_nonzero(predicted | inside)
    return np.array([both, either, inside.size - either, inside.size - both], np.int64)


def pooled_two_class(counts: np.ndarray) -> float:
    """Mean IoU of object and background from their summed counts (4,), 0..1; nan without a pixel.

    As ImageNet-Segmentation is judged: Chefer et al., Transformer Interpretability Beyond Attention
    Visualization, CVPR 2021. A label without any pixel is left out of the mean.
    """
    ious = [both / union for both, union in (counts[:2], counts[2:]) if union]
    return float(sum(ious) / len(ious)) if ious else math.nan
