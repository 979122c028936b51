"""Kaggle's ImageNet: one ZIP, read in place by its index."""

from __future__ import annotations

import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path

from imagenets.common.errors import InputError
from imagenets.common.zip_files import BROKEN_ZIP
from imagenets.images import is_image
from imagenets.preparation.source_images import MissingError, SourceImage, ZipMember, not_empty

NAME = "imagenet-object-localization-challenge.zip"
ROOT = "ILSVRC/Data/CLS-LOC"


def find_zip(imagenet: Path) -> Path | None:
    """Find Kaggle's ZIP, ``imagenet`` itself or a file in it; a browser may have added a number."""
    if imagenet.suffix == ".zip" and imagenet.is_file():
        return imagenet
    found = (path for path in imagenet.glob("imagenet-object-localization-challenge*.zip") if path.is_file())
    return min(found, default=None)


@dataclass(frozen=True)
class TrainZip:
    """The training images of Kaggle's ZIP."""

    path: Path

    def __str__(self) -> str:
        """Describe it for people."""
        return f"Kaggle's ZIP, {self.path}"

    @cached_property
    def _by_class(self) -> dict[str, dict[str, SourceImage]]:
        found: dict[str, dict[str, SourceImage]] = {}
        for name, image in _members(self.path, "train"):
            wnid, _, file = name.partition("/")
            if file and "/" not in file:
                found.setdefault(wnid, {})[file] = image
        return found

    def images(self, wnid: str) -> dict[str, SourceImage]:
        """Name and place in the ZIP of each image of a class."""
        if wnid not in self._by_class:
            raise MissingError(f"{self.path}: no image in its {ROOT}/train/{wnid}")
        return self._by_class[wnid]

    def image(self, place: str) -> SourceImage:
        """Find one image, ``<wnid>/<name>``."""
        wnid, name = place.split("/")
        image = self._by_class.get(wnid, {}).get(name)
        if image is None:
            raise MissingError(f"{self.path}: no {ROOT}/train/{place} in it")
        return not_empty(image, f"{self.path}: {place} in it")


@dataclass(frozen=True)
class ValZip:
    """The validation images of Kaggle's ZIP, which lie flat."""

    path: Path

    flat = True

    def __str__(self) -> str:
        """Describe it for people."""
        return f"Kaggle's ZIP, {self.path}"

    @cached_property
    def _images(self) -> dict[str, SourceImage]:
        return {name.rpartition("/")[2]: image for name, image in _members(self.path, "val")}

    def image(self, place: str) -> SourceImage:
        """Find one image, ``<wnid>/<name>``, by its name only."""
        name = place.rpartition("/")[2]
        image = self._images.get(name)
        if image is None:
            raise MissingError(f"{self.path}: no {ROOT}/val/{name} in it")
        return not_empty(image, f"{self.path}: {name} in it")


def holds(path: Path, part: str) -> bool:
    """Does Kaggle's ZIP hold images of ``part``, train or val?"""
    return next(_members(path, part), None) is not None


def _members(path: Path, part: str) -> Iterator[tuple[str, SourceImage]]:
    """Names below ``part``, train or val, and places of the images in a ZIP."""
    archive = _open_zip(path)
    prefix = f"{ROOT}/{part}/"
    for info in archive.infolist():
        if info.filename.startswith(prefix) and is_image(info.filename.rpartition("/")[2]):
            place = ZipMember(archive, info)
            yield info.filename.removeprefix(prefix), SourceImage(str(path), info.file_size, member=place)


@lru_cache(maxsize=1)
def _open_zip(path: Path) -> zipfile.ZipFile:
    """Open the ZIP and read its index, once: it has two million entries."""
    try:
        archive = zipfile.ZipFile(path)
    except BROKEN_ZIP as error:
        raise InputError(f"{path}: not a complete ZIP ({error}): get it again") from error
    packed = [name for name in archive.namelist() if name.endswith((".tar.gz", ".tgz"))]
    if packed and not any(name.startswith(f"{ROOT}/") for name in archive.namelist()):
        raise InputError(f"{path}: holds {packed[0]}, which cannot be read in place: unpack both")
    return archive
