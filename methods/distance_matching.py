#!/usr/bin/env python3
"""Segment images by the embeddings of annotated regions: the distance-matching protocol.

Writes OUTPUT/bank.npz, the embeddings of train-semi's masks, and OUTPUT/<split>/<wnid>/<name>.png, the
predictions in class ids, for evaluator.py and submission.py. A run that was stopped goes on. With --images
and --bank it segments any pictures. Under torchrun every process takes a share.
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
    SPLITS,
    add_running,
    add_source,
    add_weights,
    check_source,
    listed_images,
    precision_of,
    running_of,
)
from command_line.progress import bar, warn
from imagenets.common.errors import InputError
from imagenets.learning.distance_matching.bank import (
    CODE,
    join_bank,
    label_step,
    load_bank,
    reading_of,
    store_embeddings,
    unusable_vectors,
)
from imagenets.learning.distance_matching.neighbours import Bank
from imagenets.learning.engine.inference import Running, write_label_maps
from imagenets.learning.engine.label_overlays import class_names, overlay_paths, write_label_overlays
from imagenets.learning.images import (
    Images,
    annotated_images,
    target_paths,
)
from imagenets.learning.networks.backbones import Backbone, make_backbone
from imagenets.learning.networks.batch_norm_folding import fold_batch_norms
from imagenets.learning.networks.checkpoint_files import file_digest, weights_digest
from imagenets.learning.networks.checkpoints import load_backbone
from imagenets.learning.output_folder import made_by, opened, run_record
from imagenets.learning.processes import Processes, started

RECORD, BANK = "distance_matching.json", "bank.npz"


def parse_arguments() -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, allow_abbrev=False, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_source(parser)
    parser.add_argument("--output-dir", type=path_argument, required=True, help="a folder for this run alone")
    parser.add_argument("--backbone", required=True, help="a torchvision or timm model, by name")
    parser.add_argument(
        "--checkpoint",
        type=path_argument,
        required=True,
        metavar="FILE",
        help="the backbone's weights; none: random ones",
    )
    add_weights(parser)
    parser.add_argument(
        "--bank",
        type=path_argument,
        metavar="FILE",
        help="embeddings made before by this backbone (default: made from train-semi)",
    )
    parser.add_argument(
        "--neighbours",
        type=whole_number(1, 10_000),
        default=10,
        metavar="K",
        help="embeddings that vote for a pixel's label (default: 10)",
    )
    parser.add_argument(
        "--temperature",
        type=positive_number,
        default=0.07,
        metavar="T",
        help="a vote counts exp(cosine / T) (default: 0.07)",
    )
    add_running(parser)
    parser.add_argument("--overlays", action="store_true", help="also draw the labels over the pictures")
    arguments = parse(parser)
    check_source(parser, arguments)
    if arguments.images is not None and arguments.bank is None:
        parser.error("--images needs --bank: embeddings come from the masks of a prepared set")
    return arguments


@dataclass(frozen=True)
class Job:
    """All that the command line names, read and checked."""

    arguments: argparse.Namespace
    backbone: Backbone
    loaded: str  # what was loaded from the checkpoint
    images: dict[str, Images]  # by the folder of OUTPUT that their label maps go to
    targets: dict[str, list[Path]]
    record: dict[str, dict[str, object]]

    @property
    def identity(self) -> str:
        """What decides the embeddings of an image."""
        return " ".join(
            str(self.record["settings"][key]) for key in ("backbone", "checkpoint", "precision", "code")
        )


def bank_of(job: Job, running: Running) -> Bank:
    """Read the bank, or make it of train-semi; called on all processes."""
    arguments, processes = job.arguments, running.processes
    path = arguments.bank or arguments.output_dir / BANK
    if not processes.from_first(path.exists):
        images = processes.together(partial(bank_images, arguments))
        parts = arguments.output_dir / "bank-parts"
        store = partial(store_embeddings, job.backbone, images, parts, job.identity, running)
        paths = processes.together(store)
        made = processes.from_first(partial(join_bank, paths, path))
        if processes.first:
            shutil.rmtree(parts)
            print(f"{path}: {made} embeddings of {len(images.names)} images")
    bank = processes.together(
        partial(load_bank, path, job.backbone.channels, arguments.neighbours, arguments.mode)
    )
    unusable = unusable_vectors(bank)
    if unusable and processes.first:
        warn(f"{path}: {unusable}; labels found by them mean nothing, is it the right checkpoint?")
    return bank.to(processes.device)


def bank_images(arguments: argparse.Namespace) -> Images:
    """Images with masks, of which a bank is made."""
    if arguments.bank is not None:
        raise InputError(f"{arguments.bank}: no such bank")
    return annotated_images(arguments.save_dir, arguments.mode)


def make_record(arguments: argparse.Namespace, images: dict[str, Images]) -> dict[str, dict[str, object]]:
    """All that decides what this run writes."""
    settings = {
        "backbone": arguments.backbone,
        "checkpoint": weights_digest(arguments.checkpoint, arguments.weights),
        "bank": file_digest(arguments.bank) if arguments.bank else "train-semi",
        "mode": arguments.mode and arguments.mode.identity,
        "neighbours": arguments.neighbours,
        "temperature": arguments.temperature,
        "precision": precision_of(arguments),
        "code": made_by(CODE),
    }
    return run_record(settings, images)


def prepare(arguments: argparse.Namespace) -> Job:
    """Read and check all that the command line names."""
    backbone = make_backbone(arguments.backbone)
    line = load_backbone(backbone, arguments.checkpoint, arguments.weights)
    images = listed_images(arguments)
    targets = {name: target_paths(of_split, arguments.output_dir / name) for name, of_split in images.items()}
    return Job(arguments, backbone, line, images, targets, make_record(arguments, images))


def segment(job: Job, processes: Processes) -> None:
    """Make the bank, write the label maps, print; called on all processes."""
    arguments, running = job.arguments, running_of(job.arguments, processes)
    fold_batch_norms(job.backbone)
    job.backbone.to(processes.device)
    bank = bank_of(job, running)
    step = label_step(job.backbone, bank, arguments.neighbours, arguments.temperature)
    for name, of_split in job.images.items():
        write = partial(
            write_label_maps, of_split, job.targets[name], step, reading_of(job.backbone), running
        )
        made = sum(processes.gathered(processes.together(write)))
        if processes.first:
            print(f"{arguments.output_dir / name}: {len(of_split.names)} predictions, {made} made now")
    if arguments.overlays:
        processes.from_first(partial(draw_overlays, job))


def draw_overlays(job: Job) -> None:
    """Draw the labels over the pictures."""
    arguments = job.arguments
    for name, of_split in job.images.items():
        overlays = overlay_paths(job.targets[name], arguments.output_dir)
        names = class_names(arguments.mode)
        write_label_overlays(of_split, job.targets[name], overlays, names, "class", arguments.workers, bar)


def main() -> None:
    """Parse, and work on all processes of torchrun."""
    arguments = parse_arguments()
    with started(arguments.device) as processes:
        job = processes.together(partial(prepare, arguments))
        if processes.first:
            print(job.loaded)
        owned = (*job.images, *SPLITS, BANK)
        with opened(arguments.output_dir, RECORD, job.record, owned, processes):
            segment(job, processes)


if __name__ == "__main__":
    run(main, goes_on=True, on_all_ranks=True)
