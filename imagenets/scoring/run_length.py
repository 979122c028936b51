"""Masks as runs of equal labels, compiled: the arithmetic of the pass over a pair of masks.

A mask of H rows and W columns is stored as ``Runs``, row after row: ``starts`` (n,) int32, the column where
each run begins, ``codes`` (n,) int32, its label, and ``first`` (H + 1,) int32, the index of each row's first
run in the other two. Every row ends with a sentinel run that starts at W, so that a run's end is always
the next run's start. Masks have few runs per row, so everything after this is cheap: only one loop touches
every pixel, and the compiler vectorises it.

Labels are replaced by their index in the mask's ``palette`` (k,) int32, in order of appearance, so that an
image with three classes is counted in a 3-row table whatever N is.

Indices are unsigned: for signed ones numba adds a test of each for negative values. Loops take no slices: for
each, numba counts references.

Boundary IoU is in three files: how wide a boundary is, ``imagenets/masks.py``; which pixels lie on one, here
(``boundary_runs``); the sums and scores, ``imagenets/scoring/metrics.py``.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numba
import numpy as np

from imagenets.classes import MAX_LABEL

_INT32 = numba.int32[::1]
_RUNS = (_INT32, _INT32, _INT32)
_WORDS = numba.types.Array(numba.uint64, 1, "C", aligned=False)
_UINT = np.uint64

# Above this many cells a pair's table is sparse: noise, not segmentation. It is then counted by sorting.
_DENSE_CELLS = 1 << 20


class Runs(NamedTuple):
    """Runs of one mask; see the module's docstring."""

    starts: np.ndarray
    codes: np.ndarray
    first: np.ndarray


def _compiled(signature: Any) -> Callable[[Callable[..., Any]], Any]:  # noqa: ANN401
    """Compile ahead of use, and keep the machine code on disk if numba finds a writable folder."""

    def compile_(function: Callable[..., Any]) -> Any:  # noqa: ANN401
        try:
            return numba.njit(signature, cache=True)(function)
        except RuntimeError:  # neither the package's folder nor the user's cache can be written
            return numba.njit(signature)(function)

    return compile_


@numba.njit
def _lowest_byte(word: np.uint64) -> np.uint64:
    """Place, 0..7, of the lowest byte of a word that is not 0."""
    lowest_bit = word & (~word + _UINT(1))
    place = _UINT(0)
    for bits in range(_UINT(8), _UINT(64), _UINT(8)):
        place += _UINT(lowest_bit >> bits != 0)
    result: np.uint64 = place
    return result


@numba.njit
def _indices(flags: np.ndarray) -> np.ndarray:
    """Indices of the flags that are set. A branch for each would be mispredicted often."""
    eights = flags.view(np.uint64)
    some = np.empty(eights.size + 1, np.int32)
    n = _UINT(0)
    for eight in range(_UINT(eights.size)):
        some[n] = eight
        n += _UINT(eights[eight] != 0)
    indices = np.empty(_UINT(8) * n + _UINT(1), np.int32)
    m = _UINT(0)
    for k in range(n):
        for index in range(_UINT(8) * _UINT(some[k]), _UINT(8) * _UINT(some[k]) + _UINT(8)):
            indices[m] = index
            m += _UINT(flags[index])
    return indices[:m]


@numba.njit
def _changes(flat: np.ndarray, here: np.ndarray, there: np.ndarray) -> np.ndarray:
    """Pixels that differ from the one before, in memory order, after 0 and before their number.

    Rows follow each other without a gap: between two of them, too, pixels change or do not. ``here`` and
    ``there`` are the words of 8 bytes of ``flat``, and those that begin a pixel later; most are equal.
    """
    flags = np.zeros((here.size + 7) // 8 * 8, np.uint8)
    for word in range(_UINT(here.size)):
        flags[word] = here[word] != there[word]
    found = np.empty(flat.size // 3 + 1, np.int32)
    found[0] = 0
    n = _UINT(1)
    for word in _indices(flags):
        differing = here[word] ^ there[word]
        begin = _UINT(8) * _UINT(word) + _UINT(3)
        while differing != 0:
            # The lowest byte that differs says which pixel does; go on with the bytes after that pixel.
            byte = begin + _lowest_byte(differing)
            found[n] = byte // _UINT(3)
            n += _UINT(found[n] != found[n - _UINT(1)])
            looked_at = _UINT(3) * (byte // _UINT(3) + _UINT(1)) - begin
            if looked_at >= _UINT(8):
                break
            differing = differing >> (_UINT(8) * looked_at) << (_UINT(8) * looked_at)
    for byte in range(_UINT(8 * here.size + 3), _UINT(flat.size)):
        if flat[byte] != flat[byte - _UINT(3)]:
            found[n] = byte // _UINT(3)
            n += _UINT(found[n] != found[n - _UINT(1)])
    found[n] = flat.size // 3
    return found[: n + _UINT(1)]


@_compiled(
    numba.types.Tuple((*_RUNS, _INT32, numba.uint8, numba.uint8))(
        numba.uint8[:, :, ::1], _WORDS, _WORDS, _INT32
    )
)
def _label_runs(rgb: np.ndarray, here: np.ndarray, there: np.ndarray, lookup: np.ndarray) -> Any:  # noqa: ANN401
    height, width = rgb.shape[0], rgb.shape[1]
    flat = rgb.reshape(rgb.size)
    changes = _changes(flat, here, there)
    palette = np.empty(changes.size, np.int32)
    known = _UINT(0)
    red = np.uint8(0)
    blue = np.uint8(0)
    code_of_change = np.empty(changes.size, np.int32)
    for k in range(_UINT(changes.size - 1)):
        at = _UINT(3) * _UINT(changes[k])
        red |= flat[at]
        blue |= flat[at + _UINT(2)]
        label = np.int32(flat[at]) | (np.int32(flat[at + _UINT(1)]) << np.int32(8))
        code = lookup[_UINT(label)]
        if code < 0:
            code = np.int32(known)
            lookup[_UINT(label)] = code
            palette[known] = label
            known += _UINT(1)
        code_of_change[k] = code
    for place in range(known):
        lookup[_UINT(palette[place])] = -1
    starts = np.empty(changes.size + 2 * height, np.int32)
    codes = np.empty(starts.size, np.int32)
    first = np.empty(height + 1, np.int32)
    n = _UINT(0)
    k = _UINT(0)
    row = np.int32(0)
    code = np.int32(0)
    for y in range(_UINT(height)):
        first[y] = n
        # The run before goes on in this row, unless it changes here: then the loop overwrites this one.
        starts[n] = 0
        codes[n] = code
        n += _UINT(changes[k] != row)
        while changes[k] < row + width:
            code = code_of_change[k]
            starts[n] = changes[k] - row
            codes[n] = code
            n += _UINT(1)
            k += _UINT(1)
        starts[n] = width
        codes[n] = -1
        n += _UINT(1)
        row += np.int32(width)
    first[height] = n
    return starts[:n], codes[:n], first, palette[:known], red, blue


# Stretches of rows: ``space`` (slots, most + 1, 3) int32 holds some of a row in each slot, as begin, end and
# code, and ``sizes`` (slots,) uint64 their number. The extra place lets a loop write every candidate and then
# advance or not, without a branch.


@numba.njit
def _keep_inner(
    space: np.ndarray,
    sizes: np.ndarray,
    slot: np.uint64,
    starts: np.ndarray,
    codes: np.ndarray,
    run: np.uint64,
    d: np.int32,
) -> None:
    """Store the columns of a row, from its first ``run`` on, that have ``d`` of that run on both sides."""
    n = _UINT(0)
    while codes[run] >= 0:
        begin = starts[run] + d
        end = starts[run + _UINT(1)] - d
        space[slot, n, _UINT(0)] = begin
        space[slot, n, _UINT(1)] = end
        space[slot, n, _UINT(2)] = codes[run]
        n += _UINT(begin < end)
        run += _UINT(1)
    sizes[slot] = n


@numba.njit
def _intersect(space: np.ndarray, sizes: np.ndarray, a: np.uint64, b: np.uint64, out: np.uint64) -> None:
    """Store in ``out`` what the stretches of two slots have in common, column and code."""
    i = _UINT(0)
    j = _UINT(0)
    n = _UINT(0)
    while i < sizes[a] and j < sizes[b]:
        end_a = space[a, i, _UINT(1)]
        end_b = space[b, j, _UINT(1)]
        begin = max(space[a, i, _UINT(0)], space[b, j, _UINT(0)])
        end = min(end_a, end_b)
        code = space[a, i, _UINT(2)]
        same = code == space[b, j, _UINT(2)]
        space[out, n, _UINT(0)] = begin
        space[out, n, _UINT(1)] = end
        space[out, n, _UINT(2)] = code
        n += _UINT(begin < end) & _UINT(same)
        i += _UINT(end_a == end)
        j += _UINT(end_b == end)
    sizes[out] = n


@numba.njit
def _split_row(
    starts: np.ndarray,
    codes: np.ndarray,
    run: np.uint64,
    space: np.ndarray,
    sizes: np.ndarray,
    inner: np.uint64,
    out_starts: np.ndarray,
    out_codes: np.ndarray,
    m: np.uint64,
) -> np.uint64:
    """Write a row's runs, split where a stretch of slot ``inner`` begins or ends; return ``m`` after them."""
    k = _UINT(0)
    while codes[run] >= 0:
        inside = np.int32(2) * codes[run]
        end = starts[run + _UINT(1)]
        out_starts[m] = starts[run]
        out_codes[m] = inside + np.int32(1)
        m += _UINT(1)
        while k < sizes[inner] and space[inner, k, _UINT(0)] < end:
            out_starts[m] = space[inner, k, _UINT(0)]
            out_codes[m] = inside
            out_starts[m + _UINT(1)] = space[inner, k, _UINT(1)]
            out_codes[m + _UINT(1)] = inside + np.int32(1)
            m += _UINT(2)
            k += _UINT(1)
        run += _UINT(1)
    out_starts[m] = starts[run]
    out_codes[m] = -1
    behind: np.uint64 = m + _UINT(1)
    return behind


@_compiled(numba.types.Tuple(_RUNS)(*_RUNS, numba.int64))
def _boundary_runs(starts: np.ndarray, codes: np.ndarray, first: np.ndarray, distance: int) -> Any:  # noqa: ANN401
    height = _UINT(first.size - 1)
    d = _UINT(distance)
    window = _UINT(2) * d + _UINT(1)
    # Inner stretches lie in runs at least as wide as a window, which bounds their number in a row.
    most = _UINT(starts[first[1] - 1]) // window
    out_starts = np.empty(starts.size + 2 * most * height, np.int32)
    out_codes = np.empty(out_starts.size, np.int32)
    out_first = np.empty(height + _UINT(1), np.int32)
    m = _UINT(0)
    # The image is cut into stacks as high as a window, so that a window is the end of one stack and the
    # beginning of the next. Slots: ``window`` of the stack's rows; ``window`` of what each row and all below
    # it in the stack have in common, known when the stack is complete; two of what the stack's rows so far
    # have in common; one of what a window has in common; one that stays empty.
    begins = _UINT(2) * window
    common = begins + _UINT(2)
    empty = common + _UINT(1)
    space = np.empty((empty + _UINT(1), most + _UINT(1), _UINT(3)), np.int32)
    sizes = np.zeros(empty + _UINT(1), np.uint64)
    for y in range(height + d):
        inner = empty
        at = y % window
        if y < height:
            _keep_inner(space, sizes, at, starts, codes, _UINT(first[y]), np.int32(d))
            new = begins + (y & _UINT(1))
            old = at if at == 0 else begins + _UINT(1) - (y & _UINT(1))
            _intersect(space, sizes, old, at, new)
            if at == window - _UINT(1):
                _intersect(space, sizes, at, at, at + window)
                for row in range(at):
                    slot = at - row - _UINT(1)
                    _intersect(space, sizes, slot, slot + _UINT(1) + window, slot + window)
                inner = new
            elif y >= window:
                _intersect(space, sizes, at + _UINT(1) + window, new, common)
                inner = common
        if y >= d:
            out_first[y - d] = m
            run = _UINT(first[y - d])
            m = _split_row(starts, codes, run, space, sizes, inner, out_starts, out_codes, m)
    out_first[height] = m
    return out_starts[:m], out_codes[:m], out_first


@_compiled(numba.int64[:, ::1](*_RUNS, *_RUNS, _INT32, _INT32, numba.int64))
def _count_dense(
    starts_a: np.ndarray,
    codes_a: np.ndarray,
    first_a: np.ndarray,
    starts_b: np.ndarray,
    codes_b: np.ndarray,
    first_b: np.ndarray,
    palette_a: np.ndarray,
    palette_b: np.ndarray,
    left_out: int,
) -> np.ndarray:
    """Rows of ``overlap_counts``, by a table that is indexed by the codes."""
    table = np.zeros((2 * palette_a.size, 2 * palette_b.size), np.int64)
    width = starts_a[first_a[1] - 1]
    for y in range(_UINT(first_a.size - 1)):
        i = _UINT(first_a[y])
        j = _UINT(first_b[y])
        x = np.int32(0)
        while x < width:
            end_a = starts_a[i + _UINT(1)]
            end_b = starts_b[j + _UINT(1)]
            until = min(end_a, end_b)
            table[_UINT(codes_a[i]), _UINT(codes_b[j])] += until - x
            i += _UINT(end_a == until)
            j += _UINT(end_b == until)
            x = until
    rows = np.empty((np.count_nonzero(table), 5), np.int64)
    n = 0
    for a in range(table.shape[0]):
        if palette_a[a >> 1] == left_out:
            continue
        for b in range(table.shape[1]):
            if table[a, b] == 0:
                continue
            rows[n, 0] = palette_a[a >> 1]
            rows[n, 1] = palette_b[b >> 1]
            rows[n, 2] = a & 1
            rows[n, 3] = b & 1
            rows[n, 4] = table[a, b]
            n += 1
    return rows[:n]


def _count_sparse(
    a: Runs, b: Runs, palette_a: np.ndarray, palette_b: np.ndarray, left_out: int
) -> np.ndarray:
    """Rows of ``overlap_counts``, by sorting."""
    begin_a, code_a = _without_sentinels(a)
    begin_b, code_b = _without_sentinels(b)
    begin = np.union1d(begin_a, begin_b)
    lengths = np.diff(begin, append=a.starts[-1] * (a.first.size - 1))
    code_a = code_a[np.searchsorted(begin_a, begin, "right") - 1]
    code_b = code_b[np.searchsorted(begin_b, begin, "right") - 1]
    pairs, place = np.unique(np.stack([code_a, code_b]), axis=1, return_inverse=True)
    pixels = np.bincount(place.ravel(), lengths).astype(np.int64)
    labels_a, labels_b = palette_a[pairs[0] >> 1], palette_b[pairs[1] >> 1]
    rows: np.ndarray = np.stack([labels_a, labels_b, *(pairs & 1), pixels], axis=1)[labels_a != left_out]
    return rows


def _without_sentinels(runs: Runs) -> tuple[np.ndarray, np.ndarray]:
    """Return the pixel where each run begins, in memory order, and its code."""
    rows = np.repeat(np.arange(runs.first.size - 1), np.diff(runs.first))
    real = runs.codes >= 0
    return (rows * int(runs.starts[-1]) + runs.starts)[real], runs.codes[real]


# Scratch for _label_runs, which leaves it as it finds it: the palette's place of each label, or -1.
_LOOKUP = np.full(MAX_LABEL + 1, -1, np.int32)


class LabelRuns(NamedTuple):
    """Runs of one decoded mask, whose codes are places in ``palette`` (k,) int32, and two colour facts.

    ``red`` and ``blue``: whether any pixel has a value in that channel.
    """

    runs: Runs
    palette: np.ndarray
    red: bool
    blue: bool


def label_runs(rgb: np.ndarray) -> LabelRuns:
    """Encode a mask (H, W, 3) uint8, C-contiguous, label = R + 256 G, as runs of equal labels.

    Pixels that differ only in blue begin a new run too; the caller sees it in ``blue`` and refuses the mask.
    """
    flat = rgb.reshape(-1)
    words = max(flat.size - 3, 0) // 8 * 8  # bytes
    here, there = flat[:words].view(np.uint64), flat[3 : 3 + words].view(np.uint64)
    starts, codes, first, palette, red, blue = _label_runs(rgb, here, there, _LOOKUP)
    return LabelRuns(Runs(starts, codes, first), palette, bool(red), bool(blue))


def boundary_runs(runs: Runs, distance: int) -> Runs:
    """Split runs where the boundary begins or ends: a code c becomes 2 c inside, 2 c + 1 on the boundary.

    A pixel is inside iff the (2 distance + 1)² window around it lies in the image and holds one label
    (docs/benchmark.md, Boundary IoU); ``distance`` is in pixels, at least 1. Time is linear in the runs,
    whatever the distance, for all labels at once: each run of a row is shortened by it on both sides; the
    intersection over 2 distance + 1 rows takes three intersections of two rows for each row, as in van
    Herk, Pattern Recognition Letters 13, 1992, and Gil and Werman, IEEE TPAMI 15, 1993.
    """
    return Runs(*_boundary_runs(*runs, distance))


def overlap_counts(
    a: Runs, b: Runs, palette_a: np.ndarray, palette_b: np.ndarray, left_out: int
) -> np.ndarray:
    """Count the pixels of every pair of codes, in masks ``a`` and ``b`` of the same shape.

    A code is 2 c + f: the place c of a label in its palette, and a flag f. Returns (n, 5) int64: label of a,
    label of b, flag of a, flag of b, pixels > 0. Pixels with the label ``left_out`` in a are not counted.
    """
    if 4 * palette_a.size * palette_b.size > _DENSE_CELLS:
        return _count_sparse(a, b, palette_a, palette_b, left_out)
    rows: np.ndarray = _count_dense(*a, *b, palette_a, palette_b, left_out)
    return rows
