"""Accuracies of a classifier as one HTML page: with its classes and the best, the worst and random images."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from imagenets.classes import BACKGROUND, IGNORE, ClassInfo, label_name
from imagenets.masks import decode_mask
from imagenets.reporting.charts import condition_chart
from imagenets.reporting.classification_text import Condition
from imagenets.reporting.image_scores import choose_images
from imagenets.reporting.pages import label_colour, render_page
from imagenets.reporting.text import bootstrap_note
from imagenets.reporting.thumbnails import draw_groups, mask_panels, shrunk
from imagenets.scoring.bootstrap import Bootstrap
from imagenets.scoring.classification import Classified, ClassScores, Difference


@dataclass(frozen=True)
class ClassPage:
    """What a page is about. Images are shown if ``gt_dir`` has their masks; photographs are optional."""

    title: str
    outputs: str
    classes: Sequence[ClassInfo]
    gt_dir: Path | None = None
    image_dir: Path | None = None
    date: str | None = None


def classification_html(
    page: ClassPage, classified: Classified, scored: ClassScores, bootstrap: Bootstrap, seed: int = 0
) -> str:
    """Format a classifier's scores as a page; ``seed`` draws the random images.

    Raises InputError, listing them, when images that are shown cannot be read.
    """
    rows = [
        {
            "label": info,
            "name": label_name(info),
            "colour": label_colour(info.id),
            "accuracies": [float(values[info.id - 1]) for values in scored.by_class.values()],
            "images": int(scored.images[info.id - 1]),
        }
        for info in page.classes[1:]
        if scored.images[info.id - 1]
    ]
    return render_page(
        "classification.html",
        date=page.date,
        page=page,
        scored=scored,
        images=len(classified.names),
        intervals=bootstrap.intervals,
        bootstrap_note=bootstrap_note(bootstrap),
        classes=rows,
        groups=None if page.gt_dir is None else _groups(page, page.gt_dir, classified, seed),
    )


def _groups(
    page: ClassPage, gt_dir: Path, classified: Classified, seed: int
) -> dict[str, list[dict[str, Any]]]:
    """Groups of images: by the logit's margin, or, of class indices, by the rank of the truth."""
    by_rank = np.isnan(classified.margin).all()
    rank = -np.minimum(classified.rank, classified.depth).astype(float)

    def draw(image: int) -> dict[str, Any]:
        name = classified.names[image]
        truth, predicted = int(classified.class_id[image]), int(classified.predicted[image])
        labels = decode_mask(gt_dir / f"{name}.png")
        target = np.where((labels == truth) | (labels == IGNORE), labels, BACKGROUND)
        picture, masks = shrunk({"object": target}, page.image_dir, f"{name}.png")
        target = masks["object"]
        return {
            "name": name,
            "truth": label_name(page.classes[truth]),
            "predicted": label_name(page.classes[predicted]) if predicted else "a class beyond the mode",
            "right": classified.rank[image] == 0,
            "margin": None if by_rank else float(classified.margin[image]),
            "panels": mask_panels(picture, {"object": (target, target == IGNORE)}, page.image_dir is None),
        }

    return draw_groups(choose_images(rank if by_rank else classified.margin, seed), draw)


def conditions_html(
    conditions: Sequence[Condition], gap: Difference | None, title: str, images: int, date: str | None = None
) -> str:
    """Format a classifier's scores by condition as a page with a chart."""
    first = conditions[0].scores
    shown = "top1" if "top1" in first else next(iter(first))
    return render_page(
        "conditions.html",
        date=date,
        title=title,
        images=images,
        conditions=conditions,
        gap=gap,
        bootstrap_note=bootstrap_note(conditions[0].bootstrap),
        chart_svg=condition_chart(
            [c.name for c in conditions],
            [c.scores[shown] for c in conditions],
            [c.bootstrap.intervals[shown] for c in conditions],
        ),
    )
