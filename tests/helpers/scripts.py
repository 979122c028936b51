"""Run the project's scripts as users do: those of datapreparation/ in this process, others as their own."""

from __future__ import annotations

import io
import os
import signal
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterable, Mapping
from contextlib import redirect_stderr, redirect_stdout
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

from command_line.startup import _status_of

CHECKOUT = Path(__file__).resolve().parents[2]
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
        result = _run_here(script, arguments, env, cwd)
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


def _run_here(
    script: str, arguments: tuple[str | Path, ...], env: Mapping[str, str], cwd: Path | None
) -> subprocess.CompletedProcess[str]:
    main = import_module(f"datapreparation.{Path(script).stem}").main
    out, err = io.TextIOWrapper(io.BytesIO()), io.TextIOWrapper(io.BytesIO())
    with (
        pytest.MonkeyPatch.context() as patch,
        redirect_stdout(out),
        redirect_stderr(err),
        warnings.catch_warnings(),
    ):
        for name in os.environ.keys() - env.keys():
            patch.delenv(name)
        for name, value in env.items():
            patch.setenv(name, value)
        if cwd is not None:
            patch.chdir(cwd)
        patch.setattr(sys, "argv", [script, *map(str, arguments)])
        status = _status_of(main, resumes=True)
        texts = []
        for stream in (out, err):
            stream.seek(0)
            texts.append(stream.read())
    return subprocess.CompletedProcess(script, status, *texts)
