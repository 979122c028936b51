"""An evaluation as one HTML page: scores, charts, tables and images, in one file that works offline."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from imagenets.classes import BACKGROUND, MODES, ClassInfo, label_name
from imagenets.masks import decode_mask
from imagenets.reporting.charts import bucket_chart, class_chart
from imagenets.reporting.confusions import Confusions, MatchedCluster, find_confusions, matched_clusters
from imagenets.reporting.image_scores import ImageLabels, choose_images, image_label_ious, image_mean_iou
from imagenets.reporting.overlays import DISAGREEMENT, draw_panels
from imagenets.reporting.pages import (
    Legend,
    hex_colour,
    label_colour,
    label_legend,
    names_of_folders,
    render_page,
)
from imagenets.reporting.published import Standing
from imagenets.reporting.standing import standing_section
from imagenets.reporting.text import outside_note
from imagenets.reporting.thumbnails import Panel, draw_groups, panel, shrunk
from imagenets.scoring.bootstrap import outside_intervals
from imagenets.scoring.contingency import ContingencyTable
from imagenets.scoring.matching import Matching, class_lookup
from imagenets.scoring.metrics import Evaluation

CONFUSIONS = 15

_NOTES = {
    "mIoU": "mean IoU over all {labels} labels, background included; pixels pooled over all images",
    "mBIoU": "the same on boundary pixels only",
    "FMeasure": "objects against background, whatever their class; mean over images",
    "Acc": "images whose largest predicted class is in the ground truth",
    "S": "mIoU of objects up to 5 % of their image",
    "MS": "mIoU of objects above 5 %, up to 25 %",
    "ML": "mIoU of objects above 25 %, up to 50 %",
    "L": "mIoU of objects above 50 %",
    "BS": "boundary IoU of objects up to 5 %",
    "BMS": "boundary IoU of objects above 5 %, up to 25 %",
    "BML": "boundary IoU of objects above 25 %, up to 50 %",
    "BL": "boundary IoU of objects above 50 %",
}


@dataclass(frozen=True)
class Subject:
    """The content of a report except the scores.

    ``table`` counts the masks in ``gt_dir`` and ``predict_dir``. ``matching`` is None if predictions hold
    class ids; ``match`` is the user's name of it. Images come from ``image_dir``, if given. The page shows
    the paths as given here. ``title`` is the heading (default: the mode's name), ``date`` the printed date.
    ``standings`` are results to show beside the run's own, whose protocol is ``protocol``, if known.
    ``warnings`` say why the scores may not be what was meant.
    """

    mode: str
    gt_dir: Path
    predict_dir: Path
    table: ContingencyTable
    classes: Sequence[ClassInfo]
    matching: Matching | None = None
    match: str | None = None
    image_dir: Path | None = None
    title: str | None = None
    date: str | None = None
    standings: Sequence[Standing] = ()
    protocol: str | None = None
    warnings: Sequence[str] = ()


def html_report(
    subject: Subject,
    evaluation: Evaluation,
    intervals: Mapping[str, tuple[float, float]] | None = None,
    seed: int = 0,
) -> str:
    """Format an evaluation as a page; the same input makes the same page.

    ``intervals`` are confidence intervals in percent by the names of the scores; a score without one, or with
    one of nan, is shown without.
    Where a score lies outside its interval the page says so instead. ``seed`` draws the random images. Masks
    and images are read of the images shown, and no others.

    Raises InputError, listing them, when images that are shown cannot be read.
    """
    intervals = {name: i for name, i in (intervals or {}).items() if not any(map(math.isnan, i))}
    outside = outside_intervals(evaluation.scores, intervals)
    reliable = {name: interval for name, interval in intervals.items() if name not in outside}
    table = subject.table
    of_label = class_lookup(subject.matching)
    predicted = of_label[table.prediction]
    labels = image_label_ious(table, predicted)
    confusions = find_confusions(table, predicted)
    scores = [
        {
            "name": name,
            "value": evaluation.scores[name],
            "interval": reliable.get(name),
            "unreliable": name in outside,
            "note": note.format(labels=evaluation.iou.size),
        }
        for name, note in _NOTES.items()
    ]
    miou, interval = evaluation.scores["mIoU"], reliable.get("mIoU")
    run = Standing(
        subject.protocol or "", subject.mode, "this run", "", "", "", val=miou, test=math.nan, own=True
    )
    return render_page(
        "report.html",
        date=subject.date,
        subject=subject,
        images=evaluation.images,
        scores=scores,
        standing=standing_section(run, evaluation.images, interval, subject.standings)
        if subject.mode in MODES
        else None,
        has_intervals=bool(reliable),
        outside=outside_note(evaluation.scores, intervals),
        bucket_chart=bucket_chart(evaluation.scores, reliable),
        class_chart=class_chart(evaluation.iou, [label_name(c) for c in subject.classes]),
        classes=_class_rows(subject, evaluation, confusions),
        confusions=_confusion_tables(subject.classes, evaluation, confusions),
        clusters=_cluster_rows(subject),
        groups=_image_groups(subject, labels, of_label, seed),
        kinds={kind: hex_colour(colour) for kind, colour in DISAGREEMENT.items()},
    )


def _class_rows(subject: Subject, evaluation: Evaluation, confusions: Confusions) -> list[dict[str, Any]]:
    classes = subject.classes
    # Confusions are sorted: the first of a class is its largest.
    found, first = np.unique(confusions.ground_truth, return_index=True)
    largest = dict(zip(found.tolist(), first.tolist(), strict=True))
    rows = []
    for c in classes:
        pixels = int(evaluation.pixels[c.id])
        row: dict[str, Any] = {
            "label": c,
            "name": label_name(c),
            "colour": label_colour(c.id),
            "iou": float(evaluation.iou[c.id]),
            "boundary_iou": float(evaluation.boundary_iou[c.id]),
            "images": int(evaluation.label_images[c.id]),
            "pixels": pixels,
            "taken_for": None,
            "taken_percent": 0.0,
        }
        if c.id in largest:
            place = largest[c.id]
            row["taken_for"] = label_name(classes[int(confusions.prediction[place])])
            row["taken_percent"] = 100 * int(confusions.pixels[place]) / pixels
        rows.append(row)
    return rows


def _confusion_tables(
    classes: Sequence[ClassInfo], evaluation: Evaluation, confusions: Confusions
) -> dict[str, list[dict[str, Any]]]:
    between = (confusions.ground_truth != BACKGROUND) & (confusions.prediction != BACKGROUND)
    chosen = {"Background included": np.ones(between.size, bool), "Class for class": between}
    return {
        title: [
            {
                "ground_truth": classes[confusions.ground_truth[i]],
                "prediction": classes[confusions.prediction[i]],
                "names": [
                    label_name(classes[side[i]]) for side in (confusions.ground_truth, confusions.prediction)
                ],
                "pixels": int(confusions.pixels[i]),
                "percent": 100
                * int(confusions.pixels[i])
                / int(evaluation.pixels[confusions.ground_truth[i]]),
            }
            for i in np.flatnonzero(keep)[:CONFUSIONS]
        ]
        for title, keep in chosen.items()
    }


def _cluster_rows(subject: Subject) -> list[dict[str, Any]] | None:
    if subject.matching is None:
        return None
    classes = subject.classes
    present = set(np.unique(subject.table.ground_truth).tolist())
    return [
        {
            "match": match,
            "name": label_name(classes[match.label]) if match.label else "no class (background)",
            "colour": label_colour(match.label),
            "percent": 100 * match.pixels / match.size if match.size else 0.0,
            "mostly": "–" if match.mostly is None else label_name(classes[match.mostly]),
            "stray": match.label != BACKGROUND and match.pixels == 0,
            "why": _why_stray(match, present),
        }
        for match in matched_clusters(subject.table, subject.matching, len(classes) - 1)
    ]


def _why_stray(match: MatchedCluster, present: set[int]) -> str:
    if match.mostly is None:
        return "no prediction uses it"
    if match.label not in present:
        return "its class is not in these images"
    return "it lies elsewhere"


def _image_groups(
    subject: Subject, labels: ImageLabels, of_label: np.ndarray, seed: int
) -> dict[str, list[dict[str, Any]]]:
    """Groups of images by title, each image drawn once."""
    mean_iou = image_mean_iou(labels, len(subject.table.names))
    folder_names = names_of_folders(subject.classes)

    def draw(image: int) -> dict[str, Any]:
        return {
            "name": subject.table.names[image].removesuffix(".png"),
            "class_name": folder_names.get(Path(subject.table.names[image]).parts[0]),
            "mean_iou": float(mean_iou[image]),
            "panels": _image_panels(subject, image, of_label),
            "legends": _image_legends(subject.classes, labels, image),
        }

    return draw_groups(choose_images(mean_iou, seed), draw)


def _image_legends(classes: Sequence[ClassInfo], labels: ImageLabels, image: int) -> list[Legend]:
    """The labels of an image's ground truth, with their IoU, and those of its prediction."""
    entries = labels.image == image
    label, iou = labels.label[entries], labels.iou[entries]
    ious = dict(zip(label.tolist(), iou.tolist(), strict=True))
    return [
        label_legend("ground truth", classes, label, labels.truth[entries], ious),
        label_legend("prediction", classes, label, labels.prediction[entries]),
    ]


def _image_panels(subject: Subject, image: int, of_label: np.ndarray) -> list[Panel]:
    name = subject.table.names[image]
    masks = {
        "ground truth": decode_mask(subject.gt_dir / name),
        "prediction": of_label[decode_mask(subject.predict_dir / name)],
    }
    drawn = subject.image_dir is None
    picture, masks = shrunk(masks, subject.image_dir, name)
    panels = draw_panels(picture, masks["ground truth"], masks["prediction"], plain=drawn)
    return [
        panel(field.replace("_", " "), pixels, drawn)
        for field, pixels in panels._asdict().items()
        if field != "picture" or not drawn
    ]
