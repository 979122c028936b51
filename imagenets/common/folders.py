"""Class folders and their files; hidden ones are ignored."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path


def visible(folder: Path | str) -> Iterator[os.DirEntry[str]]:
    """Yield the entries of a folder that are not hidden, in no order; OSError if it cannot be read."""
    with os.scandir(folder) as entries:
        for entry in entries:
            if not entry.name.startswith("."):
                yield entry


def subfolders(folder: Path | str) -> list[str]:
    """Names of the folders in ``folder`` that are not hidden, sorted; links to folders count."""
    return sorted(entry.name for entry in visible(folder) if entry.is_dir())


def files_by_class(folder: Path | str, wanted: Callable[[str], bool] = lambda name: True) -> list[str]:
    """List ``<class folder>/<file>``, sorted, of the files whose name is ``wanted``; hidden ones never."""
    return sorted(
        f"{name}/{entry.name}"
        for name in subfolders(folder)
        for entry in visible(f"{folder}/{name}")
        if wanted(entry.name)
    )


def distinct_names(paths: Sequence[tuple[str, ...]]) -> list[str]:
    """Name paths, given as their parts, by the last part and as many before it as make names distinct."""
    for depth in range(1, max(map(len, paths), default=1) + 1):
        names = ["/".join(parts[-depth:]) for parts in paths]
        if len(set(names)) == len(names):
            return names
    return ["/".join(parts) for parts in paths]
