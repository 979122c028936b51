"""What all scripts have in common: how they end without packages, and when they are interrupted early."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from masksets import write_mask

CHECKOUT = Path(__file__).resolve().parents[1]
FOLDERS = ("datapreparation", "evaluation", "methods", "demo")
SCRIPTS = sorted(
    str(path.relative_to(CHECKOUT))
    for folder in FOLDERS
    for path in (CHECKOUT / folder).glob("*.py")
    if "__main__" in path.read_text()
)

# Loaded by Python before a script: it looks at each import first.
SHIM = """\
import importlib.metadata, os, signal, sys
class Finder:
    def find_spec(self, name, path=None, target=None):
        package = name.partition(".")[0]
        if package in sys.stdlib_module_names or package in ("imagenets", "command_line", "demo", "org"):
            return None
        if os.environ["WHAT"] == "interrupt":
            os.kill(os.getpid(), signal.SIGINT)
        if os.environ["WHAT"] in ("hide", package):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
sys.meta_path.insert(0, Finder())
"""


def run_with(tmp_path, what, script, *arguments):
    (tmp_path / "shim").mkdir(exist_ok=True)
    (tmp_path / "shim/sitecustomize.py").write_text(SHIM)
    env = {**os.environ, "PYTHONPATH": str(tmp_path / "shim"), "WHAT": what}
    command = [sys.executable, str(CHECKOUT / script), *map(str, arguments)]
    return subprocess.run(command, env=env, cwd=tmp_path, capture_output=True, text=True, timeout=120)


@pytest.mark.parametrize("script", SCRIPTS)
def test_a_missing_package_is_one_line(tmp_path, script):
    done = run_with(tmp_path, "hide", script, "--help")
    assert done.returncode == 1 and done.stdout == ""
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: this Python lacks ") and "bash setup.sh" in line


@pytest.mark.parametrize("script", SCRIPTS)
def test_an_interrupt_while_packages_are_imported_is_one_word(tmp_path, script):
    done = run_with(tmp_path, "interrupt", script, "--help")
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "interrupted\n")


@pytest.mark.parametrize("given", [None, "active"])
def test_threads_that_wait_leave_the_cores_to_others(given):
    """Unless the user wants it otherwise."""
    environment = {name: value for name, value in os.environ.items() if name != "OMP_WAIT_POLICY"}
    done = subprocess.run(
        [sys.executable, "-c", "import command_line.startup, os; print(os.environ['OMP_WAIT_POLICY'])"],
        cwd=Path(__file__).resolve().parents[1],
        env=environment | ({"OMP_WAIT_POLICY": given} if given else {}),
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert done.stdout.strip() == (given or "passive")


def test_garbage_is_collected_while_a_script_works():
    code = "import gc; from command_line.startup import run; print(gc.isenabled()); "
    code += "run(lambda: print(gc.isenabled()))"
    script = "import sys; sys.argv[0] = 'evaluation/match.py'; " + code
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=CHECKOUT, check=True, capture_output=True, text=True
    )
    assert done.stdout.split() == ["False", "True"]


@pytest.mark.parametrize(("main", "status"), [("print('done')", 0), ("exit(1)", 1), ("exit(2)", 2)])
def test_nothing_runs_after_the_last_line(main, status):
    """Threads of a process group would abort it while Python takes itself apart; other packages' spin."""
    code = (
        "import atexit, command_line.startup, ctypes, threading, time\n"
        "ctypes.pythonapi.Py_AtExit(ctypes.CDLL(None).abort)\n"
        "threading.Thread(target=time.sleep, args=(600,)).start()\n"
        f"command_line.startup.run(lambda: {main})"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=CHECKOUT, capture_output=True, timeout=60)
    assert done.returncode == status


def test_a_rank_that_fails_says_so():
    code = "import command_line.startup; command_line.startup.run(lambda: 1 / 0)"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=CHECKOUT, env=os.environ | {"TORCHELASTIC_RUN_ID": "1"},
        check=False, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 1 and "ZeroDivisionError" in done.stderr


@pytest.mark.parametrize(
    ("package", "command", "more"),
    [("numba", "bash setup.sh", ()), ("matplotlib", "bash setup.sh", ("--report", "report.html"))],
)
def test_a_missing_package_that_is_needed_late(tmp_path, package, command, more):
    for folder in ("gt", "pred"):
        write_mask(tmp_path / folder / "n00000001/a.png", np.ones((9, 9), int))
    done = run_with(
        *(tmp_path, package, "evaluation/evaluator.py", "--predict-dir", "pred", "--gt-dir", "gt"),
        *("--mode", "50", "--workers", "1", *more),
    )
    assert done.returncode == 1
    last = done.stderr.splitlines()[-1]
    assert last == f"error: this Python lacks {package}: {command}; source .venv/bin/activate"
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "report.html").exists()
