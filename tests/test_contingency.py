"""The compiled pass over a pair of masks against counting pixel by pixel."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
import reference
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from masksets import blobs, write_pairs

from imagenets.masks import boundary_distance, labels_to_rgb
from imagenets.scoring import run_length as runs
from imagenets.scoring.contingency import count_pair, count_pairs
from imagenets.scoring.pairs import find_pairs


def counted(truth, prediction, distance=None):
    rows = count_pair(
        runs.label_runs(labels_to_rgb(truth)),
        runs.label_runs(labels_to_rgb(prediction)),
        7,
        distance or boundary_distance(*truth.shape),
    )
    assert set(rows.image.tolist()) <= {7}
    keys = zip(*(column.tolist() for column in rows[1:5]), strict=True)
    result = dict(zip(keys, rows.pixels.tolist(), strict=True))
    assert len(result) == rows.pixels.size, "a row is listed twice"
    return result


def counted_slowly(truth, prediction):
    kinds = zip(
        truth.ravel().tolist(),
        prediction.ravel().tolist(),
        reference.boundary(truth).ravel().tolist(),
        reference.boundary(prediction).ravel().tolist(),
        strict=True,
    )
    return {kind: n for kind, n in Counter(kinds).items() if kind[0] != 1000}


LABELS = st.sampled_from([0, 1, 2, 255, 256, 919, 1000, 65535])
SHAPES = st.tuples(st.integers(1, 40), st.integers(1, 40))


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_any_small_mask(data):
    shape = data.draw(SHAPES)
    truth, prediction = (data.draw(hnp.arrays(np.int64, shape, elements=LABELS, fill=LABELS)) for _ in "ab")
    assert counted(truth, prediction) == counted_slowly(truth, prediction)


@settings(max_examples=80, deadline=None)
@given(st.integers(0, 2**32), st.integers(1, 110), st.integers(1, 110))
def test_masks_of_shapes(seed, height, width):
    rng = np.random.default_rng(seed)
    truth, prediction = (blobs(rng, height, width, [1, 2, 300]) for _ in "ab")
    assert counted(truth, prediction) == counted_slowly(truth, prediction)


@pytest.mark.parametrize("shape", [(1, 1), (1, 50), (50, 1), (2, 2), (3, 3), (5, 400), (400, 5), (180, 180)])
def test_one_label_has_a_boundary_only_at_the_image_edge(shape):
    mask = np.full(shape, 3)
    assert counted(mask, mask) == counted_slowly(mask, mask)


def test_noise_takes_the_sparse_path_with_the_same_counts_and_leaves_the_scratch_clean(monkeypatch):
    rng = np.random.default_rng(0)
    truth, prediction = rng.integers(0, 1001, (60, 70)), rng.integers(0, 65536, (60, 70))
    dense = counted(truth, prediction)
    assert dense == counted_slowly(truth, prediction)
    assert (runs._LOOKUP == -1).all()
    monkeypatch.setattr(runs, "_DENSE_CELLS", 0)
    assert counted(truth, prediction) == dense


@pytest.mark.parametrize("shape", [(70_000, 3), (3, 70_000)])
def test_tall_and_wide_images_count_depth_without_overflow(shape):
    mask = np.ones(shape, np.int64)
    kinds = counted(mask, mask, distance=1)
    assert sum(kinds.values()) == mask.size
    assert sum(n for kind, n in kinds.items() if not kind[2]) == (shape[0] - 2) * (shape[1] - 2)


@pytest.mark.parametrize("workers", [0, 2])
def test_pass_over_files_counts_every_pixel_that_is_not_ignored(tmp_path, workers):
    rng = np.random.default_rng(5)
    shapes = rng.integers(1, 60, (37, 2))
    images = [(blobs(rng, *shape, [1, 2]), blobs(rng, *shape, [1, 2], ignore=0)) for shape in shapes]
    images[3][0][:] = 1000
    write_pairs(tmp_path, images, [f"n1/{i:02d}.png" for i in range(37)])
    table, problems = count_pairs(find_pairs(tmp_path / "gt", tmp_path / "pred"), workers)
    assert not problems
    for i, (truth, prediction) in enumerate(images):
        assert table.names[i] == f"n1/{i:02d}.png"
        rows = table.image == i
        assert table.pixels[rows].sum() == (truth != 1000).sum()
        assert table.largest_prediction[i] == prediction.max()
        for label in np.unique(truth[truth != 1000]):
            assert table.pixels[rows & (table.ground_truth == label)].sum() == (truth == label).sum()
