"""One image of an ImageNet copy, in any layout, and the two spellings of its name.

Hugging Face's copies repeat the class: ImageNet's ``n01440764_10026.JPEG`` is
``n01440764_10026_n01440764.JPEG`` there, ``ILSVRC2012_val_00000293.JPEG`` is
``ILSVRC2012_val_00000293_n01440764.JPEG``.
"""

# Paths are plain strings if there are a million of them: pathlib would take longer than the disk.
# ruff: noqa: PTH110, PTH116

from __future__ import annotations

import os
import re
import stat
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from imagenets.common.errors import problem_of

_REPEATED = re.compile(r"(.+)_(n\d{8})(\.[^.]+)")
_TRAIN_NAME = re.compile(r"(n\d{8})_.+")
_OTHER_SUFFIXES = (".jpeg", ".jpg", ".JPG")


class ZipMember(NamedTuple):
    """An image in an open ZIP."""

    archive: zipfile.ZipFile
    info: zipfile.ZipInfo


class SourceImage(NamedTuple):
    """An image of ImageNet: a file, a member of a ZIP, a row of a shard, or ``size`` bytes of a tar."""

    path: str
    size: int  # of a parquet row: an estimate; only reading it shows the size
    offset: int | None = None  # in the tar
    row: int | None = None
    member: ZipMember | None = None

    @property
    def is_file(self) -> bool:
        """Is it a file of its own, to which a link can lead?"""
        return self.offset is None and self.row is None and self.member is None


class MissingError(Exception):
    """An image or class folder is missing in this copy; the message says which and where."""


def plain_name(name: str) -> tuple[str, str | None]:
    """Return ImageNet's own name of an image, and the class that the file name repeats, or None."""
    match = _REPEATED.fullmatch(name)
    return (match[1] + match[3], match[2]) if match else (name, None)


def class_of_name(name: str) -> str | None:
    """The wnid in an image's name, in either spelling; None when there is none."""
    repeated = plain_name(name)[1]
    if repeated is not None:
        return repeated
    match = _TRAIN_NAME.fullmatch(name)
    return match[1] if match else None


def spellings(place: str) -> tuple[str, str]:
    """Both names of the image ``<wnid>/<name>``, without its folder: the plain one and the repeating one."""
    wnid, name = place.split("/")
    stem, dot, suffix = name.rpartition(".")
    return name, f"{stem}_{wnid}{dot}{suffix}"


def first_file(paths: Sequence[str]) -> SourceImage:
    """Return the first of these files that exists. Raises MissingError, which names the first path."""
    reason = ""
    for path in paths:
        try:
            status = os.stat(path)
        except OSError as error:
            reason = reason or problem_of(error, path)
            continue
        if not stat.S_ISREG(status.st_mode):
            raise MissingError(f"{path}: no file")
        if status.st_size == 0:
            raise MissingError(f"{path}: empty")
        return SourceImage(path, status.st_size)
    for path in paths:
        stem, _, suffix = path.rpartition(".")
        for other in _OTHER_SUFFIXES:
            if os.path.exists(stem + other):
                raise MissingError(f"{path}: it exists, but as {other}; rename the files to .{suffix}")
    raise MissingError(reason)


@dataclass(frozen=True)
class PackedTrain:
    """Training images in an archive, which is read in place; no link can lead to them."""

    kind: str  # "a tar"
    description: str  # for people
    where: Path | str
    read: Callable[[str], dict[str, SourceImage]]  # images of a class by plain name, cached

    def __str__(self) -> str:
        """Describe it for people."""
        return self.description

    def images(self, wnid: str) -> dict[str, SourceImage]:
        """Plain name and place of each image of a class."""
        found = self.read(wnid)
        if not found:
            raise MissingError(f"{self.where}: no image of {wnid} in it")
        return found

    def image(self, place: str) -> SourceImage:
        """Find one image, ``<wnid>/<name>``."""
        wnid, name = place.split("/")
        return _in_archive(self.where, name, self.images(wnid))


@dataclass(frozen=True)
class PackedVal:
    """Validation images in an archive, which is read in place; no link can lead to them."""

    kind: str
    description: str
    where: Path | str
    read: Callable[[], dict[str, SourceImage]]  # images by plain name, cached

    flat = True

    def __str__(self) -> str:
        """Describe it for people."""
        return self.description

    def image(self, place: str) -> SourceImage:
        """Find one image, ``<wnid>/<name>``, by its name only."""
        return _in_archive(self.where, place.rpartition("/")[2], self.read())


def _in_archive(where: Path | str, name: str, images: dict[str, SourceImage]) -> SourceImage:
    if name not in images:
        raise MissingError(f"{where}: no {name} in it")
    if images[name].size == 0:
        raise MissingError(f"{where}: {name} in it is empty")
    return images[name]
