"""The region of each image's own class: as a mask, as COCO's run lengths, and cropped as Alpha-CLIP crops it.

Alpha-CLIP (Sun et al., CVPR 2024) classifies a region of an image with the mask as a fourth channel; its
evaluation on ImageNet-S shows it the largest square of each. Formulas: docs/regions.md, Regions.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image

from imagenets.classes import Mode, find_mode
from imagenets.common.errors import InputError
from imagenets.common.progress import Show, no_bar
from imagenets.common.whole_files import whole_folder
from imagenets.dataset import split_with_masks
from imagenets.lists import mask_of
from imagenets.masks import decode_mask, target_mask

FORMS = ("png", "rle", "npz")
# Of OpenAI's CLIP, and of Alpha-CLIP's mask.
CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)
ALPHA_MEAN, ALPHA_STD = 0.5, 0.26


class Region(NamedTuple):
    """The region of an image's own class: ``image`` is ``<wnid>/<file>``, ``mask`` (H, W) bool.

    The mask is empty if the image does not show the class of its folder.
    """

    image: str
    class_id: int
    mask: np.ndarray

    @property
    def absent(self) -> bool:
        """Does the image not show its class?"""
        return not self.mask.any()


def target_regions(
    root: Path | str | None, mode: str | int | Path | Mode, split: str = "validation", square: bool = False
) -> Iterator[Region]:
    """Yield the regions of a split of a prepared set, in the order of image names.

    A region is all pixels with the class of the image's folder, without void and other classes. ``square``
    crops it to the largest centred square, ``square_crop``. Masks fit the pixels as stored: read images
    without EXIF rotation (OpenCV rotates them).

    Raises InputError for a missing split or a mask that cannot be read, ValueError for an unknown
    mode or a split without masks.
    """
    found = find_mode(mode)
    folder, images, ids = split_with_masks(root, found, split)
    for image in images:
        class_id = ids[image.partition("/")[0]]
        path = folder.with_name(f"{split}-segmentation") / mask_of(image)
        try:
            labels = decode_mask(path, found.classes)
        except FileNotFoundError as error:
            raise InputError(f"{path}: no mask of this image; prepare the set's annotations") from error
        mask, _ = target_mask(labels, class_id)
        yield Region(image, class_id, mask[square_crop(*mask.shape)] if square else mask)


def square_crop(height: int, width: int) -> tuple[slice, slice]:
    """Rows and columns of the largest square, as Alpha-CLIP cuts it.

    Up to a pixel off torchvision's CenterCrop: top is H // 2 − s // 2.
    """
    side = min(height, width)
    top, left = height // 2 - side // 2, width // 2 - side // 2
    return slice(top, top + side), slice(left, left + side)


def resize_alpha(mask: np.ndarray, size: int) -> np.ndarray:
    """Resize a region (s, s) bool to (size, size) float32 of 0..1 as Alpha-CLIP: bilinear, antialiased."""
    return _resized(torch.from_numpy(mask.astype(np.float32))[None], size, "bilinear")[0].numpy()


def alpha_clip_input(
    image: np.ndarray, mask: np.ndarray, size: int = 224
) -> tuple[torch.Tensor, torch.Tensor]:
    """Make Alpha-CLIP's input from an image (H, W, 3) uint8, RGB, and its region (H, W) bool.

    Both are cropped to the largest square, scaled to 0..1, resized with antialiasing (image bicubic, whose
    overshoot stays; region bilinear), and normalised: (3, size, size) and (1, size, size) float32.
    """
    rows, columns = square_crop(*mask.shape)
    pixels = torch.from_numpy(np.ascontiguousarray(image[rows, columns])).permute(2, 0, 1).float() / 255
    mean, std = (torch.tensor(values)[:, None, None] for values in (CLIP_MEAN, CLIP_STD))
    alpha = torch.from_numpy(resize_alpha(mask[rows, columns], size))[None]
    return (_resized(pixels, size, "bicubic") - mean) / std, (alpha - ALPHA_MEAN) / ALPHA_STD


def _resized(channels: torch.Tensor, size: int, how: str) -> torch.Tensor:
    """Resize (C, s, s) as torchvision's Resize does a tensor."""
    if channels.shape[1:] == (size, size):
        return channels
    return torch.nn.functional.interpolate(
        channels[None], size=(size, size), mode=how, align_corners=False, antialias=True
    )[0]


def encode_rle(mask: np.ndarray) -> dict[str, Any]:
    """Write a mask (H, W) bool as COCO's compressed run lengths, ``{"size": [H, W], "counts": "…"}``.

    Runs go down the columns and begin with one of 0; from the fourth on, each is written as its difference
    to the one before the last, in groups of five bits, the lowest first. pycocotools reads it.
    """
    pixels = np.asarray(mask, bool).ravel(order="F")
    changes = np.flatnonzero(np.diff(pixels, prepend=False))
    runs = np.diff(np.concatenate([[0], changes, [pixels.size]])).tolist()
    values = [run - runs[i - 2] if i > 2 else run for i, run in enumerate(runs)]
    return {"size": list(mask.shape), "counts": "".join(map(_characters, values))}


def _characters(value: int) -> str:
    """Write a number, perhaps negative, in characters of five bits; the sixth says that more follow."""
    written = ""
    while True:
        bits, value = value & 0x1F, value >> 5
        more = value != (-1 if bits & 0x10 else 0)
        written += chr(48 + bits + 0x20 * more)
        if not more:
            return written


class Exported(NamedTuple):
    """What ``export_regions`` wrote: number of regions, and the images that do not show their class."""

    regions: int
    absent: list[str]


def export_regions(
    root: Path | str | None,
    mode: str | int | Path | Mode,
    output: Path,
    form: str,
    split: str = "validation",
    square: bool = False,
    size: int | None = None,
    show: Show = no_bar,
) -> Exported:
    """Write the regions of a split into a new folder, in one of FORMS.

    - ``png``: ``<wnid>/<name>.png``, 8-bit grayscale, 255 inside;
    - ``rle``: ``regions.json``, Alpha-CLIP's list of ``image_pth``, ``category_word`` (the wnid) and ``mask``
      (COCO's run lengths), class by class;
    - ``npz``: ``<wnid>.npz``, an array by ``<name>``: bool; with a ``size``, float32 of Alpha-CLIP's resize.

    ``absent.txt`` lists the images that do not show their class; their regions are empty. Raises InputError
    if ``output`` exists already, ValueError for a ``size`` that the form cannot hold.
    """
    if form not in FORMS:
        raise ValueError(f"no such form: {form!r}; choose from {', '.join(FORMS)}")
    if size is not None and (form != "npz" or not square):
        raise ValueError("a size needs npz and squares: the other forms hold no values between 0 and 1")
    found = find_mode(mode)
    images = len(split_with_masks(root, found, split)[1])
    absent: list[str] = []
    entries: list[dict[str, Any]] = []
    with whole_folder(output) as folder, show("regions", images, unit="region") as advance:
        regions = target_regions(root, found, split, square)
        for wnid, of_class in groupby(regions, key=lambda region: region.image.partition("/")[0]):
            held = list(of_class)
            absent += [region.image for region in held if region.absent]
            if form == "rle":
                entries += [
                    {"image_pth": region.image, "category_word": wnid, "mask": encode_rle(region.mask)}
                    for region in held
                ]
            else:
                _write_class(folder / wnid, held, form, size)
            advance(len(held))
        if form == "rle":
            (folder / "regions.json").write_text(json.dumps(entries), encoding="utf-8")
        (folder / "absent.txt").write_text("".join(f"{image}\n" for image in absent), encoding="utf-8")
    return Exported(images, absent)


def _write_class(folder: Path, regions: Sequence[Region], form: str, size: int | None) -> None:
    by_stem = {Path(region.image).stem: region.mask for region in regions}
    if form == "png":
        folder.mkdir()
        for stem, mask in by_stem.items():
            Image.fromarray(mask.astype(np.uint8) * 255).save(folder / f"{stem}.png")
        return
    arrays: dict[str, Any] = by_stem
    if size is not None:
        arrays = {stem: resize_alpha(mask, size) for stem, mask in by_stem.items()}
    np.savez_compressed(folder.with_suffix(".npz"), **arrays)
