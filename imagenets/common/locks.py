"""One run at a time in a folder."""

from __future__ import annotations

import errno
import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from imagenets.common.errors import InputError

# File systems that know no flock (some Lustre and NFS mounts): one works there without the lock.
_NO_FLOCK = {errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOLCK}
_held: set[int] = set()  # descriptors of the locks of this process


@contextmanager
def locked(path: Path, *, wait: bool = False) -> Iterator[None]:
    """Hold the lock file ``path``, which is removed afterwards; its folder must exist.

    The lock is the kernel's (flock), so that it ends with the process, however that ends; a lock file which
    a killed process left behind is taken over. With ``wait``, wait for its holder.

    Raises InputError when another process holds it, and when it is somebody's file.
    """
    descriptor = _hold(path, wait)
    _held.add(descriptor)
    try:
        yield
    finally:
        _held.discard(descriptor)
        path.unlink(missing_ok=True)  # while it is held: see _hold
        os.close(descriptor)


def _let_go() -> None:
    """Close what a forked worker has inherited: it would hold the lock on after its parent was killed."""
    for descriptor in _held:
        os.close(descriptor)
    _held.clear()


os.register_at_fork(after_in_child=_let_go)


def _hold(path: Path, wait: bool) -> int:
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o666)
        try:
            _flock(descriptor, path, wait)
            if _is_still(path, descriptor):
                if os.pread(descriptor, 21, 0).strip(b"0123456789"):  # a lock file holds a process id
                    raise InputError(f"{path}: no lock file of this toolbox, move it away")
                os.ftruncate(descriptor, 0)
                os.write(descriptor, str(os.getpid()).encode())
                return descriptor
        except BaseException:
            os.close(descriptor)
            raise
        # Its holder removed the file between our open and our flock: what we hold is nobody's lock.
        os.close(descriptor)


def _flock(descriptor: int, path: Path, wait: bool) -> None:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        holder = os.pread(descriptor, 20, 0).decode("ascii", "replace") or "?"
        raise InputError(
            f"another run (process {holder}) is at work in {path.parent}: wait for it, then run this again"
        ) from error
    except OSError as error:
        if error.errno not in _NO_FLOCK:
            raise


def _is_still(path: Path, descriptor: int) -> bool:
    try:
        return os.path.samestat(path.stat(follow_symlinks=False), os.fstat(descriptor))
    except FileNotFoundError:
        return False
