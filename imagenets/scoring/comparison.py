"""Is method A better than method B: differences of scores on the same images, and how sure they are."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from imagenets.scoring.bootstrap import Bootstrap, bootstrap_scores, percentile_intervals
from imagenets.scoring.contingency import ContingencyTable
from imagenets.scoring.matching import Matching
from imagenets.scoring.metrics import Evaluation, evaluate

# Classes listed that gained, and that lost.
SHOWN_CLASSES = 10


@dataclass(frozen=True)
class Method:
    """One method: ``table`` counts its predictions, ``matching`` is None where they hold class ids.

    ``match`` is what the user calls the matching.
    """

    predict_dir: str
    match: str | None
    table: ContingencyTable
    matching: Matching | None

    @property
    def classes(self) -> np.ndarray | None:
        """The matching as ``metrics.evaluate`` takes it."""
        return None if self.matching is None else self.matching.classes


@dataclass(frozen=True)
class Comparison:
    """Scores of A and B, the differences A − B in points of a percent (nan where a score does not exist).

    ``bootstrap`` holds the paired 95% interval of each difference.
    """

    a: Evaluation
    b: Evaluation
    differences: dict[str, float]
    bootstrap: Bootstrap

    def is_sure(self, name: str) -> bool:
        """Tell whether the interval of the score's difference leaves out 0."""
        low, high = self.bootstrap.intervals[name]
        return low > 0 or high < 0

    def class_differences(self) -> np.ndarray:
        """IoU of A − IoU of B of each label, (N + 1,) float64, in points."""
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
    """Compare two methods on the same images; each resample holds the same images for both.

    Raises ValueError when the tables are not of the same images.
    """
    if a.table.names != b.table.names:
        raise ValueError("the two tables are of different images")
    scored_a, scored_b = (evaluate(method.table, classes, method.classes) for method in (a, b))
    # The same seed and number of images draw the same images.
    drawn_a, drawn_b = (
        bootstrap_scores(method.table, classes, method.classes, resamples, seed) for method in (a, b)
    )
    intervals = percentile_intervals({name: drawn_a[name] - drawn_b[name] for name in drawn_a})
    return Comparison(
        scored_a,
        scored_b,
        differences={name: scored_a.scores[name] - scored_b.scores[name] for name in scored_a.scores},
        bootstrap=Bootstrap(resamples, seed, intervals),
    )
