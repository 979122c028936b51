"""Arguments that several scripts share: numbers, paths, and a parser that names a mistyped flag."""

from __future__ import annotations

import argparse
import difflib
import math
import sys
import textwrap
from collections.abc import Callable, Sequence
from pathlib import Path

from imagenets.classes import Mode, find_mode


def whole_number(lowest: int, highest: int) -> Callable[[str], int]:
    """Return an argparse type: whole numbers from ``lowest``, not negative, to ``highest``."""

    def parse(text: str) -> int:
        if not text.isascii() or not text.isdecimal() or not lowest <= int(text) <= highest:
            raise argparse.ArgumentTypeError(f"{text!r} is not a whole number in {lowest}..{highest}")
        return int(text)

    return parse


def number_in(lowest: float, highest: float) -> Callable[[str], float]:
    """Return an argparse type: numbers from ``lowest`` to ``highest``."""

    def parse(text: str) -> float:
        value = _number(text)
        if not lowest <= value <= highest:
            raise argparse.ArgumentTypeError(f"{text!r} is not a number in {lowest:g}..{highest:g}")
        return value

    return parse


def threshold_argument(text: str) -> float | None:
    """Argument type: a fraction, or ``auto`` (None)."""
    return None if text == "auto" else number_in(0, 1)(text)


def positive_number(text: str) -> float:
    """Argument type: a number above 0."""
    value = _number(text)
    if not 0 < value < math.inf:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number above 0")
    return value


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return math.nan


def path_argument(text: str) -> Path:
    """Argument type: a path. An empty one, as from an unset shell variable, would mean the working folder."""
    if not text:
        raise argparse.ArgumentTypeError("an empty path: is a shell variable unset?")
    return Path(text)


def mode_argument(text: str) -> Mode:
    """Argument type: 50, 300, 919, or the path of a class list."""
    try:
        return find_mode(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def add_mode_argument(parser: argparse.ArgumentParser, use: str, required: bool = True) -> None:
    """Add --mode; ``use`` says what the script takes from it."""
    parser.add_argument(
        "--mode",
        type=mode_argument,
        required=required,
        metavar="{50,300,919,LIST}",
        help=f"{use}: 50, 300, 919, or the path of your own class list (docs/own_data.md)",
    )


def add_save_dir_argument(parser: argparse._ActionsContainer) -> None:
    """Add --save-dir, for ``check_save_dir``."""
    parser.add_argument(
        "--save-dir",
        type=path_argument,
        help="folder of the prepared sets, which holds ImageNetS50 etc.; leave it out with your own class "
        "list, whose folder is the data set",
    )


def add_split_arguments(parser: argparse.ArgumentParser, splits: Sequence[str]) -> None:
    """Add a split with masks of a prepared set, and the new folder that the script makes of it."""
    add_save_dir_argument(parser)
    add_mode_argument(parser, "the prepared set")
    parser.add_argument(
        "--split", choices=splits, default="validation", help="split of the set (default: validation)"
    )
    parser.add_argument(
        "--output-dir",
        type=path_argument,
        required=True,
        metavar="DIR",
        help="a folder that does not exist yet",
    )


def add_path(parser: argparse.ArgumentParser, flag: str, metavar: str, help: str) -> None:
    """Add an optional argument that is a file or folder."""
    parser.add_argument(flag, type=path_argument, metavar=metavar, help=help)


def check_save_dir(parser: argparse.ArgumentParser, arguments: argparse.Namespace) -> None:
    """End with wrong usage where --mode and --save-dir do not go together."""
    try:
        arguments.mode.set_folder(arguments.save_dir)
    except ValueError as error:
        parser.error(f"--save-dir: {error}")


class _WholeWords(argparse.RawDescriptionHelpFormatter):
    """Wrap help texts between words only: ``--save-dir`` and file names stay in one piece."""

    def _split_lines(self, text: str, width: int) -> list[str]:
        return textwrap.wrap(" ".join(text.split()), width, break_long_words=False, break_on_hyphens=False)


def parse(parser: argparse.ArgumentParser, arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse the command line; for an unknown flag, suggest the nearest one.

    argparse by itself would report the required flags as missing, and not the mistyped one.
    """
    parser.formatter_class = _WholeWords
    given = sys.argv[1:] if arguments is None else list(arguments)
    known = list(parser._option_string_actions)
    for argument in given:
        flag = argument.partition("=")[0]
        if argument == "--":
            break
        if argument.startswith("--") and " " not in argument and flag not in known:
            like = difflib.get_close_matches(flag, known, 1)
            parser.error(f"unrecognized arguments: {flag}" + (f"; did you mean {like[0]}?" if like else ""))
    return parser.parse_args(given)
