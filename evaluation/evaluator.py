#!/usr/bin/env python3
"""Score predictions against the ground truth: all scores of the ImageNet-S benchmark, in percent."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from command_line.startup import run
from command_line.arguments import parse, path_argument
from command_line.evaluation import (
    add_arguments,
    add_bootstrap_arguments,
    add_match_argument,
    check_files,
    problems_kept,
    read_classes,
    read_match,
    request_of,
    save_results,
    today,
    warn_of_others,
)
from command_line.progress import bar, warn
from imagenets.classes import ClassInfo
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
from imagenets.scoring.matching import Matching
from imagenets.scoring.metrics import Evaluation, evaluate, predicted_classes
from imagenets.scoring.plausibility import doubts
from imagenets.scoring.protocols import broken_rule, sharpened

if TYPE_CHECKING:
    from imagenets.scoring.bootstrap import Bootstrap

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
    arguments.date = today() if arguments.report else None
    return arguments


def add_results(parser: argparse.ArgumentParser) -> None:
    """Add the files to write, and what they show."""
    parser.add_argument(
        "--output", type=path_argument, metavar="FILE", help="x.json: everything; x.csv: the table of classes"
    )
    parser.add_argument("--quiet", action="store_true", help="do not print the table of classes")
    parser.add_argument(
        "--report",
        type=path_argument,
        metavar="FILE.html",
        help="write a page with scores, charts, tables and images (dated today, or $SOURCE_DATE_EPOCH)",
    )
    parser.add_argument(
        "--image-dir",
        type=path_argument,
        metavar="DIR",
        help="images for the report, <image-dir>/<wnid>/<name>.JPEG (default: masks on a plain background)",
    )
    parser.add_argument(
        "--protocol",
        choices=PROTOCOLS,
        help="the run's protocol: it is saved in x.json, its rule on matching is checked, and the report "
        "shows only its published results (default: those of all protocols)",
    )
    parser.add_argument(
        "--results",
        type=path_argument,
        metavar="FILE.csv",
        help="your own results, which the report shows among the published ones; columns: see published.py",
    )
    parser.add_argument(
        "--per-image", type=path_argument, metavar="FILE.csv", help="save the scores of every image"
    )
    parser.add_argument(
        "--confusion",
        type=path_argument,
        metavar="FILE.npz",
        help="save the confusion matrix in pixels: ground-truth labels are rows, predicted classes columns",
    )
    parser.add_argument(
        "--title", metavar="TEXT", help="heading of the report (default: the benchmark's name)"
    )


def check_arguments(parser: argparse.ArgumentParser, arguments: argparse.Namespace) -> None:
    """End with wrong usage if arguments do not go together."""
    if arguments.clusters and arguments.match is None:
        parser.error("--clusters goes with --match: without a matching, predictions hold class ids")
    if arguments.output and arguments.output.suffix not in (".json", ".csv"):
        parser.error(f"--output {arguments.output}: must end in .json or .csv")
    if arguments.seed is not None and not (arguments.bootstrap or arguments.report):
        parser.error("--seed goes with --bootstrap or --report")
    for option, suffix in (("report", ".html"), ("per_image", ".csv"), ("confusion", ".npz")):
        path = getattr(arguments, option)
        if path and path.suffix != suffix:
            parser.error(f"--{option.replace('_', '-')} {path}: must end in {suffix}")
    if len(set(outputs(arguments))) < len(outputs(arguments)):
        parser.error("two results would go to the same file")
    if arguments.image_dir and not arguments.report:
        parser.error("--image-dir goes with --report: scores need no images")
    if arguments.results and not arguments.report:
        parser.error("--results goes with --report, which shows published results")
    if arguments.title and not arguments.report:
        parser.error("--title goes with --report")


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
    print_scores(arguments, evaluation, [] if arguments.quiet else classes)
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
    if arguments.output:
        saved[arguments.output] = output_content(
            arguments, evaluation, classes, table.names, bootstrap, matching, said
        )
    if arguments.report:
        about = {"table": table, "classes": classes, "matching": matching, "standings": standings}
        about["warnings"] = said
        saved[arguments.report] = report_content(arguments, evaluation, bootstrap, **about)
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


def print_scores(arguments: argparse.Namespace, evaluation: Evaluation, classes: list[ClassInfo]) -> None:
    """Print the table of ``classes``, unless there are none, and the scores."""
    if classes:
        print(f"{class_text(evaluation, classes)}\n")
    matched = "class ids, not matched" if arguments.match is None else f"matching {arguments.match}"
    print(f"{evaluation.images} images, mode {arguments.mode.name}, {matched}; scores in percent:")
    print(summary_text(evaluation))


def output_content(
    arguments: argparse.Namespace,
    evaluation: Evaluation,
    classes: list[ClassInfo],
    names: Sequence[str],
    bootstrap: Bootstrap | None,
    matching: Matching | None,
    warnings: Sequence[str],
) -> str:
    """Format what --output asks for; ``names`` are the masks'."""
    if arguments.output.suffix == ".csv":
        return evaluation_csv(evaluation, classes)
    inputs = inputs_json(arguments.mode, arguments.gt_dir, arguments.predict_dir, matching)
    inputs |= {"protocol": arguments.protocol, "warnings": list(warnings)}
    mode = arguments.mode.name
    return evaluation_json(evaluation, classes, mode, arguments.match, names, bootstrap, inputs)


def report_content(
    arguments: argparse.Namespace,
    evaluation: Evaluation,
    bootstrap: Bootstrap | None,
    **subject: Any,  # noqa: ANN401
) -> str:
    """Make the page of --report; ``subject`` has further fields of its Subject."""
    # The library for charts takes a while to load; scores do not need it.
    from imagenets.reporting.html import Subject, html_report

    about = Subject(
        mode=arguments.mode.name,
        gt_dir=arguments.gt_dir,
        predict_dir=arguments.predict_dir,
        match=arguments.match,
        image_dir=arguments.image_dir,
        title=arguments.title,
        date=arguments.date,
        protocol=arguments.protocol,
        **subject,
    )
    intervals = None if bootstrap is None else bootstrap.intervals
    return html_report(about, evaluation, intervals, arguments.seed or 0)


if __name__ == "__main__":
    run(main)
