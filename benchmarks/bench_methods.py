#!/usr/bin/env python3
"""Compare distance matching with the forward pass of its network, and its search with a matrix product.

Prints ratios of one run on synthetic pictures: images per second from JPEG files to PNG files, compared with
only the network on the same pictures, already read, in the same batches and with the same threads; and the
neighbour search compared with one matrix product of its size.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from command_line.startup import run
from command_line.arguments import whole_number

# isort: split
import cv2
import numpy as np
import torch
from PIL import Image

from benchmarks.timing import seconds
from imagenets.learning.distance_matching.bank import label_step
from imagenets.learning.distance_matching.neighbours import Bank, label_maps, nearest
from imagenets.learning.distance_matching.patches import PER_PICTURE, PatchBank, vote
from imagenets.learning.engine.inference import Running, write_label_maps
from imagenets.learning.engine.label_files import LabelFile, write_label_file
from imagenets.learning.images import Images, Reading, read_picture
from imagenets.learning.networks.backbones import Backbone, make_backbone
from imagenets.learning.networks.precision import fold_batch_norms
from imagenets.learning.processes import Processes, started

SIZE = (375, 500)  # height, width; the most frequent one of ImageNet
NETWORKS = ("resnet18", "vit_small_patch16_224")


def write_photographs(folder: Path, count: int) -> list[str]:
    """Write JPEG files of smooth noise of several scales; about 100 kB each, as ImageNet's."""
    rng = np.random.default_rng(0)
    names = []
    for i in range(count):
        rough = sum(
            cv2.resize(rng.random((cells, cells, 3)), SIZE[::-1]) * weight
            for cells, weight in ((5, 120), (40, 80), (200, 55))
        )
        name = f"{i:04d}.JPEG"
        Image.fromarray(np.clip(rough, 0, 255).astype(np.uint8)).save(folder / name, quality=92)
        names.append(name)
    return names


def synchronised(device: torch.device) -> None:
    """Wait for a GPU."""
    if device.type == "cuda":
        torch.cuda.synchronize()


def network_and_bank(name: str, embeddings: int) -> tuple[Backbone, Bank]:
    """Make a network with random weights, and a bank of random embeddings for it."""
    torch.manual_seed(0)
    backbone = make_backbone(name)
    vectors = torch.nn.functional.normalize(torch.randn(embeddings, backbone.channels))
    return backbone, Bank(vectors, torch.arange(embeddings) % 51)


def read_batch(images: Images, count: int, reading: Reading) -> torch.Tensor:
    """Read the first pictures as one batch (B, 3, H, W) of 0..1."""
    pixels = np.stack([read_picture(images, name, reading).pixels for name in images.names[:count]])
    return torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 255


def bare_forward(backbone: Backbone, images: Images, batch: int, processes: Processes) -> float:
    """Seconds of only the network on prepared batches on the device."""
    pictures = read_batch(images, batch, backbone.reading()).to(processes.device)

    def call() -> None:
        with torch.inference_mode():
            for _ in range(len(images.names) // batch):
                backbone(pictures)
        synchronised(processes.device)

    call()
    return seconds(call, 2)


def compare_whole(name: str, images: Images, arguments: argparse.Namespace, processes: Processes) -> None:
    """Print one network's line."""
    backbone, bank = network_and_bank(name, arguments.bank)
    backbone.to(processes.device)
    bank = bank.to(processes.device)
    running = Running(processes, arguments.workers, arguments.batch_size)
    bare = bare_forward(backbone, images, arguments.batch_size, processes)
    fold_batch_norms(backbone)  # as distance_matching.py does, for which it is part of the way
    step = label_step(backbone, bank, 10, 0.07)
    with tempfile.TemporaryDirectory() as output:
        targets = [Path(output) / f"{name}.png" for name in images.names]
        whole = seconds(lambda: write_label_maps(images, targets, step, backbone.reading(), running))
    count = len(images.names)
    print(
        f"{name:22}  bare forward {count / bare:7.1f} images/s   files to files {count / whole:7.1f} images/s"
        f"   ratio {bare / whole:.2f}"
    )


def print_stages(name: str, images: Images, arguments: argparse.Namespace) -> None:
    """Print the CPU time that each part of the way takes of an image, all threads together, on a CPU."""
    backbone, bank = network_and_bank(name, arguments.bank)
    reading = backbone.reading()
    pictures = read_batch(images, 8, reading)
    with torch.inference_mode(), tempfile.TemporaryDirectory() as output:
        maps = backbone(pictures)
        labels = label_maps(maps, backbone.stride, bank, 10, 0.07)
        file = LabelFile(Path(output) / "labels.png", labels[0].numpy(), SIZE, SIZE)
        stages: dict[str, tuple[Callable[[], object], int, int]] = {  # what, repeats, images
            "forward": (lambda: backbone(pictures), 5, len(pictures)),
            "labels": (lambda: label_maps(maps, backbone.stride, bank, 10, 0.07), 5, len(pictures)),
            "read": (lambda: read_picture(images, images.names[0], reading), 9, 1),
            "write": (lambda: write_label_file(file), 9, 1),
        }
        spent = {
            stage: seconds(call, repeats, time.process_time) / count
            for stage, (call, repeats, count) in stages.items()
        }
    shown = ", ".join(f"{stage} {1000 * of_stage:.1f}" for stage, of_stage in spent.items())
    print(f"{name}, CPU milliseconds an image: {shown}")


def compare_search(places: int, channels: int, size: int, device: torch.device) -> None:
    """Print the search against one product of its size."""
    vectors, bank = torch.randn(places, channels, device=device), torch.randn(size, channels, device=device)
    bank = torch.nn.functional.normalize(bank)

    def product() -> None:
        vectors @ bank.T
        synchronised(device)

    def search() -> None:
        nearest(vectors, bank, 10)
        synchronised(device)

    product()
    search()
    ratio = seconds(search, 3) / seconds(product, 3)
    print(f"search of {places} x {channels} in {size}: {ratio:.2f} times one matrix product")


def compare_patches(name: str, device: torch.device) -> None:
    """Print the search of a bank of patches, as large as mode 50's, against the forward pass, in turns.

    The picture is one of SIZE at --size 448; the bank has 100 patches of each of 500 pictures.
    """
    backbone = make_backbone(name).to(device)
    pictures = torch.randn(1, 3, 448, 592, device=device)
    rows = 500 * PER_PICTURE
    vectors = torch.nn.functional.normalize(torch.randn(rows, backbone.channels, device=device))
    labels = torch.randint(51, (rows, 2), device=device)
    bank = PatchBank(vectors, labels, torch.full((rows, 2), 0.5, device=device))
    spent: dict[str, list[float]] = {"forward": [], "search": []}
    with torch.inference_mode():
        for _ in range(3):
            begun = time.perf_counter()
            places = backbone(pictures)[0].flatten(1).T
            synchronised(device)
            middle = time.perf_counter()
            vote(places, bank, 30, 0.02)
            synchronised(device)
            spent["forward"].append(middle - begun)
            spent["search"].append(time.perf_counter() - middle)
    ratio = min(spent["search"]) / min(spent["forward"])
    print(f"{name} at 448, {len(places)} places in {rows} patches: search {ratio:.2f} of the forward pass")


def main() -> None:
    """Parse, time, print."""
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument(
        "--images", type=whole_number(8, 100_000), default=128, help="photographs (default: 128)"
    )
    parser.add_argument(
        "--bank", type=whole_number(11, 100_000), default=1000, help="embeddings in the bank (default: 1000)"
    )
    parser.add_argument(
        "--batch-size", type=whole_number(1, 1024), default=16, help="pictures in a batch (default: 16)"
    )
    parser.add_argument(
        "--workers", type=whole_number(0, 256), default=2, help="processes that read images (default: 2)"
    )
    parser.add_argument(
        "--device",
        choices=("auto", "cpu", "cuda"),
        default="auto",
        help="where the network runs (default: auto, which is CUDA if available)",
    )
    arguments = parser.parse_args()
    with started(arguments.device) as processes, tempfile.TemporaryDirectory() as folder:
        print(f"{processes.device}, {torch.get_num_threads()} threads, {arguments.workers} workers")
        images = Images(Path(folder), write_photographs(Path(folder), arguments.images))
        for name in NETWORKS:
            compare_whole(name, images, arguments, processes)
        if processes.device.type == "cpu":
            print_stages(NETWORKS[0], images, arguments)
        compare_search(32 * 44, 512, 1000, processes.device)
        compare_search(32 * 44, 2048, 18_000, processes.device)
        compare_patches(NETWORKS[1], processes.device)


if __name__ == "__main__":
    run(main)
