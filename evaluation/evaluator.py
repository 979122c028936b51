#!/usr/bin/env python3
"""Score predictions against the ground truth: every score of the ImageNet-S benchmark, in percent."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from command_line import run
from evaluation.options import add_arguments, check_output, read_classes, read_table
from imagenets.classes import MODES
from imagenets.contingency import CountPairs
from imagenets.files import write_whole
from imagenets.matching_file import matching_array, read_matching
from imagenets.metrics import evaluate
from imagenets.ranks import run_on_ranks
from imagenets.report import class_text, evaluation_csv, evaluation_json, summary_text


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
    parser.add_argument(
        "--output", type=Path, metavar="FILE", help="x.json: everything; x.csv: the table of classes"
    )
    arguments = parser.parse_args()
    if arguments.clusters and arguments.match is None:
        parser.error("--clusters goes with --match: without a matching, predictions hold class ids")
    if arguments.output and arguments.output.suffix not in (".json", ".csv"):
        parser.error(f"--output {arguments.output}: must end in .json or .csv")
    return arguments


def matching_path(match: str, results_dir: Path) -> Path:
    """Path of the matching: ``match`` itself if it looks like one, else that name among the results."""
    if os.sep in match or match.endswith(".json"):
        return Path(match)
    return results_dir / f"{match}.json"


def main(count: CountPairs) -> None:
    """Score the predictions, print the scores, save them."""
    arguments = parse_arguments()
    if arguments.output:
        check_output(arguments.output)
    number_of_classes = MODES[arguments.mode].classes
    matching = None
    if arguments.match is not None:
        path = matching_path(arguments.match, arguments.results_dir)
        clusters_to_classes = read_matching(path, number_of_classes)
        hint = "pass the number of clusters with --clusters"
        table = read_table(arguments, arguments.clusters or number_of_classes, hint, count)
        matching = matching_array(clusters_to_classes, table, path)
    else:
        hint = "cluster ids need a matching: run match.py, then pass --match"
        table = read_table(arguments, number_of_classes, hint, count)
    classes = read_classes(arguments)
    evaluation = evaluate(table, number_of_classes, matching)
    print(class_text(evaluation, classes))
    print()
    print(summary_text(evaluation))
    if arguments.output:
        if arguments.output.suffix == ".csv":
            content = evaluation_csv(evaluation, classes)
        else:
            content = evaluation_json(evaluation, classes, arguments.mode, arguments.match)
        arguments.output.parent.mkdir(parents=True, exist_ok=True)
        write_whole(arguments.output, content)
        print(f"\nsaved: {arguments.output}")


if __name__ == "__main__":
    run(lambda: run_on_ranks(main))
