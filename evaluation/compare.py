#!/usr/bin/env python3
"""Compare two methods on the same images: their scores, the differences, and which are significant."""

from __future__ import annotations

import argparse
import glob
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from command_line.startup import run
from command_line.arguments import add_path, parse, path_argument
from command_line.evaluation import (
    add_bootstrap_arguments,
    add_ground_truth_arguments,
    add_report_arguments,
    check_files,
    check_suffixes,
    problems_kept,
    read_classes,
    read_match,
    request_of,
    save_results,
    today,
    warn_of_others,
)
from command_line.progress import bar, warn
from imagenets.classes import Mode
from imagenets.common.errors import InputError
from imagenets.common.folders import distinct_names
from imagenets.reporting.comparison_text import comparison_json, comparison_text, run_lines
from imagenets.scoring.comparison import Method, Run, compare
from imagenets.scoring.contingency import ContingencyTable
from imagenets.scoring.counting import count_all
from imagenets.scoring.matching import Matching
from imagenets.scoring.plausibility import absent_classes, prediction_doubts


@dataclass(frozen=True)
class Side:
    """One method of the command line: its name, if given, and predictions and matching of each run."""

    name: str | None
    runs: tuple[tuple[Path, str | None], ...]

    @property
    def matched(self) -> bool:
        """Do its predictions hold cluster ids?"""
        return self.runs[0][1] is not None


def parse_arguments() -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__,
        allow_abbrev=False,
        epilog="--clusters applies to methods with a MATCH; if they have different numbers of clusters, give "
        "the larger one.",
    )
    for flag, which in (("--a", "the first method"), ("--b", "the second method")):
        parser.add_argument(
            flag,
            type=side_argument,
            required=True,
            metavar="[NAME=]PREDICT_DIR[,MATCH]",
            help=f"{which}: its predictions and, if they hold cluster ids, their matching (a name given to "
            "match.py, or a path). The folder's name may contain commas. "
            "NAME=GLOB[,MATCH]: the folders matched by a (quoted) pattern are its runs, one per seed; a * "
            "in MATCH stands for the same text as in the pattern",
        )
    add_ground_truth_arguments(parser)
    add_bootstrap_arguments(parser, resamples=1000)
    add_path(parser, "--output", "FILE", "save the results: a .json")
    add_report_arguments(
        parser,
        "differences, classes gained and lost, and images side by side",
        " (default: masks on a plain background)",
    )
    parser.add_argument("--title", metavar="TEXT", help="heading of the report")
    arguments = parse(parser)
    if arguments.clusters and not (arguments.a.matched or arguments.b.matched):
        parser.error("--clusters goes with a MATCH: without a matching, predictions hold class ids")
    check_suffixes(parser, arguments, output=(".json",), report=(".html",))
    if (arguments.image_dir or arguments.title) and not arguments.report:
        parser.error("--image-dir and --title go with --report")
    return arguments


def side_argument(text: str) -> Side:
    """Argument type: ``[NAME=]PREDICT_DIR[,MATCH]``, where PREDICT_DIR may be a pattern."""
    folder, match = folder_and_match(text)
    name, equals, pattern = folder.partition("=")
    if Path(folder).is_dir() or not equals:
        return Side(None, ((path_argument(folder), match),))
    name, pattern = name.strip(), pattern.strip()
    if not (name and pattern):
        raise argparse.ArgumentTypeError(f"{text!r} is not [NAME=]PREDICT_DIR[,MATCH]")
    # Not Path.glob, which accepts no absolute pattern.
    found = [path for path in sorted(glob.glob(pattern)) if Path(path).is_dir()]  # noqa: PTH207
    if not found:
        raise InputError(f"{name}: no folder matches {pattern}")
    return Side(name, tuple((Path(path), match_of_run(path, pattern, match, len(found))) for path in found))


def folder_and_match(text: str) -> tuple[str, str | None]:
    """Split ``PREDICT_DIR[,MATCH]``; an existing folder is taken as it is."""
    folder, comma, match = (part.strip() for part in text.rpartition(","))
    if not comma or Path(text).is_dir():
        return text, None
    if not folder or not match:
        raise argparse.ArgumentTypeError(f"{text!r} is not [NAME=]PREDICT_DIR[,MATCH]")
    return folder, match


def match_of_run(path: str, pattern: str, match: str | None, runs: int) -> str | None:
    """Replace the ``*`` of the matching by the text that the ``*`` of the pattern stands for in ``path``."""
    if match is None or (runs == 1 and "*" not in match):
        return match
    if pattern.count("*") != 1 or match.count("*") != 1:
        raise argparse.ArgumentTypeError(
            f"{runs} runs need a matching each: one * in {pattern!r}, and one in {match!r}"
        )
    before, after = pattern.split("*")
    return match.replace("*", path[len(before) : len(path) - len(after)])


def method_names(sides: Sequence[Side]) -> list[str]:
    """Name the methods: by their given names, else by folders, or by the parts of paths that differ."""
    names = distinct_names([side.runs[0][0].parts for side in sides])
    found = [side.name or name for side, name in zip(sides, names, strict=True)]
    if len(set(found)) == len(found):
        return found
    found = [", ".join(filter(None, map(str, side.runs[0]))) for side in sides]
    return found if len(set(found)) == len(found) else [f"{name} ({i})" for i, name in enumerate(found, 1)]


def read_methods(arguments: argparse.Namespace) -> list[Method]:
    """Count the masks of all runs; InputError, for all together, if any is bad."""
    sides: list[Side] = [arguments.a, arguments.b]
    runs = [run for side in sides for run in side.runs]
    matchings = [read_match(arguments, match, fewer=arguments.clusters is not None) for _, match in runs]
    requests = [request_of(arguments, folder, matched=match is not None) for folder, match in runs]
    with problems_kept(arguments.problems):
        tables = count_all(requests, bar, warn)
    absent = absent_classes(tables[0], arguments.mode.classes)
    if absent:
        warn(absent)
    counted = iter(zip(matchings, tables, strict=True))
    return [
        Method(name, tuple(run_of(arguments.mode, *run, *next(counted)) for run in side.runs))
        for name, side in zip(method_names(sides), sides, strict=True)
    ]


def run_of(
    mode: Mode, folder: Path, match: str | None, matching: Matching | None, table: ContingencyTable
) -> Run:
    """Make one run; InputError if its matching lacks a cluster. Warn of doubtful scores."""
    warn_of_others(matching, table)
    of_cluster = None if matching is None else matching.for_table(table)
    for doubt in prediction_doubts(table, mode.classes, of_cluster):
        warn(f"{folder}: {doubt}")
    return Run(str(folder), match, table, matching)


def main() -> None:
    """Compare the methods, print the comparison, save it."""
    arguments = parse_arguments()
    check_files((arguments.output, arguments.report), arguments.image_dir)
    a, b = read_methods(arguments)
    mode = arguments.mode
    classes = read_classes(mode, arguments.gt_dir)
    comparison = compare(a, b, mode.classes, arguments.bootstrap, arguments.seed or 0)
    print("\n".join([*run_lines(a), *run_lines(b)]))
    print()
    print(comparison_text(a, b, comparison, classes))
    saved: dict[Path, str | bytes] = {}
    if arguments.output:
        saved[arguments.output] = comparison_json(comparison, classes, mode.name, a, b, arguments.gt_dir)
    if arguments.report:
        # The library for charts takes a while to load; scores do not need it.
        from imagenets.reporting.comparison_page import Methods, comparison_html

        methods = Methods(
            mode.name,
            arguments.gt_dir,
            a,
            b,
            classes,
            image_dir=arguments.image_dir,
            title=arguments.title,
            date=today(),
        )
        saved[arguments.report] = comparison_html(methods, comparison)
    save_results(saved)


if __name__ == "__main__":
    run(main)
