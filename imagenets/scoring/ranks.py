"""The one pass over the masks, shared by the processes that torchrun started, on one machine or several.

Rank 0 does what a single process does; where it would count all masks, it gives every rank a share and
gathers the tables. The other ranks know no arguments and write nothing: they wait for shares to count. A
rank that ends before it should is noticed by the others, whose next exchange with it fails.
"""

from __future__ import annotations

import atexit
import os
import sys
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import numpy as np

from imagenets.common.errors import InputError
from imagenets.common.progress import Show, no_bar
from imagenets.scoring.contingency import (
    ContingencyTable,
    CountPairs,
    Rows,
    count_pairs,
    make_table,
)

if TYPE_CHECKING:
    from imagenets.scoring.pairs import Pairs

_ALL_STARTED_WITHIN = timedelta(minutes=5)
# An exchange waits for the work of other ranks, however long that takes; of one that died, the closed
# connection tells at once.
_NO_LIMIT = timedelta(days=3650)


@dataclass(frozen=True)
class _Job:
    """What rank 0 asks of the others: their shares of these pairs, by this many workers each."""

    pairs: Pairs
    workers: int
    folder: str  # in which relative paths hold


@dataclass(frozen=True)
class _Share:
    """What a rank gives back: the table, with its images' rows, and the files to refuse."""

    table: ContingencyTable
    problems: list[str]


def run_on_ranks(main: Callable[[CountPairs], None]) -> None:
    """Run a script's ``main``, and let the other ranks count for it if torchrun started several processes.

    ``main`` is given the function that counts pairs, and is called in one process alone: this one, or rank
    0. The others return when rank 0 is done, and end with status 1 when it fails. Without torchrun nothing
    of PyTorch is imported here.

    Raises InputError on rank 0 when not all ranks come up.
    """
    if "TORCHELASTIC_RUN_ID" not in os.environ or int(os.environ.get("WORLD_SIZE", "1")) < 2:
        main(count_pairs)
        return
    rank = _join()
    try:
        if rank > 0:
            _serve()
        else:
            # If this raises, rank 0 ends without a word to the others, and that is how they notice.
            main(_count_on_ranks)
            _broadcast(None)
    except BaseException as error:
        atexit.register(_leave, _status(error))
        raise
    _part()


def _part() -> None:
    """Leave the process group, all of whose work is done."""
    import torch.distributed as dist

    dist.destroy_process_group()


def _status(error: BaseException) -> int:
    """Exit status of a process that ends by this exception."""
    if isinstance(error, SystemExit) and isinstance(error.code, int):
        return error.code
    return 130 if isinstance(error, KeyboardInterrupt) else 1


def _leave(status: int) -> None:
    """End now: after an exchange that failed, gloo's threads can abort a process that ends by and by."""
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError):
            stream.flush()
    os._exit(status)


def _join() -> int:
    """Form the process group; return this process's rank."""
    import torch.distributed as dist
    from torch.distributed.distributed_c10d import PrefixStore
    from torch.distributed.rendezvous import rendezvous

    rank, world = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    try:
        # Keys of our own: a script that a torchrun training calls as a command inherits that job's variables.
        store = PrefixStore("imagenets", next(rendezvous("env://", timeout=_ALL_STARTED_WITHIN))[0])
        store.set(f"rank {rank}", "here")
        store.wait([f"rank {other}" for other in range(world)], _ALL_STARTED_WITHIN)
        dist.init_process_group("gloo", store=store, rank=rank, world_size=world, timeout=_NO_LIMIT)
    except RuntimeError as error:
        if rank > 0:
            sys.exit(1)
        raise InputError(
            f"not all of the {world} processes of torchrun came up; to run this script as one process inside "
            "a torchrun job, unset TORCHELASTIC_RUN_ID"
        ) from error
    return rank


def _serve() -> None:
    """Count shares for rank 0 until it is done; exit with 1 when it ends early."""
    while True:
        try:
            job = _broadcast(None)
            if job is None:
                return
            _gather(_count_share(job, no_bar))
        except InputError:  # rank 0 has gone, and told why
            sys.exit(1)


def _count_on_ranks(pairs: Pairs, workers: int, show: Show) -> tuple[ContingencyTable, list[str]]:
    """Count like ``count_pairs``, on all ranks; the table is the same, row for row."""
    job = _Job(pairs, workers, os.getcwd())  # noqa: PTH109 - as it was entered, links and all
    _broadcast(job)
    shares = _gather(_count_share(job, show))
    failures = [f"rank {rank}: {share}" for rank, share in enumerate(shares) if isinstance(share, str)]
    if failures:
        raise InputError("; ".join(failures))
    counted = [share for share in shares if isinstance(share, _Share)]
    rows = [Rows(*(getattr(share.table, name) for name in Rows._fields)) for share in counted]
    # 0 for the images of another's share
    largest = np.sum([share.table.largest_prediction for share in counted], axis=0)
    return make_table(pairs.names, largest, rows), [text for share in counted for text in share.problems]


def _count_share(job: _Job, show: Show) -> _Share | str:
    """Count this rank's images, or say why that cannot be done.

    They are a stretch of the names, so that the shares in order are all images in order.
    """
    import torch.distributed as dist

    rank, world = dist.get_rank(), dist.get_world_size()
    images = len(job.pairs.names)
    share = range(images * rank // world, images * (rank + 1) // world)
    try:
        os.chdir(job.folder)
        return _Share(*count_pairs(job.pairs, job.workers, show, share))
    except InputError as error:
        return str(error)
    except OSError as error:
        return f"{error.filename}: {error.strerror}"


def _broadcast(job: _Job | None) -> _Job | None:
    """Hand rank 0's job to all ranks. Raises InputError when one of them has gone."""
    import torch.distributed as dist

    held: list[_Job | None] = [job]
    try:
        dist.broadcast_object_list(held, src=0)
    except RuntimeError as error:
        raise _gone(error) from error
    return held[0]


def _gather(share: _Share | str) -> list[_Share | str]:
    """Give rank 0 what all ranks found, in order; the others get nothing. InputError when one has gone."""
    import torch.distributed as dist

    shares: list[Any] | None = [None] * dist.get_world_size() if dist.get_rank() == 0 else None
    try:
        dist.gather_object(share, shares, dst=0)
    except RuntimeError as error:
        raise _gone(error) from error
    return shares or []


def _gone(error: RuntimeError) -> InputError:
    reason = str(error).partition("\n")[0]
    return InputError(f"another process of torchrun has ended, out of memory perhaps ({reason})")
