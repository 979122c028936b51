"""evaluator.py --bootstrap and compare.py as a user runs them."""

from __future__ import annotations

import argparse
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from masksets import blobs, in_process, random_images, table_of, write_mask, write_pairs

from evaluation.compare import Side, method_names, side_argument
from imagenets.common.errors import InputError
from imagenets.scoring.bootstrap import bootstrap_intervals
from imagenets.scoring.metrics import SCORES

COMMON = ("--gt-dir", "gt", "--mode", 50, "--workers", 0)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Good pairs in gt and pred, and a second method's predictions in other."""
    rng = np.random.default_rng(0)
    images = random_images(rng, 6, 4, 4)
    for name, (truth, _) in zip(write_pairs(tmp_path, images), images, strict=True):
        write_mask(tmp_path / "other" / name, blobs(rng, *truth.shape, np.arange(5), ignore=0))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def evaluator(*arguments):
    done = in_process("evaluation/evaluator.py", *COMMON, "--predict-dir", "pred", *arguments)
    assert done.returncode == 0, done.stderr
    return done


def compare(*arguments, a="pred", b="other", status=0):
    done = in_process("evaluation/compare.py", *COMMON, "--a", a, "--b", b, *arguments)
    assert done.returncode == status, done.stderr
    return done


def read(path):
    return json.loads(Path(path).read_text())


def test_evaluator_gives_intervals(folder):
    done = evaluator("--bootstrap", 40, "--seed", 3, "--output", "s.json")
    images = random_images(np.random.default_rng(0), 6, 4, 4)
    in_order = [images[i] for i in (0, 3, 1, 4, 2, 5)]  # of their names
    result, expected = read("s.json"), bootstrap_intervals(table_of(in_order), 50, None, 40, seed=3).intervals
    assert tuple(result["intervals"]) == SCORES
    for name, interval in result["intervals"].items():
        assert interval == (None if np.isnan(expected[name][0]) else list(expected[name])), name
    assert result["bootstrap"] == {"resamples": 40, "seed": 3}
    low, high = expected["mIoU"]
    line = ["mIoU", f"{result['scores']['mIoU']:.2f}", f"{low:.2f}–{high:.2f}"]
    assert line in [line.split() for line in done.stdout.splitlines()]


def test_default_seed_is_0_and_workers_change_nothing_and_nothing_is_drawn_unasked(folder):
    evaluator("--bootstrap", 20, "--seed", 0, "--output", "a.json")
    evaluator("--bootstrap", 20, "--no-cache", "--workers", 2, "--output", "b.json")
    assert Path("a.json").read_bytes() == Path("b.json").read_bytes()
    assert "interval" not in evaluator("--output", "c.json").stdout
    assert "intervals" not in read("c.json")


def test_compare_prints_and_saves(folder):
    Path("results").mkdir()
    Path("results/identity.json").write_text(json.dumps({cluster: cluster % 51 for cluster in range(51)}))
    done = compare("--bootstrap", 30, "--output", "results/c.json", b="other,identity")
    assert done.stderr.count("752") == 1  # one warning for one ground truth
    result = read("results/c.json")
    (run,) = result["b"]["runs"]
    assert (result["b"]["name"], run["predict_dir"], run["match"]) == ("other", "other", "identity")
    assert result["bootstrap"] == {"resamples": 30, "seed": 0}
    evaluator("--output", "s.json")
    assert result["a"]["scores"] == read("s.json")["scores"]
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
    assert f"{result['differences']['mIoU']:+.2f}" in line and f"{low:+.2f} to {high:+.2f}" in line
    assert line.endswith("*") == (low > 0 or high < 0)


def test_compare_needs_no_matching_for_a_folder_with_a_comma(folder):
    Path("pred").rename("pred,v2")
    assert "pred,v2: pred,v2, class ids" in compare("--bootstrap", 5, a="pred,v2").stdout


def test_compare_reports_the_bad_files_of_both_and_a_bad_ground_truth_once(folder):
    first, second, third = (path.relative_to("gt") for path in sorted(Path("gt").rglob("*.png"))[:3])
    ("pred" / first).unlink()
    ("other" / second).write_bytes(b"no png")
    ("gt" / third).write_bytes(b"")
    done = compare("--output", "c.json", status=1)
    for message in ("3 masks cannot be used", "no such prediction", "not a PNG"):
        assert message in done.stderr
    assert not Path("c.json").exists()


def test_compare_clusters(folder):
    truth = random_images(np.random.default_rng(0), 6, 4, 4)[0][0]
    write_mask(folder / "other/n00000000/image_0.png", np.full(truth.shape, 60))
    Path("m.json").write_text(json.dumps({cluster: cluster % 51 for cluster in range(61)}))
    assert "match.py was given 60 clusters" in compare(b="other,m.json", status=1).stderr
    compare("--clusters", 60, "--bootstrap", 5, b="other,m.json")


@pytest.mark.parametrize(
    ("side", "message"),
    [("pred,none", "no such matching"), ("nowhere", "no such folder"), ("other,m.json", "not JSON")],
)
def test_compare_refuses(folder, side, message):
    Path("m.json").write_text("{")
    assert message in compare(b=side, status=1).stderr


@pytest.mark.parametrize(
    "arguments",
    [
        ["--b", "other,"],
        ["--a", ""],
        ["--output", "c.csv"],
        ["--report", "c.htm"],
        ["--title", "Mine"],
        ["--clusters", 60],
    ],
)
def test_compare_wrong_usage(folder, arguments):
    assert arguments[0] in compare(*arguments, status=2).stderr


def test_sides_of_the_command_line(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for seed in (1, 2, 10):
        Path(f"runs/seed{seed}/validation").mkdir(parents=True)
    Path("lr=0.1").mkdir()

    def side(folder, match=None, name=None):
        return Side(name, ((Path(folder), match),))

    several = side_argument("PASS=runs/seed*/validation,pass-*")
    assert (several.name, several.matched) == ("PASS", True)
    assert several.runs == tuple((Path(f"runs/seed{i}/validation"), f"pass-{i}") for i in (1, 10, 2))
    one = side_argument("PASS=runs/seed1/validation,m")
    assert one == side("runs/seed1/validation", "m", "PASS")
    assert side_argument("lr=0.1,m") == side("lr=0.1", "m")
    assert side_argument("lr=0.1") == side("lr=0.1")
    with pytest.raises(argparse.ArgumentTypeError, match="3 runs need a matching each"):
        side_argument("PASS=runs/seed*/validation,pass")
    with pytest.raises(InputError, match="PASS: no folder matches nothing"):
        side_argument("PASS=nothing*")
    bare = side("runs/validation", "m")
    for first, second, expected in (
        (side("x", name="PASS"), bare, ["PASS", "validation"]),
        (bare, side("pass/validation", "m"), ["runs/validation", "pass/validation"]),
        (bare, side("runs/validation", "n"), ["runs/validation, m", "runs/validation, n"]),
        (bare, bare, ["runs/validation, m (1)", "runs/validation, m (2)"]),
    ):
        assert method_names([first, second]) == expected


def test_groups_of_runs_with_their_names_on_the_page(folder):
    shutil.copytree("pred", "ours/1")
    shutil.copytree("other", "ours/2")
    files = ("--output", "c.json", "--report", "c.html")
    out = compare("--bootstrap", 10, *files, a="Ours $1=ours/*").stdout
    assert "Ours $1: ours/1, class ids" in out and "Ours $1: ours/2, class ids" in out
    assert "runs: 2 and 1" in out and "significant" in out and "percentage points" in out
    result = read("c.json")
    assert [run["predict_dir"] for run in result["a"]["runs"]] == ["ours/1", "ours/2"]
    of_runs = [run["scores"]["mIoU"] for run in result["a"]["runs"]]
    assert result["a"]["scores"]["mIoU"] == pytest.approx(np.mean(of_runs))
    assert of_runs[1] == result["b"]["scores"]["mIoU"]
    page = Path("c.html").read_text()
    assert "Ours $1 and other compared" in page and ">sure<" not in page
    assert "Ours $1 better" in page and "Gained most with Ours $1" in page
