"""Intervals against a slow bootstrap that scores resampled image lists, and against known populations."""

from __future__ import annotations

import math

import numpy as np
import pytest
import reference
from hypothesis import given, settings
from hypothesis import strategies as st
from masksets import blobs, random_images, table_of

from imagenets.reporting.text import intervals_text
from imagenets.scoring import bootstrap
from imagenets.scoring.bootstrap import (
    Bootstrap,
    bootstrap_intervals,
    bootstrap_scores,
    drawn_images,
    percentile_intervals,
)
from imagenets.scoring.comparison import Method, Run, compare
from imagenets.scoring.contingency import Rows, make_table
from imagenets.scoring.metrics import SCORES, evaluate


def slow_bootstrap(images, classes, matching, resamples, seed):
    """The reference scores of each list of images drawn, by score."""
    rng = np.random.default_rng(seed)
    lists = [rng.integers(len(images), size=len(images)) for _ in range(resamples)]
    results = [reference.scores([images[i] for i in drawn], classes, matching) for drawn in lists]
    return {name: [result[name] for result in results] for name in SCORES}


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**32), st.integers(1, 5), st.integers(1, 4), st.integers(1, 6), st.booleans())
def test_each_resample_scores_as_its_list_of_images(seed, count, classes, clusters, matched):
    """As the reference says, and to the last digit as ``evaluate`` does."""
    rng = np.random.default_rng(seed)
    images = random_images(rng, count, classes, clusters if matched else classes, size=20)
    matching = np.append(0, rng.integers(0, classes + 1, clusters)) if matched else None
    scores = bootstrap_scores(table_of(images), classes, matching, 3, seed)
    as_dict = None if matching is None else dict(enumerate(matching.tolist()))
    expected = slow_bootstrap(images, classes, as_dict, 3, seed)
    exactly = [
        evaluate(table_of([images[i] for i in drawn]), classes, matching).scores
        for drawn in drawn_images(count, 3, seed)
    ]
    assert tuple(scores) == SCORES
    for name in SCORES:
        assert scores[name].tolist() == pytest.approx(expected[name], abs=1e-11, nan_ok=True), name
        assert np.array_equal(scores[name], [one[name] for one in exactly], equal_nan=True), name


def slow_percentile(values, percent):
    """Linear between the two nearest of the sorted values."""
    ordered = sorted(values)
    place = percent / 100 * (len(ordered) - 1)
    below = math.floor(place)
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] + (place - below) * (ordered[above] - ordered[below])


def test_intervals_are_those_of_the_slow_bootstrap():
    images = random_images(np.random.default_rng(1), 4, 2, 2, size=16)
    found = bootstrap_intervals(table_of(images), 2, None, 60, seed=5)
    assert (found.resamples, found.seed) == (60, 5)
    assert tuple(found.intervals) == SCORES
    left_out = 0
    for name, values in slow_bootstrap(images, 2, None, 60, seed=5).items():
        exist = [value for value in values if not math.isnan(value)]
        left_out += len(values) - len(exist)
        expected = [slow_percentile(exist, 2.5), slow_percentile(exist, 97.5)] if exist else [math.nan] * 2
        assert list(found.intervals[name]) == pytest.approx(expected, abs=1e-11, nan_ok=True), name
    assert left_out  # some score does not exist in some resample, or the rule for it is not tried


def test_blocks_change_no_digit(monkeypatch):
    table = table_of(random_images(np.random.default_rng(2), 9, 4, 4))
    expected = bootstrap_scores(table, 4, None, 11, seed=0)
    for block in (1, 4, 11):
        monkeypatch.setattr(bootstrap, "_BLOCK", block)
        scores = bootstrap_scores(table, 4, None, 11, seed=0)
        assert all(np.array_equal(scores[name], expected[name], equal_nan=True) for name in SCORES)


def test_a_class_that_was_not_drawn_scores_zero_in_miou_and_drops_out_of_buckets():
    perfect = [np.full((1, 1), 1), np.full((1, 1), 2)]  # one image of class 1, one of class 2, both size L
    scores = bootstrap_scores(table_of([(mask, mask) for mask in perfect]), 2, None, 40, seed=0)
    drawn_classes = [len(set(drawn.tolist())) for drawn in drawn_images(2, 40, seed=0)]
    assert set(drawn_classes) == {1, 2}
    assert scores["mIoU"].tolist() == [100 * count / 3 for count in drawn_classes]
    assert scores["L"].tolist() == [100.0] * 40
    assert np.isnan(scores["S"]).all()


def test_the_seed_decides():
    table = table_of(random_images(np.random.default_rng(4), 12, 3, 3))
    first, again, other = (bootstrap_intervals(table, 3, None, 20, seed).intervals for seed in (1, 1, 2))
    assert first["mIoU"] == again["mIoU"] != other["mIoU"]


# A population of as many kinds of images, all equally frequent: its scores are the truth that is estimated.
KINDS = 40
SAMPLE = 120
SAMPLES = 100


def population(seed):
    """Rows of each kind of image, for two methods on the same ground truth."""
    rng = np.random.default_rng(seed)
    images = random_images(rng, KINDS, 3, 3, size=30, ignore=0)
    others = [(truth, np.where(rng.random(truth.shape) < 0.3, truth, guess)) for truth, guess in images]
    return [
        [
            Rows(*(getattr(table, field)[table.image == kind] for field in Rows._fields))
            for kind in range(KINDS)
        ]
        for table in (table_of(images), table_of(others))
    ]


def sample_table(kinds, drawn):
    rows = [kinds[kind]._replace(image=np.full(kinds[kind].pixels.size, i)) for i, kind in enumerate(drawn)]
    return make_table([f"n1/{i}.png" for i in range(len(drawn))], np.zeros(len(drawn)), rows)


def test_intervals_cover_the_truth_in_about_95_of_100_samples():
    """Of scores and of paired differences; 100 samples say so to about 6 points, at three deviations."""
    names = ("mIoU", "mBIoU", "Acc", "FMeasure", "MS")
    a, b = population(seed=0)
    truth_a, truth_b = (evaluate(sample_table(kinds, range(KINDS)), 3).scores for kinds in (a, b))
    rng = np.random.default_rng(1)
    covered = np.zeros((2, len(names)))
    for seed in range(SAMPLES):
        drawn = rng.integers(KINDS, size=SAMPLE)
        of_a, of_b = (bootstrap_scores(sample_table(kinds, drawn), 3, None, 100, seed) for kinds in (a, b))
        intervals = percentile_intervals(of_a)
        of_difference = percentile_intervals({name: of_a[name] - of_b[name] for name in names})
        for i, name in enumerate(names):
            (low, high), (lower, upper) = intervals[name], of_difference[name]
            covered[0, i] += low <= truth_a[name] <= high
            covered[1, i] += lower <= truth_a[name] - truth_b[name] <= upper
    assert (covered / SAMPLES >= 0.88).all() and (covered / SAMPLES <= 0.995).all(), covered


def method(*runs):
    """A method of these runs, each a list of images."""
    return Method("predictions", tuple(Run("predictions", None, table_of(run), None) for run in runs))


def test_compare_draws_the_same_images_for_both_and_refuses_others():
    images = random_images(np.random.default_rng(5), 8, 3, 3)
    same = compare(method(images), method(images), 3, 50, seed=0)
    assert all(math.isnan(low) or (low, high) == (0, 0) for low, high in same.bootstrap.intervals.values())
    assert same.bootstrap.intervals["mIoU"] == (0, 0)
    assert not same.is_significant("mIoU")
    with pytest.raises(ValueError, match="different images"):
        compare(method(images), method(images[:2]), 2, 5, seed=0)


def test_classes_that_gained_and_lost():
    truth = np.array([[1, 1, 2, 2, 3, 3, 4, 4]])
    a = np.array([[1, 1, 2, 0, 0, 0, 4, 4]])
    b = np.array([[1, 0, 2, 2, 0, 3, 4, 4]])
    found = compare(method([(truth, a)]), method([(truth, b)]), 4, 5, seed=0)
    assert found.class_differences().tolist() == [0, 50, -50, -50, 0]
    assert (found.gained(), found.lost()) == ([1], [2, 3])


def test_a_score_outside_its_interval_is_explained():
    """Each of twelve labels is in one image: a resample lacks a third of them, and none has the score."""
    truths = [np.repeat([[label], [0]], [4, 6], axis=0).repeat(10, axis=1) for label in range(1, 13)]
    table = table_of([(truth, truth) for truth in truths])
    evaluation, found = evaluate(table, 12, None), bootstrap_intervals(table, 12, None, 200, seed=0)
    outside = bootstrap.outside_intervals(evaluation.scores, found.intervals)
    assert "mIoU" in outside and "Acc" not in outside and "S" not in outside
    last = intervals_text(evaluation, found).splitlines()[-1]
    assert last.startswith("mIoU, mBIoU lie outside their own intervals: ")
    inside = Bootstrap(200, 0, {"Acc": (99.0, 100.0)})
    assert intervals_text(evaluation, inside).splitlines()[-1].startswith("(percentile bootstrap")


@pytest.mark.parametrize(("runs_a", "runs_b"), [(1, 1), (3, 2)])
def test_methods_are_compared_by_the_means_of_their_runs(runs_a, runs_b):
    """Each resample draws images, the same for all runs, and runs: held against plain loops."""
    rng = np.random.default_rng(5)
    truths = [truth for truth, _ in random_images(rng, 6, 3, 3, size=20)]
    runs = [
        [
            [(truth, blobs(rng, *truth.shape, np.arange(4), ignore=0)) for truth in truths]
            for _ in range(number)
        ]
        for number in (runs_a, runs_b)
    ]
    found = compare(method(*runs[0]), method(*runs[1]), 3, 20, seed=4)
    assert found.class_differences() == pytest.approx(
        np.mean([run.iou for run in found.runs_a], axis=0)
        - np.mean([run.iou for run in found.runs_b], axis=0)
    )
    names = ("Acc", "mIoU", "mBIoU", "FMeasure")
    of_side = []
    for stream, images in enumerate(runs, start=1):
        picks = np.random.default_rng([4, stream]).integers(len(images), size=(20, len(images)))
        of_runs = [slow_bootstrap(one, 3, None, 20, seed=4) for one in images]
        of_side.append(
            {
                name: [np.mean([of_runs[run][name][i] for run in pick]) for i, pick in enumerate(picks)]
                for name in names
            }
        )
    for name in names:
        means = [np.mean([reference.scores(one, 3)[name] for one in images]) for images in runs]
        assert found.a.scores[name] == pytest.approx(means[0], abs=1e-11)
        assert found.differences[name] == pytest.approx(means[0] - means[1], abs=1e-11)
        differences = np.subtract(of_side[0][name], of_side[1][name])
        expected = [slow_percentile(differences, percent) for percent in (2.5, 97.5)]
        assert found.bootstrap.intervals[name] == pytest.approx(expected, abs=1e-9), name
