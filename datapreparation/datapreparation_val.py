"""Make validation/ and test/ of ImageNet-S from a copy of ImageNet."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from command_line.startup import run
from command_line.preparation import carry_out, modes_of, new_parser, origin_of, parse
from command_line.progress import bar, warn
from imagenets.lists import MappedImage, categories, mapping
from imagenets.preparation.layouts import find_val, packed_in
from imagenets.preparation.plans import plan_val, refuse_missing


def main() -> None:
    """Parse, plan, prepare, print."""
    parser = new_parser(
        "Make ImageNetS*/validation and test: copies of ImageNet's validation images, sorted into class\n"
        "folders by ImageNet-S's lists. For 13% of the images this is not ImageNet's class.",
        layouts=True,
    )
    parser.add_argument("--link", action="store_true", help="make symbolic links instead of copies")
    parser.add_argument("--check", action="store_true", help="only check that your ImageNet has the images")
    arguments = parse(parser)
    origin = origin_of(arguments)
    lists: dict[str, dict[str, list[MappedImage]]] = {}
    for mode in modes_of(arguments):
        wnids = categories(mode, origin, bar, warn)
        lists[mode] = {
            split: mapping(mode, split, wnids, origin, bar, warn) for split in ("validation", "test")
        }

    val = find_val(arguments.imagenet_dir)
    if not arguments.check:
        print(f"ImageNet's validation images: {val}")
    if arguments.link and packed_in(val):
        print(f"from {packed_in(val)}, validation and test have real files, even with --link")
    plans = [plan_val(mode, splits, val, arguments.link) for mode, splits in lists.items()]
    if arguments.check:
        refuse_missing(plans, arguments.imagenet_dir)
        return
    carry_out(plans, arguments, "leave out --link to make real files")


if __name__ == "__main__":
    run(main, resumes=True)
