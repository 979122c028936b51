"""What the report is made of: image scores, confusions, matched clusters, overlays."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from masksets import random_images, table_of
from PIL import Image, ImageDraw

from imagenets.classes import ClassInfo
from imagenets.reporting.confusions import find_confusions, matched_clusters
from imagenets.reporting.image_scores import choose_images, image_label_ious, image_mean_iou
from imagenets.reporting.legend import Group, label_entries, with_legend
from imagenets.reporting.overlays import (
    DISAGREEMENT,
    GROUND_GRAY,
    disagreement_kinds,
    draw_panels,
    label_colours,
    oklab,
    palette,
    plain_ground,
)
from imagenets.reporting.pages import decimal, label_legend, names_of_folders, signed
from imagenets.scoring.matching import Matching

CLASSES, CLUSTERS = 6, 9


def slow_scores(truth, prediction):
    """IoU in percent, and the pixels of the ground truth and of the prediction, by label."""
    labels = sorted({*truth.tolist(), *prediction.tolist()})
    found = {}
    for label in labels:
        t, p = truth == label, prediction == label
        found[label] = (100 * (t & p).sum() / (t | p).sum(), t.sum(), p.sum())
    return found


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32))
def test_scores_confusions_and_clusters_are_those_of_the_pixels(seed):
    """Of random masks under a random matching; the last one is ignored altogether."""
    rng = np.random.default_rng(seed)
    images = [*random_images(rng, 5, CLASSES, CLUSTERS), (np.full((2, 3), 1000), np.ones((2, 3), int))]
    matching = {0: 0} | {k: int(rng.integers(CLASSES + 1)) for k in range(1, CLUSTERS + 1)}
    lookup = np.array([matching[k] for k in range(CLUSTERS + 1)])
    table = table_of(images)
    predicted = lookup[table.prediction]
    counted = [(truth[truth != 1000], clusters[truth != 1000]) for truth, clusters in images]

    labels = image_label_ious(table, predicted)
    mean = image_mean_iou(labels, len(images))
    for i, (truth, clusters) in enumerate(counted):
        expected = slow_scores(truth, lookup[clusters])
        entries = labels.image == i
        assert labels.label[entries].tolist() == list(expected)
        columns = (labels.iou, labels.truth, labels.prediction)
        found = np.stack([column[entries] for column in columns], axis=1)
        assert found == pytest.approx(np.reshape(list(expected.values()), (-1, 3)))
        ious = [iou for iou, *_ in expected.values()]
        assert mean[i] == pytest.approx(np.mean(ious)) if ious else np.isnan(mean[i])

    pairs = Counter(
        (t, p)
        for truth, clusters in counted
        for t, p in zip(truth.tolist(), lookup[clusters].tolist(), strict=True)
    )
    wrong = sorted(((n, t, p) for (t, p), n in pairs.items() if t != p), key=lambda c: (-c[0], *c[1:]))
    found = find_confusions(table, predicted)
    assert list(zip(found.pixels, found.ground_truth, found.prediction, strict=True)) == wrong

    clusters = matched_clusters(table, Matching.of(matching | {CLUSTERS + 2: 1, 70_000: 1}), CLASSES)
    assert [match.cluster for match in clusters] == [*range(1, CLUSTERS + 1), CLUSTERS + 2]
    for match in clusters:
        on = [truth[clusters == match.cluster] for truth, clusters in counted]
        under = Counter(np.concatenate(on).tolist())
        assert (match.label, match.size) == (matching.get(match.cluster, 1), sum(under.values()))
        assert match.mostly == (min(under, key=lambda c: (-under[c], c)) if under else None)
        both = [o.size > 0 and match.label in truth for o, (truth, _) in zip(on, counted, strict=True)]
        shared = (sum(both), under[match.label]) if match.label else (0, 0)
        assert (match.images, match.pixels) == shared


def test_chosen_images():
    mean = np.array([50.0, 90.0, np.nan, 10.0, 90.0 + 1e-12, 10.0, 70.0])
    chosen = choose_images(mean, 0, count=3)
    # Equal ones by name: 1 before 4 though a rounding error puts 4 above; 3 before 5.
    assert list(chosen) == ["Worst", "Best", "Random"]
    assert (chosen["Best"], chosen["Worst"]) == ([1, 4, 6], [3, 5, 0])
    assert len(set(chosen["Random"])) == 3 and sorted(chosen["Random"]) == chosen["Random"]
    assert chosen == choose_images(mean, 0, count=3)
    drawn = {tuple(choose_images(mean, seed, count=3)["Random"]) for seed in range(30)}
    assert drawn > {tuple(chosen["Random"])}
    every = choose_images(mean, 1, count=99)
    assert all(set(images) == {0, 1, 3, 4, 5, 6} for images in every.values())
    assert choose_images(np.array([np.nan]), 0, count=3)["Random"] == []


def test_palette_is_well_separated():
    colours = palette()
    assert colours.shape == (919, 3) and len({tuple(c) for c in colours.tolist()}) == 919
    lab = oklab(colours)
    # A just noticeable difference is about 0.02. Related classes have ids close together: ten in a row are
    # told apart.
    for count, least, in_a_row in ((919, 0.02, 0.045), (300, 0.035, 0.045), (50, 0.075, 0.14)):
        distance = np.linalg.norm(lab[:count, None] - lab[None, :count], axis=-1)
        assert distance[~np.eye(count, dtype=bool)].min() > least
        assert min(np.diag(distance, step).min() for step in range(1, 11)) > in_a_row
    assert np.hypot(lab[:, 1], lab[:, 2]).min() > 0.07, "no class looks gray, as ignored pixels do"
    assert lab[:, 0].min() > 0.5 and lab[:, 0].max() < 0.9, "none is nearly black, or nearly white"


def test_oklab_of_known_colours():
    # Source: the table of the colour space's own description.
    found = oklab(np.array([[255, 255, 255], [255, 0, 0]]))
    assert found == pytest.approx(np.array([[1, 0, 0], [0.628, 0.225, 0.126]]), abs=1e-3)


def test_disagreement_of_every_kind():
    truth = np.array([[0, 1, 1, 1, 0, 1000, 1000, 1000]])
    prediction = np.array([[0, 1, 0, 2, 2, 0, 2, 1000]])
    kinds = ["", *DISAGREEMENT]
    found = [kinds[k] for k in disagreement_kinds(truth, prediction)[0]]
    right, missed, wrong, invented = DISAGREEMENT
    assert found == ["", right, missed, wrong, invented, "", "", ""]


def test_panels():
    picture = np.random.default_rng(0).integers(0, 256, (40, 60, 3), np.uint8)
    truth, prediction = np.zeros((40, 60), int), np.zeros((40, 60), int)
    truth[5:20, 5:25], prediction[5:20, 30:50] = 7, 7
    truth[30:38, 5:25] = 1000
    panels = draw_panels(picture, truth, prediction)
    assert (panels.picture == picture).all()
    gray = np.asarray(Image.fromarray(picture).convert("L").convert("RGB")).astype(int)
    for panel, mask in ((panels.ground_truth, truth), (panels.prediction, prediction)):
        assert abs(panel[mask == 0] - gray[mask == 0]).max() <= 1, "background: the picture in gray"
    colour = label_colours(np.array(7))
    blended = 0.7 * gray[12, 15] + 0.3 * colour
    assert panels.ground_truth[12, 15] == pytest.approx(blended, abs=1), "inside: the picture shows"
    assert (panels.ground_truth[5, 15] == colour).all(), "outline: opaque"
    assert (panels.prediction[5, 40] == colour).all(), "the same class, the same colour"
    missed, invented = DISAGREEMENT["missed (background predicted)"], list(DISAGREEMENT.values())[3]
    assert tuple(panels.disagreement[5, 15]) == missed and tuple(panels.disagreement[5, 40]) == invented
    panels = draw_panels(plain_ground(40, 60), truth, prediction, plain=True)
    blended = 0.25 * GROUND_GRAY + 0.75 * colour
    for panel, column in ((panels.ground_truth, 15), (panels.prediction, 40)):
        assert panel[12, column] == pytest.approx(blended, abs=1), "no picture to be seen below"
    for panel in (panels.ground_truth, panels.disagreement):
        tones, counts = np.unique(panel[truth == 1000], axis=0, return_counts=True)
        assert len(tones) == 2 and min(counts) > 0.4 * sum(counts), "stripes"
        assert (tones == tones[:, :1]).all() and GROUND_GRAY not in tones, "of gray, on what is ignored"
    assert (panels.prediction[truth == 1000] == GROUND_GRAY).all()


def test_an_outline_is_a_fraction_of_the_side_wide():
    for side, width in ((40, 1), (360, 2), (1000, 6)):
        truth = np.zeros((side, side), int)
        truth[side // 4 : side // 2, side // 4 : side // 2] = 7
        row = draw_panels(plain_ground(side, side), truth, truth).ground_truth[3 * side // 8]
        assert (row == label_colours(np.array(7))).all(axis=-1).sum() == 2 * width, "left and right"


def entries(count):
    return [(f"class {i}", (i, 0, 0)) for i in range(1, count + 1)]


@pytest.mark.parametrize(("width", "size"), [(3, 11), (60, 11), (500, 11), (3, 25)])
@pytest.mark.parametrize("name", ["cat", "a name that is much too long for a line below a picture " * 4])
def test_legend_fits(width, size, name):
    """However small the picture: all that is drawn keeps a margin to the right, names are shortened."""
    picture = Image.new("RGB", (width, 40), (1, 2, 3))
    page = np.asarray(with_legend(picture, [Group("truth:", [(name, (9, 9, 9)), *entries(2)])], size))
    assert page.shape[1] == max(width, 18 * size)
    assert (page[:40, :width] == (1, 2, 3)).all(), "the picture is as it was"
    assert (page[40:, -4:] == 255).all() and (page[40:] == (9, 9, 9)).all(axis=-1).any()
    assert (page[-2:] == 255).all(), "nothing is cut at the bottom"


def test_long_legends_say_how_many_more_there_are(monkeypatch):
    drawn = []
    monkeypatch.setattr(ImageDraw.ImageDraw, "text", lambda *arguments, **_: drawn.append(arguments[2]))
    with_legend(Image.new("RGB", (300, 40)), [Group("truth:", entries(14)), Group("other:", entries(12))], 11)
    with_legend(Image.new("RGB", (300, 40)), [Group("none:", []), Group("", [])], 11)
    assert with_legend(Image.new("RGB", (30, 40)), [Group("", [])], 11).size == (30, 40)
    named = [text for text, _ in entries(12)]
    assert drawn == ["truth:", *named, "and 2 more", "other:", *named, "none:", "none"]


def test_legend_names_labels_by_size():
    labels = np.array([[0, 0, 0, 0, 1000, 1000], [7, 3, 3, 3, 5, 5]])
    assert label_entries(labels, str) == [(str(i), tuple(label_colours(np.array(i)))) for i in (3, 5, 7)]


def test_legends_of_a_page_have_a_side_each():
    classes = [ClassInfo(i, None, f"class {i}", None) for i in range(10)]
    labels, pixels = np.arange(10), np.array([5, 0, 9, 1, 2, 3, 4, 6, 7, 0])
    legend = label_legend("prediction", classes, labels, pixels, dict.fromkeys(range(10), 12.5))
    assert [entry.name for entry in legend.entries] == [f"class {i}" for i in (2, 8, 7, 0, 6, 5)]
    assert (legend.title, legend.more, legend.entries[0].iou) == ("prediction", 2, 12.5)


def test_names_of_folders():
    classes = [
        ClassInfo(0, None, "background", None),
        ClassInfo(1, "n1", "cat", None, ("n2",)),
        ClassInfo(2, "dog", "dog", None),
        ClassInfo(3, "n3", "", None),
    ]
    assert names_of_folders(classes) == {"n1": "cat", "n2": "cat"}


def test_labels_beyond_the_palette():
    prediction = np.array([[0, 65_535]])
    beyond = draw_panels(plain_ground(1, 2), np.zeros((1, 2), int), prediction).prediction
    assert (beyond[0, 1] == palette()[65_534 % 919]).all()


def test_percentages_and_differences_as_a_page_writes_them():
    values = (np.nan, 0.0, 0.004, -0.004, 1.234, -12.345)
    assert list(map(decimal, values[:5])) == ["–", "0.00", "0.00", "-0.00", "1.23"]
    assert list(map(signed, values)) == ["–", "0.00", "0.00", "0.00", "+1.23", f"−{12.345:.2f}"]
    assert (signed(0.006), signed(-0.006)) == ("+0.01", "−0.01")
