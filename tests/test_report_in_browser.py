"""The report in a real browser: no console error, tables that sort and filter, images that show.

Skipped where there is no chromium (or chrome) with its chromedriver; .ci/run installs them.
"""

from __future__ import annotations

import shutil
from dataclasses import replace

import numpy as np
import pytest
from masksets import table_of, write_mask
from PIL import Image

from imagenets.classes import class_table
from imagenets.masks import decode_mask
from imagenets.reporting.comparison_page import Methods, comparison_html
from imagenets.reporting.html import Subject, html_report
from imagenets.reporting.published import read_standings
from imagenets.reporting.table import ResultTable, Row, published_row, table_html
from imagenets.scoring.comparison import Method, Run, compare
from imagenets.scoring.contingency import Rows, make_table
from imagenets.scoring.matching import Matching
from imagenets.scoring.metrics import SCORES, evaluate

BROWSER = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
DRIVER = shutil.which("chromedriver")
pytestmark = pytest.mark.skipif(not (BROWSER and DRIVER), reason="no chromium with chromedriver here")

EVIL = (
    "Evil<script>document.title='broken'</script>".replace("/", "")
    + "<img src=x onerror=\"document.title='broken'\">"
)
LONG = "a method with a name that is longer than the screen of a phone is wide"
FLAGS = (
    "--headless=new",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--disable-dev-shm-usage",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    """A report of 18 images and 50 classes, one with a name that wants out; its path."""
    folder = tmp_path_factory.mktemp("report")
    folders = [EVIL] + [f"n{i:08d}" for i in range(1, 50)]
    rng = np.random.default_rng(0)
    images, names = [], []
    for i in range(18):
        truth, prediction = np.zeros((60, 80), int), np.zeros((60, 80), int)
        truth[5:40, 5:50] = 1 + i
        prediction[5 : 40 - i, 5:50] = 1 + (i + 1) % 50
        images.append((truth, prediction))
        names.append(f"{folders[i]}/image.png")
        for side, mask in zip(("gt", "pred"), images[-1], strict=True):
            write_mask(folder / side / names[-1], mask)
        picture = (folder / "images" / names[-1]).with_suffix(".JPEG")
        picture.parent.mkdir(parents=True)
        Image.fromarray(rng.integers(0, 256, (60, 80, 3), np.uint8)).save(picture)
    table = table_of(images)
    table = make_table(names, table.largest_prediction, [Rows(*(getattr(table, f) for f in Rows._fields))])
    matching = {k: k - 1 if k > 1 else 50 * k for k in range(51)}
    subject = Subject(
        mode="50",
        gt_dir=folder / "gt",
        predict_dir=folder / "pred",
        table=table,
        classes=class_table(50, folders),
        matching=Matching.of(matching),
        match="mine",
        image_dir=folder / "images",
        standings=read_standings("50", None, None),
    )
    evaluation = evaluate(table, 50, np.array([matching[k] for k in range(51)]))
    path = folder / "report.html"
    path.write_text(html_report(subject, evaluation, {"mIoU": (1.0, 2.0), "S": (3.0, 99.0)}))
    return path


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    from selenium import webdriver
    from selenium.webdriver.chrome.service import Service

    options = webdriver.ChromeOptions()
    options.binary_location = BROWSER
    for flag in (*FLAGS, f"--user-data-dir={tmp_path_factory.mktemp('profile')}"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options=options, service=Service(DRIVER))  # a path: selenium downloads nothing
    yield driver
    driver.quit()


@pytest.fixture
def page(browser, report):
    """The browser with the report freshly loaded, 1280 pixels wide, light."""
    show(browser, 1280, "light")
    browser.get(report.as_uri())
    return browser


def show(browser, width, scheme):
    metrics = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": False}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    features = [{"name": "prefers-color-scheme", "value": scheme}]
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})


def column(page, table, index):
    """Texts of one column of a table, of the rows that are shown."""
    return page.execute_script(
        "return [...document.querySelectorAll(`#${arguments[0]} tbody tr:not([hidden])`)]"
        ".map((row) => row.cells[arguments[1]].textContent.trim())",
        table,
        index,
    )


def header(page, table, title):
    for cell in page.find_elements("css selector", f"#{table} thead th"):
        if cell.text.startswith(title):
            return cell
    raise AssertionError(f"no column {title}")


def test_loads_without_a_word(page):
    assert page.get_log("browser") == []
    assert page.title.startswith("ImageNet-S-50: mIoU ")


def test_console_errors_would_be_seen(page):
    page.execute_script("const image = new Image(); image.src = 'https://localhost:1/x.png'")
    assert any("Content Security Policy" in entry["message"] for entry in page.get_log("browser"))


def test_pictures_show(page):
    widths = page.execute_script(
        "return Promise.all([...document.images].map((i) => i.decode().then(() => i.naturalWidth)))"
    )
    assert len(widths) == 3 * 8 * 4 and set(widths) == {80}
    shown = page.execute_script("return [...document.images].map((i) => i.getBoundingClientRect().width)")
    assert min(shown) > 200


def test_table_sorts_by_numbers_and_text(page):
    iou = header(page, "class-table", "IoU")
    iou.find_element("tag name", "button").click()
    values = [float(text) for text in column(page, "class-table", 2)]
    assert len(values) == 51 and values == sorted(values, reverse=True) and len(set(values)) > 10
    assert iou.get_attribute("aria-sort") == "descending"
    iou.find_element("tag name", "button").click()
    assert [float(text) for text in column(page, "class-table", 2)] == values[::-1]
    assert iou.get_attribute("aria-sort") == "ascending"
    pixels = header(page, "class-table", "pixels")
    pixels.find_element("tag name", "button").click()
    values = [int(text.replace(",", "")) for text in column(page, "class-table", 5)]
    assert values == sorted(values, reverse=True) and values[0] > 1000 > values[-1]
    wnid = header(page, "class-table", "wnid")
    wnid.find_element("tag name", "button").click()
    texts = column(page, "class-table", 8)
    assert texts[0] == "–" and texts[1].startswith("Evil<script>") and texts[2:] == sorted(texts[2:])
    states = [
        cell.get_attribute("aria-sort")
        for cell in page.find_elements("css selector", "#class-table thead th")
    ]
    assert sorted(states) == ["ascending"] + ["none"] * 8


def test_table_sorts_by_keyboard(page):
    button = header(page, "cluster-table", "class").find_element("tag name", "button")
    before = column(page, "cluster-table", 0)
    button.send_keys("\n")
    after = column(page, "cluster-table", 0)
    assert before == [str(k) for k in range(1, 51)] and after != before and sorted(after) == sorted(before)
    assert page.switch_to.active_element == button


def test_table_filters(page):
    field = page.find_element("id", "class-table-filter")
    field.send_keys("N0000001")
    assert column(page, "class-table", 8) == [f"n0000001{i}" for i in range(10)]
    assert "10 of 51 labels" in page.find_element("css selector", "#classes output").text
    # Sorted while filtered, and all back after.
    header(page, "class-table", "id").find_element("tag name", "button").click()
    assert column(page, "class-table", 8) == [f"n0000001{i}" for i in reversed(range(10))]
    field.send_keys("x")
    assert column(page, "class-table", 8) == []
    field.send_keys("\b" * 20)
    assert len(column(page, "class-table", 8)) == 51
    field.send_keys("eVIL<")
    assert column(page, "class-table", 0) == ["1"]
    assert len(column(page, "cluster-table", 0)) == 50, "the other table is left alone"


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 400])
def test_fits_and_is_legible(page, width, scheme):
    show(page, width, scheme)
    assert page.execute_script("return document.documentElement.scrollWidth") <= width
    colour = page.execute_script(
        "const of = (selector, what) => getComputedStyle(document.querySelector(selector))[what];"
        "return [of('body', 'backgroundColor'), of('body', 'color'), of('.chart text', 'fill')]"
    )
    ground, text, chart = (sum(map(int, c[c.index("(") + 1 : -1].split(",")[:3])) / 765 for c in colour)
    assert (ground > 0.9) == (scheme == "light") == (text < 0.2) and chart == text
    smallest = page.execute_script(
        "return Math.min(...[...document.querySelectorAll('.chart text')].map((text) => {"
        "const matrix = text.getScreenCTM();"
        "return parseFloat(getComputedStyle(text).fontSize) * Math.hypot(matrix.a, matrix.b); }))"
    )
    assert smallest >= 8


def test_scores_stand_beside_names_on_a_phone(page):
    """What a table is read for is to be seen without scrolling it sideways."""
    show(page, 400, "light")
    for table, titles in (
        ("class-table", ("class", "IoU")),
        ("standing-table", ("method", "mIoU", "on test")),
        ("cluster-table", ("cluster", "class")),
    ):
        for title in titles:
            cell = header(page, table, title)
            right = page.execute_script("return arguments[0].getBoundingClientRect().right", cell)
            assert right <= 400 - 16, (table, title)


def test_results_on_test_are_sorted_by_number(page):
    header(page, "standing-table", "on test").find_element("tag name", "button").click()
    values = [-1.0 if text == "–" else float(text) for text in column(page, "standing-table", 2)]
    assert values == sorted(values, reverse=True) and values[0] > 0 > values[-1]


def test_nothing_is_cut_off_on_paper(page):
    """On A4 between its margins: all of every table and chart, in dark ink, without what is to be clicked."""
    show(page, 703, "dark")
    features = [{"name": "prefers-color-scheme", "value": "dark"}]
    page.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": "print", "features": features})
    hidden = page.execute_script(
        "return [...document.querySelectorAll('.scroll, .chart, body')].map((e) =>"
        "[e.scrollWidth - e.clientWidth, e === document.body ? 0 : e.scrollHeight - e.clientHeight])"
    )
    assert len(hidden) > 5 and max(map(max, hidden)) <= 1, hidden
    ground, button, menu = page.execute_script(
        "const of = (selector, what) => getComputedStyle(document.querySelector(selector))[what];"
        "return [of('body', 'backgroundColor'), of('th button', 'display'), of('nav', 'display')]"
    )
    assert ground == "rgb(255, 255, 255)" and menu == "none"
    assert button == "contents", "Chromium leaves buttons out of the headers that it repeats on a new page"
    page.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": ""})


@pytest.fixture(scope="module")
def other_pages(report):
    """The pages of a comparison and of a table, made of the report's masks; their paths."""
    folder = report.parent
    names = sorted(str(path.relative_to(folder / "gt")) for path in (folder / "gt").glob("*/*.png"))
    images = [tuple(decode_mask(folder / side / name) for side in ("gt", "pred")) for name in names]
    tables = [table_of(images), table_of([(truth, truth % 1000) for truth, _ in images])]
    methods = [
        Method(name, (Run(str(folder / side), None, replace(table, names=tuple(names)), None),))
        for name, side, table in zip((LONG, "truth"), ("pred", "gt"), tables, strict=True)
    ]
    classes = class_table(50, [EVIL] + [f"n{i:08d}" for i in range(1, 50)])
    comparison = compare(*methods, 50, 20, 0)
    page = comparison_html(Methods("50", folder / "gt", *methods, classes, folder / "images"), comparison)
    (folder / "comparison.html").write_text(page)
    scores = {name: 12.345 + i for i, name in enumerate(SCORES)}
    deviations = dict.fromkeys(SCORES, 1.234)
    rows = [Row(EVIL, 3, scores, deviations), *map(published_row, read_standings("50", None, None))]
    (folder / "table.html").write_text(table_html(ResultTable("50", 18, rows)))
    return {"comparison": folder / "comparison.html", "table": folder / "table.html"}


def test_scores_of_other_pages_on_a_phone(browser, other_pages):
    show(browser, 400, "light")
    for name, table, titles in (
        ("comparison", "score-table", ("score", LONG, "difference", "95 %")),
        ("table", "methods", ("method", "mIoU")),
    ):
        browser.get(other_pages[name].as_uri())
        for title in titles:
            cell = header(browser, table, title)
            right = browser.execute_script("return arguments[0].getBoundingClientRect().right", cell)
            assert right <= 400 - 16, (name, title)
    # Scrolled to its end, the table still says whose scores they are.
    browser.execute_script("document.querySelector('.scroll').scrollLeft = 9999")
    assert header(browser, "methods", "method").rect["x"] < 40


@pytest.mark.parametrize("name", ["comparison", "table"])
def test_other_pages_fit_in_both_schemes_and_on_paper(browser, other_pages, name):
    for width in (1280, 400):
        for scheme in ("light", "dark"):
            show(browser, width, scheme)
            browser.get(other_pages[name].as_uri())
            assert browser.execute_script("return document.documentElement.scrollWidth") <= width
            ground = browser.execute_script("return getComputedStyle(document.body).backgroundColor")
            assert (ground == "rgb(255, 255, 255)") == (scheme == "light")
    assert browser.get_log("browser") == [] and browser.title.startswith("ImageNet-S-50")
    button = browser.find_element("css selector", "table.sortable th.number button")
    browser.execute_script("arguments[0].click()", button)
    assert button.find_element("xpath", "..").get_attribute("aria-sort") == "descending"
    # A4 between its margins, the table on its side.
    show(browser, 703 if name == "comparison" else 1032, "light")
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": "print"})
    hidden = browser.execute_script(
        "return [...document.querySelectorAll('.scroll, .chart, body')]"
        ".map((e) => e.scrollWidth - e.clientWidth)"
    )
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": ""})
    assert max(hidden) <= 1, hidden
