"""Two methods on one HTML page: scores and differences, classes gained and lost, images side by side."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from imagenets.classes import IGNORE, ClassInfo, label_name
from imagenets.masks import decode_mask
from imagenets.reporting.charts import class_difference_chart, difference_chart
from imagenets.reporting.comparison_text import comparison_note
from imagenets.reporting.image_scores import IMAGES_PER_GROUP, image_label_ious, image_mean_iou
from imagenets.reporting.pages import Legend, label_colour, label_legend, names_of_folders, render_page
from imagenets.reporting.thumbnails import Panel, draw_groups, mask_panels, shrunk
from imagenets.scoring.comparison import Comparison, Method
from imagenets.scoring.matching import class_lookup
from imagenets.scoring.metrics import predicted_classes


@dataclass(frozen=True)
class Methods:
    """What a page compares: methods A and B, and where their ground truth and images lie.

    Images come from ``image_dir``, if given. ``title`` is the heading (default: the mode's name), ``date``
    the printed date.
    """

    mode: str
    gt_dir: Path
    a: Method
    b: Method
    classes: Sequence[ClassInfo]
    image_dir: Path | None = None
    title: str | None = None
    date: str | None = None


def comparison_html(methods: Methods, comparison: Comparison) -> str:
    """Format a comparison as a page; the same input makes the same page.

    Only masks and images that are shown are read.

    Raises InputError, listing them, when images that are shown cannot be read.
    """
    intervals = comparison.bootstrap.intervals
    significant = {name: comparison.is_significant(name) for name in comparison.differences}
    names = (methods.a.name, methods.b.name)
    differences = comparison.class_differences()
    return render_page(
        "comparison.html",
        date=methods.date,
        methods=methods,
        comparison=comparison,
        note=comparison_note(methods.a, methods.b, comparison),
        intervals=intervals,
        significant=significant,
        difference_chart=difference_chart(comparison.differences, intervals, significant, names),
        class_chart=class_difference_chart(differences, names),
        changed={
            "Gained": [_class_row(methods, comparison, label) for label in comparison.gained()],
            "Lost": [_class_row(methods, comparison, label) for label in comparison.lost()],
        },
        counts=[int(np.count_nonzero(d > 0)) for d in (differences, -differences)],
        classes=[_class_row(methods, comparison, c.id) for c in methods.classes],
        groups=_image_groups(methods),
    )


def _class_row(methods: Methods, comparison: Comparison, label: int) -> dict[str, Any]:
    info = methods.classes[label]
    a, b = float(comparison.a.iou[label]), float(comparison.b.iou[label])
    return {
        "label": info,
        "name": label_name(info),
        "colour": label_colour(label),
        "a": a,
        "b": b,
        "difference": a - b,
        "pixels": int(comparison.a.pixels[label]),
    }


def _image_groups(methods: Methods) -> dict[str, list[dict[str, Any]]]:
    """The images whose mean IoU differs most, by who is better."""
    a, b = (_mean_iou_of_images(method) for method in (methods.a, methods.b))
    names = methods.a.runs[0].table.names
    folder_names = names_of_folders(methods.classes)

    def draw(image: int) -> dict[str, Any]:
        panels, legends = _draw(methods, image)
        return {
            "name": names[image].removesuffix(".png"),
            "class_name": folder_names.get(Path(names[image]).parts[0]),
            "a": float(a[image]),
            "b": float(b[image]),
            "difference": float(a[image] - b[image]),
            "panels": panels,
            "legends": legends,
        }

    better = {f"{methods.a.name} better": _most_different(a - b)}
    better[f"{methods.b.name} better"] = _most_different(b - a)
    return draw_groups(better, draw)


def _mean_iou_of_images(method: Method) -> np.ndarray:
    """Mean IoU of each image, (images,) float64, as the mean over the runs."""
    of_runs = []
    for run in method.runs:
        labels = image_label_ious(run.table, predicted_classes(run.table, run.classes))
        of_runs.append(image_mean_iou(labels, len(run.table.names)))
    result: np.ndarray = np.mean(of_runs, axis=0)
    return result


def _most_different(gain: np.ndarray) -> list[int]:
    """Images of the largest gains > 0, largest first; equal ones in the order of their names."""
    rounded = np.nan_to_num(gain.round(9))  # rounding errors of a sum do not order images
    order = np.argsort(-rounded, kind="stable")[:IMAGES_PER_GROUP]
    return [image for image in order.tolist() if rounded[image] > 0]


def _draw(methods: Methods, image: int) -> tuple[list[Panel], list[Legend]]:
    """Draw an image, its ground truth and the first run of both; and name the labels of each mask."""
    name = methods.a.runs[0].table.names[image]
    masks = {"ground truth": decode_mask(methods.gt_dir / name)}
    for method in (methods.a, methods.b):
        run = method.runs[0]
        # At ignored pixels a prediction may have labels that no matching contains.
        masks[method.name] = class_lookup(run.matching)[decode_mask(Path(run.predict_dir) / name)]
    picture, masks = shrunk(masks, methods.image_dir, name)
    ignored = masks["ground truth"] == IGNORE
    drawn = {title: (mask, ignored if title == "ground truth" else None) for title, mask in masks.items()}
    legends = [
        label_legend(title, methods.classes, *np.unique(mask[~ignored], return_counts=True))
        for title, mask in masks.items()
    ]
    return mask_panels(picture, drawn, methods.image_dir is None), legends
