#!/usr/bin/env python3
"""Segment images without a label: foregrounds, features, k-means over the training images.

Writes OUTPUT/<split>/<wnid>/<name>.png: the foreground of each image with the id 1..K of its cluster, for
match.py and evaluator.py. Class folders are no information here: of a training image nothing but its
content counts. A run that was stopped goes on; the same command gives the same bytes. With --images any
pictures are clustered. With --backbone every process of torchrun takes a share.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from command_line.startup import run
from command_line.arguments import path_argument, whole_number

# isort: split
import numpy as np

from command_line.networks import (
    SPLITS,
    add_running,
    add_source,
    check_source,
    chosen_splits,
    running_of,
)
from command_line.progress import bar, warn
from imagenets.classes import MAX_LABEL
from imagenets.common.torchrun import Place, place
from imagenets.common.whole_files import whole_file
from imagenets.common.workers import Mapper
from imagenets.learning.engine.label_overlays import overlay_paths, write_label_overlays
from imagenets.learning.images import Images, images_below, list_images, refuse, shuffled, target_paths
from imagenets.learning.kmeans.centres import cluster_ids, fit_centres
from imagenets.learning.kmeans.extraction import (
    Prediction,
    code_version,
    describe,
    feature_chunks,
    library_versions,
    processes,
    write_prediction,
)
from imagenets.learning.kmeans.features import handmade
from imagenets.learning.output_folder import held_by_run, run_record

CENTRES = "centres.npy"
RECORD = "baseline.json"  # in the output folder: which run it holds
OWNED = (*SPLITS, "images", CENTRES)


def parse_arguments() -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, allow_abbrev=False, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_source(parser)
    parser.add_argument("--output-dir", type=path_argument, required=True, help="a folder for this run alone")
    parser.add_argument(
        "--backbone", help="features of this torchvision or timm model (default: colour and texture, by hand)"
    )
    parser.add_argument(
        "--checkpoint", type=path_argument, metavar="FILE", help="the backbone's weights; none: random ones"
    )
    parser.add_argument(
        "--foreground",
        choices=("handmade", "features"),
        default="handmade",
        help="found by colours and edges (default), or in the backbone's features",
    )
    parser.add_argument(
        "--clusters",
        type=whole_number(1, MAX_LABEL),
        metavar="K",
        help="clusters (default: as many as the mode has classes)",
    )
    parser.add_argument(
        "--train-images",
        type=lambda text: None if text == "all" else whole_number(1, 10**9)(text),
        metavar="N",
        help="cluster N of the training images, chosen at random (default: all)",
    )
    parser.add_argument("--seed", type=whole_number(0, 2**32 - 1), default=0, help="of k-means (default: 0)")
    add_running(parser)
    parser.add_argument(
        "--features-dir",
        type=path_argument,
        help="keeps the training images' features, also for other runs (default: OUTPUT/features)",
    )
    parser.add_argument("--overlays", action="store_true", help="also draw the clusters over the pictures")
    arguments = parser.parse_args()
    check_source(parser, arguments)
    if (arguments.backbone is None) != (arguments.checkpoint is None):
        parser.error("--backbone and --checkpoint go together: no weights are downloaded")
    if arguments.backbone is None and arguments.foreground == "features":
        parser.error("--foreground features needs a --backbone")
    if arguments.clusters is None:
        if arguments.mode is None:
            parser.error("--images needs --clusters")
        arguments.clusters = arguments.mode.classes
    return arguments


def listed_images(arguments: argparse.Namespace) -> tuple[Images, dict[str, Images]]:
    """Images to cluster, and those to segment by their folder of OUTPUT; in an order without classes."""
    if arguments.images is not None:
        found = images_below(arguments.images, arguments.output_dir, warn)
        images = replace(found, names=shuffled(found.names))
        return replace(images, names=images.names[: arguments.train_images]), {"images": images}
    root = arguments.mode.set_folder(arguments.save_dir)
    splits = chosen_splits(root, arguments.splits)
    train = shuffled(list_images(root / "train"))[: arguments.train_images]
    return Images(root / "train", train), {
        split: Images(root / split, shuffled(list_images(root / split))) for split in splits
    }


def make_record(
    arguments: argparse.Namespace, features: str, train: Images, splits: Mapping[str, Images]
) -> dict[str, dict[str, object]]:
    """All that decides what this run writes; ``features`` tells how they are made."""
    return run_record(
        {
            "mode": arguments.mode and arguments.mode.identity,
            "clusters": arguments.clusters,
            "seed": arguments.seed,
            "features": features,
            "training images": len(train.names),
            "code": code_version(),
        },
        {"train": train, **splits},
    )


def save_centres(arguments: argparse.Namespace, chunks: list[Path]) -> np.ndarray:
    """Cluster stored features; the centres are kept in the output folder."""
    centres = fit_centres(chunks, arguments.clusters, arguments.seed)
    with whole_file(arguments.output_dir / CENTRES) as temporary, temporary.open("wb") as file:
        np.save(file, centres)
    return centres


def by_hand(arguments: argparse.Namespace, train: Images, splits: Mapping[str, Images]) -> None:
    """Cluster and segment without a network."""
    output = arguments.output_dir
    targets = {name: target_paths(images, output / name) for name, images in splits.items()}
    record = make_record(arguments, handmade().identity, train, splits)
    with held_by_run(output, RECORD, record, OWNED), processes(arguments.workers) as mapper:
        centres = centres_by_hand(arguments, train, mapper)
        for name, images in splits.items():
            made = predict(images, targets[name], centres, mapper)
            print(f"{output / name}: {len(images.names)} predictions, {made} made now")


def centres_by_hand(arguments: argparse.Namespace, train: Images, mapper: Mapper) -> np.ndarray:
    """Centres of the clusters, from the output folder or by k-means."""
    path = arguments.output_dir / CENTRES
    if path.exists():
        before: np.ndarray = np.load(path)
        return before
    store = arguments.features_dir or arguments.output_dir / "features"
    with bar("train", len(train.names), unit="images") as advance:
        chunks = feature_chunks(train.folder, train.names, handmade(), store, mapper, advance)
    print(f"features of {len(train.names)} training images: {store}")
    return save_centres(arguments, chunks)


def predict(images: Images, targets: list[Path], centres: np.ndarray, mapper: Mapper) -> int:
    """Write the predictions of a split that are not there yet; gives how many were made."""
    absent = {name: path for name, path in zip(images.names, targets, strict=True) if not path.exists()}
    problems: list[str] = []
    with bar(images.folder.name, len(absent), unit="images") as advance:
        for described in describe(images.folder, list(absent), handmade(), mapper, problems):
            predictions = [
                Prediction(foreground, size, int(label), absent[image])
                for image, foreground, size, label in zip(
                    described.images,
                    described.foregrounds,
                    described.sizes,
                    cluster_ids(described.features, centres),
                    strict=True,
                )
            ]
            for _ in mapper(write_prediction, predictions):
                advance(1)
    refuse(problems)
    return len(absent)


def by_network(arguments: argparse.Namespace, train: Images, splits: Mapping[str, Images]) -> None:
    """Cluster and segment by a network's features, on all processes of torchrun."""
    # PyTorch takes seconds to load
    from imagenets.learning.kmeans.clusters import store_features, write_clusters
    from imagenets.learning.networks.backbones import make_backbone
    from imagenets.learning.networks.batch_norm_folding import fold_batch_norms
    from imagenets.learning.networks.checkpoints import file_digest, load_backbone
    from imagenets.learning.output_folder import code_digest, opened
    from imagenets.learning.processes import started

    output = arguments.output_dir
    with started(arguments.device) as job:
        backbone = job.together(partial(make_backbone, arguments.backbone))
        line = job.together(partial(load_backbone, backbone, arguments.checkpoint))
        fold_batch_norms(backbone)
        backbone.to(job.device)
        libraries = library_versions("torch", "torchvision", "timm")
        amp = ", amp" if arguments.amp else ""
        identity = (
            f"{arguments.backbone} {file_digest(arguments.checkpoint)}{amp}, {code_digest()}, {libraries}"
        )
        targets = job.together(lambda: {name: target_paths(of, output / name) for name, of in splits.items()})
        record = make_record(arguments, f"{arguments.foreground} {identity}", train, splits)
        running = running_of(arguments, job)
        with opened(output, RECORD, record, OWNED, job):
            path = output / CENTRES
            if not job.from_first(path.exists):
                store = arguments.features_dir or output / "features"
                chunks = job.together(
                    partial(store_features, backbone, train, store, identity, arguments.foreground, running)
                )
                job.from_first(partial(save_centres, arguments, chunks))
            if job.first:
                print(line)
            centres = np.load(path)
            for name, images in splits.items():
                write = partial(
                    write_clusters, backbone, images, targets[name], centres, arguments.foreground, running
                )
                made = sum(job.gathered(job.together(write)))
                if job.first:
                    print(f"{output / name}: {len(images.names)} predictions, {made} made now")


def main() -> None:
    """Cluster the training images, predict the splits."""
    arguments = parse_arguments()
    train, splits = listed_images(arguments)
    (by_hand if arguments.backbone is None else by_network)(arguments, train, splits)
    if arguments.overlays and (place() or Place()).rank == 0:
        for name, images in splits.items():
            targets = target_paths(images, arguments.output_dir / name)
            overlays = overlay_paths(targets, arguments.output_dir)
            write_label_overlays(images, targets, overlays, None, "cluster", arguments.workers, bar)


if __name__ == "__main__":
    run(main, goes_on=True, on_all_ranks=True)
