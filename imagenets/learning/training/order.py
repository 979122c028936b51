"""Which images each process sees when, and all randomness: functions of the seed and the place in the run."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import cv2
import numpy as np
import torch
from torch.utils.data import Dataset

from imagenets.common.errors import InputError, listed, problem_of
from imagenets.common.workers import Start, load_tensors

# Different purposes draw different numbers from one seed.
_ORDER, _IMAGE, _NETWORK = 1, 2, 3


def generator(seed: int, epoch: int, index: int) -> np.random.Generator:
    """Random numbers of one image's augmentation in one epoch."""
    return np.random.default_rng((_IMAGE, seed, epoch, index))


@dataclass(frozen=True)
class StepIndex:
    """A place in a run: the ``part`` of the ``step`` of an ``epoch``, and the ``update`` of the whole run.

    All count from 0; ``update`` is the step's number over all epochs.
    """

    epoch: int
    step: int
    part: int
    update: int


def seed_network(seed: int, at: StepIndex, rank: int) -> None:
    """Set the randomness of dropout and drop path for one part of a step in one process."""
    numbers = (_NETWORK, seed, at.epoch, at.step, at.part, rank)
    torch.manual_seed(int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0] >> np.uint64(1)))


@dataclass(frozen=True)
class Plan:
    """The batches of a run, and this process's share of them.

    ``batch`` images make one update, in all ``processes`` together; ``accumulate`` parts follow each other,
    and each is split over the processes. What is left of an epoch's images is dropped or, with
    ``keep_last``, a smaller last batch; images from the epoch's beginning fill it where it does not divide.
    """

    images: int
    batch: int
    epochs: int
    seed: int
    keep_last: bool
    accumulate: int = 1
    rank: int = 0
    processes: int = 1

    def __post_init__(self) -> None:
        """Raise InputError for a batch that cannot be split, or a set that has not one."""
        shares = self.shares_of_batch
        if self.batch % shares:
            parts = f" times {self.accumulate} micro-batches" if self.accumulate > 1 else ""
            raise InputError(
                f"batch size {self.batch}: does not divide by {self.processes} processes{parts}; take a "
                f"multiple of {shares}"
            )
        if not self.images or (self.images < self.batch and not self.keep_last):
            raise InputError(f"batch size {self.batch}: there are only {self.images} images; take less")

    @property
    def shares_of_batch(self) -> int:
        """Number of shares that a batch is cut into: parts times processes."""
        return self.processes * self.accumulate

    @property
    def steps(self) -> int:
        """Number of updates in an epoch."""
        return -(-self.images // self.batch) if self.keep_last else self.images // self.batch

    def batch_of(self, epoch: int, step: int) -> np.ndarray:
        """Indices of the images of one batch, all processes together, in order."""
        return self._batch(self._order(epoch), step)

    def after(self, epoch: int, step: int) -> Iterator[tuple[StepIndex, np.ndarray]]:
        """Yield this process's share of each part from (epoch, step) on, to the end of the run."""
        for this_epoch in range(epoch, self.epochs):
            order = self._order(this_epoch)
            for now in range(step if this_epoch == epoch else 0, self.steps):
                parts = self._batch(order, now).reshape(self.accumulate, self.processes, -1)
                for part, shares in enumerate(parts):
                    yield StepIndex(this_epoch, now, part, this_epoch * self.steps + now), shares[self.rank]

    def last_step(self, epoch: int) -> StepIndex:
        """Place of the last part of an epoch."""
        return StepIndex(epoch, self.steps - 1, self.accumulate - 1, (epoch + 1) * self.steps - 1)

    def _order(self, epoch: int) -> np.ndarray:
        return np.random.default_rng((_ORDER, self.seed, epoch)).permutation(self.images)

    def _batch(self, order: np.ndarray, step: int) -> np.ndarray:
        batch = order[step * self.batch : (step + 1) * self.batch]
        lacking = -batch.size % self.shares_of_batch
        return np.concatenate((batch, np.resize(order, lacking))) if lacking else batch


class Reader(Protocol):
    """Reads images in a worker process; must be small to send there, or live in arrays."""

    def read(self, epoch: int, index: int) -> tuple[torch.Tensor, ...]:
        """Read one image as tensors, augmented; the tensors of all images of a batch are stacked.

        Raises InputError or OSError for a bad file.
        """

    def name(self, index: int) -> str:
        """Name an image to the user."""


@dataclass(frozen=True)
class TrainingBatch:
    """This process's share of a part: tensors (B, …), and the images' indices (B,)."""

    tensors: tuple[torch.Tensor, ...]
    images: np.ndarray

    def to(self, device: torch.device) -> TrainingBatch:
        """Move the tensors to a device; from pinned memory, without waiting."""
        return TrainingBatch(
            tuple(tensor.to(device, non_blocking=True) for tensor in self.tensors), self.images
        )


class _Shares(Dataset[Any]):
    """A reader as a data set whose items are whole shares, by (epoch, index); bad files are answers."""

    def __init__(self, reader: Reader) -> None:
        self.reader = reader

    def __getitem__(self, keys: Sequence[tuple[int, int]]) -> tuple[torch.Tensor, ...] | str:
        items, problems = [], []
        for epoch, index in keys:
            try:
                items.append(self.reader.read(epoch, index))
            except (InputError, OSError) as error:
                problems.append(problem_of(error))
        if problems:
            return f"{len(problems)} files cannot be read:\n{listed(problems)}"
        return tuple(torch.stack(column) for column in zip(*items, strict=True))


def _begin_worker() -> None:
    cv2.setNumThreads(0)
    torch.set_num_threads(1)


def batches(
    reader: Reader,
    plan: Plan,
    workers: int,
    epoch: int = 0,
    step: int = 0,
    *,
    pin: bool = False,
    start: Start = "fork",
) -> Iterator[tuple[StepIndex, TrainingBatch]]:
    """Read this process's shares from (epoch, step) on, ahead of their use, by ``workers`` processes.

    0 workers read in this process. ``pin`` puts the tensors where CUDA copies them from at once.
    Raises InputError for files that cannot be read, and when a worker dies.
    """
    keys = ([(at.epoch, int(index)) for index in share] for at, share in plan.after(epoch, step))
    arriving = load_tensors(
        _Shares(reader), workers, keys=keys, begin=_begin_worker, ahead=4, pin=pin, start=start
    )
    for (at, share), tensors in zip(plan.after(epoch, step), arriving, strict=True):
        if isinstance(tensors, str):
            raise InputError(tensors)
        yield at, TrainingBatch(tuple(tensors), share)
