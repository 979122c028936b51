"""The images of a prepared ImageNet-S as the baseline sees them: an order, a content, no class."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
from PIL import Image

from imagenets.common.errors import InputError
from imagenets.common.folders import files_by_class
from imagenets.images import is_image

SIDE = 256  # longest side, in pixels, at which images are looked at
_BROKEN = (OSError, ValueError, SyntaxError, Image.DecompressionBombError)


class Loaded(NamedTuple):
    """An image, (h, w, 3) uint8 RGB with no side above SIDE, and its full size in pixels."""

    image: np.ndarray
    height: int
    width: int


def list_images(folder: Path) -> list[str]:
    """List the images ``<class folder>/<name>`` of a split, sorted. Raises InputError when there is none."""
    if not folder.is_dir():
        raise InputError(f"{folder}: no such folder; make it with the scripts of datapreparation/")
    found = files_by_class(folder, is_image)
    if not found:
        raise InputError(f"{folder}: no images there; they lie in {folder}/<wnid>/<name>.JPEG")
    return found


def shuffled(images: Iterable[str]) -> list[str]:
    """Put images into an order in which classes have no say.

    It is that of the names' digests: random, and always the same. Folders count only where two images have
    one name.
    """
    return sorted(images, key=_order)


def _order(image: str) -> tuple[bytes, str]:
    name = image.rpartition("/")[2]
    return hashlib.blake2b(os.fsencode(name), digest_size=16).digest(), image


def fingerprint(folder: Path, images: Sequence[str], *more: str) -> str:
    """Digest of the images' names (class folders aside), sizes and times, in order, and of ``more``.

    Raises OSError when an image is missing.
    """
    digest = hashlib.blake2b("\0".join(more).encode(), digest_size=16)
    for image in images:
        status = os.stat(f"{folder}/{image}")  # noqa: PTH116 - called for every image
        name = os.fsencode(image.rpartition("/")[2])
        digest.update(name + f"\0{status.st_size} {status.st_mtime_ns}\0".encode())
    return digest.hexdigest()


def load(path: str | Path) -> Loaded:
    """Decode an image, as stored (no EXIF rotation), not larger than it is needed.

    Raises InputError, naming the file, when it cannot be decoded.
    """
    try:
        with Image.open(path) as file:
            width, height = file.size
            scale = min(1, SIDE / max(width, height))
            size = max(1, round(width * scale)), max(1, round(height * scale))
            file.draft("RGB", size)  # a JPEG is decoded at ½, ¼ or ⅛ of its size where that is enough
            image = np.asarray(file.convert("RGB"))
    except _BROKEN as error:
        raise InputError(f"{path}: cannot be decoded ({error}); get it again") from error
    if image.shape[1::-1] != size:
        image = cv2.resize(image, size, interpolation=cv2.INTER_AREA)
    return Loaded(image, height, width)
