"""Tables as CSV."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Iterable, Sequence


def csv_text(header: Sequence[object], rows: Iterable[Iterable[object]]) -> str:
    """Format a table as CSV; lines end with a line feed, and numbers have every digit."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(header)
    writer.writerows(rows)
    return out.getvalue()


def or_empty(score: float) -> float | str:
    """Return the score for a cell, or nothing where there is none (nan)."""
    return "" if math.isnan(score) else score
