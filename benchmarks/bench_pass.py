#!/usr/bin/env python3
"""Time the parts of PASS, as ratios of one run: augmentation, the training step, k-means, the threshold.

Pictures and features are synthetic: --images JPEGs of 500 x 375 pixels, in a temporary folder. faiss is
compared if it is installed. --only runs one part.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
import torch
from PIL import Image, ImageFilter
from sklearn.cluster import KMeans
from threadpoolctl import threadpool_limits
from torch.utils.data import DataLoader, Dataset

from command_line.startup import run
from benchmarks.timing import seconds
from command_line.arguments import whole_number
from imagenets.learning.networks.backbones import make_backbone
from imagenets.learning.pass_method.crops import MEAN, STD, CropReader, CropSettings
from imagenets.learning.pass_method.heads import DIMENSIONS, HeadSizes, PassNetwork
from imagenets.learning.pass_method.recipes import PUBLISHED_PRETRAINING
from imagenets.learning.pass_method.sinkhorn import FeatureQueue, assignments_of_views
from imagenets.learning.pass_method.steps import CollapseWatch, PretrainingStep
from imagenets.learning.pass_method.thresholds import THRESHOLDS, count_steps, sweep
from imagenets.learning.processes import Processes
from imagenets.learning.training.optimisers import Lars
from imagenets.learning.training.order import Plan, StepIndex, TrainingBatch, batches
from imagenets.scoring.contingency import ContingencyTable
from imagenets.scoring.matching import find_matching
from imagenets.scoring.metrics import evaluate

ALONE = Processes(0, 1, torch.device("cuda" if torch.cuda.is_available() else "cpu"))


def write_pictures(folder: Path, count: int) -> list[str]:
    """Write JPEGs of smooth noise, as large as ImageNet's are on average."""
    rng = np.random.default_rng(0)
    names = []
    for number in range(count):
        coarse = Image.fromarray(rng.integers(0, 256, (24, 32, 3), np.uint8))
        name = f"n0/{number}.JPEG"
        (folder / "n0").mkdir(exist_ok=True)
        coarse.resize((500, 375), Image.Resampling.BICUBIC).save(folder / name, quality=92)
        names.append(name)
    return names


class PlainPipeline(Dataset[list[torch.Tensor]]):
    """The public recipe's way: torchvision's transforms on PIL images, each crop to a normalised tensor."""

    def __init__(self, folder: Path, names: list[str], sizes: list[CropSettings]) -> None:
        """Make the crops of ``sizes``."""
        from torchvision import transforms

        self.folder, self.names = folder, names
        jitter = transforms.ColorJitter(0.8, 0.8, 0.8, 0.2)
        self.transforms = [
            transforms.Compose(
                [
                    transforms.RandomResizedCrop(size.side, scale=size.scale),
                    transforms.RandomHorizontalFlip(),
                    transforms.RandomApply([jitter], p=0.8),
                    transforms.RandomGrayscale(p=0.2),
                    transforms.RandomApply([transforms.Lambda(self.blurred)], p=0.5),
                    transforms.ToTensor(),
                    transforms.Normalize(MEAN, STD),
                ]
            )
            for size in sizes
            for _ in range(size.count)
        ]

    @staticmethod
    def blurred(image: Image.Image) -> Image.Image:
        """Blur by a random radius."""
        return image.filter(ImageFilter.GaussianBlur(float(torch.empty(()).uniform_(0.1, 2))))

    def __len__(self) -> int:
        """Return the number of pictures."""
        return len(self.names)

    def __getitem__(self, index: int) -> list[torch.Tensor]:
        """Make the crops of one picture."""
        image = Image.open(self.folder / self.names[index]).convert("RGB")
        return [transform(image) for transform in self.transforms]


def one_thread(worker: int) -> None:
    """Keep a worker from taking more than its core."""
    torch.set_num_threads(1)


def bench_augmentation(folder: Path, names: list[str], workers: int) -> None:
    """Images per second of our crops against the plain pipeline's, both by worker processes."""
    for mode in ("50", "300"):
        recipe = PUBLISHED_PRETRAINING[mode]
        sizes = [recipe.large] if recipe.small is None else [recipe.large, recipe.small]
        plain = DataLoader(
            PlainPipeline(folder, names, sizes), batch_size=16, num_workers=workers, worker_init_fn=one_thread
        )
        reader = CropReader(folder, names, 0, recipe.large, recipe.small)
        plan = Plan(len(names), 16, 1, 0, True)
        theirs = seconds(partial(list, plain), 3)
        ours = seconds(partial(_all_batches, reader, plan, workers), 3)
        print(
            f"augmentation, mode {mode}, {workers} workers: {len(names) / ours:.0f} images/s, torchvision on "
            f"PIL images {len(names) / theirs:.0f}: {theirs / ours:.2f} times as fast"
        )


def _all_batches(reader: CropReader, plan: Plan, workers: int) -> None:
    for _ in batches(reader, plan, workers):
        pass


def bench_step(folder: Path, names: list[str], workers: int, batch: int) -> None:
    """Shares of a pre-training step of mode 50: waiting for data, network, assignments, optimiser."""
    recipe = replace(PUBLISHED_PRETRAINING["50"], batch=batch)
    device = ALONE.device
    network = PassNetwork(make_backbone(recipe.backbone), HeadSizes(recipe.hidden, recipe.prototypes))
    network.to(device).train()
    queue = FeatureQueue(recipe.queue, batch, DIMENSIONS, device)
    queue.features.normal_()
    queue.rows = [recipe.queue] * 2
    watch = CollapseWatch(recipe.prototypes, ALONE, print)
    step = PretrainingStep(network, network, recipe, queue, watch, "float32")
    optimiser = Lars(network.parameters(), lr=0.1)
    reader = CropReader(folder, names, 0, recipe.large, recipe.small)
    plan = Plan(len(names), batch, 3, 0, False)
    spent = dict.fromkeys(("waiting for data", "network", "assignments", "optimiser"), 0.0)

    def timed(name: str, work: Callable[[], Any]) -> Any:  # noqa: ANN401 - whatever work returns
        begun = time.perf_counter()
        result = work()
        if device.type == "cuda":
            torch.cuda.synchronize()
        spent[name] += time.perf_counter() - begun
        return result

    arriving = batches(reader, plan, workers)
    step_number, images = 0, 0
    while True:
        found = timed("waiting for data", lambda: next(arriving, None))
        if found is None:
            break
        here: TrainingBatch = found[1].to(device)
        loss = timed("network", partial(step.loss_of, here, StepIndex(99, 0, 0, step_number)))["loss"]
        timed("network", loss.backward)
        features = torch.randn(2 * batch, DIMENSIONS, device=device)
        scores = torch.rand(2, batch, recipe.prototypes, device=device).unbind()
        timed(
            "assignments", partial(assignments_of_views, features, scores, queue, network.prototypes.weight)
        )
        timed("optimiser", optimiser.step)
        optimiser.zero_grad()
        step_number, images = step_number + 1, images + batch
    spent["network"] -= spent["assignments"]  # which are part of the loss, and were timed once more
    total = sum(spent.values())
    shares = ", ".join(f"{name} {100 * share / total:.1f} %" for name, share in spent.items())
    print(f"a step of mode 50, batch {batch}, {device.type}, {images / total:.1f} images/s: {shares}")
    augmenting = seconds(lambda: [reader.read(0, index) for index in range(batch)])
    share = 100 * augmenting / (total / step_number)
    print(f"augmentation of such a batch by one core, which workers do meanwhile: {share:.1f} % of the step")


def bench_k_means(threads: int, rows: int) -> None:
    """scikit-learn's k-means against a plain loop in PyTorch, and faiss where it is installed."""
    width, clusters, restarts, iterations = 512, 50, 3, 20
    rng = np.random.default_rng(0)
    centres = rng.normal(size=(clusters, width))
    data = (centres[rng.integers(clusters, size=rows)] + 2 * rng.normal(size=(rows, width))).astype(
        np.float32
    )
    data /= np.linalg.norm(data, axis=1, keepdims=True)

    def sklearn() -> None:
        with threadpool_limits(threads):
            KMeans(clusters, init="random", n_init=restarts, max_iter=iterations, tol=0, random_state=0).fit(
                data
            )

    def pytorch() -> None:
        tensor = torch.from_numpy(data)
        for _ in range(restarts):
            means = tensor[torch.randperm(rows)[:clusters]]
            for _ in range(iterations):
                labels = torch.addmm(means.square().sum(1), tensor, means.T, alpha=-2).argmin(1)
                sums = torch.zeros_like(means).index_add_(0, labels, tensor)
                means = sums / torch.bincount(labels, minlength=clusters).clamp(min=1)[:, None]

    ours = seconds(sklearn, 2)
    results = [f"PyTorch {seconds(pytorch, 2) / ours:.1f} times as long"]
    try:
        import faiss
    except ImportError:
        results.append("faiss is not installed")
    else:
        faiss.omp_set_num_threads(threads)

        def with_faiss() -> None:
            kmeans = faiss.Clustering(width, clusters)
            kmeans.niter, kmeans.nredo, kmeans.max_points_per_centroid = iterations, restarts, 10_000_000
            kmeans.train(data, faiss.IndexFlatL2(width))

        results.append(f"faiss {seconds(with_faiss, 2) / ours:.1f} times")
    print(f"k-means, {rows} x {width}, {clusters} clusters: scikit-learn {ours:.1f} s, {', '.join(results)}")


def bench_thresholds(images: int) -> None:
    """One pass for all thresholds against one evaluation for each."""
    rng = np.random.default_rng(0)
    size, classes = (375, 500), 50
    found = []
    for _ in range(images):
        truth = np.kron(rng.integers(0, 3, (15, 20)), np.ones((25, 25), int)) * rng.integers(1, 25)
        clusters = np.kron(rng.integers(1, classes + 1, (15, 20)), np.ones((25, 25), np.int32))
        attention = torch.nn.functional.interpolate(torch.rand(1, 1, 12, 16), size, mode="bilinear")[0, 0]
        found.append((truth, torch.from_numpy(clusters.astype(np.int32)), attention))

    def one_pass() -> None:
        counted = [count_steps(*parts).numpy() for parts in found]
        image = np.concatenate([np.full(len(rows), index) for index, rows in enumerate(counted)])
        sweep(image, np.concatenate(counted), images, classes, classes)

    def one_evaluation(threshold: float) -> None:
        rows = []
        for index, (truth, clusters, attention) in enumerate(found):
            labels = torch.where(attention < threshold, 0, clusters).numpy()
            keys, pixels = np.unique(truth.astype(np.int64) << 16 | labels, return_counts=True)
            rows.append(np.stack((np.full(keys.size, index), keys >> 16, keys & 65535, pixels)))
        image, truth, prediction, pixels = np.concatenate(rows, 1)
        nowhere = np.zeros(image.size, bool)
        table = ContingencyTable(
            tuple(map(str, range(images))), np.zeros(images, np.int32), image.astype(np.int32),
            truth.astype(np.uint16), prediction.astype(np.uint16), nowhere, nowhere, pixels,
        )  # fmt: skip
        evaluate(table, classes, find_matching(table, "image", classes, classes).classes)

    together = seconds(one_pass, 2)
    some = THRESHOLDS[::20]
    apart = sum(seconds(partial(one_evaluation, t)) for t in some) / len(some) * len(THRESHOLDS)
    times = apart / together
    print(f"81 thresholds, {images} images: {together:.1f} s, 81 evaluations {times:.1f} times as long")


def main() -> None:
    """Print all figures."""
    cores = len(os.sched_getaffinity(0))
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument(
        "--images", type=whole_number(16, 100_000), default=96, help="photographs (default: 96)"
    )
    parser.add_argument(
        "--batch-size", type=whole_number(2, 4096), default=16, help="pictures in a step (default: 16)"
    )
    parser.add_argument(
        "--workers", type=whole_number(1, 1024), default=cores, help="processes (default: one per core)"
    )
    parser.add_argument(
        "--rows",
        type=whole_number(1000, 10_000_000),
        default=20_000,
        help="vectors for k-means (default: 20000)",
    )
    parts = ("augmentation", "step", "k-means", "thresholds")
    parser.add_argument("--only", choices=parts, help="only this part (default: all)")
    arguments = parser.parse_args()
    wanted = (arguments.only,) if arguments.only else parts
    with tempfile.TemporaryDirectory() as folder:
        names = write_pictures(Path(folder), arguments.images) if {"augmentation", "step"} & {*wanted} else []
        if "augmentation" in wanted:
            bench_augmentation(Path(folder), names, arguments.workers)
        if "step" in wanted:
            bench_step(Path(folder), names, arguments.workers, arguments.batch_size)
    if "k-means" in wanted:
        bench_k_means(cores, arguments.rows)
    if "thresholds" in wanted:
        bench_thresholds(20)


if __name__ == "__main__":
    run(main)
