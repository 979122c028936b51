"""One run at a time in a folder."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from imagenets.common.errors import InputError

# File systems without flock (some Lustre and NFS mounts): runs continue there without the lock.
_NO_FLOCK = {errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOLCK}


@contextmanager
def locked(path: Path, *, wait: bool = False) -> Iterator[None]:
    """Hold the lock file ``path``, and remove it afterwards; its folder must exist.

    The lock (flock) ends with the process, however that ends, and forked workers do not inherit it; a lock
    file that a killed process left behind is taken over. With ``wait``, wait for its holder.

    Raises InputError when another process holds it, and when ``path`` is somebody's file.
    """
    if path.is_file() and path.read_bytes().strip(b"0123456789"):  # earlier versions wrote a process id
        raise InputError(f"{path}: no lock file of this toolbox, move it away")
    lock = FileLock(path, timeout=-1 if wait else 0)
    try:
        lock.acquire()
    except Timeout as error:
        raise InputError(
            f"another run is at work in {path.parent}: wait for it, then run this again"
        ) from error
    except OSError as error:
        if error.errno not in _NO_FLOCK:
            raise
    try:
        yield
    finally:
        path.unlink(missing_ok=True)  # while it is held, or it could be another run's
        lock.release()
