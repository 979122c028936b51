"""The exceptions of the toolbox: bad input, with one clear message, and work that stopped on request."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

SHOWN = 10


class InputError(Exception):
    """Bad input. The message names the file and says what to do; scripts print it and exit with 1.

    ``problems`` lists all problems, of which the message shows the first ten.
    """

    def __init__(self, message: str, problems: Sequence[str] = ()) -> None:
        """Take the message, and all problems if it lists only the first."""
        super().__init__(message)
        self.problems = tuple(problems)


class StoppedError(Exception):
    """Work was stopped on request and is saved; the message says how far it came."""


def problem_of(error: InputError | OSError, path: Path | str | None = None) -> str:
    """Say what is wrong with a file: an InputError's own message, or file and reason of an OSError.

    ``path`` is the name that the user knows; without it, the OSError's own.
    """
    if isinstance(error, InputError):
        return str(error)
    name = path or error.filename
    return f"{name}: {error.strerror or error}" if name else str(error)


@contextmanager
def os_errors_named(path: Path | str, cure: str = "") -> Iterator[None]:
    """Turn an OSError into an InputError that names the file, the reason and, behind it, the ``cure``."""
    try:
        yield
    except OSError as error:
        raise InputError(f"{problem_of(error, path)}{cure}") from error


def listed(problems: Sequence[str]) -> str:
    """Join the first ten problems, a line each, and say how many more there are."""
    lines = [f"  {problem}" for problem in problems[:SHOWN]]
    if len(problems) > SHOWN:
        lines.append(f"  … and {len(problems) - SHOWN} more")
    return "\n".join(lines)


def quantity(number: int, noun: str) -> str:
    """Write ``1 thing`` or ``2 things``."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def refuse(problems: Sequence[str], what: str = "mask") -> None:
    """Raise InputError that says how many of ``what`` cannot be used and lists the first; nothing if none."""
    if problems:
        raise InputError(f"{quantity(len(problems), what)} cannot be used:\n{listed(problems)}", problems)
