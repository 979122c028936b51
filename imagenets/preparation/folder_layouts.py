"""ImageNet in folders: class folders, flat ones, and Hugging Face's archives unpacked to either."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from imagenets.common.errors import problem_of
from imagenets.common.folders import visible
from imagenets.images import is_image
from imagenets.preparation.source_images import (
    MissingError,
    SourceImage,
    class_of_name,
    first_file,
    plain_name,
    spellings,
)


@dataclass(frozen=True)
class TrainFolder:
    """``train/<wnid>/<image>``; links can lead to its class folders."""

    path: Path

    def __str__(self) -> str:
        """Describe it for people."""
        return f"class folders in {self.path}"

    def images(self, wnid: str) -> dict[str, SourceImage]:
        """Name and size of each image of a class; subfolders, hidden files and other files are left out."""
        return _with_sizes(_images_in(self.path / wnid), f"{self.path / wnid}: no image in it")

    def folder(self, wnid: str) -> Path:
        """Return the folder of a class with at least one image."""
        if next(_images_in(self.path / wnid), None) is not None:
            return self.path / wnid
        raise MissingError(f"{self.path / wnid}: no image in it")

    def image(self, place: str) -> SourceImage:
        """Find one image, ``<wnid>/<name>``."""
        return first_file([f"{self.path}/{place}"])


@dataclass(frozen=True)
class TrainFolders:
    """Folders with images whose names contain the class, flat or in class folders: ``train_images_0``, ....

    Links can lead to each image, but not to class folders: the images of a class lie in several, or their
    names repeat the class.
    """

    paths: tuple[Path, ...]

    def __str__(self) -> str:
        """Describe it for people."""
        return f"images whose names tell their class, in {self._where}"

    @property
    def _where(self) -> str:
        first = str(self.paths[0])
        return first if len(self.paths) == 1 else f"{first} to {self.paths[-1].name}"

    @cached_property
    def _found(self) -> tuple[dict[str, list[os.DirEntry[str]]], dict[str, list[Path]]]:
        """Images that lie flat, and class folders; both by class."""
        flat: dict[str, list[os.DirEntry[str]]] = {}
        folders: dict[str, list[Path]] = {}
        for path in self.paths:
            for entry in _entries(path):
                if is_image(entry.name):
                    flat.setdefault(class_of_name(entry.name) or "", []).append(entry)
                elif entry.is_dir():
                    folders.setdefault(entry.name, []).append(Path(entry.path))
        return flat, folders

    def images(self, wnid: str) -> dict[str, SourceImage]:
        """Plain name and size of each image of a class."""
        flat, folders = self._found
        entries = list(flat.get(wnid, ()))
        for folder in folders.get(wnid, ()):
            entries += _images_in(folder)
        return _with_sizes(entries, f"{self._where}: no image of {wnid}")

    def image(self, place: str) -> SourceImage:
        """Find one image, ``<wnid>/<name>``."""
        wnid = place.partition("/")[0]
        folders = [str(path) for path in self.paths]
        return first_file(
            [f"{f}/{n}" for n in spellings(place) for f in folders]
            + [f"{f}/{wnid}/{n}" for n in spellings(place) for f in folders]
        )


@dataclass(frozen=True)
class ValFolder:
    """``val/<wnid>/<image>``, or flat ``val/<image>``, or a mixture; names in either spelling."""

    path: Path
    in_classes: bool  # class folders are there
    flat: bool  # images are there

    def __str__(self) -> str:
        """Describe it for people."""
        kinds = ["class folders"] * self.in_classes + ["images without class folders"] * self.flat
        return f"{' and '.join(kinds)} in {self.path}"

    def image(self, place: str) -> SourceImage:
        """Find one image, ``<wnid>/<name>``."""
        folders = [f"{self.path}/{place.partition('/')[0]}"] * self.in_classes + [str(self.path)] * self.flat
        return first_file([f"{folder}/{name}" for folder in folders for name in spellings(place)])


def repeats_class(folder: Path) -> bool:
    """Do the names in class folders below ``folder`` repeat the class? Decided by the first image."""
    for entry in _entries(folder):
        if not entry.is_dir():
            continue
        with suppress(MissingError):
            for image in _images_in(Path(entry.path)):
                return plain_name(image.name)[1] == entry.name
    return False


def _with_sizes(entries: Iterable[os.DirEntry[str]], without: str) -> dict[str, SourceImage]:
    """Plain name and size of each image; if both spellings exist, the plain one is taken.

    Raises MissingError with the text ``without`` if there is none.
    """
    found: dict[str, SourceImage] = {}
    for entry in entries:
        if entry.is_file():
            name = plain_name(entry.name)[0]
            if name == entry.name or name not in found:
                found[name] = SourceImage(entry.path, entry.stat().st_size)
    if not found:
        raise MissingError(without)
    return found


def _images_in(folder: Path) -> Iterator[os.DirEntry[str]]:
    """Yield the entries that are named like an image."""
    return (entry for entry in _entries(folder) if is_image(entry.name))


def _entries(folder: Path) -> Iterator[os.DirEntry[str]]:
    try:
        yield from visible(folder)
    except OSError as error:
        raise MissingError(problem_of(error, folder)) from error
