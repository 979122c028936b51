#!/usr/bin/env python3
"""Measure the share of a training step of finetune.py that waits for images, and time reading by itself.

Pictures are synthetic (500 × 375 pixels, JPEG), the network has random weights. One run:
python benchmarks/bench_finetune.py [--backbone resnet18] [--workers 2]
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import cv2
import numpy as np
import torch
from PIL import Image

from command_line.startup import run
from benchmarks.timing import seconds
from command_line.arguments import whole_number
from imagenets.classes import MODES
from imagenets.common.progress import no_bar
from imagenets.learning.finetuning.pairs import Augmented, list_pairs
from imagenets.learning.finetuning.run import FineTuneRequest, fine_tune
from imagenets.learning.processes import Processes
from imagenets.learning.training.run_files import RunFolder
from imagenets.masks import encode_mask

IMAGES, BATCH, EPOCHS, SIZE = 96, 16, 3, (375, 500)
WNIDS = [f"n{number:08d}" for number in range(1, 51)]


def write_set(save: Path) -> None:
    """Write train-semi of a drawn mode 50: smooth noise, which JPEG packs as it does photographs."""
    rng = np.random.default_rng(0)
    root = save / MODES["50"].folder
    for wnid in WNIDS:
        (root / "train" / wnid).mkdir(parents=True)
    for number in range(IMAGES):
        wnid = WNIDS[number % len(WNIDS)]
        coarse = rng.integers(0, 256, (SIZE[0] // 5, SIZE[1] // 5, 3), np.uint8)
        path = root / "train-semi" / wnid / f"{number}.JPEG"
        path.parent.mkdir(parents=True, exist_ok=True)
        picture = cv2.resize(coarse, SIZE[::-1], interpolation=cv2.INTER_CUBIC)
        Image.fromarray(picture).save(path, "JPEG", quality=90)
        labels = np.zeros(SIZE, np.uint16)
        labels[80:300, 100:400] = 1 + number % len(WNIDS)
        encode_mask(labels, root / "train-semi-segmentation" / wnid / f"{number}.png")


def main() -> None:
    """Train a little, and print the shares."""
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("--backbone", default="resnet18", help="the network (default: resnet18)")
    parser.add_argument(
        "--workers",
        type=whole_number(0, 1024),
        default=len(os.sched_getaffinity(0)),
        help="processes that read images (default: one per core)",
    )
    parser.add_argument(
        "--device", choices=("cpu", "cuda"), default="cpu", help="where the network runs (default: cpu)"
    )
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        save = Path(folder)
        write_set(save)
        pairs = list_pairs(save, MODES["50"], "semi-supervised", None)
        augmented = Augmented(pairs, 224, 0.14, 0)
        reading = seconds(lambda: [augmented.read(0, index) for index in range(IMAGES)]) / IMAGES
        processes = Processes(0, 1, torch.device(arguments.device))
        request = FineTuneRequest(
            save, MODES["50"], "semi-supervised", arguments.backbone, None, save / "run",
            {"epochs": EPOCHS, "batch": BATCH}, workers=arguments.workers,
        )  # fmt: skip
        fine_tune(request, processes, no_bar, lambda line: None)
        log = (RunFolder(save / "run", {}, processes, is_new=False).load() or {})["log"]
    last = log[-1]
    print(f"reading and augmenting an image, one core: {1000 * reading:.1f} ms")
    print(
        f"{arguments.backbone}, crop 224, {arguments.device}: {last['images_per_second']:.1f} images a second"
    )
    print(f"wait for data with {arguments.workers} workers: {100 * last['data_wait']:.1f} % of the time")


if __name__ == "__main__":
    run(main)
