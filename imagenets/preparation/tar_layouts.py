"""ImageNet as it was released: two tars, read in place."""

from __future__ import annotations

import os
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import BinaryIO

from imagenets.common.errors import InputError
from imagenets.images import is_image
from imagenets.preparation.source_images import MissingError, SourceImage, not_empty

TRAIN_TAR = "ILSVRC2012_img_train.tar"
VAL_TAR = "ILSVRC2012_img_val.tar"


@dataclass(frozen=True)
class TrainTar:
    """``ILSVRC2012_img_train.tar``: a tar with one tar per class, read in place."""

    path: Path
    _known: dict[str, dict[str, SourceImage]] = field(default_factory=dict, compare=False, repr=False)

    def __str__(self) -> str:
        """Describe it for people."""
        return f"tar of class tars, {self.path}"

    @cached_property
    def _classes(self) -> dict[str, SourceImage]:
        return {name.removesuffix(".tar"): tar for name, tar in _members(self.path) if name.endswith(".tar")}

    def images(self, wnid: str) -> dict[str, SourceImage]:
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

    def image(self, place: str) -> SourceImage:
        """Find one image, ``<wnid>/<name>``."""
        wnid, name = place.split("/")
        image = self.images(wnid).get(name)
        if image is None:
            raise MissingError(f"{self.path}: no {name} in its {wnid}.tar")
        return not_empty(image, f"{self.path}: {name} in its {wnid}.tar")


@dataclass(frozen=True)
class ValTar:
    """``ILSVRC2012_img_val.tar``: a flat tar of the images, read in place."""

    path: Path

    def __str__(self) -> str:
        """Describe it for people."""
        return f"tar of images, {self.path}"

    @cached_property
    def _images(self) -> dict[str, SourceImage]:
        return {name: image for name, image in _members(self.path) if is_image(name)}

    flat = True

    def image(self, place: str) -> SourceImage:
        """Find one image, ``<wnid>/<name>``, by its name only."""
        name = place.rpartition("/")[2]
        image = self._images.get(name)
        if image is None:
            raise MissingError(f"{self.path}: no {name} in it")
        return not_empty(image, f"{self.path}: {name} in it")


def _members(path: Path, inner: SourceImage | None = None) -> Iterator[tuple[str, SourceImage]]:
    """Name (without folders) and place of each file in a tar, or in the tar that is ``inner`` within it.

    Only headers and the end are read. Raises InputError if the tar is damaged or truncated.
    """
    try:
        with path.open("rb") as file:
            end = file.seek(0, os.SEEK_END)
            if inner is not None and inner.offset is not None:
                end = inner.offset + inner.size
                file.seek(inner.offset)
            else:
                file.seek(0)
            # TarFile counts offsets from the file's own beginning, even if it starts reading later.
            with tarfile.TarFile(fileobj=file) as tar:
                for member in tar:
                    if member.offset >= end:
                        return  # a tar without end blocks: what follows is the outer tar's
                    if not member.isreg():
                        continue
                    if member.offset_data + member.size > end:
                        raise InputError(f"{path}: cut off in {member.name}: get it again")
                    yield (
                        member.name.rpartition("/")[2],
                        SourceImage(str(path), member.size, member.offset_data),
                    )
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
