#!/usr/bin/env python3
"""Score a classifier on ImageNet-S by its top-k accuracy, averaged over classes as region-aware CLIPs do.

FILE holds the outputs for each image: logits (of the mode's N classes or ImageNet's 1000), or class indices.
.npz, .safetensors   one array per image, with the image's name as key; or an array "logits" or "predictions"
                     of all images, with their names in an array "names" (.npz) or in --names
.npy                 array (images, classes), with --names
.csv                 columns name,prediction; name,prediction_1,prediction_2,...; or name,<one per class>
An image's name is <wnid>/<name> as in the prepared set, or only <name>, with or without suffix.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from command_line.startup import run
from command_line.arguments import add_mode_argument, add_path, parse, whole_number
from command_line.evaluation import (
    add_bootstrap_arguments,
    add_report_arguments,
    check_files,
    check_suffixes,
    save_results,
    today,
)
from command_line.progress import warn
from imagenets.class_ids import mode_table
from imagenets.classes import Mode, benchmark_title
from imagenets.common.errors import InputError
from imagenets.reporting.classification_text import (
    Condition,
    background_gap,
    class_csv,
    class_text,
    classification_json,
    conditions_csv,
    conditions_json,
    conditions_text,
    difference_text,
    scores_text,
)
from imagenets.scoring.classification import (
    AMONG,
    INDICES,
    Classified,
    class_intervals,
    classify,
    difference,
    score_classes,
    shared_names,
    true_classes,
)
from imagenets.scoring.classifier_files import read_outputs


def parse_arguments() -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    add_path(parser, "--logits", "FILE", "outputs of the classifier")
    add_path(parser, "--compare", "FILE", "outputs of a second classifier on the same images")
    parser.add_argument(
        "--condition",
        action="append",
        default=[],
        type=name_and_file,
        metavar="NAME=FILE",
        help="instead of --logits: outputs on the images of one condition of "
        "datapreparation/composites.py; may be repeated. With mixed-same and mixed-random, their difference "
        "(BG-Gap) is printed",
    )
    add_mode_argument(parser, "classes")
    add_path(
        parser,
        "--gt-dir",
        "DIR",
        "ground truth, <gt-dir>/<wnid>/<name>.png: which images are scored, and their classes (default: all "
        "images of FILE, with the classes of their folders)",
    )
    add_path(
        parser, "--names", "FILE", "names of the images in the order of the rows of an array, one per line"
    )
    parser.add_argument(
        "--indices",
        choices=INDICES,
        help="what class indices mean: ImageNet's 0..999, or the mode's class ids 1..N (needed only "
        "for indices)",
    )
    parser.add_argument(
        "--among",
        choices=AMONG,
        default="mode",
        help="with 1000 logits: choose among the mode's classes (default) or among all; a class outside the "
        "mode then counts as wrong",
    )
    parser.add_argument(
        "--topk",
        type=whole_number(1, 1000),
        nargs="+",
        default=[1, 5],
        metavar="K",
        help="count an image as right if its class is among the K most probable (default: 1 5)",
    )
    add_bootstrap_arguments(parser, resamples=1000)
    add_path(
        parser, "--output", "FILE", "save the results: all in a .json, or the table of classes in a .csv"
    )
    add_report_arguments(
        parser, "scores, classes, and the best, worst and random images", ", with the masks of --gt-dir"
    )
    arguments = parse(parser)
    if bool(arguments.logits) == bool(arguments.condition):
        parser.error("give either --logits or --condition")
    if arguments.compare and not arguments.logits:
        parser.error("--compare goes with --logits")
    check_suffixes(parser, arguments, output=(".json", ".csv"), report=(".html",))
    if arguments.image_dir and not (arguments.report and arguments.gt_dir):
        parser.error("--image-dir goes with --report and --gt-dir")
    arguments.topk = sorted(set(arguments.topk))
    return arguments


def name_and_file(text: str) -> tuple[str, Path]:
    """Argument type: ``NAME=FILE``."""
    name, _, file = (part.strip() for part in text.partition("="))
    if not (name and file):
        raise argparse.ArgumentTypeError(f"{text!r} is not NAME=FILE")
    return name, Path(file)


def read_run(path: Path, arguments: argparse.Namespace, partial: bool) -> Classified:
    """Read a file of outputs and rank the classes of its images."""
    mode: Mode = arguments.mode
    names = None
    if arguments.names is not None:
        names = [line.strip() for line in arguments.names.read_text("utf-8").splitlines() if line.strip()]
    outputs = read_outputs(path, names)
    images = true_classes(outputs, mode, arguments.gt_dir, partial)
    classified = classify(outputs, images, mode, arguments.indices, arguments.among)
    tied = int(classified.tied.sum())
    if tied:
        warn(f"{path}: the class of {tied} images has the same logit as another class: their order decides")
    return classified


def main() -> None:
    """Score, print, save."""
    arguments = parse_arguments()
    check_files((arguments.output, arguments.report), arguments.image_dir)
    if arguments.condition:
        compare_conditions(arguments)
    else:
        score_run(arguments)


def score_run(arguments: argparse.Namespace) -> None:
    """Score one classifier or, with --compare, two."""
    mode: Mode = arguments.mode
    table = mode_table(mode)
    classified = read_run(arguments.logits, arguments, partial=False)
    if arguments.gt_dir is None and mode.validation not in (0, len(classified.names)):
        warn(f"{len(classified.names)} images; the validation set of mode {mode.name} has {mode.validation}")
    scored = score_classes(classified, mode.classes, arguments.topk)
    drawing = (arguments.bootstrap, arguments.seed or 0)
    intervals = class_intervals(classified, mode.classes, arguments.topk, *drawing)
    print(class_text(scored, table))
    print()
    print(scores_text(scored, intervals))
    other = None
    if arguments.compare:
        second = read_run(arguments.compare, arguments, partial=False)
        if set(second.names) != set(classified.names):
            raise InputError(
                f"{arguments.compare}: not the images of {arguments.logits}; score the same images"
            )
        other = difference(classified, second, mode.classes, arguments.topk, *drawing)
        print(f"\nA: {arguments.logits}\nB: {arguments.compare}")
        print(difference_text(other))
    saved: dict[Path, str | bytes] = {}
    if arguments.output:
        saved[arguments.output] = (
            class_csv(scored, table)
            if arguments.output.suffix == ".csv"
            else classification_json(scored, table, mode.name, classified, intervals, arguments.among, other)
        )
    if arguments.report:
        from imagenets.reporting.classification_page import ClassPage, classification_html

        page = ClassPage(
            benchmark_title(mode.name),
            str(arguments.logits),
            table,
            arguments.gt_dir,
            arguments.image_dir,
            today(),
        )
        saved[arguments.report] = classification_html(
            page, classified, scored, intervals, arguments.seed or 0
        )
    save_results(saved)


def compare_conditions(arguments: argparse.Namespace) -> None:
    """Score one classifier on several sets of pictures, on the images that all have."""
    mode: Mode = arguments.mode
    runs = {name: read_run(file, arguments, partial=True) for name, file in arguments.condition}
    if len(runs) != len(arguments.condition):
        raise InputError("two conditions have the same name; name each once")
    names = shared_names(list(runs.values()))
    for name, classified in runs.items():
        number = len(classified.names) - len(names)
        if number:
            warn(f"{name}: {number} images are not in all conditions, and are left out")
    drawing = (arguments.bootstrap, arguments.seed or 0)
    runs = {name: run.chosen(names) for name, run in runs.items()}
    conditions = [
        Condition(
            name,
            score_classes(run, mode.classes, arguments.topk).scores,
            class_intervals(run, mode.classes, arguments.topk, *drawing),
        )
        for name, run in runs.items()
    ]
    gap = background_gap(runs, mode.classes, arguments.topk, *drawing)
    print(conditions_text(conditions, gap, len(names)))
    saved: dict[Path, str | bytes] = {}
    if arguments.output:
        saved[arguments.output] = (
            conditions_csv(conditions)
            if arguments.output.suffix == ".csv"
            else conditions_json(conditions, gap, mode.name, len(names), arguments.among)
        )
    if arguments.report:
        from imagenets.reporting.classification_page import conditions_html

        saved[arguments.report] = conditions_html(
            conditions, gap, benchmark_title(mode.name), len(names), today()
        )
    save_results(saved)


if __name__ == "__main__":
    run(main)
