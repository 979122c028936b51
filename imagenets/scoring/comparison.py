"""Is one method better than another: differences of scores on the same images, and which are significant.

A method is one run or several, one for each seed: its score is the mean over its runs. Each resample draws
images, the same for every run, and, with replacement, runs of each method: the interval of the difference
covers the variation of images and of seeds. With few seeds it is too narrow, as any bootstrap of few values
(docs/evaluate.md, Is A better than B?).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from imagenets.scoring.bootstrap import Bootstrap, bootstrap_scores, percentile_intervals
from imagenets.scoring.contingency import ContingencyTable
from imagenets.scoring.matching import Matching
from imagenets.scoring.metrics import Evaluation, evaluate

# Classes listed that gained, and that lost.
SHOWN_CLASSES = 10


@dataclass(frozen=True)
class Run:
    """One run: ``table`` counts its predictions, ``matching`` is None if they hold class ids.

    ``match`` is the user's name of the matching.
    """

    predict_dir: str
    match: str | None
    table: ContingencyTable
    matching: Matching | None

    @property
    def classes(self) -> np.ndarray | None:
        """The matching in the form of ``metrics.evaluate``."""
        return None if self.matching is None else self.matching.classes


@dataclass(frozen=True)
class Method:
    """A method, by the ``name`` that the user chose, and its runs, one for each seed."""

    name: str
    runs: tuple[Run, ...]


@dataclass(frozen=True)
class Comparison:
    """Scores of A and B, the differences A − B in percentage points (nan if a score does not exist).

    ``a`` and ``b`` are means over the runs, ``runs_a`` and ``runs_b`` those of each run. ``bootstrap`` holds
    the paired 95% interval of each difference.
    """

    a: Evaluation
    b: Evaluation
    runs_a: tuple[Evaluation, ...]
    runs_b: tuple[Evaluation, ...]
    differences: dict[str, float]
    bootstrap: Bootstrap

    def is_significant(self, name: str) -> bool:
        """Return whether the interval of the score's difference leaves out 0."""
        low, high = self.bootstrap.intervals[name]
        return low > 0 or high < 0

    def class_differences(self) -> np.ndarray:
        """IoU of A − IoU of B of each label, (N + 1,) float64, in percentage points."""
        result: np.ndarray = self.a.iou - self.b.iou
        return result

    def gained(self) -> list[int]:
        """Labels whose IoU is larger with A, largest difference first, the smallest id on a tie."""
        return _largest(self.class_differences())

    def lost(self) -> list[int]:
        """Labels whose IoU is smaller with A, largest difference first, the smallest id on a tie."""
        return _largest(-self.class_differences())


def _largest(differences: np.ndarray) -> list[int]:
    order = np.argsort(-differences, kind="stable")[:SHOWN_CLASSES]
    result: list[int] = order[differences[order] > 0].tolist()
    return result


def compare(a: Method, b: Method, classes: int, resamples: int, seed: int) -> Comparison:
    """Compare two methods on the same images; each resample holds the same images for all runs.

    Raises ValueError when the tables are not of the same images.
    """
    if len({run.table.names for run in (*a.runs, *b.runs)}) > 1:
        raise ValueError("the tables are of different images")
    runs_a, runs_b = (
        tuple(evaluate(run.table, classes, run.classes) for run in method.runs) for method in (a, b)
    )
    mean_a, mean_b = mean_evaluation(runs_a), mean_evaluation(runs_b)
    drawn_a, drawn_b = (
        _resampled(method, classes, resamples, seed, stream) for stream, method in enumerate((a, b), start=1)
    )
    intervals = percentile_intervals({name: drawn_a[name] - drawn_b[name] for name in drawn_a})
    return Comparison(
        mean_a,
        mean_b,
        runs_a,
        runs_b,
        differences={name: mean_a.scores[name] - mean_b.scores[name] for name in mean_a.scores},
        bootstrap=Bootstrap(resamples, seed, intervals),
    )


def mean_evaluation(runs: Sequence[Evaluation]) -> Evaluation:
    """Mean of the scores of runs on the same images; nan if one run has no such score."""
    if len(runs) == 1:
        return runs[0]
    scores = {name: math.fsum(run.scores[name] for run in runs) / len(runs) for name in runs[0].scores}
    iou, boundary_iou = (
        np.mean([getattr(run, name) for run in runs], axis=0) for name in ("iou", "boundary_iou")
    )
    return replace(runs[0], scores=scores, iou=iou, boundary_iou=boundary_iou)


def _resampled(method: Method, classes: int, resamples: int, seed: int, stream: int) -> dict[str, np.ndarray]:
    """Mean scores of a method in each resample, (resamples,) float64 by the names of SCORES.

    The same seed and number of images draw the same images for every run; the draw of runs also depends on
    ``stream``, because the runs of two methods are not paired.
    """
    of_runs = [bootstrap_scores(run.table, classes, run.classes, resamples, seed) for run in method.runs]
    number = len(of_runs)
    if number == 1:
        return of_runs[0]
    drawn = np.random.default_rng([seed, stream]).integers(number, size=(resamples, number))
    every = np.arange(resamples)[:, None]
    return {name: np.stack([of[name] for of in of_runs])[drawn, every].mean(axis=1) for name in of_runs[0]}
