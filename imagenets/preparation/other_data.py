"""Folders that look like ImageNet but are something else, or in an unsupported form."""

from __future__ import annotations

import re
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

from imagenets.common.errors import InputError
from imagenets.common.folders import subfolders, visible

_SHARD = re.compile(r".*(?:train|val|validation)\w*-[\w{}.]*\d{3,}\.tar")
_RESIZED = re.compile(r"(?:train|val)[_-]?\d{2,3}(?:px|x\d+)?")
_FEW = 200  # entries of a folder to look at
_SETS = ("ImageNetS50", "ImageNetS300", "ImageNetS919")


def recognise(imagenet: Path) -> str | None:
    """Say in one line what ``imagenet`` is, if it is not a supported ImageNet; None if it looks right."""
    for look in (_prepared_set, _segmentation, _compressed, _shards, _sketch, _numbered, _resized):
        found = look(imagenet)
        if found:
            return found
    return None


def refuse_other_data(imagenet: Path) -> None:
    """Raise InputError for folders that look like ImageNet: a prepared set, ImageNet-Sketch."""
    sets = ("train-semi", "validation-segmentation")
    prepared = any((imagenet / name).is_dir() for name in sets)
    found = _prepared_set(imagenet) if prepared else _sketch(imagenet)
    if found:
        raise InputError(found)


def _prepared_set(folder: Path) -> str | None:
    if not any((folder / name).is_dir() for name in (*_SETS, "train-semi", "validation-segmentation")):
        return None
    return f"{folder} is a prepared ImageNet-S, not ImageNet: name the folder of your ImageNet copy"


def _segmentation(folder: Path) -> str | None:
    for path in (folder, folder / "gtsegs_ijcv.mat"):
        if path.name == "gtsegs_ijcv.mat" and path.exists():
            return f"{path} is ImageNet-Segmentation (Guillaumin et al.), not ImageNet-S"
    return None


def _compressed(folder: Path) -> str | None:
    for path in (folder, *_entries(folder)):
        if path.name.endswith((".tar.gz", ".tgz")) and path.is_file():
            return f"{path} is compressed and has no index: unpack it (tar -xzf)"
    return None


def _shards(folder: Path) -> str | None:
    for path in _entries(folder):
        if _SHARD.fullmatch(path.name):
            return (
                f"{path} looks like a shard of WebDataset, which is not supported: take ImageNet's own tars, "
                "folders, or Hugging Face's parquet"
            )
    return None


def _sketch(folder: Path) -> str | None:
    for classes in (folder, folder / "sketch", folder / "train", folder / "val"):
        for wnid in _entries(classes):
            image = next(iter(_entries(wnid)), None)
            if image is not None and image.name.startswith("sketch_"):
                return f"{classes} is ImageNet-Sketch, drawings that ImageNet-S does not use: take ImageNet"
            break
    return None


def _numbered(folder: Path) -> str | None:
    for classes in (folder, folder / "train", folder / "val"):
        names = subfolders(classes) if classes.is_dir() else []
        if len(names) > 1 and all(name.isdecimal() for name in names):
            return (
                f"{classes}: its class folders are numbered ({names[0]} to {names[-1]}), and a number does "
                "not say which class it is: rename them to wnids (n01440764), or take a copy that has them"
            )
    return None


def _resized(folder: Path) -> str | None:
    for path in _entries(folder):
        if _RESIZED.fullmatch(path.name) and path.is_dir():
            return (
                f"{path} looks like a resized copy, whose images do not fit the masks: take images of the "
                "original size"
            )
    return None


def _entries(folder: Path) -> Iterator[Path]:
    """Yield the first entries of a folder, which need not exist."""
    try:
        yield from (Path(entry.path) for entry in islice(visible(folder), _FEW))
    except OSError:
        return
