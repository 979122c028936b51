"""Pairs of masks: ground truths ``<wnid>/<name>.png`` and predictions of the same names."""

from __future__ import annotations

import hashlib
import os
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from imagenets.common.errors import InputError, listed, quantity
from imagenets.common.folders import files_by_class, visible

# A line of an official list, ``n1/a.JPEG n2/a.png`` or ``n1/a.JPEG n2/a.JPEG``: the right one counts.
_OFFICIAL_LINE = re.compile(r"\S+/\S+\.JPEG (\S+/\S+)\.(?:png|JPEG)")


@dataclass(frozen=True)
class Pairs:
    """Mask names, sorted, of the form ``<wnid>/<name>.png``, and the folders they lie in on both sides."""

    names: tuple[str, ...]
    gt_dir: Path
    predict_dir: Path

    def fingerprint(self) -> str:
        """Digest of folders, names, sizes and times of the files on both sides; no file is opened.

        A missing file is part of the digest too. Besides the modification time, the time of the last status
        change counts, which a copy that keeps modification times does not carry over.
        """
        digest = hashlib.sha256()
        for folder in (self.gt_dir, self.predict_dir):
            base = os.path.realpath(folder)
            digest.update(f"{base}\0".encode(errors="surrogateescape"))
            for name in self.names:
                digest.update(f"{name} {_identity(f'{base}/{name}')}\0".encode(errors="surrogateescape"))
        return digest.hexdigest()


def _identity(path: str) -> str:
    try:
        status = os.stat(path)  # noqa: PTH116 - called for every mask; a Path each would double its time
    except OSError as error:
        return f"errno {error.errno}"
    return f"{status.st_size} {status.st_mtime_ns} {status.st_ctime_ns}"


def find_pairs(gt_dir: Path, predict_dir: Path, names: Sequence[str] | None = None) -> Pairs:
    """List the pairs under two folders: ``names`` if given, else every mask under ``gt_dir``.

    Predictions without a ground truth are ignored. Missing files are not checked here.

    Raises InputError for a folder that is missing, or a ``gt_dir`` without any mask.
    """
    for folder in (gt_dir, predict_dir):
        if not folder.is_dir():
            raise InputError(f"{folder}: no such folder; files lie in <folder>/<wnid>/")
    return Pairs(_mask_names(gt_dir) if names is None else tuple(sorted(names)), gt_dir, predict_dir)


def check_predict_dir(pairs: Pairs) -> None:
    """Raise InputError if there is no prediction of any name: it must be the wrong folder."""
    folder = pairs.predict_dir
    if any((folder / name).exists() for name in pairs.names):
        return
    stems = {name.removesuffix(".png") for name in pairs.names}
    others = [
        name for name in files_by_class(folder) if name.rpartition(".")[0].removesuffix("_pred") in stems
    ]
    if others:
        first = others[0].rpartition("/")[2]
        found = f"{quantity(len(others), 'file')} with another suffix, such as {first}; {_cure(first)}"
    elif any((folder / Path(name).parent).is_dir() for name in pairs.names):
        found = "the same class folders: these are predictions of other images, of another split?"
    else:
        held = sorted([entry.name for entry in visible(folder)][:3])
        found = f"{', '.join(held) or 'nothing'}; predictions lie in <predict-dir>/<wnid>/<name>.png"
    raise InputError(f"{folder}: no prediction of any of the {len(pairs.names)} ground truths, but {found}")


def _cure(name: str) -> str:
    """Say how predictions that are files like ``name`` become masks."""
    if name.lower().endswith((".jpg", ".jpeg")):
        return "JPEG changes labels, and cannot be converted back: save the predictions as PNGs"
    if name.lower().endswith(".png"):
        return "rename them to <name>.png"
    return "evaluation/convert_masks.py converts .npy and grayscale PNGs"


def _mask_names(gt_dir: Path) -> tuple[str, ...]:
    found = files_by_class(gt_dir, lambda name: name.endswith(".png"))
    if not found:
        held = files_by_class(gt_dir)
        there = f", and there is {held[0]}" if held else ""
        raise InputError(f"{gt_dir}: no masks there; ground truth lies in <gt-dir>/<wnid>/<name>.png{there}")
    return tuple(found)


def stray_masks(gt_dir: Path) -> int:
    """Count the PNGs below a folder that lie beside its class folders or below them; not hidden ones."""
    number = 0
    for place, folders, files in os.walk(gt_dir):
        folders[:] = [name for name in folders if not name.startswith(".")]
        if Path(place).parent != gt_dir:
            number += sum(name.lower().endswith(".png") and not name.startswith(".") for name in files)
    return number


def read_names(path: Path) -> list[str]:
    """Read a list of mask names, one ``<wnid>/<name>.png`` a line; blank lines do not count.

    Official lists work too: the second of their two columns names the mask.

    Raises InputError when the file cannot be read as such a list, holds no name, or a name twice.
    """
    try:
        lines = path.read_text(encoding="utf-8-sig").split("\n")
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: not a text file; it must have one <wnid>/<name>.png a line") from error
    numbered = [(i, _mask_of_line(line.strip())) for i, line in enumerate(lines, start=1) if line.strip()]
    problems = [f"line {i}: {name!r}" for i, name in numbered if not _is_mask_name(name)]
    if problems:
        raise InputError(f"{path}: {len(problems)} lines are not <wnid>/<name>.png:\n{listed(problems)}")
    names = [name for _, name in numbered]
    if not names:
        raise InputError(f"{path}: it is empty; it must have one <wnid>/<name>.png a line")
    repeated = [name for name, count in Counter(names).items() if count > 1]
    if repeated:
        raise InputError(f"{path}: {len(repeated)} names are in it more than once:\n{listed(repeated)}")
    return names


def _mask_of_line(line: str) -> str:
    official = _OFFICIAL_LINE.fullmatch(line)
    return line if official is None else f"{official[1]}.png"


def _is_mask_name(name: str) -> bool:
    """Is this the canonical spelling, folder/file? Another could name the same mask a second time."""
    folder, _, file = name.partition("/")
    return folder not in ("", ".", "..") and file.endswith(".png") and "/" not in file and "\0" not in name
