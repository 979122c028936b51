"""Pictures with the labels of their label maps drawn over them, for looking at."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

import cv2
import numpy as np
from PIL import Image

from imagenets.class_ids import mode_table
from imagenets.classes import Mode
from imagenets.common.errors import InputError, listed, problem_of
from imagenets.common.progress import Show, no_bar
from imagenets.common.whole_files import whole_file
from imagenets.common.workers import process_map
from imagenets.images import read_image
from imagenets.learning.images import Images
from imagenets.masks import decode_mask
from imagenets.reporting.legend import Group, font_size, label_entries, with_legend
from imagenets.reporting.overlays import draw_labels


def class_names(mode: Mode | None) -> list[str] | None:
    """Names of labels 0..N of a mode; None where there is none, or its classes are not known here."""
    if mode is None:
        return None
    try:
        return [of_label.name for of_label in mode_table(mode)]
    except InputError:
        return None


def write_label_overlays(
    images: Images,
    targets: Sequence[Path],
    overlays: Sequence[Path],
    names: Sequence[str] | None,
    noun: str,
    workers: int,
    show: Show = no_bar,
) -> int:
    """Draw the label map at each of ``targets`` over its image, if there is no overlay; returns how many.

    Overlays are JPEG files, full size, with a legend below: the ``names`` of labels, or "``noun`` 7" where
    there are none. Raises InputError for images or maps that cannot be read, after all have been tried.
    """
    todo = [
        (images.folder / name, target, overlay)
        for name, target, overlay in zip(images.names, targets, overlays, strict=True)
        if not overlay.exists()
    ]
    draw = partial(_draw_file, known=dict(enumerate(names or [])), noun=noun, upright=images.upright)
    problems = []
    with (
        process_map(workers, begin=partial(cv2.setNumThreads, 0)) as mapper,
        show("overlays", len(todo), unit="images") as advance,
    ):
        for problem in mapper(draw, todo):
            problems += [problem] if problem else []
            advance(1)
    if problems:
        raise InputError(f"{len(problems)} overlays cannot be drawn:\n{listed(problems)}")
    return len(todo)


def overlay_paths(targets: Sequence[Path], output: Path) -> list[Path]:
    """Where the overlay of each label map below ``output`` belongs: below ``output``/overlays, as .jpg."""
    return [
        output / "overlays" / target.relative_to(output).with_name(f"{target.stem}.jpg") for target in targets
    ]


def _draw_file(
    paths: tuple[Path, Path, Path], known: Mapping[int, str], noun: str, upright: bool
) -> str | None:
    image, target, overlay = paths
    try:
        labels = decode_mask(target)
        picture = np.asarray(read_image(image, labels.shape, upright))
    except (InputError, OSError) as error:
        return problem_of(error)
    drawn = Image.fromarray(draw_labels(picture, labels))
    entries = label_entries(labels, lambda label: known.get(label, f"{noun} {label}"))
    drawn = with_legend(drawn, [Group("", entries)], font_size(*labels.shape))
    overlay.parent.mkdir(parents=True, exist_ok=True)
    with whole_file(overlay) as temporary:
        drawn.save(temporary, "JPEG", quality=90)
    return None
