"""Faults at a chosen moment of a script: a step of its training, or a batch of its inference."""

from __future__ import annotations

import errno
import os
import signal

from imagenets.common import whole_files
from imagenets.learning.engine import inference
from imagenets.learning.training import loop


def fill_disk():
    def replace(path, target):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    whole_files.Path.replace = replace


def fail():
    raise ZeroDivisionError("a bug of our own")


FAULTS = {
    "killed": lambda: os.kill(os.getpid(), signal.SIGKILL),
    "terminated": lambda: os.kill(os.getpid(), signal.SIGTERM),
    "exception": fail,
    "full disk": fill_disk,
}


def arm(fault, moment):
    """Have ``fault`` happen before the step or batch of this number, counted from this process's start."""
    left = moment

    def before(function):
        def armed(*arguments):
            nonlocal left
            if left == 0:
                FAULTS[fault]()
            left -= 1
            return function(*arguments)

        return armed

    loop._Training.step = before(loop._Training.step)
    inference._to_device = before(inference._to_device)
