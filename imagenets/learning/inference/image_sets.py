"""Lists of images to run a network over, and where their label maps belong."""

from __future__ import annotations

import os
from pathlib import Path

from imagenets.classes import Mode
from imagenets.common.errors import InputError, listed
from imagenets.learning.image_list import list_images
from imagenets.learning.inference.pictures import Images
from imagenets.lists import mask_of

# Of folders that are no ImageNet: what Pillow reads and people have.
_PICTURES = (".jpeg", ".jpg", ".png", ".webp", ".bmp", ".tif", ".tiff")


def split_images(save_dir: Path, mode: Mode, split: str) -> Images:
    """List the images of a split, sorted by path; the masks beside them say how they are turned.

    Raises InputError when there are none.
    """
    root = save_dir / mode.folder
    folder, masks = root / split, root / f"{split}-segmentation"
    return Images(folder, list_images(folder), masks if masks.is_dir() else None, mode.classes)


def annotated_images(save_dir: Path, mode: Mode) -> Images:
    """List the images of train-semi, which must all have their masks. Raises InputError otherwise."""
    make = f"make it: bash datapreparation/data_preparation.sh IMAGENET {save_dir} {mode.name}"
    try:
        images = split_images(save_dir, mode, "train-semi")
    except InputError as error:
        raise InputError(f"{save_dir / mode.folder / 'train-semi'}: no annotated images; {make}") from error
    masks = images.folder.with_name(f"{images.folder.name}-segmentation")
    if images.masks is None:
        raise InputError(
            f"{masks}: no masks; put them in place: "
            f"bash datapreparation/datapreparation_anno.sh {save_dir} {mode.name}"
        )
    absent = [str(masks / mask_of(name)) for name in images.names if not (masks / mask_of(name)).is_file()]
    if absent:
        raise InputError(
            f"{len(absent)} masks of train-semi are missing; put them in place: "
            f"bash datapreparation/datapreparation_anno.sh {save_dir} {mode.name}\n{listed(absent)}"
        )
    return images


def images_below(folder: Path, output: Path) -> Images:
    """List the pictures below any folder, at any depth, sorted; hidden ones are left out.

    Raises InputError when there are none, and when ``output``, where files will be written, lies there too.
    """
    if not folder.is_dir():
        raise InputError(f"{folder}: no such folder")
    if output.resolve().is_relative_to(folder.resolve()):
        raise InputError(f"{output}: lies among the pictures of {folder}; name another --output-dir")
    names = []
    for place, folders, files in os.walk(folder, followlinks=True):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        below = Path(place).relative_to(folder)
        names += [
            (below / name).as_posix()
            for name in files
            if name.lower().endswith(_PICTURES) and not name.startswith(".")
        ]
    if not names:
        raise InputError(f"{folder}: no pictures there ({', '.join(_PICTURES)})")
    return Images(folder, sorted(names))


def target_paths(images: Images, output: Path) -> list[Path]:
    """Where the label map of each image belongs: its name below ``output``, with .png in place of its suffix.

    Raises InputError when two images differ in their suffixes alone.
    """
    first: dict[str, str] = {}
    double = []
    for name in images.names:
        other = first.setdefault(mask_of(name), name)
        if other != name:
            double.append(f"{images.folder / name}: has the same stem as {other}")
    if double:
        raise InputError(f"{len(double)} images would share a label map:\n{listed(double)}")
    return [output / mask for mask in first]
