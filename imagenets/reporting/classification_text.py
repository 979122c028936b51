"""Accuracies of a classifier as text, JSON and CSV."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import NamedTuple

import imagenets
from imagenets.classes import ClassInfo, label_name
from imagenets.common.tables import csv_text, or_empty
from imagenets.reporting.text import (
    bootstrap_json,
    bootstrap_note,
    json_text,
    number_text,
    scores_json,
    text_table,
)
from imagenets.scoring.bootstrap import Bootstrap, Interval
from imagenets.scoring.classification import Classified, ClassScores, Difference, difference

MIXED = ("mixed-same", "mixed-random")
# Number of the accuracies' definition: others do not share a table with it.
CLASS_SCORE_DEFINITION = 1


class Condition(NamedTuple):
    """A classifier's scores on one set of pictures, with their intervals."""

    name: str
    scores: dict[str, float]
    bootstrap: Bootstrap


def class_text(scored: ClassScores, classes: Sequence[ClassInfo]) -> str:
    """Table of the classes that occur: id, wnid, name, accuracies in percent, images."""
    header = ("id", "wnid", "name", *scored.by_class, "images")
    rows = [
        (
            str(info.id),
            info.wnid or "-",
            label_name(info),
            *(number_text(float(of_class[info.id - 1])) for of_class in scored.by_class.values()),
            str(scored.images[info.id - 1]),
        )
        for info in classes[1:]
        if scored.images[info.id - 1]
    ]
    return text_table(header, rows, left=(1, 2))


def scores_text(scored: ClassScores, bootstrap: Bootstrap) -> str:
    """Table of the scores with their intervals, and a line that says what they are."""
    rows = [
        (name, number_text(score), _interval_text(bootstrap.intervals[name]))
        for name, score in scored.scores.items()
    ]
    occur = int((scored.images > 0).sum())
    return (
        f"{text_table(('score', 'value', '95% interval'), rows, left=(0,))}\n"
        f"(percent, the mean over {occur} classes; _images: over {int(scored.images.sum())} images; "
        f"{bootstrap_note(bootstrap)})"
    )


def _interval_text(interval: Interval) -> str:
    return "–".join(map(number_text, interval))


def difference_text(found: Difference) -> str:
    """Table of the scores of A and B and of their differences."""
    rows = [
        (
            name,
            number_text(found.a[name]),
            number_text(found.b[name]),
            f"{value:+.2f}",
            "{:+.2f} to {:+.2f}".format(*found.intervals[name]),
            "*" if found.intervals[name][0] > 0 or found.intervals[name][1] < 0 else "",
        )
        for name, value in found.differences.items()
    ]
    table = text_table(("score", "A", "B", "A - B", "95% interval", ""), rows, left=(0,))
    return f"{table}\n(the same images are drawn for A and B; *: the interval leaves out 0)"


def background_gap(
    runs: Mapping[str, Classified], classes: int, topk: Sequence[int], resamples: int, seed: int
) -> Difference | None:
    """Compare ``mixed-same`` with ``mixed-random``, images paired; None if either is missing."""
    if not all(name in runs for name in MIXED):
        return None
    same, other = (runs[name] for name in MIXED)
    return difference(same, other, classes, topk, resamples, seed)


def conditions_text(conditions: Sequence[Condition], gap: Difference | None, images: int) -> str:
    """Table of the scores by condition, and the gap between backgrounds."""
    names = list(conditions[0].scores)
    rows = [
        (
            condition.name,
            *(
                f"{number_text(score)} ({_interval_text(condition.bootstrap.intervals[name])})"
                for name, score in condition.scores.items()
            ),
        )
        for condition in conditions
    ]
    parts = [
        text_table(("condition", *names), rows, left=(0,)),
        f"({images} images; percent, with 95% intervals; {bootstrap_note(conditions[0].bootstrap)})",
    ]
    if gap is not None:
        rows = [
            (name, f"{value:+.2f}", "{:+.2f} to {:+.2f}".format(*gap.intervals[name]))
            for name, value in gap.differences.items()
        ]
        header = ("gap mixed-same - mixed-random", "points", "95% interval, paired")
        parts.append("\n" + text_table(header, rows, left=(0,)))
    return "\n".join(parts)


def classification_json(
    scored: ClassScores,
    classes: Sequence[ClassInfo],
    mode: str,
    classified: Classified,
    bootstrap: Bootstrap,
    among: str,
    other: Difference | None = None,
) -> str:
    """Format everything as JSON, which table.py reads; percentages, null if a class has no image."""
    names = "\n".join(classified.names).encode(errors="surrogateescape")
    rows = [
        {
            "id": info.id,
            "wnid": info.wnid,
            "name": info.name or None,
            **scores_json({k: float(values[info.id - 1]) for k, values in scored.by_class.items()}),
            "images": int(scored.images[info.id - 1]),
        }
        for info in classes[1:]
    ]
    content = {
        "task": "classification",
        "definition": CLASS_SCORE_DEFINITION,
        "mode": mode,
        "images": len(classified.names),
        "images_sha256": hashlib.sha256(names).hexdigest(),
        "among": among,
        "tied": int(classified.tied.sum()),
        "toolbox": imagenets.__version__,
        "scores": scores_json(scored.scores),
        **bootstrap_json(bootstrap),
        **({} if other is None else {"comparison": asdict(other)}),
        "classes": rows,
    }
    return json_text(content)


def conditions_json(
    conditions: Sequence[Condition], gap: Difference | None, mode: str, images: int, among: str
) -> str:
    """Format the scores by condition as JSON."""
    content = {
        "mode": mode,
        "images": images,
        "among": among,
        "toolbox": imagenets.__version__,
        "conditions": {
            condition.name: {"scores": condition.scores, **bootstrap_json(condition.bootstrap)}
            for condition in conditions
        },
        **({} if gap is None else {"gap": asdict(gap)}),
    }
    return json_text(content)


def class_csv(scored: ClassScores, classes: Sequence[ClassInfo]) -> str:
    """Format the table of classes as CSV, nothing where a class has no image."""
    rows = (
        (
            *(info.id, info.wnid or "", info.name),
            *(or_empty(float(of_class[info.id - 1])) for of_class in scored.by_class.values()),
            scored.images[info.id - 1],
        )
        for info in classes[1:]
    )
    return csv_text(("id", "wnid", "name", *scored.by_class, "images"), rows)


def conditions_csv(conditions: Sequence[Condition]) -> str:
    """Format the scores by condition as CSV, every digit."""
    rows = ((condition.name, *condition.scores.values()) for condition in conditions)
    return csv_text(("condition", *conditions[0].scores), rows)
