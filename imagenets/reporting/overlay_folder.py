"""Overlays as PNG files, one for each image: all of them, or none when an input cannot be used."""

from __future__ import annotations

import math
import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont, PngImagePlugin

from imagenets.classes import MAX_LABEL
from imagenets.common.errors import InputError, listed, problem_of, quantity
from imagenets.common.locks import locked
from imagenets.common.progress import Show, no_bar
from imagenets.common.workers import process_map
from imagenets.images import find_image, read_image
from imagenets.masks import decode_mask
from imagenets.reporting.legend import INK, PAPER, Group, font_size, label_entries, with_legend
from imagenets.reporting.overlays import DISAGREEMENT, Panels, draw_panels
from imagenets.scoring.matching import Matching
from imagenets.scoring.pairs import Pairs

# In every overlay, so that no other file is ever replaced.
_MARK = ("Software", "ImageNet-S toolbox: overlay")
_TEMPORARY = ".overlays.tmp"  # in the folder of the overlays, while they are drawn
_IGNORED = (110, 110, 110)  # between the two grays of the stripes


@dataclass(frozen=True)
class Drawing:
    """What the masks and images mean.

    ``names`` are the names of labels 0..N, None if the mode is unknown: any label is then drawn, named by
    its id. Without ``matching``, predictions hold class ids.
    """

    image_dir: Path
    names: Sequence[str] | None = None
    matching: Matching | None = None


def write_overlays(pairs: Pairs, drawing: Drawing, out: Path, workers: int, show: Show = no_bar) -> None:
    """Draw every pair over its image and write ``<out>/<wnid>/<name>.png``, replacing earlier overlays.

    A file has the image, the ground truth, the prediction and their disagreement side by side, full size,
    with a legend. ``workers`` is a number of processes (0: this one), ``show`` opens a progress bar.

    Raises InputError when an input cannot be used, or a file that is not an overlay is in the place of one;
    ``out`` is then as it was.
    """
    _refuse_foreign(out, pairs.names)
    new = not out.exists()
    out.mkdir(parents=True, exist_ok=True)
    try:
        with locked(out / ".overlays.lock"):
            _write_all(pairs, drawing, out, workers, show)
    finally:
        if new and not any(out.iterdir()):
            out.rmdir()


def _write_all(pairs: Pairs, drawing: Drawing, out: Path, workers: int, show: Show) -> None:
    temporary = out / _TEMPORARY
    shutil.rmtree(temporary, ignore_errors=True)  # of a run that was killed
    temporary.mkdir()
    try:
        draw = partial(_draw_file, pairs, drawing, temporary)
        problems: list[str] = []
        with process_map(workers) as mapped, show("overlays", len(pairs.names), unit="image") as advance:
            for of_image in mapped(draw, pairs.names):
                problems += of_image
                advance(1)
        if problems:
            raise InputError(
                f"{quantity(len(problems), 'image')} cannot be drawn:\n{listed(problems)}", problems
            )
        for name in pairs.names:
            (out / name).parent.mkdir(parents=True, exist_ok=True)
            (temporary / name).replace(out / name)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _refuse_foreign(out: Path, names: Sequence[str]) -> None:
    foreign = [str(out / name) for name in names if not _may_write(out / name)]
    if foreign:
        raise InputError(
            f"{len(foreign)} files that are not overlays would be replaced; choose another folder:\n"
            f"{listed(foreign)}"
        )


def _may_write(path: Path) -> bool:
    if not os.path.lexists(path):
        return True
    try:
        with Image.open(path) as image:
            result: bool = image.info.get(_MARK[0]) == _MARK[1]
            return result
    except (OSError, SyntaxError, ValueError):
        return False


def _draw_file(pairs: Pairs, drawing: Drawing, folder: Path, name: str) -> list[str]:
    """Draw one pair; one message if it cannot be."""
    try:
        ground_truth, prediction = _read_masks(pairs, drawing, name)
        image = read_image(find_image(drawing.image_dir, name), ground_truth.shape)
    except (InputError, OSError) as error:
        return [problem_of(error)]
    strip = draw_strip(
        draw_panels(np.asarray(image), ground_truth, prediction), _legend(ground_truth, prediction, drawing)
    )
    path = folder / name
    path.parent.mkdir(exist_ok=True)
    mark = PngImagePlugin.PngInfo()
    mark.add_text(*_MARK)
    strip.save(path, pnginfo=mark)
    return []


def _read_masks(pairs: Pairs, drawing: Drawing, name: str) -> tuple[np.ndarray, np.ndarray]:
    """Read ground truth and prediction after matching, (H, W) each; InputError for labels that cannot be
    right."""
    gt_path, path = pairs.gt_dir / name, pairs.predict_dir / name
    limit = MAX_LABEL if drawing.names is None else len(drawing.names) - 1
    ground_truth, prediction = decode_mask(gt_path, limit), decode_mask(path)
    if prediction.shape != ground_truth.shape:
        raise InputError(
            f"{path}: {prediction.shape[1]} x {prediction.shape[0]} pixels, but its ground truth has "
            f"{ground_truth.shape[1]} x {ground_truth.shape[0]}"
        )
    labels = np.unique(prediction)
    if drawing.matching is None:
        if labels.max() > limit:
            raise InputError(
                f"{path}: label {labels.max()} is outside 0..{limit}; "
                "cluster ids need a matching: run match.py and pass its name"
            )
        return ground_truth, prediction
    lacking = drawing.matching.lacking(labels)
    if lacking:
        raise InputError(
            f"{path}: cluster {lacking[0]} is not in the matching; run match.py on these predictions"
        )
    return ground_truth, drawing.matching.classes[prediction]


def _legend(ground_truth: np.ndarray, prediction: np.ndarray, drawing: Drawing) -> list[Group]:
    def name_of(label: int) -> str:
        return f"class {label}" if drawing.names is None else drawing.names[label]

    return [
        Group("ground truth:", label_entries(ground_truth, name_of)),
        Group("prediction:", label_entries(prediction, name_of)),
        Group("disagreement:", [*DISAGREEMENT.items(), ("ignored", _IGNORED)]),
    ]


def draw_strip(panels: Panels, legend: Sequence[Group]) -> Image.Image:
    """Lay the panels side by side, titles above, the legend below."""
    height, width, _ = panels.picture.shape
    size = font_size(height, width)
    font = ImageFont.load_default(size)
    titles = [field.replace("_", " ") for field in panels._fields]
    line = round(1.5 * size)
    gap = line // 2
    column = max(width, *(math.ceil(font.getlength(title)) for title in titles))
    strip = Image.new("RGB", (len(panels) * (column + gap) + gap, line + height), PAPER)
    pen = ImageDraw.Draw(strip)
    for index, (title, panel) in enumerate(zip(titles, panels, strict=True)):
        left = gap + index * (column + gap)
        pen.text((left, line / 2), title, INK, font, anchor="lm")
        strip.paste(Image.fromarray(panel), (left, line))
    return with_legend(strip, legend, size)
