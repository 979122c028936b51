"""Put the masks of an annotation archive in place (docs/benchmark.md, Annotation archives)."""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import shutil
import stat
import zipfile
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from imagenets.classes import MODES
from imagenets.common.disk_space import check_room, on_disk, readable
from imagenets.common.download import discard, download, leftovers, places
from imagenets.common.errors import InputError, listed, problem_of, quantity
from imagenets.common.locks import locked
from imagenets.common.progress import Show, Warn, no_bar, no_warning
from imagenets.common.zip_files import BROKEN_ZIP, read_member
from imagenets.lists import ARCHIVES, Origin
from imagenets.masks import MAX_MASK_BYTES
from imagenets.preparation.image_folders import LOCK, is_empty_file

VALIDATION = "validation-segmentation"
TRAIN_SEMI = "train-semi-segmentation"
STAGING = ".incomplete-masks"  # in a set's folder: mask folders while they are filled

_MASK_MEMBER = re.compile(rf"(?:.*/)?({VALIDATION}|{TRAIN_SEMI})/(.+)", re.DOTALL)
# Begins with a slash, or has a part that is ".." or begins with a drive letter; backslashes separate too.
_ELSEWHERE = re.compile(r"^[/\\]|(^|[/\\])(\.\.([/\\]|$)|[A-Za-z]:)")
_PNG = b"\x89PNG\r\n\x1a\n"
_SYNCERS = 16  # threads that wait for the disk, which then writes several files at once


@dataclass(frozen=True)
class MaskList:
    """The masks of a mode, ``<wnid>/<name>.png``, that its lists name."""

    mode: str
    validation: Sequence[str]
    train_semi: Sequence[str]

    @property
    def by_folder(self) -> dict[str, Sequence[str]]:
        """Masks of each folder, in the order in which the folders are put in place.

        Validation is last: if it exists, an earlier run has finished.
        """
        return {TRAIN_SEMI: self.train_semi, VALIDATION: self.validation}


@dataclass(frozen=True)
class Placed:
    """Result for one mask folder, ``ImageNetS50/validation-segmentation``."""

    folder: str
    masks: int  # 0: there is no such folder
    made: int  # masks made by this run


def put_annotations(
    masks: MaskList,
    save: Path,
    origin: Origin,
    archive: Path | None = None,
    show: Show = no_bar,
    warn: Warn = no_warning,
) -> list[Placed]:
    """Put ``train-semi-segmentation`` and ``validation-segmentation`` in place; each appears only when
    complete.

    Missing masks are added, and empty files, which a crash of the computer can leave, are replaced; nothing
    else is overwritten. The archive is ``archive``, or that of ``origin``, which is downloaded into the set's
    folder and removed at the end. If no mask is missing, nothing is read or downloaded. Raises InputError if
    something else is in the way, if the archive is not available, hostile, damaged or incomplete, if the disk
    is too small, and if another run is working in ``save``.
    """
    root = save / MODES[masks.mode].folder
    lacking = _lacking(masks, root, archive)
    left_behind = (save / LOCK, root / STAGING, *leftovers(_download_path(root, masks.mode)))
    if lacking or any(os.path.lexists(path) for path in left_behind):
        if lacking and archive is not None:
            with _open_archive(archive) as opened:  # refused before anything is written
                _select(opened, archive, masks, no_warning)
        save.mkdir(parents=True, exist_ok=True)
        with locked(save / LOCK):
            lacking = _lacking(masks, root, archive)  # it may have changed since the check
            _fill(masks, root, lacking, origin, archive, show, warn)
    return [
        Placed(f"{root.name}/{name}", len(wanted), len(lacking.get(name, ())))
        if (root / name).exists()
        else Placed(f"{root.name}/{name}", 0, 0)
        for name, wanted in masks.by_folder.items()
    ]


def _fill(
    masks: MaskList,
    root: Path,
    lacking: dict[str, set[str]],
    origin: Origin,
    archive: Path | None,
    show: Show,
    warn: Warn,
) -> None:
    """Put the ``lacking`` masks in place, and remove what an earlier run left behind."""
    root.mkdir(exist_ok=True)
    download_path = _download_path(root, masks.mode)
    try:
        if (root / STAGING).exists():
            shutil.rmtree(root / STAGING)
        if lacking:
            path = archive or _fetch(masks.mode, root, origin, show, warn)
            if origin.official:
                _warn_of_md5(path, masks.mode, warn)
            _extract(masks, path, root, lacking, show, warn)
    except _RefusedArchiveError as error:
        if archive is not None or not leftovers(download_path):
            raise
        discard(download_path)  # useless to the next run
        raise InputError(f"{error}\nIt came from {origin.archive(masks.mode)}, and was removed") from error
    finally:
        with contextlib.suppress(OSError):
            root.rmdir()  # if the run failed
    discard(download_path)


class _RefusedArchiveError(InputError):
    """The content of the archive is wrong."""


def _lacking(masks: MaskList, root: Path, archive: Path | None) -> dict[str, set[str]]:
    """Find the masks to make in each folder. Raises InputError if something is in the way."""
    problems = [
        f"{path}: a link to {path.readlink()}, which is not followed"
        for path in (root, root / STAGING, *places(_download_path(root, masks.mode)))
        if path.is_symlink()
    ]
    if not problems and root.exists() and not root.is_dir():
        problems.append(f"{root}: a file, where a folder would be made")
    lacking: dict[str, set[str]] = {}
    if not problems:
        for name, wanted in masks.by_folder.items():
            absent = {mask for mask in wanted if not _is_filled_file(root / name / mask)}
            problems += _obstacles(root / name, absent)
            if absent:
                lacking[name] = absent
    if problems:
        raise InputError(
            f"{quantity(len(problems), 'thing')} in the way; nothing was written. "
            f"Move them away and run this again:\n{listed(problems)}"
        )
    # Validation comes last: if it exists, the archive of that run had no masks for train-semi.
    given_up = set(lacking) == {TRAIN_SEMI} and archive is None and not os.path.lexists(root / TRAIN_SEMI)
    return {} if given_up else lacking


def _obstacles(folder: Path, absent: set[str]) -> list[str]:
    """List what is in the way of a mask folder, or of masks missing in it."""
    parents = [folder, *sorted({(folder / mask).parent for mask in absent})]
    no_folders = [path for path in parents if path.is_symlink() or (path.exists() and not path.is_dir())]
    if no_folders:
        return [f"{path}: no real folder, where a folder of masks would be made" for path in no_folders]
    there = [folder / mask for mask in sorted(absent) if os.path.lexists(folder / mask)]
    return [f"{path}: no real file, where a mask would be made" for path in there if not is_empty_file(path)]


def _is_filled_file(path: Path) -> bool:
    return not path.is_symlink() and path.is_file() and path.stat().st_size > 0


def _download_path(root: Path, mode: str) -> Path:
    return root / f".{ARCHIVES[mode]}"


def _fetch(mode: str, root: Path, origin: Origin, show: Show, warn: Warn) -> Path:
    """Return the path of a mode's archive: in the mirror's folder, or downloaded, now or earlier."""
    place = origin.archive(mode)
    ways_out = (
        f"Without a network, name a copy: IMAGENETS_MIRROR, a URL or a folder with "
        f"{ARCHIVES[mode]}; or give datapreparation_anno.py the archive itself"
    )
    if isinstance(place, Path):
        if not place.exists():
            raise InputError(f"{place}: No such file.\n{ways_out}")
        return place
    target = _download_path(root, mode)
    if not target.exists():
        try:
            download(place, target, zip_expected=True, show=show, warn=warn)
        except InputError as error:
            raise InputError(f"{error}.\n{ways_out}") from error
    return target


def _warn_of_md5(path: Path, mode: str, warn: Warn) -> None:
    """Compare with what seems to be the MD5 in the official name; it is unconfirmed, so only warn."""
    named = ARCHIVES[mode].removesuffix(".zip").rpartition("-")[2]
    digest = hashlib.md5(usedforsecurity=False)
    with path.open("rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    found = digest.hexdigest()
    if found != named:
        warn(f"{path}: its MD5 is {found}, the official name says {named}; it is used anyway")


def _extract(
    masks: MaskList, path: Path, root: Path, lacking: dict[str, set[str]], show: Show, warn: Warn
) -> None:
    """Unpack into a staging folder; rename each mask folder when complete, or the masks missing in it."""
    staging = root / STAGING
    with _open_archive(path) as archive:
        selected = {
            name: {mask: info for mask, info in members.items() if mask in lacking[name]}
            for name, members in _select(archive, path, masks, warn).items()
            if name in lacking
        }
        for name in lacking:
            if name not in selected and os.path.lexists(root / name):
                raise _RefusedArchiveError(f"{path}: no mask in it for {root / name}, which lacks some")
        members = [
            (staging / n / mask, info) for n, found in selected.items() for mask, info in found.items()
        ]
        _refuse(
            f"{path}: masks of more than {readable(MAX_MASK_BYTES)}, which no mask needs",
            [f"{i.filename}: {readable(i.file_size)}" for _, i in members if i.file_size > MAX_MASK_BYTES],
        )
        check_room(root, sum(on_disk(info.file_size) for _, info in members), "unpacking the masks")
        staging.mkdir()
        try:
            broken = []
            with show(root.name, len(members), unit="mask") as advance:
                for target, info in members:
                    broken += _extract_member(archive, info, target)
                    advance(1)
            _refuse(f"{path}: {len(broken)} masks are broken, get it again", broken)
            with ThreadPoolExecutor(_SYNCERS) as pool:
                list(pool.map(_sync, (target for target, _ in members)))
            for name, found in selected.items():
                _move(staging / name, root / name, found)
        finally:
            shutil.rmtree(staging)


def _refuse(what: str, problems: Sequence[str]) -> None:
    if problems:
        raise _RefusedArchiveError(f"{what}:\n{listed(problems)}")


def _sync(file: Path) -> None:
    """Wait until a file is on the disk: a rename can reach it before the content does."""
    with file.open("rb") as opened:
        os.fsync(opened.fileno())


def _move(staged: Path, folder: Path, masks: Iterable[str]) -> None:
    """Rename a whole folder if there is none, else each of its masks, also over empty ones."""
    if not os.path.lexists(folder):
        staged.rename(folder)
        return
    for mask in masks:
        (folder / mask).parent.mkdir(exist_ok=True)
        (staged / mask).replace(folder / mask)


def _extract_member(archive: zipfile.ZipFile, info: zipfile.ZipInfo, target: Path) -> list[str]:
    """Write one member, a PNG, and check its CRC; return what is wrong with it."""
    try:
        content = read_member(archive, info)
    except BROKEN_ZIP as error:
        return [f"{info.filename}: {error}"]
    if not content.startswith(_PNG):
        return [f"{info.filename}: {'no PNG' if content else 'empty'}"]
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_bytes(content)
    return []


@contextmanager
def _open_archive(path: Path) -> Iterator[zipfile.ZipFile]:
    try:
        archive = zipfile.ZipFile(path)
    except BROKEN_ZIP as error:
        if isinstance(error, OSError) and error.filename:  # not opened: nothing is known of its content
            raise InputError(problem_of(error, path)) from error
        raise _RefusedArchiveError(f"{path}: not a complete ZIP ({error}): download it again") from error
    with archive:
        yield archive


def _select(
    archive: zipfile.ZipFile, path: Path, masks: MaskList, warn: Warn
) -> dict[str, dict[str, zipfile.ZipInfo]]:
    """Find each folder's masks in the archive, below any other folder.

    Raises InputError for members that lead elsewhere, duplicate masks and missing ones. If all masks of
    train-semi are missing, that folder is left out with a warning.
    """
    # Other programs would unpack these elsewhere; we write only names from the lists.
    hostile = [
        f"{info.filename!r}"
        for info in archive.infolist()
        if _ELSEWHERE.search(info.orig_filename)
        or stat.S_IFMT(info.external_attr >> 16) not in (0, stat.S_IFREG, stat.S_IFDIR)
    ]
    _refuse(
        f"{path}: refused, {quantity(len(hostile), 'member')} with an absolute path, '..' or a drive letter, "
        "or no regular file",
        hostile,
    )
    wanted = {name: set(listed_masks) for name, listed_masks in masks.by_folder.items()}
    found: dict[str, dict[str, zipfile.ZipInfo]] = {name: {} for name in wanted}
    unknown, duplicates = [], []
    for info in archive.infolist():
        match = _MASK_MEMBER.fullmatch(info.filename)
        if match is None or info.is_dir():
            continue
        folder, mask = match.groups()
        if mask not in wanted[folder]:
            unknown.append(info.filename)
        elif mask in found[folder]:
            duplicates.append(f"{info.filename}, and {found[folder][mask].filename}")
        else:
            found[folder][mask] = info
    _refuse(f"{path}: {len(duplicates)} masks are in it twice", duplicates)
    if unknown:
        warn(f"{path}: skipped {len(unknown)} members that are not in the list:\n{listed(unknown)}")
    if masks.train_semi and not found[TRAIN_SEMI]:
        warn(f"{path}: it has no masks for train-semi")
        del found[TRAIN_SEMI]
    missing = [
        f"{name}/{mask}" for name in found for mask in masks.by_folder[name] if mask not in found[name]
    ]
    _refuse(
        f"{path}: {len(missing)} masks of mode {masks.mode} are missing (another mode's archive?)", missing
    )
    return found
