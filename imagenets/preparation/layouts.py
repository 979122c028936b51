"""The forms that copies of ImageNet have, recognised by looking: class folders, flat val, untouched tars."""

# Paths are plain strings where there are a million of them: pathlib would take longer than the disk.
# ruff: noqa: PTH116

from __future__ import annotations

import os
import re
import shlex
import stat
import tarfile
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import BinaryIO, NamedTuple

from imagenets.common.class_folders import class_folders
from imagenets.common.errors import InputError
from imagenets.images import is_image

KAGGLE = "ILSVRC/Data/CLS-LOC"
TRAIN_TAR = "ILSVRC2012_img_train.tar"
VAL_TAR = "ILSVRC2012_img_val.tar"

_WNID = re.compile(r"n\d{8}")
# What copies of ImageNet call the two parts besides train and val.
_OTHER_NAMES = {
    "train": ("training", "Train", "TRAIN", "ILSVRC2012_img_train"),
    "val": ("validation", "valid", "Val", "VAL", "ILSVRC2012_img_val", "ILSVRC2012_val"),
}
_FEW = 50  # folders of a folder that are looked into, where ImageNet is not where it was said to be


class Image(NamedTuple):
    """An image of ImageNet: a file, or ``size`` bytes of a tar from ``offset`` on."""

    path: str
    size: int
    offset: int | None = None  # None: the whole file


class MissingError(Exception):
    """An image or class folder that this copy lacks; the message says what and where."""


@dataclass(frozen=True)
class TrainFolder:
    """``train/<wnid>/<image>``."""

    path: Path

    def __str__(self) -> str:
        """Describe it for people."""
        return f"class folders in {self.path}"

    def images(self, wnid: str) -> dict[str, Image]:
        """Name and size of each image of a class; subfolders, hidden files and other files are left out."""
        found = {}
        for entry in self._entries(wnid):
            if is_image(entry.name) and entry.is_file():
                found[entry.name] = Image(entry.path, entry.stat().st_size)
        if not found:
            raise MissingError(f"{self.path / wnid}: no image in it")
        return found

    def folder(self, wnid: str) -> Path:
        """Return the folder of a class, which holds at least one image."""
        if any(is_image(entry.name) for entry in self._entries(wnid)):
            return self.path / wnid
        raise MissingError(f"{self.path / wnid}: no image in it")

    def image(self, place: str) -> Image:
        """Find one image, ``<wnid>/<name>``."""
        return _image_file(f"{self.path}/{place}")

    def _entries(self, wnid: str) -> Iterator[os.DirEntry[str]]:
        try:
            with os.scandir(self.path / wnid) as entries:
                yield from entries
        except OSError as error:
            raise MissingError(f"{self.path / wnid}: {error.strerror}") from error


@dataclass(frozen=True)
class TrainTar:
    """``ILSVRC2012_img_train.tar``: a tar of one tar a class, read in place."""

    path: Path
    _known: dict[str, dict[str, Image]] = field(default_factory=dict, compare=False, repr=False)

    def __str__(self) -> str:
        """Describe it for people."""
        return f"tar of class tars, {self.path}"

    @cached_property
    def _classes(self) -> dict[str, Image]:
        return {name.removesuffix(".tar"): tar for name, tar in _members(self.path) if name.endswith(".tar")}

    def images(self, wnid: str) -> dict[str, Image]:
        """Name, size and place in the tar of each image of a class."""
        if wnid not in self._known:
            if wnid not in self._classes:
                raise MissingError(f"{self.path}: no {wnid}.tar in it")
            found = {
                name: image for name, image in _members(self.path, self._classes[wnid]) if is_image(name)
            }
            if not found:
                raise MissingError(f"{self.path}: no image in its {wnid}.tar")
            self._known[wnid] = found
        return self._known[wnid]

    def image(self, place: str) -> Image:
        """Find one image, ``<wnid>/<name>``."""
        wnid, name = place.split("/")
        image = self.images(wnid).get(name)
        if image is None:
            raise MissingError(f"{self.path}: no {name} in its {wnid}.tar")
        return _not_empty(image, f"{self.path}: {name} in its {wnid}.tar")


@dataclass(frozen=True)
class ValFolder:
    """``val/<wnid>/<image>``, or flat ``val/<image>``, or something of both."""

    path: Path
    in_classes: bool  # class folders are there
    flat: bool  # images are there

    def __str__(self) -> str:
        """Describe it for people."""
        kinds = ["class folders"] * self.in_classes + ["images without class folders"] * self.flat
        return f"{' and '.join(kinds)} in {self.path}"

    def image(self, place: str) -> Image:
        """Find one image, ``<wnid>/<name>``."""
        if self.in_classes:
            try:
                return _image_file(f"{self.path}/{place}")
            except MissingError:
                if not self.flat:
                    raise
        return _image_file(f"{self.path}/{place.rpartition('/')[2]}")


@dataclass(frozen=True)
class ValTar:
    """``ILSVRC2012_img_val.tar``: a flat tar of the images, read in place."""

    path: Path

    def __str__(self) -> str:
        """Describe it for people."""
        return f"tar of images, {self.path}"

    @cached_property
    def _images(self) -> dict[str, Image]:
        return {name: image for name, image in _members(self.path) if is_image(name)}

    flat = True

    def image(self, place: str) -> Image:
        """Find one image, ``<wnid>/<name>``, by its name alone."""
        name = place.rpartition("/")[2]
        image = self._images.get(name)
        if image is None:
            raise MissingError(f"{self.path}: no {name} in it")
        return _not_empty(image, f"{self.path}: {name} in it")


Train = TrainFolder | TrainTar
Val = ValFolder | ValTar


def find_train(imagenet: Path) -> Train:
    """Recognise the training images of an ImageNet copy; class folders go before the tar.

    Raises InputError, which tells what was looked for, when there are none.
    """
    for root in _roots(imagenet):
        if _holds(root / "train")[0]:
            return TrainFolder(root / "train")
    for root in _roots(imagenet):
        if (root / TRAIN_TAR).is_file():
            return TrainTar(root / TRAIN_TAR)
    raise _nothing_found(
        imagenet, "train", "training images", ["train/<wnid>/", f"{KAGGLE}/train/<wnid>/", TRAIN_TAR]
    )


def find_val(imagenet: Path) -> Val:
    """Recognise the validation images of an ImageNet copy; folders go before the tar.

    Raises InputError, which tells what was looked for, when there are none.
    """
    for root in _roots(imagenet):
        class_folders, images = _holds(root / "val")
        if class_folders or images:
            return ValFolder(root / "val", class_folders, images)
    for root in _roots(imagenet):
        if (root / VAL_TAR).is_file():
            return ValTar(root / VAL_TAR)
    looked_for = ["val/<wnid>/", "val/*.JPEG", f"{KAGGLE}/val/*.JPEG", f"{KAGGLE}/val/<wnid>/", VAL_TAR]
    raise _nothing_found(imagenet, "val", "validation images", looked_for)


def _roots(imagenet: Path) -> list[Path]:
    """Folders in which ``train`` and ``val`` may lie, given the root of a copy, Kaggle's too."""
    return [imagenet, imagenet / KAGGLE]


def _holds(folder: Path) -> tuple[bool, bool]:
    """Are there class folders, and are there images, in ``folder``?"""
    class_folders = images = False
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                if entry.name.startswith("."):
                    continue
                class_folders = class_folders or entry.is_dir()
                images = images or (is_image(entry.name) and entry.is_file())
                if class_folders and images:
                    break
    except (FileNotFoundError, NotADirectoryError):
        pass
    except OSError as error:
        raise InputError(f"{folder}: {error.strerror}") from error
    return class_folders, images


def _nothing_found(imagenet: Path, part: str, what: str, looked_for: list[str]) -> InputError:
    """Say that ``part``, train or val, is not there, and where it may be."""
    if not imagenet.is_dir():
        return InputError(f"{imagenet}: no such folder; name the folder of your ImageNet copy")
    if any(_WNID.fullmatch(name) for name in class_folders(imagenet)):
        return InputError(
            f"{imagenet} holds class folders itself: name its parent, {imagenet.absolute().parent}"
        )
    message = f"no {what} found in {imagenet}; looked there for {', '.join(looked_for)}"
    for root in _roots(imagenet):
        for name in _OTHER_NAMES[part]:
            if any(_holds(root / name)):
                return InputError(
                    f"{message}. {root / name} looks like them: rename it to {part}, or make a link, "
                    f"ln -s {name} {shlex.quote(str(root / part))}"
                )
    for candidate in _nearby(imagenet):
        if _has(candidate, part):
            return InputError(f"{message}. They are in {candidate}: name that folder")
    return InputError(message)


def _nearby(imagenet: Path) -> Iterator[Path]:
    """Folders that were perhaps meant: below ``imagenet``, two levels deep, and above it."""
    children = [imagenet / name for name in class_folders(imagenet)[:_FEW]]
    yield from children
    for child in children:
        with suppress(OSError):  # a folder that is not ours to read is no candidate
            yield from (child / name for name in class_folders(child)[:_FEW])
    yield imagenet.absolute().parent


def _has(imagenet: Path, part: str) -> bool:
    tar = TRAIN_TAR if part == "train" else VAL_TAR
    with suppress(InputError):
        return any((root / tar).is_file() or any(_holds(root / part)) for root in _roots(imagenet))
    return False


def _image_file(path: str) -> Image:
    try:
        status = os.stat(path)
    except OSError as error:
        raise MissingError(f"{path}: {error.strerror}") from error
    if not stat.S_ISREG(status.st_mode):
        raise MissingError(f"{path}: no file")
    return _not_empty(Image(path, status.st_size), path)


def _not_empty(image: Image, place: str) -> Image:
    if image.size == 0:
        raise MissingError(f"{place}: empty")
    return image


def _members(path: Path, inner: Image | None = None) -> Iterator[tuple[str, Image]]:
    """Name (without folders) and place of each file in a tar, or in the tar that is ``inner`` within it.

    Only headers and the end are read. Raises InputError when the tar is damaged or cut off.
    """
    try:
        with path.open("rb") as file:
            end = file.seek(0, os.SEEK_END)
            if inner is not None and inner.offset is not None:
                end = inner.offset + inner.size
                file.seek(inner.offset)
            else:
                file.seek(0)
            # TarFile counts offsets from the file's own beginning, also when it begins to read further on.
            with tarfile.TarFile(fileobj=file) as tar:
                for member in tar:
                    if member.offset >= end:
                        return  # a tar without end blocks: what follows is the outer tar's
                    if not member.isreg():
                        continue
                    if member.offset_data + member.size > end:
                        raise InputError(f"{path}: cut off in {member.name}: get it again")
                    yield member.name.rpartition("/")[2], Image(str(path), member.size, member.offset_data)
                if not _only_zeros(file, tar.offset, end):  # TarFile takes any bad header for the end
                    raise InputError(f"{path}: damaged header at byte {tar.offset}: get it again")
    except (tarfile.TarError, OSError) as error:
        raise InputError(f"{path}: cannot be read as a tar ({error}): get it again") from error


def _only_zeros(file: BinaryIO, begin: int, end: int) -> bool:
    file.seek(begin)
    while begin < end:
        piece = file.read(min(end - begin, 1 << 20))
        if not piece or piece.count(0) != len(piece):
            return False
        begin += len(piece)
    return True
