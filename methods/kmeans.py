#!/usr/bin/env python3
"""Segment images without labels: foregrounds, their features, k-means over the training images.

Writes OUTPUT/<split>/<wnid>/<name>.png, the foreground of each image with the id 1..K of its cluster, for
match.py and evaluator.py. Only the training images are used, not their class folders. The same command
resumes a stopped run, with the same result. With --images it clusters any images. Under torchrun every
process takes a share.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from command_line.startup import run
from command_line.arguments import number_in, parse, path_argument, whole_number

# isort: split
import numpy as np

from command_line.networks import (
    add_running,
    add_size,
    add_source,
    add_weights,
    check_source,
    listed_images,
    precision_of,
    running_of,
)
from command_line.progress import bar
from imagenets.classes import MAX_LABEL
from imagenets.common.whole_files import whole_file
from imagenets.learning.engine.inference import Running
from imagenets.learning.engine.label_overlays import overlay_paths, write_label_overlays
from imagenets.learning.engine.segmentation import write_split
from imagenets.learning.images import Images, shuffled, split_images, target_paths
from imagenets.learning.kmeans.clusters import (
    CODE,
    FOREGROUNDS,
    RESTARTS,
    Descriptor,
    fit_centres,
    handmade,
    matched_scores,
    network,
    radii,
    store_features,
    write_clusters,
)
from imagenets.learning.networks.backbones import Backbone, make_backbone
from imagenets.learning.networks.checkpoint_files import weights_digest
from imagenets.learning.networks.checkpoints import load_backbone
from imagenets.learning.networks.precision import fold_batch_norms, on_device
from imagenets.learning.processes import started
from imagenets.learning.run_folder import Record, digests_of, held_folder, made_by

CENTRES = "centres.npy"
SPLITS = ("train", "validation", "test")
RECORD = "baseline.json"  # in the output folder: which run it holds
OWNED = (*SPLITS, "images", CENTRES)


def parse_arguments() -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    add_source(parser, SPLITS)
    parser.add_argument(
        "--output-dir", type=path_argument, required=True, help="output folder of this run alone"
    )
    parser.add_argument(
        "--backbone",
        help="torchvision or timm model for the features, by name (default: hand-made colour and texture)",
    )
    parser.add_argument(
        "--checkpoint",
        type=path_argument,
        metavar="FILE",
        help="the backbone's weights, or the word none for random ones",
    )
    add_weights(parser)
    parser.add_argument(
        "--foreground",
        choices=FOREGROUNDS,
        default="handmade",
        help="find foregrounds by colours and edges (default), or in the features of the backbone",
    )
    parser.add_argument(
        "--clusters",
        type=whole_number(1, MAX_LABEL),
        metavar="K",
        help="number of clusters (default: the number of classes)",
    )
    parser.add_argument(
        "--train-images",
        type=lambda text: None if text == "all" else whole_number(1, 10**9)(text),
        metavar="N",
        help="cluster N of the training images, chosen at random (default: all)",
    )
    parser.add_argument(
        "--restarts",
        type=whole_number(1, 10_000),
        default=RESTARTS,
        help=f"number of k-means runs, of which the best is kept (default: {RESTARTS})",
    )
    parser.add_argument(
        "--seed", type=whole_number(0, 2**31), default=0, help="random seed of k-means (default: 0)"
    )
    parser.add_argument(
        "--seeds",
        type=whole_number(1, 1000),
        default=1,
        metavar="N",
        help="repeat with N seeds, from --seed on, in OUTPUT/seed<S>, and print mean and standard deviation "
        "of the matched scores on validation (default: 1)",
    )
    parser.add_argument(
        "--leave-out",
        type=number_in(0, 0.99),
        default=0.0,
        metavar="SHARE",
        help="share of each cluster's training images, the farthest from its centre, whose foregrounds are "
        "labelled 1000 (ignored), as self_training.sh does (0..0.99; default: 0)",
    )
    add_size(parser)
    add_running(parser)
    parser.add_argument(
        "--features-dir",
        type=path_argument,
        help="folder for the features of the training images, which other runs can reuse (default: "
        "OUTPUT/features)",
    )
    parser.add_argument("--overlays", action="store_true", help="also draw the clusters over the images")
    arguments = parse(parser)
    check_source(parser, arguments)
    if (arguments.backbone is None) != (arguments.checkpoint is None):
        parser.error("--backbone and --checkpoint go together: no weights are downloaded")
    for flag, given in (
        ("foreground features", arguments.foreground == "features"),
        ("size", arguments.size is not None),
        ("weights", arguments.weights is not None),
    ):
        if given and arguments.backbone is None:
            parser.error(f"--{flag} needs a --backbone")
    if arguments.clusters is None:
        if arguments.mode is None:
            parser.error("--images needs --clusters")
        arguments.clusters = arguments.mode.classes
    return arguments


@dataclass(frozen=True)
class Job:
    """All that the command line names, read and checked."""

    arguments: argparse.Namespace
    train: Images
    splits: dict[str, Images]  # by the folder of OUTPUT that their label maps go to
    descriptor: Descriptor
    code: str
    backbone: Backbone | None = None
    loaded: str = ""

    def to_device(self, running: Running) -> None:
        """Move the network, where there is one."""
        if self.backbone is not None:
            on_device(self.backbone, running.processes.device)

    def record(self, seed: int) -> Record:
        """All that decides what the run of a seed writes."""
        arguments = self.arguments
        settings = {
            "mode": arguments.mode and arguments.mode.identity,
            "clusters": arguments.clusters,
            "restarts": arguments.restarts,
            "seed": seed,
            "features": self.descriptor.identity,
            "training images": len(self.train.names),
            "left out": arguments.leave_out,
            "code": self.code,
        }
        return Record(RECORD, settings, OWNED, digests_of({"training": self.train, **self.splits}))


def prepare(arguments: argparse.Namespace) -> Job:
    """Read and check all that the command line names."""
    train, splits = images_of(arguments)
    code = made_by(CODE)
    if arguments.backbone is None:
        return Job(arguments, train, splits, handmade(), code)
    backbone = make_backbone(arguments.backbone)
    loaded = load_backbone(backbone, arguments.checkpoint, arguments.weights)
    fold_batch_norms(backbone)
    digest = weights_digest(arguments.checkpoint, arguments.weights)
    identity = f"{arguments.backbone} {digest}, {precision_of(arguments)}"
    descriptor = network(backbone, identity, arguments.foreground, arguments.size)
    return Job(arguments, train, splits, descriptor, code, backbone, loaded)


def images_of(arguments: argparse.Namespace) -> tuple[Images, dict[str, Images]]:
    """Images to cluster, and those to segment by their folder of OUTPUT; in an order without classes."""
    splits = listed_images(arguments)
    train = splits.get("images") or split_images(arguments.save_dir, arguments.mode, "train")
    names = shuffled(train.names)[: arguments.train_images]
    segmented = {name: replace(images, names=shuffled(images.names)) for name, images in splits.items()}
    return replace(train, masks=None, names=names), segmented


def segment(job: Job, seed: int, output: Path, running: Running) -> None:
    """Cluster with one seed, and write the label maps; called on all processes."""
    processes, arguments = running.processes, job.arguments
    targets = processes.together(
        lambda: {name: target_paths(of, output / name) for name, of in job.splits.items()}
    )
    with held_folder(output, job.record(seed), processes):
        path = output / CENTRES
        chunks: list[Path] = []
        if arguments.leave_out or not processes.from_first(path.exists):
            store = arguments.features_dir or arguments.output_dir / "features"
            make = partial(store_features, job.descriptor, job.train, store, job.code, running)
            chunks = processes.together(make)
            processes.from_first(partial(save_centres, job, store, chunks, seed, path))
        centres = np.load(path)
        radius = radii(chunks, centres, arguments.leave_out) if arguments.leave_out else None
        for name, images in job.splits.items():
            limits = radius if name == "train" else None
            write = partial(write_clusters, job.descriptor, images, targets[name], centres, running, limits)
            write_split(images, output / name, write, processes, print)
        if arguments.overlays:
            processes.from_first(partial(draw_overlays, job, targets, output))


def save_centres(job: Job, store: Path, chunks: list[Path], seed: int, path: Path) -> None:
    """Cluster the features that are stored in ``chunks``, where the centres are not there."""
    print(f"features of {len(job.train.names)} training images: {store}")
    if not path.exists():
        centres = fit_centres(chunks, job.arguments.clusters, job.arguments.restarts, seed)
        with whole_file(path) as temporary, temporary.open("wb") as file:
            np.save(file, centres)


def draw_overlays(job: Job, targets: dict[str, list[Path]], output: Path) -> None:
    """Draw all label maps over their pictures."""
    for name, images in job.splits.items():
        overlays = overlay_paths(targets[name], output)
        write_label_overlays(images, targets[name], overlays, None, "cluster", job.arguments.workers, bar)


def print_scores(job: Job, folders: list[Path]) -> None:
    """Print mean and deviation over the seeds, where validation has masks."""
    images, arguments = job.splits.get("validation"), job.arguments
    if images is None or images.masks is None:
        return
    predictions = [folder / "validation" for folder in folders]
    scores = matched_scores(images.masks, predictions, arguments.mode, arguments.clusters)
    line = ", ".join(f"{name} {mean:.2f} ± {spread:.2f}" for name, (mean, spread) in scores.items())
    print(
        f"{len(folders)} seeds, matched on validation, whose masks were used only for these figures: {line}"
    )


def main() -> None:
    """Cluster the training images, segment the splits."""
    arguments = parse_arguments()
    seeds = range(arguments.seed, arguments.seed + arguments.seeds)
    output = arguments.output_dir
    folders = [output / f"seed{seed}" if len(seeds) > 1 else output for seed in seeds]
    with started(arguments.device) as processes:
        job = processes.together(partial(prepare, arguments))
        running = running_of(arguments, processes)
        job.to_device(running)
        if processes.first and job.loaded:
            print(job.loaded)
        for seed, folder in zip(seeds, folders, strict=True):
            segment(job, seed, folder, running)
        if len(seeds) > 1:
            processes.from_first(partial(print_scores, job, folders))


if __name__ == "__main__":
    run(main, resumes=True, on_all_ranks=True)
