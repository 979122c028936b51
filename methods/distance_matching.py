#!/usr/bin/env python3
"""Segment images by the features of annotated regions or patches: the distance-matching protocol.

Writes OUTPUT/bank.npz, the features of train-semi's masks, and OUTPUT/<split>/<wnid>/<name>.png, the
predictions in class ids, for evaluator.py and submission.py. The same command resumes a stopped run. With
--images and --bank it segments any images. Under torchrun every process takes a share.
"""

from __future__ import annotations

import argparse
import shutil
import sys
from dataclasses import dataclass
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from command_line.startup import run
from command_line.arguments import parse, path_argument, positive_number, whole_number
from command_line.networks import (
    add_running,
    add_sharpen,
    add_size,
    add_source,
    add_weights,
    check_source,
    listed_images,
    precision_of,
    run_method,
)
from command_line.progress import warn
from imagenets.learning.distance_matching import bank as banks
from imagenets.learning.distance_matching.bank import KINDS, PATCHES, REGIONS
from imagenets.learning.distance_matching.patches import PER_PICTURE
from imagenets.learning.engine.inference import LabelStep, Running, store_arrays
from imagenets.learning.engine.label_overlays import class_names
from imagenets.learning.engine.segmentation import Method
from imagenets.learning.engine.sharpening import SHARPENING
from imagenets.learning.images import Reading, annotated_images
from imagenets.learning.networks.backbones import Backbone, make_backbone
from imagenets.learning.networks.checkpoint_files import file_digest, weights_digest
from imagenets.learning.networks.checkpoints import load_backbone
from imagenets.learning.networks.precision import fold_batch_norms, on_device
from imagenets.learning.run_folder import Record, made_by

BANK = "bank.npz"


def bank_argument(text: str) -> str | Path:
    """Argument type: a kind of bank, or the file of one."""
    if text in KINDS:
        return text
    path = path_argument(text)
    if path.suffix != ".npz" and not path.exists():
        raise argparse.ArgumentTypeError(f"{text!r} is neither {' nor '.join(KINDS)} nor a file")
    return path


def parse_arguments() -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    add_source(parser)
    parser.add_argument(
        "--output-dir", type=path_argument, required=True, help="output folder of this run alone"
    )
    parser.add_argument("--backbone", required=True, help="a torchvision or timm model, by name")
    parser.add_argument(
        "--checkpoint",
        type=path_argument,
        required=True,
        metavar="FILE",
        help="weights of the backbone, or the word none for random ones",
    )
    add_weights(parser)
    parser.add_argument(
        "--bank",
        type=bank_argument,
        default=REGIONS,
        metavar="BANK",
        help="regions (default): one vector per label of each annotated image; patches: single patches, each "
        "with the proportions of its labels; or the path of a bank.npz made with this backbone",
    )
    parser.add_argument(
        "--patches-per-picture",
        type=whole_number(1, 1_000_000),
        metavar="N",
        help="with --bank patches: at most N patches per annotated image, rare labels first (default: "
        f"{PER_PICTURE})",
    )
    parser.add_argument(
        "--neighbours",
        type=whole_number(1, 10_000),
        metavar="K",
        help="nearest vectors of the bank, which vote for a label (default: 10; with patches 30)",
    )
    parser.add_argument(
        "--temperature",
        type=positive_number,
        metavar="T",
        help="weight of a vote: exp(cosine / T) (default: 0.07; with patches 0.02)",
    )
    add_size(parser)
    add_sharpen(parser)
    add_running(parser)
    parser.add_argument("--overlays", action="store_true", help="also draw the labels over the images")
    arguments = parse(parser)
    check_source(parser, arguments)
    if arguments.images is not None and arguments.bank in KINDS:
        parser.error("--images needs the file of a --bank: banks are made of the masks of a prepared set")
    if arguments.patches_per_picture is not None and arguments.bank != PATCHES:
        parser.error("--patches-per-picture goes with --bank patches")
    return arguments


@dataclass(frozen=True)
class Job:
    """All that the command line names, read and checked: how many of the bank's vectors vote for a pixel."""

    arguments: argparse.Namespace
    backbone: Backbone
    reading: Reading
    kind: banks.BankKind
    neighbours: int
    temperature: float


def bank_of(job: Job, running: Running, record: Record) -> banks.AnyBank:
    """Read the bank, or make it of train-semi; called on all processes."""
    processes, arguments, kind = running.processes, job.arguments, job.kind
    path = arguments.output_dir / BANK if arguments.bank in KINDS else arguments.bank
    if not processes.from_first(path.exists):
        images = processes.together(partial(annotated_images, arguments.save_dir, arguments.mode))
        parts = arguments.output_dir / "bank-parts"
        identity = record.identity("bank", "backbone", "checkpoint", "size", "precision", "code")
        step = kind.step(job.backbone, arguments.patches_per_picture or PER_PICTURE)
        store = partial(store_arrays, images, parts, identity, step, job.reading, running, with_masks=True)
        paths = processes.together(store)
        made = processes.from_first(partial(banks.join_bank, kind, paths, path))
        if processes.first:
            shutil.rmtree(parts)
            print(f"{path}: {made} {kind.noun} of {len(images.names)} images")
    load = partial(banks.load_bank, path, job.backbone.channels, job.neighbours, arguments.mode)
    bank = processes.together(load)
    unusable = banks.unusable_vectors(bank.embeddings)
    if unusable and processes.first:
        warn(f"{path}: {unusable}; labels found by them mean nothing, is it the right checkpoint?")
    return bank.to(processes.device)


def bank_text(arguments: argparse.Namespace) -> str:
    """Say for the record which bank it is."""
    if arguments.bank not in KINDS:
        return file_digest(arguments.bank)
    number = f", {arguments.patches_per_picture or PER_PICTURE} a picture" * (arguments.bank == PATCHES)
    return f"{arguments.bank} of train-semi{number}"


def prepare(arguments: argparse.Namespace) -> Method:
    """Read and check all that the command line names."""
    backbone = make_backbone(arguments.backbone)
    line = load_backbone(backbone, arguments.checkpoint, arguments.weights)
    reading = backbone.reading(arguments.size)
    kind = KINDS[arguments.bank if arguments.bank in KINDS else banks.kind_of_file(arguments.bank)]
    neighbours = arguments.neighbours or kind.neighbours
    temperature = arguments.temperature or kind.temperature
    job = Job(arguments, backbone, reading, kind, neighbours, temperature)
    return Method(
        partial(label_step, job),
        listed_images(arguments),
        reading,
        {
            "backbone": arguments.backbone,
            "checkpoint": weights_digest(arguments.checkpoint, arguments.weights),
            "bank": bank_text(arguments),
            "mode": arguments.mode and arguments.mode.identity,
            "neighbours": neighbours,
            "temperature": temperature,
            "size": reading.size_text,
            "precision": precision_of(arguments),
            "sharpen": SHARPENING if arguments.sharpen else None,
            "code": made_by(banks.CODE),
        },
        "distance_matching.json",
        loaded=[line],
        owned=[BANK],
        names=class_names(arguments.mode),
    )


def label_step(job: Job, running: Running, record: Record) -> LabelStep:
    """Make the bank, and label by it; called on all processes."""
    fold_batch_norms(job.backbone)
    on_device(job.backbone, running.processes.device)
    bank = bank_of(job, running, record)
    return job.kind.label_step(job.backbone, bank, job.neighbours, job.temperature, job.arguments.sharpen)


def main() -> None:
    """Parse, and segment on all processes of torchrun."""
    run_method(parse_arguments(), prepare)


if __name__ == "__main__":
    run(main, resumes=True, on_all_ranks=True)
