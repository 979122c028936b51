#!/usr/bin/env python3
"""Score predictions against the ground truth: all scores of the ImageNet-S benchmark, in percent."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from command_line.startup import run
from command_line.arguments import add_path, parse
from command_line.evaluation import (
    add_arguments,
    add_bootstrap_arguments,
    add_match_argument,
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
from imagenets.reporting.confusions import confusion_npz
from imagenets.reporting.image_scores import image_csv
from imagenets.reporting.published import PROTOCOLS, read_standings
from imagenets.reporting.text import (
    class_text,
    evaluation_csv,
    evaluation_json,
    inputs_json,
    intervals_text,
    summary_text,
)
from imagenets.scoring.counting import count_masks
from imagenets.scoring.metrics import evaluate, predicted_classes
from imagenets.scoring.plausibility import doubts
from imagenets.scoring.protocols import broken_rule, sharpened

REPORT_RESAMPLES = 1000  # a report has intervals even without --bootstrap


def parse_arguments() -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    add_arguments(parser)
    add_match_argument(parser)
    add_bootstrap_arguments(parser, resamples=None)
    add_results(parser)
    arguments = parse(parser)
    check_arguments(parser, arguments)
    return arguments


def add_results(parser: argparse.ArgumentParser) -> None:
    """Add the files to write, and what they show."""
    add_path(
        parser, "--output", "FILE", "save the results: all in a .json, or the table of classes in a .csv"
    )
    parser.add_argument("--quiet", action="store_true", help="do not print the table of classes")
    add_report_arguments(
        parser,
        "scores, charts, tables and images (dated today, or $SOURCE_DATE_EPOCH)",
        " (default: masks on a plain background)",
    )
    parser.add_argument(
        "--protocol",
        choices=PROTOCOLS,
        help="protocol of the run: it is saved in the .json, its rule on matching is checked, and the report "
        "shows only published results of this protocol (default: unknown, and all are shown)",
    )
    add_path(
        parser,
        "--results",
        "FILE.csv",
        "your own results, shown in the report among the published ones; columns: see published.py --help",
    )
    add_path(parser, "--per-image", "FILE.csv", "save the scores of every image")
    add_path(
        parser,
        "--confusion",
        "FILE.npz",
        "save the confusion matrix in pixels: ground-truth labels are rows, predicted classes columns",
    )
    parser.add_argument(
        "--title", metavar="TEXT", help="heading of the report (default: the benchmark's name)"
    )


def check_arguments(parser: argparse.ArgumentParser, arguments: argparse.Namespace) -> None:
    """End with wrong usage if arguments do not go together."""
    if arguments.clusters and arguments.match is None:
        parser.error("--clusters goes with --match: without a matching, predictions hold class ids")
    check_suffixes(
        parser,
        arguments,
        output=(".json", ".csv"),
        report=(".html",),
        per_image=(".csv",),
        confusion=(".npz",),
    )
    if arguments.seed is not None and not (arguments.bootstrap or arguments.report):
        parser.error("--seed goes with --bootstrap or --report")
    if len(set(outputs(arguments))) < len(outputs(arguments)):
        parser.error("two results would go to the same file")
    for option in ("image_dir", "results", "title"):
        if getattr(arguments, option) and not arguments.report:
            parser.error(f"--{option.replace('_', '-')} goes with --report, whose page shows it")


def main() -> None:
    """Score the predictions, print the scores, save them."""
    arguments = parse_arguments()
    check_files(outputs(arguments), arguments.image_dir)
    standings = (
        read_standings(arguments.mode.name, arguments.protocol, arguments.results) if arguments.report else []
    )
    matching = read_match(arguments, arguments.match)
    request = request_of(arguments, arguments.predict_dir, matched=matching is not None)
    said: list[str] = []

    def say(message: str) -> None:
        """Warn, and keep the warning for the results."""
        warn(message)
        said.append(message)

    with problems_kept(arguments.problems):
        table = count_masks(request, bar, say)
    of_cluster = None if matching is None else matching.for_table(table)
    warn_of_others(matching, table, say)
    for message in (
        broken_rule(arguments.protocol, matching),
        sharpened(arguments.predict_dir),
        *doubts(table, request.mode.classes, of_cluster),
    ):
        if message:
            say(message)
    classes = read_classes(request.mode, request.gt_dir)
    evaluation = evaluate(table, request.mode.classes, of_cluster)
    if not arguments.quiet:
        print(f"{class_text(evaluation, classes)}\n")
    matched = "class ids, not matched" if arguments.match is None else f"matching {arguments.match}"
    print(f"{evaluation.images} images, mode {arguments.mode.name}, {matched}; scores in percent:")
    print(summary_text(evaluation))
    bootstrap = None
    resamples = arguments.bootstrap or (REPORT_RESAMPLES if arguments.report else 0)
    if resamples:
        from imagenets.scoring.bootstrap import bootstrap_intervals

        bootstrap = bootstrap_intervals(
            table, request.mode.classes, of_cluster, resamples, arguments.seed or 0
        )
        print()
        print(intervals_text(evaluation, bootstrap))
    saved: dict[Path, str | bytes] = {}
    if arguments.output and arguments.output.suffix == ".csv":
        saved[arguments.output] = evaluation_csv(evaluation, classes)
    elif arguments.output:
        inputs = inputs_json(arguments.mode, arguments.gt_dir, arguments.predict_dir, matching)
        inputs |= {"protocol": arguments.protocol, "warnings": said}
        saved[arguments.output] = evaluation_json(
            evaluation, classes, arguments.mode.name, arguments.match, table.names, bootstrap, inputs
        )
    if arguments.report:
        # The library for charts takes a while to load; scores do not need it.
        from imagenets.reporting.html import Subject, html_report

        subject = Subject(
            mode=arguments.mode.name,
            gt_dir=arguments.gt_dir,
            predict_dir=arguments.predict_dir,
            table=table,
            classes=classes,
            matching=matching,
            match=arguments.match,
            image_dir=arguments.image_dir,
            title=arguments.title,
            date=today(),
            protocol=arguments.protocol,
            standings=standings,
            warnings=said,
        )
        intervals = None if bootstrap is None else bootstrap.intervals
        saved[arguments.report] = html_report(subject, evaluation, intervals, arguments.seed or 0)
    predicted = predicted_classes(table, of_cluster)
    if arguments.per_image:
        saved[arguments.per_image] = image_csv(table, predicted)
    if arguments.confusion:
        saved[arguments.confusion] = confusion_npz(table, predicted, request.mode.classes)
    save_results(saved)


def outputs(arguments: argparse.Namespace) -> list[Path]:
    """List the files that are to be written."""
    paths = (arguments.output, arguments.report, arguments.per_image, arguments.confusion)
    return [path for path in paths if path]


if __name__ == "__main__":
    run(main)
