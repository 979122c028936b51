#!/usr/bin/env python3
"""Print the scores of several files that evaluator.py saved, one below the other."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from command_line import path_argument, run
from imagenets.reporting.text import text_table


def main() -> None:
    """Read, print."""
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument(
        "scores", type=path_argument, nargs="+", metavar="FILE.json", help="of evaluator.py --output"
    )
    paths = parser.parse_args().scores
    scores = {path.stem: json.loads(path.read_text(encoding="utf-8"))["scores"] for path in paths}
    columns = list(next(iter(scores.values())))
    rows = [
        [name, *("-" if of[column] is None else f"{of[column]:.2f}" for column in columns)]
        for name, of in scores.items()
    ]
    print(text_table(["", *columns], rows, left=(0,)))


if __name__ == "__main__":
    run(main)
