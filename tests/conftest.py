"""Tests find the project's modules, share what is dear to make, and write into memory where there is room."""

from __future__ import annotations

import os
import shutil
import signal
import sys
from pathlib import Path

import pytest

CHECKOUT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(CHECKOUT), str(CHECKOUT / "tests")]

# The tests write half a million small files, which a slow disk takes minutes for.
MEMORY = Path("/dev/shm")
if MEMORY.is_dir() and os.access(MEMORY, os.W_OK) and shutil.disk_usage(MEMORY).free > 4e9:
    os.environ.setdefault("PYTEST_DEBUG_TEMPROOT", str(MEMORY))

# A shell has its background jobs ignore interrupts, and what they start inherits that: tests send some.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# Tests fork, and a process that is forked off one with OpenMP's threads waits for them for ever. Besides, one
# process a core is at work already: more threads in each only wait for one another.
os.environ["OMP_NUM_THREADS"] = "1"


# Files that take longest, though they have few tests. Begun first, so that no core waits for one at the end.
LONG = ("test_demo", "test_kmeans", "test_torchrun", "test_pass_training", "test_training")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put the files that take longest first; a file's tests stay together, in their order."""
    items.sort(key=lambda item: item.path.stem not in LONG)


@pytest.fixture(scope="session")
def context():
    """Start processes that have PyTorch loaded; see ``forking_context``."""
    from helpers.processes import forking_context

    return forking_context()


@pytest.fixture(scope="session")
def lists(tmp_path_factory):
    """Lists of mode 50 for a benchmark that nobody has."""
    from helpers.generated_imagenet import write_toy_lists

    return write_toy_lists(tmp_path_factory.mktemp("lists"))


@pytest.fixture
def env(tmp_path, lists):
    """The environment of a user who has these lists, and nothing in the cache."""
    from helpers.scripts import environment

    return environment(IMAGENETS_LISTS=lists, XDG_CACHE_HOME=tmp_path / "cache")
