#!/usr/bin/env python3
"""PASS, step 2: label the pixels of images by attention and centroids; docs/pass.md.

Writes OUTPUT/<split>/<wnid>/<name>.png with cluster ids 1..K (row i of the centroids, from 0, has id i + 1),
and 0 where the attention is below the threshold. --threshold auto takes the threshold from 0.00 to 0.80 that
scores best on validation, and so uses its masks; OUTPUT/threshold.json and .png show the scores of all. The
same command resumes a stopped run. Under torchrun every process takes a share.
"""

from __future__ import annotations

import argparse
import sys
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from command_line.startup import run
from command_line.arguments import check_save_dir, parse, path_argument, threshold_argument

# isort: split
import torch

from command_line.attention import AttendedNetwork, add_attention
from command_line.networks import add_running, precision_of, run_method, validation_images
from imagenets.dataset import SPLITS
from imagenets.learning.engine.inference import LabelStep, Running, load_arrays
from imagenets.learning.engine.segmentation import Method
from imagenets.learning.engine.threshold_sweep import CHART, PARTS, SCORES, Sweep, best_threshold
from imagenets.learning.images import Images, split_images
from imagenets.learning.networks.checkpoint_files import file_digest
from imagenets.learning.pass_method.attended_labels import (
    CODE,
    LABEL_READING,
    label_step,
    load_centroids,
    sweep_step,
)
from imagenets.learning.pass_method.thresholds import sweep
from imagenets.learning.run_folder import Record, made_by


def parse_arguments() -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    add_attention(parser)
    parser.add_argument(
        "--centroids", type=path_argument, required=True, metavar="FILE", help="centroids.npy of cluster.py"
    )
    parser.add_argument(
        "--splits",
        nargs="+",
        choices=SPLITS,
        default=["train"],
        help="splits to label (default: train)",
    )
    parser.add_argument(
        "--threshold",
        type=threshold_argument,
        required=True,
        metavar="T",
        help="pixels with an attention (0..1) below T are background; published: 0.41 for mode 50, 0.40 for "
        "300, 0.37 for 919; auto: the best on validation",
    )
    parser.add_argument(
        "--output-dir", type=path_argument, required=True, help="output folder of this run alone"
    )
    add_running(parser)
    arguments = parse(parser)
    check_save_dir(parser, arguments)
    return arguments


def prepare(arguments: argparse.Namespace) -> Method:
    """Read and check all that the command line names."""
    network = AttendedNetwork.of(arguments)
    centroids = torch.from_numpy(load_centroids(arguments.centroids, network.backbone.channels))
    return Method(
        partial(attention_step, arguments, network, centroids),
        {split: split_images(arguments.save_dir, arguments.mode, split) for split in arguments.splits},
        LABEL_READING,
        {
            **network.settings,
            "centroids": file_digest(arguments.centroids),
            "threshold": "auto" if arguments.threshold is None else arguments.threshold,
            "precision": precision_of(arguments),
            "code": made_by(CODE),
        },
        "pseudo_labels.json",
        loaded=network.loaded,
        owned=(*SPLITS, SCORES, CHART, PARTS),
    )


def attention_step(
    arguments: argparse.Namespace,
    network: AttendedNetwork,
    centroids: torch.Tensor,
    running: Running,
    record: Record,
) -> LabelStep:
    """Label by the threshold of the command line, or the best on validation; called on all processes."""
    network.to(running.processes.device)
    parts = network.backbone, network.attention, centroids.to(running.processes.device)
    threshold = arguments.threshold
    if threshold is None:
        threshold = best_threshold(
            arguments.output_dir,
            record.identity(),
            partial(validation_images, arguments),
            sweep_step(*parts),
            partial(score, arguments.mode.classes, len(centroids)),
            "attention",
            LABEL_READING,
            running,
        )
        if running.processes.first:
            path = arguments.output_dir / SCORES
            print(f"threshold {threshold:.2f}: the best on validation, whose masks were used for it; {path}")
    return label_step(*parts, threshold)


def score(classes: int, clusters: int, images: Images, files: list[Path]) -> Sweep:
    """Score all thresholds by what ``sweep_step`` counted."""
    rows, image = load_arrays(files, "rows"), load_arrays(files, "image")
    return sweep(image, rows, len(images.names), classes, clusters)


def main() -> None:
    """Parse, and label on all processes of torchrun."""
    run_method(parse_arguments(), prepare)


if __name__ == "__main__":
    run(main, resumes=True, on_all_ranks=True)
