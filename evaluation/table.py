#!/usr/bin/env python3
"""Make one table of the scores of many runs: the best in bold, seeds as mean ± standard deviation."""

from __future__ import annotations

import argparse
import fnmatch
import glob
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from command_line.startup import run
from command_line.arguments import parse, path_argument
from command_line.evaluation import check_output, save_results
from command_line.progress import warn
from imagenets.common.errors import InputError, listed
from imagenets.common.folders import distinct_names
from imagenets.reporting.published import PROTOCOLS, read_standings
from imagenets.reporting.score_files import read_scores, refuse_unlike, silent_files
from imagenets.reporting.table import (
    ResultTable,
    method_row,
    published_row,
    table_csv,
    table_html,
    table_latex,
    table_markdown,
    table_text,
)
from imagenets.scoring.metrics import SCORES

FORMATS = {".md": table_markdown, ".tex": table_latex, ".csv": table_csv, ".html": table_html}

Group = tuple[str, str]


def parse_arguments() -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument(
        "files",
        nargs="*",
        type=path_argument,
        metavar="A.json",
        help="score files written by evaluator.py --output; each is a method, named after its file or folder",
    )
    parser.add_argument(
        "--group",
        action="append",
        default=[],
        type=method_and_pattern,
        metavar="METHOD=GLOB",
        help="the runs of one method, one score file per seed, by a (quoted) pattern; may be repeated",
    )
    parser.add_argument("--published", action="store_true", help="also show the published mIoU of the mode")
    parser.add_argument(
        "--results",
        type=path_argument,
        metavar="FILE.csv",
        help="also show your own results; columns: see published.py --help",
    )
    parser.add_argument(
        "--protocol",
        choices=PROTOCOLS,
        help="show only published results, and yours of --results, of this protocol (evaluator.py --protocol "
        "sets that of a run)",
    )
    parser.add_argument(
        "--scores",
        type=score_names,
        metavar="NAME,NAME",
        help=f"columns to show, out of {', '.join(SCORES)} (default: all)",
    )
    parser.add_argument(
        "--output", type=path_argument, metavar="FILE", help="save the table: x.md, x.tex, x.csv or x.html"
    )
    arguments = parse(parser)
    if arguments.protocol and not (arguments.published or arguments.results):
        parser.error(
            "--protocol goes with --published or --results; evaluator.py --protocol says that of a run"
        )
    if not arguments.files and not arguments.group:
        parser.error("name score files, or a --group of them")
    if arguments.output and arguments.output.suffix not in FORMATS:
        parser.error(f"--output {arguments.output}: must end in {', '.join(FORMATS)}")
    return arguments


def method_and_pattern(text: str) -> Group:
    """Argument type: ``METHOD=GLOB``."""
    method, _, pattern = (part.strip() for part in text.partition("="))
    if not (method and pattern):
        raise argparse.ArgumentTypeError(f"{text!r} is not METHOD=GLOB")
    return method, pattern


def score_names(text: str) -> tuple[str, ...]:
    """Argument type: names of scores, separated by commas, in any case; each once."""
    known = {score.lower(): score for score in SCORES}
    names = [name.strip() for name in text.split(",")]
    unknown = [name for name in names if name.lower() not in known]
    if unknown:
        raise argparse.ArgumentTypeError(
            f"no such score: {', '.join(unknown)}; choose from {', '.join(SCORES)}"
        )
    return tuple(dict.fromkeys(known[name.lower()] for name in names))


def group_files(files: list[Path], groups: list[Group]) -> dict[str, list[Path]]:
    """List the files of each method: first those in no group, then the groups.

    Raises InputError for a group without files, and for a file in two groups.
    """
    methods: dict[str, list[Path]] = {}
    taken: dict[Path, str] = {}
    for method, pattern in groups:
        # Not Path.glob, which accepts no absolute pattern.
        found = [Path(name) for name in sorted(glob.glob(pattern, recursive=True))]  # noqa: PTH207
        found += [path for path in files if path not in found and fnmatch.fnmatch(str(path), pattern)]
        if not found:
            raise InputError(f"--group {method}: no file matches {pattern}")
        for path in found:
            if taken.setdefault(path.resolve(), method) != method:
                raise InputError(f"{path}: is in the groups {taken[path.resolve()]} and {method}")
            if path not in methods.setdefault(method, []):
                methods[method].append(path)
    single = list({path.resolve(): path for path in files if path.resolve() not in taken}.values())
    names = distinct_names([path.with_suffix("").parts for path in single])
    clash = [name for name in names if name in methods]
    if clash:
        raise InputError(f"a file and a --group share their name:\n{listed(clash)}")
    return {**{name: [path] for name, path in zip(names, single, strict=True)}, **methods}


def main() -> None:
    """Read the score files, print the table, save it."""
    arguments = parse_arguments()
    if arguments.output:
        check_output(arguments.output)
    methods = group_files(arguments.files, arguments.group)
    runs = {name: [read_scores(path) for path in paths] for name, paths in methods.items()}
    files = [file for group in runs.values() for file in group]
    refuse_unlike(files)
    silent = silent_files(files)
    if len(files) > 1 and silent:
        warn(
            f"{len(silent)} files of an older toolbox do not record their images or the definition of "
            f"their scores:\n{listed([str(path) for path in silent])}"
        )
    if files[0].task != "segmentation" and (arguments.scores or arguments.published or arguments.results):
        raise InputError(
            f"{files[0].path}: accuracies; --scores, --published and --results are for segmentation"
        )
    rows = [method_row(name, group) for name, group in runs.items()]
    if arguments.published or arguments.results:
        standings = read_standings(files[0].mode, arguments.protocol, arguments.results)
        rows += [published_row(s) for s in standings if s.val == s.val and (s.own or arguments.published)]
    table = ResultTable(files[0].mode, files[0].images, rows, arguments.scores or tuple(files[0].scores))
    print(table_text(table))
    if arguments.output:
        save_results({arguments.output: FORMATS[arguments.output.suffix](table)})


if __name__ == "__main__":
    run(main)
