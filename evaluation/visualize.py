#!/usr/bin/env python3
"""Draw masks over their images: ground truth, prediction and disagreement, one PNG per image."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from command_line.startup import run
from command_line.arguments import add_mode_argument, parse, path_argument
from command_line.evaluation import (
    add_gt_dir_argument,
    add_match_argument,
    add_results_dir_argument,
    add_workers_argument,
    check_output,
    matching_path,
    read_classes,
)
from command_line.progress import bar
from imagenets.classes import MAX_LABEL, MODES, Mode, label_name
from imagenets.common.folders import subfolders
from imagenets.images import check_image_dir
from imagenets.reporting.overlay_folder import Drawing, write_overlays
from imagenets.scoring.matching import read_matching
from imagenets.scoring.pairs import find_pairs, read_names


def parse_arguments() -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument(
        "--image-dir", type=path_argument, required=True, help="images, <image-dir>/<wnid>/<name>.JPEG"
    )
    add_gt_dir_argument(parser)
    parser.add_argument(
        "--predict-dir",
        type=path_argument,
        required=True,
        help="predictions, <predict-dir>/<wnid>/<name>.png",
    )
    parser.add_argument(
        "--out", type=path_argument, required=True, help="folder for the drawings, <out>/<wnid>/<name>.png"
    )
    parser.add_argument(
        "--names",
        type=path_argument,
        metavar="FILE",
        help="use only the masks listed in FILE, one <wnid>/<name>.png per line",
    )
    add_mode_argument(parser, "classes (default: found by the number of folders in --gt-dir)", required=False)
    add_match_argument(parser)
    add_results_dir_argument(parser)
    add_workers_argument(parser, "draw")
    return parse(parser)


def chosen_mode(arguments: argparse.Namespace) -> Mode | None:
    """The mode of --mode, else the one with as many classes as --gt-dir has folders; None if none has."""
    if arguments.mode is not None:
        given: Mode = arguments.mode
        return given
    folders = len(subfolders(arguments.gt_dir))
    return next((mode for mode in MODES.values() if mode.classes == folders), None)


def main() -> None:
    """Draw the overlays, or say which inputs cannot be used."""
    arguments = parse_arguments()
    check_image_dir(arguments.image_dir)
    check_output(arguments.out / "overlay.png")
    names = None if arguments.names is None else read_names(arguments.names)
    pairs = find_pairs(arguments.gt_dir, arguments.predict_dir, names)
    mode = chosen_mode(arguments)
    labels = None if mode is None else [label_name(c) for c in read_classes(mode, arguments.gt_dir)]
    matching = None
    if arguments.match is not None:
        path = matching_path(arguments.match, arguments.results_dir)
        matching = read_matching(path, MAX_LABEL if mode is None else mode.classes)
    drawing = Drawing(arguments.image_dir, labels, matching)
    write_overlays(pairs, drawing, arguments.out, arguments.workers, bar)
    print(f"saved: {len(pairs.names)} overlays in {arguments.out}")


if __name__ == "__main__":
    run(main)
