"""How attribution maps of one square size lie on their images: squeezed, or of a centre crop.

Classifiers see a square. Either the whole image was squeezed into it, Resize((224, 224)), or its shorter side
was resized to 256 pixels and the centre cropped, Resize(256) and CenterCrop(224). If the map of such a crop
is stretched over the whole image, it is misplaced, and even a perfect one scores badly.
"""

from __future__ import annotations

import re
from typing import NamedTuple

import numpy as np
from PIL import Image
from scipy import ndimage

from imagenets.masks import resize_mask

KINDS = ("squeeze", "center-crop", "paste")


class Geometry(NamedTuple):
    """The part of each image that a network saw, and where its map is scored.

    - ``squeeze``: the whole image; the map is enlarged to the image's size.
    - ``center-crop``: the central ``crop`` x ``crop`` pixels of the image with its shorter side resized to
      ``resize``; the mask is resized (nearest neighbour) and cropped the same way.
    - ``paste``: the same crop; the map is put back into the resized image, with zeros around it, and resized
      to the image. Pixels that the network did not see count as predicted background.
    """

    kind: str
    resize: int = 0
    crop: int = 0

    def __str__(self) -> str:
        """Write it as ``parse_geometry`` reads it."""
        return self.kind if self.kind == "squeeze" else f"{self.kind}:{self.resize},{self.crop}"


def parse_geometry(text: str) -> Geometry:
    """Read ``squeeze``, ``center-crop:256,224`` or ``paste:256,224``. Raises ValueError for anything else."""
    if text == "squeeze":
        return Geometry(text)
    found = re.fullmatch(r"(center-crop|paste):([1-9][0-9]{0,4}),([1-9][0-9]{0,4})", text)
    if not found:
        raise ValueError(f"{text!r} is neither squeeze, nor center-crop:RESIZE,CROP, nor paste:RESIZE,CROP")
    geometry = Geometry(found[1], int(found[2]), int(found[3]))
    if geometry.crop > geometry.resize:
        raise ValueError(f"{text!r}: the crop is larger than the shorter side that it is cut out of")
    return geometry


def resized_size(height: int, width: int, shorter: int) -> tuple[int, int]:
    """Size (height, width) after torchvision's ``Resize(shorter)``; the longer side is rounded down."""
    if height <= width:
        return shorter, int(shorter * width / height)
    return int(shorter * height / width), shorter


def _resized_and_corner(
    height: int, width: int, geometry: Geometry
) -> tuple[tuple[int, int], tuple[int, int]]:
    """Size of the resized image, and top and left of torchvision's ``CenterCrop``, halves rounded to even."""
    size = resized_size(height, width, geometry.resize)
    return size, (round((size[0] - geometry.crop) / 2), round((size[1] - geometry.crop) / 2))


def resize_map(values: np.ndarray, height: int, width: int) -> np.ndarray:
    """Interpolate a map (h, w) to (height, width), float64.

    Bilinear, pixel centres at halves (as PyTorch with ``align_corners=False``), edges repeated.
    """
    if values.shape == (height, width):
        return values
    factors = (height / values.shape[0], width / values.shape[1])
    resized: np.ndarray = ndimage.zoom(
        values.astype(np.float64), factors, order=1, mode="nearest", grid_mode=True
    )
    return resized


def map_in_place(attribution: np.ndarray, shape: tuple[int, int], geometry: Geometry) -> np.ndarray:
    """Resize a map (s, s) for scoring: to (crop, crop) for ``center-crop``, else to the ``shape`` of the
    mask.

    A map of another size than the crop, such as 7 x 7, is first enlarged to it, bilinearly.
    """
    if geometry.kind == "squeeze":
        return resize_map(attribution, *shape)
    cropped = resize_map(attribution, geometry.crop, geometry.crop)
    if geometry.kind == "center-crop":
        return cropped
    resized, (top, left) = _resized_and_corner(*shape, geometry)
    laid = np.zeros(resized)
    laid[top : top + geometry.crop, left : left + geometry.crop] = cropped
    return resize_map(laid, *shape)


def labels_in_place(labels: np.ndarray, geometry: Geometry | None) -> np.ndarray:
    """Resize a mask's labels (H, W) to where maps are scored: the crop for ``center-crop``."""
    if geometry is None or geometry.kind != "center-crop":
        return labels
    size, (top, left) = _resized_and_corner(labels.shape[0], labels.shape[1], geometry)
    return resize_mask(labels, *size)[top : top + geometry.crop, left : left + geometry.crop]


def image_in_place(image: Image.Image, geometry: Geometry | None) -> Image.Image:
    """Resize an image to where maps are scored, for a page."""
    if geometry is None or geometry.kind != "center-crop":
        return image
    (height, width), (top, left) = _resized_and_corner(image.height, image.width, geometry)
    resized = image.resize((width, height), Image.Resampling.BILINEAR)
    return resized.crop((left, top, left + geometry.crop, top + geometry.crop))
