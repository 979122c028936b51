"""Worker processes: all results in order, one that dies is told, none outlives the run, quotas count."""

from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time

import numpy as np
import pytest
import torch
from helpers.processes import children, wait_until_gone
from masksets import CHECKOUT, write_mask, write_pairs

from evaluation import visualize
from imagenets.common import workers
from imagenets.common.errors import InputError
from imagenets.common.workers import (
    WORKER_DIED,
    available_cores,
    default_workers,
    load_chunks,
    load_tensors,
    process_map,
    process_pool,
)

FOLDERS = {"gt-dir": "gt", "predict-dir": "pred", "image-dir": "images", "out": "out"}  # of visualize.py


class Squares:
    """Chunks 0, 1, 4, …; ``fault`` is done in the worker that makes the second."""

    def __init__(self, count, fault=None):
        self.count, self.fault = count, fault

    def __len__(self):
        return self.count

    def __getitem__(self, index):
        if self.fault is not None and index == 1:
            self.fault()
        return index**2


def die():
    os.kill(os.getpid(), signal.SIGKILL)


def run_into_a_bug():
    raise RuntimeError("a bug of our own")


HANDS_OVER = """
from evaluation import visualize
from imagenets.common import workers
workers._PATIENCE = 50
try:
    with workers.process_pool(2) as pool:
        handed = [pool.submit(bytes, 1 << 26) for _ in range(4)]
        handed[0].result()  # by now the other worker has 64 MB on their way
        raise KeyboardInterrupt
except KeyboardInterrupt:
    print("ended")
"""


def test_a_pool_that_is_given_up_while_workers_hand_over_ends():
    assert subprocess.check_output([sys.executable, "-c", HANDS_OVER], cwd=CHECKOUT, timeout=60) == b"ended\n"


def test_both_ways_give_results_in_order():
    for count in (0, 1, 7):
        for processes in (0, 2):
            assert list(load_chunks(Squares(count), processes)) == [i**2 for i in range(count)]
            with process_map(processes) as mapped:
                assert list(mapped(abs, range(-count, 0))) == list(range(count, 0, -1))


def test_a_worker_that_dies_is_told_by_both_pools_in_the_same_words():
    with pytest.raises(InputError) as of_loader:
        list(load_chunks(Squares(5, die), 1))
    with pytest.raises(InputError) as of_map, process_map(1) as mapped:
        list(mapped(Squares(5, die).__getitem__, range(5)))
    assert str(of_loader.value) == str(of_map.value) == WORKER_DIED


def lose_a_reader():
    """As multiprocessing's thread that hands tensors over does when their reader has left."""
    try:
        raise EOFError
    except EOFError:
        sys.excepthook(*sys.exc_info())


def test_readers_that_leave_are_no_traceback_of_a_worker(capfd):
    with process_pool(1) as pool:
        pool.submit(lose_a_reader).result()
    assert capfd.readouterr().err == ""


class Tensors(Squares):
    """The same as tensors, which workers hand over through shared memory."""

    def __getitem__(self, index):
        return torch.full((1000,), super().__getitem__(index))


@pytest.mark.parametrize("start", ["fork", "forkserver"])
def test_tensors_come_in_the_order_of_their_keys(start):
    multiprocessing.get_context("forkserver").set_forkserver_preload(["torch.utils.data"])
    with process_pool(1, start=start) as pool:
        assert list(pool.map(abs, range(-5, 0))) == [5, 4, 3, 2, 1]
    found = [int(tensor[0]) for tensor in load_tensors(Tensors(9), 1, keys=[4, 0, 8], start=start)]
    assert found == [16, 0, 64]


def test_a_pass_that_ends_early_ends_the_pinning_thread_before_its_workers(monkeypatch, capfd):
    """Pinning as on a machine with CUDA, but for the copy itself: the thread that does it runs."""
    threads = set()

    def note(*_):
        threads.add(threading.current_thread())
        return 0

    monkeypatch.setattr(torch.accelerator, "is_available", lambda *_, **__: True)
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda *_, **__: torch.device("cpu"))
    for name in ("set_device_index", "current_device_index"):
        monkeypatch.setattr(torch.accelerator, name, note)
    monkeypatch.setattr(torch.utils.data._utils.pin_memory, "pin_memory", lambda data, *_: data)
    for _ in range(8):
        arriving = load_tensors(Tensors(1000), 2, pin=True, ahead=4)
        assert int(next(arriving)[0]) == 0
        arriving.close()
        assert not multiprocessing.active_children()
    pinning = threads - {threading.main_thread()}
    assert len(pinning) == 8
    assert not any(thread.is_alive() for thread in pinning)
    assert capfd.readouterr().err == ""


def test_passes_that_nobody_ended_do_not_keep_python_from_ending():
    code = "from imagenets.common.workers import load_tensors as load\n"
    code += "here, workers = load(range(9), 0), load(range(9), 1)\nnext(here), next(workers)"
    subprocess.run([sys.executable, "-c", code], cwd=CHECKOUT, timeout=60, check=True)


@pytest.mark.parametrize("loads", [load_chunks, load_tensors])
def test_a_worker_that_waits_for_ever_does_not_keep_a_pass_from_ending(loads, monkeypatch):
    """It is asked to leave while the pass waits for it; PyTorch would wait five seconds for each."""
    asked, ask, begun = [], workers._ask_to_leave, multiprocessing.Event()

    def never_comes():
        begun.set()
        while True:
            time.sleep(60)

    monkeypatch.setattr(workers, "_PATIENCE", 0.05)
    monkeypatch.setattr(workers, "_ask_to_leave", lambda processes: asked.extend(processes) or ask(processes))
    arriving = loads(Squares(9, never_comes), 2)
    assert next(arriving) == 0
    assert begun.wait(60)
    arriving.close()
    assert len(asked) == 2
    assert not multiprocessing.active_children()


def test_signals_of_the_job_are_left_to_the_main_process():
    with process_pool(1) as pool:
        (worker,) = multiprocessing.active_children()
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1):
            os.kill(worker.pid, number)
        assert pool.submit(os.getpid).result() == worker.pid
    assert not signal.pthread_sigmask(signal.SIG_BLOCK, ())


def test_an_error_of_a_worker_is_not_taken_for_its_death():
    with pytest.raises(RuntimeError, match="a bug of our own") as caught:
        list(load_chunks(Squares(5, run_into_a_bug), 2))
    assert caught.value and not multiprocessing.active_children(), "the error keeps its workers"
    with pytest.raises(RuntimeError, match="a bug of our own"), process_map(1) as mapped:
        list(mapped(Squares(5, run_into_a_bug).__getitem__, range(5)))


@pytest.mark.parametrize(
    ("script", "options", "waited_for", "how", "status"),
    [
        ("evaluator.py", "--predict-dir pred --mode 50", "pred", "KILL", -9),
        ("localization.py", "--attribution-dir maps --mode 50", "gt", "INT", 130),
        ("visualize.py", "--predict-dir pred --image-dir images --out out", "pred", "TERM", 143),
    ],
)
def test_workers_end_with_their_parent_and_temporary_folders_go(
    tmp_path, script, options, waited_for, how, status
):
    """Also a worker that waits for a file that never comes."""
    for mask in write_pairs(tmp_path, [(np.ones((9, 12), int), np.ones((9, 12), int))] * 40):
        write_mask(tmp_path / "images" / mask, np.ones((9, 12), int))
        (tmp_path / "maps" / mask).parent.mkdir(parents=True, exist_ok=True)
        np.save((tmp_path / "maps" / mask).with_suffix(".npy"), np.zeros((9, 12)))
    for i in range(3, 50):
        (tmp_path / f"gt/n{i:08d}").mkdir()
    stuck = tmp_path / waited_for / "n00000001/image_1.png"
    stuck.unlink()
    os.mkfifo(stuck)
    command = [CHECKOUT / "evaluation" / script, "--gt-dir", "gt", "--workers", "2", *options.split()]
    process = subprocess.Popen(
        [sys.executable, *command], cwd=tmp_path, env={**os.environ, "IMAGENETS_LISTS": "/nowhere"},
        stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, start_new_session=True,
    )  # fmt: skip
    with process, stuck.open("wb"):  # open returns when the worker has begun to read
        workers = children(process.pid)
        assert len(workers) == 2
        process.send_signal(getattr(signal, f"SIG{how}"))  # to the main process only
        _, messages = process.communicate(timeout=60)
        assert process.returncode == status
        wait_until_gone(workers)
    assert "Traceback" not in messages
    assert not (tmp_path / "out").exists()


def test_what_a_killed_run_left_is_removed_by_the_next(tmp_path, monkeypatch):
    (name,) = write_pairs(tmp_path, [(np.ones((9, 12), int), np.ones((9, 12), int))])
    write_mask(tmp_path / "images" / name, np.ones((9, 12), int))
    write_mask(tmp_path / "out/.overlays.tmp/n1/left.png", np.ones((2, 2), int))
    folders = [f"--{flag}={tmp_path / folder}" for flag, folder in FOLDERS.items()]
    monkeypatch.setattr(sys, "argv", ["visualize.py", *folders, "--workers", "0"])
    visualize.main()
    assert [str(p.relative_to(tmp_path / "out")) for p in (tmp_path / "out").rglob("*.png")] == [name]
    assert not list((tmp_path / "out").glob(".*"))


@pytest.mark.parametrize(
    ("groups", "files", "cores"),
    [
        ("0::/\n", {"cpu.max": "150000 100000"}, 2),
        ("0::/\n", {"cpu.max": "max 100000"}, 8),
        ("0::/a/b\n", {"a/cpu.max": "100000 100000", "a/b/cpu.max": "max 100000"}, 1),
        ("0::/gone\n", {"cpu.max": "20000 100000"}, 1),
        ("1:cpu,cpuacct:/\n", {"cpu/cpu.cfs_quota_us": "300000", "cpu/cpu.cfs_period_us": "100000"}, 3),
        ("1:cpu:/\n", {"cpu/cpu.cfs_quota_us": "-1", "cpu/cpu.cfs_period_us": "100000"}, 8),
        ("2:memory:/\n", {"cpu.max": "100000 100000"}, 8),
        ("", {}, 8),
    ],
)
def test_cores_are_those_of_the_containers_quota(tmp_path, monkeypatch, groups, files, cores):
    for name, content in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(content)
    (tmp_path / "groups").write_text(groups)
    monkeypatch.setattr(workers, "_CGROUPS", tmp_path)
    monkeypatch.setattr(workers, "_OWN_GROUPS", tmp_path / "groups")
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)))
    assert available_cores() == cores


def test_cores_are_shared_by_the_ranks_of_a_machine(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(64)))
    monkeypatch.setattr(workers, "_OWN_GROUPS", workers.Path("/nowhere"))
    assert (default_workers(), default_workers(most=8)) == (64, 8)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "16")
    assert default_workers() == 64, "a variable that torchrun did not set"
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "1")
    assert (default_workers(), default_workers(most=8)) == (4, 4)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "100")
    assert default_workers() == 1
