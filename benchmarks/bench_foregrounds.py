#!/usr/bin/env python3
"""Measure choices of foregrounds on pictures with masks: IoU per picture, mean ± standard error.

Guesses are hand-made (an ellipse, rare colours, both) or, with --backbone, from the last map of a network.
Each is scored as it is, after GrabCut, after the bilateral solver, and after the solver followed by GrabCut,
at the picture's own size, without ignored pixels. "border": pictures whose object comes within 1 % of the
border. The last column has paired differences to --against. --masks holds a <name>.png for each picture
<name>, as in ImageNet-S: 0 is background, 1000 is ignored.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from command_line.startup import run
from command_line.arguments import path_argument, whole_number

# isort: split
import cv2
import numpy as np
import torch
from torch.nn.functional import normalize

from command_line.networks import add_running, add_size, running_of
from imagenets.classes import IGNORE
from imagenets.common.errors import InputError
from imagenets.learning.engine.inference import Batch, visit
from imagenets.learning.engine.label_files import enlarged
from imagenets.learning.images import Images, Reading, images_below
from imagenets.learning.kmeans.clusters import above_threshold, rgb_pictures
from imagenets.learning.kmeans.foregrounds import (
    border_distance,
    centre_weight,
    grab_cut,
    rare_colours,
    smoothed,
    smoothed_and_cut,
)
from imagenets.learning.networks.backbones import Backbone, make_backbone
from imagenets.learning.networks.checkpoints import load_backbone
from imagenets.learning.processes import started

NEAR = 0.01  # of a side: an object that comes so near the border counts as touching it
REFINED: dict[str, Callable[[np.ndarray, np.ndarray], np.ndarray]] = {
    "": lambda image, guess: guess,
    " + GrabCut": grab_cut,
    " + solver": smoothed,
    " + both": smoothed_and_cut,
}


def parse_arguments() -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, allow_abbrev=False, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--images", type=path_argument, required=True, metavar="DIR", help="pictures")
    parser.add_argument("--masks", type=path_argument, required=True, metavar="DIR", help="their masks")
    parser.add_argument("--backbone", metavar="NAME", help="also in the last map of this network")
    parser.add_argument("--checkpoint", type=path_argument, metavar="FILE", help="its weights")
    add_size(parser)
    parser.add_argument(
        "--every", type=whole_number(1, 10**6), default=1, metavar="N", help="only every N-th picture"
    )
    parser.add_argument(
        "--guesses", nargs="+", metavar="GUESS", help="only these guesses, by their printed names"
    )
    parser.add_argument(
        "--against", metavar="CHOICE", help="the choice that the others are compared with (default: the best)"
    )
    add_running(parser)
    arguments = parser.parse_args()
    if (arguments.backbone is None) != (arguments.checkpoint is None):
        parser.error("--backbone and --checkpoint go together: no weights are downloaded")
    if arguments.backbone is None and arguments.size is not None:
        parser.error("--size is that of a --backbone's pictures")
    return arguments


def by_hand_guesses(image: np.ndarray) -> dict[str, np.ndarray]:
    """Guesses (H, W) bool of ``image`` (H, W, 3) uint8 RGB, by name."""
    weight = centre_weight(*image.shape[:2])
    return {
        "ellipse": weight >= np.exp(-0.5),
        "rare colours": rare_colours(image, np.ones_like(weight)),
        "rare colours x centre": rare_colours(image, weight),
    }


def network_guesses(maps: torch.Tensor, size: torch.Size) -> dict[str, torch.Tensor]:
    """Guesses (B, H, W) bool in maps (B, C, h, w), by name."""
    centre = torch.from_numpy(centre_weight(*maps.shape[2:])).to(maps.device)
    distance, length = border_distance(maps), maps.norm(dim=1)
    saliences = {
        "distance": distance,
        "distance x centre": distance * centre,
        "distance from the nearer half of the border x centre": nearer_border_distance(maps) * centre,
        "length": length,
        "length x centre": length * centre,
        "length x distance x centre": length * distance * centre,
        "first component": first_component(maps),
    }
    return {name: above_threshold(of_maps, size) for name, of_maps in saliences.items()}


def nearer_border_distance(maps: torch.Tensor) -> torch.Tensor:
    """``border_distance`` from the half of the ring nearest to its mean: objects may enter by the other."""
    unit = normalize(maps, dim=1)
    ring = torch.ones(maps.shape[2:], dtype=torch.bool, device=maps.device)
    ring[1:-1, 1:-1] = False
    places = unit[:, :, ring]
    cosines = torch.einsum("bcp,bc->bp", places, normalize(places.mean(dim=2)))
    nearer = cosines >= cosines.median(dim=1, keepdim=True).values
    return 1 - torch.einsum("bchw,bc->bhw", unit, normalize((places * nearer[:, None]).sum(dim=2)))


def first_component(maps: torch.Tensor) -> torch.Tensor:
    """Project each map's vectors on their first principal component, the border negative: (B, h, w)."""
    vectors = maps.flatten(2).transpose(1, 2)
    vectors = vectors - vectors.mean(dim=1, keepdim=True)
    _, directions = torch.linalg.eigh(vectors @ vectors.transpose(1, 2))
    found = directions[:, :, -1].reshape(len(maps), *maps.shape[2:])
    ring = torch.ones(maps.shape[2:], dtype=torch.bool, device=maps.device)
    ring[1:-1, 1:-1] = False
    signed: torch.Tensor = found * torch.where(found[:, ring].mean(dim=1) > 0, -1, 1)[:, None, None]
    return signed


def choices(
    reading: Reading, backbone: Backbone | None, wanted: Sequence[str] | None, batch: Batch
) -> list[dict[str, torch.Tensor]]:
    """Foregrounds of each picture of a batch, (H, W) bool at the picture's size, by name.

    ``wanted`` names the guesses, None: all.
    """
    images = rgb_pictures(batch.pictures, reading.mean, reading.std)
    guesses = [by_hand_guesses(image) for image in images]
    if backbone is not None:
        found = network_guesses(backbone(batch.pictures).float(), batch.pictures.shape[2:])
        guesses = [
            {**of_one, **{name: inside[i].cpu().numpy() for name, inside in found.items()}}
            for i, of_one in enumerate(guesses)
        ]
    return [
        {
            name + how: torch.from_numpy(refine(image, guess))
            for name, guess in of_one.items()
            if wanted is None or name in wanted
            for how, refine in REFINED.items()
        }
        for image, of_one in zip(images, guesses, strict=True)
    ]


def iou(found: np.ndarray, mask: np.ndarray) -> float:
    """IoU in percent of a foreground (h, w) bool and a mask's objects (H, W), at the mask's size."""
    valid, truth = mask != IGNORE, (mask > 0) & (mask != IGNORE)
    inside = enlarged(found, *mask.shape) & valid
    return float(100 * (inside & truth).sum() / max(1, (inside | truth).sum()))


def touches_border(mask: np.ndarray) -> bool:
    """Say whether an object of the mask (H, W) comes within NEAR of the border."""
    rows, columns = (max(1, round(NEAR * side)) for side in mask.shape)
    inner = np.zeros(mask.shape, bool)
    inner[rows:-rows, columns:-columns] = True
    return bool(((mask > 0) & (mask != IGNORE) & ~inner).any())


def table(scores: dict[str, np.ndarray], border: np.ndarray, against: str) -> Iterator[str]:
    """Lines with the means of each choice, and its paired difference from ``against``."""
    width = max(map(len, scores))
    yield f"{'IoU':{width}}  {'all':>12}  {'border':>7}  {'others':>7}  {'minus ' + against:>12}"
    for name, values in scores.items():
        difference = values - scores[against]
        cells = [f"{mean_and_error(values):>12}"]
        cells += [f"{values[rows].mean() if rows.any() else np.nan:7.1f}" for rows in (border, ~border)]
        yield f"{name:{width}}  {'  '.join(cells)}  {mean_and_error(difference):>12}"


def mean_and_error(values: np.ndarray) -> str:
    """Format a mean with its standard error."""
    return f"{values.mean():.1f} ± {values.std(ddof=1) / np.sqrt(len(values)):.1f}"


def main() -> None:
    """Score all choices on all pictures, print."""
    arguments = parse_arguments()
    cv2.setNumThreads(1)
    found = images_below(arguments.images, arguments.masks)
    images = Images(found.folder, found.names[:: arguments.every], arguments.masks)
    scores: dict[str, list[float]] = {}
    border: list[bool] = []
    with started(arguments.device) as processes:
        backbone = None
        reading = Reading((0, 0, 0), (1, 1, 1))
        if arguments.backbone is not None:
            backbone = make_backbone(arguments.backbone)
            print(load_backbone(backbone, arguments.checkpoint))
            backbone.to(processes.device)
            reading = backbone.reading(arguments.size)
        step = partial(choices, reading, backbone, arguments.guesses)
        running = running_of(arguments, processes)
        for batch, of_pictures in visit(images, step, reading, running, with_masks=True):
            for mask, of_one in zip(batch.masks, of_pictures, strict=True):
                border.append(touches_border(mask))
                for name, inside in of_one.items():
                    scores.setdefault(name, []).append(iou(inside.numpy(), mask))
    if not scores:
        raise InputError(f"--guesses {' '.join(arguments.guesses)}: none of them is a guess")
    values = {name: np.array(of_choice) for name, of_choice in scores.items()}
    against = arguments.against or max(values, key=lambda name: values[name].mean())
    print(f"{len(border)} pictures, {sum(border)} with an object at the border; {images.folder}")
    print("\n".join(table(values, np.array(border), against)))


if __name__ == "__main__":
    run(main)
