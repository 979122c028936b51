"""What tests of HTML pages share: names that want out of a page, what a page holds, and its input."""

from __future__ import annotations

import re
from html.parser import HTMLParser

import numpy as np
from masksets import table_of, write_mask
from PIL import Image

from imagenets.classes import class_table
from imagenets.reporting.html import Subject
from imagenets.scoring.contingency import Rows, make_table

# A class folder's name: a page that does not escape it runs the script, or reports an error.
EVIL = "Evil<script>document.title='broken'<img src=x onerror=\"document.title='broken'\">&amp;{{ 7*7 }}"
FOLDERS = [EVIL] + [f"n{i:08d}" for i in range(1, 50)]


class Page(HTMLParser):
    """The start tags of a page with their attributes, its text, and the text of each row of its tables."""

    def __init__(self, html):
        super().__init__()
        self.tags, self.text = [], []
        self.feed(html)
        self.text = " ".join(" ".join(self.text).split())
        rows = re.findall(r"<tr>(.*?)</tr>", html, re.S)
        self.rows = [" ".join(re.sub("<[^>]+>", " ", row).split()) for row in rows]

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))

    def handle_data(self, data):
        self.text.append(data)

    def attributes(self, *names):
        return [attributes[name] for _, attributes in self.tags for name in names if name in attributes]


def named_table(images, names):
    """``table_of`` the images (ground truth, prediction), under these names."""
    table = table_of(images)
    rows = Rows(*(getattr(table, field) for field in Rows._fields))
    return make_table(names, table.largest_prediction, [rows])


def write_subject(folder, count=12, classes=4, height=30, width=40, shift=0, **more):
    """Write pairs of masks, some in a folder called EVIL, and return the Subject of a report on them.

    Each image has an object of one of the first ``classes``; the prediction finds ever less of it, as a label
    larger by ``shift``. ``more`` are further fields of the Subject.
    """
    images, names = [], []
    for i in range(count):
        truth, prediction = np.zeros((2, height, width), int)
        label = 1 + i % classes
        bottom, columns = 2 * height // 3, slice(width // 8, 5 * width // 8)
        truth[height // 6 : bottom, columns] = label
        prediction[height // 6 : bottom - 1 - i, columns] = label + shift
        truth[5 * height // 6 :, : width // 4] = 1000
        images.append((truth, prediction))
        names.append(f"{FOLDERS[label - 1]}/image_{i:02d}.png")
        write_mask(folder / "gt" / names[-1], truth)
        write_mask(folder / "pred" / names[-1], prediction)
    for name in FOLDERS:
        (folder / "gt" / name).mkdir(exist_ok=True)
    table = named_table(images, names)
    return Subject("50", folder / "gt", folder / "pred", table, class_table(50, FOLDERS), **more)


def write_pictures(folder, names, height, width, suffixes=(".JPEG",)):
    """Write a picture of noise for each mask's name; return their paths."""
    rng = np.random.default_rng(1)
    paths = [(folder / name).with_suffix(suffixes[i % len(suffixes)]) for i, name in enumerate(names)]
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (height, width, 3), np.uint8)).save(path)
    return paths


def table_of_noise(rng):
    """A table as large as they get: 919 classes, 12,419 images, each with five rows of random labels."""
    names = [f"n{i % 919:08d}/ILSVRC2012_val_{i:08d}.png" for i in range(12_419)]
    count = 5 * len(names)
    labels = rng.integers(0, 920, (2, count))
    pixels = rng.integers(1, 50_000, count)
    rows = Rows(np.repeat(np.arange(len(names)), 5), *labels, *np.zeros((2, count)), pixels)
    return make_table(names, np.full(len(names), 919), [rows])


def write_noise(rng, folder, names, sides, height=270, width=360):
    """The worst pictures and masks that there are, below ``folder``: noise."""
    for name in names:
        for side in sides:
            write_mask(folder / side / name, rng.integers(0, 920, (height, width)))
    write_pictures(folder / "images", names, height, width)
