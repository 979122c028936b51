"""The report as a file: what stands in it, that nothing can break out of it, its size, its refusals."""

from __future__ import annotations

import base64
import io
import json
import math
import os
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from masksets import REAL, script, table_of, write_mask
from PIL import Image

import imagenets
from imagenets.classes import class_table
from imagenets.reporting.html import Subject, html_report
from imagenets.reporting.image_scores import IMAGES_PER_GROUP, choose_images, image_label_ious, image_mean_iou
from imagenets.scoring.contingency import Rows, make_table
from imagenets.scoring.matching import Matching
from imagenets.scoring.metrics import evaluate

EVIL = "<script>alert('1')<img src=x onerror=\"alert(2)\">&amp;{{ 7*7 }}"


class Page(HTMLParser):
    """Start tags with their attributes, and the text of each id's first table."""

    def __init__(self, html):
        super().__init__()
        self.tags, self.text = [], []
        self.feed(html)
        self.text = " ".join(" ".join(self.text).split())

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))

    def handle_data(self, data):
        self.text.append(data)


@pytest.fixture
def subject(tmp_path):
    """Twelve images of 50 classes, whose folders bear a name that wants out."""
    folders = [EVIL] + [f"n{i:08d}" for i in range(1, 50)]
    rng = np.random.default_rng(0)
    images, names = [], []
    for i in range(12):
        truth, prediction = np.zeros((30, 40), int), np.zeros((30, 40), int)
        truth[5:20, 5:25] = 1 + i % 4
        prediction[5 : 20 - i, 5:25] = 1 + (i % 4 if i < 8 else rng.integers(50))
        truth[25:, :10] = 1000
        images.append((truth, prediction))
        names.append(f"{folders[i % 3]}/image_{i:02d}.png")
        write_mask(tmp_path / "gt" / names[-1], truth)
        write_mask(tmp_path / "pred" / names[-1], prediction)
    for folder in folders:
        (tmp_path / "gt" / folder).mkdir(exist_ok=True)
    table = table_of(images)
    return Subject(
        mode="50",
        gt_dir=tmp_path / "gt",
        predict_dir=tmp_path / "pred",
        table=make_table(names, table.largest_prediction, [Rows(*(getattr(table, f) for f in Rows._fields))]),
        classes=class_table(50, folders),
    )


def write_pictures(subject, folder):
    rng = np.random.default_rng(1)
    suffixes = (".JPEG", ".jpg", ".jpeg", ".png")
    for i, name in enumerate(subject.table.names):
        path = (folder / name).with_suffix(suffixes[i % 4])
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (30, 40, 3), np.uint8)).save(path)


def page_of(subject, **options):
    matching = None
    if subject.matching is not None:
        matching = subject.matching.lookup()
    return html_report(subject, evaluate(subject.table, len(subject.classes) - 1, matching), **options)


def replaced(subject, **changes):
    return Subject(**{**vars(subject), **changes})


def test_names_cannot_break_out(subject):
    subject = replaced(subject, match=EVIL, matching=Matching.of({k: k for k in range(51)}))
    page = Page(page_of(subject))
    assert [tag for tag, _ in page.tags].count("script") == 1, "the page's own"
    assert not any(key.startswith("on") for _, attributes in page.tags for key in attributes)
    alts = [attributes["alt"] for tag, attributes in page.tags if tag == "img"]
    assert any(EVIL in alt for alt in alts)
    # Matching, class table, twice in the table of clusters, confusions, chart (cut short), captions.
    assert page.text.count(EVIL) > 6


def test_nothing_is_fetched(subject):
    html = page_of(subject)
    page = Page(html)
    links = [a[key] for _, a in page.tags for key in ("src", "href", "xlink:href") if key in a]
    assert links and all(link.startswith(("data:image/", "#")) for link in links)
    assert {url.strip("'\"")[:5] for url in re.findall(r"url\((.*?)\)", html)} <= {"#clas", "#buck", "#stan"}
    assert not {"link", "iframe", "object", "form", "base"} & {tag for tag, _ in page.tags}
    (policy,) = [a["content"] for tag, a in page.tags if a.get("http-equiv") == "Content-Security-Policy"]
    assert policy.startswith("default-src 'none'; img-src data:;")


def test_ids_are_unique_and_references_hold(subject):
    html = page_of(replaced(subject, matching=Matching.of({k: k for k in range(51)})))
    page = Page(html)
    ids = [attributes["id"] for _, attributes in page.tags if "id" in attributes]
    assert len(ids) == len(set(ids))
    used = re.findall(r'(?:url\(|href=")#([^)"]+)', html)
    used += [a[key] for _, a in page.tags for key in ("for", "data-table") if key in a]
    assert used and set(used) <= set(ids)


def test_same_input_same_page(subject, tmp_path):
    write_pictures(subject, tmp_path / "images")
    subject = replaced(subject, image_dir=tmp_path / "images")
    assert page_of(subject) == page_of(subject)
    assert page_of(subject, seed=1) != page_of(subject, seed=2)


def test_title_date_version_and_paths_as_given(subject, tmp_path, monkeypatch):
    assert f"Made by the ImageNet-S toolbox {imagenets.__version__}." in Page(page_of(subject)).text
    monkeypatch.chdir(tmp_path)
    subject = replaced(subject, title=EVIL, date="2024-02-29", gt_dir=Path("gt"), predict_dir=Path("./pred"))
    html = page_of(subject)
    page = Page(html)
    assert f"Made by the ImageNet-S toolbox {imagenets.__version__} on 2024-02-29." in page.text
    assert page.text.count(EVIL) > 2 and "benchmark ImageNet-S-50" in page.text
    assert "<h1>&lt;script" in html and "<title>&lt;script" in html
    assert str(tmp_path) not in html


def test_size_buckets_are_those_of_the_benchmark(subject):
    """5.1 % of an image is more than 5 %: it counts as MS."""
    text = Page(page_of(subject)).text
    assert "6–25" not in text and "26–50" not in text and "> 5" not in text
    for size in ("up to 5 %", "above 5 %, up to 25 %", "above 25 %, up to 50 %", "above 50 %"):
        assert text.count(f"IoU of objects {size}") == 2, "IoU and boundary IoU"
    for size in ("up to 5 %", "5 to 25 %", "25 to 50 %", "above 50 %"):
        assert size in re.findall(r"<text[^>]*>(.*?)</text>", page_of(subject).replace("\u00a0", " "))


def test_intervals_where_given(subject):
    text = Page(page_of(subject)).text
    assert "confidence" not in text
    text = Page(page_of(subject, intervals={"mIoU": (1.234, 7.678), "L": (math.nan, math.nan)})).text
    assert "1.23 to 7.68" in text and len(re.findall(r"\d to \d+\.", text)) == text.count("1.23 to")
    assert "95 % confidence interval" in text


def test_a_score_outside_its_interval_is_explained(subject):
    miou = evaluate(subject.table, 50, None).scores["mIoU"]
    inside = Page(page_of(subject, intervals={"mIoU": (miou - 1, miou)})).text
    assert "outside its own" not in inside and "no reliable interval" not in inside
    page = page_of(subject, intervals={"mIoU": (miou + 1, miou + 2), "Acc": (0.0, 100.0)})
    outside = Page(page).text
    assert "mIoU lies outside its own interval: " in outside
    tiles = [
        " ".join(re.sub("<[^>]+>", " ", tile).split())
        for tile in re.findall('<li><span class="name">.*?</li>', page, re.S)
    ]
    assert tiles[0].startswith(f"mIoU {miou:.2f} no reliable interval mean IoU")
    assert tiles[3].startswith("Acc") and " 0.00 to 100.00 " in tiles[3] and "reliable" not in tiles[3]
    assert f"{miou + 1:.2f} to" not in outside and "and this run's." in outside, "nor elsewhere"


def test_no_line_of_an_unreliable_interval_is_drawn(subject):
    """The chart has a line for an interval that holds its score, and none for another."""
    scores = evaluate(subject.table, 50, None).scores

    def lines(low, high):
        intervals = {"ML": (scores["ML"] + low, scores["ML"] + high)}
        return page_of(subject, intervals=intervals).count('id="buckets-LineCollection')

    assert scores["ML"] > 2 and (lines(-1, 1), lines(1, 2)) == (1, 0)


def test_rows_confusions_and_clusters(tmp_path):
    """Two images, told by hand: class 1 half found, class 2 taken for 3, cluster 3 without any use."""
    truth = np.zeros((10, 10), int)
    truth[:2], truth[5:7] = 1, 2
    prediction = np.zeros((10, 10), int)
    prediction[:1], prediction[5:7] = 2, 1
    write_mask(tmp_path / "gt/n1/0.png", truth)
    write_mask(tmp_path / "pred/n1/0.png", prediction)
    subject = Subject(
        mode="50",
        gt_dir=tmp_path / "gt",
        predict_dir=tmp_path / "pred",
        table=table_of([(truth, prediction)]),
        classes=class_table(3, ["n01443537", "n01491361", "n01531178"]),
        matching=Matching.of({0: 0, 1: 3, 2: 1, 3: 2}),
        match="mine",
    )
    html = page_of(subject)
    rows = [
        " ".join(re.sub("<[^>]+>", " ", row).split()) for row in re.findall(r"<tr>(.*?)</tr>", html, re.S)
    ]
    assert "1 goldfish 50.00 50.00 1 20 background 50.00 n01443537" in rows
    assert "2 tiger shark 0.00 0.00 1 20 goldfinch 100.00 n01491361" in rows
    assert "3 goldfinch 0.00 0.00 0 0 – – n01531178" in rows
    assert rows.count("tiger shark goldfinch 20 100.00") == 2, "in both tables of confusions"
    assert rows.count("goldfish background 10 50.00") == 1, "in the one with background"
    assert "1 goldfinch 20 its class is not in these images tiger shark" in rows
    assert "3 tiger shark 0 no prediction uses it –" in rows
    assert "2 goldfish 1 10 10 100.00 goldfish" in rows
    assert "Clusters that share no pixel with their class: 2" in html
    # goldfish 50, background 60 of 70, tiger shark and goldfinch 0
    assert f"<strong>{(50 + 600 / 7) / 4:.2f}</strong> n1/0" in html


def test_thumbnails_show_the_pictures(subject, tmp_path):
    write_pictures(subject, tmp_path / "images")
    page = Page(page_of(replaced(subject, image_dir=tmp_path / "images")))
    images = [a for tag, a in page.tags if tag == "img"]
    assert len(images) == 3 * IMAGES_PER_GROUP * 4
    for image in images:
        data = base64.b64decode(image["src"].partition(",")[2])
        assert Image.open(io.BytesIO(data)).size == (40, 30) == (int(image["width"]), int(image["height"]))
    plain = Page(page_of(subject))
    assert len([tag for tag, _ in plain.tags if tag == "img"]) == 3 * IMAGES_PER_GROUP * 3
    assert "No image folder was given" in plain.text and "No image folder was given" not in page.text


def test_full_size_stays_under_10_mb(tmp_path):
    """919 classes, 12,419 images, and the worst pictures and masks there are: noise."""
    rng = np.random.default_rng(0)
    count, rows = 12_419, 5
    names = [f"n{i % 919:08d}/ILSVRC2012_val_{i:08d}.png" for i in range(count)]
    columns = (
        np.repeat(np.arange(count), rows),
        rng.integers(0, 920, count * rows),
        rng.integers(0, 920, count * rows),
        np.zeros(count * rows),
        np.zeros(count * rows),
        rng.integers(1, 50_000, count * rows),
    )
    table = make_table(names, np.full(count, 919), [Rows(*columns)])
    mean = image_mean_iou(image_label_ious(table, table.prediction), count)
    chosen = choose_images(mean, seed=0)
    for image in {*chosen.best, *chosen.worst, *chosen.random}:
        for folder in ("gt", "pred"):
            write_mask(tmp_path / folder / names[image], rng.integers(0, 920, (270, 360)))
        path = (tmp_path / "images" / names[image]).with_suffix(".JPEG")
        path.parent.mkdir(parents=True)
        Image.fromarray(rng.integers(0, 256, (270, 360, 3), np.uint8)).save(path)
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


def run_evaluator(folder, *arguments):
    return script(
        "evaluation/evaluator.py",
        *("--gt-dir", folder / "gt", "--predict-dir", folder / "pred", "--mode", 50, "--workers", 0),
        *arguments,
        cwd=folder,
    )


def test_report_of_the_script(subject, tmp_path):
    write_pictures(subject, tmp_path / "images")
    done = run_evaluator(tmp_path, "--report", "made/report.html", "--image-dir", "images")
    assert done.returncode == 0, done.stderr
    assert "saved: made/report.html" in done.stdout
    page = Page((tmp_path / "made/report.html").read_text())
    header, scores = done.stdout.split("\n\n")[1].splitlines()[1:]
    miou = scores.split()[header.split().index("mIoU")]
    assert re.search(rf"mIoU {re.escape(miou)} \d+\.\d\d to \d+\.\d\d mean IoU over all 51 labels", page.text)
    assert any(EVIL in a.get("alt", "") for _, a in page.tags), "classes are named by the folders"
    # A second run replaces it by the same.
    before = (tmp_path / "made/report.html").read_bytes()
    assert run_evaluator(tmp_path, "--report", "made/report.html", "--image-dir", "images").returncode == 0
    assert (tmp_path / "made/report.html").read_bytes() == before
    assert [path.name for path in (tmp_path / "made").iterdir()] == ["report.html"]


def test_title_and_date_of_the_script(subject, tmp_path, monkeypatch):
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "1709164800")
    done = run_evaluator(tmp_path, "--report", "r.html", "--title", "Ours & theirs")
    assert done.returncode == 0, done.stderr
    html = (tmp_path / "r.html").read_text()
    assert "<h1>Ours &amp; theirs</h1>" in html and " on 2024-02-29." in html


def test_paths_that_are_no_utf8(subject, tmp_path):
    """The report, and the JSON, after all the work: no letter of a path may end them."""
    folder = tmp_path / os.fsdecode(b"caf\xe9")
    folder.mkdir()
    for side in ("gt", "pred"):
        (tmp_path / side).rename(folder / side)
    done = run_evaluator(folder, "--report", folder / "r.html", "--output", folder / "s.json")
    assert done.returncode == 0, done.stderr
    assert "caf\\udce9/pred" in (folder / "r.html").read_text()
    assert json.loads((folder / "s.json").read_text())["mode"] == "50"
    done = script(
        "evaluation/compare.py",
        *("--a", folder / "pred", "--b", folder / "pred", "--gt-dir", folder / "gt", "--mode", 50),
        *("--bootstrap", 2, "--workers", 0, "--output", folder / "c.json"),
        cwd=folder,
    )
    assert done.returncode == 0, done.stderr
    assert json.loads((folder / "c.json").read_text())["a"]["runs"][0]["predict_dir"] == str(folder / "pred")


def test_missing_and_bad_pictures_are_listed(subject, tmp_path):
    write_pictures(subject, tmp_path / "images")
    names = [str((tmp_path / "images" / name).with_suffix("")) for name in subject.table.names]
    (tmp_path / "images" / subject.table.names[0]).with_suffix(".JPEG").unlink()
    (tmp_path / "images" / subject.table.names[1]).with_suffix(".jpg").write_bytes(b"no image")
    Image.new("RGB", (41, 30)).save((tmp_path / "images" / subject.table.names[2]).with_suffix(".jpeg"))
    (tmp_path / "report.html").write_text("of an earlier run")
    done = run_evaluator(
        tmp_path, "--report", "report.html", "--image-dir", tmp_path / "images", "--output", "scores.json"
    )
    assert done.returncode == 1
    message = done.stderr[done.stderr.index("error:") :]
    assert "3 of the 12 images that the report shows cannot be read" in message
    assert f"{names[0]}.JPEG: no such image, nor with .jpg, .jpeg, .png" in message
    assert f"{names[1]}.jpg: no image; get it again" in message
    assert f"{names[2]}.jpeg: 41 x 30 pixels, but its mask has 40 x 30" in message
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
    done = run_evaluator(tmp_path, *arguments)
    assert (done.returncode, message in done.stderr) == (code, True), done.stderr
    assert not list(tmp_path.glob("*.html"))


@pytest.mark.skipif(not REAL.is_dir(), reason="the real masks are not beside the checkout")
def test_real_masks(tmp_path):
    gt_dir = REAL / "validation-segmentation"
    names = sorted(str(path.relative_to(gt_dir)) for path in gt_dir.glob("*/*.png"))[::19]
    (tmp_path / "names.txt").write_text("\n".join(names))
    done = script(
        "evaluation/evaluator.py",
        *("--gt-dir", gt_dir, "--predict-dir", REAL / "predictions", "--names", "names.txt"),
        *("--mode", 50, "--report", "report.html"),
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stderr
    page = Page((tmp_path / "report.html").read_text())
    assert f", {len(names)} images" in page.text and "goldfish" in page.text
