"""The bilateral solver: a mask smoothed within regions of one colour, up to their edges.

Source: Barron and Poole, The Fast Bilateral Solver, ECCV 2016.
"""

from __future__ import annotations

import cv2
import numpy as np
from scipy.sparse import csr_array, diags_array
from scipy.sparse.linalg import cg

# A cell of the grid, in pixels (y, x) and levels of brightness and colour (Y, U, V).
CELL = (16, 16, 16, 8, 8)
SMOOTHNESS = 256.0
CONFIDENCE = 0.999  # in the guess, everywhere
_ROUNDS = 10  # in which the blur is made bistochastic
_TOLERANCE, _STEPS = 1e-6, 100  # of conjugate gradients


def solve(image: np.ndarray, guess: np.ndarray) -> np.ndarray:
    """Smooth ``guess`` (H, W), 0..1, within the edges of ``image`` (H, W, 3) uint8 RGB: (H, W) float64.

    Pixels that are near in place and colour share a cell of a five-dimensional grid, and have one value. The
    values minimise SMOOTHNESS times the squared differences of neighbouring cells (weighted so that every
    cell's weights sum to its number of pixels) plus CONFIDENCE times the squared differences to the guess.
    """
    cells, neighbours = _grid(image)
    pixels = np.bincount(cells).astype(float)
    scale, pixels_balanced = _bistochastic(neighbours, pixels)
    smooth = diags_array(pixels_balanced) - diags_array(scale) @ neighbours @ diags_array(scale)
    matrix = (SMOOTHNESS * smooth + CONFIDENCE * diags_array(pixels)).tocsr()
    sums = np.bincount(cells, weights=guess.ravel().astype(float))
    values, _ = cg(
        matrix,
        CONFIDENCE * sums,
        x0=sums / pixels,
        rtol=_TOLERANCE,
        maxiter=_STEPS,
        M=diags_array(1 / matrix.diagonal()),
    )
    return np.asarray(values[cells].reshape(guess.shape))


def _grid(image: np.ndarray) -> tuple[np.ndarray, csr_array]:
    """Cell of each pixel, (H * W,) integers, and the blur between the cells (n, n).

    The blur of a cell is ten times itself, twice for each of the five dimensions, and its neighbours.
    """
    height, width = image.shape[:2]
    place = np.moveaxis(np.indices((height, width)), 0, -1)
    yuv = cv2.cvtColor(image, cv2.COLOR_RGB2YUV)
    points = np.concatenate([place, yuv], axis=2).reshape(-1, len(CELL)) // CELL
    # Numbered with one empty cell after the last of each dimension, so that a line's end has no neighbour.
    keys = np.ravel_multi_index(tuple(points.T), tuple(points.max(axis=0) + 2))
    found, cells = np.unique(keys, return_inverse=True)
    steps = np.cumprod([1, *(points.max(axis=0) + 2)[:0:-1]])
    rows, columns = [], []
    for step in steps:
        place_of = np.searchsorted(found, found + step)
        there = np.flatnonzero(found[np.minimum(place_of, len(found) - 1)] == found + step)
        rows += [there, place_of[there]]
        columns += [place_of[there], there]
    row, column = np.concatenate(rows), np.concatenate(columns)
    between = csr_array((np.ones(len(row)), (row, column)), shape=(len(found), len(found)))
    return cells, between + 2 * len(CELL) * diags_array(np.ones(len(found)))


def _bistochastic(blur: csr_array, pixels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Scale the blur's rows and columns so that they sum to the cells' pixels: the scale, and the sums."""
    scale = np.ones_like(pixels)
    for _ in range(_ROUNDS):
        scale = np.sqrt(scale * pixels / (blur @ scale))
    return scale, scale * (blur @ scale)
