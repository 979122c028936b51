"""How well attribution maps find the object of an image's own class.

Every score is taken per image and averaged over images. In an image, ``values`` (P,) are the map's values
at the pixels that count, floating point, finite, in row-major order, and ``inside`` (P,) bool tells which of
them are the target class's; void pixels (label 1000) are left out before anything else is done.
"""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from imagenets.common.errors import InputError, refuse
from imagenets.common.progress import Show, no_bar
from imagenets.common.workers import process_map
from imagenets.masks import decode_mask, target_mask
from imagenets.scoring.attribution_maps import MapFile, find_maps, fitted_map, load_map
from imagenets.scoring.bootstrap import Bootstrap, drawn_images, percentile_intervals
from imagenets.scoring.pairs import Pairs

# Exactly the floating-point numbers nearest to 0.05, 0.10, … 0.95.
IOU_THRESHOLDS = np.arange(1, 20) / 20


class Scores(NamedTuple):
    """Scores of one image, 0..1; ``iou`` (19,) at IOU_THRESHOLDS; ``auc`` nan where there is no outside."""

    pointing_game: float
    energy: float
    iou: np.ndarray
    auc: float


@dataclass(frozen=True)
class Localization:
    """Scores of a set of maps, in percent, nan where no image has one.

    All are means over the images whose target is there; ``auc`` over those that have pixels outside it too.
    ``iou`` (19,) is the mean IoU at each of IOU_THRESHOLDS, ``iou_best`` the largest of these: one threshold
    for all images. ``images`` counts all images, ``target_absent`` those without their target, ``no_outside``
    those that the target fills. ``by_image`` has the scores of each of ``names``, None without its target;
    ``resized`` counts the maps that were brought to their image's size.
    """

    pointing_game: float
    energy: float
    iou: np.ndarray
    iou_best: float
    auc: float
    images: int
    target_absent: int
    no_outside: int
    names: tuple[str, ...]
    by_image: list[Scores | None]
    resized: int = 0


def pointing_game(values: np.ndarray, near: np.ndarray) -> bool:
    """Is the first largest value where ``near`` (P,) bool is set, in the target or close enough to it?

    Pointing game: Zhang et al., Top-down Neural Attention by Excitation Backprop, ECCV 2016.
    """
    return bool(near[values.argmax()])


def energy(values: np.ndarray, inside: np.ndarray) -> float:
    """Share of the sum of positive values that lies inside the target, 0..1; 0 where none is positive.

    Energy-based pointing game: Wang et al., Score-CAM, CVPR Workshops 2020.
    """
    positive = np.maximum(values, 0, dtype=np.float64)
    largest = positive.max()
    if largest == 0:
        return 0.0
    positive /= largest  # so that no sum overflows
    return float(positive[inside].sum() / positive.sum())


def iou_at_thresholds(values: np.ndarray, inside: np.ndarray) -> np.ndarray:
    """IoU of the target and the map cut at IOU_THRESHOLDS, (19,) float64, 0..1.

    The map is scaled to 0..1 by its own minimum and maximum; what is at least the threshold is the
    prediction. A constant map is all 0, and so predicts nothing.

    Cut at every threshold alike: Choe et al., Evaluating Weakly Supervised Object Localization Methods
    Right, CVPR 2020, here with masks in place of boxes.
    """
    halved = values.astype(np.float64) / 2  # exact, and no difference of huge values overflows
    low, high = halved.min(), halved.max()
    scaled = np.zeros(values.size) if low == high else (halved - low) / (high - low)
    # For each threshold, how many pixels reach it: those that reach it and no more, and all that reach more.
    reached = np.searchsorted(IOU_THRESHOLDS, scaled, side="right")
    size = IOU_THRESHOLDS.size + 1
    predicted = np.bincount(reached, minlength=size)[:0:-1].cumsum()[::-1]
    both = np.bincount(reached[inside], minlength=size)[:0:-1].cumsum()[::-1]
    union = predicted + np.count_nonzero(inside) - both
    result: np.ndarray = both / np.maximum(union, 1)
    return result


def roc_auc(values: np.ndarray, inside: np.ndarray) -> float:
    """Area under the pixel ROC curve, 0..1; nan where all pixels or none are inside.

    It is the probability that a pixel inside has a larger value than one outside, a tie counting half
    (Mann and Whitney, 1947), and so exact. Fawcett, An Introduction to ROC Analysis, Pattern Recognition
    Letters 2006.
    """
    positives, negatives = np.sort(values[inside]), np.sort(values[~inside])
    if not (positives.size and negatives.size):
        return math.nan
    below = np.searchsorted(negatives, positives, side="left").sum()
    not_above = np.searchsorted(negatives, positives, side="right").sum()
    return int(below + not_above) / (2 * positives.size * negatives.size)


def score_map(
    attribution: np.ndarray, labels: np.ndarray, class_id: int, tolerance: float = 0
) -> Scores | None:
    """Score one attribution map (H, W) against its mask's labels (H, W); None if the target is absent.

    ``tolerance`` is the distance in pixels, from centre to centre, at which the pointing game still counts a
    hit: 0 for inside the target alone; Zhang et al. take 15.

    Raises ValueError for a map that is neither floating point nor uint8, not of the mask's shape, or not
    finite.
    """
    problem = map_problem(attribution, labels.shape)
    if problem:
        raise ValueError(problem)
    target, void = target_mask(labels, class_id)
    counted = ~void
    inside = target[counted]
    if not inside.any():
        return None
    values = attribution[counted]
    near = _within(target, values, counted, tolerance) if tolerance else inside
    return Scores(
        float(pointing_game(values, near)),
        energy(values, inside),
        iou_at_thresholds(values, inside),
        roc_auc(values, inside),
    )


def map_problem(attribution: np.ndarray, shape: tuple[int, ...]) -> str | None:
    """Say why an array is no attribution map for a mask of this shape; None if it is one."""
    if attribution.dtype.kind != "f" and attribution.dtype != np.uint8:
        return f"of type {attribution.dtype}; save floating point values, or uint8"
    if attribution.shape != shape:
        cure = "is it transposed?" if attribution.shape == shape[::-1] else "--resize brings it to that size"
        return f"of shape {attribution.shape}, but its mask has {shape}; {cure}"
    finite = np.isfinite(attribution)
    if not finite.all():
        y, x = np.argwhere(~finite)[0]
        return f"{np.count_nonzero(~finite)} values are nan or infinite, the first in row {y}, column {x}"
    return None


def _within(target: np.ndarray, values: np.ndarray, counted: np.ndarray, tolerance: float) -> np.ndarray:
    """Mark the pointing game's point, (P,) bool, if the target is at most ``tolerance`` pixels away."""
    point = values.argmax()
    y, x = np.argwhere(counted)[point]
    rows, columns = np.nonzero(target)
    near = np.zeros(values.size, bool)
    near[point] = ((rows - y) ** 2 + (columns - x) ** 2).min() <= tolerance**2
    return near


def evaluate_maps(
    pairs: Pairs,
    class_ids: dict[str, int],
    tolerance: float,
    workers: int,
    show: Show = no_bar,
    resize: bool = False,
) -> Localization:
    """Score the map of every mask ``<wnid>/<name>.png``; where it may lie: ``find_maps``.

    ``pairs.predict_dir`` holds the maps; ``class_ids`` gives the class id of each wnid folder. ``workers`` is
    a number of processes (0: this one), ``show`` opens a progress bar. Maps of another size than their mask
    are an error, or interpolated with ``resize``.

    Raises InputError that lists the files that cannot be used, or when a worker process dies.
    """
    maps, missing = find_maps(pairs.predict_dir, pairs.names)
    refuse(missing, "file")  # before the long work
    jobs = [
        _Job(pairs.gt_dir / name, file, class_ids[name.partition("/")[0]])
        for name, file in zip(pairs.names, maps, strict=True)
    ]
    task = _ScoreFile(tolerance, max(class_ids.values()), resize)
    results: list[_Scored] = []
    with process_map(workers) as mapped, show("maps", len(jobs), unit="map") as advance:
        for result in mapped(task, jobs):
            results.append(result)
            advance(1)
    refuse([problem for result in results for problem in result.problems], "file")
    resized = sum(result.resized for result in results)
    return _averaged(pairs.names, [result.scores for result in results], resized)


class _Job(NamedTuple):
    mask: Path
    attribution: MapFile
    class_id: int


class _Scored(NamedTuple):
    """One image: its scores (None if the target is absent), whether its map was resized, what is wrong."""

    scores: Scores | None
    resized: bool
    problems: list[str]


@dataclass(frozen=True)
class _ScoreFile:
    """Scores one image's files."""

    tolerance: float
    classes: int
    resize: bool

    def __call__(self, job: _Job) -> _Scored:
        problems = []
        labels = attribution = None
        try:
            labels = decode_mask(job.mask, self.classes)
        except InputError as error:
            problems.append(str(error))
        except OSError as error:
            problems.append(f"{job.mask}: {error.strerror}")
        try:
            attribution = load_map(job.attribution)
        except InputError as error:
            problems.append(f"{job.attribution}: {error}")
        except OSError as error:
            problems.append(f"{job.attribution}: {error.strerror}")
        if labels is None or attribution is None:
            return _Scored(None, False, problems)
        fitted = fitted_map(attribution, labels.shape, self.resize)
        problem = map_problem(fitted, labels.shape)
        if problem:
            return _Scored(None, False, [f"{job.attribution}: {problem}"])
        resized = attribution.shape[-2:] != fitted.shape
        return _Scored(score_map(fitted, labels, job.class_id, self.tolerance), resized, [])


def _averaged(names: Sequence[str], by_image: list[Scores | None], resized: int) -> Localization:
    table = _percentages(by_image)
    there = ~np.isnan(table[:, 0])
    pointing, energies, auc, *iou = (_mean(column[~np.isnan(column)]) for column in table.T)
    return Localization(
        pointing_game=pointing,
        energy=energies,
        iou=np.array(iou),
        iou_best=max(iou),
        auc=auc,
        images=len(by_image),
        target_absent=int(np.count_nonzero(~there)),
        no_outside=int(np.count_nonzero(np.isnan(table[there, 2]))),
        names=tuple(names),
        by_image=by_image,
        resized=resized,
    )


def _percentages(by_image: Sequence[Scores | None]) -> np.ndarray:
    """Lay out the images' scores, (images, 3 + 19) percent: pointing game, energy, auc, IoUs; nan: none."""
    nothing = [math.nan] * (3 + IOU_THRESHOLDS.size)
    rows = [nothing if s is None else [s.pointing_game, s.energy, s.auc, *s.iou] for s in by_image]
    return 100 * np.array(rows, np.float64).reshape(-1, len(nothing))


def localization_intervals(result: Localization, resamples: int, seed: int) -> Bootstrap:
    """Find the 95% interval of the four scores by resampling the images, as ``scoring.bootstrap`` does.

    The best threshold is found anew in every resample.
    """
    table = _percentages(result.by_image)
    there = ~np.isnan(table)
    values = np.where(there, table, 0)
    scores: dict[str, list[float]] = {name: [] for name in ("pointing_game", "energy", "iou_best", "auc")}
    for drawn in drawn_images(len(table), resamples, seed):
        count = there[drawn].sum(axis=0)
        means = np.where(count > 0, values[drawn].sum(axis=0) / np.maximum(count, 1), math.nan)
        best = means[3:].max()
        for name, score in zip(scores, (means[0], means[1], best, means[2]), strict=True):
            scores[name].append(float(score))
    return Bootstrap(resamples, seed, percentile_intervals({k: np.array(v) for k, v in scores.items()}))


def localization_csv(result: Localization) -> str:
    """Format the scores of every image as CSV, in percent; nothing where an image has none.

    ``iou_best`` is the IoU at the threshold that is best for all images. Columns average to the scores.
    """
    best = int(np.argmax(result.iou))
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    thresholds = [f"iou_{threshold:.2f}" for threshold in IOU_THRESHOLDS]
    writer.writerow(("name", "pointing_game", "energy", "iou_best", "auc", *thresholds))
    for name, (pointing, energies, auc, *iou) in zip(
        result.names, _percentages(result.by_image).tolist(), strict=True
    ):
        row = (pointing, energies, iou[best], auc, *iou)
        writer.writerow((name, *("" if math.isnan(score) else score for score in row)))
    return out.getvalue()


def _mean(values: Sequence[float] | np.ndarray) -> float:
    """Mean that no order of the values changes; nan of nothing."""
    return math.fsum(values) / len(values) if len(values) else math.nan


def localization_json(result: Localization) -> dict[str, object]:
    """Lay the scores out for JSON: percentages, None where there is none; ``iou`` by threshold."""

    def number(score: float) -> float | None:
        return None if math.isnan(score) else float(score)

    return {
        "pointing_game": number(result.pointing_game),
        "energy": number(result.energy),
        "iou": {f"{t:.2f}": number(iou) for t, iou in zip(IOU_THRESHOLDS, result.iou, strict=True)},
        "iou_best": number(result.iou_best),
        "auc": number(result.auc),
        "images": result.images,
        "target_absent": result.target_absent,
    }
