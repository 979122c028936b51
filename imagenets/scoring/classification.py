"""Accuracy of a classifier on an ImageNet-S split: the mean over classes, as Alpha-CLIP reports it.

Every image counts as the class of its folder in the prepared set, which is not always ImageNet's own.
Formulas: docs/regions.md, Scores.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from imagenets.class_ids import imagenet_to_class, logit_indices, logits_to_mode, mode_wnids
from imagenets.classes import IMAGENET_CLASSES, Mode
from imagenets.common.errors import InputError, listed
from imagenets.common.folders import files_by_class
from imagenets.lists import mapping_at_hand
from imagenets.scoring.bootstrap import Bootstrap, Interval, drawn_images, percentile_intervals
from imagenets.scoring.classifier_files import Outputs, place_of

INDICES = ("imagenet", "mode")
AMONG = ("mode", "all")
_BEYOND = np.iinfo(np.int64).max  # rank of a class that the outputs do not rank


@dataclass(frozen=True)
class Classified:
    """Predictions of a classifier for n images, sorted by ``<wnid>/<stem>``.

    ``class_id`` (n,) is the truth, 1..N. ``rank`` (n,) int64 is the number of classes before it, 0 if it
    is first. ``predicted`` (n,) is the first class, 0 for one outside the mode. ``margin`` (n,) is the
    truth's logit minus the largest other one, nan for indices. ``tied`` (n,) bool: another class has the same
    logit as the truth, so that the order of classes decides. ``depth`` is the number of ranks known.
    """

    names: tuple[str, ...]
    class_id: np.ndarray
    rank: np.ndarray
    predicted: np.ndarray
    margin: np.ndarray
    tied: np.ndarray
    depth: int

    def chosen(self, names: Sequence[str]) -> Classified:
        """Keep some images, in the order of ``names``."""
        place = {name: i for i, name in enumerate(self.names)}
        keep = np.array([place[name] for name in names], np.int64)
        columns = ("class_id", "rank", "predicted", "margin", "tied")
        return replace(self, names=tuple(names), **{name: getattr(self, name)[keep] for name in columns})


@dataclass(frozen=True)
class ClassScores:
    """Accuracy in percent: ``scores`` by name, and of each class, (N,), nan if no image is of it.

    ``top1`` and so on are means over the classes that occur, ``top1_images`` means over images. ``by_class``
    has an array for each top-k; ``images`` (N,) counts the images of each class.
    """

    scores: dict[str, float]
    by_class: dict[str, np.ndarray]
    images: np.ndarray


def true_classes(
    outputs: Outputs, mode: Mode, gt_dir: Path | None = None, partial: bool = False
) -> dict[str, tuple[int, int]]:
    """Find the row and the class id of each image, by ``<wnid>/<stem>``.

    The images are those of ``gt_dir``, <gt-dir>/<wnid>/<name>.png, if given; outputs of others are ignored.
    Otherwise they are those of ``outputs``, whose names must then contain the folder, or be on the list of
    the validation split. Names without folder are found by their stem. Raises InputError for images of
    ``gt_dir`` without outputs, unless ``partial``, and for images in folders that are not classes, or not in
    their folder of the prepared set.
    """
    ids = {wnid: class_id for class_id, wnid in enumerate(mode_wnids(mode), start=1)}
    rows = {place_of(name): row for row, name in enumerate(outputs.names)}
    if gt_dir is not None:
        known = [place.removesuffix(".png") for place in files_by_class(gt_dir, lambda n: n.endswith(".png"))]
        if not known:
            raise InputError(f"{gt_dir}: no masks there; ground truth lies in <gt-dir>/<wnid>/<name>.png")
    else:
        rows_of_list = None if mode.own else mapping_at_hand(mode.name, "validation", ids)
        known = [place_of(image.target) for image in rows_of_list or []]
    of_stem = {place.partition("/")[2]: place for place in known}
    found: dict[str, int] = {}
    misplaced = []
    for place, row in rows.items():
        folder, _, stem = place.rpartition("/")
        right = of_stem.get(stem)
        if right is not None and folder not in ("", right.partition("/")[0]):
            misplaced.append(f"{place}: in {right.partition('/')[0]} here")
        elif right is not None or (gt_dir is None and folder):
            found[right or place] = row
        elif gt_dir is None:
            misplaced.append(f"{place}: in no folder")
    if misplaced:
        raise InputError(
            f"{outputs.path}: {len(misplaced)} images are named by another folder than ImageNet-S "
            "has them in (ImageNet's own? annotators corrected many classes); name them as in the "
            f"prepared set, or only by their stem:\n{listed(misplaced)}",
            misplaced,
        )
    _refuse_lacking(outputs.path, found, [] if gt_dir is None or partial else known, ids)
    return {place: (found[place], ids[place.partition("/")[0]]) for place in sorted(found)}


def _refuse_lacking(
    path: Path, found: Mapping[str, int], known: Sequence[str], ids: Mapping[str, int]
) -> None:
    lacking = [place for place in known if place not in found]
    if lacking:
        raise InputError(f"{path}: nothing for {len(lacking)} images:\n{listed(lacking)}", lacking)
    strangers = sorted({place.partition("/")[0] for place in found} - set(ids))
    if strangers:
        raise InputError(f"{path}: {len(strangers)} folders are not classes:\n{listed(strangers)}", strangers)
    if not found:
        raise InputError(f"{path}: no image of the set")


def classify(
    outputs: Outputs,
    images: Mapping[str, tuple[int, int]],
    mode: Mode,
    indices: str | None = None,
    among: str = "mode",
) -> Classified:
    """Rank the classes of each image; ``images`` are those of ``true_classes``.

    Logits (n, N) are of classes 1..N. Of logits (n, 1000), an ImageNet classifier's, those of the mode's
    classes count (``among="mode"``), or all (``among="all"``: a class outside the mode is wrong); merged
    classes are combined by log-sum-exp. Of equal logits the first class comes first. Indices are ImageNet's
    0..999 (``indices="imagenet"``) or class ids 1..N (``"mode"``). Raises InputError for another number of
    classes, or indices out of range.
    """
    rows = np.array([row for row, _ in images.values()], np.int64)
    truth = np.array([class_id for _, class_id in images.values()], np.int64)
    values = outputs.values[rows]
    if not outputs.are_logits:
        given = _class_indices(outputs.path, values, mode, indices)
        return _of_indices(tuple(images), given, truth)
    logits = _mode_logits(outputs.path, values, mode, among)
    own = logits[np.arange(len(truth)), truth - 1][:, None]
    ties = logits == own
    earlier = np.arange(logits.shape[1]) < (truth - 1)[:, None]
    rank = ((logits > own) | (ties & earlier)).sum(axis=1)
    others = logits.copy()
    others[np.arange(len(truth)), truth - 1] = -np.inf
    first = logits.argmax(axis=1) + 1
    return Classified(
        names=tuple(images),
        class_id=truth,
        rank=rank.astype(np.int64),
        predicted=np.where(first <= mode.classes, first, 0),
        margin=own[:, 0] - others.max(axis=1),
        tied=ties.sum(axis=1) > 1,
        depth=logits.shape[1],
    )


def _mode_logits(path: Path, values: np.ndarray, mode: Mode, among: str) -> np.ndarray:
    """Logits (n, N), or (n, N + others) if all classes of ImageNet count."""
    if values.shape[1] == mode.classes:
        return values
    if values.shape[1] != IMAGENET_CLASSES:
        raise InputError(
            f"{path}: {values.shape[1]} logits for each image; give {mode.classes}, of classes 1 to "
            f"{mode.classes} without background, or {IMAGENET_CLASSES}, of an ImageNet classifier"
        )
    chosen = logits_to_mode(values, mode)
    if among == "mode":
        return chosen
    own, _, merged = logit_indices(mode)
    return np.concatenate([chosen, np.delete(values, np.concatenate([own, merged]), axis=1)], axis=1)


def _class_indices(path: Path, values: np.ndarray, mode: Mode, indices: str | None) -> np.ndarray:
    if indices is None:
        raise InputError(
            f"{path}: integers, but of which list? Choose indices imagenet, for ImageNet's 0..999, or "
            f"indices mode, for class ids 1..{mode.classes}"
        )
    low, high = (0, IMAGENET_CLASSES - 1) if indices == "imagenet" else (1, mode.classes)
    if values.min() < low or values.max() > high:
        raise InputError(f"{path}: indices {values.min()}..{values.max()} are not within {low}..{high}")
    return imagenet_to_class(mode)[values] if indices == "imagenet" else values


def _of_indices(names: tuple[str, ...], given: np.ndarray, truth: np.ndarray) -> Classified:
    right = given == truth[:, None]
    rank = np.where(right.any(axis=1), right.argmax(axis=1), _BEYOND)
    nothing = np.full(len(truth), math.nan)
    return Classified(names, truth, rank, given[:, 0], nothing, np.zeros(len(truth), bool), given.shape[1])


@dataclass(frozen=True)
class Difference:
    """Scores of A and B on the same images, A − B in percentage points, and its paired 95% interval."""

    a: dict[str, float]
    b: dict[str, float]
    differences: dict[str, float]
    intervals: dict[str, Interval]


def score_classes(classified: Classified, classes: int, topk: Sequence[int]) -> ClassScores:
    """Score a classifier: for each k, the share of images whose class is among its first k.

    Raises InputError for a k beyond the classes that the outputs rank.
    """
    if max(topk) > classified.depth:
        raise InputError(f"top-{max(topk)} asked, but outputs rank {classified.depth} classes of each image")
    images = np.bincount(classified.class_id - 1, minlength=classes)
    scores, by_class = {}, {}
    for k in topk:
        hits = np.bincount(classified.class_id - 1, classified.rank < k, classes)
        of_class = np.where(images > 0, 100 * hits / np.maximum(images, 1), math.nan)
        by_class[f"top{k}"] = of_class
        there = of_class[images > 0]
        scores[f"top{k}"] = math.fsum(there) / len(there)
    for k in topk:
        scores[f"top{k}_images"] = 100 * float((classified.rank < k).mean())
    return ClassScores(scores, by_class, images)


def resampled_scores(
    classified: Classified, classes: int, topk: Sequence[int], resamples: int, seed: int
) -> dict[str, np.ndarray]:
    """Score each resample of the images, (resamples,) percent by the names of ``score_classes``.

    Equal numbers of images and equal seeds draw equal images, so differences of two runs are paired.
    """
    truth = classified.class_id - 1
    right = {k: (classified.rank < k).astype(np.float64) for k in topk}
    scores: dict[str, list[float]] = {f"top{k}{suffix}": [] for suffix in ("", "_images") for k in topk}
    for drawn in drawn_images(len(truth), resamples, seed):
        times = np.bincount(drawn, minlength=len(truth)).astype(np.float64)
        images = np.bincount(truth, times, classes)
        occur = images > 0
        for k in topk:
            hits = np.bincount(truth, times * right[k], classes)
            scores[f"top{k}"].append(100 * float((hits[occur] / images[occur]).mean()))
            scores[f"top{k}_images"].append(100 * float(hits.sum() / images.sum()))
    return {name: np.array(values) for name, values in scores.items()}


def class_intervals(
    classified: Classified, classes: int, topk: Sequence[int], resamples: int, seed: int
) -> Bootstrap:
    """Find the 95% interval of every score by resampling the images (``scoring.bootstrap``)."""
    drawn = resampled_scores(classified, classes, topk, resamples, seed)
    return Bootstrap(resamples, seed, percentile_intervals(drawn))


def difference(
    a: Classified, b: Classified, classes: int, topk: Sequence[int], resamples: int, seed: int
) -> Difference:
    """Compare two runs on the images that both have. Raises InputError when there is none."""
    names = shared_names([a, b])
    sides = [side.chosen(names) for side in (a, b)]
    scored = [score_classes(side, classes, topk).scores for side in sides]
    drawn = [resampled_scores(side, classes, topk, resamples, seed) for side in sides]
    return Difference(
        a=scored[0],
        b=scored[1],
        differences={name: scored[0][name] - scored[1][name] for name in scored[0]},
        intervals=percentile_intervals({name: drawn[0][name] - drawn[1][name] for name in drawn[0]}),
    )


def shared_names(runs: Sequence[Classified]) -> list[str]:
    """List the images that all runs have, sorted. Raises InputError when there is none."""
    shared = set(runs[0].names).intersection(*(run.names for run in runs[1:]))
    if not shared:
        raise InputError("the files have no image in common")
    return sorted(shared)
