#!/usr/bin/env python3
"""Match the clusters of predictions to classes, and save the matching for evaluator.py."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from command_line.startup import run
from command_line.arguments import parse
from command_line.evaluation import add_arguments, check_output, problems_kept, read_classes, request_of
from command_line.progress import bar, warn
from imagenets.common.errors import InputError
from imagenets.common.whole_files import write_whole
from imagenets.reporting.text import matching_text
from imagenets.scoring.counting import count_masks
from imagenets.scoring.matching import METHODS, find_matching, shared_with_class
from imagenets.scoring.matching_record import SUFFIX, write_record
from imagenets.scoring.plausibility import cut_to_8_bits


def parse_arguments() -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    add_arguments(parser)
    parser.add_argument(
        "--session-name",
        required=True,
        help="name of the matching, saved as <results-dir>/<session-name>.json",
    )
    parser.add_argument(
        "--method",
        choices=METHODS,
        default="image",
        help="image (default, the benchmark's): one-to-one, most images in common; pixel: one-to-one, "
        "most pixels in common; majority: each cluster takes the class that it overlaps most",
    )
    return parse(parser)


def matching_path(arguments: argparse.Namespace) -> Path:
    """Path of the matching; InputError for a name that would leave the results folder."""
    name = arguments.session_name
    if name in ("", ".", "..") or set(name) & set("/\\\0") or name.endswith((".json", SUFFIX)):
        raise InputError(
            f"--session-name {name!r}: use a plain name, without folders, without .json and {SUFFIX} "
            "(--results-dir chooses the folder)"
        )
    result: Path = arguments.results_dir / f"{name}.json"
    return result


def main() -> None:
    """Match clusters to classes, save the matching, print it."""
    arguments = parse_arguments()
    path = matching_path(arguments)
    check_output(path)
    request = request_of(arguments, arguments.predict_dir, matched=True)
    with problems_kept(arguments.problems):
        table = count_masks(request, bar, warn)
    number_of_classes, clusters = request.mode.classes, request.limit.largest
    doubt = cut_to_8_bits(table, clusters)
    if doubt:
        warn(doubt)
    matching = find_matching(table, arguments.method, number_of_classes, clusters)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, matching.text())
    write_record(path, matching, table)
    shared = shared_with_class(table, matching, number_of_classes)
    print(matching_text(matching, shared, read_classes(request.mode, request.gt_dir)))
    print()
    print(
        f"{len(table.names)} images, method {arguments.method}: {(matching.classes > 0).sum()} of {clusters} "
        f"clusters have a class; in common with it: {shared.images.sum()} images, "
        f"{shared.pixels.sum()} pixels ({shared.percent_of_objects:.2f} % of all objects' pixels)"
    )
    print(f"saved: {path}")


if __name__ == "__main__":
    run(main)
