"""What the scripts of PASS's two trainings share: arguments, and the way from them to a request."""

from __future__ import annotations

import argparse
from dataclasses import replace
from typing import TypeVar

from command_line.arguments import (
    add_mode_argument,
    add_save_dir_argument,
    number_in,
    path_argument,
    positive_number,
    whole_number,
)
from command_line.networks import add_machine
from imagenets.learning.images import list_images
from imagenets.learning.networks.precision import training_precision
from imagenets.learning.pass_method.recipes import RECIPES, Attention, Pretraining
from imagenets.learning.pass_method.runs import PassRequest
from imagenets.learning.processes import Processes

Recipe = TypeVar("Recipe", Pretraining, Attention)


def new_parser(description: str) -> argparse.ArgumentParser:
    """Begin a parser with the arguments that both trainings take."""
    parser = argparse.ArgumentParser(description=description, allow_abbrev=False)
    add_save_dir_argument(parser)
    add_mode_argument(parser, "the prepared set")
    parser.add_argument(
        "--output-dir",
        type=path_argument,
        required=True,
        help="output folder of this run alone, for last.pth, log.jsonl and curves.png",
    )
    parser.add_argument(
        "--recipe",
        choices=RECIPES,
        default="pass",
        help="pass: the published settings of the mode (default); small: for a few hundred images, "
        "takes minutes on two cores",
    )
    parser.add_argument(
        "--epochs", type=whole_number(1, 100_000), help="number of epochs (default: the recipe's)"
    )
    parser.add_argument(
        "--batch-size",
        type=whole_number(1, 1_000_000),
        help="images per step, over all processes (default: the recipe's)",
    )
    parser.add_argument("--lr", type=positive_number, help="peak learning rate (default: the recipe's)")
    parser.add_argument(
        "--weight-decay", type=number_in(0, 100), help="weight decay of the optimiser (default: the recipe's)"
    )
    parser.add_argument("--seed", type=whole_number(0, 2**31 - 1), help="random seed (default: the recipe's)")
    parser.add_argument(
        "--split",
        choices=("train", "train-full"),
        default="train",
        help="images to train on (default: train); train-full is all of ImageNet: the published network of "
        "mode 919 used it, but the benchmark's rules forbid it",
    )
    add_machine(parser)
    return parser


def overridden(recipe: Recipe, arguments: argparse.Namespace) -> Recipe:
    """Replace a recipe's values by those that were given."""
    given = {
        "epochs": arguments.epochs,
        "batch": arguments.batch_size,
        "lr": arguments.lr,
        "weight_decay": arguments.weight_decay,
        "seed": arguments.seed,
    }
    return replace(recipe, **{name: value for name, value in given.items() if value is not None})


def request_of(arguments: argparse.Namespace, processes: Processes) -> PassRequest:
    """List the images, and say what is asked for. Raises InputError when there are none."""
    folder = arguments.mode.set_folder(arguments.save_dir) / arguments.split
    return PassRequest(
        mode=arguments.mode.identity,
        recipe_name=arguments.recipe,
        folder=folder,
        images=processes.together(lambda: list_images(folder)),
        output=arguments.output_dir,
        workers=arguments.workers,
        precision=training_precision(arguments.precision, processes.device),
    )
