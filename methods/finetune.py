#!/usr/bin/env python3
"""Fine-tune a network with masks: the semi-supervised protocol (train-semi), or PASS's pseudo labels.

Writes RUN/last.pth (for predict.py), RUN/log.jsonl and RUN/curves.png. A run that was stopped, also killed,
goes on with the same command, and ends with the same weights. Start it with torchrun on several GPUs:
torchrun --nproc-per-node 8 methods/finetune.py … Values that are not given are the recipe's; all are printed.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from command_line.startup import run, stop_asked
from command_line.arguments import (
    add_mode_argument,
    add_save_dir_argument,
    check_save_dir,
    number_in,
    parse,
    path_argument,
    positive_number,
    whole_number,
)

# isort: split
from tqdm import tqdm

from command_line.networks import add_weights
from command_line.progress import bar
from command_line.training import add_machine
from imagenets.learning.finetuning.run import Request, fine_tune
from imagenets.learning.networks.segmentation_network import PASS, RECIPES
from imagenets.learning.processes import started

# Options that replace values of the recipe, and the values' names.
_VALUES = {
    "epochs": "epochs",
    "batch_size": "batch",
    "lr": "lr",
    "layer_decay": "layer_decay",
    "weight_decay": "weight_decay",
    "drop_path": "drop_path",
    "crop": "crop",
    "seed": "seed",
}


def checkpoint_argument(text: str) -> Path | None:
    """Argument type: a file, or ``none``."""
    return None if text == "none" else path_argument(text)


def parse_arguments() -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, allow_abbrev=False, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_save_dir_argument(parser)
    add_mode_argument(parser, "the set")
    parser.add_argument(
        "--output-dir", type=path_argument, required=True, metavar="RUN", help="of this run alone"
    )
    parser.add_argument(
        "--recipe",
        choices=RECIPES,
        required=True,
        help="semi-supervised: train-semi and its masks; pass: train and the label maps in --masks",
    )
    parser.add_argument("--backbone", required=True, metavar="NAME", help="a torchvision or timm model")
    parser.add_argument(
        "--checkpoint",
        type=checkpoint_argument,
        required=True,
        metavar="FILE",
        help="the backbone's weights; none: start from random ones",
    )
    add_weights(parser)
    parser.add_argument(
        "--masks",
        type=path_argument,
        metavar="DIR",
        help="pass: label maps <wnid>/<name>.png of train, ids 0..N",
    )
    parser.add_argument(
        "--output-stride",
        type=int,
        choices=(16, 32),
        help="of a ResNet: pixels a feature (default: 32; 16 sees finer, with more memory)",
    )
    _add_values(parser)
    _add_running(parser)
    arguments = parse(parser)
    if (arguments.recipe == PASS) != (arguments.masks is not None):
        parser.error("--masks goes with --recipe pass, which needs it")
    check_save_dir(parser, arguments)
    return arguments


def _add_values(parser: argparse.ArgumentParser) -> None:
    values = parser.add_argument_group("values in place of the recipe's")
    values.add_argument("--epochs", type=whole_number(1, 100_000), metavar="E", help="passes over the images")
    values.add_argument(
        "--batch-size",
        type=whole_number(1, 1_000_000),
        metavar="B",
        help="images of one update, all processes together; without --lr, the rate changes in proportion",
    )
    values.add_argument("--lr", type=positive_number, metavar="R", help="the highest learning rate, absolute")
    values.add_argument(
        "--layer-decay",
        type=number_in(0.01, 1),
        metavar="D",
        help="each layer learns at D times the next one's rate",
    )
    values.add_argument("--weight-decay", type=number_in(0, 100), metavar="W", help="the optimiser's")
    values.add_argument(
        "--drop-path",
        type=number_in(0, 0.99),
        metavar="P",
        help="rate of stochastic depth at the last block",
    )
    values.add_argument(
        "--crop", type=whole_number(16, 4096), metavar="C", help="side of the pictures in pixels"
    )
    values.add_argument("--seed", type=whole_number(0, 2**31 - 1), metavar="S", help="of all that is random")


def _add_running(parser: argparse.ArgumentParser) -> None:
    running = parser.add_argument_group("how it runs")
    running.add_argument(
        "--accumulate",
        type=whole_number(1, 10_000),
        default=1,
        metavar="A",
        help="do a batch in A parts, where memory does not suffice (default: 1)",
    )
    running.add_argument(
        "--evaluate-every",
        type=whole_number(0, 100_000),
        default=20,
        metavar="E",
        help="score validation after every E epochs and the last (default: 20; 0: never)",
    )
    add_machine(running)


def main() -> None:
    """Fine-tune, or go on with it."""
    arguments = parse_arguments()
    request = Request(
        save_dir=arguments.save_dir,
        mode=arguments.mode,
        recipe=arguments.recipe,
        backbone=arguments.backbone,
        checkpoint=arguments.checkpoint,
        weights=arguments.weights,
        output=arguments.output_dir,
        given={name: getattr(arguments, option) for option, name in _VALUES.items()},
        masks=arguments.masks,
        output_stride=arguments.output_stride,
        accumulate=arguments.accumulate,
        workers=arguments.workers,
        precision=arguments.precision,
        evaluate_every=arguments.evaluate_every,
    )
    with started(arguments.device, stop_asked) as processes:
        fine_tune(request, processes, bar, lambda line: tqdm.write(line, file=sys.stdout))
        if processes.first:
            print(f"saved: {arguments.output_dir / 'last.pth'}")


if __name__ == "__main__":
    run(main, goes_on=True, on_all_ranks=True)
