"""The benchmark's official lists: where they are on this machine (SPEC section 3)."""

from __future__ import annotations

import os
from pathlib import Path

from imagenets.classes import MODES


def cache_folder() -> Path:
    """``$XDG_CACHE_HOME/imagenets``, else ``~/.cache/imagenets``."""
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "imagenets"


def categories_path(mode: str) -> str:
    """Relative path of a mode's list of classes."""
    return f"categories/ImageNetS_categories_im{mode}.txt"


def categories_at_hand(mode: str) -> list[str] | None:
    """Read a mode's wnids from ``$IMAGENETS_LISTS`` or the user's cache; None when they are not there.

    Nothing is downloaded. A list of another length than the mode's is not used.
    """
    folder = os.environ.get("IMAGENETS_LISTS") or cache_folder()
    try:
        wnids = (Path(folder) / categories_path(mode)).read_text(encoding="utf-8").split()
    except (OSError, UnicodeDecodeError):
        return None
    return wnids if len(set(wnids)) == len(wnids) == MODES[mode].classes else None
