"""Foregrounds without supervision: where the object of a picture is.

What touches the border of a picture is mostly ground (Wei et al., Geodesic Saliency Using Background Priors,
ECCV 2012), and objects are mostly near its middle. The first guess are colours or places of a network's map
that stand out so; GrabCut (Rother et al., SIGGRAPH 2004) or the bilateral solver takes it to the picture's
edges. What each choice is worth on photographs: docs/notes.md, Foregrounds.
"""

from __future__ import annotations

import cv2
import numpy as np
import torch
from scipy import ndimage
from torch.nn.functional import normalize

from imagenets.learning.kmeans.bilateral_solver import solve

SIDE = 128  # longest side, in pixels, at which GrabCut works
ITERATIONS = 2  # of GrabCut
MIN_COMPONENT = 0.05  # smaller pieces, relative to the largest, are dropped
AGREEMENT = 0.3  # IoU with the guess, below which what GrabCut finds is not believed
CENTRE_SIGMA = 0.7  # of the Gaussian around the middle, in half sides
RING = 0.06  # width of what counts as border by hand, as a part of the shorter side
_BINS = (8, 16, 16)  # of L, a, b
_CHROMA_BIN = 8  # a and b fall outside 64..192 only for the most vivid colours


def by_hand(image: np.ndarray) -> np.ndarray:
    """Find the object of ``image``, (H, W, 3) uint8 RGB: (H, W) bool, never empty.

    GrabCut from ``rare_colours``, both at SIDE pixels.
    """
    small = cv2.resize(image, _grab_cut_size(*image.shape[:2]), interpolation=cv2.INTER_AREA)
    guess = rare_colours(small, centre_weight(*small.shape[:2]))
    return resized_mask(grab_cut(small, guess), image.shape[1::-1], cv2.INTER_LINEAR)


def rare_colours(image: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """Mark the pixels of ``image`` (H, W, 3) uint8 RGB whose colours are rarer at the border than inside.

    The share of a colour (CIE Lab, in bins) inside, of its shares inside and at the border, times a
    ``weight`` (H, W), is above Otsu's threshold: (H, W) bool; everything where nothing is.
    """
    height, width = image.shape[:2]
    ring = max(1, round(RING * min(height, width)))
    border = np.ones((height, width), bool)
    border[ring:-ring, ring:-ring] = False
    bins = _colour_bins(image)
    outside, inside = _histogram(bins[border]), _histogram(bins[~border])
    rarity = (inside / (inside + outside + 1e-6)).ravel()[bins] * weight
    salience = torch.from_numpy(cv2.GaussianBlur(rarity.astype(np.float32), (0, 0), 2))[None]
    found: np.ndarray = (salience > otsu(salience))[0].numpy()
    return found if found.any() else np.ones_like(found)


def _colour_bins(image: np.ndarray) -> np.ndarray:
    """Histogram bin of each pixel's L, a and b: (H, W) integers below the product of _BINS."""
    lab = cv2.cvtColor(image, cv2.COLOR_RGB2LAB).astype(int)
    lightness = lab[..., 0] * _BINS[0] // 256
    chroma = np.clip((lab[..., 1:] - 128) // _CHROMA_BIN + _BINS[1] // 2, 0, _BINS[1] - 1)
    return np.asarray((lightness * _BINS[1] + chroma[..., 0]) * _BINS[2] + chroma[..., 1])


def _histogram(bins: np.ndarray) -> np.ndarray:
    """Smoothed share of each colour among pixels (n,), which may be none: _BINS float32."""
    counts = np.bincount(bins, minlength=int(np.prod(_BINS)))
    shares = counts.reshape(_BINS).astype(np.float32) / max(1, len(bins))
    return np.asarray(ndimage.gaussian_filter(shares, 1, mode="nearest"))


def centre_weight(height: int, width: int) -> np.ndarray:
    """Weigh the places of a map by a Gaussian around its middle: (h, w) float32."""
    y = (2 * np.arange(height)[:, None] + 1) / height - 1  # -1..1 over the map, at the places' middles
    x = (2 * np.arange(width) + 1) / width - 1
    return np.asarray(np.exp(-(x**2 + y**2) / (2 * CENTRE_SIGMA**2)).astype(np.float32))


def grab_cut(image: np.ndarray, guess: np.ndarray) -> np.ndarray:
    """Take a guess (H, W) bool to the edges of ``image`` (H, W, 3) uint8 RGB, by GrabCut: (H, W) bool.

    GrabCut sees the picture at SIDE pixels; holes are filled and specks dropped. The guess stays where
    GrabCut runs away from it: where it takes everything, or their IoU is below AGREEMENT. The same input
    has the same mask.
    """
    height, width = guess.shape
    size = _grab_cut_size(height, width)
    small = resized_mask(guess, size, cv2.INTER_AREA)
    if not small.any() or small.all():
        return guess
    labels = np.where(small, cv2.GC_PR_FGD, cv2.GC_PR_BGD).astype(np.uint8)
    cv2.setRNGSeed(0)  # GrabCut starts with a random k-means
    ground, objects = np.zeros((1, 65)), np.zeros((1, 65))  # GrabCut's own colour models
    picture = cv2.resize(image, size, interpolation=cv2.INTER_AREA)
    cv2.grabCut(picture, labels, (0, 0, 0, 0), ground, objects, ITERATIONS, cv2.GC_INIT_WITH_MASK)
    pieces, _ = ndimage.label(ndimage.binary_fill_holes(labels == cv2.GC_PR_FGD))
    areas = np.bincount(pieces.ravel())
    areas[0] = 0
    found = (areas >= MIN_COMPONENT * max(areas.max(), 1))[pieces]
    if found.all() or (found & small).sum() < AGREEMENT * (found | small).sum():
        return guess
    return resized_mask(found, (width, height), cv2.INTER_LINEAR)


def smoothed(image: np.ndarray, guess: np.ndarray) -> np.ndarray:
    """Take a guess (H, W) bool to the edges of ``image`` by the bilateral solver: (H, W) bool.

    Where nothing would be left, the guess stays.
    """
    found: np.ndarray = solve(image, guess) > 0.5
    return found if found.any() else guess


def smoothed_and_cut(image: np.ndarray, guess: np.ndarray) -> np.ndarray:
    """Take a coarse guess (H, W) bool to the edges of ``image``: by ``smoothed``, from there by ``grab_cut``.

    Where GrabCut runs away, what the bilateral solver made of the guess stays.
    """
    return grab_cut(image, smoothed(image, guess))


def _grab_cut_size(height: int, width: int) -> tuple[int, int]:
    """Size (width, height) at which GrabCut works."""
    scale = min(1, SIDE / max(height, width))
    return max(1, round(width * scale)), max(1, round(height * scale))


def resized_mask(mask: np.ndarray, size: tuple[int, int], interpolation: int) -> np.ndarray:
    """Resize a mask (h, w) bool to ``size`` (width, height) as OpenCV does; empty only where ``mask`` is."""
    shares = cv2.resize(mask.astype(np.float32), size, interpolation=interpolation)
    return shares >= min(0.5, shares.max() or 1)


def border_distance(maps: torch.Tensor) -> torch.Tensor:
    """Distance of each place of maps (B, C, h, w) from the border: (B, h, w), 0..2.

    One minus the cosine of a place's vector and the mean direction of the outermost ring of places.
    """
    unit = normalize(maps, dim=1)
    ring = torch.ones(maps.shape[2:], dtype=torch.bool, device=maps.device)
    ring[1:-1, 1:-1] = False
    border = normalize(unit[:, :, ring].mean(dim=2))
    return 1 - torch.einsum("bchw,bc->bhw", unit, border)


def otsu(values: torch.Tensor) -> torch.Tensor:
    """Otsu's threshold of each of maps (B, h, w): (B, 1, 1).

    It is in the middle of the gap in the sorted values that leaves most variance between the two sides. Where
    all values are equal it is their value. Source: Otsu, A Threshold Selection Method from Gray-Level
    Histograms, 1979, here without a histogram.
    """
    ordered = values.flatten(1).double().sort(dim=1).values
    number = ordered.shape[1]
    if number == 1:
        return values
    below = torch.arange(1, number, device=values.device)
    sums = ordered.cumsum(dim=1)
    low, high = sums[:, :-1] / below, (sums[:, -1:] - sums[:, :-1]) / (number - below)
    best = (below * (number - below) * (high - low).square()).argmax(dim=1, keepdim=True)
    found = (ordered.gather(1, best) + ordered.gather(1, best + 1)) / 2
    return found.to(values.dtype)[:, :, None]
