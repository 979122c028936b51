#!/usr/bin/env python3
"""PASS, step 2: cluster the training images by their features, pooled with the attention; docs/pass.md.

Writes OUTPUT/centroids.npy (K, C), OUTPUT/features/<split>.npy (n, C), the pooled features, one row per image
in the order of the paths, and OUTPUT/clusters.csv, the cluster 1..K of each image. The same command resumes a
stopped run. Under torchrun every process takes a share of the images.
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
from command_line.arguments import check_save_dir, parse, path_argument, positive_number, whole_number

# isort: split
import numpy as np

from command_line.attention import AttendedNetwork, add_attention
from command_line.networks import add_running, precision_of, running_of
from imagenets.common.tables import csv_text
from imagenets.common.whole_files import whole_file, write_whole
from imagenets.learning.engine.inference import Running, store_arrays
from imagenets.learning.images import Images, split_images
from imagenets.learning.pass_method.attended_labels import CLUSTER_READING, CODE, feature_step, join_features
from imagenets.learning.pass_method.centroids import RESTARTS, agreement, fit_centroids, nearest_rows
from imagenets.learning.processes import started
from imagenets.learning.run_folder import Record, digests_of, held_folder, made_by

RECORD, CENTROIDS, CLUSTERS, FEATURES = "cluster.json", "centroids.npy", "clusters.csv", "features"
SPLITS = ("train", "validation")


def parse_arguments() -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    add_attention(parser)
    parser.add_argument(
        "--output-dir",
        type=path_argument,
        required=True,
        help="output folder; it may be that of pixel_attention.py",
    )
    parser.add_argument(
        "--clusters",
        type=whole_number(1, 60_000),
        metavar="K",
        help="number of clusters (default: the number of classes)",
    )
    parser.add_argument(
        "--restarts",
        type=whole_number(1, 10_000),
        default=RESTARTS,
        help=f"number of k-means runs, of which the best is kept (default: {RESTARTS})",
    )
    parser.add_argument(
        "--seed", type=whole_number(0, 2**31 - 1), default=0, help="random seed of k-means (default: 0)"
    )
    parser.add_argument(
        "--memory",
        type=positive_number,
        default=16.0,
        metavar="GIB",
        help="if the features need more than this memory, in GiB, k-means uses mini-batches (default: 16)",
    )
    add_running(parser, batch_size=64)
    arguments = parse(parser)
    check_save_dir(parser, arguments)
    return arguments


@dataclass(frozen=True)
class Job:
    """All that the command line names, read and checked."""

    arguments: argparse.Namespace
    network: AttendedNetwork
    images: dict[str, Images]
    record: Record


def prepare(arguments: argparse.Namespace) -> Job:
    """Read and check all that the command line names."""
    mode = arguments.mode
    network = AttendedNetwork.of(arguments)
    images = {split: split_images(arguments.save_dir, mode, split) for split in SPLITS}
    settings = {
        **network.settings,
        "clusters": arguments.clusters or mode.classes,
        "restarts": arguments.restarts,
        "seed": arguments.seed,
        "precision": precision_of(arguments),
        "code": made_by(CODE),
    }
    record = Record(RECORD, settings, (CENTROIDS, CLUSTERS, FEATURES), digests_of(images))
    return Job(arguments, network, images, record)


def make_features(job: Job, split: str, running: Running) -> Path:
    """Return the file with the features of a split, made where it is not there; called on all processes."""
    processes, folder = running.processes, job.arguments.output_dir / FEATURES
    path: Path = folder / f"{split}.npy"
    if processes.from_first(path.exists):
        return path
    parts_folder = folder / f"{split}-parts"
    identity = job.record.identity("backbone", "checkpoint", "precision", "code")
    step = feature_step(job.network.backbone, job.network.attention)
    images = job.images[split]
    store = partial(store_arrays, images, parts_folder, identity, step, CLUSTER_READING, running)
    parts = processes.together(store)
    processes.from_first(partial(join_features, parts, len(images.names), path))
    if processes.first:
        shutil.rmtree(parts_folder)
        print(f"{path}: features of {len(images.names)} images")
    return path


def cluster(job: Job, features: dict[str, Path]) -> None:
    """Find the centroids where they are not there, and each image's cluster; print what they are like."""
    arguments = job.arguments
    path = arguments.output_dir / CENTROIDS
    if not path.exists():
        train, number = np.load(features["train"], mmap_mode="r"), job.record.settings["clusters"]
        memory = arguments.memory * 2**30
        found = fit_centroids(train, number, arguments.restarts, arguments.seed, memory)
        with whole_file(path) as temporary, temporary.open("wb") as opened_file:
            np.save(opened_file, found)
    centroids = np.load(path)
    print(f"{path}: {len(centroids)} centroids")
    rows: list[tuple[str, str, int]] = []
    for split, file in features.items():
        names, clusters = job.images[split].names, nearest_rows(np.load(file, mmap_mode="r"), centroids)
        rows += zip([split] * len(names), names, clusters.tolist(), strict=True)
        nmi, accuracy = agreement(clusters, np.array([name.partition("/")[0] for name in names]))
        print(
            f"{split}: with the class folders, which nothing is made of, NMI {nmi:.3f}, accuracy "
            f"{accuracy:.2f} %; {len(np.unique(clusters))} clusters in use"
        )
    write_whole(arguments.output_dir / CLUSTERS, csv_text(("split", "image", "cluster"), rows))
    print(f"saved: {arguments.output_dir / CLUSTERS}")


def main() -> None:
    """Parse, and work on all processes of torchrun."""
    arguments = parse_arguments()
    with started(arguments.device) as processes:
        job = processes.together(partial(prepare, arguments))
        if processes.first:
            print("\n".join(job.network.loaded))
        running = running_of(arguments, processes)
        job.network.to(processes.device)
        with held_folder(arguments.output_dir, job.record, processes):
            features = {split: make_features(job, split, running) for split in SPLITS}
            processes.from_first(partial(cluster, job, features))


if __name__ == "__main__":
    run(main, resumes=True, on_all_ranks=True)
