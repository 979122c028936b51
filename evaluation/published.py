#!/usr/bin/env python3
"""Print the mIoU that papers and public repositories report for a mode, by protocol, with sources."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from command_line.startup import run
from command_line.arguments import parse, path_argument
from imagenets.classes import MODES
from imagenets.reporting.published import PROTOCOLS, read_standings, standings_text


def parse_arguments() -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("--mode", choices=MODES, required=True, help="number of classes")
    parser.add_argument("--protocol", choices=PROTOCOLS, help="only this protocol (default: all)")
    parser.add_argument(
        "--results",
        type=path_argument,
        metavar="FILE.csv",
        help="your own results, shown among them; columns: protocol,mode,method,backbone,training,split,"
        "mIoU,source",
    )
    return parse(parser)


def main() -> None:
    """Print the table."""
    arguments = parse_arguments()
    rows = read_standings(arguments.mode, arguments.protocol, arguments.results)
    print(standings_text(rows, arguments.mode))


if __name__ == "__main__":
    run(main)
