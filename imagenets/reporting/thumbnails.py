"""Images small enough for a page, with masks drawn over them, as data URIs."""

from __future__ import annotations

import base64
import io
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from imagenets.common.errors import InputError, listed
from imagenets.images import find_image, read_image
from imagenets.reporting.overlays import draw_labels, plain_ground

# Of a thumbnail: longest side in pixels, and bytes. 3 groups of 8 images of 4 panels stay under 7 MB.
_SIDE = 360
_MAX_BYTES = 50_000


class Panel(NamedTuple):
    """One picture of a page: what it shows, its data URI, its size in pixels."""

    title: str
    source: str
    width: int
    height: int


def draw_groups(
    groups: Mapping[str, Sequence[int]], draw: Callable[[int], dict[str, Any]]
) -> dict[str, list[dict[str, Any]]]:
    """Have a page's groups of images drawn, by their titles; an image in several groups is drawn once.

    Raises InputError, listing them, when images cannot be read, after all have been tried.
    """
    shown, problems = {}, []
    for image in sorted({image for images in groups.values() for image in images}):
        try:
            shown[image] = draw(image)
        except InputError as error:
            problems.append(str(error))
    if problems:
        raise InputError(
            f"{len(problems)} of the {len(problems) + len(shown)} images that the report shows cannot be "
            f"read:\n{listed(problems)}"
        )
    return {title: [shown[image] for image in images] for title, images in groups.items()}


def shrunk(
    masks: Mapping[str, np.ndarray], image_dir: Path | None, name: str
) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Shrink an image (h, w, 3) uint8 and its masks (H, W) to a thumbnail's size.

    ``name`` is the mask's, ``<wnid>/<name>.png``; without ``image_dir`` the picture is a plain background.

    Raises InputError when the image cannot be read.
    """
    if image_dir is None:
        return shrunk_picture(masks, None)
    height, width = next(iter(masks.values())).shape
    return shrunk_picture(masks, read_image(find_image(image_dir, name), (height, width)))


def shrunk_picture(
    masks: Mapping[str, np.ndarray], picture: Image.Image | None
) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Shrink masks (H, W), and the picture of their size (None: a plain background), as ``shrunk`` does."""
    height, width = next(iter(masks.values())).shape
    scale = min(1, _SIDE / max(height, width))
    small = (max(1, round(height * scale)), max(1, round(width * scale)))
    if picture is None:
        pixels = plain_ground(*small)
    else:
        pixels = np.asarray(picture.resize(small[::-1], Image.Resampling.LANCZOS))
    # Nearest neighbour, the same pixels of all masks.
    rows, columns = (
        ((np.arange(to) + 0.5) * size / to).astype(int)
        for to, size in zip(small, (height, width), strict=True)
    )
    return pixels, {what: mask[np.ix_(rows, columns)] for what, mask in masks.items()}


def mask_panels(
    picture: np.ndarray, masks: Mapping[str, tuple[np.ndarray, np.ndarray | None]], drawn: bool
) -> list[Panel]:
    """Encode a picture (h, w, 3) uint8, and it again below each mask: labels (h, w), ignored pixels if any.

    If the page has masks only (``drawn``), the picture is a plain background, and left out by itself.
    """
    panels = [
        panel(title, draw_labels(picture, labels, ignored, plain=drawn), drawn)
        for title, (labels, ignored) in masks.items()
    ]
    return panels if drawn else [panel("picture", picture, drawn=False), *panels]


def panel(title: str, pixels: np.ndarray, drawn: bool) -> Panel:
    """Encode pixels (h, w, 3) uint8 for a page, coarser until small enough.

    What is only ``drawn``, without a photograph below, becomes a PNG if that is small enough.
    """
    image = Image.fromarray(pixels)
    attempts: list[tuple[str, dict[str, Any]]] = [("png", {})] if drawn else []
    attempts += [("jpeg", {"quality": quality, "subsampling": 0}) for quality in (88, 75, 50, 25)]
    for kind, options in (*attempts, ("jpeg", {"quality": 10})):
        buffer = io.BytesIO()
        image.save(buffer, kind, **options)
        if buffer.tell() <= _MAX_BYTES:
            break
    source = f"data:image/{kind};base64,{base64.b64encode(buffer.getvalue()).decode()}"
    return Panel(title, source, image.width, image.height)
