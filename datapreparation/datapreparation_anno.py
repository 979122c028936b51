"""Download the annotation archive of ImageNet-S and put its masks in place."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from command_line.startup import run
from command_line.arguments import path_argument
from command_line.preparation import modes_of, new_parser, origin_of, parse
from command_line.progress import bar, warn
from imagenets.lists import categories, mapping, mask_of, train_semi
from imagenets.preparation.annotations import MaskList, put_annotations


def main() -> None:
    """Parse, fetch the archives, put the masks in place, print."""
    parser = new_parser(
        "Make ImageNetS*/validation-segmentation and train-semi-segmentation: the official masks.\n"
        "Their archive is downloaded, and removed afterwards."
    )
    parser.add_argument(
        "--archive",
        type=path_argument,
        metavar="FILE",
        help="use this ZIP instead of downloading it; needs a single mode",
    )
    arguments = parse(parser)
    if arguments.archive is not None and arguments.mode == "all":
        parser.error("--archive goes with one mode, not with all")
    origin = origin_of(arguments)
    lists = []
    for mode in modes_of(arguments):
        wnids = categories(mode, origin, bar, warn)
        validation = [
            mask_of(image.target) for image in mapping(mode, "validation", wnids, origin, bar, warn)
        ]
        semi = [image.mask for image in train_semi(mode, wnids, origin, bar, warn)]
        lists.append(MaskList(mode, validation, semi))

    for masks in lists:
        for placed in put_annotations(masks, arguments.save_dir, origin, arguments.archive, bar, warn):
            if not placed.masks:
                print(f"{placed.folder}: none")
            else:
                made = "there before" if not placed.made else f"{placed.made} of them made now"
                made = "made now" if placed.made == placed.masks else made
                print(f"{placed.folder}: {placed.masks} masks, {made}")


if __name__ == "__main__":
    run(main, resumes=True)
