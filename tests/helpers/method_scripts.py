"""Scripts in processes that are forked off one that has PyTorch loaded."""

from __future__ import annotations

import os
import runpy
import signal
import sys
from pathlib import Path

CHECKOUT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(CHECKOUT))

import timm  # noqa: F401 - loaded once, for all forks
import torch

from command_line.startup import run, stop_asked
from command_line import startup
from helpers import faults
from helpers.processes import torchrun_variables
from imagenets.learning.processes import started
from methods import distance_matching, finetune, kmeans, predict, pretrain  # noqa: F401

torch.optim.AdamW([torch.zeros(1)])  # the first optimiser makes PyTorch load half of itself


def child(script, arguments, environment, said, fault=None):
    """Run a script of methods/ as a process of its own; what it prints goes to the file ``said``.

    ``fault`` is what happens to it, and when: the arguments of ``faults.arm``.
    """
    os.setsid()  # signals to its group are its own
    os.environ.update(environment)
    descriptor = os.open(said, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    torch.set_num_threads(1)
    sys.argv = [f"{script}.py", *arguments]
    if fault is not None:
        faults.arm(*fault)
    runpy.run_path(str(CHECKOUT / f"methods/{script}.py"), run_name="__main__")


def run_ranks(context, script, arguments, number, folder):
    """Run a script in so many processes, as torchrun does; returns what the first one printed."""
    said = [folder / f"said-{rank}" for rank in range(number)]
    ranks = [
        context.Process(target=child, args=(script, [*map(str, arguments)], variables, path))
        for variables, path in zip(torchrun_variables(number), said, strict=True)
    ]
    for rank in ranks:
        rank.start()
    for rank in ranks:
        rank.join(300)
    try:
        assert [rank.exitcode for rank in ranks] == [0] * number, "".join(map(Path.read_text, said))
    finally:
        for rank in ranks:
            rank.kill()
    return said[0].read_text()


def stuck(environment, said, at_work):
    """Rank 0 waits in a collective, after it has made the file ``at_work``, for rank 1, which never comes."""
    os.environ.update(environment)
    os.dup2(os.open(said, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), 2)
    startup._STEP = 0.2  # seconds of grace for a step that does not end

    def main():
        with started("cpu", stop_asked) as processes:
            stop_asked()  # as a training does: from here on the signal raises nothing
            if not processes.first:
                signal.pause()
            at_work.touch()
            processes.sum(torch.zeros(1))

    run(main, resumes=True, on_all_ranks=True)
