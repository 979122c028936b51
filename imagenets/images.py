"""Images with masks: their paths, and whether a mask was drawn on the image as stored or rotated by EXIF."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError

from imagenets.common.errors import InputError

_SUFFIXES = (".JPEG", ".jpg", ".jpeg", ".png")  # in this order
IMAGE_SUFFIXES = (".jpeg", ".jpg", ".png")  # in any case

# Values of the EXIF orientation that exchange height and width.
_QUARTER_TURNS = (5, 6, 7, 8)


def is_image(name: str) -> bool:
    """Is this the name of an image file that is not hidden?"""
    return name.lower().endswith(IMAGE_SUFFIXES) and not name.startswith(".")


def check_image_dir(image_dir: Path) -> None:
    """Raise InputError when there is no such folder."""
    if not image_dir.is_dir():
        raise InputError(f"{image_dir}: no such folder; images lie in <image-dir>/<wnid>/<name>.JPEG")


def find_image(image_dir: Path, mask_name: str) -> Path:
    """Find the image of a mask ``<wnid>/<name>.png``: .JPEG, .jpg, .jpeg or .png, the first that is there.

    Raises InputError when there is none.
    """
    stem = mask_name.removesuffix(".png")
    for suffix in _SUFFIXES:
        path = image_dir / f"{stem}{suffix}"
        if path.is_file():
            return path
    raise InputError(f"{image_dir / stem}.JPEG: no such image, nor with {', '.join(_SUFFIXES[1:])}")


def mask_sizes(image: Image.Image) -> list[tuple[int, int]]:
    """Sizes (height, width) in pixels that an opened image's mask may have; its pixels are not decoded.

    The size as stored comes first; there is a second one if EXIF rotates the image.
    """
    width, height = image.size
    if "exif" in image.info and image.getexif().get(ExifTags.Base.Orientation) in _QUARTER_TURNS:
        return [(height, width), (width, height)]
    return [(height, width)]


def check_size(path: Path | str, mask_size: tuple[int, int]) -> None:
    """Compare an image's size with its mask's, (height, width) in pixels; only the header is read.

    Raises InputError, naming the file, if it fits in neither way or is not an image, OSError if it cannot be
    read.
    """
    with _open_image(path) as image:
        _must_turn(path, image, mask_size)


def read_image(
    path: Path | str, mask_size: tuple[int, int] | None = None, upright: bool = False
) -> Image.Image:
    """Decode an image to RGB, as stored or rotated to fit its mask of ``mask_size`` (height, width).

    Without a mask, and where both fit, it is as stored; with ``upright`` it is always rotated by EXIF, as
    viewers do. 16-bit grayscale is scaled to 8 bits. Raises InputError, naming the file, if it fits in
    neither way or is damaged, OSError when it cannot be read.
    """
    with _open_image(path) as image:
        turn = upright or _must_turn(path, image, mask_size)
        return _to_rgb(path, ImageOps.exif_transpose(image) if turn else image)


def _to_rgb(path: Path | str, image: Image.Image) -> Image.Image:
    """Convert to RGB; Pillow itself would clip 16 bits at 255, which makes nearly all pixels white."""
    if image.mode.startswith("I;16") or (image.mode == "I" and image.format == "PNG"):
        values = np.asarray(image).astype(np.uint32)
        return Image.fromarray(((values + 128) // 257).astype(np.uint8)).convert("RGB")
    if image.mode in ("I", "F"):
        raise InputError(f"{path}: 32 bits per pixel, with an unknown range; save it with 8 or 16 bits")
    return image.convert("RGB")


def sizes_that_differ(set_folder: Path, most: int = 200) -> tuple[int, int]:
    """Compare images with their masks, of validation and train-semi, by their headers.

    Returns how many pairs were compared, ``most`` of each split, spread over it, and how many differ: if
    most do, the ImageNet copy was resized. Missing and unreadable files are left to ``verify``.
    """
    compared = different = 0
    for split in ("validation", "train-semi"):
        masks = sorted((set_folder / f"{split}-segmentation").glob("*/*.png"))
        for mask in masks[:: max(1, len(masks) // most)]:
            try:
                image = find_image(set_folder / split, f"{mask.parent.name}/{mask.name}")
                with _open_image(mask) as drawn, _open_image(image) as pixels:
                    fits = drawn.size[::-1] in mask_sizes(pixels)
            except (InputError, OSError):
                continue
            compared += 1
            different += not fits
    return compared, different


def _must_turn(path: Path | str, image: Image.Image, mask_size: tuple[int, int] | None) -> bool:
    """Decide whether an opened image is rotated by EXIF; its pixels are not decoded."""
    if mask_size is None or mask_size == image.size[::-1]:
        return False  # most images end here, and their EXIF is not read
    if mask_size in mask_sizes(image):
        return True
    width, height = image.size
    raise InputError(f"{path}: {width} x {height} pixels, but its mask has {mask_size[1]} x {mask_size[0]}")


@contextmanager
def _open_image(path: Path | str) -> Iterator[Image.Image]:
    """Open an image, and convert Pillow's errors, then or on decoding, to an InputError."""
    try:
        with Image.open(path) as image:
            yield image
    except UnidentifiedImageError as error:
        raise InputError(f"{path}: no image; get it again") from error
    except (SyntaxError, ValueError, EOFError, Image.DecompressionBombError) as error:
        raise InputError(f"{path}: damaged ({error}); get it again") from error
    except OSError as error:
        if error.errno is not None:  # Pillow's own have none
            raise
        raise InputError(f"{path}: damaged ({error}); get it again") from error
