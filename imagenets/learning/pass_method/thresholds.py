"""Which attention is foreground: all thresholds scored on validation in one pass; docs/pass.md."""

from __future__ import annotations

import numpy as np
import torch

from imagenets.classes import IGNORE
from imagenets.learning.engine.threshold_sweep import Sweep
from imagenets.scoring.contingency import ContingencyTable
from imagenets.scoring.matching import find_matching, shared_with_class
from imagenets.scoring.metrics import count_areas, mean

THRESHOLDS = tuple(step / 100 for step in range(81))  # 0.00, 0.01, …, 0.80


def count_steps(mask: np.ndarray, clusters: torch.Tensor, attention: torch.Tensor) -> torch.Tensor:
    """Count the pixels of one image by ground truth, cluster and step of attention: rows (R, 4) int64.

    ``mask`` (H, W) integers is the ground truth; ``clusters`` (H, W) integers and ``attention`` (H, W)
    float32 are on one device. The step is the number of ``THRESHOLDS``, as float32, that the attention
    reaches. Columns: ground truth, cluster, step, pixels. Pixels to be ignored (1000) are left out.
    """
    device = attention.device
    levels = torch.tensor(THRESHOLDS, dtype=torch.float32, device=device)
    steps = torch.bucketize(attention, levels, right=True).flatten()
    truth = torch.from_numpy(mask.astype(np.int32)).to(device).flatten()
    truths, truth_places = torch.unique(truth, return_inverse=True)
    found, cluster_places = torch.unique(clusters.flatten(), return_inverse=True)
    choices = len(THRESHOLDS) + 1
    keys = (truth_places * len(found) + cluster_places) * choices + steps
    pixels = torch.bincount(keys, minlength=len(truths) * len(found) * choices)
    kept = torch.nonzero(pixels)[:, 0]
    pairs = kept // choices
    columns = (truths[pairs // len(found)], found[pairs % len(found)], kept % choices, pixels[kept])
    rows = torch.stack([column.long() for column in columns], 1)
    return rows[rows[:, 0] != IGNORE]


def sweep(image: np.ndarray, rows: np.ndarray, images: int, classes: int, clusters: int) -> Sweep:
    """Score all thresholds from the rows of all images, with a matching of its own for each.

    ``image`` (R,) is the image 0..``images`` - 1 of each row, ``rows`` (R, 4) those of ``count_steps``,
    ``classes`` N and ``clusters`` K. Equal to writing label maps for each threshold (0 where the attention
    is below it) and calling match.py and evaluator.py.
    """
    truth, cluster, step, pixels = rows.T
    nowhere = np.zeros(len(rows), bool)
    miou, matched = [], []
    for index in range(len(THRESHOLDS)):
        prediction = np.where(step > index, cluster, 0).astype(np.uint16)
        table = ContingencyTable(
            names=tuple(map(str, range(images))),
            largest_prediction=np.zeros(images, np.int32),
            image=image.astype(np.int32),
            ground_truth=truth.astype(np.uint16),
            prediction=prediction,
            on_gt_boundary=nowhere,
            on_prediction_boundary=nowhere,
            pixels=pixels,
        )
        matching = find_matching(table, "image", classes, clusters)
        areas = count_areas(table, matching.classes[prediction], classes)
        miou.append(mean(areas.iou()))
        matched.append(int(shared_with_class(table, matching, classes).images.sum()))
    return Sweep(THRESHOLDS, miou, matched)
