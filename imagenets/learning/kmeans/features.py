"""A feature vector of a picture's foreground without a network: histograms of its colour and texture."""

from __future__ import annotations

import cv2
import numpy as np
from scipy import ndimage

from imagenets.learning.kmeans.foregrounds import resized_mask

_CHROMA_BINS, _CHROMA_RANGE = 12, 160  # of a and b each, around grey
_LIGHTNESS_BINS = 8
_SCALES = (1, 2, 4)  # at which texture is looked at
_CROP = 64  # side, in pixels, to which the object is brought for its gradients
_GRADIENT_BINS = 8
# Textures differ less from each other than colours do, which would otherwise decide everything.
_LIGHTNESS_WEIGHT, _TEXTURE_WEIGHT = 0.5, 1.5
_NEIGHBOURS = ((0, 0), (0, 1), (0, 2), (1, 2), (2, 2), (2, 1), (2, 0), (1, 0))  # around (1, 1), in turn


def colour_and_texture(image: np.ndarray, foreground: np.ndarray) -> np.ndarray:
    """Describe the foreground (H, W) bool, not empty, of ``image`` (H, W, 3) uint8 RGB: (198,) float32.

    Histograms of chroma and lightness (CIE Lab), of local binary patterns at three scales, and of gradients
    over the object's box, so that turning or resizing the object changes little. Each histogram is its
    shares' square roots, a unit vector (the Euclidean distance is then Hellinger's), times its weight.
    """
    lab = cv2.cvtColor(image, cv2.COLOR_RGB2LAB)
    grey = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)
    texture = [*(_patterns(grey, foreground, scale) for scale in _SCALES), *_gradients(grey, foreground)]
    return np.concatenate(
        [
            _unit(_chroma(lab[foreground])),
            _LIGHTNESS_WEIGHT * _unit(_lightness(lab[foreground])),
            *(_TEXTURE_WEIGHT / np.sqrt(len(texture)) * _unit(histogram) for histogram in texture),
        ]
    ).astype(np.float32)


def _unit(histogram: np.ndarray) -> np.ndarray:
    """Square roots of the shares; all equal where nothing was counted."""
    total = histogram.sum()
    shares = histogram / total if total > 0 else np.full(histogram.shape, 1 / histogram.size)
    return np.asarray(np.sqrt(shares).ravel())


def _chroma(lab: np.ndarray) -> np.ndarray:
    """Smoothed joint histogram of a and b over pixels (n, 3): (12, 12)."""
    bins = (lab[:, 1:].astype(int) - 128) * _CHROMA_BINS // _CHROMA_RANGE + _CHROMA_BINS // 2
    a, b = np.clip(bins, 0, _CHROMA_BINS - 1).T
    counts = np.bincount(a * _CHROMA_BINS + b, minlength=_CHROMA_BINS**2)
    return np.asarray(ndimage.gaussian_filter(counts.reshape(_CHROMA_BINS, -1).astype(float), 0.7))


def _lightness(lab: np.ndarray) -> np.ndarray:
    counts = np.bincount(lab[:, 0].astype(int) * _LIGHTNESS_BINS // 256, minlength=_LIGHTNESS_BINS)
    return np.asarray(ndimage.gaussian_filter1d(counts.astype(float), 0.7))


def _patterns(grey: np.ndarray, foreground: np.ndarray, scale: int) -> np.ndarray:
    """Histogram (10,) of uniform rotation-invariant local binary patterns (Ojala et al., TPAMI 2002).

    ``grey`` (H, W) uint8 is first made ``scale`` times smaller.
    """
    size = (max(1, grey.shape[1] // scale), max(1, grey.shape[0] // scale))
    grey = cv2.resize(grey, size, interpolation=cv2.INTER_AREA)
    inside = resized_mask(foreground, size, cv2.INTER_AREA)
    height, width = grey.shape
    padded = np.pad(grey, 1, mode="edge")
    ring = np.stack([padded[y : y + height, x : x + width] >= grey for y, x in _NEIGHBOURS])
    changes = (ring != np.roll(ring, 1, axis=0)).sum(axis=0)
    codes = np.where(changes <= 2, ring.sum(axis=0), len(_NEIGHBOURS) + 1)
    return np.bincount(codes[inside], minlength=len(_NEIGHBOURS) + 2)


def _gradients(grey: np.ndarray, foreground: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Histograms of the gradient's direction, the most frequent one first, and of its strength: (8,) each."""
    rows, columns = np.flatnonzero(foreground.any(axis=1)), np.flatnonzero(foreground.any(axis=0))
    box = np.s_[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    size = (_CROP, _CROP)
    values = np.where(foreground, grey, grey[foreground].mean()).astype(np.float32)
    crop = cv2.resize(values[box], size, interpolation=cv2.INTER_AREA)
    inside = resized_mask(foreground[box], size, cv2.INTER_AREA)
    rim_removed = ndimage.binary_erosion(inside, np.ones((5, 5)))
    inside = rim_removed if rim_removed.any() else inside
    along_x, along_y = (cv2.Sobel(crop, cv2.CV_32F, *order)[inside] for order in ((1, 0), (0, 1)))
    strength = np.hypot(along_x, along_y) / (crop[inside].std() + 8)  # 8: the deviation of mere noise
    direction = np.arctan2(along_y, along_x) % np.pi / np.pi * _GRADIENT_BINS
    directions = np.bincount(
        direction.astype(int) % _GRADIENT_BINS, weights=strength, minlength=_GRADIENT_BINS
    )
    strengths, _ = np.histogram(np.minimum(strength, _GRADIENT_BINS), _GRADIENT_BINS, (0, _GRADIENT_BINS))
    return np.roll(directions, -int(directions.argmax())), strengths
