"""What scripts show while they work: a bar, and warnings that do not break it."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager

from tqdm import tqdm

from imagenets.common.progress import Advance


def warn(message: str) -> None:
    """Print a warning to stderr."""
    tqdm.write(f"warning: {message}", file=sys.stderr)


@contextmanager
def bar(description: str, total: int | None, *, unit: str, done: int = 0) -> Iterator[Advance]:
    """Show a progress bar on a terminal; elsewhere nothing."""
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
