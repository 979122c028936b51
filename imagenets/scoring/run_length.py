"""Masks as runs of equal labels, compiled: the arithmetic of the pass over a pair of masks.

A mask of H rows and W columns is stored as ``Runs``, row after row: ``starts`` (n,) int32, the column where
each run begins, ``codes`` (n,) int32, its label, and ``first`` (H + 1,) int32, the index of each row's first
run in the other two. Every row ends with a sentinel run that starts at W, so that a run's end is always
the next run's start. Masks have few runs per row, so everything after this is cheap: only one loop touches
every pixel, and the compiler can vectorise it. Work per run or row avoids branches that a processor
mispredicts, which would dominate the time.

Labels are replaced by their index in the mask's ``palette`` (k,) int32, in order of appearance, so that an
image with three classes is counted in a 3-row table whatever N is.

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
_UINT = np.uint64

# Words of 8 bytes that are compared at a time.
_BLOCK = 512

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


# Parts of the loops below, inlined before their caller is compiled.
_part = numba.njit(inline="always")


@_compiled(_INT32(_INT32, numba.int64))
def _grown(array: np.ndarray, size: int) -> np.ndarray:
    longer = np.empty(size, np.int32)
    longer[: array.size] = array
    return longer


@_part
def _flag_changes(here: np.ndarray, right: np.ndarray, flags: np.ndarray) -> None:
    """Flag each word with a byte that differs from the byte three later; ``right``: each word's successor."""
    for i in range(here.size):
        flags[i] = np.uint8((here[i] ^ ((here[i] >> _UINT(24)) | (right[i] << _UINT(40)))) != _UINT(0))


@_part
def _add_changes(
    flat: np.ndarray, begin: np.uint64, end: np.uint64, found: np.ndarray, n: np.uint64
) -> np.uint64:
    """Add the pixels of bytes ``begin`` to ``end`` that differ from the one before; return the new number."""
    for pixel in range(begin // _UINT(3) + _UINT(1), (end - _UINT(1)) // _UINT(3) + _UINT(2)):
        at = _UINT(3) * pixel
        differs = (
            (flat[at] ^ flat[at - _UINT(3)])
            | (flat[at + _UINT(1)] ^ flat[at - _UINT(2)])
            | (flat[at + _UINT(2)] ^ flat[at - _UINT(1)])
        )
        found[n] = pixel
        n += _UINT(differs != 0) & _UINT(found[n] != found[n - _UINT(1)])
    return n


@_compiled(_INT32(numba.uint8[::1]))
def _changes(flat: np.ndarray) -> np.ndarray:
    """Pixels that differ from the one before, in memory order, after 0 and before their number.

    Rows follow each other without a gap: between two of them, too, pixels change or do not. Words of 8 bytes
    are compared first, by vector instructions; most hold no change.
    """
    bytes_ = _UINT(flat.size)
    words = flat[: bytes_ >> _UINT(3) << _UINT(3)].view(np.uint64)
    compared = _UINT(max(words.size, 1) - 1)
    found = np.empty(8 * _BLOCK, np.int32)
    found[0] = 0
    n = _UINT(1)
    flags = np.zeros(_BLOCK, np.uint8)
    eights = flags.view(np.uint64)
    first = _UINT(0)
    while first < compared:
        number = min(_UINT(_BLOCK), compared - first)
        _flag_changes(
            words[first : first + number], words[first + _UINT(1) : first + _UINT(1) + number], flags[:number]
        )
        flags[number:] = 0
        if n + _UINT(3 * _BLOCK + 16) > _UINT(found.size):
            found = _grown(found, 2 * found.size)
        for eight in range(_UINT(_BLOCK // 8)):
            if eights[eight] == 0:
                continue
            for k in range(eight << _UINT(3), (eight << _UINT(3)) + _UINT(8)):
                if flags[k]:
                    byte = (first + k) << _UINT(3)
                    n = _add_changes(flat, byte, byte + _UINT(8), found, n)
        first += number
    last = max(bytes_, _UINT(3)) - _UINT(3)
    if compared << _UINT(3) < last:
        n = _add_changes(flat, compared << _UINT(3), last, found, n)
    found[n] = bytes_ // _UINT(3)
    return found[: n + _UINT(1)]


@_compiled(
    numba.types.Tuple((*_RUNS, _INT32, numba.uint8, numba.uint8))(numba.uint8[:, :, ::1], numba.int32[::1])
)
def _label_runs(rgb: np.ndarray, lookup: np.ndarray) -> Any:  # noqa: ANN401
    height, width = np.int32(rgb.shape[0]), np.int32(rgb.shape[1])
    flat = rgb.reshape(rgb.size)
    changes = _changes(flat)
    starts = np.empty(changes.size + 2 * height, np.int32)
    codes = np.empty(starts.size, np.int32)
    first = np.empty(height + 1, np.int32)
    palette = np.empty(16, np.int32)
    known = np.int32(0)
    red = np.uint8(0)
    blue = np.uint8(0)
    n = _UINT(0)
    next_row = _UINT(1)
    k = _UINT(1)
    pixel = np.int32(0)
    row = np.int32(0)
    first[0] = 0
    while True:
        # A run begins at this pixel.
        at = _UINT(3) * _UINT(pixel)
        red |= flat[at]
        blue |= flat[at + _UINT(2)]
        label = np.int32(flat[at]) | (np.int32(flat[at + _UINT(1)]) << np.int32(8))
        code = lookup[_UINT(label)]
        if code < 0:
            code = known
            lookup[_UINT(label)] = code
            if known == palette.size:
                palette = _grown(palette, 2 * palette.size)
            palette[known] = label
            known += np.int32(1)
        starts[n] = pixel - row
        codes[n] = code
        n += _UINT(1)
        # The next one begins with a change or a row; before a row comes the sentinel.
        pixel = min(changes[k], row + width)
        k += _UINT(changes[k] == pixel)
        row_ends = np.int32(pixel == row + width)
        starts[n] = width
        codes[n] = -1
        n += _UINT(row_ends)
        first[next_row] = n
        next_row += _UINT(row_ends)
        row += width * row_ends
        if next_row > _UINT(height):
            break
    for place in range(known):
        lookup[palette[place]] = -1
    return starts[:n], codes[:n], first, palette[:known], red, blue


# Stretches of a row, (most + 1, 3) int32: begin, end, code. The extra place lets a loop write every candidate
# and then advance or not, without a branch.


@_part
def _inner_stretches(
    starts: np.ndarray, codes: np.ndarray, run: np.uint64, sentinel: np.uint64, d: np.int32, out: np.ndarray
) -> np.uint64:
    """Write the columns of a row that have ``d`` of their own run on both sides; return the number."""
    n = _UINT(0)
    while run < sentinel:
        out[n, _UINT(0)] = starts[run] + d
        out[n, _UINT(1)] = starts[run + _UINT(1)] - d
        out[n, _UINT(2)] = codes[run]
        n += _UINT(out[n, _UINT(0)] < out[n, _UINT(1)])
        run += _UINT(1)
    number: np.uint64 = n
    return number


@_part
def _common_stretches(
    a: np.ndarray, size_a: np.uint64, b: np.ndarray, size_b: np.uint64, out: np.ndarray
) -> np.uint64:
    """Write what two rows have in common, column and code; return the number of stretches."""
    i = _UINT(0)
    j = _UINT(0)
    n = _UINT(0)
    while i < size_a and j < size_b:
        end_a = a[i, _UINT(1)]
        end_b = b[j, _UINT(1)]
        begin = max(a[i, _UINT(0)], b[j, _UINT(0)])
        end = min(end_a, end_b)
        out[n, _UINT(0)] = begin
        out[n, _UINT(1)] = end
        out[n, _UINT(2)] = a[i, _UINT(2)]
        n += _UINT(begin < end) & _UINT(a[i, _UINT(2)] == b[j, _UINT(2)])
        i += _UINT(end_a == end)
        j += _UINT(end_b == end)
    number: np.uint64 = n
    return number


@_part
def _split_row(
    starts: np.ndarray,
    codes: np.ndarray,
    run: np.uint64,
    inner: np.ndarray,
    number: np.uint64,
    out_starts: np.ndarray,
    out_codes: np.ndarray,
    m: np.uint64,
) -> np.uint64:
    """Write a row's runs, split where an inner stretch begins or ends; return ``m`` after them."""
    k = _UINT(0)
    while codes[run] >= 0:
        inside = np.int32(2) * codes[run]
        end = starts[run + _UINT(1)]
        out_starts[m] = starts[run]
        out_codes[m] = inside + np.int32(1)
        m += _UINT(1)
        while k < number and inner[k, _UINT(0)] < end:
            out_starts[m] = inner[k, _UINT(0)]
            out_codes[m] = inside
            out_starts[m + _UINT(1)] = inner[k, _UINT(1)]
            out_codes[m + _UINT(1)] = inside + np.int32(1)
            m += _UINT(2)
            k += _UINT(1)
        run += _UINT(1)
    out_starts[m] = starts[run]
    out_codes[m] = -1
    behind: np.uint64 = m + _UINT(1)
    return behind


@_part
def _common_to_the_end(
    rows: np.ndarray, rows_size: np.ndarray, common: np.ndarray, common_size: np.ndarray
) -> None:
    """Write into ``common[r]``, for every row r of a stack, what row r and all below it have in common."""
    last = rows_size.size - 1
    common[last] = rows[last]
    common_size[last] = rows_size[last]
    for r in range(last - 1, -1, -1):
        common_size[r] = _common_stretches(
            rows[r], rows_size[r], common[r + 1], common_size[r + 1], common[r]
        )


@_compiled(numba.types.Tuple(_RUNS)(*_RUNS, numba.int64))
def _boundary_runs(starts: np.ndarray, codes: np.ndarray, first: np.ndarray, distance: int) -> Any:  # noqa: ANN401
    height = first.size - 1
    window = 2 * distance + 1
    # Inner stretches lie in runs wider than a window, which bounds their number in a row; and one place more.
    most = starts[first[1] - 1] // window + 2
    out_starts = np.empty(starts.size + 2 * most * height, np.int32)
    out_codes = np.empty(out_starts.size, np.int32)
    out_first = np.empty(height + 1, np.int32)
    m = _UINT(0)
    # The image is cut into stacks as high as a window, so that a window is the end of one stack and the
    # beginning of the next. ``begins``: what a stack's rows so far have in common; ``ends``: the same from
    # each row to the stack's last, computed when the stack is complete.
    rows = np.empty((window, most, 3), np.int32)
    rows_size = np.zeros(window, np.uint64)
    ends = np.empty((window, most, 3), np.int32)
    ends_size = np.zeros(window, np.uint64)
    begins = np.empty((2, most, 3), np.int32)
    begin_size = _UINT(0)
    inner = np.empty((most, 3), np.int32)
    for y in range(height + distance):
        size = _UINT(0)
        at = y % window
        if y < height:
            new, old = begins[y & 1], begins[1 - (y & 1)]
            sentinel = _UINT(first[y + 1]) - _UINT(1)
            rows_size[at] = _inner_stretches(
                starts, codes, _UINT(first[y]), sentinel, np.int32(distance), rows[at]
            )
            if at == 0:
                new[:] = rows[at]
                begin_size = rows_size[at]
            else:
                begin_size = _common_stretches(old, begin_size, rows[at], rows_size[at], new)
            if at == window - 1:
                _common_to_the_end(rows, rows_size, ends, ends_size)
                inner[:] = new
                size = begin_size
            elif y >= window:
                size = _common_stretches(ends[at + 1], ends_size[at + 1], new, begin_size, inner)
        middle = y - distance
        if middle >= 0:
            out_first[middle] = m
            m = _split_row(starts, codes, _UINT(first[middle]), inner, size, out_starts, out_codes, m)
    out_first[height] = m
    return out_starts[:m], out_codes[:m], out_first


@_compiled(numba.void(*_RUNS, *_RUNS, numba.int64[:, ::1]))
def _count_dense(
    starts_a: np.ndarray,
    codes_a: np.ndarray,
    first_a: np.ndarray,
    starts_b: np.ndarray,
    codes_b: np.ndarray,
    first_b: np.ndarray,
    table: np.ndarray,
) -> None:
    width = starts_a[first_a[1] - 1]
    for y in range(first_a.size - 1):
        i = np.uintp(first_a[y])
        j = np.uintp(first_b[y])
        x = np.int32(0)
        while x < width:
            end_a = starts_a[i + np.uintp(1)]
            end_b = starts_b[j + np.uintp(1)]
            until = min(end_a, end_b)
            table[np.uintp(codes_a[i]), np.uintp(codes_b[j])] += until - x
            i += np.uintp(end_a == until)
            j += np.uintp(end_b == until)
            x = until


@_compiled(numba.int64[:, ::1](numba.int64[:, ::1], _INT32, _INT32, numba.int64))
def _filled_cells(
    table: np.ndarray, palette_a: np.ndarray, palette_b: np.ndarray, left_out: int
) -> np.ndarray:
    """Rows of ``overlap_counts`` for a table that is indexed by the codes."""
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


@_compiled(numba.types.Tuple((numba.int64[::1], numba.int64[::1]))(*_RUNS, *_RUNS, numba.int64))
def _overlaps(
    starts_a: np.ndarray,
    codes_a: np.ndarray,
    first_a: np.ndarray,
    starts_b: np.ndarray,
    codes_b: np.ndarray,
    first_b: np.ndarray,
    columns: int,
) -> Any:  # noqa: ANN401
    keys = np.empty(starts_a.size + starts_b.size, np.int64)
    lengths = np.empty(keys.size, np.int64)
    width = starts_a[first_a[1] - 1]
    n = 0
    for y in range(first_a.size - 1):
        i = first_a[y]
        j = first_b[y]
        x = 0
        while x < width:
            until = min(starts_a[i + 1], starts_b[j + 1])
            keys[n] = np.int64(codes_a[i]) * columns + codes_b[j]
            lengths[n] = until - x
            n += 1
            i += starts_a[i + 1] == until
            j += starts_b[j + 1] == until
            x = until
    return keys[:n], lengths[:n]


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
    starts, codes, first, palette, red, blue = _label_runs(rgb, _LOOKUP)
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
    size_a, size_b = 2 * palette_a.size, 2 * palette_b.size
    if size_a * size_b <= _DENSE_CELLS:
        table = np.zeros((size_a, size_b), np.int64)
        _count_dense(*a, *b, table)
        result: np.ndarray = _filled_cells(table, palette_a, palette_b, left_out)
        return result
    keys, lengths = _overlaps(*a, *b, size_b)
    found, place = np.unique(keys, return_inverse=True)
    pixels = np.zeros(found.size, np.int64)
    np.add.at(pixels, place, lengths)
    code_a, code_b = found // size_b, found % size_b
    columns = (palette_a[code_a >> 1], palette_b[code_b >> 1], code_a & 1, code_b & 1, pixels)
    cells: np.ndarray = np.stack(columns, axis=1)[columns[0] != left_out]
    return cells
