#!/usr/bin/env python3
"""Export the region of each image's own class, for region-aware models.

png  <wnid>/<name>.png, 8-bit grayscale, 255 inside
rle  regions.json, in the format of Alpha-CLIP's evaluation, with masks as COCO RLE
npz  <wnid>.npz, one array per image, by <name>: bool, or float32 with --size, as in Alpha-CLIP
absent.txt lists the images that do not show the class of their folder: their regions are empty.
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
    whole_number,
)
from command_line.progress import bar
from imagenets.dataset import SPLITS_WITH_MASKS
from imagenets.regions import FORMS, export_regions


def main() -> None:
    """Parse, export, print."""
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    add_split_arguments(parser, SPLITS_WITH_MASKS)
    parser.add_argument("--form", choices=FORMS, required=True, help="file format, see above")
    parser.add_argument(
        "--square", action="store_true", help="crop to the largest centred square, as Alpha-CLIP does"
    )
    parser.add_argument(
        "--size",
        type=whole_number(1, 10_000),
        metavar="S",
        help="with --form npz --square: resize bilinearly to S x S, antialiased; Alpha-CLIP uses 224 or 336",
    )
    arguments = parse(parser)
    check_save_dir(parser, arguments)
    if arguments.size and not (arguments.square and arguments.form == "npz"):
        parser.error("--size goes with --form npz and --square")
    done = export_regions(
        arguments.save_dir,
        arguments.mode,
        arguments.output_dir,
        arguments.form,
        arguments.split,
        arguments.square,
        arguments.size,
        bar,
    )
    print(f"{arguments.output_dir}: {done.regions} regions, {arguments.form}")
    if done.absent:
        print(
            f"{len(done.absent)} images do not show the class of their folder, see absent.txt: empty regions"
        )


if __name__ == "__main__":
    run(main)
