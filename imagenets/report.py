"""Scores as people and programs read them: text tables, JSON, CSV."""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from imagenets.classes import ClassInfo
from imagenets.metrics import Evaluation

if TYPE_CHECKING:
    from imagenets.matching import Matching


def text_table(header: Sequence[str], rows: Sequence[Sequence[str]], left: Sequence[int] = ()) -> str:
    """Align cells in columns, to the right but for the columns ``left``."""
    widths = [max(len(row[i]) for row in (header, *rows)) for i in range(len(header))]
    return "\n".join(
        "  ".join(
            cell.ljust(width) if i in left else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in (header, *rows)
    )


def _number(score: float) -> str:
    return "-" if math.isnan(score) else f"{score:.2f}"


def class_text(evaluation: Evaluation, classes: Sequence[ClassInfo]) -> str:
    """Table of all labels: id, wnid, name, IoU and boundary IoU in percent, ground-truth pixels."""
    rows = [
        (str(c.id), c.wnid or "-", c.name or "-", _number(iou), _number(boundary_iou), str(pixels))
        for c, iou, boundary_iou, pixels in _class_rows(evaluation, classes)
    ]
    return text_table(("id", "wnid", "name", "IoU", "BIoU", "pixels"), rows, left=(1, 2))


def summary_text(evaluation: Evaluation) -> str:
    """Two lines: the scores' names, and the scores in percent, ``-`` where one does not exist."""
    scores = evaluation.scores
    return text_table(tuple(scores), [tuple(_number(score) for score in scores.values())])


def evaluation_json(
    evaluation: Evaluation, classes: Sequence[ClassInfo], mode: str, match: str | None
) -> str:
    """Format everything as JSON; percentages, null where a score does not exist."""
    content = {
        "mode": mode,
        "images": evaluation.images,
        "match": match,
        "scores": {name: None if math.isnan(score) else score for name, score in evaluation.scores.items()},
        "classes": [
            {
                "id": c.id,
                "wnid": c.wnid,
                "name": c.name or None,
                "IoU": iou,
                "BIoU": boundary_iou,
                "pixels": pixels,
            }
            for c, iou, boundary_iou, pixels in _class_rows(evaluation, classes)
        ],
    }
    return json.dumps(content, indent=1, ensure_ascii=False, allow_nan=False) + "\n"


def evaluation_csv(evaluation: Evaluation, classes: Sequence[ClassInfo]) -> str:
    """Format the table of classes as CSV; percentages."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(("id", "wnid", "name", "IoU", "BIoU", "pixels"))
    for c, *numbers in _class_rows(evaluation, classes):
        writer.writerow((c.id, c.wnid or "", c.name, *numbers))
    return out.getvalue()


def _class_rows(
    evaluation: Evaluation, classes: Sequence[ClassInfo]
) -> list[tuple[ClassInfo, float, float, int]]:
    return list(
        zip(
            classes,
            evaluation.iou.tolist(),
            evaluation.boundary_iou.tolist(),
            evaluation.pixels.tolist(),
            strict=True,
        )
    )


def matching_text(matching: Matching, classes: Sequence[ClassInfo]) -> str:
    """Table of the clusters that have a class: which one, and the images and pixels they share."""
    rows = [
        (
            str(cluster),
            str(label),
            classes[label].wnid or "-",
            classes[label].name or "-",
            str(matching.images[cluster]),
            str(matching.pixels[cluster]),
        )
        for cluster, label in enumerate(matching.classes.tolist())
        if label
    ]
    header = ("cluster", "class", "wnid", "name", "shared images", "shared pixels")
    return text_table(header, rows, left=(2, 3))
