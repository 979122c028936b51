"""The one exception of the toolbox: bad input, told in a sentence."""

from __future__ import annotations

from collections.abc import Sequence

SHOWN = 10


class InputError(Exception):
    """Bad input. The message names the file and says what to do; scripts print it and exit with 1."""


def listed(problems: Sequence[str]) -> str:
    """Join the first ten problems, a line each, and say how many more there are."""
    lines = [f"  {problem}" for problem in problems[:SHOWN]]
    if len(problems) > SHOWN:
        lines.append(f"  … and {len(problems) - SHOWN} more")
    return "\n".join(lines)


def counted(number: int, noun: str) -> str:
    """Write ``1 thing`` or ``2 things``."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"
