"""Masks as runs of equal labels, compiled: the arithmetic of the one pass over a pair of masks.

A mask of H rows and W columns is held as ``Runs``, row after row: ``starts`` (n,) int32, the column where
each run begins, ``codes`` (n,) int32, what it holds, and ``first`` (H + 1,) int32, where each row's runs
begin in the other two. Every row ends with a sentinel run that starts at W, so that a run's end is always
the next one's start. Masks have few runs a row, which makes all that follows cheap; the two loops that
touch every pixel are written so that the compiler turns them into vector instructions.

Labels are replaced by their place in the mask's ``palette`` (k,) int32, in order of appearance, so that an
image with three classes is counted in a 3-row table whatever N is.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numba
import numpy as np

from imagenets.classes import MAX_LABEL

_INT32 = numba.int32[::1]
_RUNS = (_INT32, _INT32, _INT32)

# Above this many cells a pair's table is sparse: noise, not segmentation. It is then counted by sorting.
_DENSE_CELLS = 1 << 20


class Runs(NamedTuple):
    """Runs of one mask; see the module's docstring."""

    starts: np.ndarray
    codes: np.ndarray
    first: np.ndarray


def _compiled(signature: Any) -> Callable[[Callable[..., Any]], Any]:  # noqa: ANN401
    """Compile ahead of use, and keep the machine code on disk where numba finds a writable place for it."""

    def compile_(function: Callable[..., Any]) -> Any:  # noqa: ANN401
        try:
            return numba.njit(signature, cache=True)(function)
        except RuntimeError:  # neither the package's folder nor the user's cache can be written
            return numba.njit(signature)(function)

    return compile_


# Parts of the loops below: set into each caller before it is compiled, so that they cost no call.
_part = numba.njit(inline="always")


@_compiled(_INT32(_INT32, numba.int64))
def _grown(array: np.ndarray, size: int) -> np.ndarray:
    longer = np.empty(size, np.int32)
    longer[: array.size] = array
    return longer


@_compiled(numba.uintp(numba.uint64[::1], numba.uintp))
def _first_set(words: np.ndarray, at: np.uint64) -> np.uint64:
    """Index of the first word that is not 0, from ``at`` on; ``words.size`` if there is none."""
    size = np.uintp(words.size)
    while at + np.uintp(4) <= size:
        four = words[at] | words[at + np.uintp(1)] | words[at + np.uintp(2)] | words[at + np.uintp(3)]
        if four != 0:
            break
        at += np.uintp(4)
    while at < size and words[at] == 0:
        at += np.uintp(1)
    return at


@_part
def _row_runs(
    row: np.ndarray,
    change: np.ndarray,
    change_words: np.ndarray,
    lookup: np.ndarray,
    palette: np.ndarray,
    known: np.int32,
    starts: np.ndarray,
    codes: np.ndarray,
    n: np.uintp,
) -> tuple[np.uintp, np.int32, np.uint8, np.uint8]:
    """Write one row's runs from place ``n`` on, and labels not seen before from place ``known`` on.

    Returns both places afterwards, and the red and blue of all pixels, joined by or.
    """
    last = np.uintp(change.size)
    red = np.uint8(0)
    blue = np.uint8(0)
    x = np.uintp(0)
    while True:
        # A run begins at x.
        r = row[np.uintp(3) * x]
        red |= r
        blue |= row[np.uintp(3) * x + np.uintp(2)]
        label = np.int32(r) | (np.int32(row[np.uintp(3) * x + np.uintp(1)]) << np.int32(8))
        code = lookup[np.uintp(label)]
        if code < 0:
            code = known
            lookup[np.uintp(label)] = code
            palette[known] = label
            known += np.int32(1)
        starts[n] = x
        codes[n] = code
        n += np.uintp(1)
        # The next byte that differs from the one three on; bytes of the pixel just left are passed over.
        i = np.uintp(3) * x
        while i < last:
            if i & np.uintp(7) == 0:
                i = _first_set(change_words, i >> np.uintp(3)) << np.uintp(3)
                if i >= last:
                    break
            if change[i] != 0:
                break
            i += np.uintp(1)
        if i >= last:
            return n, known, red, blue
        x = i // np.uintp(3) + np.uintp(1)


@_compiled(
    numba.types.Tuple((*_RUNS, _INT32, numba.uint8, numba.uint8))(numba.uint8[:, :, ::1], numba.int32[::1])
)
def _label_runs(rgb: np.ndarray, lookup: np.ndarray) -> Any:  # noqa: ANN401
    height, width, _ = rgb.shape
    capacity = 16 * height + width + 1
    starts = np.empty(capacity, np.int32)
    codes = np.empty(capacity, np.int32)
    first = np.empty(height + 1, np.int32)
    palette = np.empty(width + 16, np.int32)
    known = np.int32(0)
    red = np.uint8(0)
    blue = np.uint8(0)
    n = np.uintp(0)
    # change[b]: whether byte b of the row, three to a pixel, is another in the next pixel. The rest is 0.
    compared = 3 * width - 3
    change = np.zeros(8 * ((compared + 7) // 8), np.uint8)
    change_words = change.view(np.uint64)
    differs = change[:compared]
    for y in range(height):
        if n + np.uintp(width + 1) > np.uintp(capacity):
            capacity = 2 * capacity + width + 1
            starts = _grown(starts, capacity)
            codes = _grown(codes, capacity)
        if known + width > palette.size:
            palette = _grown(palette, 2 * palette.size)
        first[y] = n
        row = rgb[y].reshape(3 * width)
        here = row[:compared]
        right = row[3:]
        for byte in range(compared):
            differs[byte] = here[byte] ^ right[byte]
        n, known, any_red, any_blue = _row_runs(
            row, change, change_words, lookup, palette, known, starts, codes, n
        )
        red |= any_red
        blue |= any_blue
        starts[n] = width
        codes[n] = -1
        n += np.uintp(1)
    first[height] = n
    for k in range(known):
        lookup[palette[k]] = -1
    return starts[:n], codes[:n], first, palette[:known], red, blue


@_part
def _end_where_rows_differ(
    depth: np.ndarray,
    starts: np.ndarray,
    codes: np.ndarray,
    above: np.int32,
    here: np.int32,
    width: np.int32,
) -> None:
    """Set ``depth`` to 0 where the rows whose runs begin at ``above`` and ``here`` hold different labels."""
    i = np.uintp(above)
    j = np.uintp(here)
    x = np.int32(0)
    while x < width:
        above_end = starts[i + np.uintp(1)]
        here_end = starts[j + np.uintp(1)]
        until = min(above_end, here_end)
        if codes[i] != codes[j]:
            for t in range(np.uintp(x), np.uintp(until)):
                depth[t] = 0
        i += np.uintp(above_end == until)
        j += np.uintp(here_end == until)
        x = until


@_part
def _deepen(depth: np.ndarray, full: np.uint16, width: np.int32) -> None:
    """Count one row more, up to ``full``."""
    one = np.uint16(1)
    for t in range(width):
        depth[t] = min(np.uint16(depth[t] + one), full)


@_part
def _end_near_changes(
    depth: np.ndarray,
    starts: np.ndarray,
    begin: np.int32,
    end: np.int32,
    distance: int,
    width: np.int32,
) -> None:
    """Set ``depth`` to 0 where a row's runs from ``begin`` to ``end`` start within [x - d + 1, x + d]."""
    done = np.int64(0)
    for r in range(np.uintp(begin), np.uintp(end)):
        at = np.int64(starts[r])
        until = min(at + distance, np.int64(width))
        for t in range(np.uintp(max(done, at - distance)), np.uintp(until)):
            depth[t] = 0
        done = until


@_part
def _mark_ends(depth: np.ndarray, full: np.uint16, change: np.ndarray) -> None:
    """Say for every column whether an interior stretch ends there or begins in the next one."""
    for t in range(depth.size - 1):
        change[t] = np.uint8(depth[t] == full) ^ np.uint8(depth[t + 1] == full)


@_part
def _copy_run(
    starts: np.ndarray,
    codes: np.ndarray,
    run: np.uintp,
    out_starts: np.ndarray,
    out_codes: np.ndarray,
    m: np.uintp,
) -> None:
    """Write a run that begins on the boundary, as every one does."""
    out_starts[m] = starts[run]
    out_codes[m] = codes[run] * np.int32(2) + np.int32(1)


@_part
def _split_row(
    starts: np.ndarray,
    codes: np.ndarray,
    run: np.uintp,
    sentinel: np.uintp,
    change: np.ndarray,
    change_words: np.ndarray,
    out_starts: np.ndarray,
    out_codes: np.ndarray,
    m: np.uintp,
) -> tuple[np.uintp, np.uintp]:
    """Split a row's runs after every marked column: the row begins on the boundary, each mark changes sides.

    Returns the run that comes after the last mark, and ``m`` after what was written.
    """
    inside = np.int32(0)
    words = np.uintp(change_words.size)
    word = _first_set(change_words, np.uintp(0))
    while word < words:
        for t in range(word << np.uintp(3), (word << np.uintp(3)) + np.uintp(8)):
            if change[t] == 0:
                continue
            x = np.int32(t + np.uintp(1))
            while starts[run] <= x and run < sentinel:
                _copy_run(starts, codes, run, out_starts, out_codes, m)
                m += np.uintp(1)
                run += np.uintp(1)
            out_starts[m] = x
            out_codes[m] = codes[run - np.uintp(1)] * np.int32(2) + inside
            m += np.uintp(1)
            inside ^= np.int32(1)
        word = _first_set(change_words, word + np.uintp(1))
    return run, m


@_compiled(numba.types.Tuple(_RUNS)(*_RUNS, numba.int64))
def _boundary_runs(starts: np.ndarray, codes: np.ndarray, first: np.ndarray, distance: int) -> Any:  # noqa: ANN401
    height = first.size - 1
    width = starts[first[1] - 1]
    capacity = 2 * starts.size + 2 * width + 2
    out_starts = np.empty(capacity, np.int32)
    out_codes = np.empty(capacity, np.int32)
    out_first = np.empty(height + 1, np.int32)
    m = np.uintp(0)
    # depth[x]: how many rows, up to this one and at most 2d + 1, hold one label throughout [x - d, x + d].
    # depth[width] is 0, so that an interior stretch always ends.
    depth = np.zeros(width + 1, np.uint16)
    full = np.uint16(2 * distance + 1)
    change = np.zeros(8 * ((width + 7) // 8), np.uint8)
    change_words = change.view(np.uint64)
    for y in range(height + distance):
        if y < height:
            if y > 0:
                _end_where_rows_differ(depth, starts, codes, first[y - 1], first[y], width)
            _deepen(depth, full, width)
            _end_near_changes(depth, starts, first[y], first[y + 1], distance, width)
        middle = y - distance
        if middle < 0:
            continue
        if m + np.uintp(2 * width + 2) > np.uintp(capacity):
            capacity = 2 * capacity + 2 * width + 2
            out_starts = _grown(out_starts, capacity)
            out_codes = _grown(out_codes, capacity)
        out_first[middle] = m
        run = np.uintp(first[middle])
        sentinel = np.uintp(first[middle + 1]) - np.uintp(1)
        if y >= 2 * distance and y < height:
            _mark_ends(depth, full, change)
            run, m = _split_row(starts, codes, run, sentinel, change, change_words, out_starts, out_codes, m)
        while run < sentinel:
            _copy_run(starts, codes, run, out_starts, out_codes, m)
            m += np.uintp(1)
            run += np.uintp(1)
        out_starts[m] = width
        out_codes[m] = -1
        m += np.uintp(1)
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

    ``red`` and ``blue`` tell whether any pixel has a value there.
    """

    runs: Runs
    palette: np.ndarray
    red: bool
    blue: bool


def label_runs(rgb: np.ndarray) -> LabelRuns:
    """Encode a mask (H, W, 3) uint8, C-contiguous, label = R + 256 G, as runs of equal labels.

    Pixels that differ in blue alone begin a new run too; ``blue`` tells the caller to refuse such a mask.
    """
    starts, codes, first, palette, red, blue = _label_runs(rgb, _LOOKUP)
    return LabelRuns(Runs(starts, codes, first), palette, bool(red), bool(blue))


def boundary_runs(runs: Runs, distance: int) -> Runs:
    """Split runs where the boundary begins or ends: a code c becomes 2 c inside, 2 c + 1 on the boundary.

    A pixel is inside iff the (2 distance + 1)² window around it lies in the image and holds one label
    (docs/benchmark.md, Boundary IoU); ``distance`` is in pixels, at least 1. Time is linear in the pixels,
    for all labels at once: a column's count of rows that are uniform over [x - d, x + d] and alike from row
    to row says where such a window ends.
    """
    return Runs(*_boundary_runs(*runs, distance))


def overlap_counts(a: Runs, b: Runs, size_a: int, size_b: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Count the pixels of every pair of codes that two runs of the same shape have in common.

    ``size_a`` and ``size_b`` bound the codes. Returns (n,) int64 arrays: code of a, code of b, pixels > 0.
    """
    if size_a * size_b <= _DENSE_CELLS:
        table = np.zeros((size_a, size_b), np.int64)
        _count_dense(*a, *b, table)
        code_a, code_b = np.nonzero(table)
        return code_a, code_b, table[code_a, code_b]
    keys, lengths = _overlaps(*a, *b, size_b)
    found, place = np.unique(keys, return_inverse=True)
    counts = np.zeros(found.size, np.int64)
    np.add.at(counts, place, lengths)
    return found // size_b, found % size_b, counts
