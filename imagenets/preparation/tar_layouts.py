"""ImageNet as it was released: two tars, read in place."""

from __future__ import annotations

import os
import tarfile
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import BinaryIO

from imagenets.common.errors import InputError
from imagenets.images import is_image
from imagenets.preparation.source_images import PackedTrain, PackedVal, SourceImage

TRAIN_TAR = "ILSVRC2012_img_train.tar"
VAL_TAR = "ILSVRC2012_img_val.tar"


def train_tar(path: Path) -> PackedTrain:
    """``ILSVRC2012_img_train.tar``: a tar with one tar per class, read in place."""

    @cache
    def class_tars() -> dict[str, SourceImage]:
        return {name.removesuffix(".tar"): tar for name, tar in _members(path) if name.endswith(".tar")}

    @cache
    def images(wnid: str) -> dict[str, SourceImage]:
        if wnid not in class_tars():
            return {}
        return {name: image for name, image in _members(path, class_tars()[wnid]) if is_image(name)}

    return PackedTrain("a tar", f"tar of class tars, {path}", path, images)


def val_tar(path: Path) -> PackedVal:
    """``ILSVRC2012_img_val.tar``: a flat tar of the images, read in place."""

    @cache
    def images() -> dict[str, SourceImage]:
        return {name: image for name, image in _members(path) if is_image(name)}

    return PackedVal("a tar", f"tar of images, {path}", path, images)


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
