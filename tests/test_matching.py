"""Matchings against trying every assignment."""

from __future__ import annotations

import hashlib
import json

import numpy as np
import pytest
import reference
from hypothesis import given, settings
from hypothesis import strategies as st
from masksets import random_images, table_of

from imagenets.common.errors import InputError
from imagenets.scoring import matching as matching_module
from imagenets.scoring.contingency import ContingencyTable
from imagenets.scoring.matching import (
    METHODS,
    Matching,
    class_lookup,
    find_matching,
    overlapping_pixels,
    read_matching,
    shared_images,
    shared_with_class,
)

CASES = given(st.integers(0, 2**32), st.integers(1, 8), st.integers(1, 5), st.integers(1, 7))


@settings(max_examples=100, deadline=None)
@CASES
def test_counts_and_matchings_are_those_of_trying_all(seed, count, classes, clusters):
    images = random_images(np.random.default_rng(seed), count, classes, clusters, size=12)
    table = table_of(images)
    shared = reference.shared_images(images, classes, clusters)
    overlap = reference.overlapping_pixels(images, classes, clusters)
    assert (shared_images(table, classes, clusters).toarray() == shared).all()
    assert (overlapping_pixels(table, classes, clusters).toarray() == overlap).all()
    for method, counts in (("image", (shared, overlap)), ("pixel", (overlap,))):
        weights = [
            [tuple(map(int, cell)) for cell in zip(*rows, strict=True)] for rows in zip(*counts, strict=True)
        ]
        found = find_matching(table, method, classes, clusters)
        by_class = shared_with_class(table, found, classes)
        totals = (by_class.images.sum(), by_class.pixels.sum())
        assert totals[-len(counts) :] == reference.best_assignment(weights)
        assert_one_to_one(found, classes, clusters)
    overlap[:, 0] = 0
    found = find_matching(table, "majority", classes, clusters)
    assert found.classes.tolist() == [int(np.argmax(row)) for row in overlap]


def assert_one_to_one(found, classes, clusters):
    assert found.classes.size == clusters + 1
    assert found.classes[0] == 0
    matched = found.classes[found.classes > 0].tolist()
    assert len(matched) == len(set(matched)) == min(classes, clusters)


def test_majority_takes_the_smallest_id_on_a_tie():
    table = table_of([(np.array([[3, 2, 2, 3]]), np.array([[1, 1, 1, 1]]))])
    assert find_matching(table, "majority", 3, 1).classes.tolist() == [0, 2]


def test_occurring_in_the_same_image_is_enough_without_overlap():
    images = [(np.array([[1, 0]]), np.array([[0, 2]]))]
    assert find_matching(table_of(images), "image", 2, 2).classes[2] == 1


def test_cluster_1000_is_a_cluster_like_any_other():
    images = [(np.array([[1, 1, 2]]), np.array([[1000, 1000, 7]]))]
    found = find_matching(table_of(images), "pixel", 2, 1000)
    assert (found.classes[1000], found.classes[7]) == (1, 2)


def test_many_clusters_leave_the_rest_at_zero():
    rng = np.random.default_rng(0)
    truth, prediction = rng.integers(0, 3, (90, 90)), rng.integers(0, 65_536, (90, 90))
    found = find_matching(table_of([(truth, prediction)]), "image", 2, 65_535)
    assert_one_to_one(found, 2, 65_535)


def test_image_times_labels_above_32_bits():
    """50,000 images of 65,535 clusters: the last image and its labels tell no other apart, in any NumPy."""
    images = 50_000
    image = np.arange(images, dtype=np.int32)
    labels = np.full(images, 65_535, np.uint16)
    truth = (image % 900 + 1).astype(np.uint16)
    flags = np.zeros(images, bool)
    pixels = np.full(images, 10**6, np.int64)
    names = tuple(f"n1/{i}.png" for i in range(images))
    table = ContingencyTable(names, labels.astype(np.int32), image, truth, labels, flags, flags, pixels)
    shared = shared_images(table, 919, 65_535)
    assert shared[65_535:].toarray().ravel()[1:901].tolist() == np.bincount(truth)[1:].tolist()
    assert shared.sum() == images
    overlap = overlapping_pixels(table, 919, 65_535)
    assert overlap.sum() == images * 10**6 > 2**32


def test_weights_too_large_for_exact_sums_are_refused(monkeypatch):
    monkeypatch.setattr(matching_module, "_EXACT", 10)
    with pytest.raises(InputError, match="too many pixels"):
        find_matching(table_of([(np.ones((5, 5), int), np.ones((5, 5), int))]), "image", 1, 1)


def test_file_round_trip(tmp_path):
    path = tmp_path / "m.json"
    path.write_text(Matching(np.array([0, 3, 1, 0])).text())
    assert json.loads(path.read_text()) == {"0": 0, "1": 3, "2": 1, "3": 0}
    matching = read_matching(path, 3)
    table = table_of([(np.array([[1, 1]]), np.array([[2, 1]]))])
    assert matching.for_table(table).tolist() == [0, 3, 1, 0]
    assert matching.text() == path.read_text()
    assert matching.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()


def test_a_matching_may_hold_only_some_clusters(tmp_path):
    matching = Matching.of({0: 0, 2: 5, 70_000: 3})
    assert matching.clusters == 70_000
    assert matching.lacking(np.array([[2, 1], [70_000, 0], [1, 65_535]])) == [1, 65_535]
    assert class_lookup(matching)[[0, 1, 2, 65_535]].tolist() == [0, 0, 5, 0]
    assert class_lookup(None).tolist() == list(range(65_536))
    assert json.loads(matching.text()) == {"0": 0, "2": 5, "70000": 3}
    table = table_of([(np.array([[1, 1, 1]]), np.array([[2, 1, 7]]))])
    with pytest.raises(InputError, match=r"2 clusters .*\n  cluster 2\n  cluster 7"):
        Matching.of({0: 0, 1: 1}, tmp_path / "m.json").for_table(table)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(("truth", "prediction"), [(1, 3), (3, 1)])
def test_labels_beyond_the_ranges_are_named_and_never_counted_in_the_next_image(method, truth, prediction):
    images = [(np.array([[1]]), np.array([[1]])), (np.array([[truth]]), np.array([[prediction]]))]
    with pytest.raises(ValueError, match=r"of n1/1.png: label 3 is outside 0..2"):
        find_matching(table_of(images), method, 2, 2)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "not JSON"),
        ("[0, 1]", "not a matching"),
        ("{}", "not a matching"),
        ('"x"', "not a matching"),
        ('{"0": 0, "1": 51}', "51 is no class in 0..50"),
        ('{"0": 0, "1": -1}', "-1 is no class"),
        ('{"0": 0, "1": 2.0}', "2.0 is no class"),
        ('{"0": 0, "1": true}', "True is no class"),
        ('{"0": 0, "1": null}', "None is no class"),
        ('{"0": 0, "01": 1}', "'01' is no cluster id"),
        ('{"0": 0, "x": 1}', "'x' is no cluster id"),
        ('{"0": 0, "²": 1}', "'²' is no cluster id"),
        ('{"0": 0, "1": 1, "1": 2}', "more than once"),
        ("\udcff", "not JSON"),
        ('{"0": ' + "9" * 5000 + "}", "not JSON"),
        ('{"' + "9" * 5000 + '": 0}', "is no cluster id"),
    ],
)
def test_bad_matching_files_are_named(tmp_path, content, message):
    path = tmp_path / "m.json"
    path.write_bytes(content.encode(errors="surrogateescape"))
    with pytest.raises(InputError) as error:
        read_matching(path, 50)
    assert message in str(error.value)
    assert str(path) in str(error.value)
