"""Shared by all HTML pages: one file, no network, escaped names, colours."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import jinja2
import numpy as np

from imagenets.classes import BACKGROUND, ClassInfo, benchmark_title, label_name
from imagenets.common.version import __version__
from imagenets.reporting.overlays import label_colours

_LEGEND_ENTRIES = 6


class LegendEntry(NamedTuple):
    """A label of a legend, and its IoU in percent if it is to be shown."""

    name: str
    colour: str
    iou: float | None


class Legend(NamedTuple):
    """The labels of one mask of a figure, and how many more it has."""

    title: str
    entries: list[LegendEntry]
    more: int


def render_page(template: str, date: str | None = None, **values: object) -> str:
    """Fill a page of ``templates/``; values are escaped, and a missing value is an error.

    Its foot says which version of the toolbox made it and, with ``date``, on which day.
    """
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("imagenets.reporting"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["thousands"] = "{:,}".format
    environment.filters["decimal"] = decimal
    environment.filters["signed"] = signed
    environment.filters["benchmark_title"] = benchmark_title
    return environment.get_template(template).render(values, date=date, version=__version__)


def decimal(value: float) -> str:
    """Write a percentage with two decimals, a dash if it does not exist."""
    return "–" if math.isnan(value) else f"{value:.2f}"


def signed(value: float) -> str:
    """Write a difference of percentages with its sign, a dash if it does not exist."""
    if math.isnan(value):
        return "–"
    return "0.00" if round(value, 2) == 0 else f"{value:+.2f}".replace("-", "−")


def hex_colour(colour: Iterable[int]) -> str:
    """Write (red, green, blue), 0..255, as CSS does."""
    return "#" + bytes(colour).hex()


def label_colour(label: int) -> str:
    """Colour of a label as CSS writes it; the background is see-through."""
    return "transparent" if label == BACKGROUND else hex_colour(label_colours(np.array(label)).tolist())


def label_legend(
    title: str,
    classes: Sequence[ClassInfo],
    labels: np.ndarray,
    pixels: np.ndarray,
    ious: Mapping[int, float] | None = None,
) -> Legend:
    """List the labels (n,) of a mask that have ``pixels`` (n,) in it, those with most pixels first."""
    order = np.argsort(-pixels, kind="stable")
    found = labels[order][pixels[order] > 0].tolist()
    entries = [
        LegendEntry(label_name(classes[label]), label_colour(label), None if ious is None else ious[label])
        for label in found[:_LEGEND_ENTRIES]
    ]
    return Legend(title, entries, max(0, len(found) - _LEGEND_ENTRIES))


def names_of_folders(classes: Iterable[ClassInfo]) -> dict[str, str]:
    """Name the class of each wnid's folder, merged ones included, if it has another name."""
    return {
        wnid: label_name(info)
        for info in classes
        for wnid in (info.wnid, *info.merged)
        if wnid is not None and wnid != label_name(info)
    }
