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

from command_line import path_argument, run
from command_line.evaluation import add_gt_dir_argument, check_output, default_workers, worker_count
from command_line.progress import bar, warn
from imagenets.classes import MODES
from imagenets.common.whole_files import write_whole
from imagenets.label_maps import class_ids
from imagenets.reporting.text import number_text, text_table
from imagenets.scoring.counting import warn_of_number
from imagenets.scoring.localization import IOU_THRESHOLDS, Localization, evaluate_maps, localization_json
from imagenets.scoring.pairs import find_pairs


def parse_arguments() -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, allow_abbrev=False, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--attribution-dir",
        type=path_argument,
        required=True,
        help="maps, <attribution-dir>/<wnid>/<name>.npy: floating point, (height, width) of the image",
    )
    add_gt_dir_argument(parser)
    parser.add_argument("--mode", choices=MODES, required=True, help="number of classes")
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
    parser.add_argument("--output", type=path_argument, metavar="FILE", help="save the scores: x.json")
    arguments = parser.parse_args()
    if arguments.output and arguments.output.suffix != ".json":
        parser.error(f"--output {arguments.output}: must end in .json")
    return arguments


def _pixels(text: str) -> float:
    try:
        pixels = float(text)
    except ValueError:
        pixels = math.nan
    if not 0 <= pixels < math.inf:
        raise argparse.ArgumentTypeError(f"{text!r} is no number of pixels, 0 or more")
    return pixels


def print_scores(result: Localization) -> None:
    """Print the IoU at every threshold, and the summary."""
    rows = [
        (f"{threshold:.2f}", number_text(iou))
        for threshold, iou in zip(IOU_THRESHOLDS, result.iou, strict=True)
    ]
    print(text_table(("threshold", "IoU"), rows))
    print()
    header = ("pointing_game", "energy", "iou_best", "auc", "images", "target_absent")
    scores = (result.pointing_game, result.energy, result.iou_best, result.auc)
    print(text_table(header, [(*map(number_text, scores), str(result.images), str(result.target_absent))]))


def main() -> None:
    """Score the maps, print the scores, save them."""
    arguments = parse_arguments()
    if arguments.output:
        check_output(arguments.output)
    pairs = find_pairs(arguments.gt_dir, arguments.attribution_dir)
    mode = MODES[arguments.mode]
    ids = class_ids(mode, pairs.gt_dir, {name.partition("/")[0] for name in pairs.names})
    warn_of_number(pairs.gt_dir, len(pairs.names), mode, warn)
    result = evaluate_maps(pairs, ids, arguments.tolerance, arguments.workers, bar)
    if result.target_absent:
        warn(f"{result.target_absent} images do not show the class of their folder; they are not scored")
    if result.no_outside:
        warn(f"{result.no_outside} images are filled by their object; they do not count in auc")
    print_scores(result)
    if arguments.output:
        arguments.output.parent.mkdir(parents=True, exist_ok=True)
        content = json.dumps(localization_json(result), indent=1, allow_nan=False)
        write_whole(arguments.output, content + "\n")
        print(f"\nsaved: {arguments.output}")


if __name__ == "__main__":
    run(main)
