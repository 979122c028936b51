"""Pictures with only the object, only its background (ground), or the object on another ground.

After ImageNet-9 (Xiao et al., Noise or Signal, ICLR 2021), with ImageNet-S's masks. Definitions:
docs/backgrounds.md, Conditions.
"""

from __future__ import annotations

import csv
from collections import Counter
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageFilter

from imagenets.classes import BACKGROUND, IGNORE, Mode, find_mode
from imagenets.common.errors import InputError, problem_of, refuse
from imagenets.common.progress import Show, no_bar
from imagenets.common.tables import csv_text
from imagenets.common.whole_files import whole_folder
from imagenets.common.workers import process_map
from imagenets.dataset import split_with_masks
from imagenets.images import read_image
from imagenets.lists import mask_of
from imagenets.masks import decode_mask

KEEPS = ("object", "ground")
COLOURS = {"black": (0, 0, 0), "clip-mean": (122, 116, 104), "imagenet-mean": (124, 116, 104)}
OBJECT_FILLS = (*COLOURS, "mean", "blur")
GROUND_FILLS = (*OBJECT_FILLS, "tiles")
CONDITIONS = ("object-only", "ground-only", "mixed-same", "mixed-random")
OTHERS = ("keep", "fill", "drop")
_SIGMA = 100  # of the blur, in pixels: ReCLIP's


def composite(
    image: np.ndarray | Image.Image,
    mask: np.ndarray,
    keep: str,
    fill: str | np.ndarray | Image.Image = "black",
) -> np.ndarray:
    """Keep the object of an image (H, W, 3) uint8, or its ground, and fill the rest; (H, W, 3) uint8.

    ``mask`` (H, W) bool is the object; its edge is hard. ``fill`` is one of

    - ``black``, ``clip-mean``, ``imagenet-mean``, ``mean`` (of the image): a colour;
    - ``blur``: the image itself, blurred by a Gaussian of σ = 100 pixels;
    - ``tiles``, for the ground: the object's bounding box is tiled with the largest strip beside it;
    - another image of the same size: the object is pasted on it, or it shows through.

    Raises ValueError for another shape, an unknown fill, or ``tiles`` if the box fills the image.
    """
    pixels = np.asarray(image)
    mask = np.asarray(mask, bool)
    if pixels.dtype != np.uint8 or pixels.ndim != 3 or pixels.shape[2] != 3 or pixels.shape[:2] != mask.shape:
        raise ValueError(
            f"image {pixels.shape} {pixels.dtype}, mask {mask.shape}; they must be (H, W, 3) uint8 and (H, W)"
        )
    if keep not in KEEPS:
        raise ValueError(f"no such part: {keep!r}; choose from {', '.join(KEEPS)}")
    if isinstance(fill, str) and fill == "tiles":
        if keep != "ground":
            raise ValueError("tiles are made of the ground, for the object's box: keep='ground'")
        return _tiled(pixels, mask)
    kept = mask if keep == "object" else ~mask
    result: np.ndarray = np.where(kept[..., None], pixels, _filling(pixels, fill))
    return result


def _filling(pixels: np.ndarray, fill: str | np.ndarray | Image.Image) -> np.ndarray:
    if not isinstance(fill, str):
        other = np.asarray(fill)
        if other.shape != pixels.shape or other.dtype != np.uint8:
            raise ValueError(f"fill {other.shape} {other.dtype}, but the image is {pixels.shape} uint8")
        return other
    if fill == "mean":
        mean: np.ndarray = pixels.mean(axis=(0, 1)).round().astype(np.uint8)
        return mean
    if fill == "blur":
        return np.asarray(Image.fromarray(pixels).filter(ImageFilter.GaussianBlur(_SIGMA)))
    if fill not in COLOURS:
        raise ValueError(f"no such fill: {fill!r}; choose from {', '.join(GROUND_FILLS)}")
    return np.array(COLOURS[fill], np.uint8)


def object_box(mask: np.ndarray) -> tuple[slice, slice]:
    """Rows and columns of the smallest box around a mask (H, W) bool. Raises ValueError if it is empty."""
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    if not rows.size:
        raise ValueError("the mask is empty: there is no object")
    return slice(int(rows[0]), int(rows[-1]) + 1), slice(int(columns[0]), int(columns[-1]) + 1)


def _tiled(pixels: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Fill the object's box with repetitions of the largest strip above, below, left or right of it."""
    rows, columns = object_box(mask)
    strips = [
        pixels[: rows.start],
        pixels[rows.stop :],
        pixels[:, : columns.start],
        pixels[:, columns.stop :],
    ]
    strip = max(strips, key=lambda part: part.size)
    if not strip.size:
        raise ValueError("the object's box fills the image: there is no ground to make tiles of")
    height, width = rows.stop - rows.start, columns.stop - columns.start
    times = (-(-height // strip.shape[0]), -(-width // strip.shape[1]), 1)
    result: np.ndarray = pixels.copy()
    result[rows, columns] = np.tile(strip, times)[:height, :width]
    return result


class Ground(NamedTuple):
    """What an image's mask allows: is there an object, and does it, or its box, fill the image?

    ``others``: whether other labelled classes are in it too.
    """

    image: str
    absent: bool
    object_fills: bool
    box_fills: bool
    others: bool


class Pair(NamedTuple):
    """The images whose grounds an object is pasted on: of its own class, and of another."""

    image: str
    same: str
    random: str


def draw_pairs(images: Sequence[str], grounds: Sequence[str], seed: int) -> dict[str, Pair]:
    """Draw two grounds for every image ``<wnid>/<file>``, among ``grounds``.

    One is another image of its class, one an image of another class, all classes equally likely. An image for
    which one cannot be drawn is left out. The same arguments draw the same pairs.
    """
    generator = np.random.default_rng(seed)
    by_class: dict[str, list[str]] = {}
    for ground in sorted(grounds):
        by_class.setdefault(ground.partition("/")[0], []).append(ground)
    pairs = {}
    for image in sorted(images):
        wnid = image.partition("/")[0]
        same = [ground for ground in by_class.get(wnid, []) if ground != image]
        others = [other for other in by_class if other != wnid]
        if not (same and others):
            continue
        of_other = by_class[others[generator.integers(len(others))]]
        drawn = (same[generator.integers(len(same))], of_other[generator.integers(len(of_other))])
        pairs[image] = Pair(image, *drawn)
    return pairs


def pairs_csv(pairs: Mapping[str, Pair]) -> str:
    """Format pairs as CSV, which ``read_pairs`` reads."""
    return csv_text(Pair._fields, pairs.values())


def read_pairs(path: Path) -> dict[str, Pair]:
    """Read pairs. Raises InputError if the file does not hold any."""
    with path.open(newline="", encoding="utf-8") as file:
        rows = list(csv.reader(file))
    if not rows or tuple(rows[0]) != Pair._fields or any(len(row) != 3 for row in rows):
        raise InputError(f"{path}: no pairs; give the pairs.csv of an earlier run")
    return {row[0]: Pair(*row) for row in rows[1:]}


class Made(NamedTuple):
    """What ``make_composites`` made by condition, why it left images out, how many show other classes."""

    images: dict[str, int]
    left_out: dict[str, int]
    others: int


class _Set(NamedTuple):
    """Where the images and masks of a split lie, and the class id of each folder."""

    images: Path
    masks: Path
    ids: dict[str, int]
    classes: int

    def read(self, image: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Read an image, its object, and its other labelled and void pixels."""
        labels = decode_mask(self.masks / mask_of(image), self.classes)
        pixels = np.asarray(read_image(self.images / image, labels.shape))
        target = labels == self.ids[image.partition("/")[0]]
        return pixels, target, (labels != BACKGROUND) & ~target


def _look(of_set: _Set, others: str, image: str) -> Ground | str:
    """Say what an image's mask allows, or why it cannot be read."""
    path = of_set.masks / mask_of(image)
    try:
        labels = decode_mask(path, of_set.classes)
    except (InputError, OSError) as error:
        return problem_of(error, path)
    target = labels == of_set.ids[image.partition("/")[0]]
    absent = not target.any()
    hidden = labels != BACKGROUND if others == "fill" else target
    box_fills = not absent and hidden[object_box(hidden)].shape == hidden.shape
    shows_others = bool(((labels != BACKGROUND) & (labels != IGNORE) & ~target).any())
    return Ground(image, absent, bool(hidden.all()), box_fills, shows_others)


class _Fills(NamedTuple):
    object_fill: str
    ground_fill: str
    others: str


def _make(of_set: _Set, fills: _Fills, output: Path, job: tuple[str, tuple[str, ...], Pair | None]) -> None:
    """Write the pictures of one image."""

    def ground(pixels: np.ndarray, target: np.ndarray, rest: np.ndarray, fill: str) -> np.ndarray:
        hidden = target | rest if fills.others == "fill" else target
        return composite(pixels, hidden, "ground", fill)

    image, conditions, pair = job
    pixels, target, rest = of_set.read(image)
    for condition in conditions:
        if condition == "object-only":
            made = composite(pixels, target, "object", fills.object_fill)
        elif condition == "ground-only":
            made = ground(pixels, target, rest, fills.ground_fill)
        else:
            assert pair is not None
            other = ground(*of_set.read(pair.same if condition == "mixed-same" else pair.random), "tiles")
            size = (pixels.shape[1], pixels.shape[0])
            scaled = Image.fromarray(other).resize(size, Image.Resampling.BICUBIC)
            made = composite(pixels, target, "object", scaled)
        path = output / condition / Path(image).with_suffix(".png")
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(made).save(path)


def make_composites(
    root: Path | str | None,
    mode: str | int | Path | Mode,
    output: Path,
    conditions: Sequence[str] = CONDITIONS,
    object_fill: str = "black",
    ground_fill: str = "tiles",
    others: str = "keep",
    seed: int = 0,
    pairs: Mapping[str, Pair] | None = None,
    split: str = "validation",
    workers: int = 0,
    show: Show = no_bar,
) -> Made:
    """Make a folder of pictures for each condition: ``<output>/<condition>/<wnid>/<name>.png``.

    Mixed pictures show the object on the ground-only picture, with tiles, of another image, which is scaled
    to the object's image (bicubic). ``others`` says what happens to other labelled classes in a ground:
    ``keep`` them, ``fill`` them and the void like the object, or ``drop`` the image. ``pairs`` are those of
    an earlier run; without them they are drawn by ``seed``. They are saved as ``pairs.csv``; ``left_out.csv``
    lists the pictures that were not made, and why.

    Raises InputError if ``output`` exists already, or images or masks cannot be read.
    """
    found = find_mode(mode)
    folder, images, ids = split_with_masks(root, found, split)
    of_set = _Set(folder, folder.with_name(f"{split}-segmentation"), ids, found.classes)
    with whole_folder(output) as new, process_map(workers) as mapped:
        looked = list(mapped(partial(_look, of_set, others), images))
        refuse([each for each in looked if isinstance(each, str)])
        grounds = [each for each in looked if isinstance(each, Ground)]
        usable = [
            g.image
            for g in grounds
            if not g.absent and not g.box_fills and not (g.others and others == "drop")
        ]
        objects = [g.image for g in grounds if not g.absent]
        pairs = draw_pairs(objects, usable, seed) if pairs is None else pairs
        jobs, left_out = [], []
        for ground in grounds:
            obstacles = {c: _obstacle(ground, c, ground_fill, others, pairs) for c in conditions}
            left_out += [(ground.image, condition, why) for condition, why in obstacles.items() if why]
            wanted = tuple(condition for condition, why in obstacles.items() if not why)
            if wanted:
                jobs.append((ground.image, wanted, pairs.get(ground.image)))
        with show("pictures", len(jobs), unit="image") as advance:
            make = partial(_make, of_set, _Fills(object_fill, ground_fill, others), new)
            for _ in mapped(make, jobs):
                advance(1)
        (new / "pairs.csv").write_text(pairs_csv(pairs), encoding="utf-8")
        left_out_csv = csv_text(("image", "condition", "reason"), left_out)
        (new / "left_out.csv").write_text(left_out_csv, encoding="utf-8")
    reasons = Counter(f"{condition}: {reason}" for _, condition, reason in left_out)
    counts = {name: sum(name in made for _, made, _ in jobs) for name in conditions}
    return Made(counts, reasons, sum(g.others for g in grounds))


def _obstacle(
    ground: Ground, condition: str, ground_fill: str, others: str, pairs: Mapping[str, Pair]
) -> str | None:
    """Say why a picture cannot be made; None if it can."""
    if ground.absent:
        return "the image does not show its class"
    if condition == "ground-only":
        if ground.object_fills:
            return "the object fills the image"
        if ground.box_fills and ground_fill == "tiles":
            return "the object's box fills the image"
        if ground.others and others == "drop":
            return "the ground shows another class"
    if condition.startswith("mixed") and ground.image not in pairs:
        return "there is no ground to paste it on"
    return None
