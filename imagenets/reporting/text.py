"""Scores as text tables, JSON and CSV."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from imagenets.classes import ClassInfo, Mode
from imagenets.common.tables import csv_text
from imagenets.common.version import __version__
from imagenets.scoring.metrics import SCORE_DEFINITION, Evaluation

if TYPE_CHECKING:
    from imagenets.scoring.bootstrap import Bootstrap
    from imagenets.scoring.matching import Matching, SharedWithClass


def text_table(header: Sequence[str], rows: Sequence[Sequence[str]], left: Sequence[int] = ()) -> str:
    """Align cells in columns, to the right except the columns ``left``."""
    widths = [max(len(row[i]) for row in (header, *rows)) for i in range(len(header))]
    return "\n".join(
        "  ".join(
            cell.ljust(width) if i in left else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in (header, *rows)
    )


def json_text(content: Mapping[str, object]) -> str:
    """Format a result as JSON; nan is refused, for JSON has none."""
    return json.dumps(content, indent=1, ensure_ascii=False, allow_nan=False) + "\n"


def number_text(score: float) -> str:
    """Format a percentage, ``-`` if it does not exist."""
    return "-" if math.isnan(score) else f"{score:.2f}"


def class_text(evaluation: Evaluation, classes: Sequence[ClassInfo]) -> str:
    """Table of all labels: id, wnid, name, IoU and boundary IoU in percent, ground-truth pixels."""
    rows = [
        (str(c.id), c.wnid or "-", c.name or "-", number_text(iou), number_text(boundary_iou), str(pixels))
        for c, iou, boundary_iou, pixels, _ in _class_rows(evaluation, classes)
    ]
    return text_table(("id", "wnid", "name", "IoU", "BIoU", "pixels"), rows, left=(1, 2))


def summary_text(evaluation: Evaluation) -> str:
    """Two lines: the scores' names, and the scores in percent, ``-`` if one does not exist."""
    scores = evaluation.scores
    return text_table(tuple(scores), [tuple(number_text(score) for score in scores.values())])


def intervals_text(evaluation: Evaluation, bootstrap: Bootstrap) -> str:
    """Table of the scores, each with its 95% interval beside it, low–high in percent."""
    rows = []
    for name, (low, high) in bootstrap.intervals.items():
        interval = "-" if math.isnan(low) else f"{low:.2f}–{high:.2f}"
        rows.append((name, number_text(evaluation.scores[name]), interval))
    table = text_table(("score", "value", "95% interval"), rows, left=(0,))
    outside = outside_note(evaluation.scores, bootstrap.intervals)
    return f"{table}\n({bootstrap_note(bootstrap)})" + (f"\n{outside}" if outside else "")


def outside_note(scores: Mapping[str, float], intervals: Mapping[str, tuple[float, float]]) -> str | None:
    """Explain in a line the scores that lie outside their own intervals; None if all are inside."""
    # SciPy takes a while to load; scores do without it.
    from imagenets.scoring.bootstrap import outside_intervals

    names = outside_intervals(scores, intervals)
    if not names:
        return None
    where = "lies outside its own interval" if len(names) == 1 else "lie outside their own intervals"
    return (
        f"{', '.join(names)} {where}: each resample lacks about a third of the images, and with them labels "
        "that few images have, so the bootstrap is biased and the interval not reliable"
    )


def bootstrap_note(bootstrap: Bootstrap) -> str:
    """Say in a line how the intervals were found."""
    return f"percentile bootstrap, {bootstrap.resamples} resamples of the images, seed {bootstrap.seed}"


def bootstrap_json(bootstrap: Bootstrap) -> dict[str, object]:
    """Lay out intervals for JSON: [low, high] in percent, null if a score exists in no resample."""
    intervals = {
        name: None if math.isnan(low) else [low, high] for name, (low, high) in bootstrap.intervals.items()
    }
    return {
        "intervals": intervals,
        "bootstrap": {"resamples": bootstrap.resamples, "seed": bootstrap.seed},
    }


def evaluation_json(
    evaluation: Evaluation,
    classes: Sequence[ClassInfo],
    mode: str,
    match: str | None,
    names: Sequence[str],
    bootstrap: Bootstrap | None = None,
    inputs: Mapping[str, object] | None = None,
) -> str:
    """Format everything as JSON; percentages, null if a score does not exist.

    ``inputs`` say what was scored; see ``inputs_json``. ``names`` are the masks' names: their digest and the
    number of the scores' definition show which scores may be compared.
    """
    content = {
        "definition": SCORE_DEFINITION,
        "mode": mode,
        "images": evaluation.images,
        "images_sha256": hashlib.sha256("\n".join(names).encode(errors="surrogateescape")).hexdigest(),
        "match": match,
        "toolbox": __version__,
        **(inputs or {}),
        "scores": scores_json(evaluation.scores),
        **({} if bootstrap is None else bootstrap_json(bootstrap)),
        "classes": [
            {
                "id": c.id,
                "wnid": c.wnid,
                "name": c.name or None,
                "IoU": iou,
                "BIoU": boundary_iou,
                "pixels": pixels,
                "images": images,
            }
            for c, iou, boundary_iou, pixels, images in _class_rows(evaluation, classes)
        ],
    }
    return json_text(content)


def inputs_json(mode: Mode, gt_dir: Path, predict_dir: Path, matching: Matching | None) -> dict[str, object]:
    """Lay out what was scored: the folders as given, the matching's file and method, and the class list."""
    return {
        "predict_dir": str(predict_dir),
        "gt_dir": str(gt_dir),
        "matching_sha256": matching and matching.sha256,
        "matching_method": matching and matching.method,
        "class_list_sha256": mode.own and mode.own.sha256,
    }


def scores_json(scores: Mapping[str, float]) -> dict[str, float | None]:
    """Lay out scores for JSON, null if one does not exist."""
    return {name: None if math.isnan(score) else score for name, score in scores.items()}


def evaluation_csv(evaluation: Evaluation, classes: Sequence[ClassInfo]) -> str:
    """Format the table of classes as CSV; percentages."""
    rows = ((c.id, c.wnid or "", c.name, *numbers) for c, *numbers in _class_rows(evaluation, classes))
    return csv_text(("id", "wnid", "name", "IoU", "BIoU", "pixels", "images"), rows)


def _class_rows(
    evaluation: Evaluation, classes: Sequence[ClassInfo]
) -> Iterator[tuple[ClassInfo, float, float, int, int]]:
    arrays = (evaluation.iou, evaluation.boundary_iou, evaluation.pixels, evaluation.label_images)
    return zip(classes, *(array.tolist() for array in arrays), strict=True)


def matching_text(matching: Matching, shared: SharedWithClass, classes: Sequence[ClassInfo]) -> str:
    """Table of the clusters that have a class: which one, and the images and pixels they share."""
    rows = [
        (
            str(cluster),
            str(label),
            classes[label].wnid or "-",
            classes[label].name or "-",
            str(shared.images[cluster]),
            str(shared.pixels[cluster]),
        )
        for cluster, label in enumerate(matching.classes.tolist())
        if label
    ]
    header = ("cluster", "class", "wnid", "name", "shared images", "shared pixels")
    return text_table(header, rows, left=(2, 3))
