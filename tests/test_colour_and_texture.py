"""The features by hand against loops over pixels, with the numbers of docs/methods.md written out."""

from __future__ import annotations

import itertools
import math

import cv2
import numpy as np
import pytest

from imagenets.learning.kmeans.features import colour_and_texture
from imagenets.learning.kmeans.foregrounds import resized_mask


def smoothed(histogram, sigma):
    """A Gaussian of three cells to each side, along each axis; beyond the ends the cells are mirrored."""
    kernel = np.exp(-(np.arange(-3, 4) ** 2) / (2 * sigma**2))
    kernel /= kernel.sum()
    for axis in range(histogram.ndim):
        histogram = np.apply_along_axis(
            lambda line: np.convolve(np.pad(line, 3, mode="symmetric"), kernel, "valid"), axis, histogram
        )
    return histogram


def inside_of(mask):
    return zip(*np.nonzero(mask), strict=True)


def slow_chroma(lab, mask):
    a, b = ((lab[mask][:, 1:].astype(int) - 128) * 12 // 160 + 6).clip(0, 11).T
    return smoothed(np.histogram2d(a, b, bins=range(13))[0], 0.7)


def slow_lightness(lab, mask):
    return smoothed(np.histogram(lab[mask][:, 0], bins=range(0, 257, 32))[0].astype(float), 0.7)


RING = ((-1, -1), (-1, 0), (-1, 1), (0, 1), (1, 1), (1, 0), (1, -1), (0, -1))


def slow_patterns(grey, mask, scale):
    """0..8: so many neighbours that are as bright, one after the other; 9: any others."""
    size = (grey.shape[1] // scale, grey.shape[0] // scale)
    grey = cv2.resize(grey, size, interpolation=cv2.INTER_AREA)
    counts = np.zeros(10)
    for y, x in inside_of(resized_mask(mask, size, cv2.INTER_AREA)):
        around = [
            grey[min(max(y + dy, 0), size[1] - 1), min(max(x + dx, 0), size[0] - 1)] >= grey[y, x]
            for dy, dx in RING
        ]
        changes = sum(around[i] != around[i - 1] for i in range(8))
        counts[sum(around) if changes <= 2 else 9] += 1
    return counts


def slow_gradients(grey, mask):
    """Directions, 8 of half a circle, the most frequent first, and strengths 0..8, of the object's box."""
    rows, columns = np.nonzero(mask.any(1))[0], np.nonzero(mask.any(0))[0]
    top, bottom, left, right = rows.min(), rows.max() + 1, columns.min(), columns.max() + 1
    values = grey.astype(np.float32)
    values[~mask] = grey[mask].mean()
    crop = cv2.resize(values[top:bottom, left:right], (64, 64), interpolation=cv2.INTER_AREA)
    inside = resized_mask(mask[top:bottom, left:right], (64, 64), cv2.INTER_AREA)
    kept = [
        (y, x)
        for y, x in itertools.product(range(2, 62), range(2, 62))
        if inside[y - 2 : y + 3, x - 2 : x + 3].all()
    ] or list(inside_of(inside))
    spread = np.std([crop[place] for place in kept], dtype=np.float64)
    directions, strengths = np.zeros(8), np.zeros(8)
    padded = np.pad(crop, 1, mode="reflect").astype(float)
    for y, x in kept:
        around = padded[y : y + 3, x : x + 3]
        along_x = (around[:, 2] - around[:, 0]) @ (1, 2, 1)
        along_y = (around[2] - around[0]) @ (1, 2, 1)
        strength = math.hypot(along_x, along_y) / (spread + 8)
        turned = math.atan2(along_y, along_x) % math.pi
        directions[int(turned / math.pi * 8) % 8] += strength
        strengths[min(int(strength), 7)] += 1
    first = int(directions.argmax())
    return np.concatenate((directions[first:], directions[:first])), strengths


@pytest.mark.parametrize(("thin", "quarters"), [(False, 0), (False, 1), (True, 0)])
def test_features_are_those_of_loops(thin, quarters):
    """Of an ellipse, also turned, so that another direction is the most frequent, and of a thin band."""
    rng = np.random.default_rng(0)
    image = cv2.resize(rng.integers(0, 256, (7, 9, 3)).astype(np.uint8), (70, 52))
    image = np.clip(image + rng.normal(0, 9, image.shape), 0, 255).astype(np.uint8)
    y, x = np.indices(image.shape[:2])
    mask = np.abs(y - 0.7 * x) < 1 if thin else ((y - 24) / 20) ** 2 + ((x - 40) / 26) ** 2 < 1
    image, mask = (np.ascontiguousarray(np.rot90(of_both, quarters)) for of_both in (image, mask))
    lab, grey = cv2.cvtColor(image, cv2.COLOR_RGB2LAB), cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)
    texture = [*(slow_patterns(grey, mask, scale) for scale in (1, 2, 4)), *slow_gradients(grey, mask)]
    weighted = [(1, slow_chroma(lab, mask)), (0.5, slow_lightness(lab, mask))]
    weighted += [(1.5 / 5**0.5, histogram) for histogram in texture]
    expected = [weight * np.sqrt(histogram / histogram.sum()).ravel() for weight, histogram in weighted]
    found = colour_and_texture(image, mask)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, np.concatenate(expected), atol=2e-3)
    assert np.linalg.norm(found) == pytest.approx((1 + 0.5**2 + 1.5**2) ** 0.5, rel=1e-5)


def test_where_nothing_is_counted_all_is_equal():
    """A picture of one colour has no gradients: their directions are as frequent as each other."""
    found = colour_and_texture(np.full((20, 20, 3), 90, np.uint8), np.ones((20, 20), bool))
    np.testing.assert_allclose(found[-16:-8], 1.5 / 5**0.5 * (1 / 8) ** 0.5, rtol=1e-5)
    np.testing.assert_allclose(found[-8:], [1.5 / 5**0.5, *[0] * 7], rtol=1e-5)


@pytest.mark.parametrize("shape", [(1, 1), (2, 200), (30, 3)])
def test_features_of_tiny_foregrounds_are_numbers(shape):
    image = np.random.default_rng(0).integers(0, 256, (*shape, 3)).astype(np.uint8)
    mask = np.zeros(shape, bool)
    mask[0, 0] = True
    found = colour_and_texture(image, mask)
    assert found.shape == (198,) and np.isfinite(found).all()
