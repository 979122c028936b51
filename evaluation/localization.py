#!/usr/bin/env python3
"""Score attribution maps against the ground truth: do they find the object of the image's own class?

Scores are computed per image and averaged, in percent; void pixels are left out. As a baseline, a Gaussian
in the middle of every image is scored too.
pointing_game             is the largest value inside the object?
energy                    share of the positive values that lies inside the object
relevance_mass            the same for the signed values: their sum inside the object, over that of all
relevance_rank            share of the n largest values that lies inside the object, which has n pixels
top_k                     the same for the K largest values
attribution_localization  share of the absolute values that lies inside the object
average_precision, auc    areas under the precision-recall curve and the ROC curve of the pixels
sparseness, complexity    Gini index and entropy (in nats) of the absolute values, wherever the object is
iou_best                  IoU of the object with the map, scaled to 0..1 and thresholded at 0.05, ... 0.95,
                          whichever is best over all images
miou_mean, miou_otsu      mIoU of object and background, thresholded at the map's mean or by Otsu's method,
                          pixels pooled over images
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from command_line.startup import run
from command_line.arguments import add_mode_argument, add_path, parse, path_argument, whole_number
from command_line.evaluation import (
    add_bootstrap_arguments,
    add_gt_dir_argument,
    add_problems_argument,
    add_report_arguments,
    add_workers_argument,
    check_files,
    check_suffixes,
    problems_kept,
    save_results,
    today,
)
from command_line.progress import bar, warn
from imagenets.class_ids import class_ids
from imagenets.classes import Mode, benchmark_title
from imagenets.reporting.text import bootstrap_json, bootstrap_note, number_text, text_table
from imagenets.scoring.attribution_scores import IOU_THRESHOLDS, TIES
from imagenets.scoring.bootstrap import Bootstrap
from imagenets.scoring.counting import refuse_other_mode, warn_of_number
from imagenets.scoring.localization import (
    Localization,
    Settings,
    evaluate_maps,
    localization_csv,
    localization_intervals,
    localization_json,
)
from imagenets.scoring.map_geometry import Geometry, parse_geometry
from imagenets.scoring.pairs import Pairs, find_pairs, read_names


def parse_arguments() -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument(
        "--attribution-dir",
        type=path_argument,
        required=True,
        help="maps, <attribution-dir>/<wnid>/<name>.npy: floating point or uint8, (height, width) or (1, "
        "height, width); or one .npz or .safetensors per class, <attribution-dir>/<wnid>.npz, with <name> "
        "as key",
    )
    add_gt_dir_argument(parser)
    add_mode_argument(parser, "classes")
    add_path(parser, "--names", "FILE", "use only the images listed in FILE, one <wnid>/<name>.png per line")
    parser.add_argument(
        "--geometry",
        type=geometry_argument,
        metavar="G",
        help="for square maps: how their input was made from the image (default: maps have the image's "
        "size). squeeze: resized to a square. center-crop:256,224: Resize(256), CenterCrop(224); only the "
        "crop is scored. paste:256,224: the same crop, pasted back; pixels outside it count as background",
    )
    parser.add_argument(
        "--resize",
        action="store_true",
        help="resize maps bilinearly to the size of their images; the aspect ratios must be the same",
    )
    parser.add_argument(
        "--tolerance",
        type=_pixels,
        default=0.0,
        metavar="PIXELS",
        help="pointing game: a point this close to the object is a hit, too (default: 0; 15 is usual)",
    )
    parser.add_argument(
        "--ties",
        choices=TIES,
        default="first",
        help="pointing game, if several pixels share the largest value: take the first in row order "
        "(default), count a hit if any is one (as Quantus does), or the share of hits among them",
    )
    parser.add_argument(
        "--top-k",
        type=whole_number(1, 100_000_000),
        default=1000,
        metavar="K",
        help="K of the score top_k, in pixels (default: 1000)",
    )
    add_bootstrap_arguments(parser, resamples=None)
    add_workers_argument(parser, "score")
    add_problems_argument(parser)
    add_path(parser, "--output", "FILE", "save the scores: a .json")
    add_path(parser, "--per-image", "FILE.csv", "save the scores of every image")
    add_report_arguments(
        parser,
        "scores, and the best, worst and random images with map and mask",
        " (default: a plain background)",
    )
    arguments = parse(parser)
    check_suffixes(parser, arguments, output=(".json",), per_image=(".csv",), report=(".html",))
    if arguments.seed is not None and not (arguments.bootstrap or arguments.report):
        parser.error("--seed goes with --bootstrap or --report")
    if arguments.geometry and arguments.resize:
        parser.error("--resize is for maps of their image's shape: leave it out with --geometry")
    if arguments.image_dir and not arguments.report:
        parser.error("--image-dir goes with --report")
    return arguments


def geometry_argument(text: str) -> Geometry:
    """Argument type: a geometry."""
    try:
        return parse_geometry(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def _pixels(text: str) -> float:
    try:
        pixels = float(text)
    except ValueError:
        pixels = math.nan
    if not 0 <= pixels < math.inf:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of pixels, 0 or more")
    return pixels


def print_scores(result: Localization, bootstrap: Bootstrap | None) -> None:
    """Print the IoU at every threshold, and the scores beside the baseline's, with intervals if any."""
    rows = [
        (f"{threshold:.2f}", number_text(iou))
        for threshold, iou in zip(IOU_THRESHOLDS, result.iou, strict=True)
    ]
    print(text_table(("threshold", "IoU"), rows))
    print()
    header = ["score", "maps", "centre", *["95% interval"] * bool(bootstrap)]
    lines = []
    for name, score in result.scores.items():
        line = [name, number_text(score), number_text(result.baseline[name])]
        if bootstrap:
            low, high = bootstrap.intervals[name]
            line.append("-" if math.isnan(low) else f"{low:.2f}–{high:.2f}")
        lines.append(line)
    print(text_table(header, lines, left=(0,)))
    print("(percent, complexity in nats; centre: a Gaussian in the middle, which does not look at the image)")
    if bootstrap:
        print(f"({bootstrap_note(bootstrap)})")


def score_maps(arguments: argparse.Namespace) -> tuple[Pairs, dict[str, int], Localization]:
    """List the maps and score them."""
    names = None if arguments.names is None else read_names(arguments.names)
    pairs = find_pairs(arguments.gt_dir, arguments.attribution_dir, names)
    mode: Mode = arguments.mode
    ids = class_ids(mode, {name.partition("/")[0] for name in pairs.names}, pairs.gt_dir)
    if names is None:
        refuse_other_mode(pairs.gt_dir, mode)
    warn_of_number(pairs.gt_dir, len(pairs.names), mode, warn)
    result = evaluate_maps(
        pairs,
        ids,
        Settings(arguments.tolerance, arguments.ties, arguments.top_k),
        arguments.workers,
        bar,
        arguments.resize,
        arguments.geometry,
    )
    return pairs, ids, result


def warn_of_images(result: Localization) -> None:
    """Say which images do not count, and in which scores."""
    lacking, k = result.lacking, result.settings.top_k
    for number, what in (
        (result.target_absent, "images do not show the class of their folder; they are not scored"),
        (result.outside_crop, "images have their object outside the crop and are not scored"),
        (lacking["auc"], "images are filled by their object; they do not count in auc"),
        (lacking["top_k"], f"images have no more than {k} pixels; they do not count in top_k"),
        (lacking["relevance_mass"], "maps sum to 0; they do not count in relevance_mass"),
        (lacking["complexity"], "maps are 0 everywhere; they do not count in complexity"),
    ):
        if number:
            warn(f"{number} {what}")
    if result.negative:
        warn(
            f"{result.negative} maps hold negative values: relevance_mass keeps their sign and may be any "
            "number; energy and attribution_localization are shares"
        )
        if result.geometry is not None and result.geometry.kind == "paste":
            warn(f"{result.geometry} surrounds maps by zeros, and negative values rank below these")


def main() -> None:
    """Score the maps, print the scores, save them."""
    arguments = parse_arguments()
    check_files((arguments.output, arguments.per_image, arguments.report), arguments.image_dir)
    with problems_kept(arguments.problems):
        pairs, ids, result = score_maps(arguments)
    warn_of_images(result)
    bootstrap = None
    if arguments.bootstrap:
        bootstrap = localization_intervals(result, arguments.bootstrap, arguments.seed or 0)
    if arguments.resize or arguments.geometry:
        print(f"{result.resized} of {result.images} maps resized to the size they are scored at (bilinear)\n")
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
    if arguments.report:
        # The library for templates takes a while to load; scores do not need it.
        from imagenets.reporting.localization_page import MapPage, localization_html

        page = MapPage(
            benchmark_title(arguments.mode.name), pairs, ids, arguments.resize, arguments.image_dir, today()
        )
        saved[arguments.report] = localization_html(page, result, bootstrap, arguments.seed or 0)
    save_results(saved)


if __name__ == "__main__":
    run(main)
