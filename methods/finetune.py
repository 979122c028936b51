#!/usr/bin/env python3
"""Train a network with masks: the semi-supervised protocol (train-semi), or label maps of clusters.

The whole network is fine-tuned or, with --recipe linear-probe or self-training, a head on frozen features.
Writes RUN/last.pth (for predict.py), RUN/log.jsonl and RUN/curves.png. The same command resumes a run that
was stopped or killed, with the same result. On several GPUs:
torchrun --nproc-per-node 8 methods/finetune.py …
Values that you do not give are those of the recipe; all are printed.
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

from command_line.networks import add_machine, add_size, add_weights, precision_of
from command_line.progress import bar, print_line
from imagenets.learning.finetuning.probe import train_probe
from imagenets.learning.finetuning.run import FineTuneRequest, fine_tune
from imagenets.learning.networks.segmentation_network import ON_CLUSTERS, PROBE, RECIPES
from imagenets.learning.processes import started

_VALUES = ("epochs", "lr", "layer_decay", "weight_decay", "drop_path", "crop", "seed")
_OF_PROBES = ("layers", "size")
_NOT_OF_PROBES = ("layer_decay", "drop_path", "crop", "evaluate_every")


def checkpoint_argument(text: str) -> Path | None:
    """Argument type: a file, or ``none``."""
    return None if text == "none" else path_argument(text)


def parse_arguments() -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    add_save_dir_argument(parser)
    add_mode_argument(parser, "the prepared set")
    parser.add_argument(
        "--output-dir",
        type=path_argument,
        required=True,
        metavar="RUN",
        help="output folder of this run alone",
    )
    parser.add_argument(
        "--recipe",
        choices=RECIPES,
        required=True,
        help="semi-supervised: train-semi and its masks; pass: train and the label maps in --masks; "
        "self-training: like pass, with the network frozen; linear-probe: like semi-supervised, with the "
        "network frozen",
    )
    parser.add_argument(
        "--backbone", required=True, metavar="NAME", help="a torchvision or timm model, by name"
    )
    parser.add_argument(
        "--checkpoint",
        type=checkpoint_argument,
        required=True,
        metavar="FILE",
        help="weights of the backbone, or the word none for random ones",
    )
    add_weights(parser)
    parser.add_argument(
        "--masks",
        type=path_argument,
        metavar="DIR",
        help="for pass and self-training: label maps of train, <wnid>/<name>.png, with ids 0..N",
    )
    parser.add_argument(
        "--output-stride",
        type=int,
        choices=(16, 32),
        help="output stride of a ResNet (default: 32; 16 is finer but needs more memory)",
    )
    parser.add_argument(
        "--layers",
        type=whole_number(1, 100),
        metavar="L",
        help="for linear-probe: concatenate the features of a ViT's last L blocks (default: 1)",
    )
    add_size(parser)
    _add_values(parser)
    _add_running(parser)
    arguments = parse(parser)
    if (arguments.recipe in ON_CLUSTERS) != (arguments.masks is not None):
        parser.error("--masks goes with --recipe pass and self-training, which need it")
    probing = arguments.recipe == PROBE
    for option in _NOT_OF_PROBES if probing else _OF_PROBES:
        if getattr(arguments, option) is not None:
            goes = "does not go" if probing else "goes"
            parser.error(f"--{option.replace('_', '-')} {goes} with --recipe {PROBE}")
    check_save_dir(parser, arguments)
    return arguments


def _add_values(parser: argparse.ArgumentParser) -> None:
    values = parser.add_argument_group("values that replace those of the recipe")
    batch_help = "images per step, over all processes; unless --lr is given, the learning rate scales with it"
    for option, kind, metavar, text in (
        ("--epochs", whole_number(1, 100_000), "E", "number of epochs"),
        ("--batch-size", whole_number(1, 1_000_000), "B", batch_help),
        ("--lr", positive_number, "R", "peak learning rate, whatever the batch size"),
        (
            "--layer-decay",
            number_in(0.01, 1),
            "D",
            "layer-wise decay: each layer has D times the learning rate of the next one",
        ),
        ("--weight-decay", number_in(0, 100), "W", "weight decay of the optimiser"),
        ("--drop-path", number_in(0, 0.99), "P", "stochastic depth: drop rate of the last block"),
        ("--crop", whole_number(16, 4096), "C", "side of the training crops in pixels"),
        ("--seed", whole_number(0, 2**31 - 1), "S", "random seed"),
    ):
        values.add_argument(option, type=kind, metavar=metavar, help=text)


def _add_running(parser: argparse.ArgumentParser) -> None:
    running = parser.add_argument_group("how it runs")
    running.add_argument(
        "--accumulate",
        type=whole_number(1, 10_000),
        default=1,
        metavar="A",
        help="gradient accumulation: split each batch into A, if memory runs out (default: 1)",
    )
    running.add_argument(
        "--evaluate-every",
        type=whole_number(0, 100_000),
        metavar="E",
        help="score validation after every E epochs and after the last (default: 20; 0: never)",
    )
    add_machine(running)


def request_of(arguments: argparse.Namespace) -> FineTuneRequest:
    """Return what the user asks for."""
    return FineTuneRequest(
        save_dir=arguments.save_dir,
        mode=arguments.mode,
        recipe=arguments.recipe,
        backbone=arguments.backbone,
        checkpoint=arguments.checkpoint,
        weights=arguments.weights,
        output=arguments.output_dir,
        given={name: getattr(arguments, name) for name in _VALUES} | {"batch": arguments.batch_size},
        masks=arguments.masks,
        output_stride=arguments.output_stride,
        accumulate=arguments.accumulate,
        workers=arguments.workers,
        precision=precision_of(arguments) if arguments.recipe == PROBE else arguments.precision,
        evaluate_every=20 if arguments.evaluate_every is None else arguments.evaluate_every,
        layers=arguments.layers or 1,
        size=arguments.size,
    )


def main() -> None:
    """Train, or resume it."""
    arguments = parse_arguments()
    train = train_probe if arguments.recipe == PROBE else fine_tune
    with started(arguments.device, stop_asked) as processes:
        train(request_of(arguments), processes, bar, print_line)
        if processes.first:
            print(f"saved: {arguments.output_dir / 'last.pth'}")


if __name__ == "__main__":
    run(main, resumes=True, on_all_ranks=True)
