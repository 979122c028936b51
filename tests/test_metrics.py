"""Scores against the slow reference, and cases whose scores are known by arithmetic."""

from __future__ import annotations

import math

import numpy as np
import pytest
import reference
from hypothesis import given, settings
from hypothesis import strategies as st
from masksets import random_images, table_of

from imagenets.scoring.matching import find_matching
from imagenets.scoring.metrics import SCORES, evaluate


@settings(max_examples=100, deadline=None)
@given(st.integers(0, 2**32), st.integers(1, 6), st.integers(1, 5), st.integers(0, 9))
def test_scores_are_those_of_the_reference(seed, count, classes, clusters):
    """Without clusters, predictions are classes; else many clusters may be one class."""
    rng = np.random.default_rng(seed)
    images = random_images(rng, count, classes, clusters or classes)
    matching = np.append(0, rng.integers(0, classes + 1, clusters)) if clusters else None
    expected = reference.scores(images, classes, dict(enumerate(matching.tolist())) if clusters else None)
    evaluation = evaluate(table_of(images), classes, matching)
    for name in SCORES:
        assert evaluation.scores[name] == pytest.approx(expected[name], abs=1e-11, nan_ok=True), name
    assert evaluation.iou.tolist() == expected["IoUs"]
    assert evaluation.boundary_iou.tolist() == expected["BIoUs"]
    reverse = evaluate(table_of(images[::-1]), classes, matching)
    assert np.array_equal(list(reverse.scores.values()), list(evaluation.scores.values()), equal_nan=True)


def evaluation_of(truth, prediction, classes=2):
    return evaluate(table_of([(np.array(truth), np.array(prediction))]), classes)


def test_iou_by_hand():
    evaluation = evaluation_of([[1, 1, 1, 1, 0, 0, 0, 0]], [[1, 1, 1, 0, 1, 1, 0, 2]])
    assert evaluation.iou.tolist() == [100 * 1 / 5, 100 * 3 / 6, 0]
    assert evaluation.scores["mIoU"] == (20 + 50 + 0) / 3
    assert evaluation.pixels.tolist() == [4, 4, 0]
    assert evaluation_of([[1]], [[1]], classes=3).scores["mIoU"] == 100 / 4, "those that nobody has score 0"


def test_fmeasure_by_hand():
    scores = evaluation_of([[1, 1, 1, 1, 0, 0]], [[2, 2, 1, 0, 0, 1]]).scores
    precision, recall = 3 / 4, 3 / 4
    assert scores["FMeasure"] == pytest.approx(
        100 * 1.3 * precision * recall / (0.3 * precision + recall), abs=1e-12
    )


@pytest.mark.parametrize(
    ("percent", "bucket"), [(1, "S"), (5, "S"), (6, "MS"), (25, "MS"), (26, "ML"), (50, "ML"), (51, "L")]
)
def test_bucket_limits(percent, bucket):
    truth = np.zeros((10, 10), int)
    truth.flat[:percent] = 1
    scores = evaluation_of(truth, truth).scores
    assert [name for name in ("S", "MS", "ML", "L") if not math.isnan(scores[name])] == [bucket]


def test_size_is_rounded_up_and_leaves_ignored_pixels_out():
    truth = np.full((20, 10), 1000)
    truth.flat[:101] = 0
    truth.flat[:5] = 1  # 4.95 %, rounded up 5
    assert not math.isnan(evaluation_of(truth, truth * 0).scores["S"])
    truth.flat[5] = 1  # 5.94 %, rounded up 6
    scores = evaluation_of(truth, truth * 0).scores
    assert math.isnan(scores["S"])
    assert scores["MS"] == 50 * 95 / 101


def test_accuracy_takes_the_smallest_id_on_a_tie():
    truth = [[1, 1, 1, 0]]
    assert evaluation_of(truth, [[2, 2, 1, 1]]).scores["Acc"] == 100
    assert evaluation_of([[2, 2, 2, 0]], [[2, 2, 1, 1]]).scores["Acc"] == 0


def test_an_image_that_is_ignored_throughout_counts_as_one():
    ones = np.ones((3, 3), int)
    scores = evaluate(table_of([(1000 * ones, ones), (ones, ones)]), 1).scores
    assert (scores["FMeasure"], scores["Acc"], scores["mIoU"]) == (50, 50, (0 + 100) / 2)


def complete_set(rng, classes):
    """Every class in an image of its own, without ignored pixels; background in each."""
    images = []
    for c in range(1, classes + 1):
        mask = np.zeros((60, 80), int)
        mask[: 5 * c + 3, rng.integers(20) :] = c
        mask[50:, 70:] = rng.integers(1, classes + 1)
        images.append(mask)
    return images


@pytest.mark.parametrize("method", ["image", "pixel", "majority"])
def test_matching_undoes_a_permutation_of_the_ids(method):
    rng = np.random.default_rng(1)
    masks = complete_set(rng, 9)
    permutation = np.append(0, 1 + rng.permutation(9))
    table = table_of([(mask, permutation[mask]) for mask in masks])
    matching = find_matching(table, method, 9, 9)
    assert matching.classes[permutation].tolist() == list(range(10))
    assert matching.one_to_one
    assert evaluate(table, 9, matching.classes).scores == dict.fromkeys(SCORES, 100)


def test_totals_beyond_float32_lose_no_pixel():
    truth = np.ones((4200, 4200), int)  # 17,640,000 pixels; float32 counts to 16,777,216
    prediction = truth.copy()
    prediction[0, :3] = 2
    evaluation = evaluation_of(truth, prediction)
    assert evaluation.pixels[1] == truth.size
    assert evaluation.iou[1] == 100 * (truth.size - 3) / truth.size
