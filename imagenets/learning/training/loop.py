"""The training loop: accumulation, mixed precision, log, state, and an end that names what went wrong."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Optimizer

from imagenets.common.errors import InputError, StoppedError, listed
from imagenets.common.progress import Log, Show, no_bar, no_log
from imagenets.learning.networks.precision import cuda_switches, memory_named
from imagenets.learning.processes import Processes
from imagenets.learning.training.optimisers import set_rate
from imagenets.learning.training.order import Plan, Reader, StepIndex, TrainingBatch, batches, seed_network
from imagenets.learning.training.run_files import RunFolder

_READ_EVERY = {"cpu": 1, "cuda": 10}  # steps
_MEMORY_CURE = "accumulate over more, smaller micro-batches, or lower the batch size"
_SAVE_EVERY = 600.0  # seconds between saved states within an epoch


class Stateful(Protocol):
    """Something else that a run must remember: queues, say."""

    def state_dict(self) -> dict[str, Any]:
        """Return the state; called in all processes, the first one's is saved, so gather what differs."""

    def load_state_dict(self, state: dict[str, Any]) -> object:
        """Take a saved state back; called in all processes with the same."""


def _nothing(at: StepIndex) -> None:
    pass


def _no_scores(epoch: int) -> dict[str, float]:
    return {}


def _no_epoch(epoch: int) -> bool:
    return False


@dataclass
class TrainingJob:
    """What a training script brings to the loop.

    - ``network``: all that is trained, on the device, as ``processes.join`` gave it.
    - ``loss_of(batch, at)``: the loss of this process's share (tensors on the device), scalar under
      ``loss``, and any other scalars to log. The mean over all processes is the loss of the part.
    - ``rate(at)``: the learning rate of an update; groups with ``scale`` take it times that.
    - ``weights()``: what is saved as ``model``; ``load_weights`` takes it back.
    - ``precision``: of the network; float16 needs its loss scaled.
    - ``about``: what else is saved beside it: the backbone's name, the mode …, plain values.
    - ``before_update(at)``: after the gradients are there, before the optimiser uses them.
    - ``scores(epoch)``: called after each epoch in all processes, returns numbers to log ({} if none).
    - ``scores_take_long(epoch)``: save before ``scores``, so that a run that is stopped there loses nothing.
    - ``more``: further state by name.
    """

    network: nn.Module
    optimiser: Optimizer
    loss_of: Callable[[TrainingBatch, StepIndex], dict[str, torch.Tensor]]
    rate: Callable[[StepIndex], float]
    weights: Callable[[], dict[str, torch.Tensor]]
    load_weights: Callable[[Mapping[str, torch.Tensor]], object]
    about: Mapping[str, Any]
    precision: str = "float32"
    before_update: Callable[[StepIndex], None] = _nothing
    scores: Callable[[int], Mapping[str, float]] = _no_scores
    scores_take_long: Callable[[int], bool] = _no_epoch
    more: Mapping[str, Stateful] = field(default_factory=dict)


@dataclass
class _Progress:
    """How far a run is, and what its unfinished epoch has summed up so far."""

    epoch: int = 0  # finished epochs
    step: int = 0  # finished steps of the next one
    sums: dict[str, float] = field(default_factory=dict)
    images: int = 0
    seconds: float = 0.0
    waited: float = 0.0
    records: list[dict[str, Any]] = field(default_factory=list)

    def record(self, plan: Plan, rate: float) -> dict[str, Any]:
        """Sum the epoch up that has just been finished."""
        steps = plan.steps
        return {
            "epoch": self.epoch + 1,
            "step": (self.epoch + 1) * steps,
            **{name: total / steps for name, total in self.sums.items()},
            "lr": rate,
            "images_per_second": round(self.images / max(self.seconds, 1e-9), 1),
            "data_wait": round(self.waited / max(self.seconds, 1e-9), 4),
        }


def train(
    job: TrainingJob,
    reader: Reader,
    plan: Plan,
    run: RunFolder,
    *,
    workers: int = 0,
    show: Show = no_bar,
    log: Log = no_log,
    save_every: float = _SAVE_EVERY,
) -> list[dict[str, Any]]:
    """Train from the run's saved state, or from the beginning, to the plan's last epoch.

    Returns the log: a record an epoch with ``epoch`` (counted from 1), ``step`` (of the run), the means of
    what ``loss_of`` returned, ``lr`` (of the last step), ``images_per_second``, ``data_wait`` (share of the
    time that was spent waiting for images) and what ``scores`` returned. ``log`` receives a line for each,
    ``show`` opens a bar of steps; both in the first process only.

    Where a process was asked to stop (``Processes.stop_asked``), all save the state at the end of the step
    and raise StoppedError.

    Raises InputError when a loss is not finite, naming epoch, step and images; when a file cannot be read;
    when the saved state does not fit, or is not the same one in all processes; and when the device's memory
    does not suffice.
    """
    processes = run.processes
    scaler = torch.amp.GradScaler(processes.device.type, enabled=job.precision == "float16")
    saved = processes.together(run.load)
    _refuse_other_states(saved, processes)
    progress = _resumed(job, scaler, saved) if saved else _Progress()
    run.write_log(progress.records)
    if processes.first and progress.epoch < plan.epochs:
        log(_start_message(progress, anew=run.is_new))
    cuda = processes.device.type == "cuda"
    begin = progress.epoch, progress.step
    arriving = batches(reader, plan, workers, *begin, pin=cuda, start=processes.start)
    show_here = show if processes.first else no_bar
    unread = _Unread(reader, processes, progress)
    checkpointer = _Checkpointer(job, scaler, run, progress, unread, save_every)
    while progress.epoch < plan.epochs:
        description = f"epoch {progress.epoch + 1} of {plan.epochs}"
        with show_here(description, plan.steps, unit=" steps", done=progress.step) as advance:
            while progress.step < plan.steps:
                with (
                    memory_named(processes.device, _MEMORY_CURE),
                    cuda_switches(processes.device, one_size=True),
                ):
                    _update(job, scaler, arriving, plan, progress, unread)
                    unread.read(at_once=progress.step == plan.steps)
                advance(1)
                checkpointer.save_if_due()
        if job.scores_take_long(progress.epoch + 1):
            checkpointer.save(last=False)
        rate = job.rate(plan.last_step(progress.epoch))
        record = {**progress.record(plan, rate), **job.scores(progress.epoch + 1)}
        _end_epoch(progress, record)
        checkpointer.save(last=progress.epoch == plan.epochs)
        if processes.first:
            log(record_text(record))
    return progress.records


def _update(
    job: TrainingJob,
    scaler: torch.amp.GradScaler,
    arriving: Any,  # noqa: ANN401 - what ``batches`` yields
    plan: Plan,
    progress: _Progress,
    unread: _Unread,
) -> None:
    """Do one step: all parts of a batch, and the update."""
    begun = time.monotonic()
    waited = 0.0
    device = unread.processes.device
    totals: dict[str, torch.Tensor] = {}
    broken: list[torch.Tensor] = []  # of each part: 1 where its loss is not finite
    images: list[np.ndarray] = []
    for part in range(plan.accumulate):
        asked = time.monotonic()
        at, batch = next(arriving)
        waited += time.monotonic() - asked
        if part == 0:
            set_rate(job.optimiser, job.rate(at))
            job.optimiser.zero_grad(set_to_none=True)
        seed_network(plan.seed, at, plan.rank)
        last = part == plan.accumulate - 1
        with _gathering(job.network, last):
            values = job.loss_of(batch.to(device), at)
            torch.autograd.backward(scaler.scale(values["loss"] / plan.accumulate))
        broken.append(1 - values["loss"].detach().isfinite().float())
        images.append(batch.images)
        for name, value in values.items():
            totals[name] = totals.get(name, 0.0) + value.detach().float() / plan.accumulate
    scaler.unscale_(job.optimiser)
    job.before_update(at)
    scaler.step(job.optimiser)
    scaler.update()
    unread.add(at, images, totals, broken)
    progress.step += 1
    progress.images += min(plan.batch, plan.images - at.step * plan.batch)
    progress.seconds += time.monotonic() - begun
    progress.waited += waited


def _gathering(network: nn.Module, last: bool) -> Any:  # noqa: ANN401 - a context manager
    """Average gradients over processes only after the last part of a step."""
    if isinstance(network, DistributedDataParallel) and not last:
        return network.no_sync()
    return nullcontext()


class _Unread:
    """What steps have found and the host has not read yet: reading makes it wait for the device.

    On CUDA it is read after every tenth step, at the end of an epoch, and before anything is saved.
    """

    def __init__(self, reader: Reader, processes: Processes, progress: _Progress) -> None:
        self.reader, self.processes, self.progress = reader, processes, progress
        self.names: list[str] = []
        self.rows: list[torch.Tensor] = []  # of each step its values, then a flag for each part
        self.seen: list[tuple[StepIndex, list[np.ndarray]]] = []  # each step's images, part by part

    def add(
        self,
        at: StepIndex,
        images: list[np.ndarray],
        values: Mapping[str, torch.Tensor],
        broken: Sequence[torch.Tensor],
    ) -> None:
        """Take a step's values, and of each part whether its loss was not finite (1)."""
        self.names = list(values)
        self.rows.append(torch.stack([*values.values(), *broken]))
        self.seen.append((at, images))

    def read(self, *, at_once: bool) -> None:
        """Add the means over all processes to the epoch's sums, if it is time or ``at_once``.

        Raises InputError, naming the images, when a loss was not finite.
        """
        if not self.rows or not (at_once or len(self.rows) >= _READ_EVERY[self.processes.device.type]):
            return
        own = torch.stack(self.rows)
        for number, row in enumerate(self.processes.sum(own).tolist()):
            if any(row[len(self.names) :]):
                self._end(*self.seen[number], own[number, len(self.names) :].tolist())
            for name, total in zip(self.names, row, strict=False):
                self.progress.sums[name] = self.progress.sums.get(name, 0.0) + total / self.processes.number
        self.rows, self.seen = [], []

    def _end(self, at: StepIndex, images: list[np.ndarray], broken: list[float]) -> None:
        """End all processes, with the names of the images whose loss was not finite."""
        at_fault = [
            self.reader.name(int(index))
            for part, flag in zip(images, broken, strict=True)
            if flag
            for index in part
        ]
        names = [name for of_rank in self.processes.gathered(at_fault) for name in of_rank]
        self.processes.refuse(
            f"the loss is not finite in epoch {at.epoch + 1}, step {at.step + 1}; lower the "
            f"learning rate, or look at these {len(names)} images:\n{listed(names)}"
        )


def _refuse_other_states(saved: Mapping[str, Any] | None, processes: Processes) -> None:
    """Raise InputError where processes would resume at different steps, or only some of them would."""
    places = processes.gathered((saved["epoch"], saved["step"]) if saved else None)
    if len(set(places)) > 1:
        found = "; ".join(
            f"process {rank}: {f'epoch {place[0] + 1}, step {place[1] + 1}' if place else 'none'}"
            for rank, place in enumerate(places)
        )
        raise InputError(
            f"the saved state is not the same in all processes ({found}): the output folder must lie on a "
            "disk that all machines share"
        )


def _start_message(progress: _Progress, anew: bool) -> str:
    if progress.epoch or progress.step:
        return f"resuming at epoch {progress.epoch + 1}, step {progress.step + 1}"
    return (
        "starting at epoch 1" if anew else "nothing was saved before the last stop: starting again at epoch 1"
    )


class _Checkpointer:
    """Saves the state: after each epoch, when the first process's clock says so, and at a stop."""

    def __init__(
        self,
        job: TrainingJob,
        scaler: torch.amp.GradScaler,
        run: RunFolder,
        progress: _Progress,
        unread: _Unread,
        every: float,
    ) -> None:
        self.job, self.scaler, self.run, self.progress, self.unread = job, scaler, run, progress, unread
        self.every = every
        self.saved = time.monotonic()

    def save_if_due(self) -> None:
        """Save after a step where it is time to; where any process was asked to stop, raise StoppedError."""
        processes, progress = self.run.processes, self.progress
        late = processes.first and time.monotonic() - self.saved >= self.every
        late, stopping = processes.any(late, processes.stop_asked())
        if late or stopping:
            self.unread.read(at_once=True)  # no state is saved behind a loss that is not finite
            self.save(last=False)
        if stopping:
            raise StoppedError(f"saved after epoch {progress.epoch + 1}, step {progress.step}")

    def save(self, *, last: bool) -> None:
        """Save, in all processes at once: some state may have to be gathered."""
        job, progress = self.job, self.progress
        more = {name: stateful.state_dict() for name, stateful in job.more.items()}
        state = {
            **job.about,
            "model": job.weights(),
            "epoch": progress.epoch,
            "step": progress.step,
            "optimiser": job.optimiser.state_dict(),
            "scaler": self.scaler.state_dict(),
            "more": more,
            "sums": dict(progress.sums),
            "images": progress.images,
            "seconds": progress.seconds,
            "waited": progress.waited,
        }
        self.run.save(state, progress.records, last=last)
        self.saved = time.monotonic()


def _resumed(job: TrainingJob, scaler: torch.amp.GradScaler, saved: dict[str, Any]) -> _Progress:
    """Put a saved state back into the job."""
    job.load_weights(saved["model"])
    job.optimiser.load_state_dict(saved["optimiser"])
    scaler.load_state_dict(saved["scaler"])
    for name, stateful in job.more.items():
        stateful.load_state_dict(saved["more"][name])
    return _Progress(
        saved["epoch"],
        saved["step"],
        dict(saved["sums"]),
        saved["images"],
        saved["seconds"],
        saved["waited"],
        list(saved["log"]),
    )


def _end_epoch(progress: _Progress, record: dict[str, Any]) -> None:
    progress.records.append(record)
    progress.epoch, progress.step = progress.epoch + 1, 0
    progress.sums, progress.images, progress.seconds, progress.waited = {}, 0, 0.0, 0.0


def record_text(record: Mapping[str, Any]) -> str:
    """Write a record of the log on one line."""
    return ", ".join(
        f"{name} {value:.4g}" if isinstance(value, float) else f"{name} {value}"
        for name, value in record.items()
    )
