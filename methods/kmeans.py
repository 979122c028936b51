#!/usr/bin/env python3
"""Segment a prepared ImageNet-S without a label: foregrounds, features, k-means over the training images.

Writes OUTPUT/<split>/<wnid>/<name>.png: the foreground of each image with the id 1..K of its cluster, for
match.py and evaluator.py. Class folders are no information here: of a training image nothing but its
content counts. A run that was stopped goes on; the same command gives the same bytes.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from command_line import path_argument, run, whole_number

# isort: split
import numpy as np
from tqdm import tqdm

from imagenets.classes import MAX_LABEL, MODES
from imagenets.common.errors import InputError
from imagenets.common.locks import locked
from imagenets.common.whole_files import whole_file, write_whole
from imagenets.learning.clustering import cluster_ids, fit_centres
from imagenets.learning.extraction import (
    Mapper,
    Prediction,
    code_version,
    describe,
    feature_chunks,
    processes,
    refuse,
    write_prediction,
)
from imagenets.learning.handmade_features import Features, handmade
from imagenets.learning.image_list import fingerprint, list_images

SPLITS = ("validation", "test")
CENTRES = "centres.npy"
RECORD = "baseline.json"  # in the output folder: which run it holds


def parse_arguments() -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, allow_abbrev=False, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--save-dir", type=path_argument, required=True, help="holds ImageNetS50 and so on")
    parser.add_argument("--mode", choices=MODES, required=True, help="number of classes")
    parser.add_argument("--output-dir", type=path_argument, required=True, help="a folder for this run alone")
    parser.add_argument("--splits", nargs="+", choices=SPLITS, help="(default: those that are there)")
    parser.add_argument(
        "--backbone", help="features of this torchvision or timm model (default: colour and texture, by hand)"
    )
    parser.add_argument("--checkpoint", type=path_argument, metavar="FILE", help="the backbone's weights")
    parser.add_argument(
        "--clusters",
        type=whole_number(1, MAX_LABEL),
        metavar="K",
        help="(default: as many as the mode has classes)",
    )
    parser.add_argument(
        "--train-images",
        type=lambda text: None if text == "all" else whole_number(1, 10**9)(text),
        metavar="N",
        help="cluster N of them, chosen at random (default: all)",
    )
    parser.add_argument("--seed", type=whole_number(0, 2**32 - 1), default=0, help="of k-means (default: 0)")
    parser.add_argument(
        "--workers",
        type=whole_number(0, 1024),
        metavar="N",
        default=len(os.sched_getaffinity(0)),
        help="processes that find foregrounds (default: one per core; 0: no extra process)",
    )
    parser.add_argument(
        "--features-dir",
        type=path_argument,
        help="keeps the training images' features, also for other runs (default: OUTPUT/features)",
    )
    arguments = parser.parse_args()
    if (arguments.backbone is None) != (arguments.checkpoint is None):
        parser.error("--backbone and --checkpoint go together: no weights are downloaded")
    return arguments


def chosen_features(arguments: argparse.Namespace) -> Features:
    """Features by hand, or of the backbone."""
    if arguments.backbone is None:
        return handmade()
    from imagenets.learning.backbones import load_backbone  # torch takes seconds to import

    return load_backbone(arguments.backbone, arguments.checkpoint)


def chosen_splits(root: Path, splits: Sequence[str] | None) -> dict[str, list[str]]:
    """Images of the splits that were asked for, or else of those that are there."""
    chosen = splits or [split for split in SPLITS if (root / split).is_dir()]
    if not chosen:
        raise InputError(f"{root}: neither validation nor test there; run datapreparation_val.py")
    return {split: list_images(root / split) for split in chosen}


def make_record(
    arguments: argparse.Namespace, features: Features, images: dict[str, list[str]]
) -> dict[str, dict[str, object]]:
    """All that decides what this run writes."""
    root = arguments.save_dir / MODES[arguments.mode].folder
    return {
        "settings": {
            "mode": arguments.mode,
            "clusters": arguments.clusters,
            "seed": arguments.seed,
            "features": features.identity,
            "training images": len(images["train"]),
            "code": code_version(),
        },
        "images": {split: fingerprint(root / split, of_split) for split, of_split in images.items()},
    }


def keep_record(path: Path, record: dict[str, dict[str, object]]) -> None:
    """Write down which run the output folder holds; InputError where it holds results of another."""
    folder = path.parent
    if any((folder / name).exists() for name in (*SPLITS, CENTRES)):
        try:
            before = json.loads(path.read_text(encoding="utf-8"))
            changed = [
                f"{key}: {before[part][key]} then, {value} now"
                for part, values in record.items()
                for key, value in values.items()
                if before[part].get(key, value) != value
            ]
            record = {part: before[part] | values for part, values in record.items()}
        except FileNotFoundError:
            raise InputError(
                f"{folder}: holds what this script did not make; name another --output-dir"
            ) from None
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise InputError(f"{path}: damaged; name another --output-dir") from error
        if changed:
            raise InputError(f"{folder}: holds another run ({'; '.join(changed)}); name another --output-dir")
    write_whole(path, json.dumps(record, indent=2) + "\n")


def train(arguments: argparse.Namespace, images: list[str], features: Features, mapper: Mapper) -> np.ndarray:
    """Centres of the clusters, from the output folder or by k-means."""
    path = arguments.output_dir / CENTRES
    if path.exists():
        return np.load(path)
    folder = arguments.save_dir / MODES[arguments.mode].folder / "train"
    store = arguments.features_dir or arguments.output_dir / "features"
    with tqdm(total=len(images), desc="train", unit=" images", disable=None) as bar:
        chunks = feature_chunks(folder, images, features, store, mapper, lambda n: bar.update(n) and None)
    print(f"features of {len(images)} training images: {store}")
    centres = fit_centres(chunks, arguments.clusters, arguments.seed)
    with whole_file(path) as temporary, temporary.open("wb") as file:
        np.save(file, centres)
    return centres


def predict(
    source: Path, images: list[str], target: Path, centres: np.ndarray, features: Features, mapper: Mapper
) -> int:
    """Write the predictions of a split that are not there yet; gives how many were made."""
    absent = [image for image in images if not mask_path(target, image).exists()]
    problems: list[str] = []
    with tqdm(total=len(absent), desc=target.name, unit=" images", disable=None) as bar:
        for described in describe(source, absent, features, mapper, problems):
            predictions = [
                Prediction(foreground, size, int(label), mask_path(target, image))
                for image, foreground, size, label in zip(
                    described.images,
                    described.foregrounds,
                    described.sizes,
                    cluster_ids(described.features, centres),
                    strict=True,
                )
            ]
            for _ in mapper(write_prediction, predictions):
                bar.update()
    refuse(problems)
    return len(absent)


def mask_path(folder: Path, image: str) -> Path:
    """Where the prediction of ``<wnid>/<name>.JPEG`` lies."""
    return (folder / image).with_suffix(".png")


def main() -> None:
    """Cluster the training images, predict the splits."""
    arguments = parse_arguments()
    mode = MODES[arguments.mode]
    arguments.clusters = arguments.clusters or mode.classes
    root, output = arguments.save_dir / mode.folder, arguments.output_dir
    splits = chosen_splits(root, arguments.splits)
    images = list_images(root / "train")[: arguments.train_images]
    with processes(arguments.workers) as mapper:  # before torch comes in, which workers do without
        features = chosen_features(arguments)
        output.mkdir(parents=True, exist_ok=True)
        with locked(output / ".lock"):
            keep_record(output / RECORD, make_record(arguments, features, {"train": images, **splits}))
            centres = train(arguments, images, features, mapper)
            for split, of_split in splits.items():
                made = predict(root / split, of_split, output / split, centres, features, mapper)
                print(f"{output / split}: {len(of_split)} predictions, {made} made now")


if __name__ == "__main__":
    run(main)
