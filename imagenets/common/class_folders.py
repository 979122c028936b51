"""Folders of class folders, ``<folder>/<wnid>/<file>``: what lies in them, hidden things left out."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path


def class_folders(folder: Path) -> list[str]:
    """Names of the folders in ``folder``, sorted. Raises OSError when it cannot be read."""
    with os.scandir(folder) as entries:
        return sorted(entry.name for entry in entries if _is_shown(entry.name) and entry.is_dir())


def class_files(folder: Path, wanted: Callable[[str], bool]) -> list[str]:
    """List ``<class folder>/<file>``, sorted, of the files whose name is ``wanted``.

    Raises OSError when a folder cannot be read.
    """
    return sorted(
        f"{wnid}/{name}"
        for wnid in class_folders(folder)
        for name in os.listdir(folder / wnid)  # noqa: PTH208 - a Path for each of a million files
        if _is_shown(name) and wanted(name)
    )


def _is_shown(name: str) -> bool:
    return not name.startswith(".")
