"""The benchmark's official lists: where they are on this machine (SPEC section 3)."""

from __future__ import annotations

import os
from pathlib import Path

from imagenets.classes import MODES
from imagenets.errors import InputError, listed


def cache_folder() -> Path:
    """``$XDG_CACHE_HOME/imagenets``, else ``~/.cache/imagenets``."""
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "imagenets"


def categories_path(mode: str) -> str:
    """Relative path of a mode's list of classes."""
    return f"categories/ImageNetS_categories_im{mode}.txt"


def mapping_path(mode: str, split: str) -> str:
    """Relative path of a mode's list of ``validation`` or ``test`` images."""
    return f"mapping/ImageNetS_im{mode}_mapping_{split}.txt"


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


def mapping_at_hand(mode: str, split: str) -> dict[str, str] | None:
    """Read where each image of ``validation`` or ``test`` lies in ImageNet's val; None without the list.

    Keys are places in the split, values in ImageNet's val, both ``<wnid>/<image>``: the value's wnid is
    ImageNet's own label. Looked for where ``categories_at_hand`` looks; nothing is downloaded.

    Raises InputError when the list is there, but not two such places a line.
    """
    path = Path(os.environ.get("IMAGENETS_LISTS") or cache_folder()) / mapping_path(mode, split)
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except FileNotFoundError:
        return None
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: no text file; get the list again") from error
    rows = [(number, line.split()) for number, line in enumerate(lines, start=1) if line.strip()]
    wrong = [
        f"line {number}: {' '.join(columns)}"
        for number, columns in rows
        if len(columns) != 2 or not all(column.count("/") == 1 for column in columns)
    ]
    if wrong:
        raise InputError(
            f"{path}: {len(wrong)} lines are not two places <wnid>/<image>; get the list again:\n"
            f"{listed(wrong)}"
        )
    return {target: source for _, (source, target) in rows}
