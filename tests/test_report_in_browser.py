"""The report in a real browser: no console error, tables that sort and filter, images that show.

Skipped where there is no chromium (or chrome) with its chromedriver; .ci/run installs them.
"""

from __future__ import annotations

import re
import shutil

import pytest
from helpers.pages import EVIL, FOLDERS, named_table, write_pictures, write_subject

from imagenets.classes import class_table
from imagenets.masks import decode_mask
from imagenets.reporting.comparison_page import Methods, comparison_html
from imagenets.reporting.html import html_report
from imagenets.reporting.published import read_standings
from imagenets.reporting.table import ResultTable, Row, published_row, table_html
from imagenets.scoring.comparison import Method, Run, compare
from imagenets.scoring.matching import Matching, class_lookup
from imagenets.scoring.metrics import SCORES, evaluate

BROWSER = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
DRIVER = shutil.which("chromedriver")
pytestmark = pytest.mark.skipif(not (BROWSER and DRIVER), reason="no chromium with chromedriver here")

LONG = "a method with a name that is longer than the screen of a phone is wide"
FLAGS = (
    "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-quic", "--disable-dev-shm-usage",
    "--no-first-run", "--disable-background-networking", "--disable-component-update", "--disable-sync",
)  # fmt: skip


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    """A report of 18 images and 50 classes, one with a name that wants out; its path."""
    folder = tmp_path_factory.mktemp("report")
    matching = Matching.of({k: k - 1 if k > 1 else 50 * k for k in range(51)})
    more = {"matching": matching, "match": "mine", "image_dir": folder / "images"}
    subject = write_subject(
        folder, 18, 18, 60, 80, shift=1, standings=read_standings("50", None, None), **more
    )
    write_pictures(folder / "images", subject.table.names, 60, 80)
    evaluation = evaluate(subject.table, 50, class_lookup(matching))
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


def show(browser, width, scheme, media=""):
    metrics = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": False}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    features = [{"name": "prefers-color-scheme", "value": scheme}]
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": media, "features": features})


def style(page, selector, what):
    """A property of the first element that a selector finds, as it is computed."""
    script = "return getComputedStyle(document.querySelector(arguments[0]))[arguments[1]]"
    return page.execute_script(script, selector, what)


def cut_off(page):
    """By how many pixels the contents of tables, charts and page are wider and higher than their boxes."""
    return page.execute_script(
        "return [...document.querySelectorAll('.scroll, .chart, body')].map((e) =>"
        "[e.scrollWidth - e.clientWidth, e === document.body ? 0 : e.scrollHeight - e.clientHeight])"
    )


def column(page, table, index):
    """Texts of one column of a table, of the rows that are shown."""
    return page.execute_script(
        "return [...document.querySelectorAll(`#${arguments[0]} tbody tr:not([hidden])`)]"
        ".map((row) => row.cells[arguments[1]].textContent.trim())",
        table,
        index,
    )


def header(page, table, title):
    cells = page.find_elements("css selector", f"#{table} thead th")
    return next(cell for cell in cells if cell.text.startswith(title))


def sort_by(page, table, title):
    cell = header(page, table, title)
    cell.find_element("tag name", "button").click()
    return cell.get_attribute("aria-sort")


def test_loads_without_a_word_and_pictures_show(page):
    assert page.get_log("browser") == []
    assert page.title.startswith("ImageNet-S-50: mIoU ")
    widths = page.execute_script(
        "return Promise.all([...document.images].map((i) => i.decode().then(() => i.naturalWidth)))"
    )
    assert len(widths) == 3 * 8 * 4 and set(widths) == {80}
    shown = page.execute_script("return [...document.images].map((i) => i.getBoundingClientRect().width)")
    assert min(shown) > 200
    page.execute_script("const image = new Image(); image.src = 'https://localhost:1/x.png'")
    said = [entry["message"] for entry in page.get_log("browser")]
    assert any("Content Security Policy" in message for message in said), "an error would be seen"


def test_table_sorts_by_numbers_and_text(page):
    assert sort_by(page, "class-table", "IoU") == "descending"
    values = [float(text) for text in column(page, "class-table", 2)]
    assert len(values) == 51 and values == sorted(values, reverse=True) and len(set(values)) > 10
    assert sort_by(page, "class-table", "IoU") == "ascending"
    assert [float(text) for text in column(page, "class-table", 2)] == values[::-1]
    sort_by(page, "class-table", "pixels")
    values = [int(text.replace(",", "")) for text in column(page, "class-table", 5)]
    assert values == sorted(values, reverse=True) and values[0] > 1000 > values[-1]
    sort_by(page, "class-table", "wnid")
    texts = column(page, "class-table", 8)
    assert texts[0] == "–" and texts[1].startswith("Evil<script>") and texts[2:] == sorted(texts[2:])
    cells = page.find_elements("css selector", "#class-table thead th")
    states = [cell.get_attribute("aria-sort") for cell in cells]
    assert sorted(states) == ["ascending"] + ["none"] * 8
    sort_by(page, "standing-table", "on test")
    values = [-1.0 if text == "–" else float(text) for text in column(page, "standing-table", 2)]
    assert values == sorted(values, reverse=True) and values[0] > 0 > values[-1]


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
    sort_by(page, "class-table", "id")  # while filtered; and all are back after
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
    colours = (("body", "backgroundColor"), ("body", "color"), (".chart text", "fill"))
    ground, text, chart = (
        sum(map(int, re.findall(r"\d+", style(page, *colour))[:3])) / 765 for colour in colours
    )
    assert (ground > 0.9) == (scheme == "light") == (text < 0.2) and chart == text
    smallest = page.execute_script(
        "return Math.min(...[...document.querySelectorAll('.chart text')].map((text) => {"
        "const matrix = text.getScreenCTM();"
        "return parseFloat(getComputedStyle(text).fontSize) * Math.hypot(matrix.a, matrix.b); }))"
    )
    assert smallest >= 8


def test_nothing_is_cut_off_on_paper(page):
    """On A4 between its margins: all of every table and chart, in dark ink, without what is to be clicked."""
    show(page, 703, "dark", "print")
    hidden = cut_off(page)
    assert len(hidden) > 5 and max(map(max, hidden)) <= 1, hidden
    assert style(page, "body", "backgroundColor") == "rgb(255, 255, 255)"
    assert style(page, "nav", "display") == "none"
    # Chromium leaves buttons out of the headers that it repeats on a new page.
    assert style(page, "th button", "display") == "contents"


@pytest.fixture(scope="module")
def pages(report):
    """The pages of the report, and of a comparison and a table, made of its masks; their addresses."""
    folder = report.parent
    names = sorted(str(path.relative_to(folder / "gt")) for path in (folder / "gt").glob("*/*.png"))
    images = [tuple(decode_mask(folder / side / name) for side in ("gt", "pred")) for name in names]
    tables = [named_table(images, names), named_table([(truth, truth % 1000) for truth, _ in images], names)]
    methods = [
        Method(name, (Run(str(folder / side), None, table, None),))
        for name, side, table in zip((LONG, "truth"), ("pred", "gt"), tables, strict=True)
    ]
    about = Methods("50", folder / "gt", *methods, class_table(50, FOLDERS), folder / "images")
    (folder / "comparison.html").write_text(comparison_html(about, compare(*methods, 50, 20, 0)))
    scores = {name: 12.345 + i for i, name in enumerate(SCORES)}
    deviations = dict.fromkeys(SCORES, 1.234)
    rows = [Row(EVIL, 3, scores, deviations), *map(published_row, read_standings("50", None, None))]
    (folder / "table.html").write_text(table_html(ResultTable("50", 18, rows)))
    return {name: (folder / f"{name}.html").as_uri() for name in ("report", "comparison", "table")}


@pytest.mark.parametrize(
    ("name", "table", "titles"),
    [
        ("report", "class-table", ("class", "IoU")),
        ("report", "standing-table", ("method", "mIoU", "on test")),
        ("report", "cluster-table", ("cluster", "class")),
        ("comparison", "score-table", ("score", LONG, "difference", "95 %")),
        ("table", "methods", ("method", "mIoU")),
    ],
)
def test_scores_stand_beside_names_on_a_phone(browser, pages, name, table, titles):
    """What a table is read for is to be seen without scrolling it sideways."""
    show(browser, 400, "light")
    browser.get(pages[name])
    for title in titles:
        place = header(browser, table, title).rect
        assert place["x"] + place["width"] <= 400 - 16, title
    if name == "table":  # scrolled to its end, it still says whose scores they are
        browser.execute_script("document.querySelector('.scroll').scrollLeft = 9999")
        assert header(browser, "methods", "method").rect["x"] < 40


@pytest.mark.parametrize(("name", "paper"), [("comparison", 703), ("table", 1032)])
def test_other_pages_fit_in_both_schemes_and_on_paper(browser, pages, name, paper):
    for width in (1280, 400):
        for scheme in ("light", "dark"):
            show(browser, width, scheme)
            browser.get(pages[name])
            assert browser.execute_script("return document.documentElement.scrollWidth") <= width
            ground = style(browser, "body", "backgroundColor")
            assert (ground == "rgb(255, 255, 255)") == (scheme == "light")
    assert browser.get_log("browser") == [] and browser.title.startswith("ImageNet-S-50")
    button = browser.find_element("css selector", "table.sortable th.number button")
    browser.execute_script("arguments[0].click()", button)
    assert button.find_element("xpath", "..").get_attribute("aria-sort") == "descending"
    show(browser, paper, "light", "print")  # A4 between its margins, the table on its side
    assert max(width for width, _ in cut_off(browser)) <= 1
