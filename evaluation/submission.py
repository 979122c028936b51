#!/usr/bin/env python3
"""Check the predictions of all test images and pack them for submission; or check an archive (--check)."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from command_line.startup import run
from command_line.arguments import add_path, parse, path_argument
from command_line.evaluation import (
    add_match_argument,
    add_problems_argument,
    add_results_dir_argument,
    add_workers_argument,
    check_output,
    cluster_count,
    problems_kept,
    read_match,
)
from command_line.progress import bar, warn
from imagenets.classes import MODES
from imagenets.common.errors import InputError, listed
from imagenets.images import sizes_that_differ
from imagenets.scoring.counting import LabelLimit
from imagenets.scoring.matching import Matching
from imagenets.scoring.protocols import broken_rule, protocol_in
from imagenets.scoring.submission import (
    MATCHING,
    METHOD,
    METHOD_LINES,
    ExpectedPredictions,
    check_submission,
    extra_predictions,
    find_test_predictions,
    method_text,
    method_value,
    number_of_test_images,
    submission_matching,
    write_submission,
)

CLOSED = (
    "The test server has accepted no submissions since January 2026: report scores on validation. The "
    "archive has the format that it accepted (docs/benchmark.md, Submission)"
)
METHOD_FLAGS = (
    *("--method-name", "--training-data", "--training-scheme"),
    *("--networks", "--link", "--description"),
)


def parse_arguments() -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__, epilog=CLOSED, allow_abbrev=False)
    parser.add_argument("--mode", choices=MODES, required=True, help="number of classes")
    parser.add_argument(
        "--predict-dir", type=path_argument, help="predictions, <predict-dir>/<wnid>/<name>.png"
    )
    parser.add_argument(
        "--save-dir",
        type=path_argument,
        help="folder of the prepared sets, with <save-dir>/ImageNetS<mode>/test/<wnid>/<name>.JPEG",
    )
    add_match_argument(parser)
    parser.add_argument(
        "--clusters",
        type=cluster_count,
        metavar="K",
        help="predictions hold cluster ids 1..K (default: the number of classes)",
    )
    for flag, line in zip(METHOD_FLAGS, METHOD_LINES, strict=True):
        parser.add_argument(flag, type=one_line, metavar="TEXT", help=f"the line {line} of {METHOD}")
    add_path(parser, "--output", "FILE.zip", "the archive to write")
    add_path(
        parser,
        "--check",
        "FILE.zip",
        "only check this archive; with --save-dir, also that it has a prediction of the right size for every "
        "test image",
    )
    parser.add_argument(
        "--incomplete",
        action="store_true",
        help="only warn if the number of predictions is not that of the test images",
    )
    add_workers_argument(parser, "decode")
    add_results_dir_argument(parser)
    add_problems_argument(parser)
    arguments = parse(parser)
    arguments.mode = MODES[arguments.mode]
    check_usage(parser, arguments)
    return arguments


def one_line(text: str) -> str:
    """Argument type: one line of text."""
    try:
        return method_value(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def check_usage(parser: argparse.ArgumentParser, arguments: argparse.Namespace) -> None:
    """End with wrong usage if flags are missing or do not go together."""

    def given(flags: Sequence[str]) -> list[str]:
        values = vars(arguments)
        return [flag for flag in flags if values[flag[2:].replace("-", "_")] is not None]

    if arguments.check:
        stray = given(["--predict-dir", "--match", "--output", *METHOD_FLAGS])
        if stray:
            parser.error(f"--check reads an archive; it cannot be combined with {', '.join(stray)}")
        return
    needed = ["--predict-dir", "--save-dir", *METHOD_FLAGS, "--output"]
    missing = sorted(set(needed) - set(given(needed)), key=needed.index)
    if missing:
        parser.error(f"the following arguments are required: {', '.join(missing)}")
    if arguments.output.suffix != ".zip":
        parser.error(f"--output {arguments.output}: must end in .zip")
    if arguments.clusters and arguments.match is None:
        parser.error("--clusters goes with --match: without a matching, predictions hold class ids")


def find_expected(arguments: argparse.Namespace) -> ExpectedPredictions:
    """List the predictions that the test images need; warn of unusual files."""
    expected = find_test_predictions(arguments.save_dir, arguments.mode.name)
    check_originals(arguments.mode.set_folder(arguments.save_dir))
    check_count(len(expected.names), f"{expected.image_dir}: {len(expected.names)} images", arguments)
    if expected.others:
        count = len(expected.others)
        warn(f"{expected.image_dir}: {count} files are not <wnid>/<name>.JPEG:\n{listed(expected.others)}")
    return expected


def check_originals(set_folder: Path) -> None:
    """Refuse a set made from a resized ImageNet; warn if there are no masks to check this."""
    compared, different = sizes_that_differ(set_folder)
    if not compared:
        warn(
            f"{set_folder}: no masks of validation or train-semi there, so nothing confirms that the test "
            "images have their original sizes, which a submission's masks must have"
        )
    elif 2 * different > compared:
        raise InputError(
            f"{set_folder}: this ImageNet is a resized copy: {different} of {compared} images with masks do "
            "not have their mask's size, so the sizes of the test images are wrong too; prepare the set from "
            "the original ImageNet"
        )


def check_count(count: int, found: str, arguments: argparse.Namespace) -> None:
    """Refuse a number other than that of the test set; with --incomplete, only warn."""
    official = number_of_test_images(arguments.mode.name)
    if official in (None, count):
        return
    message = f"{found}, but the test set of mode {arguments.mode.name} has {official}"
    if not arguments.incomplete:
        raise InputError(f"{message}; a submission holds all of them (--incomplete allows fewer)")
    warn(message)


def warn_of_unreadable(images: Sequence[str]) -> None:
    """Warn of test images that could not be opened."""
    if images:
        warn(
            f"{len(images)} test images cannot be opened, so the sizes of their predictions were not "
            f"checked:\n{listed(images)}"
        )


def warn_of_broken_rule(training_scheme: str, matching: Matching | None) -> None:
    """Warn if the matching breaks a rule of the protocol named by the training scheme."""
    broken = broken_rule(protocol_in(training_scheme), matching)
    if broken:
        warn(f"{METHOD}: Training scheme: {training_scheme}: {broken} (docs/benchmark.md, Protocols)")


def write(arguments: argparse.Namespace) -> None:
    """Pack a submission."""
    check_output(arguments.output)
    matching = read_match(arguments, arguments.match)
    mode = arguments.mode
    limit = LabelLimit.of(mode, None if matching is None else arguments.clusters or mode.classes)
    values = [getattr(arguments, flag[2:].replace("-", "_")) for flag in METHOD_FLAGS]
    files = {METHOD: method_text(values)}
    if matching is not None:
        files = {MATCHING: submission_matching(matching, limit.largest), **files}
    expected = find_expected(arguments)
    if not arguments.predict_dir.is_dir():
        raise InputError(
            f"{arguments.predict_dir}: no such folder; predictions lie in <predict-dir>/<wnid>/<name>.png"
        )
    extra = extra_predictions(arguments.predict_dir, expected.names)
    if extra and not any((arguments.predict_dir / name).exists() for name in expected.names):
        raise InputError(
            f"{arguments.predict_dir}: no prediction of any of the {len(expected.names)} test images; its "
            f"{len(extra)} predictions are for other images: validation?"
        )
    if extra:
        warn(
            f"{arguments.predict_dir}: {len(extra)} predictions belong to no test image and are not packed:\n"
            f"{listed(extra)}"
        )
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    unreadable = write_submission(
        arguments.output, expected, arguments.predict_dir, files, limit, arguments.workers, bar
    )
    warn_of_unreadable(unreadable)
    warn_of_broken_rule(arguments.training_scheme, matching)
    print(f"{len(expected.names)} predictions, {', '.join(files)}")
    print(f"saved: {arguments.output}")
    print(CLOSED)


def check(arguments: argparse.Namespace) -> None:
    """Check an archive."""
    expected = None if arguments.save_dir is None else find_expected(arguments)
    report = check_submission(
        arguments.check, arguments.mode.name, arguments.clusters, expected, arguments.workers, bar
    )
    if expected is None:
        found = f"{arguments.check}: {report.predictions} predictions"
        check_count(report.predictions, found, arguments)
    warn_of_unreadable(report.unreadable_images)
    warn_of_broken_rule(report.training_scheme, report.matching)
    matching = f"no {MATCHING}"
    if report.matching is not None:
        matching = f"{MATCHING} of {report.matching.clusters} clusters"
    print(f"{arguments.check}: good; {report.predictions} predictions, {matching}, {METHOD}")


def main() -> None:
    """Pack a submission, or check one."""
    arguments = parse_arguments()
    with problems_kept(arguments.problems):
        if arguments.check:
            check(arguments)
        else:
            write(arguments)


if __name__ == "__main__":
    run(main)
