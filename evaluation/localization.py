#!/usr/bin/env python3
"""Score attribution maps against the ground truth: do they find the object of the image's own class?

Four scores, each taken per image and averaged, in percent; void pixels are left out:
pointing_game  is the (first) largest value inside the object?
energy         positive values inside the object, of all positive values
iou            IoU of the object and the map, scaled to 0..1 and cut at 0.05, 0.10, ... 0.95; and the best of
               these thresholds
auc            area under the ROC curve over the pixels
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from command_line.startup import run
from command_line.arguments import add_mode_argument, parse, path_argument
from command_line.evaluation import (
    add_bootstrap_arguments,
    add_gt_dir_argument,
    add_problems_argument,
    check_output,
    problems_kept,
    save_results,
    worker_count,
)
from command_line.progress import bar, warn
from imagenets.class_ids import class_ids
from imagenets.classes import Mode
from imagenets.common.workers import default_workers
from imagenets.reporting.text import bootstrap_json, bootstrap_note, number_text, text_table
from imagenets.scoring.bootstrap import Bootstrap
from imagenets.scoring.counting import refuse_other_mode, warn_of_number
from imagenets.scoring.localization import (
    IOU_THRESHOLDS,
    Localization,
    evaluate_maps,
    localization_csv,
    localization_intervals,
    localization_json,
)
from imagenets.scoring.pairs import find_pairs, read_names


def parse_arguments() -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, allow_abbrev=False, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--attribution-dir",
        type=path_argument,
        required=True,
        help="maps, <attribution-dir>/<wnid>/<name>.npy: floating point or uint8, (height, width) or "
        "(1, height, width) of the image; or all of a class in <attribution-dir>/<wnid>.npz (or "
        ".safetensors), by <name>",
    )
    add_gt_dir_argument(parser)
    add_mode_argument(parser, "classes")
    parser.add_argument(
        "--names", type=path_argument, metavar="FILE", help="only these: one <wnid>/<name>.png a line"
    )
    parser.add_argument(
        "--resize", action="store_true", help="bring maps of another size to their image's, bilinearly"
    )
    add_bootstrap_arguments(parser, resamples=None)
    parser.add_argument(
        "--tolerance",
        type=_pixels,
        default=0.0,
        metavar="PIXELS",
        help="pointing game: also a hit this close to the object (default: 0; often 15)",
    )
    parser.add_argument(
        "--workers",
        type=worker_count,
        default=default_workers(),
        help="processes (default: one per core; 0: no extra process)",
    )
    add_problems_argument(parser)
    parser.add_argument("--output", type=path_argument, metavar="FILE", help="save the scores: x.json")
    parser.add_argument(
        "--per-image", type=path_argument, metavar="FILE.csv", help="save the scores of every image"
    )
    arguments = parse(parser)
    if arguments.output and arguments.output.suffix != ".json":
        parser.error(f"--output {arguments.output}: must end in .json")
    if arguments.per_image and arguments.per_image.suffix != ".csv":
        parser.error(f"--per-image {arguments.per_image}: must end in .csv")
    if arguments.seed is not None and not arguments.bootstrap:
        parser.error("--seed goes with --bootstrap")
    return arguments


def _pixels(text: str) -> float:
    try:
        pixels = float(text)
    except ValueError:
        pixels = math.nan
    if not 0 <= pixels < math.inf:
        raise argparse.ArgumentTypeError(f"{text!r} is no number of pixels, 0 or more")
    return pixels


def print_scores(result: Localization, bootstrap: Bootstrap | None) -> None:
    """Print the IoU at every threshold, the summary, and intervals where there are any."""
    rows = [
        (f"{threshold:.2f}", number_text(iou))
        for threshold, iou in zip(IOU_THRESHOLDS, result.iou, strict=True)
    ]
    print(text_table(("threshold", "IoU"), rows))
    print()
    header = ("pointing_game", "energy", "iou_best", "auc", "images", "target_absent")
    scores = (result.pointing_game, result.energy, result.iou_best, result.auc)
    print(text_table(header, [(*map(number_text, scores), str(result.images), str(result.target_absent))]))
    if bootstrap:
        intervals = [
            (name, number_text(score), "-" if math.isnan(low) else f"{low:.2f}–{high:.2f}")
            for (name, (low, high)), score in zip(bootstrap.intervals.items(), scores, strict=True)
        ]
        print(f"\n{text_table(('score', 'value', '95% interval'), intervals, left=(0,))}")
        print(f"({bootstrap_note(bootstrap)})")


def score_maps(arguments: argparse.Namespace) -> Localization:
    """List the maps and score them."""
    names = None if arguments.names is None else read_names(arguments.names)
    pairs = find_pairs(arguments.gt_dir, arguments.attribution_dir, names)
    mode: Mode = arguments.mode
    ids = class_ids(mode, {name.partition("/")[0] for name in pairs.names}, pairs.gt_dir)
    if names is None:
        refuse_other_mode(pairs.gt_dir, mode)
    warn_of_number(pairs.gt_dir, len(pairs.names), mode, warn)
    return evaluate_maps(pairs, ids, arguments.tolerance, arguments.workers, bar, arguments.resize)


def main() -> None:
    """Score the maps, print the scores, save them."""
    arguments = parse_arguments()
    for path in (arguments.output, arguments.per_image):
        if path:
            check_output(path)
    with problems_kept(arguments.problems):
        result = score_maps(arguments)
    if result.target_absent:
        warn(f"{result.target_absent} images do not show the class of their folder; they are not scored")
    if result.no_outside:
        warn(f"{result.no_outside} images are filled by their object; they do not count in auc")
    bootstrap = None
    if arguments.bootstrap:
        bootstrap = localization_intervals(result, arguments.bootstrap, arguments.seed or 0)
    if arguments.resize:
        print(f"{result.resized} of {result.images} maps brought to their image's size (bilinear)\n")
    print_scores(result, bootstrap)
    saved: dict[Path, str | bytes] = {}
    if arguments.output:
        content = {
            **localization_json(result),
            **({"resize": "bilinear", "resized": result.resized} if arguments.resize else {}),
            **({} if bootstrap is None else bootstrap_json(bootstrap)),
        }
        saved[arguments.output] = json.dumps(content, indent=1, allow_nan=False) + "\n"
    if arguments.per_image:
        saved[arguments.per_image] = localization_csv(result)
    save_results(saved)


if __name__ == "__main__":
    run(main)
