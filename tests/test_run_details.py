"""What evaluator.py writes beside the scores: every image, the confusion matrix, where the run stands."""

from __future__ import annotations

import csv
import json
import math

import numpy as np
import pytest
import reference
from helpers.pages import table_of_noise
from masksets import in_process, random_images, write_pairs

from imagenets.reporting.confusions import confusion_npz

IMAGES = 12


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory):
    """Twelve pairs, one of them ignored altogether, scored with a matching; and everything asked for."""
    folder = tmp_path_factory.mktemp("run")
    images = random_images(np.random.default_rng(1), IMAGES, 6, 9)
    images[4][0][:] = 1000
    names = write_pairs(folder, images)
    matching = {cluster: cluster * 7 % 10 for cluster in range(51)}
    (folder / "m.json").write_text(json.dumps(matching))
    evaluator(
        folder,
        *("--match", "m.json", "--output", "s.json", "--per-image", "new/i.csv", "--confusion", "c.npz"),
        *("--report", "r.html", "--bootstrap", 20),
    )
    by_name = dict(zip(names, images, strict=True))
    return folder, [(name, *by_name[name]) for name in sorted(names)], matching


def evaluator(folder, *arguments, code=0):
    masks = ("--gt-dir", "gt", "--predict-dir", "pred", "--mode", 50, "--workers", 0)
    done = in_process("evaluation/evaluator.py", *masks, *arguments, cwd=folder)
    assert done.returncode == code, done.stderr
    return done


def scores_of(folder):
    return json.loads((folder / "s.json").read_text())


def test_every_image_against_the_reference(run_folder):
    folder, images, matching = run_folder
    with (folder / "new/i.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == ["name", "mIoU", "FMeasure", "Acc", "pixels", "labels", "predicted"]
    for row, (name, truth, prediction) in zip(rows, images, strict=True):
        counts = truth != 1000
        labels = truth[counts]
        guesses = np.array([matching[int(k)] for k in prediction[counts]], int)
        assert (row["name"], row["pixels"]) == (name, str(labels.size))
        assert row["labels"] == " ".join(map(str, np.unique(labels)))
        assert row["predicted"] == " ".join(map(str, np.unique(guesses)))
        assert float(row["FMeasure"]) == 100 * reference.fmeasure(truth, prediction, matching)
        assert float(row["Acc"]) == 100 * reference.correct(truth, prediction, matching)
        ious = [
            np.sum((labels == c) & (guesses == c)) / np.sum((labels == c) | (guesses == c))
            for c in np.union1d(labels, guesses)
        ]
        if ious:
            assert float(row["mIoU"]) == pytest.approx(100 * np.mean(ious), rel=1e-14)
        else:
            assert row["mIoU"] == ""
    for score in ("FMeasure", "Acc"):
        mean = math.fsum(float(row[score]) for row in rows) / len(rows)
        assert mean == scores_of(folder)["scores"][score], "to the last digit"


def test_every_iou_follows_from_the_confusions(run_folder):
    folder, images, matching = run_folder
    with np.load(folder / "c.npz") as file:
        labels, pixels = file["labels"], file["pixels"]
    assert (labels.dtype, pixels.dtype, labels.tolist()) == (np.int64, np.int64, list(range(51)))
    expected = np.zeros((51, 51), int)
    for _, truth, prediction in images:
        for label, guess in zip(truth.ravel().tolist(), prediction.ravel().tolist(), strict=True):
            if label != 1000:
                expected[label, matching[guess]] += 1
    assert np.array_equal(pixels, expected)
    both = np.diag(pixels)
    union = pixels.sum(axis=0) + pixels.sum(axis=1) - both
    iou = 100 * both / np.maximum(union, 1)
    result = scores_of(folder)
    assert [c["IoU"] for c in result["classes"]] == iou.tolist()
    assert math.fsum(iou) / 51 == result["scores"]["mIoU"]
    in_images = [sum(bool((truth == c).any()) for _, truth, _ in images) for c in range(51)]
    assert [c["images"] for c in result["classes"]] == in_images and any(in_images[1:])


def test_score_files_say_which_may_be_compared(run_folder, tmp_path):
    folder, images, _ = run_folder
    result = scores_of(folder)
    assert result["definition"] == 1 and len(result["images_sha256"]) == 64
    for name, kept in (("fewer", images[1:]), ("others", images[:-1])):
        (folder / "names.txt").write_text("\n".join(name for name, *_ in kept))
        output = ("--output", tmp_path / f"{name}.json")
        evaluator(folder, "--match", "m.json", "--names", "names.txt", *output)
    for first, second, code, message in (
        (tmp_path / "fewer.json", tmp_path / "others.json", 1, "different images"),
        (folder / "s.json", tmp_path / "others.json", 1, "different number of images"),
        (folder / "s.json", folder / "s.json", 0, ""),
    ):
        done = in_process("evaluation/table.py", first, second)
        assert (done.returncode, message in done.stderr) == (code, True)
    assert done.stderr == ""


def test_published_results_in_the_report(run_folder):
    folder, *_ = run_folder
    page = (folder / "r.html").read_text()
    assert "39.6" in page and "29.2" in page and "comparable only within a protocol" in page
    assert f"This run scored {IMAGES} images; the others are of all 752" in page
    (folder / "own.csv").write_text(
        "protocol,mode,method,split,mIoU\nsemi-supervised,50,<b>&ours,val,12.34\nfree,300,no,val,1\n"
    )
    evaluator(
        folder,
        *("--match", "m.json", "--report", "p.html", "--results", "own.csv"),
        *("--protocol", "semi-supervised", "--bootstrap", 5),
    )
    page = (folder / "p.html").read_text()
    assert "&lt;b&gt;&amp;ours" in page and "<b>" not in page and "12.34" in page and "39.6" not in page
    assert "No result of it is published for this mode" in page


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (("--per-image", "i.txt"), 2, "--per-image i.txt: must end in .csv"),
        (("--confusion", "c.csv"), 2, "--confusion c.csv: must end in .npz"),
        (("--per-image", "x.csv", "--output", "x.csv"), 2, "two results would go to the same file"),
        (("--results", "gt/none.csv"), 2, "--results goes with --report"),
        (("--report", "x.html", "--results", "none.csv"), 1, "none.csv: no such file"),
        (("--per-image", "gt"), 2, "must end in .csv"),
    ],
)
def test_refusals(run_folder, arguments, code, message):
    folder, *_ = run_folder
    assert message in evaluator(folder, *arguments, code=code).stderr
    assert not list(folder.glob("x.*"))


def test_confusion_of_919_classes_stays_small():
    table = table_of_noise(np.random.default_rng(0))
    assert len(confusion_npz(table, table.prediction.astype(np.int64), 919)) < 100_000_000
