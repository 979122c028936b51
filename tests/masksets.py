"""Mask folders for the tests: written with Pillow, which the library does not use for masks."""

from __future__ import annotations

import contextlib
import importlib
import io
import os
import subprocess
import sys
import warnings
from pathlib import Path
from unittest.mock import patch

import numpy as np
from PIL import Image

from command_line import startup
from imagenets.masks import boundary_distance, labels_to_rgb
from imagenets.scoring.contingency import count_pair, make_table
from imagenets.scoring.run_length import label_runs

CHECKOUT = Path(__file__).resolve().parents[1]
SHARED = Path(os.environ.get("IMAGENETS_SHARED", CHECKOUT.parent / "shared"))
REAL = SHARED / "real-masks-50"


def to_rgb(labels):
    labels = np.asarray(labels)
    return np.stack([labels % 256, labels // 256, np.zeros_like(labels)], axis=-1).astype(np.uint8)


def write_mask(path, labels):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(to_rgb(labels), "RGB").save(path)


def write_pairs(folder, images, names=None):
    """Write (ground truth, prediction) label arrays under ``folder``/gt and /pred; return the names."""
    names = names or [f"n{i % 3:08d}/image_{i}.png" for i in range(len(images))]
    for name, (truth, prediction) in zip(names, images, strict=True):
        write_mask(folder / "gt" / name, truth)
        write_mask(folder / "pred" / name, prediction)
    return names


def blobs(rng, height, width, labels, ignore=0.3):
    """A mask of a few rectangles and discs of random labels on 0, some of them ignored."""
    mask = np.zeros((height, width), np.int64)
    y, x = np.mgrid[:height, :width]
    for _ in range(rng.integers(1, 5)):
        cy, cx, size = rng.integers(height), rng.integers(width), 1 + rng.integers(max(height, width))
        if rng.random() < 0.5:
            shape = (abs(y - cy) <= size / 2) & (abs(x - cx) <= size / 3)
        else:
            shape = (y - cy) ** 2 + (x - cx) ** 2 <= (size / 2) ** 2
        mask[shape] = 1000 if rng.random() < ignore else rng.choice(labels)
    return mask


def random_images(rng, count, classes, clusters, size=40, ignore=0.3):
    """(ground truth, prediction) label arrays of different sizes."""
    images = []
    for _ in range(count):
        height, width = rng.integers(1, size, 2)
        truth = blobs(rng, height, width, np.arange(classes + 1), ignore)
        images.append((truth, blobs(rng, height, width, np.arange(clusters + 1), 0)))
    return images


def table_of(images):
    """The library's contingency table of label arrays."""
    rows = [
        count_pair(
            label_runs(labels_to_rgb(truth)),
            label_runs(labels_to_rgb(prediction)),
            i,
            boundary_distance(*truth.shape),
        )
        for i, (truth, prediction) in enumerate(images)
    ]
    largest = [int(prediction.max()) for _, prediction in images]
    return make_table([f"n1/{i}.png" for i in range(len(images))], largest, rows)


def script(path, *arguments, **options):
    """Run one of the checkout's scripts as a process of its own."""
    command = [sys.executable, str(CHECKOUT / path), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False, **options)


def in_process(path, *arguments, cwd=None, env=None):
    """Run a script's ``main`` as ``script`` does, in this process: Python and its packages load once."""
    main = importlib.import_module(path.removesuffix(".py").replace("/", ".")).main
    command = [path, *map(str, arguments)]
    out, err = (io.TextIOWrapper(io.BytesIO(), "utf-8", "replace", write_through=True) for _ in range(2))
    before = Path.cwd()
    os.chdir(cwd or before)
    try:
        with (
            patch.object(sys, "argv", command),
            patch.dict(os.environ, env or {}),
            warnings.catch_warnings(),
            contextlib.redirect_stdout(out),
            contextlib.redirect_stderr(err),
        ):
            status = startup._status_of(main, resumes=False)
    finally:
        os.chdir(before)
    return subprocess.CompletedProcess(
        command, status, *(file.buffer.getvalue().decode() for file in (out, err))
    )
