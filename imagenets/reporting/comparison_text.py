"""A comparison of two methods as text and as JSON."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path

from imagenets.classes import ClassInfo
from imagenets.common.version import __version__
from imagenets.reporting.text import bootstrap_json, bootstrap_note, number_text, scores_json, text_table
from imagenets.scoring.comparison import Comparison, Method


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
    comparison: Comparison,
    classes: Sequence[ClassInfo],
    mode: str,
    a: Method,
    b: Method,
    gt_dir: Path | None = None,
) -> str:
    """Format everything as JSON; percentages, null where a score does not exist."""
    sides = {
        side: {
            "predict_dir": method.predict_dir,
            "match": method.match,
            "matching_sha256": method.matching and method.matching.sha256,
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
        "toolbox": __version__,
        "gt_dir": None if gt_dir is None else str(gt_dir),
        **sides,
        "differences": scores_json(comparison.differences),
        **bootstrap_json(comparison.bootstrap),
        "gained": comparison.gained(),
        "lost": comparison.lost(),
        "classes": rows,
    }
    return json.dumps(content, indent=1, ensure_ascii=False, allow_nan=False) + "\n"
