"""What evaluator.py writes beside the scores: every image, the confusion matrix, where the run stands."""

from __future__ import annotations

import csv
import json
import math

import numpy as np
import pytest
import reference
from masksets import random_images, script, write_pairs

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
    done = evaluator(
        folder,
        *("--match", "m.json", "--output", "s.json", "--per-image", "new/i.csv", "--confusion", "c.npz"),
        *("--report", "r.html", "--bootstrap", 20),
    )
    assert done.returncode == 0, done.stderr
    by_name = dict(zip(names, images, strict=True))
    return folder, [(name, *by_name[name]) for name in sorted(names)], matching


def evaluator(folder, *arguments):
    masks = ("--gt-dir", "gt", "--predict-dir", "pred", "--mode", 50, "--workers", 0)
    return script("evaluation/evaluator.py", *masks, *arguments, cwd=folder)


def scores_of(folder):
    return json.loads((folder / "s.json").read_text())


def rows_of(folder):
    with (folder / "new/i.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def test_images_average_to_the_scores_of_the_run(run_folder):
    folder, images, _ = run_folder
    rows, scores = rows_of(folder), scores_of(folder)["scores"]
    assert list(rows[0]) == ["name", "mIoU", "FMeasure", "Acc", "pixels", "labels", "predicted"]
    assert [row["name"] for row in rows] == [name for name, *_ in images]
    for score in ("FMeasure", "Acc"):
        assert math.fsum(float(row[score]) for row in rows) / len(rows) == scores[score], "to the last digit"


def test_every_image_against_the_reference(run_folder):
    folder, images, matching = run_folder
    for row, (_, truth, prediction) in zip(rows_of(folder), images, strict=True):
        counts = truth != 1000
        labels = truth[counts]
        guesses = np.array([matching[int(k)] for k in prediction[counts]], int)
        assert row["pixels"] == str(labels.size)
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


def test_confusion_gives_every_iou_again(run_folder):
    folder, images, matching = run_folder
    with np.load(folder / "c.npz") as file:
        labels, pixels = file["labels"], file["pixels"]
    assert (labels.dtype, pixels.dtype, labels.tolist()) == (np.int64, np.int64, list(range(51)))
    assert pixels.shape == (51, 51)
    expected = np.zeros((51, 51), int)
    for _, truth, prediction in images:
        for label, guess in zip(truth.ravel().tolist(), prediction.ravel().tolist(), strict=True):
            if label != 1000:
                expected[label, matching[guess]] += 1
    assert (pixels == expected).all()
    both = np.diag(pixels)
    union = pixels.sum(axis=0) + pixels.sum(axis=1) - both
    iou = 100 * both / np.maximum(union, 1)
    result = scores_of(folder)
    assert [c["IoU"] for c in result["classes"]] == iou.tolist()
    assert math.fsum(iou) / 51 == result["scores"]["mIoU"]


def test_classes_tell_their_images(run_folder):
    folder, images, _ = run_folder
    expected = [sum(bool((truth == c).any()) for _, truth, _ in images) for c in range(51)]
    assert [c["images"] for c in scores_of(folder)["classes"]] == expected
    assert any(expected[1:])


def test_score_files_tell_what_they_may_be_held_against(run_folder, tmp_path):
    folder, images, _ = run_folder
    result = scores_of(folder)
    assert result["definition"] == 1 and len(result["images_sha256"]) == 64
    (folder / "fewer.txt").write_text("\n".join(name for name, *_ in images[1:]))
    (folder / "others.txt").write_text("\n".join(name for name, *_ in images[:-1]))
    for names in ("fewer", "others"):
        done = evaluator(
            folder, "--match", "m.json", "--names", f"{names}.txt", "--output", tmp_path / f"{names}.json"
        )
        assert done.returncode == 0, done.stderr
    done = script("evaluation/table.py", tmp_path / "fewer.json", tmp_path / "others.json")
    assert (done.returncode, "different images" in done.stderr) == (1, True)
    done = script("evaluation/table.py", folder / "s.json", tmp_path / "others.json")
    assert (done.returncode, "different number of images" in done.stderr) == (1, True)
    done = script("evaluation/table.py", folder / "s.json", folder / "s.json")
    assert (done.returncode, done.stderr) == (0, "")


def test_published_results_in_the_report(run_folder):
    folder, *_ = run_folder
    page = (folder / "r.html").read_text()
    assert "39.6" in page and "29.2" in page and "comparable only within a protocol" in page
    assert f"This run scored {IMAGES} images; the others are of all 752" in page
    (folder / "own.csv").write_text(
        "protocol,mode,method,split,mIoU\nsemi-supervised,50,<b>&ours,val,12.34\nfree,300,no,val,1\n"
    )
    done = evaluator(
        folder,
        *("--match", "m.json", "--report", "p.html", "--results", "own.csv"),
        *("--protocol", "semi-supervised", "--bootstrap", 5),
    )
    assert done.returncode == 0, done.stderr
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
    done = evaluator(folder, *arguments)
    assert (done.returncode, message in done.stderr) == (code, True), done.stderr
    assert not list(folder.glob("x.*"))


def test_confusion_of_919_classes_stays_small(tmp_path):
    from imagenets.reporting.confusions import confusion_npz
    from imagenets.scoring.contingency import Rows, make_table

    rng = np.random.default_rng(0)
    rows = 100_000
    columns = (
        np.zeros(rows),
        *rng.integers(0, 920, (2, rows)),
        *np.zeros((2, rows)),
        rng.integers(1, 9, rows),
    )
    table = make_table(["n1/0.png"], np.full(1, 919), [Rows(*columns)])
    assert len(confusion_npz(table, table.prediction.astype(np.int64), 919)) < 100_000_000
