#!/usr/bin/env python3
"""PASS, step 2: label the pixels of images by attention and centroids; docs/pass.md.

Writes OUTPUT/<split>/<wnid>/<name>.png with ids cluster + 1 (row of the centroids + 1), and 0 where the
attention is below the threshold. With --threshold auto, the threshold is the one of 0.00 to 0.80 that scores
best on validation, whose masks are used for it: OUTPUT/threshold.json and .png show all. A stopped run
resumes. Under torchrun every process takes a share.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
from dataclasses import dataclass
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from command_line.startup import run
from command_line.arguments import check_save_dir, number_in, parse, path_argument

# isort: split
import torch

from command_line.attention import AttendedNetwork, add_attention
from command_line.networks import add_running, precision_of, run_method, validation_images
from imagenets.dataset import SPLITS
from imagenets.learning.engine.inference import LabelStep, Running, load_arrays, store_arrays
from imagenets.learning.engine.segmentation import Method
from imagenets.learning.engine.threshold_sweep import save_sweep
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

THRESHOLD, CHART, PARTS = "threshold.json", "threshold.png", "threshold-parts"


def threshold_argument(text: str) -> float | None:
    """Argument type: a fraction, or ``auto`` (None)."""
    return None if text == "auto" else number_in(0, 1)(text)


def parse_arguments() -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, allow_abbrev=False, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_attention(parser)
    parser.add_argument(
        "--centroids", type=path_argument, required=True, metavar="FILE", help="centroids.npy of cluster.py"
    )
    parser.add_argument(
        "--splits",
        nargs="+",
        choices=SPLITS,
        default=["train"],
        help="splits whose images are labelled (default: train)",
    )
    parser.add_argument(
        "--threshold",
        type=threshold_argument,
        required=True,
        metavar="T",
        help="attention below it is background, a fraction; published: 0.41 (50), 0.40 (300), 0.37 (919); "
        "auto: the best on validation",
    )
    parser.add_argument("--output-dir", type=path_argument, required=True, help="a folder for this run only")
    add_running(parser)
    arguments = parse(parser)
    check_save_dir(parser, arguments)
    return arguments


@dataclass(frozen=True)
class Job:
    """All that the command line names, read and checked."""

    arguments: argparse.Namespace
    network: AttendedNetwork
    centroids: torch.Tensor


def prepare(arguments: argparse.Namespace) -> Method:
    """Read and check all that the command line names."""
    network = AttendedNetwork.of(arguments)
    centroids = load_centroids(arguments.centroids, network.backbone.channels)
    job = Job(arguments, network, torch.from_numpy(centroids))
    return Method(
        partial(attention_step, job),
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
        owned=(*SPLITS, THRESHOLD, CHART, PARTS),
    )


def chosen_threshold(job: Job, running: Running, record: Record) -> float:
    """Return the threshold of the command line, or the best on validation; called on all processes."""
    arguments, processes = job.arguments, running.processes
    if arguments.threshold is not None:
        return float(arguments.threshold)
    path = arguments.output_dir / THRESHOLD
    if not processes.from_first(path.exists):
        images = processes.together(partial(validation_images, arguments))
        parts = arguments.output_dir / PARTS
        step = sweep_step(job.network.backbone, job.network.attention, job.centroids.to(processes.device))
        identity = record.identity()
        store = partial(store_arrays, images, parts, identity, step, LABEL_READING, running, with_masks=True)
        files = processes.together(store)
        processes.from_first(partial(sweep_thresholds, job, images, files))
    best = float(processes.from_first(lambda: json.loads(path.read_text(encoding="utf-8"))["best"]))
    if processes.first:
        print(f"threshold {best:.2f}: the best on validation, whose masks were used for it; {path}")
    return best


def sweep_thresholds(job: Job, images: Images, files: list[Path]) -> None:
    """Score all thresholds, save and draw them."""
    output = job.arguments.output_dir
    rows, image = load_arrays(files, "rows"), load_arrays(files, "image")
    classes = job.arguments.mode.classes
    found = sweep(image, rows, len(images.names), classes, len(job.centroids))
    save_sweep(found, output / THRESHOLD, output / CHART, "attention")
    shutil.rmtree(output / PARTS)


def attention_step(job: Job, running: Running, record: Record) -> LabelStep:
    """Choose the threshold; called on all processes."""
    device, network = running.processes.device, job.network
    network.to(device)
    threshold = chosen_threshold(job, running, record)
    return label_step(network.backbone, network.attention, job.centroids.to(device), threshold)


def main() -> None:
    """Parse, and label on all processes of torchrun."""
    run_method(parse_arguments(), prepare)


if __name__ == "__main__":
    run(main, resumes=True, on_all_ranks=True)
