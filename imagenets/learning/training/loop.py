"""The training loop: accumulation, mixed precision, log, state, and an end that names what went wrong."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass, field, fields
from typing import TYPE_CHECKING, Any

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

if TYPE_CHECKING:
    from torch.distributed.checkpoint.stateful import Stateful

_READ_EVERY = {"cpu": 1, "cuda": 10}  # steps
_MEMORY_CURE = "accumulate over more, smaller micro-batches, or lower the batch size"
_SAVE_EVERY = 600.0  # seconds between saved states within an epoch


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
    - ``more``: further state by name, queues, say. It is asked for in all processes, and the first one's is
      saved, so gather what differs; all take back the same.
    """

    network: nn.Module
    optimiser: Optimizer
    loss_of: Callable[[TrainingBatch, StepIndex], dict[str, torch.Tensor]]
    rate: Callable[[StepIndex], float]
    weights: Callable[[], dict[str, torch.Tensor]]
    load_weights: Callable[[Mapping[str, torch.Tensor]], object]
    about: Mapping[str, Any]
    precision: str = "float32"
    before_update: Callable[[StepIndex], None] = lambda at: None
    scores: Callable[[int], Mapping[str, float]] = lambda epoch: {}
    scores_take_long: Callable[[int], bool] = lambda epoch: False
    more: Mapping[str, Stateful] = field(default_factory=dict)


@dataclass
class _Progress:
    """How far a run is, and what its unfinished epoch has summed up so far; saved under these names."""

    epoch: int = 0  # finished epochs
    step: int = 0  # finished steps of the next one
    sums: dict[str, float] = field(default_factory=dict)
    images: int = 0
    seconds: float = 0.0
    waited: float = 0.0


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
    if not processes.first:
        show, log = no_bar, no_log
    training = _Training(job, reader, plan, run, save_every)
    training.resume()
    run.write_log(training.records)
    begin = training.progress.epoch, training.progress.step
    if begin[0] < plan.epochs:
        log(_start_message(*begin, anew=run.is_new))
    cuda = processes.device.type == "cuda"
    arriving = batches(reader, plan, workers, *begin, pin=cuda, start=processes.start)
    while training.progress.epoch < plan.epochs:
        progress = training.progress
        description = f"epoch {progress.epoch + 1} of {plan.epochs}"
        with show(description, plan.steps, unit=" steps", done=progress.step) as advance:
            while progress.step < plan.steps:
                with (
                    memory_named(processes.device, _MEMORY_CURE),
                    cuda_switches(processes.device, one_size=True),
                ):
                    training.step(arriving)
                    training.read(at_once=progress.step == plan.steps)
                advance(1)
                training.save_if_due()
        log(_record_text(training.end_epoch()))
    return training.records


class _Training:
    """A job at work: how far it is, and what its steps have found and the host has not read yet.

    To read makes the host wait for the device. So on CUDA it is done after every tenth step, at the end of an
    epoch, and before anything is saved.
    """

    def __init__(
        self, job: TrainingJob, reader: Reader, plan: Plan, run: RunFolder, save_every: float
    ) -> None:
        self.job, self.reader, self.plan, self.run, self.save_every = job, reader, plan, run, save_every
        self.processes = run.processes
        self.scaler = torch.amp.GradScaler(self.processes.device.type, enabled=job.precision == "float16")
        self.progress = _Progress()
        self.records: list[dict[str, Any]] = []
        self.saved = time.monotonic()
        self.names: list[str] = []  # of what ``loss_of`` returns
        # Of each step its values, then of each part 1 where its loss was not finite; and the parts' images.
        self.unread: list[tuple[torch.Tensor, StepIndex, list[np.ndarray]]] = []

    def resume(self) -> None:
        """Put a saved state back, if there is one."""
        saved = self.processes.together(self.run.load)
        _refuse_other_states(saved, self.processes)
        if saved is None:
            return
        job = self.job
        job.load_weights(saved["model"])
        job.optimiser.load_state_dict(saved["optimiser"])
        self.scaler.load_state_dict(saved["scaler"])
        for name, stateful in job.more.items():
            stateful.load_state_dict(saved["more"][name])
        self.progress = _Progress(*(saved[of_one.name] for of_one in fields(_Progress)))
        self.records = list(saved["log"])

    def step(self, arriving: Iterator[tuple[StepIndex, TrainingBatch]]) -> None:
        """Do one step: all parts of a batch, and the update."""
        begun = time.monotonic()
        waited = 0.0
        job, plan, scaler = self.job, self.plan, self.scaler
        totals: dict[str, torch.Tensor] = {}
        broken: list[torch.Tensor] = []
        images: list[np.ndarray] = []
        for part in range(plan.accumulate):
            asked = time.monotonic()
            at, batch = next(arriving)
            waited += time.monotonic() - asked
            if part == 0:
                set_rate(job.optimiser, job.rate(at))
                job.optimiser.zero_grad(set_to_none=True)
            seed_network(plan.seed, at, plan.rank)
            with _gradients_kept(job.network) if part < plan.accumulate - 1 else nullcontext():
                values = job.loss_of(batch.to(self.processes.device), at)
                torch.autograd.backward(scaler.scale(values["loss"] / plan.accumulate))
            broken.append(1 - values["loss"].detach().isfinite().float())
            images.append(batch.images)
            for name, value in values.items():
                totals[name] = totals.get(name, 0.0) + value.detach().float() / plan.accumulate
        scaler.unscale_(job.optimiser)
        job.before_update(at)
        scaler.step(job.optimiser)
        scaler.update()
        self.names = list(totals)
        self.unread.append((torch.stack([*totals.values(), *broken]), at, images))
        progress = self.progress
        progress.step += 1
        progress.images += min(plan.batch, plan.images - at.step * plan.batch)
        progress.seconds += time.monotonic() - begun
        progress.waited += waited

    def read(self, *, at_once: bool) -> None:
        """Add the means over all processes to the epoch's sums, if it is time or ``at_once``.

        Raises InputError, naming the images, when a loss was not finite.
        """
        if not self.unread or not (at_once or len(self.unread) >= _READ_EVERY[self.processes.device.type]):
            return
        own = torch.stack([row for row, _, _ in self.unread])
        values, sums = len(self.names), self.progress.sums
        for number, row in enumerate(self.processes.sum(own).tolist()):
            if any(row[values:]):
                _, at, images = self.unread[number]
                self._refuse_loss(at, images, own[number, values:].tolist())
            for name, total in zip(self.names, row, strict=False):
                sums[name] = sums.get(name, 0.0) + total / self.processes.number
        self.unread = []

    def _refuse_loss(self, at: StepIndex, images: list[np.ndarray], broken: list[float]) -> None:
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

    def save_if_due(self) -> None:
        """Save after a step where it is time to; where any process was asked to stop, raise StoppedError."""
        processes = self.processes
        late = processes.first and time.monotonic() - self.saved >= self.save_every
        late, stopping = processes.any(late, processes.stop_asked())
        if late or stopping:
            self.read(at_once=True)  # no state is saved behind a loss that is not finite
            self.save()
        if stopping:
            raise StoppedError(f"saved after epoch {self.progress.epoch + 1}, step {self.progress.step}")

    def save(self, *, last: bool = False) -> None:
        """Save, in all processes at once: some state may have to be gathered."""
        job = self.job
        state = {
            **job.about,
            "model": job.weights(),
            "optimiser": job.optimiser.state_dict(),
            "scaler": self.scaler.state_dict(),
            "more": {name: stateful.state_dict() for name, stateful in job.more.items()},
            **asdict(self.progress),
        }
        self.run.save(state, self.records, last=last)
        self.saved = time.monotonic()

    def end_epoch(self) -> dict[str, Any]:
        """Score and record the epoch that has just been finished, and save."""
        job, progress, steps = self.job, self.progress, self.plan.steps
        epoch = progress.epoch + 1
        if job.scores_take_long(epoch):
            self.save()
        seconds = max(progress.seconds, 1e-9)
        record = {
            "epoch": epoch,
            "step": epoch * steps,
            **{name: total / steps for name, total in progress.sums.items()},
            "lr": job.rate(self.plan.last_step(progress.epoch)),
            "images_per_second": round(progress.images / seconds, 1),
            "data_wait": round(progress.waited / seconds, 4),
            **job.scores(epoch),
        }
        self.records.append(record)
        self.progress = _Progress(epoch)
        self.save(last=epoch == self.plan.epochs)
        return record


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


def _gradients_kept(network: nn.Module) -> AbstractContextManager[None]:
    """Leave gradients in their process: after the last part of a step they are averaged over all."""
    return network.no_sync() if isinstance(network, DistributedDataParallel) else nullcontext()


def _start_message(epoch: int, step: int, anew: bool) -> str:
    if epoch or step:
        return f"resuming at epoch {epoch + 1}, step {step + 1}"
    return (
        "starting at epoch 1" if anew else "nothing was saved before the last stop: starting again at epoch 1"
    )


def _record_text(record: Mapping[str, Any]) -> str:
    """Write a record of the log on one line."""
    return ", ".join(
        f"{name} {value:.4g}" if isinstance(value, float) else f"{name} {value}"
        for name, value in record.items()
    )
