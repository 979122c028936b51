"""What all scripts have in common: how they end without packages, and when they are interrupted early."""

from __future__ import annotations

import os
import runpy
import subprocess
import sys

import numpy as np
import pytest
from masksets import CHECKOUT, write_mask

from command_line import startup

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
def test_a_missing_package_and_an_early_interrupt_are_one_line_each(tmp_path, script):
    done = run_with(tmp_path, "hide", script, "--help")
    assert done.returncode == 1 and done.stdout == ""
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: this Python lacks ") and "bash setup.sh" in line
    done = run_with(tmp_path, "interrupt", script, "--help")
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "interrupted\n")


@pytest.mark.parametrize("script", SCRIPTS)
def test_a_script_that_is_started_runs_its_main(script, monkeypatch):
    resuming = {"resumes": True}
    expected = {"methods": resuming | {"on_all_ranks": True}} | {"datapreparation/datapreparation_": resuming}
    started = []
    monkeypatch.setattr(startup, "run", lambda main, **how: started.append((main.__name__, how)))
    runpy.run_path(str(CHECKOUT / script), run_name="__main__")
    how = next((how for begin, how in expected.items() if script.startswith(begin)), {})
    assert started == [("main", {} if script == "methods/trivial.py" else how)]


def run_code(code, **variables):
    """Run Python code as one of the scripts, which all begin the same; a variable of None is not set."""
    env = {name: value for name, value in (os.environ | variables).items() if value is not None}
    begin = "import gc, os, sys; sys.argv[0] = 'evaluation/match.py'; import command_line.startup\n"
    command = [sys.executable, "-c", begin + code]
    return subprocess.run(
        command, cwd=CHECKOUT, env=env, capture_output=True, text=True, check=False, timeout=60
    )


@pytest.mark.parametrize(("given", "found"), [(None, "passive"), ("active", "active")])
def test_threads_that_wait_leave_the_cores_to_others_unless_told_otherwise(given, found):
    done = run_code("print(os.environ['OMP_WAIT_POLICY'])", OMP_WAIT_POLICY=given)
    assert done.stdout.strip() == found


def test_garbage_is_collected_while_a_script_works():
    done = run_code("print(gc.isenabled())\ncommand_line.startup.run(lambda: print(gc.isenabled()))")
    assert done.stdout.split() == ["False", "True"]


@pytest.mark.parametrize(("main", "status"), [("print('done')", 0), ("exit(1)", 1), ("exit(2)", 2)])
def test_nothing_runs_after_the_last_line(main, status):
    """Threads of a process group would abort it while Python takes itself apart; other packages' spin."""
    done = run_code(
        "import ctypes, threading, time\n"
        "ctypes.pythonapi.Py_AtExit(ctypes.CDLL(None).abort)\n"
        "threading.Thread(target=time.sleep, args=(600,)).start()\n"
        f"command_line.startup.run(lambda: {main})"
    )
    assert done.returncode == status


def test_a_rank_that_fails_says_so():
    done = run_code("command_line.startup.run(lambda: 1 / 0)", TORCHELASTIC_RUN_ID="1")
    assert done.returncode == 1 and "ZeroDivisionError" in done.stderr


@pytest.mark.parametrize(("package", "more"), [("numba", ()), ("matplotlib", ("--report", "report.html"))])
def test_a_missing_package_that_is_needed_late(tmp_path, package, more):
    for folder in ("gt", "pred"):
        write_mask(tmp_path / folder / "n00000001/a.png", np.ones((9, 9), int))
    arguments = ("--predict-dir", "pred", "--gt-dir", "gt", "--mode", "50", "--workers", "1", *more)
    done = run_with(tmp_path, package, "evaluation/evaluator.py", *arguments)
    last = done.stderr.splitlines()[-1]
    assert last == f"error: this Python lacks {package}: bash setup.sh; source .venv/bin/activate"
    assert (done.returncode, "Traceback" in done.stderr) == (1, False)
    assert not (tmp_path / "report.html").exists()
