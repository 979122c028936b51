#!/usr/bin/env python3
"""Write trivial predictions, of the sizes of existing ones, which a method should beat.

background       background only
random-clusters  the foregrounds of the existing predictions, with a random cluster for each image
random           a random box in each image, with a random cluster
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from command_line.startup import run
from command_line.arguments import add_mode_argument, parse, path_argument, whole_number

# isort: split
import numpy as np

from imagenets.common.whole_files import whole_folder
from imagenets.masks import decode_mask, encode_mask
from imagenets.scoring.pairs import find_pairs

KINDS = ("background", "random-clusters", "random")


def trivial_labels(kind: str, labels: np.ndarray, clusters: int, rng: np.random.Generator) -> np.ndarray:
    """Labels (H, W) uint16 of one of KINDS, for an image whose prediction is ``labels``, (H, W)."""
    foreground = np.zeros(labels.shape, bool)
    if kind == "random-clusters":
        foreground = labels > 0
    if kind == "random":
        top, bottom = np.sort(rng.choice(labels.shape[0] + 1, 2, replace=False))
        left, right = np.sort(rng.choice(labels.shape[1] + 1, 2, replace=False))
        foreground[top:bottom, left:right] = True
    result: np.ndarray = foreground * np.uint16(rng.integers(1, clusters + 1))
    return result


def main() -> None:
    """Write one prediction for each given one."""
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument(
        "--predict-dir",
        type=path_argument,
        required=True,
        help="existing predictions, <predict-dir>/<wnid>/<name>.png",
    )
    add_mode_argument(parser, "clusters, as many as classes")
    parser.add_argument("--kind", choices=KINDS, required=True, help="see above")
    parser.add_argument(
        "--output-dir", type=path_argument, required=True, help="a folder that does not exist yet"
    )
    parser.add_argument("--seed", type=whole_number(0, 2**32 - 1), default=0, help="random seed (default: 0)")
    arguments = parse(parser)
    output = arguments.output_dir
    names = find_pairs(arguments.predict_dir, arguments.predict_dir).names
    rng = np.random.default_rng(arguments.seed)
    with whole_folder(output) as folder:
        for name in names:
            given = decode_mask(arguments.predict_dir / name)
            encode_mask(trivial_labels(arguments.kind, given, arguments.mode.classes, rng), folder / name)
    print(f"{output}: {len(names)} predictions, {arguments.kind}")


if __name__ == "__main__":
    run(main)
