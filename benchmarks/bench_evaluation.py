#!/usr/bin/env python3
"""Time counting, matching and scoring, and compare with decoding only and with torchmetrics.

All figures come from one run on one machine: compare the ratios. "floor": only decode both masks of every
pair, with the same decoder and workers; for a whole process, one that imports PyTorch and numba, decodes, and
ends. "first pass": the pass over the masks. "torchmetrics": its pooled Jaccard index (only mIoU) on the first
500 pairs, decoded by the same workers.
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, cast

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
from PIL import Image

from command_line.startup import run
from imagenets.classes import MODES
from imagenets.common.workers import default_workers, load_chunks
from imagenets.masks import decode_mask, decode_rgb, labels_to_rgb
from imagenets.scoring.contingency import Chunk, PairChunks, count_pairs
from imagenets.scoring.pairs import Pairs, find_pairs

PEER_PAIRS = 500

CHECKOUT = Path(__file__).resolve().parents[1]


class DecodedChunks(PairChunks):
    """The floor: decode both masks of every pair and drop them."""

    def __getitem__(self, index: int) -> Chunk:
        """Decode one chunk."""
        for image in self.chunks[index]:
            for folder in (self.pairs.gt_dir, self.pairs.predict_dir):
                decode_rgb((folder / self.pairs.names[image]).read_bytes())
        return Chunk([], [0] * len(self.chunks[index]), [])


class LabelChunks(PairChunks):
    """For the peer: both label maps of every pair, as int64 tensors."""

    def __getitem__(self, index: int) -> Any:  # noqa: ANN401
        """Decode one chunk."""
        import torch

        return [
            tuple(
                torch.from_numpy(decode_mask(folder / self.pairs.names[image]).astype(np.int64))
                for folder in (self.pairs.predict_dir, self.pairs.gt_dir)
            )
            for image in self.chunks[index]
        ]


def drain(chunks: Iterable[object]) -> None:
    """Use up an iterable."""
    for _ in chunks:
        pass


def torchmetrics_miou(pairs: Pairs, workers: int, classes: int) -> None:
    """Pool the Jaccard index of all pairs."""
    import torch
    from torchmetrics.classification import MulticlassJaccardIndex

    torch.set_num_threads(1)
    metric = MulticlassJaccardIndex(classes + 1, ignore_index=1000, validate_args=False)
    for chunk in load_chunks(LabelChunks(pairs, range(len(pairs.names))), workers):
        for prediction, truth in cast(Any, chunk):
            metric.update(prediction, truth)
    metric.compute()


def generate(folder: Path, mode: str, count: int, distinct: int = 500) -> None:
    """Write ``distinct`` pairs of masks of 500 x 375 pixels, under ``count`` names."""
    rng = np.random.default_rng(0)
    classes = MODES[mode].classes
    y, x = np.mgrid[:375, :500]
    for i in range(distinct):
        masks = np.zeros((2, 375, 500), np.int64)
        for _ in range(rng.integers(1, 4)):
            cy, cx, size, phase = (
                rng.uniform(0, 375),
                rng.uniform(0, 500),
                rng.uniform(20, 200),
                rng.uniform(0, 7),
            )
            angle = np.arctan2(y - cy, x - cx)
            radius = np.hypot(y - cy, x - cx) / (1 + 0.3 * np.sin(3 * angle + phase))
            label = rng.integers(1, classes + 1)
            masks[0][radius < size] = label
            masks[0][(radius >= size) & (radius < size + 3)] = 1000
            wobble = 4 * np.sin(9 * angle + phase)
            masks[1][radius < size + wobble] = label if rng.random() < 0.7 else rng.integers(1, classes + 1)
        for side, mask in zip(("gt", "pred"), masks, strict=True):
            path = folder / "distinct" / side / f"{i}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(labels_to_rgb(mask)).save(path)
    for i in range(count):
        for side in ("gt", "pred"):
            path = folder / side / f"n{i % classes:08d}" / f"ILSVRC2012_val_{i:08d}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            os.link(folder / "distinct" / side / f"{i % distinct}.png", path)


def seconds(action: Callable[[], object]) -> float:
    """Wall-clock seconds of one call."""
    start = time.perf_counter()
    action()
    return time.perf_counter() - start


def process(script: str, pairs: Pairs, mode: str, folder: str, *arguments: str) -> subprocess.Popen[bytes]:
    """Start a script as a process."""
    command = [sys.executable, str(CHECKOUT / "evaluation" / script), "--mode", mode, *arguments]
    command += ["--gt-dir", str(pairs.gt_dir), "--predict-dir", str(pairs.predict_dir)]
    return subprocess.Popen(command, cwd=folder, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def floor_process(pairs: Pairs, workers: int) -> subprocess.Popen[bytes]:
    """Start what no scoring process can do without: import PyTorch and numba, decode every mask, end."""
    command = [sys.executable, __file__, "--floor", str(pairs.gt_dir), str(pairs.predict_dir)]
    return subprocess.Popen([*command, "--workers", str(workers)], stdout=subprocess.DEVNULL)


def decode_all(folders: Sequence[Path], workers: int) -> None:
    """Be that process."""
    import numba  # noqa: F401
    import torch  # noqa: F401

    pairs = find_pairs(folders[0], folders[1])
    drain(load_chunks(DecodedChunks(pairs, range(len(pairs.names))), workers))


def user_seconds(start: Callable[[], subprocess.Popen[bytes]]) -> tuple[float, float]:
    """Wall-clock seconds of a process, and CPU seconds of it and its children."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    elapsed = seconds(lambda: finish(start()))
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return elapsed, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def finish(child: subprocess.Popen[bytes]) -> None:
    """Wait for a process; end if it failed."""
    if child.wait():
        raise SystemExit(f"{child.args!r} failed")


def memory(child: subprocess.Popen[bytes]) -> tuple[float, float]:
    """Wait for a process, and give its largest memory in MiB with all its children's.

    As the sum of what each process has resident, and as the sum of proportional shares, where a page that
    processes share counts once. Looking slows what is looked at: times are taken in a run of their own.
    """
    peaks = [0.0, 0.0]
    watch_memory(child, peaks)
    finish(child)
    return peaks[0], peaks[1]


def watch_memory(child: subprocess.Popen[bytes], peaks: list[float]) -> None:
    """Keep the largest sums of Rss and Pss (MiB) of a process and its children while it runs."""
    while child.poll() is None:
        try:
            children = Path(f"/proc/{child.pid}/task/{child.pid}/children").read_text().split()
            rollups = [Path(f"/proc/{pid}/smaps_rollup").read_text() for pid in (child.pid, *children)]
        except OSError:  # one of them has just ended
            continue
        for i, field in enumerate(("Rss:", "Pss:")):
            total = sum(int(text.split(field)[1].split()[0]) for text in rollups if field in text)
            peaks[i] = max(peaks[i], total / 1024)
        time.sleep(0.05)


def bench(title: str, pairs: Pairs, mode: str, workers: int, rounds: int) -> None:
    """Print one table."""
    count, classes = len(pairs.names), MODES[mode].classes
    everything, some = range(count), dataclasses.replace(pairs, names=pairs.names[:PEER_PAIRS])
    actions: dict[str, tuple[int, Callable[[], object]]] = {
        "floor (decode both, drop)": (
            count,
            lambda: drain(load_chunks(DecodedChunks(pairs, everything), workers)),
        ),
        "first pass": (count, lambda: count_pairs(pairs, workers)),
        "torchmetrics (mIoU only)": (
            len(some.names),
            lambda: torchmetrics_miou(some, workers, classes),
        ),
    }
    import torch.utils.data  # noqa: F401 - so that DataLoader does every pass here, and none waits for it

    count_pairs(pairs, workers)  # compiles, fills the file cache
    times: dict[str, list[float]] = {name: [] for name in actions}
    for _ in range(rounds):
        for name, (done, action) in actions.items():
            times[name].append(seconds(action) / done)
    floor = times["floor (decode both, drop)"]
    print(f"\n{title}: {count} pairs, mode {mode}, {workers} workers, median of {rounds} rounds")
    print(f"  {'':32}{'ms/pair':>9}{'pairs/s':>9}{'x floor':>9}")
    for name, taken in times.items():
        ratio = statistics.median(a / b for a, b in zip(taken, floor, strict=True))
        median = statistics.median(taken)
        print(f"  {name:32}{1000 * median:9.2f}{1 / median:9.0f}{ratio:9.2f}")
    with tempfile.TemporaryDirectory() as folder:
        matching = ("--session-name", "x", "--workers", str(workers), "--no-cache")
        both = [
            (
                user_seconds(lambda: floor_process(pairs, workers)),
                user_seconds(lambda: process("match.py", pairs, mode, folder, *matching)),
            )
            for _ in range(rounds)
        ]
        for place, what in enumerate(("wall", "CPU")):
            least, needed = (statistics.median(pair[side][place] for pair in both) for side in (0, 1))
            ratio = statistics.median(matched[place] / bare[place] for bare, matched in both)
            print(
                f"  match.py, whole process           {needed:7.2f} s {what}, nothing cached: {ratio:.2f} x "
                f"the process that only decodes ({least:.2f} s)"
            )
        resident, shared_once = memory(process("match.py", pairs, mode, folder, *matching))
        print(f"    all its processes' memory       {resident:7.0f} MiB resident")
        print(f"    with shared pages counted once  {shared_once:7.0f} MiB")
        scoring = ("evaluator.py", pairs, mode, folder, "--match", "x")
        finish(process(*scoring))  # fills the cache
        elapsed = seconds(lambda: finish(process(*scoring)))
        print(f"  evaluator.py, whole process       {elapsed:7.2f} s, from the cache")
        resident, _ = memory(process(*scoring))
        print(f"    memory                          {resident:7.0f} MiB resident")


def main() -> None:
    """Bench the real masks where they are, and generated ones."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--real",
        type=Path,
        default=CHECKOUT.parent / "shared" / "real-masks-50",
        help="a data set of mode 50 with predictions, timed too if it exists (default: "
        "../shared/real-masks-50)",
    )
    parser.add_argument("--generated", type=int, default=12_419, help="number of generated pairs, mode 919")
    parser.add_argument(
        "--workers", type=int, default=default_workers(), help="processes that decode (default: one per core)"
    )
    parser.add_argument(
        "--rounds", type=int, default=3, help="runs of each; the median is printed (default: 3)"
    )
    parser.add_argument("--floor", type=Path, nargs=2, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.floor:
        decode_all(arguments.floor, arguments.workers)
        return
    if arguments.real.is_dir():
        pairs = find_pairs(arguments.real / "validation-segmentation", arguments.real / "predictions")
        bench("real masks", pairs, "50", arguments.workers, arguments.rounds)
    else:
        print(f"no real masks at {arguments.real}")
    with tempfile.TemporaryDirectory() as folder:
        generate(Path(folder), "919", arguments.generated)
        pairs = find_pairs(Path(folder, "gt"), Path(folder, "pred"))
        bench("generated masks, 500 x 375", pairs, "919", arguments.workers, arguments.rounds)


if __name__ == "__main__":
    run(main)
