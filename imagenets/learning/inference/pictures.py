"""Images as networks see them: decoded, resized, and as long as they wait, uint8."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from imagenets.common.errors import InputError
from imagenets.images import read_image
from imagenets.lists import mask_of
from imagenets.masks import decode_mask, png_size

_MAX_ASPECT = 32  # longer to shorter side, above which a picture would fill memory
_PNG_HEADER = 33  # bytes


@dataclass(frozen=True)
class Images:
    """Images ``names`` below ``folder``, and below ``masks`` the masks that say how they are turned.

    A mask need not be there. Names are relative paths with ``/``. Masks hold labels up to ``max_label``, and
    1000.
    """

    folder: Path
    names: Sequence[str]
    masks: Path | None = None
    max_label: int | None = None


@dataclass(frozen=True)
class Reading:
    """How an image becomes a picture.

    The shorter side becomes ``side`` pixels, the longer one in proportion, rounded down, by Pillow's bilinear
    filter (which averages where it shrinks); then, if ``crop`` is given, the middle crop x crop pixels
    remain. ``fixed_size``, (height, width), takes the place of both. ``mean`` and ``std`` normalise values
    in 0..1. ``beside``, where given, finds an array for each picture (h, w, 3) uint8, in the workers.
    """

    mean: tuple[float, ...]
    std: tuple[float, ...]
    side: int = 256
    crop: int | None = None
    fixed_size: tuple[int, int] | None = None
    beside: Callable[[np.ndarray], np.ndarray] | None = None


@dataclass(frozen=True)
class Picture:
    """``pixels`` (h, w, 3) uint8 RGB, the image's full ``size`` (height, width), and what was wanted beside.

    That is its mask, (height, width) uint16, or what ``Reading.beside`` finds.
    """

    pixels: np.ndarray
    size: tuple[int, int]
    beside: np.ndarray | None = None


def read_picture(images: Images, name: str, reading: Reading, with_mask: bool = False) -> Picture:
    """Read one image, in the reading (EXIF orientation) that its mask fits; without mask as it is stored.

    ``with_mask`` also decodes its mask. Raises InputError, naming the file, when either cannot be used.
    """
    mask_path = images.masks / mask_of(name) if images.masks else None
    mask = decode_mask(mask_path, images.max_label) if mask_path and with_mask else None
    mask_size = _mask_size(mask_path) if mask is None else mask.shape
    path = images.folder / name
    try:
        image = read_image(path, mask_size)
    except OSError as error:
        raise InputError(f"{path}: {error.strerror}") from error
    width, height = image.size
    if max(width, height) > _MAX_ASPECT * min(width, height):
        raise InputError(
            f"{path}: {width} x {height} pixels are too narrow a picture; the longer side may be at most "
            f"{_MAX_ASPECT} times the shorter"
        )
    pixels = np.asarray(_resized(image, reading))
    return Picture(pixels, (height, width), reading.beside(pixels) if reading.beside else mask)


def picture_size(width: int, height: int, side: int) -> tuple[int, int]:
    """Size (width, height) of a picture whose shorter side becomes ``side``; the longer is rounded down."""
    if width <= height:
        return side, int(side * height / width)
    return int(side * width / height), side


def _resized(image: Image.Image, reading: Reading) -> Image.Image:
    if reading.fixed_size:
        return image.resize(reading.fixed_size[::-1], Image.Resampling.BILINEAR)
    size = picture_size(*image.size, reading.side)
    if size != image.size:
        image = image.resize(size, Image.Resampling.BILINEAR)
    if reading.crop is None:
        return image
    left, top = (round((length - reading.crop) / 2) for length in image.size)
    return image.crop((left, top, left + reading.crop, top + reading.crop))


def _mask_size(path: Path | None) -> tuple[int, int] | None:
    if path is None:
        return None
    try:
        with path.open("rb") as file:
            return png_size(file.read(_PNG_HEADER))
    except FileNotFoundError:
        return None
    except InputError as error:
        raise InputError(f"{path}: {error}") from error
