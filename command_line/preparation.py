"""What the data preparation scripts share: arguments, and what they print."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from command_line.arguments import parse as parse_flags
from command_line.arguments import path_argument, whole_number
from command_line.progress import bar
from imagenets.classes import MODES
from imagenets.common.errors import InputError
from imagenets.lists import Origin
from imagenets.preparation.image_folders import Done, prepare
from imagenets.preparation.layouts import KAGGLE
from imagenets.preparation.links import NoLinksError
from imagenets.preparation.plans import Plan
from imagenets.preparation.tar_layouts import TRAIN_TAR, VAL_TAR

PATH_OPTIONS = ("--imagenet-dir", "--save-dir", "--archive", "--mirror", "--lists")

LAYOUTS = f"""\
--imagenet-dir may hold train/<wnid>/ with val/<wnid>/ or a flat val/, directly or in {KAGGLE}
(Kaggle's copy, or its ZIP); train_images_0/ … and val_images/ (Hugging Face's archives, unpacked); the
original {TRAIN_TAR} and {VAL_TAR}; or Hugging Face's parquet shards in data/. From
ZIP, tars and shards, only the images needed are extracted."""


def new_parser(description: str, layouts: bool = False) -> argparse.ArgumentParser:
    """Begin a script's parser with the arguments of all, and with ``layouts`` those of image folders."""
    parser = argparse.ArgumentParser(
        description=description, epilog=LAYOUTS if layouts else None, allow_abbrev=False
    )
    if layouts:
        parser.add_argument(
            "--imagenet-dir", type=path_argument, required=True, help="your copy of ImageNet; never changed"
        )
        parser.add_argument(
            "--absolute",
            action="store_true",
            help="make absolute links (default: relative ones if ImageNet and the prepared sets are in one "
            "folder, at any depth; that folder can then be moved or mounted elsewhere)",
        )
        parser.add_argument(
            "--workers", type=whole_number(1, 1024), default=4, help="threads for copying (default: 4)"
        )
    parser.add_argument(
        "--save-dir",
        type=path_argument,
        required=True,
        help="folder of the prepared sets, which holds ImageNetS50 etc.",
    )
    parser.add_argument(
        "--mode",
        choices=[*MODES, "all"],
        required=True,
        help="which set, by its number of classes, or all three",
    )
    parser.add_argument(
        "--mirror",
        type=_mirror_argument,
        help="URL or folder with the official lists and archives (default: $IMAGENETS_MIRROR, or else their "
        "official addresses)",
    )
    parser.add_argument(
        "--lists",
        type=path_argument,
        help="folder of your own lists, whose checksums are not checked (default: $IMAGENETS_LISTS, or "
        "else the official lists)",
    )
    return parser


def _mirror_argument(text: str) -> str:
    path_argument(text)  # not empty; a Path would change a URL
    return text


def parse(parser: argparse.ArgumentParser) -> argparse.Namespace:
    """Parse the command line, in which a path may begin with a dash.

    argparse would take such a path for an option.
    """
    arguments: list[str] = []
    for argument in sys.argv[1:]:
        if arguments and arguments[-1] in PATH_OPTIONS and not argument.startswith("--"):
            arguments[-1] += f"={argument}"
        else:
            arguments.append(argument)
    # Paths that are no text in the terminal's encoding are printed with escapes.
    sys.stdout.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]
    return parse_flags(parser, arguments)


def modes_of(arguments: argparse.Namespace) -> list[str]:
    """List the modes that were asked for."""
    return list(MODES) if arguments.mode == "all" else [arguments.mode]


def origin_of(arguments: argparse.Namespace) -> Origin:
    """Return where lists and archives come from."""
    return Origin.chosen(arguments.mirror, arguments.lists)


def carry_out(plans: Sequence[Plan], arguments: argparse.Namespace, cure: str) -> list[Done]:
    """Carry out plans as the command line says, and print what is in each folder now.

    ``cure`` is what to do where the disk takes no links.
    """
    try:
        done = prepare(
            plans, arguments.imagenet_dir, arguments.save_dir, arguments.workers, bar, arguments.absolute
        )
    except NoLinksError as error:
        raise InputError(f"{error}: {cure}") from error
    for folder in done:
        counts = {"images": folder.copies, "links": folder.links}
        things = [f"{number} {what}" for what, number in counts.items() if number]
        made = f"{folder.made} made now" if folder.made else "all there before"
        print(f"{folder.folder}: {' and '.join(things)}, {made}")
    return done
