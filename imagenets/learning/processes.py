"""This process among those that torchrun started; without torchrun, the only one."""

from __future__ import annotations

import ctypes
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from imagenets.common.errors import InputError, problem_of
from imagenets.common.torchrun import Place, inside_other_job, place
from imagenets.common.workers import Start

Result = TypeVar("Result")

# Rank 0 may score a validation set for hours while the others wait for it. They do so over gloo, where closed
# connections show a process that has ended, and need no timeout.
_NO_TIMEOUT = timedelta(days=365)
# glibc's mallopt: blocks up to this size come from the heap, which is not given back up to that size. Before
# 2.35 there was a limit to the first.
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
_KEPT_BLOCK, _KEPT_BLOCK_OF_OLD, _KEPT_HEAP = 512 << 20, 32 << 20, 2**31 - 1
# What gloo says of a connection to a process that has ended.
_GONE = ("Connection closed by peer", "Connection reset by peer", "Broken pipe", "Connection refused")


def _never() -> bool:
    return False


@dataclass(frozen=True)
class Processes:
    """This process (``rank`` of ``number``) and the device that it works on.

    ``waiting`` is the group for what is no tensor of the device, in which one process may wait for another
    for as long as it takes (None: the default group). ``stop_asked`` says whether this process was asked to
    stop.
    """

    rank: int
    number: int
    device: torch.device
    waiting: dist.ProcessGroup | None = None
    stop_asked: Callable[[], bool] = _never

    @property
    def first(self) -> bool:
        """Is this the process that prints and writes?"""
        return self.rank == 0

    @property
    def start(self) -> Start:
        """How workers are started: not forked off a process in which CUDA and NCCL have threads."""
        return "forkserver" if self.device.type == "cuda" else "fork"

    def sum(self, values: torch.Tensor) -> torch.Tensor:
        """Add a tensor up over all processes; each gets the sum."""
        if self.number > 1:
            values = values.clone()
            dist.all_reduce(values)
        return values

    def any(self, *flags: bool) -> list[bool]:
        """Return of each flag whether it is set in any process. Does not wait for the device."""
        if self.number == 1:
            return list(flags)
        held = torch.tensor(flags, dtype=torch.uint8)
        dist.all_reduce(held, dist.ReduceOp.MAX, self.waiting)
        return [bool(flag) for flag in held]

    def gathered(self, value: Result) -> list[Result]:
        """Gather what all processes hold, in the order of their ranks."""
        if self.number == 1:
            return [value]
        values: list[Any] = [None] * self.number
        dist.all_gather_object(values, value, self.waiting)
        return values

    def together(self, check: Callable[[], Result]) -> Result:
        """Run ``check`` in all processes.

        Where it fails in any, raises InputError in all, with the messages of all, each once.
        """
        try:
            result, problem = check(), ""
        except (InputError, OSError) as error:
            problem = problem_of(error)
        self.refuse(problem)
        return result

    def refuse(self, problem: str) -> None:
        """Raise InputError in all processes if any of them has a problem, as ``together`` does."""
        problems = [text for text in dict.fromkeys(self.gathered(problem)) if text]
        if problems:
            raise InputError("\n".join(problems))

    def from_first(self, make: Callable[[], Result]) -> Result:
        """Call ``make`` in the first process and send its result to all; errors as in ``together``."""
        made = self.together(lambda: make() if self.first else None)
        if self.number == 1:
            return made  # type: ignore[return-value]
        held: list[Any] = [made]
        dist.broadcast_object_list(held, src=0, group=self.waiting)
        result: Result = held[0]
        return result


def described(processes: Processes) -> str:
    """Say how many processes there are, on which devices, and over what batch norms take their means."""
    if processes.number == 1:
        return f"1 process on {processes.device.type}"
    over = "all images" if processes.device.type == "cuda" else "each process's own images"
    return f"{processes.number} processes on {processes.device.type}, batch norms over {over}"


@contextmanager
def started(device: str = "auto", stop_asked: Callable[[], bool] = _never) -> Iterator[Processes]:
    """Join the processes of torchrun: by NCCL on CUDA, by gloo on CPUs.

    ``device`` is ``auto`` (CUDA where there is one), ``cpu`` or ``cuda``. On an error the group is left as it
    is: to destroy it would wait for the other processes, which wait for this one. So the caller should end
    the process then, which the others notice.

    Raises InputError when CUDA is asked for and not there, when a machine has fewer GPUs than processes, when
    this process is none of torchrun's but called by one, and when another process has ended.
    """
    if inside_other_job():
        raise InputError(
            "called by a process of a torchrun job, which it would join; to run it on its own, remove the "
            "job's variable: env -u TORCHELASTIC_RUN_ID python …"
        )
    here = place() or Place()
    chosen = _device(device, here.local_rank)
    if chosen.type == "cpu":
        _keep_memory()
    if here.number == 1:
        yield Processes(0, 1, chosen, stop_asked=stop_asked)
        return
    try:
        joined = _joined(here, chosen, stop_asked)
        yield joined
        dist.barrier(joined.waiting)
    except RuntimeError as error:
        if not (isinstance(error, dist.DistError) or any(words in str(error) for words in _GONE)):
            raise
        raise InputError(
            "another process of torchrun has ended; what it said stands above, or it was killed"
        ) from error
    dist.destroy_process_group()


def _joined(here: Place, device: torch.device, stop_asked: Callable[[], bool]) -> Processes:
    if device.type == "cpu":
        dist.init_process_group("gloo", timeout=_NO_TIMEOUT)
        return Processes(here.rank, here.number, device, None, stop_asked)
    dist.init_process_group("nccl")
    waiting = dist.new_group(backend="gloo", timeout=_NO_TIMEOUT)
    assert isinstance(waiting, dist.ProcessGroup)
    return Processes(here.rank, here.number, device, waiting, stop_asked)


def _keep_memory() -> None:
    """Have freed memory kept for the next batch: got anew it is cleared, page by page, at every layer.

    That is a sixth of the time of a ResNet-18. It takes no more memory than the largest batch did.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):  # another C library than glibc
        return
    if not mallopt(_M_MMAP_THRESHOLD, _KEPT_BLOCK):
        mallopt(_M_MMAP_THRESHOLD, _KEPT_BLOCK_OF_OLD)
    mallopt(_M_TRIM_THRESHOLD, _KEPT_HEAP)


def _device(name: str, local: int) -> torch.device:
    if name == "cpu" or (name == "auto" and not torch.cuda.is_available()):
        return torch.device("cpu")
    if not torch.cuda.is_available():
        raise InputError("PyTorch finds no CUDA device here; take the CPU as device")
    if local >= torch.cuda.device_count():
        raise InputError(
            f"process {local} of this machine has no GPU of its own, there are {torch.cuda.device_count()}: "
            "have torchrun start fewer processes per machine"
        )
    torch.cuda.set_device(local)
    return torch.device("cuda", local)


def synchronised(network: nn.Module) -> nn.Module:
    """Turn all batch norms of a network into PyTorch's SyncBatchNorm, which keep the tensors.

    The conversion is timm's, which keeps the activation that some of its batch norms hold.
    """
    from timm.layers.norm_act import convert_sync_batchnorm  # takes a second to load

    converted: nn.Module = convert_sync_batchnorm(network)  # type: ignore[no-untyped-call]
    return converted


def same_buffers(network: nn.Module, processes: Processes) -> None:
    """Copy the first process's running statistics to all."""
    if processes.number > 1:
        for buffer in network.buffers():
            dist.broadcast(buffer, src=0)


def join(network: nn.Module, processes: Processes, *, unused: bool = False) -> nn.Module:
    """Wrap a network so that its gradients are the mean over all processes; as it is where there is one.

    On CUDA batch norms become synchronised ones, over the batch of all processes. On CPUs, where nobody
    trains in earnest, each process normalises its own share, and running statistics are the first process's:
    all take them before each step, and by ``same_buffers`` before an evaluation.
    Tensors that take no part in the loss must not require gradients, or ``unused`` be said (it costs time).
    """
    if processes.number == 1:
        return network
    cuda = processes.device.type == "cuda"
    if cuda:
        network = synchronised(network)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # broadcast_buffers has a new name, not yet everywhere
        joined = DistributedDataParallel(
            network,
            device_ids=[processes.device] if cuda else None,
            broadcast_buffers=not cuda,
            find_unused_parameters=unused,
        )
    if not cuda:
        # A lambda, for PyTorch refuses annotations that are not evaluated.
        joined.register_comm_hook(processes, lambda of, bucket: _mean_in_order(of, bucket.buffer()))
    return joined


def _mean_in_order(processes: Processes, own: torch.Tensor) -> torch.futures.Future[torch.Tensor]:
    """Average gradients in the order of the ranks, wherever they stand in their bucket.

    PyTorch rearranges the buckets after the first step of each start, and an all-reduce adds more than two
    processes up in an order that depends on the place: a resumed run would be rounded otherwise.
    """
    parts = [torch.empty_like(own) for _ in range(processes.number)]
    gathering = dist.all_gather(parts, own, async_op=True)

    def mean(_: object) -> torch.Tensor:
        total = parts[0].clone()
        for part in parts[1:]:
            total += part
        return total / processes.number

    return gathering.get_future().then(mean)
