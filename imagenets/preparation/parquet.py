"""ImageNet in parquet shards, as Hugging Face publishes ``ILSVRC/imagenet-1k``; read by pyarrow, an extra.

``data/train-00000-of-00294.parquet`` and so on, with as many shards as the names announce. A row's column
``image`` is a struct of ``bytes``, the file, and ``path``, its name. The column of names is read first; of
the bytes, only row groups that hold needed images are read, a few rows at a time.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from imagenets.common.errors import InputError, listed, problem_of, quantity
from imagenets.common.whole_files import refuse_pointer
from imagenets.preparation.source_images import (
    PackedTrain,
    PackedVal,
    SourceImage,
    class_of_name,
    plain_name,
)

if TYPE_CHECKING:
    from pyarrow.parquet import ParquetFile

_SHARD = re.compile(r"(train|validation|test)-(\d{5})-of-(\d{5})(?:-[0-9a-f]+)?\.parquet")

BUFFER = 1 << 20  # bytes that are read from a shard at a time, not a row group's column as a whole
NAMES_AT_ONCE = 8192
ROWS_AT_ONCE = 16  # images that are in memory at a time: 2 MB, at most some 100
AGAIN = "get it again"


def train_parquet(shards: Sequence[Path]) -> PackedTrain:
    """Return the training images in shards; their names contain the class."""

    @cache
    def classes() -> dict[str, dict[str, SourceImage]]:
        found: dict[str, dict[str, SourceImage]] = {}
        for name, image in _rows(shards):
            wnid = class_of_name(name)
            if wnid is None:
                raise InputError(
                    f"{image.path}: row {image.row} is {name!r}, which does not name a class; {AGAIN}"
                )
            _add_once(found.setdefault(sys.intern(wnid), {}), plain_name(name)[0], image)
        return found

    where = _described("train", shards)
    return PackedTrain("parquet shards", f"parquet, {where}", where, lambda wnid: classes().get(wnid, {}))


def val_parquet(shards: Sequence[Path]) -> PackedVal:
    """Return the validation images in shards."""

    @cache
    def images() -> dict[str, SourceImage]:
        found: dict[str, SourceImage] = {}
        for name, image in _rows(shards):
            _add_once(found, plain_name(name)[0], image)
        return found

    where = _described("validation", shards)
    return PackedVal("parquet shards", f"parquet, {where}", where, images)


def _described(split: str, shards: Sequence[Path]) -> str:
    return f"{shards[0].parent}/{split}-*.parquet ({quantity(len(shards), 'shard')})"


def _rows(shards: Sequence[Path]) -> Iterator[tuple[str, SourceImage]]:
    """Yield the names of all images, as stored, and their positions.

    Raises InputError, which names the shard, when it is damaged or lacks names.
    """
    for path in shards:
        with _open_shard(path) as shard:
            groups = _row_groups(path, shard)
            sizes = np.repeat([group.size for group in groups], [group.rows for group in groups])
            for row, name in enumerate(_names(path, shard)):
                yield name, SourceImage(str(path), int(sizes[row]), row=row)


def find_shards(imagenet: Path, split: str) -> list[Path]:
    """Find a split's shards, in order: in the folder, its ``data``, or a snapshot of Hugging Face's cache.

    Raises InputError if there are some, but not all that their names announce.
    """
    snapshots = sorted(imagenet.glob("snapshots/*"))
    for folders in ([imagenet], [imagenet / "data"], [f for s in snapshots for f in (s, s / "data")]):
        found = {folder: paths for folder in folders if (paths := _shards_in(folder, split))}
        if len(found) > 1:
            raise InputError(
                f"{imagenet}: shards of {split} in {len(found)} snapshots; name one of them:\n"
                f"{listed([str(folder) for folder in found])}"
            )
        for folder, paths in found.items():
            _refuse_incomplete(folder, split, paths)
            return paths
    return []


def stray_parquet(folder: Path) -> Path | None:
    """Find a parquet file that is not named like a shard; None when there is none."""
    strays = [path for path in folder.glob("*.parquet") if not _SHARD.fullmatch(path.name)]
    return min(strays, default=None)


def _shards_in(folder: Path, split: str) -> list[Path]:
    return sorted(path for path in folder.glob(f"{split}-*.parquet") if _SHARD.fullmatch(path.name))


def _refuse_incomplete(folder: Path, split: str, paths: Sequence[Path]) -> None:
    """Check the shards against their own names, ``train-00003-of-00014.parquet``."""
    totals = sorted({match[3] for path in paths if (match := _SHARD.fullmatch(path.name))})
    if len(totals) > 1:
        raise InputError(
            f"{folder}: shards of {split} with different totals, -of-{totals[0]} and -of-{totals[-1]}; "
            "keep one kind"
        )
    named: dict[str, str] = {}
    for path in paths:
        first = named.setdefault(path.name.partition("-of-")[0], path.name)
        if first != path.name:
            raise InputError(f"{folder}: {first} and {path.name} are the same shard; keep one")
    announced = [f"{split}-{i:05d}" for i in range(int(totals[0]))]
    missing = [f"{number}-of-{totals[0]}.parquet" for number in announced if number not in named]
    if missing:
        raise InputError(
            f"{folder}: not all {len(announced)} shards of {split}, which their names announce; get what is "
            f"missing:\n{listed(missing)}"
        )
    if len(named) > len(announced):
        raise InputError(f"{folder}: {paths[-1].name} announces more shards than exist")


def read_rows(path: str, rows: Sequence[int]) -> Iterator[tuple[int, bytes]]:
    """Read the files of some rows, in ascending order; only their row groups are read.

    Raises InputError, which names the shard, when it is damaged or a row has no file.
    """
    with _open_shard(Path(path)) as shard:
        groups = _row_groups(Path(path), shard)
        starts = np.cumsum([0, *(group.rows for group in groups)])
        wanted = np.asarray(rows, np.int64)
        bounds = np.searchsorted(wanted, starts)
        for number, (begin, end) in enumerate(pairwise(bounds.tolist())):
            if begin < end:
                yield from _read_group(path, shard, number, int(starts[number]), wanted[begin:end])


def _read_group(
    path: str,
    shard: ParquetFile,
    number: int,
    first: int,
    rows: np.ndarray,
) -> Iterator[tuple[int, bytes]]:
    """Read the rows (n,) int64 of row group ``number``, which begins with row ``first``."""
    at = 0
    with _shard_errors(Path(path)):
        batches = shard.iter_batches(
            ROWS_AT_ONCE, row_groups=[number], columns=["image.bytes"], use_threads=False
        )
        for batch in batches:
            (files,) = batch.column(0).flatten()
            while at < rows.size and rows[at] < first + len(files):
                content = files[int(rows[at]) - first].as_py()
                if not content:
                    raise InputError(f"{path}: row {rows[at]} has a name but no image; {AGAIN}")
                yield int(rows[at]), content
                at += 1
            if at == rows.size:
                return
            first += len(files)
    raise InputError(f"{path}: row group {number} has fewer rows than it says; {AGAIN}")


def largest_row_group(path: str) -> int:
    """Bytes that the images of a shard's largest row group take, read from its footer."""
    with _open_shard(Path(path)) as shard:
        return max((group.rows * group.size for group in _row_groups(Path(path), shard)), default=0)


class _RowGroup(NamedTuple):
    rows: int
    size: int  # bytes of an image, the mean


def _row_groups(path: Path, shard: ParquetFile) -> list[_RowGroup]:
    """Rows of each row group, and the mean size of its images. Raises InputError without image columns."""
    meta = shard.metadata
    columns = {meta.schema.column(i).path: i for i in range(len(meta.schema))}
    if not {"image.bytes", "image.path"} <= columns.keys():
        raise InputError(
            f"{path}: no column image with bytes and path, but {', '.join(columns)}; "
            "get the published shards of ILSVRC/imagenet-1k"
        )
    groups = []
    for i in range(meta.num_row_groups):
        group = meta.row_group(i)
        taken = group.column(columns["image.bytes"]).total_uncompressed_size
        groups.append(_RowGroup(group.num_rows, -(-taken // max(group.num_rows, 1))))
    return groups


def _names(path: Path, shard: ParquetFile) -> Iterator[str]:
    """Yield the names of a shard's images, without folders. Raises InputError if one is missing."""
    row = 0
    with _shard_errors(path):
        for batch in shard.iter_batches(NAMES_AT_ONCE, columns=["image.path"], use_threads=False):
            (names,) = batch.column(0).flatten()
            for name in names.to_pylist():
                if not name:
                    raise InputError(
                        f"{path}: row {row} has no name in image.path; get the shards of "
                        "ILSVRC/imagenet-1k as they are published"
                    )
                yield name.rpartition("/")[2]
                row += 1
    if row != shard.metadata.num_rows:
        raise InputError(f"{path}: {row} names for {shard.metadata.num_rows} rows; {AGAIN}")


def _add_once(images: dict[str, SourceImage], name: str, image: SourceImage) -> None:
    first = images.setdefault(name, image)
    if first is not image:
        raise InputError(
            f"{image.path}: row {image.row} is {name}, as is row {first.row} of {first.path}; {AGAIN}"
        )


@contextmanager
def _open_shard(path: Path) -> Iterator[ParquetFile]:
    """Open a shard as pyarrow's ParquetFile. Raises InputError if it is not one."""
    try:
        import pyarrow.parquet
    except ModuleNotFoundError as error:
        raise InputError(
            f"{path}: reading parquet needs pyarrow, which this Python lacks: "
            f"{sys.executable} -m pip install pyarrow"
        ) from error
    with _shard_errors(path):
        refuse_pointer(path)
        shard = pyarrow.parquet.ParquetFile(
            path, memory_map=False, buffer_size=BUFFER, pre_buffer=False, page_checksum_verification=True
        )
    try:
        yield shard
    finally:
        shard.close()


@contextmanager
def _shard_errors(path: Path) -> Iterator[None]:
    """Convert pyarrow's errors for a damaged or truncated shard to an InputError."""
    import pyarrow

    try:
        yield
    except FileNotFoundError as error:
        raise InputError(f"{problem_of(error, path)}; does the link lead to nothing? {AGAIN}") from error
    except PermissionError as error:
        raise InputError(problem_of(error, path)) from error
    except (pyarrow.ArrowException, OSError) as error:
        reason = str(error).partition("\n")[0] or type(error).__name__
        raise InputError(f"{path}: damaged or truncated ({reason}): {AGAIN}") from error
