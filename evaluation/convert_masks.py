#!/usr/bin/env python3
"""Convert a folder of masks between the benchmark's format and those of other tools.

rgb     8-bit RGB PNG, label = R + 256 G: what match.py and evaluator.py read
gray16  16-bit grayscale PNG
gray8   8-bit grayscale PNG, labels 0..255, as in mmsegmentation and Hugging Face (palette PNGs are read too)
npy     NumPy array (height, width) of integers

Labels do not change, except that of ignored pixels: 1000 in rgb, V in the other formats. The output folder
gets the subfolders of the input folder, and conversion.json, a record of the conversion.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from command_line.startup import run
from command_line.arguments import add_path, parse, path_argument, whole_number
from command_line.progress import bar
from imagenets.mask_forms import FORMS, convert_folder


def main() -> None:
    """Parse, convert, print."""
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument(
        "--input",
        type=path_argument,
        required=True,
        metavar="DIR",
        help="folder of masks, searched with all its subfolders",
    )
    parser.add_argument(
        "--output", type=path_argument, required=True, metavar="DIR", help="a folder that does not exist yet"
    )
    parser.add_argument(
        "--from", dest="source_form", choices=FORMS, required=True, help="format of the input"
    )
    parser.add_argument("--to", dest="target_form", choices=FORMS, required=True, help="format of the output")
    parser.add_argument(
        "--ignore",
        type=int,
        metavar="V",
        help="label of ignored pixels in formats other than rgb (default: 255 in gray8, otherwise 1000)",
    )
    add_path(
        parser,
        "--size-of",
        "GT",
        "resize each mask by nearest neighbour to the size of its mask or image in this folder, "
        "GT/<wnid>/<name>; not for predictions on crops",
    )
    parser.add_argument(
        "--workers", type=whole_number(1, 1024), default=4, help="threads for converting (default: 4)"
    )
    arguments = parse(parser)
    forms = (arguments.source_form, arguments.target_form)
    if arguments.ignore is not None:
        refuse_ignore(parser, arguments.ignore, forms)
    done = convert_folder(
        arguments.input, arguments.output, *forms, arguments.ignore, arguments.workers, bar, arguments.size_of
    )
    print(f"{arguments.output}: {done.masks} masks, {forms[1]}")
    if arguments.size_of:
        print(f"resized (nearest neighbour): {done.resized} of {done.masks}, to sizes in {arguments.size_of}")


def refuse_ignore(parser: argparse.ArgumentParser, ignore: int, forms: tuple[str, str]) -> None:
    """End with 2 if no form can hold the label."""
    for form in forms:
        lowest = -(2**31) if form == "npy" else 0
        if form != "rgb" and not lowest <= ignore <= FORMS[form].largest:
            parser.error(f"--ignore {ignore}: {form} holds {lowest}..{FORMS[form].largest}")
    if forms == ("rgb", "rgb"):
        parser.error("--ignore: ignored pixels are 1000 in rgb")


if __name__ == "__main__":
    run(main)
