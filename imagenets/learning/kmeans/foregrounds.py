"""Foreground of a picture without supervision: a border prior on colours, refined by GrabCut.

What touches the border of a picture is mostly ground (boundary prior: Wei et al., Geodesic Saliency Using
Background Priors, ECCV 2012), and objects are mostly near its middle. Colours that are more frequent inside
than at the border, near the middle, begin as foreground; GrabCut (Rother et al., SIGGRAPH 2004) then finds
the cut between the two along the picture's edges.
"""

from __future__ import annotations

import cv2
import numpy as np
from scipy import ndimage

SIDE = 128  # longest side, in pixels, at which the foreground is sought
RING = 0.06  # width of what counts as border, as a part of the shorter side
CENTRE_SIGMA = 0.7  # of the Gaussian around the middle, in half sides
ITERATIONS = 2  # of GrabCut
MIN_COMPONENT = 0.05  # smaller pieces, relative to the largest, are dropped
_BINS = (8, 16, 16)  # of L, a, b
_CHROMA_BIN = 8  # a and b fall outside 64..192 only for the most vivid colours


def foreground(image: np.ndarray) -> np.ndarray:
    """Find what stands out in ``image``, (H, W, 3) uint8 RGB; gives (H, W) bool, never empty.

    The same image gives the same foreground. Where no foreground is found (a picture of one colour, say), it
    is an ellipse in the middle.
    """
    height, width = image.shape[:2]
    scale = min(1, SIDE / max(height, width))
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    small = cv2.resize(image, size, interpolation=cv2.INTER_AREA)
    found = _tidy(_grab_cut(small, _stands_out(small)))
    if not found.any() or found.all():
        weight = _centre_weight(*small.shape[:2])
        found = weight >= min(
            weight.max(), np.exp(-0.5 * (0.5 / CENTRE_SIGMA) ** 2)
        )  # half as wide as the image
    return enlarge(found, height, width)


def enlarge(mask: np.ndarray, height: int, width: int) -> np.ndarray:
    """Resize a mask (h, w) bool to a larger (height, width) with smooth outlines; empty where ``mask`` is."""
    return resize_foreground(mask, (width, height), cv2.INTER_LINEAR)


def resize_foreground(mask: np.ndarray, size: tuple[int, int], interpolation: int) -> np.ndarray:
    """Resize a mask (h, w) bool to ``size`` (width, height) in a way of OpenCV's; empty where ``mask`` is."""
    shares = cv2.resize(mask.astype(np.float32), size, interpolation=interpolation)
    return shares >= min(0.5, shares.max() or 1)


def _stands_out(image: np.ndarray) -> np.ndarray:
    """First guess of the foreground, (H, W) bool: colours rare at the border, near the middle, above Otsu."""
    height, width = image.shape[:2]
    ring = max(1, round(RING * min(height, width)))
    border = np.ones((height, width), bool)
    border[ring:-ring, ring:-ring] = False
    bins = _colour_bins(image)
    outside = _histogram(bins[border])
    inside = _histogram(bins[~border])
    saliency = (inside / (inside + outside + 1e-6))[tuple(np.moveaxis(bins, -1, 0))]
    saliency = cv2.GaussianBlur(saliency * _centre_weight(height, width), (0, 0), 2)
    levels = np.round(saliency / max(saliency.max(), 1e-6) * 255).astype(np.uint8)
    threshold, _ = cv2.threshold(levels, 0, 255, cv2.THRESH_OTSU)
    result: np.ndarray = levels > threshold
    return result


def _colour_bins(image: np.ndarray) -> np.ndarray:
    """Histogram bin of each pixel's L, a and b: (H, W, 3) integers."""
    lab = cv2.cvtColor(image, cv2.COLOR_RGB2LAB).astype(int)
    lightness = lab[..., 0] * _BINS[0] // 256
    chroma = np.clip((lab[..., 1:] - 128) // _CHROMA_BIN + _BINS[1] // 2, 0, _BINS[1] - 1)
    return np.dstack([lightness, chroma])


def _histogram(bins: np.ndarray) -> np.ndarray:
    """Smoothed share of each colour among pixels (n, 3), which may be none: _BINS float32."""
    counts = np.bincount(np.ravel_multi_index(tuple(bins.T), _BINS), minlength=int(np.prod(_BINS)))
    shares = counts.reshape(_BINS).astype(np.float32) / max(1, len(bins))
    result: np.ndarray = ndimage.gaussian_filter(shares, 1, mode="nearest")
    return result


def _centre_weight(height: int, width: int) -> np.ndarray:
    y = (2 * np.arange(height)[:, None] + 1) / height - 1  # -1..1 over the image
    x = (2 * np.arange(width) + 1) / width - 1
    return np.exp(-(x**2 + y**2) / (2 * CENTRE_SIGMA**2)).astype(np.float32)


def _grab_cut(image: np.ndarray, guess: np.ndarray) -> np.ndarray:
    if not guess.any() or guess.all():
        return guess
    mask = np.where(guess, cv2.GC_PR_FGD, cv2.GC_PR_BGD).astype(np.uint8)
    cv2.setRNGSeed(0)  # GrabCut begins with a random k-means
    ground, objects = np.zeros((1, 65)), np.zeros((1, 65))  # GrabCut's own colour models
    cv2.grabCut(image, mask, (0, 0, 0, 0), ground, objects, ITERATIONS, cv2.GC_INIT_WITH_MASK)
    result: np.ndarray = mask == cv2.GC_PR_FGD
    return result


def _tidy(mask: np.ndarray) -> np.ndarray:
    """Fill holes, drop specks."""
    pieces, _ = ndimage.label(ndimage.binary_fill_holes(mask))
    areas = np.bincount(pieces.ravel())
    areas[0] = 0
    result: np.ndarray = (areas >= MIN_COMPONENT * max(areas.max(), 1))[pieces]
    return result
