"""Many score files as one table: means and deviations, the best, what is refused, and names that want out."""

from __future__ import annotations

import argparse
import csv
import io
import json
import math
import re
import shutil
import subprocess

import numpy as np
import pytest
from helpers.pages import Page
from masksets import in_process

from evaluation.table import score_names
from imagenets.common.errors import InputError
from imagenets.reporting.score_files import ScoreFile, read_scores, refuse_unlike
from imagenets.reporting.table import (
    ResultTable,
    Row,
    escape_latex,
    escape_markdown,
    method_row,
    table_csv,
    table_html,
    table_latex,
    table_markdown,
    table_text,
)
from imagenets.scoring.metrics import SCORES

NAMES = ["a_b", "x|y", "<b>bold</b>", "R&D", "Änne Müller", "50% #1 $x$", r"back\slash~^{}", "*a* `c` [d](e)"]


def write_scores(path, scores=None, **changes):
    """Write a score file; all scores are 50 where nothing else is said, fields set to None are left out."""
    content = {
        "mode": "50",
        "images": 752,
        "images_sha256": "one",
        "definition": 1,
        "scores": {**dict.fromkeys(SCORES, 50.0), **(scores or {})},
        **changes,
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({key: value for key, value in content.items() if value is not None}))
    return path


def run(folder, *arguments, code=0):
    done = in_process("evaluation/table.py", *arguments, cwd=folder)
    assert (done.returncode, "Traceback" in done.stderr) == (code, False), done.stderr
    return done


@pytest.mark.parametrize("runs", [1, 2, 3, 10])
def test_means_and_deviations_are_those_of_numpy(tmp_path, runs):
    values = np.random.default_rng(runs).uniform(0, 100, (runs, len(SCORES)))
    files = [ScoreFile(tmp_path, "50", 752, "one", 1, dict(zip(SCORES, row, strict=True))) for row in values]
    row = method_row("A", files)
    assert list(row.means.values()) == pytest.approx(values.mean(axis=0), rel=1e-14)
    expected = values.std(axis=0, ddof=1) if runs > 1 else [math.nan] * len(SCORES)
    assert list(row.deviations.values()) == pytest.approx(expected, rel=1e-12, nan_ok=True)


def test_seeds_of_a_method_and_single_runs(tmp_path):
    for seed, score in enumerate((10.0, 20.0, 60.0)):
        write_scores(tmp_path / f"runs/pass_{seed}.json", {"mIoU": score, "S": None})
    write_scores(tmp_path / "mae/scores.json", {"mIoU": 29.996, "S": None})
    write_scores(tmp_path / "sere/scores.json", {"mIoU": 30.004, "S": None})
    done = run(
        tmp_path,
        *("mae/scores.json", "sere/scores.json", "./mae/scores.json", "runs/pass_1.json"),
        *("--group", "PASS=runs/pass_*.json", "--output", "new/t.csv"),
    )
    assert done.stderr == ""
    rows = {row["method"]: row for row in csv.DictReader(io.StringIO((tmp_path / "new/t.csv").read_text()))}
    assert list(rows) == ["mae/scores", "sere/scores", "PASS"]
    assert rows["PASS"]["runs"] == "3" and rows["PASS"]["mIoU"] == "30.0" and rows["PASS"]["S"] == ""
    # The deviations from 30 are -20, -10 and 30: their squares add up to 1400, over n - 1.
    assert float(rows["PASS"]["mIoU sd"]) == math.sqrt(1400 / 2)
    assert rows["mae/scores"]["mIoU"] == "29.996" and rows["mae/scores"]["mIoU sd"] == ""
    lines = {line.split()[0]: line for line in done.stdout.splitlines() if line}
    assert "30.00 ± 26.46*" in lines["PASS"], "equal digits are equally best"
    assert "30.00*" in lines["mae/scores"] and "30.00*" in lines["sere/scores"]
    assert "752 images" in done.stdout


def test_unlike_files_are_refused_together(tmp_path):
    a = write_scores(tmp_path / "a.json")
    b = write_scores(tmp_path / "b.json", mode="919", images=12_419)
    c = write_scores(tmp_path / "c.json", definition=2)
    done = run(tmp_path, a, b, c, "--output", "t.md", code=1)
    assert not (tmp_path / "t.md").exists() and done.stdout == ""
    found = [line.strip() for line in done.stderr.splitlines()[1:]]
    assert found == [
        *("different mode:", f"50: {a}, {c}", f"919: {b}"),
        *("different number of images:", f"752: {a}, {c}", f"12419: {b}"),
        *("different definition of the scores:", f"1: {a}, {b}", f"2: {c}"),
    ]
    d = write_scores(tmp_path / "d.json", images_sha256="two")
    message = run(tmp_path, a, d, code=1).stderr
    assert "different images:" in message and f"set 1: {a}" in message and f"set 2: {d}" in message


def test_older_files_are_told(tmp_path):
    a = write_scores(tmp_path / "a.json")
    old = write_scores(tmp_path / "old.json", definition=None, images_sha256=None)
    done = run(tmp_path, a, old)
    assert "1 files of an older toolbox" in done.stderr and str(old) in done.stderr
    assert run(tmp_path, old).stderr == "", "alone, a file differs from nothing"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "not JSON"),
        ("[]", "not a score file"),
        ('{"mode": "50", "images": 1, "scores": {"mIoU": 1}}', "not a score file"),
        ('{"pointing_game": 1}', "not a score file"),
        (json.dumps({"mode": "50", "images": 1, "scores": dict.fromkeys(SCORES, 101)}), "not a score file"),
    ],
)
def test_what_is_no_score_file(tmp_path, content, message):
    (tmp_path / "x.json").write_text(content)
    stderr = run(tmp_path, "x.json", code=1).stderr
    assert f"x.json: {message}" in stderr and "evaluator.py" in stderr


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        ((), 2, "name score files"),
        (("a.json", "--output", "a.pdf"), 2, "must end in .md"),
        (("--group", "a*.json"), 2, "is not METHOD=GLOB"),
        (("a.json", "--protocol", "free"), 2, "--protocol goes with --published or --results"),
        (("--group", "B=d*.json"), 1, "no file matches d*.json"),
        (("--group", "A=a.json", "--group", "B=a*"), 1, "a.json: is in the groups A and B"),
        (("b.json", "--group", "b=a.json"), 1, "a file and a --group share their name"),
        (("nowhere.json",), 1, "nowhere.json: no such score file"),
        (("c.json", "--published"), 1, "c.json: accuracies; --scores, --published and --results"),
    ],
)
def test_wrong_usage(tmp_path, arguments, code, message):
    for name in "ab":
        write_scores(tmp_path / f"{name}.json")
    write_scores(tmp_path / "c.json", task="classification")
    assert message in run(tmp_path, *arguments, code=code).stderr


def test_published_results_stand_apart_unless_of_one_protocol(tmp_path):
    write_scores(tmp_path / "mine.json", {"mIoU": 39.55}, protocol="distance-matching")
    apart = run(tmp_path, "mine.json", "--published").stdout
    assert "39.55*" in apart and "39.6*" not in apart and "comparable only within a protocol" in apart
    assert "29.2" in apart and "fully-unsupervised" in apart
    arguments = ("mine.json", "--published", "--protocol", "distance-matching")
    among = run(tmp_path, *arguments, "--output", "t.tex").stdout
    assert "39.6*" in among and "39.55*" not in among and "29.2" not in among
    body = (tmp_path / "t.tex").read_text().split(r"\midrule")
    assert len(body) == 3 and "mine & distance-matching" in body[1] and r"\textbf{39.6}" in body[2]
    (tmp_path / "own.csv").write_text(
        "protocol,mode,method,split,mIoU\nfree,50,ours,val,12.345\nfree,50,ours,test,1\n"
    )
    assert "of fewer images" not in apart
    write_scores(tmp_path / "few.json", {"mIoU": 0.0}, images=10)
    assert "The others are of fewer images" in run(tmp_path, "few.json", "--published").stdout
    own = run(tmp_path, "mine.json", "--results", "own.csv").stdout
    assert "ours" in own and re.search(r"12\.3[45] ", own) and "29.2" not in own


@pytest.fixture(scope="module")
def table():
    """Eight names that want out, of which the last has three runs."""
    deviations = [math.nan] * 7 + [0.256]
    rows = [
        Row(
            name,
            1 if math.isnan(deviation) else 3,
            dict.fromkeys(SCORES, 10.0 + i),
            dict.fromkeys(SCORES, deviation),
        )
        for i, (name, deviation) in enumerate(zip(NAMES, deviations, strict=True))
    ]
    return ResultTable("50", 752, rows)


def test_markdown_shows_names_as_they_are(table):
    markdown_it = pytest.importorskip("markdown_it")
    text = table_markdown(table)
    tokens = markdown_it.MarkdownIt("commonmark").enable("table").parse(text)
    inline = [t for t in tokens if t.type == "inline"]
    width = 2 + len(SCORES)
    rows = [inline[i : i + width] for i in range(width, len(inline) - 1, width)]
    shown = ["".join(child.content for child in row[0].children) for row in rows]
    assert shown == NAMES
    kinds = {child.type for row in rows for child in row[0].children}
    assert kinds <= {"text", "text_special"}, "no emphasis, code, link or tag"
    assert "**17.00** ± 0.26" in text and "**16.00**" not in text
    assert text.splitlines()[1] == f"| :-- |{' --: |' * (width - 1)}"


def test_latex_escapes(table):
    text = table_latex(table)
    for escaped in (
        r"a\_b & 1",
        r"x\textbar{}y",
        r"\textless{}b\textgreater{}bold\textless{}/b\textgreater{}",
        r"R\&D",
        "Änne Müller",
        r"50\% \#1 \$x\$",
        r"back\textbackslash{}slash\textasciitilde{}\textasciicircum{}\{\}",
    ):
        assert escaped in text
    assert r"$\mathbf{17.00} \pm 0.26$" in text
    assert escape_latex("a--b\nc") == "a-{}-b c"
    lines = [line for line in text.splitlines() if line.endswith(r"\\")]
    assert {len(re.findall(r"(?<!\\)&", line)) for line in lines} == {1 + len(SCORES)}


@pytest.mark.skipif(not shutil.which("pdflatex"), reason="no LaTeX here")
def test_latex_compiles(table, tmp_path):
    document = r"\documentclass{article}\usepackage{booktabs}\begin{document}%s\end{document}"
    (tmp_path / "t.tex").write_text(document % table_latex(table), encoding="utf-8")
    command = ["pdflatex", "-halt-on-error", "-interaction=nonstopmode", "t.tex"]
    assert subprocess.run(command, cwd=tmp_path, capture_output=True, check=False).returncode == 0


def test_html_shows_names_as_they_are(table):
    html = table_html(table)
    rows = re.findall(r'<th scope="row">(.*?)</th>', html)
    assert [Page(row).text for row in rows] == NAMES and "b" not in [tag for tag, _ in Page(html).tags]
    assert "<strong>17.00</strong>" in html and "± 0.26" in html


def test_csv_and_text_hold_names_as_they_are(table):
    assert [row[0] for row in csv.reader(io.StringIO(table_csv(table)))][1:] == NAMES
    text = table_text(table)
    assert all(name in text for name in NAMES)
    assert escape_markdown("a\r\nb\tc\x1b[1m") == r"a b c \[1m"


def test_the_protocol_is_a_runs_own(tmp_path):
    one = write_scores(tmp_path / "one.json", protocol="free")
    two = write_scores(tmp_path / "two.json", {"mIoU": 60.0}, protocol="semi-supervised")
    rows = [method_row(path.stem, [read_scores(path)]) for path in (one, two)]
    assert [row.protocol for row in rows] == ["free", "semi-supervised"]
    assert (
        ResultTable("50", 752, rows).protocol is None and ResultTable("50", 752, rows[:1]).protocol == "free"
    )
    lines = table_text(ResultTable("50", 752, rows)).splitlines()
    assert lines[0].split()[:2] == ["method", "protocol"] and "semi-supervised" in lines[2]
    with pytest.raises(InputError, match="of different protocols"):
        method_row("both", [read_scores(one), read_scores(two)])
    write_scores(tmp_path / "odd.json", protocol="my own")
    assert read_scores(tmp_path / "odd.json").protocol is None


def test_scores_are_chosen(tmp_path):
    row = method_row("mine", [read_scores(write_scores(tmp_path / "a.json"))])
    table = ResultTable("50", 752, [row], score_names("acc, mIoU,Acc"))
    assert table_text(table).splitlines()[0].split() == ["method", "Acc", "mIoU"]
    for text in (table_markdown(table), table_latex(table), table_csv(table), table_html(table)):
        assert "mIoU" in text and "FMeasure" not in text
    with pytest.raises(argparse.ArgumentTypeError, match="no such score: IoU"):
        score_names("mIoU,IoU")


def test_runs_of_class_lists_are_held_apart(tmp_path):
    files = [
        read_scores(write_scores(tmp_path / f"{name}.json", mode="pets", class_list_sha256=name))
        for name in "ab"
    ]
    with pytest.raises(InputError, match="different class list"):
        refuse_unlike(files)
    assert "ImageNet-S" not in table_text(ResultTable("pets", 752, [method_row("a", files[:1])]))
    # Bytes of a file's name that are no text.
    assert method_row("a\udce4", files[:1]).name == "a?"
