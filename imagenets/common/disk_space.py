"""Check that the disk has enough space, before something is written."""

from __future__ import annotations

import shutil
from pathlib import Path

from imagenets.common.errors import InputError

BLOCK = 4096  # bytes; a file takes whole blocks


def on_disk(size: int) -> int:
    """Bytes that a file of ``size`` bytes takes on the disk."""
    return -(-size // BLOCK) * BLOCK


def readable(size: float) -> str:
    """Format a number of bytes for people: ``1.2 GB``."""
    for unit in ("bytes", "kB", "MB", "GB"):
        if size < 1000:
            return f"{size:.0f} {unit}" if unit == "bytes" else f"{size:.1f} {unit}"
        size /= 1000
    return f"{size:.1f} TB"


def check_room(folder: Path, needed: int, purpose: str) -> None:
    """Raise InputError if the disk of ``folder``, which need not exist yet, has too little space."""
    place = folder.absolute()
    while not place.exists():
        place = place.parent
    free = shutil.disk_usage(place).free
    if needed > free:
        raise InputError(
            f"{purpose} needs {readable(needed)} in {folder}, and only {readable(free)} are free there: "
            "make room, then run the same command again"
        )
