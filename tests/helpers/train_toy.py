"""A training by the shared loop that takes a second, as a process of its own, also one of torchrun's."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import torch
from torch import nn
from torch.nn.functional import cross_entropy

from command_line.startup import run as run_script
from command_line.startup import stop_asked
from imagenets.learning import processes as distributed
from imagenets.learning.training import loop, order, run_files
from imagenets.learning.training.optimisers import Lars, cosine

Lars([torch.zeros(1)], lr=0.0)  # the first optimiser makes PyTorch load half of itself: once, for all forks


class Noise:
    """Images of noise whose mean is their class."""

    def read(self, epoch, index):
        label = index % 3
        noise = order.generator(0, epoch, index).normal(label, 1, (3, 8, 8))
        return torch.from_numpy(noise).float(), torch.tensor(label)

    def name(self, index):
        return f"image {index}"


def main(folder, accumulate=1, dropout=0.0, workers=0, nan_at=None, kill_at=None):
    """Train for three epochs of three steps.

    The loss of image ``nan_at`` is not finite; the process kills itself before the update ``kill_at``.
    """
    torch.set_num_threads(1)
    with distributed.started("cpu", stop_asked) as processes:
        plan = order.Plan(24, 8, 3, 0, True, accumulate, processes.rank, processes.number)
        torch.manual_seed(0)
        network = nn.Sequential(
            nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Dropout(dropout), nn.Flatten(),
            nn.Linear(144, 3),
        )  # fmt: skip
        joined = distributed.join(network, processes)
        optimiser = Lars(network.parameters(), lr=1.0, weight_decay=1e-4, trust=0.1)

        def loss_of(batch, at):
            if at.update == kill_at:
                os.kill(os.getpid(), signal.SIGKILL)
            pictures, labels = batch.tensors
            loss = cross_entropy(joined(pictures), labels)
            if nan_at is not None and nan_at in batch.images:
                loss = loss * float("nan")
            return {"loss": loss, "shift": network[0].bias.abs().mean()}

        job = loop.TrainingJob(
            joined, optimiser, loss_of, lambda at: cosine(at.update / 9, 1.0, 0.01), network.state_dict,
            network.load_state_dict, {"backbone": "toy"},
            scores=lambda epoch: {"mIoU": 7.0} if epoch % 2 == 0 else {},
        )  # fmt: skip
        with run_files.opened_run(folder, {"epochs": 3}, processes) as run:
            loop.train(job, Noise(), plan, run, workers=workers, save_every=0.0)


def child(folder, environment, stderr, options):
    """A process of its own, with torchrun's variables where they are given."""
    os.environ.update(environment)
    os.dup2(os.open(stderr, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), 2)
    run_script(lambda: main(folder, **options), on_all_ranks=True)
