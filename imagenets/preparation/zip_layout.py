"""Kaggle's ImageNet: one ZIP, read in place by its index."""

from __future__ import annotations

import zipfile
from collections.abc import Iterator
from functools import cache, lru_cache
from pathlib import Path

from imagenets.common.errors import InputError
from imagenets.common.zip_files import BROKEN_ZIP
from imagenets.images import is_image
from imagenets.preparation.source_images import PackedTrain, PackedVal, SourceImage, ZipMember

NAME = "imagenet-object-localization-challenge.zip"
ROOT = "ILSVRC/Data/CLS-LOC"


def find_zip(imagenet: Path) -> Path | None:
    """Find Kaggle's ZIP, ``imagenet`` itself or a file in it; a browser may have added a number."""
    if imagenet.suffix == ".zip" and imagenet.is_file():
        return imagenet
    found = (path for path in imagenet.glob("imagenet-object-localization-challenge*.zip") if path.is_file())
    return min(found, default=None)


def train_zip(path: Path) -> PackedTrain:
    """Return the training images of Kaggle's ZIP."""

    @cache
    def classes() -> dict[str, dict[str, SourceImage]]:
        found: dict[str, dict[str, SourceImage]] = {}
        for name, image in _members(path, "train"):
            wnid, _, file = name.partition("/")
            if file and "/" not in file:
                found.setdefault(wnid, {})[file] = image
        return found

    return PackedTrain("a ZIP", f"Kaggle's ZIP, {path}", path, lambda wnid: classes().get(wnid, {}))


def val_zip(path: Path) -> PackedVal:
    """Return the validation images of Kaggle's ZIP, which lie flat."""

    @cache
    def images() -> dict[str, SourceImage]:
        return {name.rpartition("/")[2]: image for name, image in _members(path, "val")}

    return PackedVal("a ZIP", f"Kaggle's ZIP, {path}", path, images)


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
