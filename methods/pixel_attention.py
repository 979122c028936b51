#!/usr/bin/env python3
"""PASS, step 2: learn on a pre-trained network which pixels matter; docs/pass.md."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from command_line.startup import run, stop_asked
from command_line.arguments import check_save_dir, parse, path_argument
from command_line.networks import add_weights
from command_line.pretraining import new_parser, overridden, request_of
from command_line.progress import bar, print_line
from imagenets.learning.pass_method.recipes import attention_recipe, pretraining_recipe
from imagenets.learning.pass_method.runs import train_attention
from imagenets.learning.processes import started


def main() -> None:
    """Train the attention, or resume it."""
    parser = new_parser(__doc__ or "")
    parser.add_argument(
        "--checkpoint",
        type=path_argument,
        required=True,
        help="last.pth of pretrain.py, or the published pass*_pretrained.pth.tar",
    )
    add_weights(parser)
    parser.add_argument("--backbone", metavar="NAME", help="the checkpoint's ResNet (default: the recipe's)")
    arguments = parse(parser)
    check_save_dir(parser, arguments)
    recipe = overridden(attention_recipe(arguments.recipe, arguments.mode.name), arguments)
    backbone = arguments.backbone or pretraining_recipe(arguments.recipe, arguments.mode.name).backbone
    with started(arguments.device, stop_asked) as processes:
        request = request_of(arguments, processes)
        train_attention(
            request,
            recipe,
            backbone,
            arguments.checkpoint,
            processes,
            bar,
            print_line,
            weights=arguments.weights,
        )
        if processes.first:
            print(f"saved: {arguments.output_dir / 'last.pth'}")


if __name__ == "__main__":
    run(main, resumes=True, on_all_ranks=True)
