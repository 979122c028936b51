"""A training run of the shared loop in a second: train_toy.py FOLDER [options], also under torchrun."""

from __future__ import annotations

import argparse
import json
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
    """Images of noise whose class is told by their mean."""

    def __init__(self, seed):
        self.seed = seed

    def read(self, epoch, index):
        label = index % 3
        noise = order.generator(self.seed, epoch, index).normal(label, 1, (3, 8, 8))
        return torch.from_numpy(noise).float(), torch.tensor(label)

    def name(self, index):
        return f"image {index}"


def parse(argv):
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--accumulate", type=int, default=1)
    parser.add_argument("--dropout", type=float, default=0.0)
    parser.add_argument("--group-norm", action="store_true")
    parser.add_argument("--workers", type=int, default=0)
    parser.add_argument("--nan-at", type=int)  # an image whose loss is not finite
    parser.add_argument("--kill-at", type=int)  # an update before which the process kills itself
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args(argv)


def main(argv=None):
    torch.set_num_threads(1)
    options = parse(argv)
    with distributed.started("cpu", stop_asked) as processes:
        plan = order.Plan(
            24, options.batch, options.epochs, options.seed, True, options.accumulate, processes.rank,
            processes.number,
        )  # fmt: skip
        torch.manual_seed(options.seed)
        norm = nn.GroupNorm(2, 4) if options.group_norm else nn.BatchNorm2d(4)
        network = nn.Sequential(
            nn.Conv2d(3, 4, 3), norm, nn.ReLU(), nn.Dropout(options.dropout), nn.Flatten(),
            nn.Linear(144, 3),
        )  # fmt: skip
        joined = distributed.join(network, processes)
        optimiser = Lars(network.parameters(), lr=1.0, weight_decay=1e-4, trust=0.1)

        def loss_of(batch, at):
            if at.update == options.kill_at:
                os.kill(os.getpid(), signal.SIGKILL)
            pictures, labels = batch.tensors
            loss = cross_entropy(joined(pictures), labels)
            if options.nan_at is not None and options.nan_at in batch.images:
                loss = loss * float("nan")
            return {"loss": loss, "shift": network[0].bias.abs().mean()}

        job = loop.TrainingJob(
            joined, optimiser, loss_of, lambda m: cosine(m.update / (3 * options.epochs), 1.0, 0.01),
            network.state_dict, network.load_state_dict, {"backbone": "toy"},
            scores=lambda epoch: {"mIoU": 7.0} if epoch % 2 == 0 else {},
        )  # fmt: skip
        settings = {"epochs": options.epochs, "batch": options.batch, "seed": options.seed}
        with run_files.opened_run(options.folder, settings, processes) as run:
            records = loop.train(
                job, Noise(options.seed), plan, run, workers=options.workers, log=print, save_every=0.0
            )
        if processes.first:
            print(json.dumps(records))


def child(argv, environment, stderr):
    """A process of its own, with torchrun's variables where they are given."""
    os.environ.update(environment)
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    os.dup2(os.open(stderr, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), 2)
    run_script(lambda: main(argv), on_all_ranks=True)


if __name__ == "__main__":
    run_script(main, on_all_ranks=True)
