"""Run the project's scripts as users do: real processes."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

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
    """Run a script of datapreparation/ and insist on its exit status."""
    result = subprocess.run(
        command(script, *arguments), env=env, cwd=cwd, capture_output=True, text=True, timeout=300
    )
    assert result.returncode == status, f"{script}: {result.returncode}\n{result.stdout}\n{result.stderr}"
    assert "Traceback" not in result.stderr, result.stderr
    return result
