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
import os
import sys
from collections.abc import Iterable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from tqdm import tqdm

from command_line import path_argument, run
from command_line.evaluation import add_gt_dir_argument, check_output, default_workers, warn, worker_count
from imagenets.classes import MODES
from imagenets.common.errors import InputError, listed
from imagenets.common.whole_files import write_whole
from imagenets.lists import categories_at_hand
from imagenets.reporting.text import text_table
from imagenets.scoring.localization import IOU_THRESHOLDS, Localization, evaluate_maps, localization_json
from imagenets.scoring.pairs import Pairs, find_pairs, wnid_folders


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


def find_class_ids(pairs: Pairs, mode: str) -> dict[str, int]:
    """Give the class id of each wnid: its place among the folders of --gt-dir, else in the official list."""
    number = MODES[mode].classes
    folders = wnid_folders(pairs.gt_dir)
    wnids = folders if len(folders) == number else categories_at_hand(mode)
    if wnids is None:
        raise InputError(
            f"{pairs.gt_dir}: class ids cannot be told, for it has {len(folders)} class folders, not "
            f"{number}, and the official list is not on this machine; name the folder of the lists in "
            "IMAGENETS_LISTS"
        )
    unknown = sorted({name.split("/")[0] for name in pairs.names} - set(wnids))
    if unknown:
        raise InputError(
            f"{pairs.gt_dir}: {len(unknown)} folders are no class of mode {mode}:\n{listed(unknown)}"
        )
    return {wnid: class_id for class_id, wnid in enumerate(sorted(wnids), start=1)}


def print_scores(result: Localization) -> None:
    """Print the IoU at every threshold, and the summary."""
    rows = [
        (f"{threshold:.2f}", _number(iou)) for threshold, iou in zip(IOU_THRESHOLDS, result.iou, strict=True)
    ]
    print(text_table(("threshold", "IoU"), rows))
    print()
    header = ("pointing_game", "energy", "iou_best", "auc", "images", "target_absent")
    scores = (result.pointing_game, result.energy, result.iou_best, result.auc)
    print(text_table(header, [(*map(_number, scores), str(result.images), str(result.target_absent))]))


def _number(score: float) -> str:
    return "-" if math.isnan(score) else f"{score:.2f}"


def _with_bar(results: Iterable[object], images: int) -> Iterable[object]:
    return tqdm(results, total=images, unit="map", disable=None)


def main() -> None:
    """Score the maps, print the scores, save them."""
    arguments = parse_arguments()
    if arguments.output:
        check_output(arguments.output)
    pairs = find_pairs(arguments.gt_dir, arguments.attribution_dir)
    class_ids = find_class_ids(pairs, arguments.mode)
    official = not os.environ.get("IMAGENETS_LISTS")  # lists of one's own have their own number of images
    if official and len(pairs.names) != MODES[arguments.mode].validation:
        warn(
            f"{arguments.gt_dir}: {len(pairs.names)} masks, but the validation set of mode {arguments.mode} "
            f"has {MODES[arguments.mode].validation}"
        )
    result, problems = evaluate_maps(pairs, class_ids, arguments.tolerance, arguments.workers, _with_bar)
    if result is None:
        raise InputError(f"{len(problems)} files cannot be used:\n{listed(problems)}")
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
