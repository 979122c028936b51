"""evaluator.py --bootstrap and compare.py as a user runs them."""

from __future__ import annotations

import argparse
import json
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
from masksets import blobs, random_images, script, table_of, write_mask, write_pairs

from evaluation import compare as compare_script
from evaluation.compare import Side, method_names, side_argument
from imagenets.common.errors import InputError
from imagenets.scoring.bootstrap import bootstrap_intervals
from imagenets.scoring.metrics import SCORES


@pytest.fixture
def masks(tmp_path):
    """Good pairs in tmp_path/gt and tmp_path/pred, and a second method's in tmp_path/other."""
    rng = np.random.default_rng(0)
    images = random_images(rng, 6, 4, 4)
    names = write_pairs(tmp_path, images)
    for name, (truth, _) in zip(names, images, strict=True):
        write_mask(tmp_path / "other" / name, blobs(rng, *truth.shape, np.arange(5), ignore=0))
    # The table's images are in the order of the names.
    return tmp_path, [image for _, image in sorted(zip(names, images, strict=True), key=lambda pair: pair[0])]


def evaluator(folder, *arguments, workers=0):
    common = ["--gt-dir", "gt", "--predict-dir", "pred", "--mode", 50, "--workers", workers]
    return script("evaluation/evaluator.py", *common, *arguments, cwd=folder)


def compare(folder, *arguments):
    common = ["--gt-dir", "gt", "--mode", 50, "--workers", 0]
    return script("evaluation/compare.py", *common, *arguments, cwd=folder)


def test_evaluator_gives_intervals(masks):
    folder, images = masks
    done = evaluator(folder, "--bootstrap", 40, "--seed", 3, "--output", "s.json")
    assert done.returncode == 0, done.stderr
    result = json.loads((folder / "s.json").read_text())
    expected = bootstrap_intervals(table_of(images), 50, None, 40, seed=3).intervals
    assert tuple(result["intervals"]) == SCORES
    for name, interval in result["intervals"].items():
        assert interval == (None if np.isnan(expected[name][0]) else list(expected[name])), name
    assert result["bootstrap"] == {"resamples": 40, "seed": 3}
    low, high = expected["mIoU"]
    assert ["mIoU", f"{result['scores']['mIoU']:.2f}", f"{low:.2f}–{high:.2f}"] in [
        line.split() for line in done.stdout.splitlines()
    ]


def test_default_seed_is_0_and_workers_change_nothing(masks):
    folder, _ = masks
    for output, arguments in (("a.json", ["--seed", 0]), ("b.json", ["--no-cache"])):
        workers = 2 if "--no-cache" in arguments else 0
        done = evaluator(folder, "--bootstrap", 20, *arguments, "--output", output, workers=workers)
        assert done.returncode == 0, done.stderr
    assert (folder / "a.json").read_bytes() == (folder / "b.json").read_bytes()


def test_without_bootstrap_there_are_no_intervals(masks):
    folder, _ = masks
    done = evaluator(folder, "--output", "s.json")
    assert "interval" not in done.stdout
    assert "intervals" not in json.loads((folder / "s.json").read_text())


@pytest.mark.parametrize(
    "arguments",
    [["--seed", "1"], ["--bootstrap", "0"], ["--bootstrap", "ten"], ["--bootstrap", "9", "--seed", "-1"]],
)
def test_wrong_usage_of_bootstrap(masks, arguments):
    folder, _ = masks
    assert evaluator(folder, *arguments).returncode == 2


def test_compare_prints_and_saves(masks):
    folder, _ = masks
    matching = {str(cluster): cluster % 51 for cluster in range(51)}
    (folder / "results").mkdir()
    (folder / "results/identity.json").write_text(json.dumps(matching))
    done = compare(
        folder, "--a", "pred", "--b", "other,identity", "--bootstrap", 30, "--output", "results/c.json"
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("752") == 1  # one warning for one ground truth
    result = json.loads((folder / "results/c.json").read_text())
    (run,) = result["b"]["runs"]
    assert (result["b"]["name"], run["predict_dir"], run["match"]) == ("other", "other", "identity")
    assert result["bootstrap"] == {"resamples": 30, "seed": 0}
    scores = evaluator(folder, "--output", "s.json")
    assert scores.returncode == 0
    assert result["a"]["scores"] == json.loads((folder / "s.json").read_text())["scores"]
    for name in SCORES:
        a, b = (result[side]["scores"][name] for side in "ab")
        assert result["differences"][name] == (None if a is None or b is None else a - b)
    differences = [row["difference"] for row in result["classes"]]
    for listed, sign in (("gained", 1), ("lost", -1)):
        expected = [label for label, difference in enumerate(differences) if sign * difference > 0]
        expected.sort(key=lambda label: -sign * differences[label])
        assert result[listed] == expected[:10]
    assert result["gained"] or result["lost"]
    low, high = result["intervals"]["mIoU"]
    line = next(line for line in done.stdout.splitlines() if line.startswith("mIoU"))
    assert f"{result['differences']['mIoU']:+.2f}" in line
    assert f"{low:+.2f} to {high:+.2f}" in line
    assert line.endswith("*") == (low > 0 or high < 0)


def test_compare_needs_no_matching_for_a_folder_with_a_comma(masks):
    folder, _ = masks
    (folder / "pred").rename(folder / "pred,v2")
    done = compare(folder, "--a", "pred,v2", "--b", "other", "--bootstrap", 5)
    assert done.returncode == 0, done.stderr
    assert "pred,v2: pred,v2, class ids" in done.stdout


def test_compare_reports_the_bad_files_of_both(masks):
    folder, _ = masks
    first, second = sorted((folder / "gt").rglob("*.png"))[:2]
    (folder / "pred" / first.relative_to(folder / "gt")).unlink()
    (folder / "other" / second.relative_to(folder / "gt")).write_bytes(b"no png")
    done = compare(folder, "--a", "pred", "--b", "other", "--output", "c.json")
    assert done.returncode == 1
    assert "2 masks cannot be used" in done.stderr
    assert "no such prediction" in done.stderr
    assert "not a PNG" in done.stderr
    assert not (folder / "c.json").exists()


def test_compare_names_a_bad_ground_truth_once(masks):
    folder, _ = masks
    next((folder / "gt").rglob("*.png")).write_bytes(b"")
    done = compare(folder, "--a", "pred", "--b", "other")
    assert done.returncode == 1
    assert "1 mask cannot be used" in done.stderr


def test_compare_clusters(masks):
    folder, _ = masks
    name = sorted((folder / "gt").rglob("*.png"))[0].relative_to(folder / "gt")
    truth_shape = random_images(np.random.default_rng(0), 6, 4, 4)[0][0].shape
    assert str(name) == "n00000000/image_0.png"
    write_mask(folder / "other" / name, np.full(truth_shape, 60))
    (folder / "m.json").write_text(json.dumps({str(cluster): cluster % 51 for cluster in range(61)}))
    sides = ["--a", "pred", "--b", "other,m.json", "--bootstrap", 5]
    too_few = compare(folder, *sides)
    assert too_few.returncode == 1
    assert "match.py was given 60 clusters" in too_few.stderr
    assert compare(folder, *sides, "--clusters", 60).returncode == 0
    assert compare(folder, "--a", "pred", "--b", "other", "--clusters", 60).returncode == 2


@pytest.mark.parametrize(
    ("side", "message"),
    [("pred,none", "no such matching"), ("nowhere", "no such folder"), ("other,m.json", "not JSON")],
)
def test_compare_refuses(masks, side, message):
    folder, _ = masks
    (folder / "m.json").write_text("{")
    done = compare(folder, "--a", "pred", "--b", side)
    assert done.returncode == 1
    assert message in done.stderr


@pytest.mark.parametrize("arguments", [["--b", "other,"], ["--b", "other", "--output", "c.csv"], []])
def test_compare_wrong_usage(masks, arguments):
    folder, _ = masks
    assert compare(folder, "--a", "pred", *arguments).returncode == 2


def test_an_empty_path_is_not_the_working_folder(tmp_path):
    done = script("evaluation/compare.py", "--a", "", "--b", "b", "--gt-dir", "g", "--mode", 50, cwd=tmp_path)
    assert done.returncode == 2 and "--a: an empty path" in done.stderr


def test_sides_of_the_command_line(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for seed in (1, 2, 10):
        (tmp_path / f"runs/seed{seed}/validation").mkdir(parents=True)
    (tmp_path / "lr=0.1").mkdir()
    side = side_argument("PASS=runs/seed*/validation,pass-*")
    assert (side.name, side.matched) == ("PASS", True)
    assert side.runs == tuple((Path(f"runs/seed{i}/validation"), f"pass-{i}") for i in (1, 10, 2))
    assert side_argument("PASS=runs/seed1/validation,m") == Side(
        "PASS", ((Path("runs/seed1/validation"), "m"),)
    )
    assert side_argument("lr=0.1,m") == Side(None, ((Path("lr=0.1"), "m"),))
    assert side_argument("lr=0.1").runs == ((Path("lr=0.1"), None),)
    with pytest.raises(argparse.ArgumentTypeError, match="3 runs need a matching each"):
        side_argument("PASS=runs/seed*/validation,pass")
    with pytest.raises(InputError, match="PASS: no folder matches nothing"):
        side_argument("PASS=nothing*")
    named, bare = Side("PASS", ((Path("x"), None),)), Side(None, ((Path("runs/validation"), "m"),))
    assert method_names([named, bare]) == ["PASS", "validation"]
    other = Side(None, ((Path("pass/validation"), "m"),))
    assert method_names([bare, other]) == ["runs/validation", "pass/validation"]
    same = Side(None, ((Path("runs/validation"), "n"),))
    assert method_names([bare, same]) == ["runs/validation, m", "runs/validation, n"]
    assert method_names([bare, bare]) == ["runs/validation, m (1)", "runs/validation, m (2)"]


def test_groups_of_runs_with_their_names_on_the_page(masks, monkeypatch, capsys):
    folder, _ = masks
    monkeypatch.chdir(folder)
    shutil.copytree("pred", "ours/1")
    shutil.copytree("other", "ours/2")
    arguments = ["--a", "Ours $1=ours/*", "--b", "other", "--bootstrap", "10"]
    arguments += [
        "--output",
        "c.json",
        "--report",
        "c.html",
        "--gt-dir",
        "gt",
        "--mode",
        "50",
        "--workers",
        "0",
    ]
    monkeypatch.setattr(sys, "argv", ["compare.py", *arguments])
    compare_script.main()
    out = capsys.readouterr().out
    assert "Ours $1: ours/1, class ids" in out and "Ours $1: ours/2, class ids" in out
    assert "runs: 2 and 1" in out and "significant" in out and "percentage points" in out
    result = json.loads((folder / "c.json").read_text())
    assert [run["predict_dir"] for run in result["a"]["runs"]] == ["ours/1", "ours/2"]
    of_runs = [run["scores"]["mIoU"] for run in result["a"]["runs"]]
    assert result["a"]["scores"]["mIoU"] == pytest.approx(np.mean(of_runs))
    assert of_runs[1] == result["b"]["scores"]["mIoU"]
    page = (folder / "c.html").read_text()
    assert "Ours $1 and other compared" in page and ">sure<" not in page
    assert "Ours $1 better" in page and "Gained most with Ours $1" in page
