#!/usr/bin/env python3
"""PASS, step 1: pre-train a ResNet without labels; docs/pass.md."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from command_line.startup import run, stop_asked
from command_line.arguments import check_save_dir, parse
from command_line.pretraining import new_parser, overridden, request_of
from command_line.progress import bar, print_line
from imagenets.learning.pass_method.recipes import pretraining_recipe
from imagenets.learning.pass_method.runs import pretrain
from imagenets.learning.processes import started


def main() -> None:
    """Pre-train, or resume it."""
    parser = new_parser(__doc__ or "")
    parser.add_argument("--backbone", metavar="NAME", help="a ResNet (default: the recipe's)")
    arguments = parse(parser)
    check_save_dir(parser, arguments)
    recipe = overridden(pretraining_recipe(arguments.recipe, arguments.mode.name), arguments)
    recipe = replace(recipe, backbone=arguments.backbone or recipe.backbone)
    with started(arguments.device, stop_asked) as processes:
        pretrain(request_of(arguments, processes), recipe, processes, bar, print_line)
        if processes.first:
            print(f"saved: {arguments.output_dir / 'last.pth'}")


if __name__ == "__main__":
    run(main, resumes=True, on_all_ranks=True)
