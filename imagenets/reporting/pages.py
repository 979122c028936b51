"""What every HTML page of the toolbox shares: one file, no network, names that cannot break out, colours."""

from __future__ import annotations

import math
from collections.abc import Iterable

import jinja2
import numpy as np

from imagenets.classes import BACKGROUND, benchmark_title
from imagenets.common.version import __version__
from imagenets.reporting.overlays import label_colours


def render_page(template: str, date: str | None = None, **values: object) -> str:
    """Fill a page of ``templates/``; every value is escaped, a value that is missing is an error.

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
    """Write a percentage with two decimals, a dash where it does not exist."""
    return "–" if math.isnan(value) else f"{value:.2f}"


def signed(value: float) -> str:
    """Write a difference of percentages with its sign, a dash where it does not exist."""
    if math.isnan(value):
        return "–"
    return "0.00" if round(value, 2) == 0 else f"{value:+.2f}".replace("-", "−")


def hex_colour(colour: Iterable[int]) -> str:
    """Write (red, green, blue), 0..255, as CSS does."""
    return "#" + bytes(colour).hex()


def label_colour(label: int) -> str:
    """Colour of a label as CSS writes it; the background is see-through."""
    return "transparent" if label == BACKGROUND else hex_colour(label_colours(np.array(label)).tolist())
