"""Is method A better than method B: differences of scores on the same images, and how sure they are."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from imagenets.bootstrap import Bootstrap, bootstrap_scores, percentile_intervals
from imagenets.classes import ClassInfo
from imagenets.contingency import ContingencyTable
from imagenets.metrics import Evaluation, evaluate
from imagenets.report import bootstrap_json, bootstrap_note, number_text, scores_json, text_table

# Classes listed that gained, and that lost.
SHOWN_CLASSES = 10


@dataclass(frozen=True)
class Method:
    """One method: ``table`` counts its predictions, ``matching`` is that of ``metrics.evaluate``."""

    predict_dir: str
    match: str | None
    table: ContingencyTable
    matching: np.ndarray | None


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
        return self.a.iou - self.b.iou

    def gained(self) -> list[int]:
        """Labels whose IoU is larger with A, largest difference first, the smallest id on a tie."""
        return _largest(self.class_differences())

    def lost(self) -> list[int]:
        """Labels whose IoU is smaller with A, largest difference first, the smallest id on a tie."""
        return _largest(-self.class_differences())


def _largest(differences: np.ndarray) -> list[int]:
    order = np.argsort(-differences, kind="stable")[:SHOWN_CLASSES]
    return order[differences[order] > 0].tolist()


def compare(a: Method, b: Method, classes: int, resamples: int, seed: int) -> Comparison:
    """Compare two methods on the same images; each resample holds the same images for both.

    Raises ValueError when the tables are not of the same images.
    """
    if a.table.names != b.table.names:
        raise ValueError("the two tables are of different images")
    scored_a, scored_b = (evaluate(method.table, classes, method.matching) for method in (a, b))
    # The same seed and number of images draw the same images.
    drawn_a, drawn_b = (
        bootstrap_scores(method.table, classes, method.matching, resamples, seed) for method in (a, b)
    )
    intervals = percentile_intervals({name: drawn_a[name] - drawn_b[name] for name in drawn_a})
    return Comparison(
        scored_a,
        scored_b,
        differences={name: scored_a.scores[name] - scored_b.scores[name] for name in scored_a.scores},
        bootstrap=Bootstrap(resamples, seed, intervals),
    )


def comparison_text(comparison: Comparison, classes: Sequence[ClassInfo]) -> str:
    """Tables of the scores with their differences, and of the classes that gained and lost most."""
    rows = []
    for name, difference in comparison.differences.items():
        low, high = comparison.bootstrap.intervals[name]
        interval = "-" if math.isnan(low) else f"{low:+.2f} to {high:+.2f}"
        values = (number_text(evaluation.scores[name]) for evaluation in (comparison.a, comparison.b))
        sure = "*" if comparison.is_sure(name) else ""
        rows.append((name, *values, _signed(difference), interval, sure))
    parts = [
        text_table(("score", "A", "B", "A - B", "95% interval", ""), rows, left=(0,)),
        f"({bootstrap_note(comparison.bootstrap)}, the same for A and B; *: the interval leaves out 0)",
    ]
    for what, labels in (("gained", comparison.gained()), ("lost", comparison.lost())):
        parts.append(f"\nClasses that {what} most with A (IoU):")
        parts.append(_class_text(comparison, classes, labels) if labels else "none")
    return "\n".join(parts)


def _signed(difference: float) -> str:
    return "-" if math.isnan(difference) else f"{difference:+.2f}"


def _class_text(comparison: Comparison, classes: Sequence[ClassInfo], labels: Sequence[int]) -> str:
    differences = comparison.class_differences()
    rows = [
        (
            str(label),
            classes[label].wnid or "-",
            classes[label].name or "-",
            number_text(comparison.a.iou[label]),
            number_text(comparison.b.iou[label]),
            _signed(differences[label]),
        )
        for label in labels
    ]
    return text_table(("id", "wnid", "name", "A", "B", "A - B"), rows, left=(1, 2))


def comparison_json(
    comparison: Comparison, classes: Sequence[ClassInfo], mode: str, a: Method, b: Method
) -> str:
    """Format everything as JSON; percentages, null where a score does not exist."""
    sides = {
        side: {
            "predict_dir": method.predict_dir,
            "match": method.match,
            "scores": scores_json(evaluation.scores),
        }
        for side, method, evaluation in (("a", a, comparison.a), ("b", b, comparison.b))
    }
    columns = (comparison.a.iou.tolist(), comparison.b.iou.tolist(), comparison.class_differences().tolist())
    rows = [
        {"id": c.id, "wnid": c.wnid, "name": c.name or None, "IoU a": a, "IoU b": b, "difference": difference}
        for c, a, b, difference in zip(classes, *columns, strict=True)
    ]
    content = {
        "mode": mode,
        "images": comparison.a.images,
        **sides,
        "differences": scores_json(comparison.differences),
        **bootstrap_json(comparison.bootstrap),
        "gained": comparison.gained(),
        "lost": comparison.lost(),
        "classes": rows,
    }
    return json.dumps(content, indent=1, ensure_ascii=False, allow_nan=False) + "\n"
