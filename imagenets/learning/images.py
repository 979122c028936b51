"""Which pictures a run reads, and how: lists of images, and images decoded and resized for a network."""

from __future__ import annotations

import hashlib
import os
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from imagenets.classes import Mode
from imagenets.common.errors import InputError, listed, os_errors_named
from imagenets.common.folders import files_by_class
from imagenets.common.progress import Warn, no_warning
from imagenets.images import is_image, read_image
from imagenets.lists import mask_of
from imagenets.masks import decode_mask, png_size

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of RGB values in 0..1
_MAX_ASPECT = 32  # longer to shorter side, above which a picture would fill memory
_PNG_HEADER = 33  # bytes
# Of folders that are no ImageNet: what Pillow reads and people have.
_PICTURES = (".jpeg", ".jpg", ".png", ".webp", ".bmp", ".tif", ".tiff")
_OTHER_PICTURES = (".gif", ".heic", ".heif", ".avif", ".jxl", ".jp2", ".psd", ".svg", ".dng", ".cr2", ".nef")


@dataclass(frozen=True)
class Images:
    """Images ``names`` below ``folder``, and below ``masks`` the masks that say how they are turned.

    A mask need not be there. Names are relative paths with ``/``. Masks hold labels up to ``max_label``, and
    1000. ``upright`` images have no masks, and are turned as their EXIF orientation says.
    """

    folder: Path
    names: Sequence[str]
    masks: Path | None = None
    max_label: int | None = None
    upright: bool = False


@dataclass(frozen=True)
class Reading:
    """How an image becomes a picture.

    The shorter side becomes ``side`` pixels, the longer one in proportion, rounded down, by Pillow's bilinear
    filter (which averages where it shrinks). A network's patches fill the picture if both sides are rounded
    to the nearest ``multiple``, or if what is no whole ``cut`` is cut off on the right and below. If ``crop``
    is given, the middle crop x crop pixels remain. ``fixed_size``, (height, width), replaces all these.
    ``mean`` and ``std`` normalise values in 0..1. ``beside``, where given, finds something for each picture
    (h, w, 3) uint8, in the workers.
    """

    mean: tuple[float, ...]
    std: tuple[float, ...]
    side: int = 256
    multiple: int = 1
    cut: int = 1
    crop: int | None = None
    fixed_size: tuple[int, int] | None = None
    beside: Callable[[np.ndarray], Any] | None = None

    @property
    def size_text(self) -> str:
        """Say how large pictures become, for a run's record."""
        if self.fixed_size is not None:
            return f"{self.fixed_size[0]} x {self.fixed_size[1]}"
        multiples = f", multiples of {self.multiple}" if self.multiple > 1 else ""
        return f"{self.side}{multiples}" + (f", cut to {self.cut}s" if self.cut > 1 else "")


@dataclass(frozen=True)
class Picture:
    """``pixels`` (h, w, 3) uint8 RGB, the image's full ``size`` (height, width), and what was wanted beside.

    That is its mask, (height, width) uint16, or what ``Reading.beside`` finds. The pixels show the upper left
    ``shown`` (height, width) of the image: all of it, unless ``Reading.cut`` has cut something off.
    """

    pixels: np.ndarray
    size: tuple[int, int]
    shown: tuple[int, int]
    beside: Any = None


def read_picture(images: Images, name: str, reading: Reading, with_mask: bool = False) -> Picture:
    """Read one image, in the reading (EXIF orientation) that its mask fits, or as ``Images`` says.

    ``with_mask`` also decodes its mask. Raises InputError, naming the file, when either cannot be used.
    """
    mask_path = images.masks / mask_of(name) if images.masks else None
    mask = decode_mask(mask_path, images.max_label) if mask_path and with_mask else None
    mask_size = _mask_size(mask_path) if mask is None else mask.shape
    path = images.folder / name
    with os_errors_named(path):
        image = read_image(path, mask_size, images.upright)
    width, height = image.size
    if max(width, height) > _MAX_ASPECT * min(width, height):
        raise InputError(
            f"{path}: {width} x {height} pixels are too narrow a picture; the longer side may be at most "
            f"{_MAX_ASPECT} times the shorter"
        )
    resized = _resized(image, reading)
    right, bottom = (length // reading.cut * reading.cut for length in resized.size)
    pixels = np.asarray(resized.crop((0, 0, right, bottom)))
    shown = round(height * bottom / resized.height), round(width * right / resized.width)
    return Picture(pixels, (height, width), shown, reading.beside(pixels) if reading.beside else mask)


def picture_size(width: int, height: int, side: int) -> tuple[int, int]:
    """Size (width, height) of a picture whose shorter side becomes ``side``; the longer is rounded down."""
    if width <= height:
        return side, int(side * height / width)
    return int(side * width / height), side


def _resized(image: Image.Image, reading: Reading) -> Image.Image:
    if reading.fixed_size:
        return image.resize(reading.fixed_size[::-1], Image.Resampling.BILINEAR)
    size = picture_size(*image.size, reading.side)
    if reading.multiple > 1:
        patches = [(2 * length + reading.multiple) // (2 * reading.multiple) for length in size]  # half up
        size = max(1, patches[0]) * reading.multiple, max(1, patches[1]) * reading.multiple
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


def list_images(folder: Path) -> list[str]:
    """List the images ``<class folder>/<name>`` of a split, sorted. Raises InputError when there is none."""
    if not folder.is_dir():
        raise InputError(
            f"{folder}: no such folder; name the folder that data_preparation.sh saved to, and a split that "
            "it prepared"
        )
    found = files_by_class(folder, is_image)
    if not found:
        raise InputError(f"{folder}: no images there; they lie in {folder}/<wnid>/<name>.JPEG")
    return found


def shuffled(images: Iterable[str]) -> list[str]:
    """Put images into an order in which classes have no say.

    It is that of the names' digests: random, and always the same. Folders count only where two images have
    one name.
    """
    return sorted(images, key=lambda image: (digest([], image.rpartition("/")[2]), image))


def digest(parts: Iterable[str | bytes], start: str = "") -> str:
    """Digest of a list of texts or paths, in order, after ``start``."""
    found = hashlib.blake2b(os.fsencode(start), digest_size=16)
    for part in parts:
        found.update(os.fsencode(part) + b"\0")
    return found.hexdigest()


def fingerprint(folder: Path, images: Sequence[str], identity: str = "") -> str:
    """Digest of the images' names (class folders aside), sizes and times, in order, and of ``identity``.

    Raises OSError when an image is missing.
    """

    def about(image: str) -> str:
        status = os.stat(f"{folder}/{image}")  # noqa: PTH116 - called for every image
        return f"{image.rpartition('/')[2]}\0{status.st_size} {status.st_mtime_ns}"

    return digest(map(about, images), identity)


def split_images(save_dir: Path | None, mode: Mode, split: str) -> Images:
    """List the images of a split, sorted by path; the masks beside them say how they are turned.

    ``save_dir`` is that of ``Mode.set_folder``. Raises InputError when there are none.
    """
    root = mode.set_folder(save_dir)
    folder, masks = root / split, root / f"{split}-segmentation"
    return Images(folder, list_images(folder), masks if masks.is_dir() else None, mode.classes)


def where_masks_come_from(save_dir: Path | None, mode: Mode) -> str:
    """Say how masks that are missing get to their place."""
    if mode.own is not None:
        return "masks lie in <split>-segmentation/<class folder>/<name of the image>.png"
    return f"put them in place: bash datapreparation/datapreparation_anno.sh {save_dir} {mode.name}"


def annotated_images(save_dir: Path | None, mode: Mode) -> Images:
    """List the images of train-semi, which must all have their masks. Raises InputError otherwise."""
    try:
        images = split_images(save_dir, mode, "train-semi")
    except InputError as error:
        make = f"; make it: bash datapreparation/data_preparation.sh IMAGENET {save_dir} {mode.name}"
        folder = mode.set_folder(save_dir) / "train-semi"
        raise InputError(f"{folder}: no annotated images" + make * (mode.own is None)) from error
    cure = where_masks_come_from(save_dir, mode)
    masks = images.folder.with_name(f"{images.folder.name}-segmentation")
    if images.masks is None:
        raise InputError(f"{masks}: no masks; {cure}")
    absent = [str(masks / mask_of(name)) for name in images.names if not (masks / mask_of(name)).is_file()]
    if absent:
        raise InputError(f"{len(absent)} masks of train-semi are missing; {cure}\n{listed(absent)}")
    return images


def images_below(folder: Path, output: Path, warn: Warn = no_warning) -> Images:
    """List the pictures below any folder, at any depth, sorted, to be read upright; hidden ones are left out.

    Pictures of kinds that are not read are counted in a warning. Raises InputError when there are none that
    are, and when ``output``, where files will be written, lies there too.
    """
    if not folder.is_dir():
        raise InputError(f"{folder}: no such folder")
    if output.resolve().is_relative_to(folder.resolve()):
        raise InputError(f"{output}: lies among the pictures of {folder}; name another output folder")
    found: list[Path] = []
    for place, folders, files in os.walk(folder, followlinks=True):
        folders[:] = [name for name in folders if not name.startswith(".")]
        found += [Path(place, name) for name in files if not name.startswith(".")]
    names = [path.relative_to(folder).as_posix() for path in found if path.suffix.lower() in _PICTURES]
    skipped = Counter(path.suffix.lower() for path in found if path.suffix.lower() in _OTHER_PICTURES)
    others = ", ".join(f"{number} {suffix}" for suffix, number in skipped.most_common())
    if not names:
        cure = f"; there are {others}: convert them" if skipped else ""
        raise InputError(f"{folder}: no pictures there ({', '.join(_PICTURES)}){cure}")
    if skipped:
        warn(f"{folder}: {others} left out: such pictures are not read; convert them to JPEG or PNG")
    return Images(folder, sorted(names), upright=True)


def target_paths(images: Images, output: Path) -> list[Path]:
    """Where the label map of each image belongs: its name below ``output``, with .png in place of its suffix.

    Raises InputError when two images differ only in their suffixes.
    """
    first: dict[str, str] = {}
    double = []
    for name in images.names:
        other = first.setdefault(mask_of(name), name)
        if other != name:
            double.append(f"{images.folder / name}: has the same stem as {other}")
    if double:
        raise InputError(f"{len(double)} images would share a label map:\n{listed(double)}")
    return [output / mask for mask in first]
