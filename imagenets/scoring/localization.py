"""How well attribution maps find the object of an image's own class.

Every score is taken per image and averaged over images. In an image, ``values`` (P,) are the map's values
at the pixels that count, floating point, finite, in row-major order, and ``inside`` (P,) bool tells which of
them are the target class's; void pixels (label 1000) are left out before anything else is done.
"""

from __future__ import annotations

import math
import signal
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import NamedTuple

import numpy as np

from imagenets.common.errors import InputError, refuse
from imagenets.common.progress import Show, no_bar
from imagenets.masks import decode_mask, target_mask
from imagenets.scoring.pairs import Pairs

# Exactly the floating-point numbers nearest to 0.05, 0.10, … 0.95.
IOU_THRESHOLDS = np.arange(1, 20) / 20

_CHUNK = 8  # images that a worker is given at once


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
    those that the target fills.
    """

    pointing_game: float
    energy: float
    iou: np.ndarray
    iou_best: float
    auc: float
    images: int
    target_absent: int
    no_outside: int


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
    return both / np.maximum(union, 1)


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

    Raises ValueError for a map that is not floating point, not of the mask's shape, or not finite.
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
    if attribution.dtype.kind != "f":
        return f"of type {attribution.dtype}; save floating point values"
    if attribution.shape != shape:
        return f"of shape {attribution.shape}, but its mask has {shape}; resize the map to its image's size"
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
    pairs: Pairs, class_ids: dict[str, int], tolerance: float, workers: int, show: Show = no_bar
) -> Localization:
    """Score the map ``<wnid>/<name>.npy`` of every mask ``<wnid>/<name>.png``.

    ``pairs.predict_dir`` holds the maps; ``class_ids`` gives the class id of each wnid folder. ``workers`` is
    a number of processes (0: this one), ``show`` opens a progress bar.

    Raises InputError that lists the files that cannot be used, or when a worker process dies.
    """
    jobs = [
        _Job(
            pairs.gt_dir / n, pairs.predict_dir / f"{n.removesuffix('.png')}.npy", class_ids[n.split("/")[0]]
        )
        for n in pairs.names
    ]
    missing = [f"{job.attribution}: no such attribution map" for job in jobs if not job.attribution.exists()]
    refuse(missing, "file")  # before the long work
    task = _ScoreFile(tolerance, max(class_ids.values()))
    results: list[object] = []
    with show("maps", len(jobs), unit="map") as advance:
        for result in _results(task, jobs, workers):
            results.append(result)
            advance(1)
    problems = [problem for result in results if isinstance(result, list) for problem in result]
    refuse(problems, "file")
    return _averaged([result for result in results if isinstance(result, Scores)], len(jobs))


class _Job(NamedTuple):
    mask: Path
    attribution: Path
    class_id: int


@dataclass(frozen=True)
class _ScoreFile:
    """Scores one image's files: gives Scores, None if the target is absent, or why a file cannot be used."""

    tolerance: float
    classes: int

    def __call__(self, job: _Job) -> Scores | list[str] | None:
        problems = []
        labels = attribution = None
        try:
            labels = decode_mask(job.mask, self.classes)
        except InputError as error:
            problems.append(str(error))
        except OSError as error:
            problems.append(f"{job.mask}: {error.strerror}")
        try:
            attribution = _load_map(job.attribution)
        except InputError as error:
            problems.append(f"{job.attribution}: {error}")
        except OSError as error:
            problems.append(f"{job.attribution}: {error.strerror}")
        if labels is None or attribution is None:
            return problems
        problem = map_problem(attribution, labels.shape)
        if problem:
            return [f"{job.attribution}: {problem}"]
        return score_map(attribution, labels, job.class_id, self.tolerance)


def _load_map(path: Path) -> np.ndarray:
    """Read an array; never an object, for reading one runs code that is in the file."""
    with path.open("rb") as file:
        try:
            array = np.lib.format.read_array(file, allow_pickle=False)
        except (ValueError, EOFError, SyntaxError, MemoryError, OverflowError) as error:
            reason = str(error).partition("\n")[0]
            raise InputError(f"no whole .npy array ({reason}); save it again with numpy.save") from error
        if file.read(1):
            raise InputError("more than one .npy array; save one map a file with numpy.save")
    return array


def _results(task: _ScoreFile, jobs: Sequence[_Job], workers: int) -> Iterator[object]:
    if workers == 0:
        yield from map(task, jobs)
        return
    pool = ProcessPoolExecutor(workers, get_context("fork"), initializer=_leave_interrupts_to_parent)
    try:
        yield from pool.map(task, jobs, chunksize=_CHUNK)
    except BrokenProcessPool as error:
        raise InputError("a worker process died; out of memory? Try again with fewer --workers") from error
    finally:
        pool.shutdown(cancel_futures=True)


def _leave_interrupts_to_parent() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def _averaged(scores: Sequence[Scores], images: int) -> Localization:
    iou = np.array([100 * _mean(column) for column in np.array([s.iou for s in scores]).T])
    if not scores:
        iou = np.full(IOU_THRESHOLDS.size, math.nan)
    auc = [s.auc for s in scores if not math.isnan(s.auc)]
    return Localization(
        pointing_game=100 * _mean([s.pointing_game for s in scores]),
        energy=100 * _mean([s.energy for s in scores]),
        iou=iou,
        iou_best=float(iou.max()),
        auc=100 * _mean(auc),
        images=images,
        target_absent=images - len(scores),
        no_outside=len(scores) - len(auc),
    )


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
