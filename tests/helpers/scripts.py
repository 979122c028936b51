"""Run the project's scripts as users do: those of datapreparation/ in this process, others as their own."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any
from unittest.mock import patch

from masksets import CHECKOUT, in_process

DATA = CHECKOUT / "datapreparation"


def environment(**extra: str | Path | None) -> dict[str, str]:
    """The environment without what could lead to the network or the user's cache, and with ``extra``."""
    kept = {key: value for key, value in os.environ.items() if not key.startswith("IMAGENETS_")}
    kept = {key: value for key, value in kept.items() if not key.lower().endswith("_proxy")}
    kept["PYTHON"] = sys.executable
    return kept | {key: str(value) for key, value in extra.items() if value is not None}


def command(script: str, *arguments: str | Path) -> list[str]:
    first = "bash" if script.endswith(".sh") else sys.executable
    return [first, str(DATA / script), *map(str, arguments)]


def run(
    script: str, *arguments: str | Path, env: Mapping[str, str], status: int = 0, cwd: Path | None = None
) -> subprocess.CompletedProcess[str]:
    """Run a script of datapreparation/ and insist on its exit status; Python's is run in this process."""
    if script.endswith(".sh"):
        words = command(script, *arguments)
        result = subprocess.run(words, env=env, cwd=cwd, capture_output=True, text=True, timeout=300)
    else:
        with patch.dict(os.environ, env, clear=True):
            result = in_process(f"datapreparation/{script}", *arguments, cwd=cwd)
    assert result.returncode == status, f"{script}: {result.returncode}\n{result.stdout}\n{result.stderr}"
    assert "Traceback" not in result.stderr, result.stderr
    return result


def killed_at(moment: int, calls: Iterable[str], work: Callable[[], object]) -> bool:
    """Do ``work`` in a fork that dies (SIGKILL) before the ``moment``-th of these calls of ``os``.

    A file that the kernel was to copy is half there then. Returns False where there were fewer calls.
    """
    child = os.fork()
    if child:
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
    left = iter(range(moment))

    def dying(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*given: Any, **named: Any) -> Any:
            if next(left, None) == moment - 1:
                if name == "copy_file_range":
                    source, target, size, offset, at = given
                    os.pwrite(target, os.pread(source, size // 2, offset), at)
                os.kill(os.getpid(), signal.SIGKILL)
            return function(*given, **named)

        return call

    try:
        for name in calls:
            setattr(os, name, dying(name, getattr(os, name)))
        work()
    finally:
        os._exit(0)
