#!/usr/bin/env python3
"""Make images of only the object, of only its background, or of the object on another background.

object-only   the object; the background is filled
ground-only   the background; the object, or with tiles its bounding box, is filled
mixed-same    the object on the background of another image of its class
mixed-random  the object on the background of an image of another class
Writes OUTPUT/<condition>/<wnid>/<name>.png, pairs.csv (which background each object got) and left_out.csv
(images that cannot be made).
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from command_line.startup import run
from command_line.arguments import (
    add_split_arguments,
    check_save_dir,
    parse,
    path_argument,
    whole_number,
)
from command_line.progress import bar
from imagenets.common.workers import available_cores
from imagenets.composites import (
    CONDITIONS,
    GROUND_FILLS,
    OBJECT_FILLS,
    OTHERS,
    make_composites,
    read_pairs,
)
from imagenets.dataset import SPLITS_WITH_MASKS


def main() -> None:
    """Parse, make, print."""
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    add_split_arguments(parser, SPLITS_WITH_MASKS)
    parser.add_argument(
        "--conditions",
        nargs="+",
        choices=CONDITIONS,
        default=CONDITIONS,
        help="which of the four above to make (default: all)",
    )
    parser.add_argument(
        "--object-fill",
        choices=OBJECT_FILLS,
        default="black",
        help="object-only: fill of the background (default: black)",
    )
    parser.add_argument(
        "--ground-fill",
        choices=GROUND_FILLS,
        default="tiles",
        help="ground-only: fill of the object (default: tiles of the largest strip beside its bounding box)",
    )
    parser.add_argument(
        "--others",
        choices=OTHERS,
        default="keep",
        help="objects of other classes in a background: keep them (default), fill them and the void pixels, "
        "or do not use the background",
    )
    parser.add_argument(
        "--seed", type=whole_number(0, 2**63 - 1), default=0, help="random seed of the pairs (default: 0)"
    )
    parser.add_argument(
        "--pairs",
        type=path_argument,
        metavar="FILE",
        help="use the pairs.csv of an earlier run instead of --seed",
    )
    parser.add_argument(
        "--workers",
        type=whole_number(0, 1024),
        default=available_cores(),
        help="processes that make images (default: one per core; 0: only this process)",
    )
    arguments = parse(parser)
    check_save_dir(parser, arguments)
    made = make_composites(
        arguments.save_dir,
        arguments.mode,
        arguments.output_dir,
        arguments.conditions,
        arguments.object_fill,
        arguments.ground_fill,
        arguments.others,
        arguments.seed,
        read_pairs(arguments.pairs) if arguments.pairs else None,
        arguments.split,
        arguments.workers,
        bar,
    )
    for condition, number in made.images.items():
        print(f"{arguments.output_dir / condition}: {number} pictures")
    for reason, number in made.left_out.items():
        print(f"not made, {reason}: {number}")
    print(f"{made.others} images show other labelled classes in their ground (--others {arguments.others})")


if __name__ == "__main__":
    run(main)
