"""Synthetic pictures: textured objects on textured backgrounds, with their masks.

A class has a hue and a texture, and neither identifies it by itself: ten hues times five textures make
50 classes. Outline, size, place, rotation and light differ from picture to picture. Objects lie anywhere,
and grounds have textures and colours of the same kinds, so that neither the middle of a picture nor a
colour that is rare at its border is a better guess of the object than on photographs.
"""

from __future__ import annotations

import colorsys
from collections.abc import Callable
from typing import NamedTuple

import cv2
import numpy as np

from imagenets.classes import IGNORE

HUES = 10
LOBES = (0, 2, 3, 4, 5)  # of an object's outline; 0: an ellipse

# Patterns over an object's own coordinates u, v, about -1..1; positive and negative parts differ in colour.
TEXTURES: tuple[Callable[[np.ndarray, np.ndarray], np.ndarray], ...] = (
    lambda u, v: np.sin(14 * u),  # stripes
    lambda u, v: np.sin(9 * u) * np.sin(9 * v),  # checks
    lambda u, v: np.sin(14 * np.hypot(u, v)),  # rings
    lambda u, v: np.cos(16 * u) + np.cos(16 * v) - 0.8,  # dots
    lambda u, v: 0.3 + 0.2 * v,  # a smooth shade
)
CLASSES = HUES * len(TEXTURES)


class Picture(NamedTuple):
    """``image`` (H, W, 3) uint8 RGB, and ``labels`` (H, W) uint16: 0, class ids and 1000 (ignore)."""

    image: np.ndarray
    labels: np.ndarray


def draw(rng: np.random.Generator, class_index: int) -> Picture:
    """Draw a picture of class ``class_index``, 0..49; its label is one more.

    One picture in six has a second object: of another class, or one to be ignored. In one of four the rim
    of the objects is to be ignored too.
    """
    height, width = (int(side) for side in rng.integers((112, 136), (152, 192)))
    canvas = _ground(rng, height, width)
    labels = np.zeros((height, width), np.uint16)
    objects = [(class_index, class_index + 1)]
    if rng.random() < 1 / 6:
        other = int(rng.integers(CLASSES))
        objects.insert(0, (other, IGNORE if rng.random() < 1 / 3 else other + 1))
    for place, (index, label) in enumerate(objects, start=1):
        small = place < len(objects)  # the picture's own object comes last, in front of the other
        inside = _paint(rng, canvas, index, small)
        labels[inside >= 0.5] = label
    if rng.random() < 1 / 4:
        kernel = np.ones((3, 3), np.uint8)
        labels[cv2.morphologyEx((labels > 0).astype(np.uint8), cv2.MORPH_GRADIENT, kernel) > 0] = IGNORE
    canvas *= _light(rng, height, width)[..., None]
    canvas += rng.normal(0, 0.02, canvas.shape)
    return Picture((np.clip(canvas, 0, 1) * 255).round().astype(np.uint8), labels)


def _paint(rng: np.random.Generator, canvas: np.ndarray, class_index: int, small: bool) -> np.ndarray:
    """Paint an object onto ``canvas`` (H, W, 3); return how far each pixel is covered, (H, W) in 0..1."""
    texture, class_hue = divmod(class_index, HUES)
    lobes = LOBES[(class_index + texture) % len(LOBES)]
    height, width = canvas.shape[:2]
    radius = rng.uniform(0.12, 0.2) if small else rng.uniform(0.18, 0.5)
    radius *= min(height, width)
    slack = 0.42 if small else 0.25
    centre_x, centre_y = (0.5 + rng.uniform(-slack, slack, 2)) * (width, height)
    turn, aspect = rng.uniform(0, 2 * np.pi), rng.uniform(0.75, 1.3)
    y, x = np.mgrid[:height, :width] - np.reshape((centre_y, centre_x), (2, 1, 1))
    u = (x * np.cos(turn) + y * np.sin(turn)) / radius
    v = (y * np.cos(turn) - x * np.sin(turn)) / (radius * aspect)
    edge = 1 + (0.22 if lobes else 0) * np.cos(lobes * np.arctan2(v, u))
    inside = np.clip((edge - np.hypot(u, v)) * radius + 0.5, 0, 1)
    hue = class_hue / HUES + rng.normal(0, 0.015)
    bright = _colour(hue, rng.uniform(0.5, 0.85), rng.uniform(0.75, 1))
    dark = _colour(hue, rng.uniform(0.5, 0.85), rng.uniform(0.3, 0.5))
    share = 0.5 + 0.5 * np.tanh(4 * TEXTURES[texture](u, v))[..., None]
    canvas += inside[..., None] * (share * bright + (1 - share) * dark - canvas)
    result: np.ndarray = inside
    return result


def _ground(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    """Three to five regions, each with colours and a texture of its own: (H, W, 3), values 0..1.

    They do not depend on the class: a ground says nothing about its object.
    """
    regions = [_region(rng, height, width) for _ in range(rng.integers(3, 6))]
    strength = [_noise(rng, 4, height, width) for _ in regions]
    strongest = np.argmax(strength, axis=0)[None, ..., None]
    result: np.ndarray = np.take_along_axis(np.array(regions), strongest, axis=0)[0]
    return result


def _region(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    """Two colours mixed by noise of several scales and, in one of two, a texture: (H, W, 3), values 0..1."""
    mixture = sum(rng.uniform(0.3, 1) * _noise(rng, cells, height, width) for cells in (3, 8, 20, 50))
    if rng.random() < 0.5:
        texture, turn = TEXTURES[rng.integers(len(TEXTURES))], rng.uniform(0, 2 * np.pi)
        y, x = np.mgrid[:height, :width] / (rng.uniform(0.2, 0.6) * min(height, width))
        u, v = x * np.cos(turn) + y * np.sin(turn), y * np.cos(turn) - x * np.sin(turn)
        mixture = mixture + 1.5 * texture(u, v)
    first, second = (_colour(rng.uniform(), rng.uniform(0, 0.85), rng.uniform(0.25, 0.95)) for _ in range(2))
    share = 0.5 + 0.5 * np.tanh(mixture)[..., None]
    result: np.ndarray = share * first + (1 - share) * second
    return result


def _noise(rng: np.random.Generator, cells: int, height: int, width: int) -> np.ndarray:
    return cv2.resize(rng.normal(size=(cells, cells)), (width, height))


def _light(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    """Light that falls off to one side, (H, W), around 1."""
    corners = rng.uniform(0.7, 1.15, (2, 2))
    return cv2.resize(corners, (width, height))


def _colour(hue: float, saturation: float, value: float) -> np.ndarray:
    return np.array(colorsys.hsv_to_rgb(hue % 1, saturation, value))
