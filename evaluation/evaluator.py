#!/usr/bin/env python3
"""Score predictions against the ground truth: every score of the ImageNet-S benchmark, in percent."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from command_line import path_argument, run
from command_line.evaluation import (
    add_arguments,
    add_bootstrap_arguments,
    add_match_argument,
    check_output,
    label_limit,
    matching_path,
    read_classes,
    read_matching_of,
    read_table,
)
from imagenets.classes import MODES
from imagenets.common.whole_files import write_whole
from imagenets.images import check_image_dir
from imagenets.reporting.text import class_text, evaluation_csv, evaluation_json, intervals_text, summary_text
from imagenets.scoring.contingency import CountPairs
from imagenets.scoring.matching_file import matching_array
from imagenets.scoring.metrics import evaluate
from imagenets.scoring.ranks import run_on_ranks

REPORT_RESAMPLES = 1000  # a report shows how sure its scores are, also without --bootstrap


def parse_arguments() -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    add_arguments(parser)
    add_match_argument(parser)
    add_bootstrap_arguments(parser, resamples=None)
    parser.add_argument(
        "--output", type=path_argument, metavar="FILE", help="x.json: everything; x.csv: the table of classes"
    )
    parser.add_argument(
        "--report",
        type=path_argument,
        metavar="FILE.html",
        help="one page to look at: scores, charts, tables, images",
    )
    parser.add_argument(
        "--image-dir",
        type=path_argument,
        metavar="DIR",
        help="images for the report, <image-dir>/<wnid>/<name>.JPEG (default: masks on a plain ground)",
    )
    arguments = parser.parse_args()
    if arguments.clusters and arguments.match is None:
        parser.error("--clusters goes with --match: without a matching, predictions hold class ids")
    if arguments.output and arguments.output.suffix not in (".json", ".csv"):
        parser.error(f"--output {arguments.output}: must end in .json or .csv")
    if arguments.seed is not None and not (arguments.bootstrap or arguments.report):
        parser.error("--seed goes with --bootstrap or --report")
    if arguments.report and arguments.report.suffix != ".html":
        parser.error(f"--report {arguments.report}: must end in .html")
    if arguments.image_dir and not arguments.report:
        parser.error("--image-dir goes with --report: scores need no images")
    return arguments


def main(count: CountPairs) -> None:
    """Score the predictions, print the scores, save them."""
    arguments = parse_arguments()
    if arguments.output:
        check_output(arguments.output)
    if arguments.report:
        check_output(arguments.report)
    if arguments.image_dir:
        check_image_dir(arguments.image_dir)
    number_of_classes = MODES[arguments.mode].classes
    clusters_to_classes = read_matching_of(arguments, arguments.match)
    table = read_table(arguments, *label_limit(arguments, arguments.match), count)
    matching = None
    if clusters_to_classes is not None:
        path = matching_path(arguments.match, arguments.results_dir)
        matching = matching_array(clusters_to_classes, table, path)
    classes = read_classes(arguments)
    evaluation = evaluate(table, number_of_classes, matching)
    print(class_text(evaluation, classes))
    matched = "class ids, not matched" if arguments.match is None else f"matching {arguments.match}"
    print(f"\n{evaluation.images} images, mode {arguments.mode}, {matched}; scores in percent:")
    print(summary_text(evaluation))
    bootstrap = intervals = None
    resamples = arguments.bootstrap or (REPORT_RESAMPLES if arguments.report else 0)
    if resamples:
        from imagenets.scoring.bootstrap import bootstrap_intervals

        bootstrap = bootstrap_intervals(table, number_of_classes, matching, resamples, arguments.seed or 0)
        intervals = bootstrap.intervals
        print()
        print(intervals_text(evaluation, bootstrap))
    saved = {}
    if arguments.output:
        if arguments.output.suffix == ".csv":
            saved[arguments.output] = evaluation_csv(evaluation, classes)
        else:
            saved[arguments.output] = evaluation_json(
                evaluation, classes, arguments.mode, arguments.match, bootstrap
            )
    if arguments.report:
        # The charts' library takes a while, and scores alone do not need it.
        from imagenets.reporting.html import Subject, html_report

        subject = Subject(
            mode=arguments.mode,
            gt_dir=arguments.gt_dir,
            predict_dir=arguments.predict_dir,
            table=table,
            classes=classes,
            clusters_to_classes=clusters_to_classes,
            match=arguments.match,
            image_dir=arguments.image_dir,
        )
        saved[arguments.report] = html_report(subject, evaluation, intervals, arguments.seed or 0)
    if saved:
        print()
    for path, content in saved.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, content)
        print(f"saved: {path}")


if __name__ == "__main__":
    run(lambda: run_on_ranks(main))
