"""Temporary folders lie in memory where there is room: the tests write half a million small files."""

import os
import shutil
from pathlib import Path

MEMORY = Path("/dev/shm")

if MEMORY.is_dir() and os.access(MEMORY, os.W_OK) and shutil.disk_usage(MEMORY).free > 4e9:
    os.environ.setdefault("PYTEST_DEBUG_TEMPROOT", str(MEMORY))
