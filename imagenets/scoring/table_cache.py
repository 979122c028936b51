"""Contingency tables on disk, so that masks are decoded once; damaged ones are built again."""

from __future__ import annotations

import hashlib
import os
import re
import time
from contextlib import suppress
from pathlib import Path

import numpy as np

from imagenets.common.progress import Show, Warn, no_bar, no_warning
from imagenets.common.whole_files import write_whole
from imagenets.scoring.contingency import (
    ROW_TYPES,
    ContingencyTable,
    Rows,
    count_pairs,
    make_table,
)
from imagenets.scoring.pairs import Pairs

# Part of every cache file; change it with any change of a table's content.
_FORMAT = "imagenets contingency table 1"
_OWN_FILE = re.compile(r"[0-9a-f]{24}\.table|\.[0-9a-f]{16}\.tmp")
_MOST_SECONDS, _TEMPORARY_SECONDS = 90 * 86_400, 86_400
_MOST_BYTES = 2 << 30
_LARGEST_TYPE = np.dtype("int32")


def cache_path(folder: Path, pairs: Pairs) -> Path:
    """Path of the cached table of these folders and names: one file, replaced when the masks change."""
    key = "\0".join([str(pairs.gt_dir.resolve()), str(pairs.predict_dir.resolve()), *pairs.names])
    return folder / f"{hashlib.sha256(key.encode(errors='surrogateescape')).hexdigest()[:24]}.table"


def save_table(path: Path, table: ContingencyTable, fingerprint: str) -> None:
    """Write a table of masks with this fingerprint; OSError when the file cannot be written."""
    columns = [table.largest_prediction, *(getattr(table, name) for name in Rows._fields)]
    content = _heading(fingerprint) + b"".join(column.tobytes() for column in columns)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, hashlib.sha256(content).digest() + content)


def load_table(path: Path, names: tuple[str, ...], fingerprint: str) -> ContingencyTable | None:
    """Read a cached table; None when there is none, it is damaged, or it is of other masks."""
    try:
        content = path.read_bytes()
    except OSError:
        return None
    digest, content = content[:32], content[32:]
    heading = _heading(fingerprint)
    if hashlib.sha256(content).digest() != digest or not content.startswith(heading):
        return None
    of_images = _LARGEST_TYPE.itemsize * len(names)
    rows, rest = divmod(len(content) - len(heading) - of_images, sum(dtype.itemsize for dtype in ROW_TYPES))
    if rows < 0 or rest:
        return None
    columns, position = [], len(heading)
    for dtype, size in ((_LARGEST_TYPE, len(names)), *((dtype, rows) for dtype in ROW_TYPES)):
        columns.append(np.frombuffer(content, dtype, size, position))
        position += dtype.itemsize * size
    return make_table(names, columns[0], [Rows(*columns[1:])])


def _heading(fingerprint: str) -> bytes:
    return f"{_FORMAT}\n{fingerprint}\n".encode()


def cached_table(
    pairs: Pairs,
    folder: Path | None,
    workers: int,
    show: Show = no_bar,
    warn: Warn = no_warning,
) -> tuple[ContingencyTable, list[str]]:
    """Return the contingency table of pairs, from the cache in ``folder`` or by the pass over the masks.

    Without a folder nothing is read or written there. Returns, like ``count_pairs``, one message for every
    file that cannot be used; such a table is not cached. ``warn`` is called when the cache cannot be
    written: the table is good without it.
    """
    if folder is None:
        return count_pairs(pairs, workers, show)
    # Before the pass: a mask that changes while it runs must be noticed by the next one.
    fingerprint = pairs.fingerprint()
    path = cache_path(folder, pairs)
    table = load_table(path, pairs.names, fingerprint)
    if table is not None:
        with suppress(OSError):
            os.utime(path)  # was used: see prune
        return table, []
    table, problems = count_pairs(pairs, workers, show)
    if not problems:
        try:
            save_table(path, table, fingerprint)
            prune(folder)
        except OSError as error:
            warn(f"{path}: not cached: {error.strerror}")
    return table, problems


def prune(folder: Path) -> None:
    """Remove tables that were not used for 90 days, then the longest unused, until the rest is within 2 GiB.

    Temporary files of killed runs are removed, too. Nothing else in the folder is touched.
    """
    now = time.time()
    tables = []
    for entry in os.scandir(folder):
        if entry.is_file(follow_symlinks=False) and _OWN_FILE.fullmatch(entry.name):
            status = entry.stat(follow_symlinks=False)
            tables.append((status.st_mtime, status.st_size, entry))
    kept = 0
    for used, size, entry in sorted(tables, key=lambda table: table[0], reverse=True):
        kept += size
        temporary = entry.name.endswith(".tmp")
        if kept > _MOST_BYTES or now - used > (_TEMPORARY_SECONDS if temporary else _MOST_SECONDS):
            kept -= size
            with suppress(OSError):
                Path(entry).unlink()
