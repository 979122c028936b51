#!/usr/bin/env python3
"""Score predictions against the ground truth: every score of the ImageNet-S benchmark, in percent."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from command_line import run
from evaluation.options import (
    add_arguments,
    add_bootstrap_arguments,
    check_output,
    label_limit,
    matching_path,
    read_classes,
    read_matching_of,
    read_table,
)
from imagenets.bootstrap import bootstrap_intervals
from imagenets.classes import MODES
from imagenets.files import write_whole
from imagenets.matching_file import matching_array
from imagenets.metrics import evaluate
from imagenets.report import class_text, evaluation_csv, evaluation_json, intervals_text, summary_text


def parse_arguments() -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    add_arguments(parser)
    parser.add_argument(
        "--match",
        metavar="NAME",
        help="the matching that match.py saved as --session-name NAME, or the path of a matching file; "
        "without it the predictions hold class ids",
    )
    add_bootstrap_arguments(parser, resamples=None)
    parser.add_argument(
        "--output", type=Path, metavar="FILE", help="x.json: everything; x.csv: the table of classes"
    )
    arguments = parser.parse_args()
    if arguments.clusters and arguments.match is None:
        parser.error("--clusters goes with --match: without a matching, predictions hold class ids")
    if arguments.output and arguments.output.suffix not in (".json", ".csv"):
        parser.error(f"--output {arguments.output}: must end in .json or .csv")
    if arguments.seed is not None and not arguments.bootstrap:
        parser.error("--seed goes with --bootstrap")
    return arguments


def main() -> None:
    """Score the predictions, print the scores, save them."""
    arguments = parse_arguments()
    if arguments.output:
        check_output(arguments.output)
    number_of_classes = MODES[arguments.mode].classes
    clusters_to_classes = read_matching_of(arguments, arguments.match)
    table = read_table(arguments, *label_limit(arguments, arguments.match))
    matching = None
    if clusters_to_classes is not None:
        path = matching_path(arguments.match, arguments.results_dir)
        matching = matching_array(clusters_to_classes, table, path)
    classes = read_classes(arguments)
    evaluation = evaluate(table, number_of_classes, matching)
    print(class_text(evaluation, classes))
    print()
    print(summary_text(evaluation))
    bootstrap = None
    if arguments.bootstrap:
        bootstrap = bootstrap_intervals(
            table, number_of_classes, matching, arguments.bootstrap, arguments.seed or 0
        )
        print()
        print(intervals_text(evaluation, bootstrap))
    if arguments.output:
        if arguments.output.suffix == ".csv":
            content = evaluation_csv(evaluation, classes)
        else:
            content = evaluation_json(evaluation, classes, arguments.mode, arguments.match, bootstrap)
        arguments.output.parent.mkdir(parents=True, exist_ok=True)
        write_whole(arguments.output, content)
        print(f"\nsaved: {arguments.output}")


if __name__ == "__main__":
    run(main)
