"""Scripts that need one of torchrun's processes, and scripts that one of them calls."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from contextlib import suppress

import numpy as np
import pytest
from helpers.processes import is_running, wait_for, wait_until_gone
from masksets import CHECKOUT, random_images, write_pairs

from imagenets.common.errors import InputError
from imagenets.common.torchrun import Place, inside_other_job, place
from imagenets.learning import processes

JOB = {"TORCHELASTIC_RUN_ID": "test", "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}


def test_the_first_process_scores_and_the_others_leave(tmp_path):
    write_pairs(tmp_path, random_images(np.random.default_rng(3), 21, 50, 50))
    options = "--gt-dir gt --predict-dir pred --mode 50 --session-name a --workers 0 --results-dir"

    def match(results, **variables):
        """Run match.py as torchrun runs a rank, or alone; status, output and the files that it made."""
        command = [sys.executable, CHECKOUT / "evaluation/match.py", *options.split(), results]
        done = subprocess.run(
            command, cwd=tmp_path, env=os.environ | variables, capture_output=True, text=True, timeout=120
        )
        made = (tmp_path / results).rglob("*.*")
        files = {path.relative_to(tmp_path / results): path.read_bytes() for path in made}
        return done.returncode, done.stdout.replace(results, "results"), done.stderr, files

    alone = match("alone")
    assert alone[0] == 0 and len(alone[3]) == 3, "the matching, what it was made of, and the cached table"
    assert match("first", **JOB, RANK="0", LOCAL_RANK="0") == alone
    assert match("second", **JOB, RANK="1", LOCAL_RANK="1") == (0, "", "", {})


def test_a_place_is_torchruns_alone(monkeypatch):
    monkeypatch.setenv("RANK", "3")  # as other launchers set it
    assert place() is None
    for name, value in (JOB | {"LOCAL_RANK": "1"}).items():
        monkeypatch.setenv(name, value)
    assert place() == Place(rank=3, number=2, local_rank=1, local_number=2)
    assert not inside_other_job()


ASKS = "from imagenets.common.torchrun import inside_other_job; print(inside_other_job())"
CALLS = "import subprocess, sys; sys.exit(subprocess.run(sys.argv[1:]).returncode)"
WRAPPER = ["sh", "-c", '"$@"; true', "sh"]  # as for binding a rank to cores


@pytest.mark.parametrize(
    ("by", "inside"),
    [
        ([sys.executable, "-c", CALLS], True),
        ([sys.executable, "-c", CALLS, *WRAPPER], True),
        (WRAPPER, False),
    ],
)
def test_what_a_rank_calls_is_no_rank(by, inside):
    command = [*by, sys.executable, "-c", ASKS]
    said = subprocess.check_output(command, cwd=CHECKOUT, env=os.environ | JOB | {"RANK": "0"}, timeout=60)
    assert said.decode().strip() == str(inside)


def test_a_script_of_all_ranks_refuses_to_join_the_job_of_its_caller(monkeypatch):
    monkeypatch.setattr(processes, "inside_other_job", lambda: True)
    with pytest.raises(InputError, match="env -u TORCHELASTIC_RUN_ID python"), processes.started("cpu"):
        pass


WAITS = """
import os, pathlib, sys, time
from command_line.startup import run

def main():
    pathlib.Path(sys.argv[1], str(os.getpid())).touch()
    while True:
        time.sleep(60)

run(main, on_all_ranks=True)
"""


@pytest.mark.parametrize(
    ("sent", "status", "said"), [(signal.SIGTERM, 143, "terminated\n"), (signal.SIGKILL, -9, "")]
)
def test_a_launcher_that_is_stopped_or_killed_leaves_no_rank_and_says_one_line(tmp_path, sent, status, said):
    script, ranks = tmp_path / "waits.py", tmp_path / "ranks"
    script.write_text(WAITS)
    ranks.mkdir()
    torchrun = [sys.executable, CHECKOUT / "command_line/torchrun.py", "--standalone", "--nproc-per-node=2"]
    launcher = subprocess.Popen(
        [*torchrun, script, ranks], env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
        stderr=subprocess.PIPE, text=True, start_new_session=True,
    )  # fmt: skip
    pids = []
    try:
        wait_for(lambda: len(list(ranks.iterdir())) == 2 or launcher.poll() is not None)
        pids = [int(path.name) for path in ranks.iterdir()]
        launcher.send_signal(sent)
        wait_until_gone(pids)
        _, errors = launcher.communicate(timeout=60)
        assert (launcher.returncode, errors) == (status, said)
        assert len(pids) == 2
    finally:
        for pid in filter(is_running, [launcher.pid, *pids]):
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        launcher.wait()
