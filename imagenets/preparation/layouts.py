"""Layouts of ImageNet copies, detected from their files: folders, original tars, parquet shards."""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Iterator
from contextlib import suppress
from itertools import islice
from pathlib import Path

from imagenets.common.errors import InputError, problem_of
from imagenets.common.folders import subfolders, visible
from imagenets.images import is_image
from imagenets.preparation.folder_layouts import TrainFolder, TrainFolders, ValFolder, repeats_class
from imagenets.preparation.other_data import recognise, refuse_other_data
from imagenets.preparation.parquet import find_shards, stray_parquet, train_parquet, val_parquet
from imagenets.preparation.source_images import PackedTrain, PackedVal, class_of_name
from imagenets.preparation.tar_layouts import TRAIN_TAR, VAL_TAR, train_tar, val_tar
from imagenets.preparation.zip_layout import NAME, ROOT, find_zip, holds, train_zip, val_zip

KAGGLE = ROOT

Train = TrainFolder | TrainFolders | PackedTrain
Val = ValFolder | PackedVal

_WNID = re.compile(r"n\d{8}")
_TRAIN_PART = re.compile(r"train_images_(\d+)")
_VAL_FOLDERS = ("val", "val_images")

# Other names of the two parts in copies of ImageNet, besides train and val.
_OTHER_NAMES = {
    "train": ("training", "Train", "TRAIN", "ILSVRC2012_img_train", "train2012"),
    "val": ("validation", "valid", "Val", "VAL", "ILSVRC2012_img_val", "ILSVRC2012_val", "val2012"),
}
_FEW = 50  # subfolders to search, if ImageNet is not in the named folder

_FORMS = {
    "train": (
        "train/<wnid>/",
        f"{KAGGLE}/train/<wnid>/",
        "train_images_0/ and on",
        TRAIN_TAR,
        NAME,
        "data/train-00000-of-*.parquet",
    ),
    "val": (
        "val/<wnid>/",
        "val/*.JPEG",
        f"{KAGGLE}/val/*.JPEG",
        f"{KAGGLE}/val/<wnid>/",
        "val_images/",
        VAL_TAR,
        NAME,
        "data/validation-00000-of-*.parquet",
    ),
}


def find_train(imagenet: Path) -> Train:
    """Find the training images of an ImageNet copy; folders come before the tar, the tar before shards.

    Raises InputError, which says what was looked for, when there are none.
    """
    refuse_other_data(imagenet)
    train = _find_train(imagenet)
    if train is None:
        raise _nothing_found(imagenet, "train")
    return train


def find_val(imagenet: Path) -> Val:
    """Find the validation images of an ImageNet copy; folders come before the tar, the tar before shards.

    Raises InputError, which says what was looked for, when there are none.
    """
    refuse_other_data(imagenet)
    val = _find_val(imagenet)
    if val is None:
        raise _nothing_found(imagenet, "val")
    return val


def packed_in(images: Train | Val) -> str | None:
    """Name the archive that the images are packed in, to which no link can lead; None if they are files."""
    return images.kind if isinstance(images, PackedTrain | PackedVal) else None


def _find_train(imagenet: Path) -> Train | None:
    for root in _roots(imagenet):
        class_folders, flat = _holds(root / "train", telling_class=True)
        _refuse_too_deep(root / "train")
        if class_folders and not flat and not repeats_class(root / "train"):
            return TrainFolder(root / "train")
        if class_folders or flat:
            return TrainFolders((root / "train",))
    for root in _roots(imagenet):
        parts = _train_parts(root)
        if parts:
            return TrainFolders(parts)
    for root in _roots(imagenet):
        if (root / TRAIN_TAR).is_file():
            return train_tar(root / TRAIN_TAR)
    archive = find_zip(imagenet)
    if archive and holds(archive, "train"):
        return train_zip(archive)
    shards = find_shards(imagenet, "train")
    return train_parquet(shards) if shards else None


def _find_val(imagenet: Path) -> Val | None:
    for root in _roots(imagenet):
        for name in _VAL_FOLDERS:
            class_folders, images = _holds(root / name)
            if class_folders or images:
                _refuse_too_deep(root / name)
                return ValFolder(root / name, class_folders, images)
    for root in _roots(imagenet):
        if (root / VAL_TAR).is_file():
            return val_tar(root / VAL_TAR)
    archive = find_zip(imagenet)
    if archive and holds(archive, "val"):
        return val_zip(archive)
    shards = find_shards(imagenet, "validation")
    return val_parquet(shards) if shards else None


def _roots(imagenet: Path) -> list[Path]:
    """Folders in which ``train`` and ``val`` may lie, given the root of a copy, Kaggle's and others' too."""
    return [imagenet, imagenet / KAGGLE, imagenet / "data"]


def _train_parts(root: Path) -> tuple[Path, ...]:
    """Non-empty folders ``train_images_0``, ...; InputError if one in between is missing."""
    parts: dict[int, Path] = {}
    with suppress(FileNotFoundError, NotADirectoryError):
        for entry in visible(root):
            match = _TRAIN_PART.fullmatch(entry.name)
            if match and any(_holds(root / entry.name, telling_class=True)):
                parts[int(match[1])] = root / entry.name
    missing = [f"train_images_{i}" for i in range(max(parts, default=-1)) if i not in parts]
    if missing:
        raise InputError(
            f"{root}: {', '.join(missing)} is missing or empty, {parts[max(parts)].name} is there: unpack it"
        )
    return tuple(parts[i] for i in sorted(parts))


def _holds(folder: Path, telling_class: bool = False) -> tuple[bool, bool]:
    """Are there class folders, and images (whose names contain the class), in ``folder``?"""
    class_folders = images = False
    for entry in _entries(folder):
        class_folders = class_folders or entry.is_dir()
        if not images and is_image(entry.name) and entry.is_file():
            images = not telling_class or class_of_name(entry.name) is not None
        if class_folders and images:
            break
    return class_folders, images


def _entries(folder: Path) -> Iterator[os.DirEntry[str]]:
    """Yield the visible entries of a folder, which need not exist."""
    try:
        yield from visible(folder)
    except (FileNotFoundError, NotADirectoryError):
        return
    except OSError as error:
        raise InputError(problem_of(error, folder)) from error


def _refuse_too_deep(folder: Path) -> None:
    """Raise InputError if ``folder`` holds nothing but one folder with the class folders or images."""
    inside = list(islice(_entries(folder), 2))
    if len(inside) != 1 or _WNID.fullmatch(inside[0].name) or not inside[0].is_dir():
        return
    deeper = [entry.name for entry in _entries(Path(inside[0].path))]
    if any(_WNID.fullmatch(name) or is_image(name) for name in deeper):
        raise InputError(
            f"{folder}: one level too deep, its class folders or images lie in {inside[0].path}; "
            f"move them to {folder}"
        )


def _nothing_found(imagenet: Path, part: str) -> InputError:
    """Say that ``part``, train or val, is missing, and where it may be, or what almost fits."""
    known = recognise(imagenet)
    if known:
        return InputError(known)
    if not imagenet.is_dir():
        return InputError(f"{imagenet}: no such folder; name the folder of your ImageNet copy")
    if any(_WNID.fullmatch(name) for name in subfolders(imagenet)):
        return InputError(
            f"{imagenet} holds class folders itself: name its parent, {imagenet.absolute().parent}"
        )
    what = "training images" if part == "train" else "validation images"
    message = f"no {what} found in {imagenet}; looked there for {', '.join(_FORMS[part])}"
    hint = _raw_copy(imagenet, part) or _other_name(imagenet, part) or _elsewhere(imagenet, part)
    return InputError(f"{message}. {hint}" if hint else message)


def _raw_copy(imagenet: Path, part: str) -> str | None:
    """Say what almost fits, and the cure; None if nothing does."""
    for folder in (imagenet, imagenet / "data"):
        for packed in sorted(folder.glob(f"{part}_images*.tar.gz")):
            name = packed.name.removesuffix(".tar.gz")
            return f"{packed} is not unpacked: unpack it into a folder {name}"
        stray = stray_parquet(folder)
        if stray:
            return f"{stray} is not named like train-00000-of-00294.parquet: get it as it was published"
    for folder in (imagenet / part, imagenet / f"{part}_images", imagenet / "data"):
        if folder.is_dir() and not any(True for _ in _entries(folder)):
            return f"{folder} is there, but empty"
    return None


def _other_name(imagenet: Path, part: str) -> str | None:
    """Find the part under another name."""
    for root in _roots(imagenet):
        for name in _OTHER_NAMES[part]:
            if any(_holds(root / name)):
                return (
                    f"{root / name} looks like them: rename it to {part}, or make a link, "
                    f"ln -s {name} {shlex.quote(str(root / part))}"
                )
    return None


def _elsewhere(imagenet: Path, part: str) -> str | None:
    """Find the part in a folder that may have been meant, or only the other part."""
    for candidate in _nearby(imagenet):
        if _found(candidate, part):
            return f"They are in {candidate}: name that folder"
    other = _found(imagenet, "val" if part == "train" else "train")
    return (
        f"Only the {'validation' if part == 'train' else 'training'} images are there, {other}"
        if other
        else None
    )


def _nearby(imagenet: Path) -> Iterator[Path]:
    """Folders that may have been meant: up to two levels below ``imagenet``, and above it."""
    children = [imagenet / name for name in subfolders(imagenet)[:_FEW]]
    yield from children
    for child in children:
        with suppress(OSError):  # a folder that we may not read is not a candidate
            yield from (child / name for name in subfolders(child)[:_FEW])
    yield imagenet.absolute().parent


def _found(imagenet: Path, part: str) -> Train | Val | None:
    with suppress(InputError, OSError):
        return _find_train(imagenet) if part == "train" else _find_val(imagenet)
    return None
