"""The page that compares two methods: what stands in it, which images it shows, its size, its refusals."""

from __future__ import annotations

import re

import numpy as np
import pytest
from helpers.pages import EVIL, Page, table_of_noise, write_noise, write_pictures
from masksets import in_process, write_mask

from imagenets.classes import class_table
from imagenets.reporting.charts import class_difference_chart, difference_chart
from imagenets.reporting.comparison_page import Methods, comparison_html
from imagenets.reporting.image_scores import IMAGES_PER_GROUP
from imagenets.scoring.comparison import Method, Run, compare

NAMES = [f"{EVIL if i % 2 else 'n00000001'}/image_{i:02d}.png" for i in range(12)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Twelve images of one class: A finds the first half well and B the second, growing with the number."""
    folder = tmp_path_factory.mktemp("compare")
    for i, name in enumerate(NAMES):
        truth, a, b = np.zeros((3, 20, 20), int)
        truth[:10], truth[19] = 1, 1000
        for prediction, good in ((a, i < 6), (b, i >= 6)):
            prediction[: 10 if good else 9 - i % 6] = 2
            prediction[19] = 40  # under ignored pixels anything may stand
        for side, mask in (("gt", truth), ("A&B", a), ("other_<i>", b)):
            write_mask(folder / side / name, mask)
    (folder / "m.json").write_text('{"0": 0, "2": 1}')
    return folder


def run(folder, *arguments, a="A&B,m.json", code=0):
    common = ("--gt-dir", "gt", "--mode", 50, "--workers", 0, "--clusters", 50, "--bootstrap", 20)
    sides = ("--a", a, "--b", "other_<i>,m.json")
    done = in_process("evaluation/compare.py", *common, *sides, *arguments, cwd=folder)
    assert done.returncode == code, done.stderr
    return done


def shown_images(page):
    """The differences and numbers in the captions of a page's images."""
    found = re.findall(r"<strong>([^<]*)</strong> [^\n]*?image_(\d\d) ", page)
    return [float(gain.replace("−", "-")) for gain, _ in found], [int(number) for _, number in found]


def test_page_of_the_script(folder):
    done = run(folder, "--report", "new/c.html", "--output", "c.json", "--title", "Ours <3")
    assert "saved: new/c.html" in done.stdout and "saved: c.json" in done.stdout
    page = (folder / "new/c.html").read_text()
    table = {line.split()[0]: line.split() for line in done.stdout.splitlines() if line.strip()}
    for name in ("mIoU", "FMeasure", "Acc"):
        _, a, b, difference = table[name][:4]
        (row,) = [row for row in Page(page).rows if row.startswith(f"{name} ")]
        shown = difference.replace("-", "−").replace("+0.00", "0.00")
        assert row.split()[1:4] == [a, b, shown]
    assert "<h1>Ours &lt;3</h1>" in page and "Made by the ImageNet-S toolbox" in page
    # The image in which one side misses most comes first; equal sides are not shown.
    gains, numbers = shown_images(page)
    assert numbers == [5, 4, 3, 2, 1, 0, 11, 10, 9, 8, 7, 6]
    assert gains[:6] == sorted(gains[:6], reverse=True) and gains[5] > 0 > gains[6]
    assert page.count('alt="A&amp;B of ') == page.count('alt="ground truth of ') == 12
    assert "picture of" not in page and "No image folder was given" in page
    # Names cannot break out of it.
    assert page.count("<script>") == 1 and "<img src=x" not in page and "&amp;amp;{{ 7*7 }}" in page
    assert "A&amp;B, matching m.json" in page and "other_&lt;i&gt;" in page


def test_long_names_keep_their_ends_in_charts():
    """Names of runs begin alike; cut at the end, both sides would be called the same."""
    names = tuple(
        f"self-supervised pretraining for 200 epochs, then ours, {network}" for network in ("S", "B")
    )
    scores = {"mIoU": 1.0}
    charts = (
        difference_chart(scores, {"mIoU": (0.5, 1.5)}, {"mIoU": True}, names),
        class_difference_chart(np.array([1.0, -1.0]), names),
    )
    for chart in charts:
        lines = re.findall(r">([^<>]*(?:ours, [SB]))<", chart)
        assert [line[-1] for line in lines] == ["S", "B"] and lines[1].startswith("− self-supervised")
        assert all(len(line) <= 48 for line in lines)
    short = class_difference_chart(np.array([1.0, -1.0]), ("k-means", "a method of 24 letters or more"))
    assert ">IoU, k-means − a method of 24 letters or more<" in short


def test_same_input_same_page_and_pictures(folder):
    *_, picture = write_pictures(folder / "images", NAMES, 20, 20)
    for name in ("1.html", "2.html"):
        run(folder, "--report", name, "--image-dir", "images")
    page = (folder / "1.html").read_text()
    assert page == (folder / "2.html").read_text() and page.count('alt="picture of ') == 12
    picture.unlink()
    done = run(folder, "--report", "3.html", "--image-dir", "images", code=1)
    assert "1 of the 12 images that the report shows cannot be read" in done.stderr
    assert not (folder / "3.html").exists()


def test_a_method_against_itself(folder):
    run(folder, "--report", "same.html", a="other_<i>,m.json")
    page = (folder / "same.html").read_text()
    (row,) = [row for row in Page(page).rows if row.startswith("mIoU ")]
    assert shown_images(page) == ([], []) and row.split()[3] == "0.00"


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (("--report", "c.pdf"), 2, "must end in .html"),
        (("--title", "x"), 2, "--image-dir and --title go with --report"),
        (("--report", "c.html", "--image-dir", "nowhere"), 1, "nowhere: no such folder"),
    ],
)
def test_refusals(folder, arguments, code, message):
    assert message in run(folder, *arguments, code=code).stderr


def test_full_size_stays_under_10_mb(tmp_path):
    rng = np.random.default_rng(0)
    methods = []
    for number, side in enumerate("ab"):
        table = table_of_noise(rng)
        right = table.image % 50 == number  # in so many images each side is right
        table.prediction[right] = table.ground_truth[right]
        methods.append(Method(side, (Run(str(tmp_path / side), None, table, None),)))
    comparison = compare(*methods, 919, 2, 0)
    shown = [name for i, name in enumerate(table.names) if i % 50 < 2][: 4 * IMAGES_PER_GROUP]
    write_noise(rng, tmp_path, shown, ("gt", "a", "b"), 27, 36)
    classes = class_table(919, [f"n{i:08d}" for i in range(919)])
    page = comparison_html(
        Methods("919", tmp_path / "gt", *methods, classes, tmp_path / "images"), comparison
    )
    assert page.count("<img ") == 2 * IMAGES_PER_GROUP * 4
    # With pictures as large as they get, 50,000 bytes in base 64; test_html_report.py has such ones.
    without = re.sub(r"data:image[^\"]*", "", page)
    assert len(without.encode()) + page.count("<img ") * 50_000 * 4 / 3 < 10_000_000
