"""match.py and evaluator.py under torchrun: the files of one process, and no hang when something fails."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time

import numpy as np
import pytest
from masksets import CHECKOUT, random_images, write_pairs

TIMEOUT = 240  # seconds, far above what a run takes


@pytest.fixture
def folder(tmp_path):
    write_pairs(tmp_path, random_images(np.random.default_rng(3), 21, 50, 50))
    return tmp_path


def command(name, *arguments):
    masks = ["--gt-dir", "gt", "--predict-dir", "pred", "--mode", "50"]
    return [str(CHECKOUT / "evaluation" / name), *masks, *map(str, arguments)]


def torchrun(folder, processes, *arguments):
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    return subprocess.run(
        [*launcher, f"--nproc-per-node={processes}", *command(*arguments)],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=TIMEOUT,
        check=False,
    )


def test_any_number_of_processes_gives_the_same_files_and_output(folder):
    def results_of(processes, *arguments):
        results = folder / f"results{processes}"
        run = (*arguments, "--results-dir", results)
        done = (
            torchrun(folder, processes, *run)
            if processes
            else subprocess.run(
                [sys.executable, *command(*run)], cwd=folder, capture_output=True, text=True, check=False
            )
        )
        assert done.returncode == 0, done.stderr
        files = {str(p.relative_to(results)): p.read_bytes() for p in results.rglob("*") if p.is_file()}
        return done.stdout.replace(str(results), "results"), files

    alone = results_of(0, "match.py", "--session-name", "a")
    assert len(alone[1]) == 3, "the matching, what it was made of, and the cached table"
    for processes in (1, 4):
        assert results_of(processes, "match.py", "--session-name", "a") == alone
    score = ("evaluator.py", "--match", "a", "--no-cache", "--output")
    scores = results_of(0, *score, folder / "results0/scores.json")
    assert results_of(4, *score, folder / "results4/scores.json")[1] == scores[1]


def test_more_processes_than_images(folder):
    few = sorted(str(path.relative_to(folder / "gt")) for path in (folder / "gt").rglob("*.png"))[:2]
    (folder / "few.txt").write_text("\n".join(few))
    done = torchrun(folder, 3, "match.py", "--session-name", "a", "--names", "few.txt", "--workers", "1")
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("2 images, method image") == 1


def test_idle_ranks_wait_longer_than_gloos_limit(folder):
    """Rank 0 works on for 3 s where the limit that PyTorch sets by itself is 1 s."""
    main = "import datetime, time, torch.distributed.distributed_c10d as c10d; "
    main += "c10d.default_pg_timeout = datetime.timedelta(seconds=1); "
    main += "from imagenets.scoring.ranks import run_on_ranks; from command_line.startup import run; "
    main += "run(lambda: run_on_ranks(lambda count: time.sleep(3)))"
    processes = started(CHECKOUT, 2, [sys.executable, "-c", main])
    messages = [process.communicate(timeout=TIMEOUT)[1] for process in processes]
    assert [process.returncode for process in processes] == [0, 0], messages


def test_bad_input_of_any_rank_is_one_message_of_rank_0(folder):
    masks = sorted((folder / "pred").rglob("*.png"))
    masks[-1].write_bytes(b"junk")
    masks[0].unlink()
    done = torchrun(folder, 2, "match.py", "--session-name", "a")
    assert done.returncode == 1
    assert done.stdout == ""
    assert done.stderr.count("error: 2 masks cannot be used:") == 1
    assert done.stderr.index(masks[0].name) < done.stderr.index(masks[-1].name)
    assert not (folder / "results").exists()


def ranks(folder, world, *arguments):
    return started(folder, world, [sys.executable, *command(*arguments)])


def started(folder, world, process):
    """Processes as torchrun starts them, but nobody who ends them all when one ends."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    common = {
        **os.environ,
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "WORLD_SIZE": str(world),
        "TORCHELASTIC_RUN_ID": "test",
    }
    return [
        subprocess.Popen(
            process,
            cwd=folder,
            env={**common, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(world)
    ]


@pytest.mark.parametrize("victim", [0, 1])
def test_a_killed_rank_ends_the_others(folder, victim):
    """The victim is killed while it counts: its share begins or ends with a mask that never arrives."""
    name = sorted((folder / "pred").rglob("*.png"))[0 if victim == 0 else -1]
    name.unlink()
    os.mkfifo(name)
    processes = ranks(folder, 2, "evaluator.py", "--workers", "0")
    with name.open("wb"):  # returns when the victim has begun to read
        time.sleep(0.5)
        processes[victim].send_signal(signal.SIGKILL)
        stdout, stderr = processes[1 - victim].communicate(timeout=TIMEOUT)
    processes[victim].communicate(timeout=TIMEOUT)
    assert processes[1 - victim].returncode == 1
    assert stdout == ""
    if victim == 1:
        assert "error: another process of torchrun has ended" in stderr
    assert "Traceback" not in stderr
    assert not (folder / "results").exists()


def test_a_rank_0_that_refuses_its_arguments_ends_the_others(folder):
    processes = ranks(folder, 2, "evaluator.py", "--match", "missing")
    (_, error), (_, silent) = (process.communicate(timeout=TIMEOUT) for process in processes)
    assert [process.returncode for process in processes] == [1, 1]
    assert "missing.json: no such matching" in error
    assert "error" not in silent
    assert "Traceback" not in silent


def test_a_rank_that_never_comes_is_told(folder):
    """As where a script is called from within a torchrun job, whose variables it inherits."""
    main = "import datetime, imagenets.scoring.ranks as ranks; from command_line.startup import run; "
    main += (
        "ranks._ALL_STARTED_WITHIN = datetime.timedelta(seconds=1); run(lambda: ranks.run_on_ranks(print))"
    )
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    variables = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": "2", "RANK": "0"}
    done = subprocess.run(
        [sys.executable, "-c", main],
        cwd=CHECKOUT,
        env={**os.environ, **variables, "TORCHELASTIC_RUN_ID": "test"},
        capture_output=True,
        text=True,
        timeout=TIMEOUT,
        check=False,
    )
    assert done.returncode == 1
    assert "not all of the 2 processes" in done.stderr
    assert "unset TORCHELASTIC_RUN_ID" in done.stderr


def test_without_torchrun_nothing_of_pytorch_is_loaded():
    """A cached evaluation takes less time than PyTorch takes to load."""
    check = "import sys, imagenets.scoring.ranks; "
    check += "import evaluation.evaluator, evaluation.match, evaluation.localization; "
    check += "sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", check], cwd=CHECKOUT, check=True)
