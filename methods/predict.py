#!/usr/bin/env python3
"""Segment images with a fine-tuned network, written by finetune.py or published.

Writes OUTPUT/<split>/<wnid>/<name>.png, predictions for evaluator.py and submission.py: class ids from
semi-supervised fine-tuning, cluster ids (for match.py) from pseudo labels. The same command resumes a
stopped run. With --images it segments any images. Under torchrun every process takes a share.
"""

from __future__ import annotations

import argparse
import sys
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from command_line.startup import run
from command_line.arguments import parse, path_argument, whole_number
from command_line.networks import (
    SPLITS,
    add_running,
    add_sharpen,
    add_size,
    add_source,
    check_source,
    listed_images,
    precision_of,
    run_method,
)
from imagenets.learning.engine.inference import LabelStep, Running
from imagenets.learning.engine.label_overlays import class_names
from imagenets.learning.engine.segmentation import Method
from imagenets.learning.engine.sharpening import SHARPENING
from imagenets.learning.finetuning.prediction import CODE, LONGEST, predicted
from imagenets.learning.networks.checkpoint_files import file_digest
from imagenets.learning.networks.precision import on_device
from imagenets.learning.networks.segmentation_network import ON_CLUSTERS, SegmentationNetwork, read_saved
from imagenets.learning.run_folder import Record, made_by


def parse_arguments() -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    add_source(parser, ("train", *SPLITS))
    parser.add_argument(
        "--output-dir", type=path_argument, required=True, help="output folder of this run alone"
    )
    parser.add_argument(
        "--model",
        type=path_argument,
        required=True,
        metavar="FILE",
        help="last.pth of finetune.py, or a published file",
    )
    parser.add_argument(
        "--backbone",
        metavar="NAME",
        help="network of a published file, such as resnet50; other files record it",
    )
    parser.add_argument(
        "--output-stride",
        type=int,
        choices=(16, 32),
        help="output stride of a published ResNet (default: 32; of files named d16: 16); other files "
        "record it",
    )
    parser.add_argument(
        "--longest",
        type=whole_number(16, 100_000),
        default=LONGEST,
        metavar="L",
        help="label images of more than L x L pixels at a reduced size, whose longer side is L "
        f"(default: {LONGEST})",
    )
    add_size(parser)
    add_sharpen(parser)
    add_running(parser)
    parser.add_argument("--overlays", action="store_true", help="also draw the labels over the images")
    arguments = parse(parser)
    check_source(parser, arguments)
    return arguments


def prepare(arguments: argparse.Namespace) -> Method:
    """Read and check all that the command line names."""
    saved = read_saved(arguments.model)
    classes = arguments.mode.classes if arguments.mode else None
    network = saved.network(arguments.backbone, arguments.output_stride, classes)
    reading = saved.reading(network, arguments.size)
    clusters = saved.recipe in ON_CLUSTERS
    return Method(
        partial(label_step, network, arguments),
        listed_images(arguments),
        reading,
        {
            "model": file_digest(arguments.model),
            "backbone": network.backbone.name,
            "output_stride": arguments.output_stride or saved.about.get("output_stride"),
            "longest": arguments.longest,
            "size": reading.size_text,
            "precision": precision_of(arguments),
            "sharpen": SHARPENING if arguments.sharpen else None,
            "code": made_by(CODE),
        },
        "prediction.json",
        loaded=[f"{network.backbone.name}, {saved.recipe}, {network.labels - 1} classes: {arguments.model}"],
        names=None if clusters else class_names(arguments.mode),
        noun="cluster" if clusters else "class",
    )


def label_step(
    network: SegmentationNetwork, arguments: argparse.Namespace, running: Running, record: Record
) -> LabelStep:
    """Move the network to the device; its label maps are those of ``predicted``."""
    on_device(network, running.processes.device)
    return partial(predicted, network, longest=arguments.longest, sharpen=arguments.sharpen)


def main() -> None:
    """Parse, and segment on all processes of torchrun."""
    run_method(parse_arguments(), prepare)


if __name__ == "__main__":
    run(main, resumes=True, on_all_ranks=True)
