"""This process's place among those that torchrun started, read from the variables that torchrun sets."""

from __future__ import annotations

import os
from pathlib import Path
from typing import NamedTuple

_RUN_ID = "TORCHELASTIC_RUN_ID"


class Place(NamedTuple):
    """Rank of this process among all ``number`` and, as ``local_rank``, among ``local_number`` here."""

    rank: int = 0
    number: int = 1
    local_rank: int = 0
    local_number: int = 1


def place() -> Place | None:
    """Return this process's place; None if torchrun did not start it."""
    if _RUN_ID not in os.environ:
        return None
    names = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")
    return Place(*(int(os.environ.get(name, usual)) for name, usual in zip(names, Place(), strict=True)))


def leave_job() -> None:
    """Let this process, and those that it starts, work as without torchrun."""
    os.environ.pop(_RUN_ID, None)


def inside_other_job() -> bool:
    """Return whether a Python program that torchrun started has called this one, as a command.

    Such a process inherits the variables, but does not belong to the job and must not join it. A shell script
    between torchrun and this process (to bind it to cores, for example) does not count.
    """
    if _RUN_ID not in os.environ:
        return False
    process = os.getppid()
    try:
        while process > 1 and _variable_of_job(process):
            about = Path(f"/proc/{process}")
            if (about / "exe").readlink().name.startswith("python"):
                return True
            stat = (about / "stat").read_text(encoding="utf-8", errors="replace")
            process = int(stat.rpartition(")")[2].split()[1])  # its parent
    except OSError:  # it is another user's, or has ended
        pass
    return False


def _variable_of_job(process: int) -> bool:
    """Return whether a process was started with torchrun's variables."""
    return f"\0{_RUN_ID}=".encode() in b"\0" + Path(f"/proc/{process}/environ").read_bytes()
