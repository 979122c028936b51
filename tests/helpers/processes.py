"""What runs, by number: a process's children, whether one is there, and waiting until something holds."""

from __future__ import annotations

import multiprocessing
import os
import sys
import time
from multiprocessing import forkserver
from pathlib import Path

import pytest


def forking_context():
    """Real processes that need not import PyTorch: they are forked off one that has done so."""
    made = multiprocessing.get_context("forkserver")
    made.set_forkserver_preload(["helpers.method_scripts", "helpers.train_toy"])
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", os.pathsep.join(sys.path))  # where the server looks for the modules
        patch.setenv("OMP_NUM_THREADS", "1")
        forkserver.ensure_running()
    return made


def children(pid):
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def is_running(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def wait_for(condition, seconds=60):
    """Wait until a condition holds; fail after far more seconds than it takes."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.02)


def wait_until_gone(pids):
    wait_for(lambda: not any(map(is_running, pids)))


def torchrun_variables(processes):
    """What torchrun sets for each of its processes.

    Their store is held here, until the next one is made: so no port has to be found and let go.
    """
    import torch.distributed as dist

    store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    torchrun_variables.store = store
    common = {
        "TORCHELASTIC_RUN_ID": "test", "TORCHELASTIC_USE_AGENT_STORE": "True", "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(store.port), "WORLD_SIZE": str(processes), "LOCAL_WORLD_SIZE": str(processes),
    }  # fmt: skip
    return [common | {"RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(processes)]
