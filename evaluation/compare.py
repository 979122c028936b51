#!/usr/bin/env python3
"""Compare two methods on the same images: both scores, the differences A - B, and how sure they are."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from command_line.startup import run
from command_line.arguments import parse, path_argument
from command_line.evaluation import (
    add_bootstrap_arguments,
    add_ground_truth_arguments,
    check_output,
    problems_kept,
    read_classes,
    read_match,
    request_of,
    save_results,
    today,
    warn_of_others,
)
from command_line.progress import bar, warn
from imagenets.images import check_image_dir
from imagenets.reporting.comparison_text import comparison_json, comparison_text
from imagenets.scoring.comparison import Method, compare
from imagenets.scoring.contingency import ContingencyTable
from imagenets.scoring.counting import count_all
from imagenets.scoring.matching import Matching

Side = tuple[Path, str | None]


def parse_arguments() -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__,
        allow_abbrev=False,
        epilog="--clusters is for the sides with a MATCH; where A and B differ, give the larger number.",
    )
    for side in ("a", "b"):
        parser.add_argument(
            f"--{side}",
            type=predictions_and_match,
            required=True,
            metavar="PREDICT_DIR[,MATCH]",
            help=f"predictions of method {side.upper()} and, if they hold cluster ids, their matching: a "
            "name given to match.py or a path (a folder whose name has a comma in it is taken as it is)",
        )
    add_ground_truth_arguments(parser)
    add_bootstrap_arguments(parser, resamples=1000)
    parser.add_argument("--output", type=path_argument, metavar="FILE", help="x.json: everything")
    parser.add_argument(
        "--report",
        type=path_argument,
        metavar="FILE.html",
        help="one page to look at: differences, classes gained and lost, images side by side",
    )
    parser.add_argument(
        "--image-dir",
        type=path_argument,
        metavar="DIR",
        help="images for the report, <image-dir>/<wnid>/<name>.JPEG (default: masks on a plain ground)",
    )
    parser.add_argument("--title", metavar="TEXT", help="heading of the report")
    arguments = parse(parser)
    if arguments.clusters and arguments.a[1] is None and arguments.b[1] is None:
        parser.error("--clusters goes with a MATCH: without a matching, predictions hold class ids")
    if arguments.output and arguments.output.suffix != ".json":
        parser.error(f"--output {arguments.output}: must end in .json")
    if arguments.report and arguments.report.suffix != ".html":
        parser.error(f"--report {arguments.report}: must end in .html")
    if (arguments.image_dir or arguments.title) and not arguments.report:
        parser.error("--image-dir and --title go with --report")
    return arguments


def predictions_and_match(text: str) -> Side:
    """Argument type: ``PREDICT_DIR[,MATCH]``."""
    folder, comma, match = (part.strip() for part in text.rpartition(","))
    if not comma or Path(text).is_dir():
        return path_argument(text), None
    if not folder or not match:
        raise argparse.ArgumentTypeError(f"{text!r} is not PREDICT_DIR or PREDICT_DIR,MATCH")
    return Path(folder), match


def read_methods(arguments: argparse.Namespace) -> list[Method]:
    """Count the masks of both methods; InputError, for both together, if any is bad."""
    sides: list[Side] = [arguments.a, arguments.b]
    matchings = [read_match(arguments, match, fewer=arguments.clusters is not None) for _, match in sides]
    requests = [request_of(arguments, folder, matched=match is not None) for folder, match in sides]
    with problems_kept(arguments.problems):
        tables = count_all(requests, bar, warn)
    return [
        method_of(folder, match, matching, table)
        for (folder, match), matching, table in zip(sides, matchings, tables, strict=True)
    ]


def method_of(folder: Path, match: str | None, matching: Matching | None, table: ContingencyTable) -> Method:
    """Put together one side; InputError when its matching lacks a cluster."""
    if matching is not None:
        warn_of_others(matching, table)
        matching.for_table(table)
    return Method(str(folder), match, table, matching)


def main() -> None:
    """Compare the methods, print the comparison, save it."""
    arguments = parse_arguments()
    for path in (arguments.output, arguments.report):
        if path:
            check_output(path)
    if arguments.image_dir:
        check_image_dir(arguments.image_dir)
    a, b = read_methods(arguments)
    mode = arguments.mode
    classes = read_classes(mode, arguments.gt_dir)
    comparison = compare(a, b, mode.classes, arguments.bootstrap, arguments.seed or 0)
    for side, method in (("A", a), ("B", b)):
        matched = "class ids, not matched" if method.match is None else f"matching {method.match}"
        print(f"{side}: {method.predict_dir}, {matched}")
    print()
    print(comparison_text(comparison, classes))
    saved: dict[Path, str | bytes] = {}
    if arguments.output:
        saved[arguments.output] = comparison_json(comparison, classes, mode.name, a, b, arguments.gt_dir)
    if arguments.report:
        # The charts' library takes a while, and scores alone do not need it.
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
