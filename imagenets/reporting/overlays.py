"""Masks drawn over their picture: ground truth, prediction, and where the two disagree."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import NamedTuple

import numpy as np

from imagenets.classes import BACKGROUND, IGNORE, MODES

GROUND_GRAY = 200  # of the plain background used without a picture
_FILL = 0.3  # opacity of a region over a picture, which has to show through; its outline is opaque
_PLAIN_FILL = 0.75  # and over a plain background
_LINES = 180  # an outline is this fraction of the longer side wide

_COLOURS = MODES["919"].classes
_NEIGHBOURS = 10  # a colour differs from those of so many labels before it
_APART = 2  # this many times as much as from all others
_LIGHTNESS = (0.55, 0.88)  # of colours in Oklab: none is nearly black or nearly white
_CHROMA = 0.08  # at least: none is nearly gray

# What a pixel of the disagreement is, and its colour: Okabe and Ito's, which colour-blind readers tell apart.
DISAGREEMENT = {
    "right": (0, 158, 115),
    "missed (background predicted)": (240, 228, 66),
    "wrong class": (213, 94, 0),
    "invented (background in truth)": (86, 180, 233),
}


# Maps labels > 0 (n,) to colours (n, 3) uint8.
Colours = Callable[[np.ndarray], np.ndarray]


class Panels(NamedTuple):
    """The four views of one image, (H, W, 3) uint8 each."""

    picture: np.ndarray
    ground_truth: np.ndarray
    prediction: np.ndarray
    disagreement: np.ndarray


def draw_panels(
    picture: np.ndarray, ground_truth: np.ndarray, prediction: np.ndarray, plain: bool = False
) -> Panels:
    """Draw the masks over ``picture`` (H, W, 3) uint8: outlines, and regions that it shows through.

    ``ground_truth`` (H, W) holds classes or 1000 (hatched: ignored), ``prediction`` (H, W) the classes
    after matching. A class has the same colour everywhere; the picture below it is shown in gray.
    On a ``plain`` background, regions are more opaque.
    """
    ignored = ground_truth == IGNORE
    disagreement = disagreement_kinds(ground_truth, prediction)
    ground = _without_colour(picture)
    return Panels(
        picture,
        draw_labels(picture, ground_truth, ignored, plain),
        draw_labels(picture, prediction, plain=plain),
        _hatch(_paint(ground, disagreement, _kind_colours, plain), ignored),
    )


def draw_labels(
    picture: np.ndarray, labels: np.ndarray, ignored: np.ndarray | None = None, plain: bool = False
) -> np.ndarray:
    """Draw one mask (H, W) over ``picture`` (H, W, 3) uint8 as ``draw_panels`` does; (H, W, 3) uint8.

    Where ``ignored`` (H, W) bool is set, it is hatched.
    """
    ground = _without_colour(picture)
    if ignored is None:
        return _paint(ground, labels, label_colours, plain)
    return _hatch(_paint(ground, np.where(ignored, BACKGROUND, labels), label_colours, plain), ignored)


def disagreement_kinds(ground_truth: np.ndarray, prediction: np.ndarray) -> np.ndarray:
    """Return each pixel's index in DISAGREEMENT, from 1, (H, W) uint8; 0: background in both, or ignored."""
    labelled, predicted = ground_truth != BACKGROUND, prediction != BACKGROUND
    kinds = np.select(
        [ground_truth == IGNORE, labelled & (ground_truth == prediction), labelled & ~predicted, labelled],
        [0, 1, 2, 3],
        default=4 * predicted,
    )
    return kinds.astype(np.uint8)


def plain_ground(height: int, width: int) -> np.ndarray:
    """Return a gray picture (height, width, 3) uint8, for images without a picture."""
    return np.full((height, width, 3), GROUND_GRAY, np.uint8)


def label_colours(labels: np.ndarray) -> np.ndarray:
    """Colours (..., 3) uint8 of labels 1 and up; beyond 919, the size of the palette, colours repeat."""
    return palette()[(labels.astype(np.int64) - 1) % _COLOURS]


@lru_cache(maxsize=1)
def palette() -> np.ndarray:
    """Colours of classes 1..919, (919, 3) uint8, always the same.

    Each is chosen as far as possible from all before it, with the last ten counted as half as far away:
    classes with neighbouring ids are related, and often occur in the same image. Distances are those of the
    Oklab colour space, roughly what the eye sees (Ottosson, 2020,
    https://bottosson.github.io/posts/oklab/).
    """
    levels = np.linspace(0, 255, 24).round().astype(np.uint8)
    colours = np.stack(np.meshgrid(levels, levels, levels, indexing="ij"), axis=-1).reshape(-1, 3)
    lab = oklab(colours)
    lightness, chroma = lab[:, 0], np.hypot(lab[:, 1], lab[:, 2])
    usable = (lightness > _LIGHTNESS[0]) & (lightness < _LIGHTNESS[1]) & (chroma > _CHROMA)
    colours, lab, chroma = colours[usable], lab[usable], chroma[usable]
    chosen = [int(np.argmax(chroma))]
    nearest = np.full(len(lab), np.inf)  # distance of each to the nearest colour chosen so far
    recent = np.full((_NEIGHBOURS, len(lab)), np.inf)  # and to those chosen last
    while len(chosen) < _COLOURS:
        distance = np.linalg.norm(lab - lab[chosen[-1]], axis=1)
        nearest = np.minimum(nearest, distance)
        recent[len(chosen) % _NEIGHBOURS] = distance
        apart = np.minimum(nearest, recent.min(axis=0) / _APART)
        chosen.append(int(np.argmax(apart.round(9))))  # rounded: the same colours on every machine
    result: np.ndarray = colours[chosen]
    return result


def oklab(colours: np.ndarray) -> np.ndarray:
    """Convert sRGB (n, 3) uint8 to Oklab (n, 3): lightness 0..1, green to red, blue to yellow."""
    value = colours / 255
    linear = np.where(value <= 0.04045, value / 12.92, ((value + 0.055) / 1.055) ** 2.4)
    cones = linear @ np.array(
        [
            [0.4122214708, 0.2119034982, 0.0883024619],
            [0.5363325363, 0.6806995451, 0.2817188376],
            [0.0514459929, 0.1073969566, 0.6299787005],
        ]
    )
    result: np.ndarray = np.cbrt(cones) @ np.array(
        [
            [0.2104542553, 1.9779984951, 0.0259040371],
            [0.7936177850, -2.4285922050, 0.7827717662],
            [-0.0040720468, 0.4505937099, -0.8086757660],
        ]
    )
    return result


def _without_colour(picture: np.ndarray) -> np.ndarray:
    """Gray of the same luma (ITU-R BT.601)."""
    luma = picture @ np.array([0.299, 0.587, 0.114])
    return np.repeat(luma.round().astype(np.uint8)[..., None], 3, axis=-1)


def _kind_colours(kinds: np.ndarray) -> np.ndarray:
    return np.array(list(DISAGREEMENT.values()), np.uint8)[kinds.astype(np.int64) - 1]


def _paint(ground: np.ndarray, labels: np.ndarray, colours_of: Colours, plain: bool) -> np.ndarray:
    """Paint each label except 0 in its colour: half transparent, with an opaque outline."""
    painted: np.ndarray = ground.copy()
    region = labels != BACKGROUND
    colours = colours_of(labels[region])
    opacity = np.where(_outline(labels)[region], 1.0, _PLAIN_FILL if plain else _FILL)[:, None]
    painted[region] = (opacity * colours + (1 - opacity) * ground[region]).round().astype(np.uint8)
    return painted


def _outline(labels: np.ndarray) -> np.ndarray:
    """Pixels within a line's width of another label, (H, W) bool; a line grows with the image."""
    edge = np.zeros(labels.shape, bool)
    for distance in range(1, 1 + max(1, round(max(labels.shape) / _LINES))):
        for axis in (0, 1):
            before = np.moveaxis(labels, axis, 0)[:-distance]
            after = np.moveaxis(labels, axis, 0)[distance:]
            differs = before != after
            view = np.moveaxis(edge, axis, 0)
            view[: len(differs)] |= differs
            view[len(view) - len(differs) :] |= differs
    return edge


def _hatch(painted: np.ndarray, ignored: np.ndarray) -> np.ndarray:
    """Draw gray stripes, half of them see-through, over the pixels ``ignored`` (H, W) bool."""
    rows, columns = np.nonzero(ignored)
    period = max(4, 2 * round(max(ignored.shape) / 90))
    dark = (rows + columns) % period < period // 2
    hatched: np.ndarray = painted.copy()
    stripe = np.where(dark[:, None], 70, 150)
    hatched[rows, columns] = (0.75 * stripe + 0.25 * painted[rows, columns]).round().astype(np.uint8)
    return hatched
