"""Compare a prepared ImageNet-S with its lists: missing, unexpected, unreadable, of the wrong size."""

# Paths are plain strings if there are a million of them: pathlib would take longer than the disk.
# ruff: noqa: PTH115, PTH123, PTH208

from __future__ import annotations

import io
import os
import warnings
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

from PIL import Image

from imagenets.classes import MODES
from imagenets.common.errors import InputError, os_errors_named, problem_of
from imagenets.common.folders import visible
from imagenets.common.progress import Show, no_bar
from imagenets.images import is_image, mask_sizes
from imagenets.lists import MappedImage, SemiImage, mask_of
from imagenets.masks import decode_mask, png_size
from imagenets.preparation.links import is_dangling

THREADS = 4  # threads that read headers, for slow disks and networks
BATCH = 64  # files that a thread takes at a time
HEAD = 1 << 15  # bytes that hold the header of nearly every JPEG
PNG_HEAD = 33  # bytes that hold signature and IHDR
_NO_HEADER = (OSError, SyntaxError, ValueError, Image.DecompressionBombError)


@dataclass(frozen=True)
class SetLists:
    """Content of a mode's lists; ``train_images`` is None if no number is known."""

    mode: str
    wnids: Sequence[str]
    train_images: int | None
    train_semi: Sequence[SemiImage]
    validation: Sequence[MappedImage]
    test: Sequence[MappedImage]


@dataclass
class SplitReport:
    """Counts of one split; ``absent``: its folder does not exist, and nothing else is counted."""

    name: str
    expected: int | None
    found: int = 0
    absent: bool = False
    missing: list[str] = field(default_factory=list)
    unexpected: list[str] = field(default_factory=list)
    unreadable: list[str] = field(default_factory=list)  # with the reason
    dangling: list[str] = field(default_factory=list)  # broken links, with their text
    ignored: list[str] = field(default_factory=list)  # hidden files, which are ignored
    misfits: list[str] = field(default_factory=list)  # masks whose size is not their image's
    lacking: int = 0  # number of missing images, if only their total is known
    surplus: int = 0  # number of extra images

    @property
    def right(self) -> bool:
        """Is everything that exists right?"""
        lists = (self.missing, self.unexpected, self.unreadable, self.dangling, self.misfits)
        return self.absent or not (any(lists) or self.lacking or self.surplus)


@dataclass(frozen=True)
class SetReport:
    """Counts of one prepared set."""

    folder: Path
    splits: list[SplitReport]

    @property
    def absent(self) -> list[str]:
        """Splits that do not exist."""
        return list(dict.fromkeys(split.name.partition(" ")[0] for split in self.splits if split.absent))

    @property
    def right(self) -> bool:
        """Does anything exist, and is all of it right?"""
        return all(split.right for split in self.splits) and not all(split.absent for split in self.splits)


def verify_set(save: Path, lists: SetLists, deep: bool = False, show: Show = no_bar) -> SetReport:
    """Verify one prepared set, ``save/ImageNetS50`` for mode 50.

    Headers of images and masks are read, and nothing is decoded; with ``deep`` every mask is.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # nothing is decompressed
        return SetReport(save / MODES[lists.mode].folder, _verify_splits(save, lists, deep, show))


def _verify_splits(save: Path, lists: SetLists, deep: bool, show: Show) -> list[SplitReport]:
    root = save / MODES[lists.mode].folder
    train_semi = {image.target: image.mask for image in lists.train_semi}
    validation = {image.target: mask_of(image.target) for image in lists.validation}
    return [
        *([_verify_train_full(root)] if MODES[lists.mode].merges else []),
        *_verify_train(root, lists, show),
        _verify_images(root, "train-semi", list(train_semi), show),
        _verify_masks(root, "train-semi", train_semi, lists, deep, show),
        _verify_images(root, "validation", list(validation), show),
        _verify_masks(root, "validation", validation, lists, deep, show),
        _verify_images(root, "test", [image.target for image in lists.test], show),
    ]


def _verify_train_full(root: Path) -> SplitReport:
    """``train-full`` is a link to an existing folder, or absent, which is not an error."""
    report = SplitReport("train-full", expected=1)
    path = root / "train-full"
    if not os.path.lexists(path):
        report.absent = True
    elif is_dangling(path):
        report.dangling.append(_nowhere(path))
    elif path.is_dir():
        report.found = 1
    else:
        report.unreadable.append(f"{path}: does not lead to a folder")
    return report


def _verify_train(root: Path, lists: SetLists, show: Show) -> list[SplitReport]:
    """Class folders by name, images by their total: no list of them exists."""
    folder = root / "train"
    classes = SplitReport("train (classes)", len(lists.wnids))
    images = SplitReport("train (images)", lists.train_images)
    if not os.path.lexists(folder):
        classes.absent = images.absent = True
        return [classes, images]
    there = _names(folder, classes)
    known = set(lists.wnids)
    classes.missing = [f"{folder / wnid}" for wnid in lists.wnids if wnid not in there]
    for name in sorted(there - known):
        _note_extra(folder / name, classes)
    wnids = sorted(there & known)
    classes.found = len(wnids)
    with show(f"{root.name}/train", len(wnids), unit="class") as advance:
        for wnid in wnids:
            images.found += _count_images(folder / wnid, images, classes)
            advance(1)
    if lists.train_images is not None:
        images.lacking = max(0, lists.train_images - images.found)
        images.surplus = max(0, images.found - lists.train_images)
    return [classes, images]


def _count_images(folder: Path, images: SplitReport, classes: SplitReport) -> int:
    """Count the images of a class; broken links, empty files and entries that are not files go into the
    report."""
    count = 0
    if is_dangling(folder):
        classes.dangling.append(_nowhere(folder))
        return count
    try:
        for entry in visible(folder):
            if is_image(entry.name):
                if is_dangling(entry.path):
                    images.dangling.append(_nowhere(entry.path))
                elif not entry.is_file():
                    images.unreadable.append(f"{entry.path}: no file")
                elif not entry.stat().st_size:
                    images.unreadable.append(f"{entry.path}: empty")
                count += not entry.is_dir()
    except OSError as error:
        classes.unreadable.append(problem_of(error, folder))
        return count
    if not count:
        classes.unreadable.append(f"{folder}: no image in it")
    return count


def _verify_images(root: Path, name: str, wanted: Sequence[str], show: Show) -> SplitReport:
    """Check that these images exist and have the header of an image."""
    folder = root / name
    report, there = _compare(folder, name, wanted)

    def fault(image: str) -> str | None:
        if is_dangling(f"{folder}/{image}"):
            report.dangling.append(_nowhere(f"{folder}/{image}"))
            return None
        try:
            _image_sizes(f"{folder}/{image}")
        except InputError as error:
            return str(error)
        return None

    report.unreadable += _faults(f"{root.name}/{name}", "image", there, fault, show)
    report.dangling.sort()
    return report


def _verify_masks(
    root: Path, split: str, masks: Mapping[str, str], lists: SetLists, deep: bool, show: Show
) -> SplitReport:
    """Check that the masks of images exist in their sizes and, with ``deep``, can be decoded."""
    name = f"{split}-segmentation"
    folder = root / name
    image_of = {mask: image for image, mask in masks.items()}
    report, there = _compare(folder, name, list(image_of))

    def fault(mask: str) -> str | None:
        path = f"{folder}/{mask}"
        try:
            size = _mask_size(path)
            if deep:
                decode_mask(path, len(lists.wnids))
        except InputError as error:
            return str(error)
        try:
            sizes = _image_sizes(f"{root}/{split}/{image_of[mask]}")
        except InputError:
            return None  # reported for the image's own split; without images there is no size to compare
        if size not in sizes:
            report.misfits.append(
                f"{path}: {size[1]}x{size[0]} pixels, its image {sizes[0][1]}x{sizes[0][0]}"
            )
        return None

    report.unreadable += _faults(f"{root.name}/{name}", "mask", there, fault, show)
    report.misfits.sort()
    return report


def _compare(folder: Path, name: str, wanted: Sequence[str]) -> tuple[SplitReport, list[str]]:
    """Compare ``<wnid>/<name>`` below a folder with the expected ones; return those that exist."""
    report = SplitReport(name, len(wanted))
    if not os.path.lexists(folder):
        report.absent = True
        return report, []
    there: set[str] = set()
    known = {path.partition("/")[0] for path in wanted}
    for wnid in sorted(_names(folder, report)):
        if wnid in known and (folder / wnid).is_dir():
            there.update(f"{wnid}/{file}" for file in _names(folder / wnid, report))
        else:
            _note_extra(folder / wnid, report)
    every = set(wanted)
    report.missing = [f"{folder / path}" for path in wanted if path not in there]
    for path in sorted(there - every):
        _note_extra(folder / path, report)
    found = sorted(there & every)
    report.found = len(found)
    return report, found


def _note_extra(path: Path, report: SplitReport) -> None:
    """Report what is not in the list; hidden files, such as ``.DS_Store``, are ignored."""
    hidden = path.name.startswith(".") and path.is_file()
    (report.ignored if hidden else report.unexpected).append(str(path))


def _names(folder: Path, report: SplitReport) -> set[str]:
    try:
        return set(os.listdir(folder))
    except OSError as error:
        report.unreadable.append(problem_of(error, folder))
        return set()


def _faults(
    name: str, unit: str, files: Sequence[str], fault: Callable[[str], str | None], show: Show
) -> list[str]:
    """Check each file in a few threads; problems are in the order of the files."""

    def faults_of(batch: Sequence[str]) -> list[str]:
        return [found for file in batch if (found := fault(file)) is not None]

    batches = [files[i : i + BATCH] for i in range(0, len(files), BATCH)]
    found = []
    with ThreadPoolExecutor(THREADS) as pool, show(name, len(files), unit=unit) as advance:
        for batch, results in zip(batches, pool.map(faults_of, batches), strict=True):
            found += results
            advance(len(batch))
    return found


def _nowhere(path: Path | str) -> str:
    return f"{path}: a link to {os.readlink(path)}, where nothing is"


def _image_sizes(path: str) -> list[tuple[int, int]]:
    """Sizes (height, width) that an image's mask may have: as stored, and rotated by EXIF."""
    head = _head(path, HEAD)
    try:
        return _sizes_in_header(io.BytesIO(head))
    except _NO_HEADER:
        pass  # or the header is longer than the part that was read
    try:
        return _sizes_in_header(path)
    except _NO_HEADER as error:
        raise InputError(f"{path}: not an image, or damaged ({error})") from error


def _sizes_in_header(source: str | io.BytesIO) -> list[tuple[int, int]]:
    with Image.open(source) as image:
        return mask_sizes(image)


def _mask_size(path: str) -> tuple[int, int]:
    """(height, width) from a mask's header. Raises InputError."""
    head = _head(path, PNG_HEAD)
    try:
        return png_size(head)
    except InputError as error:
        raise InputError(f"{path}: {error}") from error


def _head(path: str, length: int) -> bytes:
    """Read a file's first bytes. Raises InputError when there are none."""
    with os_errors_named(path), open(path, "rb", buffering=0) as file:
        head = file.read(length)
    if not head:
        raise InputError(f"{path}: empty")
    return head
