"""Warnings about scores that are probably not what the user meant, from the contingency table.

Scores are always computed as defined; a warning says why one may not be what was meant. Two folders that are
clearly swapped are refused.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from imagenets.classes import BACKGROUND, IGNORE
from imagenets.common.errors import InputError
from imagenets.scoring.contingency import ContingencyTable
from imagenets.scoring.metrics import count_areas, mean, predicted_classes

_BYTE = 255  # the largest 8-bit label, which other tools use for ignored pixels
_MANY = 20  # with as many images, it is not chance that none has a label
_FAR_MORE = 5  # times
_WORTH_A_LINE = 5.0  # percentage points of mIoU
_SHARE = 0.02  # of all pixels that count


def doubts(table: ContingencyTable, classes: int, matching: np.ndarray | None) -> list[str]:
    """List what makes the scores of these masks doubtful; ``matching`` is that of ``metrics.evaluate``."""
    found = prediction_doubts(table, classes, matching)
    absent = absent_classes(table, classes)
    if not absent:
        return found
    predicted = predicted_classes(table, matching)
    region, boundary = (
        count_areas(table, predicted, classes, boundary).mean_iou_of_labelled() for boundary in (False, True)
    )
    return [f"{absent}; over the labels that occur they are {region:.2f} and {boundary:.2f}", *found]


def prediction_doubts(table: ContingencyTable, classes: int, matching: np.ndarray | None) -> list[str]:
    """List the doubts that concern the predictions."""
    found = [
        cut_to_8_bits(table, classes if matching is None else matching.size - 1),
        painted_255(table, matching),
        shifted_labels(table, classes) if matching is None else None,
    ]
    return [sentence for sentence in found if sentence]


def absent_classes(table: ContingencyTable, classes: int) -> str | None:
    """Say how many classes occur in no ground truth: each has IoU 0 in mIoU, whatever was predicted."""
    present = np.unique(table.ground_truth)
    absent = classes - int((present > BACKGROUND).sum())
    if not absent:
        return None
    verb = "does" if absent == 1 else "do"
    return f"{absent} of {classes} classes {verb} not occur in these images and count as 0 in mIoU and mBIoU"


def cut_to_8_bits(table: ContingencyTable, largest: int) -> str | None:
    """Say that predictions look cut to 8 bits: none has a label above 255, but many ground truths have.

    ``largest`` is the largest label that a prediction may have.
    """
    if largest <= _BYTE or table.largest_prediction.max(initial=0) > _BYTE:
        return None
    above = np.unique(table.image[table.ground_truth > _BYTE]).size
    if above < _MANY:
        return None
    return (
        f"no prediction has a label above {_BYTE}, but {above} of the {len(table.names)} ground truths do: "
        "were labels cut to 8 bits (uint8)? A mask stores the higher bits in its green channel"
    )


def painted_255(table: ContingencyTable, matching: np.ndarray | None) -> str | None:
    """Say that 255 covers far more of the predictions than its class does of the ground truth."""
    predicted = int(table.pixels[table.prediction == _BYTE].sum())
    label = _BYTE if matching is None else int(matching[_BYTE]) if matching.size > _BYTE else BACKGROUND
    if label == BACKGROUND:
        return None
    labelled = int(table.pixels[table.ground_truth == label].sum())
    whole = max(int(table.pixels.sum()), 1)
    if predicted < _SHARE * whole or predicted < _FAR_MORE * labelled:
        return None
    return (
        f"label 255 covers {100 * predicted / whole:.1f} % of the predictions' pixels, and class {label} "
        f"{100 * labelled / whole:.1f} % of the ground truth's: in other tools 255 means ignored or "
        "background (0 - 1 in 8 bits); here it is a label like any other, and background is 0"
    )


def shifted_labels(table: ContingencyTable, classes: int) -> str | None:
    """Say that labels shifted by one would score far better: classes stored as 0..N - 1, or as 2..N + 1."""
    labels = predicted_classes(table, None)
    up = np.minimum(labels + 1, classes)
    shifts = {
        "each label + 1": up,
        "each label + 1 but background": np.where(labels == BACKGROUND, BACKGROUND, up),
        "each label - 1": np.maximum(labels - 1, BACKGROUND),
    }
    own, *scores = (
        mean(count_areas(table, shifted, classes).iou()) for shifted in (labels, *shifts.values())
    )
    best, name = max(zip(scores, shifts, strict=True), key=lambda pair: pair[0])
    if best < own + _WORTH_A_LINE or best < 2 * own:
        return None
    return (
        f"shifted by one ({name}) the mIoU would be {best:.2f}, not {own:.2f}: classes are "
        f"1..{classes}, and 0 is background"
    )


def cause_of_labels(outside: np.ndarray, used: np.ndarray, classes: int) -> str | None:
    """Name the likely cause of predicted labels out of range; None if unknown.

    ``outside`` are those out of range, ``used`` all that the predictions use.
    """
    only = set(np.unique(outside).tolist())
    if only == {_BYTE}:
        return (
            "only 255, which other tools use for ignored pixels; a prediction cannot ignore pixels: give "
            "such pixels a class, or 0"
        )
    if only == {classes + 1}:
        return (
            f"only {classes + 1}, N + 1: are the labels shifted by one, or has the network an extra output? "
            f"Classes are 1..{classes}, and 0 is background"
        )
    foreground = used[used > BACKGROUND]
    if foreground.size and not (foreground % 256).any():
        return (
            "all labels are multiples of 256: they are in the green channel, not the red one; "
            "label = R + 256 G"
        )
    return None


def refuse_swapped_folders(
    table: ContingencyTable, ids: Sequence[int], gt_dir: Path, predict_dir: Path
) -> None:
    """Raise InputError if the predictions hold the class of their folder nearly everywhere, and the
    ground truth does not: the two folders are swapped.

    ``ids`` are the class ids of the images' folders, 0 if one is no class.
    """
    known = np.asarray(ids)
    number = int((known > BACKGROUND).sum())
    if number < _MANY // 2:
        return
    of_rows = known[table.image]
    shares = [
        np.unique(table.image[(side == of_rows) & (of_rows > BACKGROUND)]).size / number
        for side in (table.ground_truth, table.prediction)
    ]
    if shares[0] < 0.5 and shares[1] > 0.9:
        raise InputError(
            f"{gt_dir}: the ground truth shows the class of its folder in {100 * shares[0]:.0f} % of the "
            f"images, the predictions in {predict_dir} in {100 * shares[1]:.0f} %: the folders are swapped"
        )


def ground_truth_cause(outside: np.ndarray) -> str:
    """Name the likely cause of ground-truth labels that are not classes."""
    if set(np.unique(outside).tolist()) == {_BYTE}:
        return f"is 255 for ignored pixels? Here that is {IGNORE}, (232, 3, 0) as colours"
    return "is this the ground truth of another mode?"
