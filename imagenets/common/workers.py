"""Worker processes: one way to start them, to notice that one died, and to end together.

A pass over chunks is PyTorch's DataLoader's. Loading PyTorch takes a second or two; so that nobody waits for
it, plain processes work until it is there. What they do in half a second needs no PyTorch at all.

Interrupts and SIGTERM are left to the main process: terminals, schedulers and torchrun send them to the whole
group. Workers end with it, however it ends, and at once when it gives up: each listens at a pipe whose other
end it alone holds.
"""

from __future__ import annotations

import gc
import math
import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import InvalidStateError, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import closing, contextmanager
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from imagenets.common.errors import InputError

if TYPE_CHECKING:  # PyTorch takes seconds to load
    from torch.utils.data import Dataset

WORKER_DIED = "a worker process died; out of memory? Try again with fewer --workers"

# How PyTorch's DataLoader begins its RuntimeError for a worker that ended; any other is the worker's own.
_LOADER_NOTICED = "DataLoader worker (pid"

# Seconds that a pass may take without PyTorch.
_WITHOUT_PYTORCH = 0.5

_CGROUPS, _OWN_GROUPS = Path("/sys/fs/cgroup"), Path("/proc/self/cgroup")

Mapper = Callable[[Callable[[Any], Any], Iterable[Any]], Iterable[Any]]
Item = TypeVar("Item", covariant=True)


class Chunks(Protocol[Item]):
    """A map-style data set, as torch.utils.data.DataLoader takes it."""

    def __len__(self) -> int:
        """Return the number of chunks."""

    def __getitem__(self, index: int) -> Item:
        """Make one chunk."""


class Lifeline:
    """What ties workers that are forked from now on to this process; ``cut`` ends them at once."""

    def __init__(self) -> None:
        """Open the pipe."""
        self._reading, self._writing = os.pipe()
        self._whole = True

    def begin_worker(self) -> None:
        """Do what a worker does first."""
        os.close(self._writing)
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        sys.excepthook = _unless_parent_left
        threading.Thread(target=self._leave_with_parent, daemon=True).start()
        # What was loaded before the fork stays; to go through it for garbage takes time, and copies it.
        gc.freeze()

    def _leave_with_parent(self) -> None:
        os.read(self._reading, 1)  # nothing is ever written: it returns when the other end is closed
        os._exit(0)

    def cut(self) -> None:
        """End the workers that are still there."""
        if self._whole:
            self._whole = False
            os.close(self._writing)
            os.close(self._reading)


def _unless_parent_left(
    kind: type[BaseException], error: BaseException, traceback: TracebackType | None
) -> None:
    """Print an error of a worker's thread, but not that its parent ended while a tensor was handed over."""
    if not issubclass(kind, EOFError | OSError):
        sys.__excepthook__(kind, error, traceback)


@contextmanager
def process_map(
    workers: int, begin: Callable[[], None] | None = None, chunksize: int = 8
) -> Iterator[Mapper]:
    """Give a ``map`` that works on ``workers`` processes (0: in this one), in order.

    Each worker is handed ``chunksize`` items at a time; the rest is as in ``process_pool``.
    """
    if workers == 0:
        yield map
        return
    with process_pool(workers, begin) as pool:
        yield partial(pool.map, chunksize=chunksize)


@contextmanager
def process_pool(workers: int, begin: Callable[[], None] | None = None) -> Iterator[ProcessPoolExecutor]:
    """Give a pool of processes, each of which calls ``begin`` first.

    They are there when this returns, forked before the caller's process has threads. Raises InputError when
    one of them dies.
    """
    lifeline, usual = Lifeline(), threading.excepthook
    pool = ProcessPoolExecutor(workers, multiprocessing.get_context("fork"), partial(_begin, lifeline, begin))
    try:
        pool.submit(int).result()
        # The workers have this end too. Were it open here, the pool would wait for ever for the rest of what
        # a worker was handing over when it was cut off.
        pool._result_queue._writer.close()  # type: ignore[attr-defined]
        yield pool
    except BrokenProcessPool as error:
        lifeline.cut()  # the pool waits for the others
        raise InputError(WORKER_DIED) from error
    except BaseException:
        threading.excepthook = _unless_cancelled
        lifeline.cut()
        raise
    finally:
        pool.shutdown(cancel_futures=True)
        lifeline.cut()
        threading.excepthook = usual


def _unless_cancelled(error: threading.ExceptHookArgs) -> None:
    """Print a thread's error, but not the pool's that a cancelled item cannot be told of dead workers."""
    if error.exc_type is not InvalidStateError:
        threading.__excepthook__(error)


def _begin(lifeline: Lifeline, begin: Callable[[], None] | None) -> None:
    _begin_tied(lifeline, begin)


def _begin_tied(lifeline: Lifeline, begin: Callable[[], None] | None, number: int = 0) -> None:
    """Begin a worker; a DataLoader tells it its number."""
    lifeline.begin_worker()
    if begin is not None:
        begin()


def load_chunks(dataset: Chunks[Item], workers: int) -> Iterator[Item]:
    """Go through a data set's chunks in order, loaded by ``workers`` processes (0: this one).

    The processes are those of PyTorch's DataLoader, and plain ones until PyTorch is loaded. Raises InputError
    when one of them dies.
    """
    count = len(dataset)
    if workers == 0 or count == 0:
        yield from (dataset[i] for i in range(count))
        return
    made = {} if _pytorch_is_loaded() else _made_while_pytorch_loads(dataset, min(workers, count))
    rest = [i for i in range(count) if i not in made]
    if not rest:
        yield from (made.pop(i) for i in range(count))
        return
    with closing(_loaded(dataset, min(workers, len(rest)), None, WORKER_DIED, sampler=rest)) as loaded:
        yield from (made.pop(i) if i in made else next(loaded) for i in range(count))


def _pytorch_is_loaded() -> bool:
    return "torch" in sys.modules


def _made_while_pytorch_loads(dataset: Chunks[Item], workers: int) -> dict[int, Item]:
    """Make chunks in plain processes until all are made or PyTorch is loaded; give those made, by place."""
    enough = multiprocessing.get_context("fork").RawValue("b", 0)
    with process_pool(workers, partial(_hold, dataset, enough)) as pool:
        shares = [pool.submit(_make, range(first, len(dataset), workers)) for first in range(workers)]
        if wait(shares, _WITHOUT_PYTORCH).not_done:
            _load_pytorch()
        enough.value = 1
        return {i: chunk for share in shares for i, chunk in share.result().items()}


def _load_pytorch() -> None:
    """Import what a DataLoader needs; looking for garbage meanwhile would take a fifth of the time."""
    collects = gc.isenabled()
    gc.disable()
    try:
        with _signals_answered_later():
            import torch.utils.data  # noqa: F401
    finally:
        if collects:
            gc.enable()


@contextmanager
def _signals_answered_later() -> Iterator[None]:
    """Keep an interrupt or SIGTERM until the end: among a package's callbacks it would be lost."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    arrived: list[int] = []
    usual = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    kept = {number: handler for number, handler in usual.items() if callable(handler)}
    for number in kept:
        signal.signal(number, lambda number, _: arrived.append(number))
    try:
        yield
    finally:
        for number, handler in kept.items():
            signal.signal(number, handler)
    if arrived:
        signal.raise_signal(arrived[0])


# In a plain process: the data set, and a number that is not 0 when no further chunk is to be begun.
_held: tuple[Chunks[Any], Any]


def _hold(dataset: Chunks[Any], enough: Any) -> None:  # noqa: ANN401
    global _held
    _held = dataset, enough


def _make(places: Iterable[int]) -> dict[int, Any]:
    dataset, enough = _held
    made: dict[int, Any] = {}
    for i in places:
        if enough.value:
            break
        made[i] = dataset[i]
    return made


def load_tensors(
    dataset: Dataset[Item],
    workers: int,
    *,
    keys: Iterable[Any] | None = None,
    begin: Callable[[], None] | None = None,
    ahead: int = 2,
    pin: bool = False,
) -> Iterator[Item]:
    """Go through the items of a data set of tensors in the order of ``keys`` (by default 0, 1, ...).

    PyTorch's DataLoader has ``workers`` processes (0: this one) make them, each ``ahead`` of their use, after
    it has called ``begin``. ``pin`` puts tensors where CUDA copies them from at once. None of this process's
    random numbers are used. Raises InputError when a worker dies: tensors travel through shared memory, which
    containers have little of, so the message tells how much there is.
    """
    import torch

    yield from _loaded(
        dataset,
        workers,
        begin,
        f"{WORKER_DIED}; they also share {_shared_memory()}",
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

    lifeline = Lifeline()
    loader: DataLoader[Any] = DataLoader(
        dataset,
        batch_size=None,
        collate_fn=_unchanged,
        num_workers=workers,
        multiprocessing_context="fork" if workers else None,
        worker_init_fn=partial(_begin_tied, lifeline, begin),
        **options,
    )
    try:
        arriving = iter(loader)  # kept until the line is cut: when it goes, it waits for its workers
        yield from arriving
    except RuntimeError as error:
        if not str(error).startswith(_LOADER_NOTICED):
            raise
        raise InputError(died) from error
    finally:
        lifeline.cut()


def _shared_memory() -> str:
    status = os.statvfs("/dev/shm")
    return f"{status.f_blocks * status.f_frsize >> 20} MB of memory in /dev/shm"


def _unchanged(chunk: Any) -> Any:  # noqa: ANN401
    return chunk


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
    """CPU quota that one control group sets, in cores; inf where it sets none."""
    for read in (_quota_v2, _quota_v1):
        try:
            quota, period = read(folder)
        except (OSError, ValueError):  # no such file, or "max"
            continue
        if quota > 0 and period > 0:
            return quota / period
    return math.inf


def _quota_v2(folder: Path) -> tuple[int, int]:
    quota, period = (folder / "cpu.max").read_text(encoding="utf-8").split()
    return int(quota), int(period)


def _quota_v1(folder: Path) -> tuple[int, int]:
    names = ("cpu.cfs_quota_us", "cpu.cfs_period_us")
    quota, period = (int((folder / name).read_text(encoding="utf-8")) for name in names)
    return quota, period
