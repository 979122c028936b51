"""A comparison of two methods as text and as JSON."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from pathlib import Path

from imagenets.classes import ClassInfo
from imagenets.common.version import __version__
from imagenets.reporting.text import (
    bootstrap_json,
    bootstrap_note,
    json_text,
    number_text,
    scores_json,
    text_table,
)
from imagenets.scoring.comparison import Comparison, Method
from imagenets.scoring.metrics import Evaluation


def run_lines(method: Method) -> list[str]:
    """Say for each run of a method where its predictions lie, and how they were matched."""
    return [
        f"{method.name}: {run.predict_dir}, "
        + ("class ids, not matched" if run.match is None else f"matching {run.match}")
        for run in method.runs
    ]


def comparison_text(a: Method, b: Method, comparison: Comparison, classes: Sequence[ClassInfo]) -> str:
    """Tables of the scores with their differences, and of the classes that gained and lost most."""
    rows = []
    for name, difference in comparison.differences.items():
        low, high = comparison.bootstrap.intervals[name]
        interval = "-" if math.isnan(low) else f"{low:+.2f} to {high:+.2f}"
        values = (
            _with_deviation(runs, name, mean)
            for runs, mean in ((comparison.runs_a, comparison.a), (comparison.runs_b, comparison.b))
        )
        significant = "*" if comparison.is_significant(name) else ""
        rows.append((name, *values, _signed(difference), interval, significant))
    header = ("score", a.name, b.name, "difference", "95% interval", "")
    parts = [text_table(header, rows, left=(0,)), f"({comparison_note(a, b, comparison)})"]
    for what, labels in (("gained", comparison.gained()), ("lost", comparison.lost())):
        parts.append(f"\nClasses that {what} most with {a.name} (IoU):")
        parts.append(_class_text(a, b, comparison, classes, labels) if labels else "none")
    return "\n".join(parts)


def comparison_note(a: Method, b: Method, comparison: Comparison) -> str:
    """Say in a line what the differences are, and how their intervals were found."""
    note = f"{bootstrap_note(comparison.bootstrap)}, the same for both"
    numbers = (len(a.runs), len(b.runs))
    if max(numbers) > 1:
        note += f"; runs: {numbers[0]} and {numbers[1]}, ± standard deviation (n − 1), drawn again too"
    return f"{note}; difference in percentage points; *: significant, the interval leaves out 0"


def _with_deviation(runs: Sequence[Evaluation], name: str, mean: Evaluation) -> str:
    text = number_text(mean.scores[name])
    values = [run.scores[name] for run in runs]
    if len(values) < 2 or any(map(math.isnan, values)):
        return text
    return f"{text} ± {statistics.stdev(values):.2f}"


def _signed(difference: float) -> str:
    return "-" if math.isnan(difference) else f"{difference:+.2f}"


def _class_text(
    a: Method, b: Method, comparison: Comparison, classes: Sequence[ClassInfo], labels: Sequence[int]
) -> str:
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
    return text_table(("id", "wnid", "name", a.name, b.name, "difference"), rows, left=(1, 2))


def comparison_json(
    comparison: Comparison,
    classes: Sequence[ClassInfo],
    mode: str,
    a: Method,
    b: Method,
    gt_dir: Path | None = None,
) -> str:
    """Format everything as JSON; percentages, null if a score does not exist."""
    sides = {
        "a": _side_json(a, comparison.a, comparison.runs_a),
        "b": _side_json(b, comparison.b, comparison.runs_b),
    }
    columns = (comparison.a.iou.tolist(), comparison.b.iou.tolist(), comparison.class_differences().tolist())
    rows = [
        {"id": c.id, "wnid": c.wnid, "name": c.name or None, "IoU a": a, "IoU b": b, "difference": difference}
        for c, a, b, difference in zip(classes, *columns, strict=True)
    ]
    content = {
        "mode": mode,
        "images": comparison.a.images,
        "toolbox": __version__,
        "gt_dir": None if gt_dir is None else str(gt_dir),
        **sides,
        "differences": scores_json(comparison.differences),
        **bootstrap_json(comparison.bootstrap),
        "gained": comparison.gained(),
        "lost": comparison.lost(),
        "classes": rows,
    }
    return json_text(content)


def _side_json(method: Method, mean: Evaluation, runs: Sequence[Evaluation]) -> dict[str, object]:
    """Lay out one method: means over its runs, and each run."""
    return {
        "name": method.name,
        "scores": scores_json(mean.scores),
        "runs": [
            {
                "predict_dir": run.predict_dir,
                "match": run.match,
                "matching_sha256": run.matching and run.matching.sha256,
                "scores": scores_json(evaluation.scores),
            }
            for run, evaluation in zip(method.runs, runs, strict=True)
        ],
    }
