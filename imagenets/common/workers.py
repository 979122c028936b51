"""Worker processes: how they start, how one that died is noticed, and how they end.

Signals that end a job are blocked in workers: terminals, schedulers and torchrun send them to all of its
processes, and the main one decides what happens. Workers end with it, however it ends (PR_SET_PDEATHSIG).
"""

from __future__ import annotations

import atexit
import ctypes
import gc
import math
import multiprocessing
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol, TypeVar

from imagenets.common.errors import InputError
from imagenets.common.torchrun import Place, place

if TYPE_CHECKING:  # PyTorch takes seconds to load
    from multiprocessing.process import BaseProcess

    from torch.utils.data import Dataset

WORKER_DIED = "a worker process died; out of memory? Try again with fewer workers"

# How PyTorch's DataLoader begins its RuntimeError for a worker that ended; any other is the worker's own.
_LOADER_NOTICED = "DataLoader worker (pid"
# Seconds that workers have to finish their current item when the pass ends early.
_PATIENCE = 1.0
_OF_THE_JOB = {signal.SIGINT, signal.SIGTERM, signal.SIGUSR1}
_LEAVE = signal.SIGUSR2  # asks a worker of a DataLoader to end at once
_PR_SET_PDEATHSIG = 1

_CGROUPS, _OWN_GROUPS = Path("/sys/fs/cgroup"), Path("/proc/self/cgroup")

Mapper = Callable[[Callable[[Any], Any], Iterable[Any]], Iterable[Any]]
Item = TypeVar("Item", covariant=True)
# Forking is fastest. A process with threads of CUDA and NCCL must not fork; then a server without threads
# does it.
Start = Literal["fork", "forkserver"]


class Chunks(Protocol[Item]):
    """A map-style data set, as torch.utils.data.DataLoader takes it."""

    def __len__(self) -> int:
        """Return the number of chunks."""

    def __getitem__(self, index: int) -> Item:
        """Make one chunk."""


def die_with_parent() -> None:
    """Have the kernel kill this process when the one that started it ends."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def _begin_worker(begin: Callable[[], None] | None, number: int = 0) -> None:
    """Prepare a worker; a DataLoader passes its number."""
    die_with_parent()
    signal.signal(_LEAVE, lambda *_: os._exit(0))
    # multiprocessing's thread that hands tensors over prints a traceback when their reader was interrupted.
    sys.excepthook = lambda *_: None
    parent = multiprocessing.parent_process()
    if parent is None or not parent.is_alive():  # it ended before prctl was called
        os._exit(0)
    # What was loaded before the fork stays; collecting garbage in it takes time, and copies its pages.
    gc.freeze()
    if begin is not None:
        begin()


@contextmanager
def _starting_workers() -> Iterator[list[BaseProcess]]:
    """Start workers inside: signals of the job stay blocked in them. Yields a list that receives them."""
    started: list[BaseProcess] = []
    before = set(multiprocessing.active_children())
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, _OF_THE_JOB)
    try:
        yield started
    finally:
        started += set(multiprocessing.active_children()) - before
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)


@contextmanager
def process_map(
    workers: int, begin: Callable[[], None] | None = None, chunksize: int = 8
) -> Iterator[Mapper]:
    """Yield a ``map`` that works on ``workers`` processes (0: in this one), in order.

    Each worker is handed ``chunksize`` items at a time; the rest is as in ``process_pool``.
    """
    if workers == 0:
        yield map
        return
    with process_pool(workers, begin) as pool:
        yield partial(pool.map, chunksize=chunksize)


@contextmanager
def process_pool(
    workers: int, begin: Callable[[], None] | None = None, start: Start = "fork"
) -> Iterator[ProcessPoolExecutor]:
    """Yield a pool of processes, each of which calls ``begin`` first.

    Forked ones exist when this returns, before the caller's process has threads. Raises InputError if one
    of them dies. After any error all have ended before it is raised.
    """
    context = multiprocessing.get_context(start)
    pool = ProcessPoolExecutor(workers, context, partial(_begin_worker, begin))
    try:
        with _starting_workers() as started:
            pool.submit(int).result()
        yield pool
        pool.shutdown()
    except BaseException as error:
        pool.shutdown(wait=False, cancel_futures=True)
        _end(started)
        if isinstance(error, BrokenProcessPool):
            raise InputError(WORKER_DIED) from error
        raise


def _end(processes: Iterable[BaseProcess]) -> None:
    """Wait until processes have finished their current item; kill those that take too long."""
    deadline = time.monotonic() + _PATIENCE
    for process in processes:
        process.join(max(0.0, deadline - time.monotonic()))
        process.kill()
        process.join()


def load_chunks(dataset: Chunks[Item], workers: int) -> Iterator[Item]:
    """Yield the chunks of a data set in order, loaded by ``workers`` processes (0: this one).

    Raises InputError when one of them dies.
    """
    count = len(dataset)
    if workers == 0 or count == 0:  # without PyTorch, which takes seconds to load
        yield from (dataset[i] for i in range(count))
        return
    yield from _loaded(dataset, min(workers, count), None, WORKER_DIED)


def load_tensors(
    dataset: Dataset[Item],
    workers: int,
    *,
    keys: Iterable[Any] | None = None,
    begin: Callable[[], None] | None = None,
    ahead: int = 2,
    pin: bool = False,
    start: Start = "fork",
) -> Iterator[Item]:
    """Yield the items of a data set of tensors in the order of ``keys`` (default: 0, 1, ...).

    PyTorch's DataLoader has ``workers`` processes (0: this one) make them, each ``ahead`` items in advance,
    after a call of ``begin``. ``pin`` puts tensors into pinned memory, for fast copies to CUDA. No random
    numbers of this process are used. Raises InputError if a worker dies: tensors pass through shared memory,
    which is small in containers, so the message says how much there is.
    """
    import torch

    yield from _loaded(
        dataset,
        workers,
        begin,
        f"{WORKER_DIED}; they also share {_shared_memory()}",
        multiprocessing_context=start if workers else None,
        sampler=keys,
        prefetch_factor=ahead if workers else None,
        pin_memory=pin,
        generator=torch.Generator(),
    )


def _loaded(
    dataset: Any,  # noqa: ANN401
    workers: int,
    begin: Callable[[], None] | None,
    died: str,
    **options: Any,  # noqa: ANN401
) -> Generator[Any, None, None]:
    from torch.utils.data import DataLoader

    loader: DataLoader[Any] = DataLoader(
        dataset,
        batch_size=None,
        collate_fn=_unchanged,
        num_workers=workers,
        worker_init_fn=partial(_begin_worker, begin),
        **{"multiprocessing_context": "fork" if workers else None} | options,
    )
    with _starting_workers() as started:
        arriving = iter(loader)
    # If nobody ended the pass, Python's end sends workers a SIGTERM, which they have blocked.
    at_exit = partial(_ask_to_leave, started)
    atexit.register(at_exit)
    try:
        yield from arriving
    except BaseException as error:
        traceback.clear_frames(error.__traceback__)  # they hold the iterator that is deleted below
        if isinstance(error, RuntimeError) and str(error).startswith(_LOADER_NOTICED):
            raise InputError(died) from error
        raise
    finally:
        # When deleted, the iterator ends its pinning thread, then its workers, and waits for them.
        impatience = threading.Timer(_PATIENCE, _ask_to_leave, [started])
        if not sys.is_finalizing():  # Python would wait forever for a thread that starts then
            impatience.start()
        del arriving
        impatience.cancel()
        atexit.unregister(at_exit)


def _ask_to_leave(processes: Iterable[BaseProcess]) -> None:
    for process in processes:
        if process.pid is not None and process.is_alive():
            os.kill(process.pid, _LEAVE)


def _shared_memory() -> str:
    status = os.statvfs("/dev/shm")
    return f"{status.f_blocks * status.f_frsize >> 20} MB of memory in /dev/shm"


def _unchanged(chunk: Any) -> Any:  # noqa: ANN401
    return chunk


def default_workers(most: int | None = None) -> int:
    """Workers for this process: one per core, shared equally by torchrun's processes on this machine."""
    share = max(1, available_cores() // (place() or Place()).local_number)
    return share if most is None else min(share, most)


def available_cores() -> int:
    """Cores that this process may use: its affinity, and its control groups' quota, which containers have."""
    return max(1, math.ceil(min(len(os.sched_getaffinity(0)), _quota())))


def _quota() -> float:
    """Smallest CPU quota, in cores, of this process's control group and those above it; inf without one."""
    try:
        groups = _OWN_GROUPS.read_text(encoding="utf-8").splitlines()
    except OSError:
        return math.inf
    quotas = [math.inf]
    for group in groups:
        _, controllers, place = group.split(":", 2)
        if controllers and "cpu" not in controllers.split(","):
            continue
        root = _CGROUPS / "cpu" if controllers else _CGROUPS
        inner = root / place.lstrip("/")
        folders = [inner, *inner.parents]
        quotas += [_quota_of(folder) for folder in folders[: folders.index(root) + 1]]
    return min(quotas)


def _quota_of(folder: Path) -> float:
    """CPU quota that one control group sets, in cores; inf if it sets none."""
    for names in (("cpu.max",), ("cpu.cfs_quota_us", "cpu.cfs_period_us")):  # of version 2, and 1
        with suppress(OSError, ValueError):  # no such file, or "max"
            text = " ".join((folder / name).read_text(encoding="utf-8") for name in names)
            quota, period = map(int, text.split())
            if quota > 0 and period > 0:
                return quota / period
    return math.inf
