"""The images that masks belong to: ``<image-dir>/<wnid>/<name>.JPEG`` for a mask ``<wnid>/<name>.png``."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from imagenets.errors import InputError

_SUFFIXES = (".JPEG", ".jpg", ".jpeg", ".png")


def check_image_dir(image_dir: Path) -> None:
    """Raise InputError when there is no such folder."""
    if not image_dir.is_dir():
        raise InputError(f"{image_dir}: no such folder; images lie in <image-dir>/<wnid>/<name>.JPEG")


def find_picture(image_dir: Path, mask_name: str) -> Path:
    """Find the image of a mask ``<wnid>/<name>.png``: .JPEG, .jpg, .jpeg or .png, the first that is there.

    Raises InputError when there is none.
    """
    stem = mask_name.removesuffix(".png")
    for suffix in _SUFFIXES:
        path = image_dir / f"{stem}{suffix}"
        if path.is_file():
            return path
    raise InputError(f"{image_dir / stem}.JPEG: no such image, nor with {', '.join(_SUFFIXES[1:])}")


def read_picture(path: Path, height: int, width: int) -> np.ndarray:
    """Decode an image to (height, width, 3) uint8 RGB, as it is stored: EXIF rotation is not applied.

    Raises InputError when it cannot be decoded or has another size than its mask, (height, width).
    """
    try:
        with Image.open(path) as image:
            size = image.size
            if size == (width, height):
                return np.asarray(image.convert("RGB"))
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise InputError(f"{path}: the image cannot be read ({error})") from error
    raise InputError(f"{path}: {size[0]} x {size[1]} pixels, but its mask has {width} x {height}")
