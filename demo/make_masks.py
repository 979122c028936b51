#!/usr/bin/env python3
"""Make a small seeded set of masks for mode 50, and predictions that find the objects under cluster ids."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
from PIL import Image

from command_line import run
from imagenets.classes import IGNORE, MODES
from imagenets.masks import labels_to_rgb


def draw(rng: np.random.Generator, label: int, cluster: int) -> tuple[np.ndarray, np.ndarray]:
    """Draw one object with an ignored rim (H, W), and a prediction that is off by a few pixels."""
    height, width = rng.integers(150, 400, 2)
    y, x = np.mgrid[:height, :width]
    centre_y, centre_x = height * rng.uniform(0.3, 0.7), width * rng.uniform(0.3, 0.7)
    radius_y, radius_x = height * rng.uniform(0.1, 0.5), width * rng.uniform(0.1, 0.5)
    distance = np.hypot((y - centre_y) / radius_y, (x - centre_x) / radius_x)
    truth = np.where(distance < 1, label, np.where(distance < 1.05, IGNORE, 0))
    shift = rng.uniform(-0.1, 0.1, 2)
    found = np.hypot((y - centre_y) / radius_y - shift[0], (x - centre_x) / radius_x - shift[1]) < 1
    return truth, np.where(found, cluster, 0)


def main() -> None:
    """Write OUTPUT/validation-segmentation and OUTPUT/predictions."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("output", type=Path)
    arguments = parser.parse_args()
    rng = np.random.default_rng(0)
    mode = MODES["50"]
    clusters = 1 + rng.permutation(mode.classes)
    for image in range(mode.validation):
        label = image % mode.classes + 1
        # One object in five goes to a wrong cluster.
        cluster = int(clusters[label - 1]) if rng.random() < 0.8 else int(rng.integers(1, mode.classes + 1))
        masks = draw(rng, label, cluster)
        for folder, mask in zip(("validation-segmentation", "predictions"), masks, strict=True):
            path = arguments.output / folder / f"class{label:02d}" / f"{image:03d}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(labels_to_rgb(mask)).save(path)


if __name__ == "__main__":
    run(main)
