"""What tests of trainings share: an end in the middle, a run's log and weights, calls of scripts."""

from __future__ import annotations

import json
import sys
from contextlib import contextmanager

import pytest
import torch

from helpers import method_scripts
from helpers.processes import torchrun_variables
from imagenets.learning.processes import Processes

ALONE = Processes(0, 1, torch.device("cpu"))
TIMEOUT = 240  # seconds, far above what a run takes


class StopError(Exception):
    """Stands for the end of a process."""


def stop_after(steps):
    """A progress bar that ends the run when so many steps are done."""
    left = steps

    @contextmanager
    def show(description, total, *, unit, done=0):
        def advance(units):
            nonlocal left
            left -= units
            if left == 0:
                raise StopError

        yield advance

    return show


def log_of(folder):
    """The records of a run, without those numbers that depend on the clock."""
    records = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    return [timeless(record) for record in records]


def timeless(record):
    return {name: value for name, value in record.items() if name not in ("images_per_second", "data_wait")}


def state_of(folder):
    return torch.load(folder / "last.pth", weights_only=True)


def assert_same_end(one, other):
    """Two runs have the same weights, bit for bit, and the same log."""
    ours, theirs = state_of(one)["model"], state_of(other)["model"]
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    assert log_of(one) == log_of(other)


def call(main, save, *arguments):
    """Call a script's ``main`` with these arguments and the lists that lie in ``save``."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("IMAGENETS_LISTS", str(save / "lists"))
        patch.setattr(sys, "argv", ["script.py", *map(str, arguments)])
        main()


def start_script(context, script, save, said, *arguments, variables=()):
    """Start methods/SCRIPT with the lists that lie in ``save``; what it prints goes to the file ``said``."""
    environment = {"IMAGENETS_LISTS": str(save / "lists"), **dict(variables)}
    process = context.Process(
        target=method_scripts.child, args=(script, [*map(str, arguments)], environment, said)
    )
    process.start()
    return process


def on_two_ranks(context, script, save, said, *arguments):
    """Run a script on two ranks to its end, which one of them tells."""
    files = [said.with_suffix(f".{rank}") for rank in (0, 1)]
    ranks = [
        start_script(context, script, save, file, *arguments, variables=variables)
        for file, variables in zip(files, torchrun_variables(2), strict=True)
    ]
    for rank in ranks:
        rank.join(TIMEOUT)
    text = "".join(file.read_text() for file in files)
    assert [rank.exitcode for rank in ranks] == [0, 0], text
    assert text.count("saved: ") == 1
