"""Files and folders that appear under their final name only when they are complete."""

from __future__ import annotations

import errno
import os
import re
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from imagenets.common.errors import InputError

_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_TEMPORARY = re.compile(r"\.[0-9a-f]{16}\.tmp")
_POINTER = b"version https://git-lfs"


@contextmanager
def whole_file(path: Path, lasting: bool = True) -> Iterator[Path]:
    """Yield a temporary path beside ``path``; on success it is renamed to ``path``, on any error removed.

    The temporary file lies in the same folder, so that the rename is atomic, and is made with the
    permissions of the user's umask. Unless it is to be ``lasting``, a machine that loses power may leave it
    empty: for many small files that can be made again, waiting for the disk would take most of the time.
    """
    temporary = path.with_name(f".{secrets.token_hex(8)}.tmp")
    try:
        yield temporary
        if lasting:
            with temporary.open("rb") as file:
                os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        # Name the file that the user knows. An error without a name may concern another file, except for a
        # full disk, which is the one we write to.
        if error.filename == str(temporary) or error.errno in _FULL:
            error.filename = str(path)
        raise
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def write_whole(path: Path, content: bytes | str, lasting: bool = True) -> None:
    """Write ``content`` (text as UTF-8) to ``path``, whole or not at all, as ``whole_file``.

    File names that are not UTF-8 appear in text as escapes, ``\\udcff``, which JSON reads back.
    """
    with whole_file(path, lasting) as temporary:
        temporary.write_bytes(
            content.encode(errors="backslashreplace") if isinstance(content, str) else content
        )


def refuse_pointer(path: Path) -> None:
    """Refuse what Git LFS leaves in place of a large file that was not fetched.

    Raises InputError, naming the file and the cure, and OSError when it cannot be read.
    """
    with path.open("rb") as file:
        if file.read(len(_POINTER)) == _POINTER:
            raise InputError(f"{path}: a pointer of Git LFS, not the file itself; fetch it with git lfs pull")


def remove_leftovers(folder: Path) -> None:
    """Remove the temporary files that killed processes have left in a folder and below.

    Call it only while the folder is locked against other runs, which may be writing such files.
    """
    for root, _, names in os.walk(folder):
        for name in filter(_TEMPORARY.fullmatch, names):
            Path(root, name).unlink(missing_ok=True)


@contextmanager
def whole_folder(path: Path) -> Iterator[Path]:
    """Yield a temporary folder beside ``path``; on success it is renamed to ``path``, on any error removed.

    Raises InputError if this name exists already.
    """
    if os.path.lexists(path):
        raise InputError(f"{path}: exists already; name a new folder")
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{secrets.token_hex(8)}.tmp")
    temporary.mkdir()
    try:
        yield temporary
        temporary.rename(path)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
