"""Make train/ of ImageNet-S from a copy of ImageNet, by links or, with --copy, by real files."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from command_line.startup import run
from command_line.preparation import carry_out, modes_of, new_parser, origin_of, parse
from command_line.progress import bar, warn
from imagenets.classes import MODES
from imagenets.lists import categories
from imagenets.preparation.folder_layouts import TrainFolder, TrainFolders
from imagenets.preparation.layouts import find_train, packed_in
from imagenets.preparation.plans import plan_train


def main() -> None:
    """Parse, plan, prepare, print."""
    parser = new_parser(
        "Make ImageNetS*/train: a symbolic link for each class folder; the merged classes of mode 919\n"
        "become real folders of links. If your ImageNet consists of class folders, mode 919 also\n"
        "gets train-full, a link to its whole train folder (also with --copy).",
        layouts=True,
    )
    parser.add_argument("--copy", action="store_true", help="copy the images instead of linking them")
    arguments = parse(parser)
    origin = origin_of(arguments)
    wnids = {mode: categories(mode, origin, bar, warn) for mode in modes_of(arguments)}

    train = find_train(arguments.imagenet_dir)
    print(f"ImageNet's training images: {train}")
    if packed_in(train):
        print(f"from {packed_in(train)}, train has real files, and there is no train-full")
    elif isinstance(train, TrainFolders) and not arguments.copy:
        print("train has class folders with a link for each image, and there is no train-full")
    plans = [plan_train(mode, wnids[mode], train, arguments.copy) for mode in wnids]
    done = carry_out(plans, arguments, "set COPY to true (--copy) to make real files")
    counted = arguments.copy or not isinstance(train, TrainFolder)  # not behind links to class folders
    official = {f"{mode.folder}/train": mode.train for mode in MODES.values()}
    for folder in done:
        images = folder.copies + folder.links
        expected = official.get(folder.folder, images)
        if origin.official and counted and images != expected:
            warn(
                f"{folder.folder} has {images} images, the official set {expected}: "
                "is the copy of ImageNet complete?"
            )


if __name__ == "__main__":
    run(main, resumes=True)
