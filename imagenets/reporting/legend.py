"""Legends below drawn pictures: what each colour stands for, in lines that fit."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from imagenets.classes import BACKGROUND, IGNORE
from imagenets.reporting.overlays import label_colours

INK, PAPER = (20, 20, 20), (255, 255, 255)
_ENTRIES = 12  # of one group; the others are counted
_LEAST_WIDTH = 18  # in sizes of letters; a legend below a narrower picture is wider than it
_Colour = tuple[int, ...]


class Group(NamedTuple):
    """Entries of a legend, name and colour, that share a title ("" for none)."""

    title: str
    entries: Sequence[tuple[str, _Colour]]


class _Item(NamedTuple):
    """A text of the legend at ``left`` pixels of its line, and the colour of the square before it, if any."""

    left: float
    text: str
    colour: _Colour | None


def font_size(height: int, width: int) -> int:
    """Size of the texts around a picture, in pixels: it grows with the picture."""
    return max(11, round(max(height, width) / 36))


def label_entries(labels: np.ndarray, name_of: Callable[[int], str]) -> list[tuple[str, _Colour]]:
    """List the labels of a mask (H, W), those with most pixels first: the name and the colour of each.

    Background and ignored pixels have no colour, and are left out.
    """
    found, pixels = np.unique(labels, return_counts=True)
    return [
        (name_of(label), tuple(label_colours(np.array(label)).tolist()))
        for label in found[np.argsort(-pixels, kind="stable")].tolist()
        if label not in (BACKGROUND, IGNORE)
    ]


def with_legend(picture: Image.Image, groups: Sequence[Group], size: int) -> Image.Image:
    """Put a legend below a picture, in letters of ``size`` pixels.

    Each group begins a line, and takes as many as it needs. Entries beyond the first twelve are counted, and
    names too long for a line are shortened.
    """
    font = ImageFont.load_default(size)
    line = round(1.5 * size)
    margin = line // 2
    width = max(picture.width, _LEAST_WIDTH * size)
    rows = [row for group in groups for row in _rows(group, font, line, width - 2 * margin)]
    if not rows:
        return picture
    page = Image.new("RGB", (width, picture.height + margin + len(rows) * line), PAPER)
    page.paste(picture, (0, 0))
    pen = ImageDraw.Draw(page)
    for index, row in enumerate(rows):
        middle = picture.height + margin // 2 + (index + 0.5) * line
        for item in row:
            left = margin + item.left
            if item.colour is not None:
                half = size / 2.5
                pen.rectangle(
                    (left, middle - half, left + 2 * half, middle + half), fill=item.colour, outline=INK
                )
                left += size
            pen.text((left, middle), item.text, INK, font, anchor="lm")
    return page


def _rows(
    group: Group, font: ImageFont.FreeTypeFont | ImageFont.ImageFont, line: int, width: int
) -> list[list[_Item]]:
    """Break a group into lines at most ``width`` pixels wide."""
    shown: list[tuple[str, _Colour | None]] = [*group.entries[:_ENTRIES]]
    more = len(group.entries) - len(shown)
    texts = [
        *([(group.title, None)] if group.title else []),
        *(shown if shown or not group.title else [("none", None)]),
        *([(f"and {more} more", None)] if more else []),
    ]
    rows: list[list[_Item]] = []
    left = float(width)
    for text, colour in texts:
        square = line if colour else 0
        while len(text) > 1 and font.getlength(text) + square > width:
            text = f"{text.removesuffix('…')[:-1]}…"
        needed = font.getlength(text) + square
        if not rows or left + needed > width:
            rows.append([])
            left = 0.0
        rows[-1].append(_Item(left, text, colour))
        left += needed + 0.5 * line
    return rows
