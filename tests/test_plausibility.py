"""Scores that are probably not what was meant: what is said of them, and what is refused."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import reference
from masksets import in_process, random_images, table_of, write_mask, write_pairs

from imagenets.classes import MODES
from imagenets.common.errors import InputError
from imagenets.scoring.counting import CountRequest, count_masks
from imagenets.scoring.matching import Matching, find_matching, read_matching
from imagenets.scoring.matching_record import with_method, write_record
from imagenets.scoring.plausibility import (
    absent_classes,
    cut_to_8_bits,
    doubts,
    painted_255,
    shifted_labels,
)
from imagenets.scoring.protocols import broken_rule, protocol_in


def object_in(label, ground=0):
    """One mask: an object of a label that fills a quarter."""
    labels = np.full((10, 10), ground)
    labels[:5, :5] = label
    return labels


def pairs(truths, change):
    """A table of masks of objects, and of what ``change`` makes of them."""
    return table_of([(object_in(label), change(object_in(label))) for label in truths])


def test_labels_cut_to_8_bits_are_told():
    truths = range(240, 300)
    cut = pairs(truths, lambda labels: labels % 256)
    assert "no prediction has a label above 255, but 44 of the 60" in cut_to_8_bits(cut, 300)
    assert cut_to_8_bits(cut, 200) is None, "with 200 clusters none can be larger"
    assert cut_to_8_bits(pairs(truths, lambda labels: labels), 300) is None
    assert cut_to_8_bits(pairs(range(250, 260), lambda labels: labels % 256), 300) is None, "four are few"


@pytest.mark.parametrize(
    ("name", "ground", "change", "undone"),
    [
        ("each label + 1", 1, lambda labels: labels - 1, lambda labels: labels + 1),
        (
            "each label + 1 but background",
            0,
            lambda labels: np.maximum(labels - 1, 0),
            lambda labels: np.where(labels > 0, labels + 1, 0),
        ),
        (
            "each label - 1",
            0,
            lambda labels: np.minimum(labels + 1, 4),
            lambda labels: np.maximum(labels - 1, 0),
        ),
    ],
)
def test_a_shift_by_one_is_told_with_the_score_that_it_hides(name, ground, change, undone):
    truths = [object_in(label, ground) for label in [2, 3, 4] * 3]
    images = [(truth, change(truth)) for truth in truths]
    after = reference.scores([(truth, undone(prediction)) for truth, prediction in images], 4)["mIoU"]
    before = reference.scores(images, 4)["mIoU"]
    said = f"({name}) the mIoU would be {after:.2f}, not {before:.2f}"
    assert said in shifted_labels(table_of(images), 4)
    assert shifted_labels(table_of([(truth, truth) for truth in truths]), 4) is None


def test_255_that_covers_too_much_is_told():
    def ignored(labels):
        labels[6:, :] = 255
        return labels

    painted = pairs(range(1, 40), ignored)
    said = "label 255 covers 40.0 % of the predictions' pixels, and class 255 0.0 %"
    assert said in painted_255(painted, None)
    assert painted_255(pairs([255] * 5, lambda labels: labels), None) is None, "it is a class"
    matching = np.arange(301)
    matching[255] = 7
    assert "and class 7 0.6 %" in painted_255(painted, matching)
    matching[255] = 0
    assert painted_255(painted, matching) is None, "a cluster that is background"
    assert painted_255(painted, np.arange(100)) is None


def test_classes_that_do_not_occur_are_counted():
    images = random_images(np.random.default_rng(3), 12, 3, 3)
    table, expected = table_of(images), reference.scores(images, 3)
    assert absent_classes(table, 3) is None
    assert absent_classes(table, 4).startswith("1 of 4 classes does not occur")
    said = doubts(table, 9, None)[0]
    assert "6 of 9 classes do not occur in these images and count as 0" in said
    occurring = f"over the labels that occur they are {expected['mIoU']:.2f} and {expected['mBIoU']:.2f}"
    assert said.endswith(occurring)


def request(folder, mode="300"):
    return CountRequest(folder / "gt", folder / "pred", MODES[mode])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda i, labels: np.where(labels, 301, 0), "only 301, N + 1"),
        (lambda i, labels: labels * 256, "all labels are multiples of 256"),
        (
            lambda i, labels: np.where(labels, 400, 0) if i == 3 else labels,
            "such labels in only 1 of 30 predictions",
        ),
        (lambda i, labels: np.where(labels, 301 + i, 0), "cluster ids need a matching: run match.py"),
    ],
)
def test_labels_out_of_range_are_told_by_what_is_seen(tmp_path, change, message):
    truths = [object_in(1 + i) for i in range(30)]
    write_pairs(tmp_path, [(truth, change(i, truth)) for i, truth in enumerate(truths)])
    with pytest.raises(InputError, match=r"is outside 0\.\.300") as caught:
        count_masks(request(tmp_path))
    assert message in str(caught.value)


def test_255_alone_is_told_in_predictions_and_ground_truth(tmp_path):
    images = [(object_in(1 + i), object_in(1 + i, 255)) for i in range(4)]
    write_pairs(tmp_path / "a", images)
    with pytest.raises(InputError, match="only 255, which other tools use for ignored pixels"):
        count_masks(request(tmp_path / "a", "50"))
    write_pairs(tmp_path / "b", [(prediction, truth) for truth, prediction in images])
    with pytest.raises(InputError, match="is 255 for ignored pixels"):
        count_masks(request(tmp_path / "b", "50"))


def test_swapped_folders_are_refused(tmp_path, monkeypatch):
    """Without a void pixel: clusters as ground truth, and the truth as predictions."""
    wnids = [f"n{i:08d}" for i in range(50)]
    path = tmp_path / "lists/categories/ImageNetS_categories_im50.txt"
    path.parent.mkdir(parents=True)
    path.write_text("\n".join(wnids))
    monkeypatch.setenv("IMAGENETS_LISTS", str(tmp_path / "lists"))
    images = [(object_in(i % 12 + 1), object_in(i)) for i in range(1, 13)]
    names = [f"{wnid}/a.png" for wnid in wnids[:12]]
    write_pairs(tmp_path / "wrong", images, names)
    with pytest.raises(InputError, match=r"in 0 % of the .* in 100 %: the folders are swapped"):
        count_masks(request(tmp_path / "wrong", "50"))
    write_pairs(tmp_path / "right", [pair[::-1] for pair in images], names)
    assert len(count_masks(request(tmp_path / "right", "50")).names) == 12


def test_masks_outside_class_folders_are_counted(tmp_path):
    write_pairs(tmp_path, [(object_in(1), object_in(1))])
    for place in ("a.png", "b.PNG", "n00000000/deeper/c.png", ".hidden/d/e.png"):
        write_mask(tmp_path / "x.png", object_in(1))
        (tmp_path / "gt" / place).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "x.png").rename(tmp_path / "gt" / place)
    warnings = []
    count_masks(request(tmp_path), warn=warnings.append)
    assert f"{tmp_path / 'gt'}: 3 masks not in <gt-dir>/<wnid>/<name>.png: not scored" in warnings
    (tmp_path / "names.txt").write_text("n00000000/image_0.png\n")
    warnings.clear()
    chosen = CountRequest(tmp_path / "gt", tmp_path / "pred", MODES["300"], names=tmp_path / "names.txt")
    count_masks(chosen, warn=warnings.append)
    assert not warnings


def test_the_method_of_a_matching_is_kept_beside_it(tmp_path):
    table = table_of(random_images(np.random.default_rng(0), 5, 3, 3))
    for method in ("image", "majority"):
        found = find_matching(table, method, 3, 3)
        path = tmp_path / f"{method}.json"
        path.write_text(found.text())
        assert with_method(read_matching(path, 3)).method is None
        write_record(path, found, table)
        assert with_method(read_matching(path, 3)).method == method == found.method


ONE_TO_ONE, MANY_TO_ONE, NOTHING = ({0: 0, 1: a, 2: b} for a, b in ((2, 1), (2, 2), (0, 0)))


@pytest.mark.parametrize(
    ("protocol", "matching", "broken"),
    [
        ("fully-unsupervised", None, "without a matching"),
        ("fully-unsupervised", MANY_TO_ONE, "several clusters to one class"),
        ("fully-unsupervised", ONE_TO_ONE, None),
        ("fully-unsupervised", NOTHING, None),
        ("distance-matching", ONE_TO_ONE, "has no matching"),
        ("distance-matching", None, None),
        ("semi-supervised", ONE_TO_ONE, "has no matching"),
        ("semi-supervised", None, None),
        *((protocol, matching, None) for protocol in ("free", None) for matching in (MANY_TO_ONE, None)),
    ],
)
def test_the_rule_of_a_protocol(protocol, matching, broken):
    found = broken_rule(protocol, matching and Matching.of(matching))
    assert broken in found if broken else found is None


def test_protocols_in_a_text():
    assert protocol_in("Fully unsupervised") == protocol_in("unsupervised") == "fully-unsupervised"
    assert protocol_in("semi-supervised, 1 %") == "semi-supervised"
    assert protocol_in("PASS") is None


def test_warnings_protocol_and_method_stand_in_the_scores_and_the_report(tmp_path):
    write_pairs(tmp_path, [(object_in(1 + i % 2), object_in(3 + i % 3)) for i in range(6)])
    common = ["--gt-dir", "gt", "--predict-dir", "pred", "--mode", "50", "--workers", "0"]
    match = in_process(
        "evaluation/match.py", *common, "--method", "majority", "--session-name", "m", cwd=tmp_path
    )
    assert match.returncode == 0
    options = ("--match", "m", "--protocol", "fully-unsupervised", "--quiet")
    results = ("--output", "s.json", "--report", "r.html")
    done = in_process("evaluation/evaluator.py", *common, *options, *results, cwd=tmp_path)
    scores = json.loads((tmp_path / "s.json").read_text())
    assert (scores["protocol"], scores["matching_method"]) == ("fully-unsupervised", "majority")
    assert [line.removeprefix("warning: ") for line in done.stderr.splitlines()] == scores["warnings"]
    assert any("several clusters to one class" in warning for warning in scores["warnings"])
    assert any("48 of 50 classes do not occur" in warning for warning in scores["warnings"])
    page = (tmp_path / "r.html").read_text()
    assert page.count("<strong>Warning:</strong>") == len(scores["warnings"]) == 3
    assert "wnid" not in done.stdout and done.stdout.startswith("6 images, mode 50"), "quiet"
    assert not math.isnan(scores["scores"]["mIoU"])
