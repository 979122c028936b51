"""Scores of attribution maps as one HTML page: with the best, the worst and random images."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np

from imagenets.classes import IGNORE
from imagenets.images import find_image, read_image
from imagenets.masks import decode_mask
from imagenets.reporting.image_scores import choose_images
from imagenets.reporting.pages import render_page
from imagenets.reporting.text import bootstrap_note
from imagenets.reporting.thumbnails import Panel, draw_groups, mask_panels, panel, shrunk_picture
from imagenets.scoring.attribution_maps import find_maps, load_map
from imagenets.scoring.attribution_scores import scale_to_unit
from imagenets.scoring.bootstrap import Bootstrap
from imagenets.scoring.localization import Localization, fitted_map
from imagenets.scoring.map_geometry import image_in_place, labels_in_place
from imagenets.scoring.pairs import Pairs

_SORTED_BY = "energy"
_OPACITY = 0.65  # of the map over its picture

_NOTES = {
    "pointing_game": "the largest value is inside the object",
    "energy": "positive values inside, of all positive values",
    "relevance_mass": "values inside, of all values, signs kept",
    "relevance_rank": "of as many largest values as the object has pixels, those inside",
    "top_k": "of the largest {k} values, those inside",
    "attribution_localization": "absolute values inside, of all absolute values",
    "average_precision": "area under the precision-recall curve over the pixels",
    "auc": "area under the ROC curve over the pixels",
    "sparseness": "Gini index of the absolute values, wherever they lie",
    "complexity": "entropy of the absolute values in nats, wherever they lie",
    "iou_best": "IoU of object and map at the one threshold that is best for all images",
    "miou_mean": "mIoU of object and background, map cut at its mean; pixels pooled over images",
    "miou_otsu": "the same, cut at Otsu's threshold",
}


@dataclass(frozen=True)
class MapPage:
    """Content of a page: the folders of maps, masks and images, and the class id of each wnid folder."""

    title: str
    pairs: Pairs
    class_ids: Mapping[str, int]
    resize: bool = False
    image_dir: Path | None = None
    date: str | None = None


def localization_html(page: MapPage, result: Localization, bootstrap: Bootstrap | None, seed: int = 0) -> str:
    """Format scores of maps as a page; ``seed`` draws the random images.

    Raises InputError, listing them, when images that are shown cannot be read.
    """
    intervals = {} if bootstrap is None else bootstrap.intervals
    rows = [
        {
            "name": name,
            "note": _NOTES[name].format(k=result.settings.top_k),
            "score": score,
            "baseline": result.baseline[name],
            "interval": intervals.get(name),
        }
        for name, score in result.scores.items()
    ]
    return render_page(
        "localization.html",
        date=page.date,
        page=page,
        result=result,
        rows=rows,
        bootstrap_note=None if bootstrap is None else bootstrap_note(bootstrap),
        sorted_by=_SORTED_BY,
        groups=_groups(page, result, seed),
    )


def _groups(page: MapPage, result: Localization, seed: int) -> dict[str, list[dict[str, Any]]]:
    sort_by = np.array([math.nan if s is None else getattr(s, _SORTED_BY) for s in result.by_image])
    maps, _ = find_maps(page.pairs.predict_dir, page.pairs.names)

    def draw(image: int) -> dict[str, Any]:
        name = result.names[image]
        labels = decode_mask(page.pairs.gt_dir / name)
        height, width = labels.shape
        values = fitted_map(load_map(maps[image]), (height, width), page.resize, result.geometry)
        judged = labels_in_place(labels, result.geometry)
        picture = None
        if page.image_dir is not None:
            picture = image_in_place(
                read_image(find_image(page.image_dir, name), labels.shape), result.geometry
            )
        class_id = page.class_ids[name.partition("/")[0]]
        target = np.where((judged == class_id) | (judged == IGNORE), judged, 0)
        scores = result.by_image[image]
        assert scores is not None  # choose_images skips images that are not scored
        return {
            "name": name.removesuffix(".png"),
            "scores": {what: 100 * getattr(scores, what) for what in ("energy", "pointing_game", "auc")},
            "panels": _panels(picture, values, target),
        }

    return draw_groups(choose_images(sort_by, seed), draw)


def _panels(picture: Any, values: np.ndarray, target: np.ndarray) -> list[Panel]:  # noqa: ANN401
    """Draw the picture, if there is one, the map over it, and the object."""
    pixels, arrays = shrunk_picture({"map": scale_to_unit(values), "target": target}, picture)
    target = arrays["target"]
    panels = mask_panels(pixels, {"object": (target, target == IGNORE)}, drawn=picture is None)
    panels.insert(-1, panel("map", draw_map(pixels, arrays["map"]), drawn=False))
    return panels


def draw_map(picture: np.ndarray, scaled: np.ndarray) -> np.ndarray:
    """Blend a map (H, W) of 0..1 over a picture (H, W, 3) uint8: dark is 0, bright is 1; (H, W, 3) uint8."""
    colours = matplotlib.colormaps["inferno"](scaled)[..., :3] * 255
    gray = picture.mean(axis=2, keepdims=True)
    painted: np.ndarray = (_OPACITY * colours + (1 - _OPACITY) * gray).round().astype(np.uint8)
    return painted
