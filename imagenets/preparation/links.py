"""Symbolic links of a prepared set: their text, whether one is right, how they are made."""

# Paths are plain strings here: there are a million of them, and pathlib would take longer than the disk.
# ruff: noqa: PTH110, PTH114, PTH115, PTH211

from __future__ import annotations

import errno
import os
from functools import lru_cache
from pathlib import Path

from imagenets.common.errors import InputError

_UNSUPPORTED = (errno.EPERM, errno.ENOSYS, errno.EOPNOTSUPP)  # errors of disks without symbolic links


class NoLinksError(InputError):
    """The disk has no symbolic links."""


def link_text(leads_to: str, real_folder: str) -> str:
    """Text of a link in ``real_folder`` (its real path) that leads to the absolute path ``leads_to``.

    It is relative if both lie below one folder other than the root, so that this folder can be moved or
    mounted elsewhere, else absolute.
    """
    parent, name = os.path.split(leads_to)
    return f"{_way(parent, real_folder)}/{name}"


@lru_cache
def _way(target: str, start: str) -> str:
    if os.path.commonpath((target, start)) == os.sep:
        return target
    return os.path.relpath(target, start)


def is_dangling(path: str | Path) -> bool:
    """Is this a broken link?"""
    return os.path.islink(path) and not os.path.exists(path)


def wrong_link(entry: os.DirEntry[str], leads_to: str, says: str) -> str | None:
    """Say why an entry is not a link to the absolute path ``leads_to``; None if it is.

    ``says`` is the text of the link if it were made now: links with this text are not followed.
    """
    if not entry.is_symlink():
        kind = "folder" if entry.is_dir() else "file"
        return f"{entry.path}: a real {kind}, where a link would be made (copied before? then copy again)"
    found = os.readlink(entry.path)
    if found in (says, leads_to) or os.path.realpath(entry.path) == os.path.realpath(leads_to):
        return None
    return f"{entry.path}: a link to {found}, not to {leads_to}"


def make_link(says: str, path: str) -> None:
    """Make a link, also to replace a broken one. Raises NoLinksError if the disk has none."""
    try:
        if os.path.islink(path):
            os.unlink(path)  # noqa: PTH108
        os.symlink(says, path)
    except OSError as error:
        if error.errno not in _UNSUPPORTED:
            raise
        raise NoLinksError(f"{path}: this disk takes no symbolic links ({error.strerror})") from error
