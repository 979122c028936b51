"""Progress, warnings, lines for the user: the library calls the script's functions, and prints nothing."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Protocol

Advance = Callable[[int], None]
Warn = Callable[[str], None]
Log = Callable[[str], None]  # takes a line for the user


class Show(Protocol):
    """Open a progress bar; yield the function that advances it by a number of units."""

    def __call__(
        self, description: str, total: int | None, *, unit: str, done: int = 0
    ) -> AbstractContextManager[Advance]:
        """Open a bar of ``total`` units (None: not known), ``done`` of which are finished."""


@contextmanager
def no_bar(description: str, total: int | None, *, unit: str, done: int = 0) -> Iterator[Advance]:
    """Show nothing."""
    yield lambda units: None


def no_warning(message: str) -> None:
    """Ignore the warning."""


def no_log(line: str) -> None:
    """Ignore the line."""
