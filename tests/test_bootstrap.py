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
    results = []
    for _ in range(resamples):
        drawn = rng.integers(len(images), size=len(images))
        results.append(reference.scores([images[i] for i in drawn], classes, matching))
    return {name: [result[name] for result in results] for name in SCORES}


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**32), st.integers(1, 5), st.integers(1, 4), st.integers(1, 6), st.booleans())
def test_each_resample_scores_as_its_list_of_images(seed, count, classes, clusters, matched):
    rng = np.random.default_rng(seed)
    images = random_images(rng, count, classes, clusters if matched else classes, size=20)
    matching = np.append(0, rng.integers(0, classes + 1, clusters)) if matched else None
    scores = bootstrap_scores(table_of(images), classes, matching, 3, seed)
    as_dict = None if matching is None else dict(enumerate(matching.tolist()))
    expected = slow_bootstrap(images, classes, as_dict, 3, seed)
    assert tuple(scores) == SCORES
    for name in SCORES:
        assert scores[name].tolist() == pytest.approx(expected[name], abs=1e-11, nan_ok=True), name


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
        for name in SCORES:
            assert np.array_equal(scores[name], expected[name], equal_nan=True)


def test_each_resample_has_the_score_of_evaluate_to_the_last_digit():
    images = random_images(np.random.default_rng(3), 40, 20, 20)
    scores = bootstrap_scores(table_of(images), 20, None, 10, seed=7)
    for i, drawn in enumerate(drawn_images(40, 10, seed=7)):
        expected = evaluate(table_of([images[k] for k in drawn]), 20).scores
        for name in SCORES:
            assert np.array_equal(scores[name][i], expected[name], equal_nan=True), name


def test_a_class_that_was_not_drawn_scores_zero_in_miou_and_drops_out_of_buckets():
    perfect = [np.full((1, 1), 1), np.full((1, 1), 2)]  # one image of class 1, one of class 2, both size L
    scores = bootstrap_scores(table_of([(mask, mask) for mask in perfect]), 2, None, 40, seed=0)
    drawn_classes = [len(set(drawn.tolist())) for drawn in drawn_images(2, 40, seed=0)]
    assert set(drawn_classes) == {1, 2}
    assert scores["mIoU"].tolist() == [100 * count / 3 for count in drawn_classes]
    assert scores["L"].tolist() == [100.0] * 40
    assert np.isnan(scores["S"]).all()


def test_intervals_leave_out_resamples_without_the_score():
    found = percentile_intervals({"S": np.array([math.nan, 4, math.nan, 2]), "L": np.full(3, math.nan)})
    assert found["S"] == pytest.approx((2.05, 3.95))
    assert all(math.isnan(bound) for bound in found["L"])


def test_the_seed_decides():
    table = table_of(random_images(np.random.default_rng(4), 12, 3, 3))
    first, again, other = (bootstrap_intervals(table, 3, None, 20, seed).intervals for seed in (1, 1, 2))
    assert first["mIoU"] == again["mIoU"] != other["mIoU"]


# A population of as many kinds of images, all equally frequent: its scores are the truth that is estimated.
KINDS = 40
SAMPLE = 120
SAMPLES = 150


def population(seed):
    """Rows of each kind of image, for two methods on the same ground truth."""
    rng = np.random.default_rng(seed)
    images = random_images(rng, KINDS, 3, 3, size=30, ignore=0)
    others = [np.where(rng.random(truth.shape) < 0.3, truth, prediction) for truth, prediction in images]
    tables = (table_of(images), table_of([(truth, b) for (truth, _), b in zip(images, others, strict=True)]))
    return [
        [
            Rows(*(getattr(table, field)[table.image == kind] for field in Rows._fields))
            for kind in range(KINDS)
        ]
        for table in tables
    ]


def sample_table(kinds, drawn):
    rows = [kinds[kind]._replace(image=np.full(kinds[kind].pixels.size, i)) for i, kind in enumerate(drawn)]
    return make_table([f"n1/{i}.png" for i in range(len(drawn))], np.zeros(len(drawn)), rows)


def test_intervals_cover_the_truth_in_about_95_of_100_samples():
    """Of scores and of paired differences; 150 samples say so to about 5 points, at three deviations."""
    a, b = population(seed=0)
    truth_a, truth_b = (evaluate(sample_table(kinds, range(KINDS)), 3).scores for kinds in (a, b))
    rng = np.random.default_rng(1)
    names = ("mIoU", "mBIoU", "Acc", "FMeasure", "MS")
    covered = dict.fromkeys(names, 0)
    covered_differences = dict.fromkeys(names, 0)
    for seed in range(SAMPLES):
        drawn = rng.integers(KINDS, size=SAMPLE)
        tables = [sample_table(kinds, drawn) for kinds in (a, b)]
        resampled_a, resampled_b = (bootstrap_scores(table, 3, None, 120, seed) for table in tables)
        of_a = percentile_intervals(resampled_a)
        of_difference = percentile_intervals({name: resampled_a[name] - resampled_b[name] for name in names})
        for name in names:
            low, high = of_a[name]
            covered[name] += low <= truth_a[name] <= high
            low, high = of_difference[name]
            covered_differences[name] += low <= truth_a[name] - truth_b[name] <= high
    for name in names:
        assert 0.88 <= covered[name] / SAMPLES <= 0.995, (name, covered)
        assert 0.88 <= covered_differences[name] / SAMPLES <= 0.995, (name, covered_differences)


def method(images):
    return Method("predictions", (Run("predictions", None, table_of(images), None),))


def test_compare_draws_the_same_images_for_both():
    images = random_images(np.random.default_rng(5), 8, 3, 3)
    same = compare(method(images), method(images), 3, 50, seed=0)
    for low, high in same.bootstrap.intervals.values():
        assert math.isnan(low) or (low, high) == (0, 0)
    assert same.bootstrap.intervals["mIoU"] == (0, 0)
    assert not same.is_significant("mIoU")


def test_compare_intervals_are_those_of_the_slow_bootstrap():
    rng = np.random.default_rng(6)
    images = random_images(rng, 5, 2, 2, size=16)
    others = [(truth, rng.integers(0, 3, truth.shape)) for truth, _ in images]
    found = compare(method(images), method(others), 2, 30, seed=9)
    slow_a, slow_b = (slow_bootstrap(each, 2, None, 30, seed=9) for each in (images, others))
    for name in ("Acc", "mIoU", "mBIoU", "FMeasure"):
        differences = [a - b for a, b in zip(slow_a[name], slow_b[name], strict=True)]
        expected = (slow_percentile(differences, 2.5), slow_percentile(differences, 97.5))
        assert found.bootstrap.intervals[name] == pytest.approx(expected, abs=1e-11)
        assert found.differences[name] == found.a.scores[name] - found.b.scores[name]


def test_classes_that_gained_and_lost():
    truth = np.array([[1, 1, 2, 2, 3, 3, 4, 4]])
    a = np.array([[1, 1, 2, 0, 0, 0, 4, 4]])
    b = np.array([[1, 0, 2, 2, 0, 3, 4, 4]])
    found = compare(method([(truth, a)]), method([(truth, b)]), 4, 5, seed=0)
    assert found.class_differences().tolist() == [0, 50, -50, -50, 0]
    assert found.gained() == [1]
    assert found.lost() == [2, 3]


def test_compare_refuses_different_images():
    images = random_images(np.random.default_rng(7), 3, 2, 2)
    with pytest.raises(ValueError, match="different images"):
        compare(method(images), method(images[:2]), 2, 5, seed=0)


def test_a_score_outside_its_interval_is_explained():
    """Each of twelve labels is in one image: a resample lacks a third of them, and none has the score."""
    images = []
    for label in range(1, 13):
        truth = np.zeros((10, 10), int)
        truth[:4] = label
        images.append((truth, truth.copy()))
    table = table_of(images)
    evaluation, found = evaluate(table, 12, None), bootstrap_intervals(table, 12, None, 200, seed=0)
    outside = bootstrap.outside_intervals(evaluation.scores, found.intervals)
    assert "mIoU" in outside and "Acc" not in outside and "S" not in outside
    last = intervals_text(evaluation, found).splitlines()[-1]
    assert last.startswith("mIoU, mBIoU lie outside their own intervals: ")
    inside = Bootstrap(200, 0, {"Acc": (99.0, 100.0)})
    assert intervals_text(evaluation, inside).splitlines()[-1].startswith("(percentile bootstrap")


def test_groups_of_seeds_are_compared_by_their_means(monkeypatch):
    """Means over runs; each resample draws images, the same for all, and runs: held against plain loops."""
    rng = np.random.default_rng(5)
    truths = [truth for truth, _ in random_images(rng, 6, 3, 3)]

    def run_images():
        return [(truth, blobs(rng, *truth.shape, np.arange(4), ignore=0)) for truth in truths]

    of_a, of_b = [run_images() for _ in range(3)], [run_images() for _ in range(2)]
    a, b = (
        Method(name, tuple(Run(f"{name}{i}", None, table_of(images), None) for i, images in enumerate(runs)))
        for name, runs in (("a", of_a), ("b", of_b))
    )
    found = compare(a, b, 3, 20, seed=4)
    scores_a, scores_b = ([reference.scores(images, 3)["mIoU"] for images in runs] for runs in (of_a, of_b))
    assert found.a.scores["mIoU"] == pytest.approx(np.mean(scores_a), abs=1e-11)
    assert found.differences["mIoU"] == pytest.approx(np.mean(scores_a) - np.mean(scores_b), abs=1e-11)
    assert found.class_differences() == pytest.approx(
        np.mean([run.iou for run in found.runs_a], axis=0)
        - np.mean([run.iou for run in found.runs_b], axis=0)
    )
    picks = [
        np.random.default_rng([4, stream]).integers(len(runs), size=(20, len(runs)))
        for stream, runs in ((1, of_a), (2, of_b))
    ]
    expected = []
    for resample, images in enumerate(drawn_images(6, 20, 4)):
        means = [
            np.mean([reference.scores([runs[run][i] for i in images], 3)["mIoU"] for run in pick[resample]])
            for runs, pick in zip((of_a, of_b), picks, strict=True)
        ]
        expected.append(means[0] - means[1])
    assert found.bootstrap.intervals["mIoU"] == pytest.approx(np.percentile(expected, [2.5, 97.5]), abs=1e-9)
    one = compare(Method("a", a.runs[:1]), Method("b", b.runs[:1]), 3, 20, seed=4)
    twice = compare(Method("a", a.runs[:1] * 2), Method("b", b.runs[:1]), 3, 20, seed=4)
    assert one.bootstrap.intervals["mIoU"] == pytest.approx(twice.bootstrap.intervals["mIoU"], abs=1e-9)
