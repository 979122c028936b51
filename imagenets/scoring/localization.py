"""How well attribution maps find the object of an image's own class.

Scores (``attribution_scores``) are taken per image and averaged over images, except for ``iou_best`` (one
threshold for all images) and the two-class mIoU (pixels pooled over images).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
from scipy import ndimage

from imagenets.common.errors import InputError, problem_of, refuse
from imagenets.common.progress import Show, no_bar
from imagenets.common.tables import csv_text, or_empty
from imagenets.common.workers import process_map
from imagenets.masks import decode_mask, target_mask
from imagenets.scoring import attribution_scores as formulas
from imagenets.scoring.attribution_maps import MapFile, find_maps, load_map
from imagenets.scoring.attribution_scores import IOU_THRESHOLDS
from imagenets.scoring.bootstrap import Bootstrap, drawn_images, percentile_intervals
from imagenets.scoring.map_geometry import Geometry, labels_in_place, map_in_place, resize_map
from imagenets.scoring.metrics import mean
from imagenets.scoring.pairs import Pairs

# Means over images, in the order in which they are printed; all but the last in percent.
IMAGE_SCORES = (
    *("pointing_game", "energy", "relevance_mass", "relevance_rank", "top_k", "attribution_localization"),
    *("average_precision", "auc", "sparseness", "complexity"),
)
POOLED_SCORES = ("miou_mean", "miou_otsu")
SCORES = (*IMAGE_SCORES, "iou_best", *POOLED_SCORES)
_NATS = ("complexity",)
_SCALE = np.array([1.0 if name in _NATS else 100.0 for name in IMAGE_SCORES])


class Settings(NamedTuple):
    """How maps are scored.

    ``tolerance`` is the distance in pixels, from centre to centre, at which the pointing game still counts a
    hit: 0 for inside the target only; Zhang et al. take 15. ``ties`` says which of several largest values is
    the pointing game's: the ``first`` in row order, ``any`` that hits, or the ``share`` that hits. ``top_k``
    is the number of pixels of the score of that name.
    """

    tolerance: float = 0
    ties: str = "first"
    top_k: int = 1000


class Scores(NamedTuple):
    """Scores of one image: fractions, but ``complexity`` in nats; nan if one does not exist.

    ``iou`` (19,) at IOU_THRESHOLDS. ``two_class`` (2, 4) int64: pixels of the intersection and union of the
    object, then of the background, with the map cut at its mean, then at Otsu's threshold.
    """

    pointing_game: float
    energy: float
    relevance_mass: float
    relevance_rank: float
    top_k: float
    attribution_localization: float
    average_precision: float
    auc: float
    sparseness: float
    complexity: float
    iou: np.ndarray
    two_class: np.ndarray


@dataclass(frozen=True)
class Localization:
    """Scores of a set of maps by the names of SCORES: percent (complexity in nats), nan if none has one.

    ``iou`` (19,) is the mean IoU at each of IOU_THRESHOLDS, ``iou_best`` the largest of these: one threshold
    for all images. ``baseline`` has the same scores for a map that ignores the image, ``centre_map``.
    ``images`` counts all images, ``target_absent`` those without their target, ``outside_crop`` those whose
    target lies outside the crop; neither are scored. ``lacking`` counts the scored images without a score, by
    its name. ``by_image`` has the scores of each of ``names``, None if it is not scored. ``resized`` counts
    the maps that were interpolated, ``negative`` those with a value below 0.
    """

    scores: dict[str, float]
    iou: np.ndarray
    baseline: dict[str, float]
    images: int
    target_absent: int
    outside_crop: int
    lacking: dict[str, int]
    names: tuple[str, ...]
    by_image: list[Scores | None]
    resized: int = 0
    negative: int = 0
    settings: Settings = field(default_factory=Settings)
    geometry: Geometry | None = None


def centre_map(height: int, width: int) -> np.ndarray:
    """Baseline map (height, width): a Gaussian in the middle, σ a quarter of each side."""
    y, x = (np.exp(-8 * ((np.arange(size) + 0.5) / size - 0.5) ** 2) for size in (height, width))
    return np.outer(y, x)


_centre_map = lru_cache(maxsize=64)(centre_map)


def score_map(
    attribution: np.ndarray,
    labels: np.ndarray,
    class_id: int,
    settings: Settings | None = None,
    geometry: Geometry | None = None,
) -> Scores | None:
    """Score one attribution map (H, W) against its mask's labels (H, W); None if the target is absent.

    With a ``geometry``, the map is square, (s, s), and first put in its place; also None if the target lies
    outside the crop.

    Raises ValueError for a map that is neither floating point nor uint8, of another shape, or not finite.
    """
    fitted = fitted_map(attribution, labels.shape, resize=False, geometry=geometry)
    return _score(fitted, labels_in_place(labels, geometry), class_id, settings or Settings())


def fitted_map(
    attribution: np.ndarray, shape: tuple[int, int], resize: bool, geometry: Geometry | None
) -> np.ndarray:
    """Resize a map to the size at which it is scored. Raises ValueError if it does not fit a mask of this
    shape."""
    attribution = plane(attribution)
    problem = map_problem(attribution) or _shape_problem(attribution.shape, shape, resize, geometry)
    if problem:
        raise ValueError(problem)
    if geometry is not None:
        return map_in_place(attribution, shape, geometry)
    return resize_map(attribution, *shape)


def plane(attribution: np.ndarray) -> np.ndarray:
    """Drop the first axis of a map (1, H, W)."""
    return attribution[0] if attribution.ndim == 3 and attribution.shape[0] == 1 else attribution


def map_problem(attribution: np.ndarray) -> str | None:
    """Say why an array is not an attribution map; None if it is one."""
    if attribution.dtype.kind != "f" and attribution.dtype != np.uint8:
        return f"of type {attribution.dtype}; save floating point values, or uint8"
    if attribution.ndim != 2 or not attribution.size:
        return f"of shape {attribution.shape}; save one map, (height, width)"
    finite = np.isfinite(attribution)
    if not finite.all():
        y, x = np.argwhere(~finite)[0]
        return f"{np.count_nonzero(~finite)} values are nan or infinite, the first in row {y}, column {x}"
    return None


def _shape_problem(
    own: tuple[int, ...], shape: tuple[int, ...], resize: bool, geometry: Geometry | None
) -> str | None:
    if geometry is not None:
        return None if own[0] == own[1] else f"of shape {own}; maps of geometry {geometry} are square"
    if own == shape:
        return None
    if own == shape[::-1]:
        return f"of shape {own}, but its mask has {shape}; is it transposed?"  # stretching it would hide that
    return None if resize else f"of shape {own}, but its mask has {shape}; resize it to its image"


def _score(attribution: np.ndarray, labels: np.ndarray, class_id: int, settings: Settings) -> Scores | None:
    target, void = target_mask(labels, class_id)
    scored = ~void
    inside = target[scored]
    if not inside.any():
        return None
    values = attribution[scored]
    near = inside
    if settings.tolerance:
        near = (ndimage.distance_transform_edt(~target) <= settings.tolerance)[scored]
    ranking = formulas.rank_pixels(values, inside)
    scaled = formulas.scale_to_unit(values)
    cuts = (scaled.mean(), formulas.otsu_threshold(scaled))
    return Scores(
        pointing_game=formulas.pointing_game(values, near, settings.ties),
        energy=formulas.energy(values, inside),
        relevance_mass=formulas.relevance_mass(values, inside),
        relevance_rank=formulas.relevance_rank(ranking),
        top_k=formulas.top_k_intersection(ranking, settings.top_k),
        attribution_localization=formulas.attribution_localization(values, inside),
        average_precision=formulas.average_precision(ranking),
        auc=formulas.roc_auc(ranking),
        sparseness=formulas.sparseness(values),
        complexity=formulas.complexity(values),
        iou=formulas.iou_at_thresholds(scaled, inside),
        two_class=np.stack([formulas.two_class_counts(scaled > cut, inside) for cut in cuts]),
    )


def evaluate_maps(
    pairs: Pairs,
    class_ids: Mapping[str, int],
    settings: Settings | None = None,
    workers: int = 0,
    show: Show = no_bar,
    resize: bool = False,
    geometry: Geometry | None = None,
) -> Localization:
    """Score the map of every mask ``<wnid>/<name>.png``; for its possible places see ``find_maps``.

    ``pairs.predict_dir`` holds the maps; ``class_ids``: the class id of each wnid folder. ``workers`` is
    a number of processes (0: this one), ``show`` opens a progress bar. Maps of another size than their mask
    are an error; with ``resize``, interpolated. If all maps have the same square size, a ``geometry`` must
    say how they lie on their images.

    Raises InputError that lists the files that cannot be used, or when a worker process dies.
    """
    settings = settings or Settings()
    maps, missing = find_maps(pairs.predict_dir, pairs.names)
    refuse(missing, "file")  # before the long work
    jobs = [
        (pairs.gt_dir / name, file, class_ids[name.partition("/")[0]])
        for name, file in zip(pairs.names, maps, strict=True)
    ]
    task = _ScoreFile(settings, max(class_ids.values()), resize, geometry)
    results: list[_Scored] = []
    with process_map(workers) as mapped, show("maps", len(jobs), unit="map") as advance:
        for result in mapped(task, jobs):
            results.append(result)
            advance(1)
    if geometry is None:
        _refuse_one_square(pairs.predict_dir, results)
    refuse([problem for result in results for problem in result.problems], "file")
    return _averaged(pairs.names, results, settings, geometry)


class _Scored(NamedTuple):
    """One image: its scores and the baseline's (None: not scored), its map's shape, and what is wrong."""

    scores: Scores | None = None
    baseline: Scores | None = None
    outside_crop: bool = False
    shape: tuple[int, ...] = ()
    other_size: bool = False
    negative: bool = False
    problems: Sequence[str] = ()


@dataclass(frozen=True)
class _ScoreFile:
    """Scores one image's mask and map for its class."""

    settings: Settings
    classes: int
    resize: bool
    geometry: Geometry | None

    def __call__(self, job: tuple[Path, MapFile, int]) -> _Scored:
        mask, file, class_id = job
        problems = []
        labels = attribution = None
        try:
            labels = decode_mask(mask, self.classes)
        except (InputError, OSError) as error:
            problems.append(problem_of(error, mask))
        try:
            attribution = plane(load_map(file))
        except (InputError, OSError) as error:
            problems.append(problem_of(error, str(file)))
        if labels is None or attribution is None:
            return _Scored(problems=problems)
        scored = _Scored(shape=attribution.shape, other_size=attribution.shape != labels.shape)
        try:
            fitted = fitted_map(attribution, labels.shape, self.resize, self.geometry)
        except ValueError as error:
            return scored._replace(problems=[f"{file}: {error}"])
        judged = labels_in_place(labels, self.geometry)
        scores = _score(fitted, judged, class_id, self.settings)
        return scored._replace(
            scores=scores,
            baseline=scores and _score(_centre_map(*judged.shape), judged, class_id, self.settings),
            outside_crop=scores is None and bool((labels == class_id).any()),
            negative=bool((attribution < 0).any()),
        )


def _refuse_one_square(folder: Path, results: Sequence[_Scored]) -> None:
    """Raise InputError if all maps have the same square size, unlike their images."""
    shapes = {result.shape for result in results}
    if len(shapes) > 1 or not any(result.other_size for result in results):
        return
    (shape,) = shapes
    if len(shape) == 2 and shape[0] == shape[1]:
        raise InputError(
            f"{folder}: all maps are {shape[0]} x {shape[1]}, whatever the size of their image; say how they "
            "lie on it: geometry squeeze, where the whole image was squeezed into a square, or geometry "
            "center-crop:256,224 (paste:256,224), after Resize(256) and CenterCrop(224)"
        )


def _averaged(
    names: Sequence[str], results: Sequence[_Scored], settings: Settings, geometry: Geometry | None
) -> Localization:
    by_image = [result.scores for result in results]
    of_images, _ = _columns(by_image)
    scored = np.array([scores is not None for scores in by_image])
    lacking = np.isnan(of_images[scored]).sum(axis=0).tolist()
    judged_size = (geometry.crop, geometry.crop) if geometry and geometry.kind != "squeeze" else None
    scores, iou = _means(by_image)
    outside_crop = sum(result.outside_crop for result in results)
    return Localization(
        scores=scores,
        iou=iou,
        baseline=_means([result.baseline for result in results])[0],
        images=len(results),
        target_absent=int(np.count_nonzero(~scored)) - outside_crop,
        outside_crop=outside_crop,
        lacking=dict(zip(IMAGE_SCORES, lacking, strict=False)),
        names=tuple(names),
        by_image=by_image,
        resized=sum(r.other_size if judged_size is None else r.shape != judged_size for r in results),
        negative=sum(result.negative for result in results),
        settings=settings,
        geometry=geometry,
    )


def _columns(by_image: Sequence[Scores | None]) -> tuple[np.ndarray, np.ndarray]:
    """Lay out the images' scores, nan for None: (n, 10 + 19) float64 and (n, 2, 4) int64.

    The former are IMAGE_SCORES in their units and the IoUs in percent, the latter ``two_class``.
    """
    columns = len(IMAGE_SCORES)
    images = np.full((len(by_image), columns + IOU_THRESHOLDS.size), math.nan)
    two_class = np.zeros((len(by_image), len(POOLED_SCORES), 4), np.int64)
    for i, scores in enumerate(by_image):
        if scores is not None:
            images[i, :columns] = np.array(scores[:columns]) * _SCALE
            images[i, columns:] = 100 * scores.iou
            two_class[i] = scores.two_class
    return images, two_class


def _means(by_image: Sequence[Scores | None]) -> tuple[dict[str, float], np.ndarray]:
    """Average over the images: all of SCORES, and the IoU at every threshold."""
    images, two_class = _columns(by_image)
    return _named(np.array([mean(column[~np.isnan(column)]) for column in images.T]), two_class.sum(axis=0))


def _named(means: np.ndarray, two_class: np.ndarray) -> tuple[dict[str, float], np.ndarray]:
    """Name means (10 + 19,) and pooled counts (2, 4) as SCORES does; also the IoU at every threshold."""
    by_image, iou = means[: len(IMAGE_SCORES)].tolist(), means[len(IMAGE_SCORES) :]
    pooled = [100 * formulas.pooled_two_class(counts) for counts in two_class]
    return dict(zip(SCORES, [*by_image, float(iou.max()), *pooled], strict=True)), iou


def localization_intervals(result: Localization, resamples: int, seed: int) -> Bootstrap:
    """Find the 95% interval of every score by resampling the images, as ``scoring.bootstrap`` does.

    The best threshold is found again in every resample.
    """
    images, two_class = _columns(result.by_image)
    there = ~np.isnan(images)
    values, defined = np.where(there, images, 0), there.astype(np.float64)
    scores: dict[str, list[float]] = {name: [] for name in SCORES}
    for drawn in drawn_images(len(values), resamples, seed):
        times = np.bincount(drawn, minlength=len(values))
        count = times @ defined
        means = np.where(count > 0, times @ values / np.maximum(count, 1), math.nan)
        named, _ = _named(means, np.tensordot(times, two_class, axes=1))
        for name, score in named.items():
            scores[name].append(score)
    return Bootstrap(resamples, seed, percentile_intervals({k: np.array(v) for k, v in scores.items()}))


def localization_csv(result: Localization) -> str:
    """Format the scores of every image as CSV, in percent (complexity in nats); nothing if it has none.

    ``iou_best`` is the IoU at the threshold that is best for all images. Columns average to the scores.
    """
    best = int(np.argmax(result.iou))
    thresholds = [f"iou_{threshold:.2f}" for threshold in IOU_THRESHOLDS]
    rows = []
    for name, row in zip(result.names, _columns(result.by_image)[0].tolist(), strict=True):
        scores, iou = row[: len(IMAGE_SCORES)], row[len(IMAGE_SCORES) :]
        rows.append((name, *map(or_empty, (*scores, iou[best], *iou))))
    return csv_text(("name", *IMAGE_SCORES, "iou_best", *thresholds), rows)


def localization_json(result: Localization) -> dict[str, object]:
    """Lay the scores out for JSON: None if there is none; ``iou`` by threshold; how maps were scored."""

    def number(score: float) -> float | None:
        return None if math.isnan(score) else float(score)

    return {
        **{name: number(score) for name, score in result.scores.items()},
        "iou": {f"{t:.2f}": number(iou) for t, iou in zip(IOU_THRESHOLDS, result.iou, strict=True)},
        "baseline": {name: number(score) for name, score in result.baseline.items()},
        "images": result.images,
        "target_absent": result.target_absent,
        "outside_crop": result.outside_crop,
        "geometry": None if result.geometry is None else str(result.geometry),
        "settings": result.settings._asdict(),
    }
