"""The report as a file: what stands in it, that nothing can break out of it, its size, its refusals."""

from __future__ import annotations

import base64
import io
import json
import math
import os
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from helpers.pages import EVIL, Page, named_table, table_of_noise, write_noise, write_pictures, write_subject
from masksets import REAL, in_process, script, write_pairs
from PIL import Image

import imagenets
from imagenets.classes import class_table
from imagenets.reporting.html import Subject, html_report
from imagenets.reporting.image_scores import IMAGES_PER_GROUP, choose_images, image_label_ious, image_mean_iou
from imagenets.scoring.matching import Matching, class_lookup
from imagenets.scoring.metrics import evaluate

SAME = Matching.of({k: k for k in range(51)})


@pytest.fixture
def subject(tmp_path):
    return write_subject(tmp_path)


def pictures_of(subject, folder):
    return write_pictures(folder, subject.table.names, 30, 40, (".JPEG", ".jpg", ".jpeg", ".png"))


def page_of(subject, **options):
    lookup = None if subject.matching is None else class_lookup(subject.matching)
    return html_report(subject, evaluate(subject.table, len(subject.classes) - 1, lookup), **options)


def test_names_cannot_break_out_and_nothing_is_fetched(subject):
    html = page_of(replace(subject, match=EVIL, matching=SAME, title=EVIL))
    page = Page(html)
    tags = [tag for tag, _ in page.tags]
    assert tags.count("script") == 1, "the page's own"
    assert not {"link", "iframe", "object", "form", "base"} & set(tags)
    assert not any(key.startswith("on") for _, attributes in page.tags for key in attributes)
    assert any(EVIL in alt for alt in page.attributes("alt"))
    # Heading, matching, class table, twice in the table of clusters, confusions, chart (cut short), captions.
    assert page.text.count(EVIL) > 8
    escaped = "Evil&lt;script&gt;"
    assert f"<h1>{escaped}" in html and f"<title>{escaped}" in html and "benchmark ImageNet-S-50" in page.text

    links = page.attributes("src", "href", "xlink:href")
    assert links and all(link.startswith(("data:image/", "#")) for link in links)
    assert {url.strip("'\"")[:5] for url in re.findall(r"url\((.*?)\)", html)} <= {"#clas", "#buck", "#stan"}
    (policy,) = [a["content"] for _, a in page.tags if a.get("http-equiv") == "Content-Security-Policy"]
    assert policy.startswith("default-src 'none'; img-src data:;")

    ids = page.attributes("id")
    assert len(ids) == len(set(ids))
    used = re.findall(r'(?:url\(|href=")#([^)"]+)', html) + page.attributes("for", "data-table")
    assert used and set(used) <= set(ids)


def test_same_input_same_page(subject, tmp_path):
    pictures_of(subject, tmp_path / "images")
    subject = replace(subject, image_dir=tmp_path / "images")
    assert page_of(subject) == page_of(subject)
    assert page_of(subject, seed=1) != page_of(subject, seed=2)


def test_date_version_and_paths_as_given(subject, tmp_path, monkeypatch):
    made = f"Made by the ImageNet-S toolbox {imagenets.__version__}"
    assert f"{made}." in Page(page_of(subject)).text
    monkeypatch.chdir(tmp_path)
    html = page_of(replace(subject, date="2024-02-29", gt_dir=Path("gt"), predict_dir=Path("./pred")))
    assert f"{made} on 2024-02-29." in Page(html).text and str(tmp_path) not in html


def test_size_buckets_are_those_of_the_benchmark(subject):
    """5.1 % of an image is more than 5 %: it counts as MS."""
    html = page_of(subject)
    text = Page(html).text
    for size in ("up to 5 %", "above 5 %, up to 25 %", "above 25 %, up to 50 %", "above 50 %"):
        assert text.count(f"IoU of objects {size}") == 2, "IoU and boundary IoU"
    for size in ("up to 5 %", "5 to 25 %", "25 to 50 %", "above 50 %"):
        assert size in re.findall(r"<text[^>]*>(.*?)</text>", html.replace("\u00a0", " "))


def test_intervals_where_given_and_where_reliable(subject):
    scores = evaluate(subject.table, 50, None).scores
    miou = scores["mIoU"]
    assert "confidence" not in Page(page_of(subject)).text
    text = Page(page_of(subject, intervals={"mIoU": (miou - 1, miou), "L": (math.nan, math.nan)})).text
    shown = f"{miou - 1:.2f} to {miou:.2f}"
    assert shown in text and len(re.findall(r"\d to \d+\.", text)) == text.count(shown)
    assert "95 % confidence interval" in text
    assert "outside its own" not in text and "no reliable interval" not in text

    html = page_of(subject, intervals={"mIoU": (miou + 1, miou + 2), "Acc": (0.0, 100.0)})
    text = Page(html).text
    assert "mIoU lies outside its own interval: " in text
    tiles = [Page(tile).text for tile in re.findall('<li><span class="name">.*?</li>', html, re.S)]
    assert tiles[0].startswith(f"mIoU {miou:.2f} no reliable interval mean IoU")
    assert tiles[3].startswith("Acc") and " 0.00 to 100.00 " in tiles[3] and "reliable" not in tiles[3]
    assert f"{miou + 1:.2f} to" not in text and "and this run's." in text, "nor elsewhere"

    def lines(low, high):
        intervals = {"ML": (scores["ML"] + low, scores["ML"] + high)}
        return page_of(subject, intervals=intervals).count('id="buckets-LineCollection')

    assert scores["ML"] > 2 and (lines(-1, 1), lines(1, 2)) == (1, 0), "in the chart too"


def test_rows_confusions_and_clusters(tmp_path):
    """An image, told by hand: class 1 half found, class 2 taken for 3, cluster 3 without any use."""
    truth, prediction = np.zeros((2, 10, 10), int)
    truth[:2], truth[5:7] = 1, 2
    prediction[:1], prediction[5:7] = 2, 1
    names = write_pairs(tmp_path, [(truth, prediction)], ["n1/0.png"])
    subject = Subject(
        mode="50",
        gt_dir=tmp_path / "gt",
        predict_dir=tmp_path / "pred",
        table=named_table([(truth, prediction)], names),
        classes=class_table(3, ["n01443537", "n01491361", "n01531178"]),
        matching=Matching.of({0: 0, 1: 3, 2: 1, 3: 2}),
        match="mine",
    )
    html = page_of(subject)
    rows = Page(html).rows
    for row, times in {
        "1 goldfish 50.00 50.00 1 20 background 50.00 n01443537": 1,
        "2 tiger shark 0.00 0.00 1 20 goldfinch 100.00 n01491361": 1,
        "3 goldfinch 0.00 0.00 0 0 – – n01531178": 1,
        "tiger shark goldfinch 20 100.00": 2,  # in both tables of confusions
        "goldfish background 10 50.00": 1,  # in the one with background
        "1 goldfinch 20 its class is not in these images tiger shark": 1,
        "3 tiger shark 0 no prediction uses it –": 1,
        "2 goldfish 1 10 10 100.00 goldfish": 1,
    }.items():
        assert rows.count(row) == times, row
    assert "Clusters that share no pixel with their class: 2" in html
    # goldfish 50, background 60 of 70, tiger shark and goldfinch 0
    assert f"<strong>{(50 + 600 / 7) / 4:.2f}</strong> n1/0" in html


def test_thumbnails_show_the_pictures(subject, tmp_path):
    pictures_of(subject, tmp_path / "images")
    page, plain = (
        Page(page_of(replace(subject, image_dir=folder))) for folder in (tmp_path / "images", None)
    )
    images = [a for tag, a in page.tags if tag == "img"]
    assert len(images) == 3 * IMAGES_PER_GROUP * 4
    for image in images:
        data = base64.b64decode(image["src"].partition(",")[2])
        assert Image.open(io.BytesIO(data)).size == (40, 30) == (int(image["width"]), int(image["height"]))
    assert len(plain.attributes("src")) == 3 * IMAGES_PER_GROUP * 3
    assert "No image folder was given" in plain.text and "No image folder was given" not in page.text


def test_full_size_stays_under_10_mb(tmp_path):
    rng = np.random.default_rng(0)
    table = table_of_noise(rng)
    mean = image_mean_iou(image_label_ious(table, table.prediction), len(table.names))
    shown = set().union(*choose_images(mean, seed=0).values())
    write_noise(rng, tmp_path, [table.names[image] for image in shown], ("gt", "pred"))
    subject = Subject(
        mode="919",
        gt_dir=tmp_path / "gt",
        predict_dir=tmp_path / "pred",
        table=table,
        classes=class_table(919, [f"n{i:08d}" for i in range(919)]),
        matching=Matching.of({k: k for k in range(920)}),
        image_dir=tmp_path / "images",
    )
    assert len(page_of(subject).encode()) < 10_000_000


def evaluator(folder, *arguments, code=0, run=in_process, gt="gt", pred="pred"):
    common = ("--gt-dir", gt, "--predict-dir", pred, "--mode", 50, "--workers", 0)
    done = run("evaluation/evaluator.py", *common, *arguments, cwd=folder)
    assert done.returncode == code, done.stderr
    return done


def test_report_of_the_script(subject, tmp_path, monkeypatch):
    pictures_of(subject, tmp_path / "images")
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "1709164800")
    options = ("--report", "made/report.html", "--image-dir", "images", "--title", "Ours & theirs")
    done = evaluator(tmp_path, *options)
    assert "saved: made/report.html" in done.stdout
    html = (tmp_path / "made/report.html").read_text()
    assert "<h1>Ours &amp; theirs</h1>" in html and " on 2024-02-29." in html
    header, scores = done.stdout.split("\n\n")[1].splitlines()[1:]
    miou = scores.split()[header.split().index("mIoU")]
    wanted = rf"mIoU {re.escape(miou)} \d+\.\d\d to \d+\.\d\d mean IoU over all 51 labels"
    assert re.search(wanted, Page(html).text)
    assert any(EVIL in alt for alt in Page(html).attributes("alt")), "classes are named by the folders"
    # A second run replaces it by the same.
    evaluator(tmp_path, *options)
    assert (tmp_path / "made/report.html").read_text() == html
    assert [path.name for path in (tmp_path / "made").iterdir()] == ["report.html"]


def test_paths_that_are_no_utf8(subject, tmp_path):
    """The report, and the JSON, after all the work: no letter of a path may end them."""
    folder = tmp_path / os.fsdecode(b"caf\xe9")
    folder.mkdir()
    for side in ("gt", "pred"):
        (tmp_path / side).rename(folder / side)
    sides = {"gt": folder / "gt", "pred": folder / "pred"}
    evaluator(folder, "--report", folder / "r.html", "--output", folder / "s.json", run=script, **sides)
    assert "caf\\udce9/pred" in (folder / "r.html").read_text()
    assert json.loads((folder / "s.json").read_text())["mode"] == "50"
    done = in_process(
        "evaluation/compare.py",
        *("--a", folder / "pred", "--b", folder / "pred", "--gt-dir", folder / "gt", "--mode", 50),
        *("--bootstrap", 2, "--workers", 0, "--output", folder / "c.json"),
        cwd=folder,
    )
    assert done.returncode == 0, done.stderr
    assert json.loads((folder / "c.json").read_text())["a"]["runs"][0]["predict_dir"] == str(folder / "pred")


def test_missing_and_bad_pictures_are_listed(subject, tmp_path):
    paths = pictures_of(subject, tmp_path / "images")
    paths[0].unlink()
    paths[1].write_bytes(b"no image")
    Image.new("RGB", (41, 30)).save(paths[2])
    (tmp_path / "report.html").write_text("of an earlier run")
    options = ("--report", "report.html", "--image-dir", tmp_path / "images", "--output", "scores.json")
    message = evaluator(tmp_path, *options, code=1).stderr
    for problem in (
        "error: 3 of the 12 images that the report shows cannot be read",
        f"{paths[0]}: no such image, nor with .jpg, .jpeg, .png",
        f"{paths[1]}: no image; get it again",
        f"{paths[2]}: 41 x 30 pixels, but its mask has 40 x 30",
    ):
        assert problem in message
    assert (tmp_path / "report.html").read_text() == "of an earlier run"
    assert not (tmp_path / "scores.json").exists()


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (("--report", "report.txt"), 2, "--report report.txt: must end in .html"),
        (("--title", "Ours"), 2, "--title goes with --report"),
        (("--image-dir", "images"), 2, "--image-dir goes with --report"),
        (("--report", "r.html", "--image-dir", "nowhere"), 1, "nowhere: no such folder; images lie in"),
        (("--report", "gt/r.html/x.html"), 1, "no folder that you may write to"),
    ],
)
def test_refusals(subject, tmp_path, arguments, code, message):
    (tmp_path / "gt/r.html").write_text("")
    assert message in evaluator(tmp_path, *arguments, code=code).stderr
    assert not list(tmp_path.glob("*.html"))


@pytest.mark.skipif(not REAL.is_dir(), reason="the real masks are not beside the checkout")
def test_real_masks(tmp_path):
    gt_dir = REAL / "validation-segmentation"
    names = sorted(str(path.relative_to(gt_dir)) for path in gt_dir.glob("*/*.png"))[::19]
    (tmp_path / "names.txt").write_text("\n".join(names))
    options = ("--names", "names.txt", "--report", "report.html")
    evaluator(tmp_path, *options, gt=gt_dir, pred=REAL / "predictions")
    text = Page((tmp_path / "report.html").read_text()).text
    assert f", {len(names)} images" in text and "goldfish" in text
