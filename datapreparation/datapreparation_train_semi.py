"""Make train-semi/ of ImageNet-S, ten training images a class, from a copy of ImageNet."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from command_line.startup import run
from command_line.preparation import carry_out, modes_of, new_parser, origin_of, parse
from command_line.progress import bar, warn
from imagenets.lists import categories, train_semi
from imagenets.preparation.layouts import find_train, packed_in
from imagenets.preparation.plans import plan_train_semi


def main() -> None:
    """Parse, plan, prepare, print."""
    parser = new_parser(
        "Make ImageNetS*/train-semi: copies of the ten training images per class that have masks.",
        layouts=True,
    )
    parser.add_argument("--link", action="store_true", help="make symbolic links instead of copies")
    arguments = parse(parser)
    origin = origin_of(arguments)
    lists = {
        mode: train_semi(mode, categories(mode, origin, bar, warn), origin, bar, warn)
        for mode in modes_of(arguments)
    }

    train = find_train(arguments.imagenet_dir)
    print(f"ImageNet's training images: {train}")
    if arguments.link and packed_in(train):
        print(f"from {packed_in(train)}, train-semi has real files, even with --link")
    plans = [plan_train_semi(mode, images, train, arguments.link) for mode, images in lists.items()]
    carry_out(plans, arguments, "leave out --link to make real files")


if __name__ == "__main__":
    run(main, resumes=True)
