"""The one pass over the masks: per-image contingency tables, from which every matching and score follows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from imagenets.classes import IGNORE
from imagenets.common.errors import InputError
from imagenets.common.progress import Show, no_bar
from imagenets.common.workers import load_chunks
from imagenets.masks import boundary_distance, colour_problem, decode_rgb, png_size
from imagenets.scoring.pairs import Pairs

if TYPE_CHECKING:
    from imagenets.scoring.run_length import LabelRuns, Runs

# Pairs that a worker sends at once: many, because each transfer costs both processes about 0.2 ms.
CHUNK = 32


@dataclass(frozen=True)
class ContingencyTable:
    """Pixel counts of all images; one row is one kind of pixel in one image.

    Row arrays of length R: ``image`` int32 (index into ``names``), ``ground_truth`` and ``prediction``
    uint16 labels, ``on_gt_boundary`` and ``on_prediction_boundary`` bool, ``pixels`` int64 > 0. Ignored
    pixels (ground truth 1000) are left out, so an image can be without rows. ``largest_prediction`` (images,)
    int32 is the largest label of each prediction, ignored pixels included.
    """

    names: tuple[str, ...]
    largest_prediction: np.ndarray
    image: np.ndarray
    ground_truth: np.ndarray
    prediction: np.ndarray
    on_gt_boundary: np.ndarray
    on_prediction_boundary: np.ndarray
    pixels: np.ndarray


class Rows(NamedTuple):
    """Rows of one image or several; the columns of ContingencyTable, in its order."""

    image: np.ndarray
    ground_truth: np.ndarray
    prediction: np.ndarray
    on_gt_boundary: np.ndarray
    on_prediction_boundary: np.ndarray
    pixels: np.ndarray


ROW_TYPES = tuple(np.dtype(name) for name in ("int32", "uint16", "uint16", "bool", "bool", "int64"))

_NO_COUNTS = np.zeros((0, 5), np.int64)


def make_table(
    names: Sequence[str], largest_prediction: Sequence[int] | np.ndarray, rows: Sequence[Rows]
) -> ContingencyTable:
    """Join rows, whose ``image`` already indexes ``names``, into one table."""
    columns = [
        np.concatenate([np.zeros(0, dtype), *(part[i] for part in rows)]).astype(dtype, copy=False)
        for i, dtype in enumerate(ROW_TYPES)
    ]
    return ContingencyTable(tuple(names), np.asarray(largest_prediction, np.int32), *columns)


def count_pair(
    ground_truth: LabelRuns, prediction: LabelRuns, image: int, distance: int | None, ignore: int = IGNORE
) -> Rows:
    """Count the pixels of one pair of masks of the same size, given as runs.

    ``distance`` is the boundary width in pixels; with None, no pixel counts as boundary. Pixels of
    the ground-truth label ``ignore`` are left out.
    """
    return _rows_of([image], [_counts(ground_truth, prediction, distance, ignore)])


def _counts(
    ground_truth: LabelRuns, prediction: LabelRuns, distance: int | None, ignore: int = IGNORE
) -> np.ndarray:
    """Count one pair; (n, 5) int64, the columns of Rows after the image."""
    from imagenets.scoring.run_length import boundary_runs, overlap_counts

    def flagged(runs: Runs) -> Runs:
        return runs._replace(codes=2 * runs.codes) if distance is None else boundary_runs(runs, distance)

    return overlap_counts(
        flagged(ground_truth.runs),
        flagged(prediction.runs),
        ground_truth.palette,
        prediction.palette,
        ignore,
    )


def _rows_of(images: Sequence[int], counts: Sequence[np.ndarray]) -> Rows:
    """Put the counts of some images, each (n, 5) int64, into columns."""
    image = np.repeat(np.asarray(images, ROW_TYPES[0]), [len(part) for part in counts])
    columns = np.concatenate([_NO_COUNTS, *counts]).T
    return Rows(image, *(column.astype(dtype) for column, dtype in zip(columns, ROW_TYPES[1:], strict=True)))


class Chunk(NamedTuple):
    """Result of a worker: rows of some images, their largest predictions, and the files to refuse."""

    rows: list[Rows]
    largest_prediction: list[int]
    problems: list[str]


class PairChunks:
    """A map-style data set of chunks of pairs, for torch.utils.data.DataLoader."""

    def __init__(self, pairs: Pairs, indices: Sequence[int]) -> None:
        """Cut the pairs of ``indices`` into chunks of ``CHUNK``."""
        self.pairs = pairs
        self.chunks = [indices[i : i + CHUNK] for i in range(0, len(indices), CHUNK)]

    def __len__(self) -> int:
        """Return the number of chunks."""
        return len(self.chunks)

    def __getitem__(self, index: int) -> Chunk:
        """Decode and count one chunk."""
        images = self.chunks[index]
        results = [_count_files(self.pairs, image) for image in images]
        # A few arrays for all images together: sending some for each takes longer than joining them.
        rows = _rows_of(images, [counts for counts, _, _ in results])
        problems = [problem for _, _, found in results for problem in found]
        return Chunk([rows], [largest for _, largest, _ in results], problems)


def _count_files(pairs: Pairs, image: int) -> tuple[np.ndarray, int, list[str]]:
    """Count one pair: the result of ``_counts``, the prediction's largest label, and the problems."""
    from imagenets.scoring.run_length import label_runs

    paths = [f"{folder}/{pairs.names[image]}" for folder in (pairs.gt_dir, pairs.predict_dir)]
    problems = []
    data = []
    for path, what in zip(paths, ("ground truth", "prediction"), strict=True):
        try:
            with open(path, "rb", buffering=0) as file:  # noqa: PTH123 - a Path takes three times as long
                content = file.readall()
            data.append((content, png_size(content)))
        except FileNotFoundError:
            problems.append(f"{path}: no such {what}")
        except OSError as error:
            problems.append(f"{path}: {error.strerror}")
        except InputError as error:
            problems.append(f"{path}: {error}")
    if len(data) == 2 and data[0][1] != data[1][1]:
        (gt_height, gt_width), (height, width) = data[0][1], data[1][1]
        problems.append(
            f"{paths[1]}: {width} x {height} pixels, but its ground truth has {gt_width} x {gt_height}; "
            "resize it (nearest neighbour) to its image's size"
        )
    if problems:
        return _NO_COUNTS, 0, problems
    masks = []
    for path, (content, _) in zip(paths, data, strict=True):
        try:
            mask = label_runs(decode_rgb(content))
        except InputError as error:
            problems.append(f"{path}: {error}")
            continue
        problem = colour_problem(mask.red, mask.blue)
        if problem:
            problems.append(f"{path}: {problem}")
        masks.append(mask)
    if problems:
        return _NO_COUNTS, 0, problems
    ground_truth, prediction = masks
    distance = boundary_distance(*data[0][1])
    return _counts(ground_truth, prediction, distance), max(prediction.palette.tolist()), []


def count_pairs(pairs: Pairs, workers: int, show: Show = no_bar) -> tuple[ContingencyTable, list[str]]:
    """Decode every pair once, in DataLoader workers, and count its pixels.

    ``workers`` is a number of processes (0: this one); ``show`` opens a progress bar.

    Returns the table and one message for every file that cannot be used; with any, the table is incomplete.
    Raises InputError when a worker process dies.
    """
    rows: list[Rows] = []
    largest = np.zeros(len(pairs.names), np.int32)
    problems: list[str] = []
    dataset = PairChunks(pairs, range(len(pairs.names)))
    import imagenets.scoring.run_length  # noqa: F401 - loaded here once, so that forked workers share it

    with show("masks", len(pairs.names), unit="pair") as advance:
        for chunk_images, chunk in zip(dataset.chunks, load_chunks(dataset, workers), strict=True):
            rows.extend(chunk.rows)
            largest[list(chunk_images)] = chunk.largest_prediction
            problems.extend(chunk.problems)
            advance(len(chunk_images))
    return make_table(pairs.names, largest, rows), problems
