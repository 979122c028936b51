"""What scripts show while they work: a bar, and lines and warnings that do not break it."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

from tqdm import tqdm

from imagenets.common.progress import Advance

FIRST_LINE, NEXT_LINE = 10.0, 60.0  # seconds between lines where there is no terminal


def print_line(line: str) -> None:
    """Print a line to stdout, above the bar."""
    tqdm.write(line, file=sys.stdout)


def warn(message: str) -> None:
    """Print a warning to stderr."""
    tqdm.write(f"warning: {message}", file=sys.stderr)


@contextmanager
def bar(description: str, total: int | None, *, unit: str, done: int = 0) -> Iterator[Advance]:
    """Show a progress bar on a terminal; elsewhere a line now and then, where the work takes long."""
    if not sys.stderr.isatty():
        yield _lines(description, total, unit, done)
        return
    with tqdm(
        total=total,
        initial=done,
        desc=description,
        unit=unit if unit == "B" else f" {unit}",
        unit_scale=unit == "B",
        disable=None,
        leave=False,
    ) as shown:
        yield lambda units: shown.update(units) and None


def _lines(description: str, total: int | None, unit: str, done: int) -> Advance:
    """Return a function that counts, and prints a line after FIRST_LINE and then every NEXT_LINE seconds."""
    began = time.monotonic()
    due = began + FIRST_LINE
    scale, name = (1e6, "MB") if unit == "B" else (1, unit if unit.endswith("s") else f"{unit}s")

    def advance(units: int) -> None:
        nonlocal done, due
        done += units
        now = time.monotonic()
        if now < due:
            return
        due = now + NEXT_LINE
        of = "" if not total else f" of {total / scale:.0f}"
        share = "" if not total else f" ({100 * done // total} %)"
        print(f"{description}: {done / scale:.0f}{of} {name}{share}, {now - began:.0f} s", file=sys.stderr)

    return advance
