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
from PIL import Image

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

NAME = "n00000001/image_1.png"


class Squares:
    """Chunks 0, 1, 4, …; ``fault`` is done in the worker that makes the third."""

    def __init__(self, count, fault=None):
        self.count, self.fault = count, fault

    def __len__(self):
        return self.count

    def __getitem__(self, index):
        if self.fault is not None and index == 2:
            self.fault()
        return index**2


def die():
    os.kill(os.getpid(), signal.SIGKILL)


def run_into_a_bug():
    raise RuntimeError("a bug of our own")


HANDS_OVER = """
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
    done = subprocess.run(
        [sys.executable, "-c", HANDS_OVER],
        cwd=CHECKOUT, capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert done.stdout == "ended\n", done.stderr


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


@pytest.mark.parametrize("count", [0, 1])
def test_a_pass_that_nobody_ended_does_not_keep_python_from_ending(count):
    code = f"from imagenets.common.workers import load_tensors; p = load_tensors(range(9), {count}); next(p)"
    subprocess.run([sys.executable, "-c", code], cwd=CHECKOUT, timeout=60, check=True)


class Stuck(Squares):
    """The second chunk never comes."""

    def __init__(self, count):
        super().__init__(count)
        self.begun = multiprocessing.Event()

    def __getitem__(self, index):
        while index == 1:
            self.begun.set()
            time.sleep(60)
        return index


@pytest.mark.parametrize("loads", [load_chunks, load_tensors])
def test_a_worker_that_waits_for_ever_does_not_keep_a_pass_from_ending(loads, monkeypatch):
    """It is asked to leave while the pass waits for it; PyTorch would wait five seconds for each."""
    asked, ask = [], workers._ask_to_leave

    def asking(processes):
        asked.extend(processes)
        ask(processes)

    monkeypatch.setattr(workers, "_PATIENCE", 0.05)
    monkeypatch.setattr(workers, "_ask_to_leave", asking)
    stuck = Stuck(9)
    arriving = loads(stuck, 2)
    assert next(arriving) == 0
    assert stuck.begun.wait(60)
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


@pytest.fixture(params=["evaluator.py", "localization.py", "visualize.py"])
def stuck(request, tmp_path):
    """A script whose one worker waits for a file that never comes; gives the process and its folder."""
    name = request.param
    names = write_pairs(tmp_path, [(np.ones((9, 12), int), np.ones((9, 12), int))] * 40)
    for mask in names:
        for folder, suffix in (("images", ".png"), ("maps", ".npy")):
            path = (tmp_path / folder / mask).with_suffix(suffix)
            path.parent.mkdir(parents=True, exist_ok=True)
            if suffix == ".npy":
                np.save(path, np.zeros((9, 12)))
            else:
                Image.new("RGB", (12, 9)).save(path)
    for i in range(3, 50):
        (tmp_path / f"gt/n{i:08d}").mkdir()
    write_mask(tmp_path / "pred" / NAME, np.ones((9, 12), int))
    waited_for = tmp_path / ("gt" if name == "localization.py" else "pred") / NAME
    waited_for.unlink()
    os.mkfifo(waited_for)
    options = {
        "evaluator.py": ["--predict-dir", "pred", "--mode", "50"],
        "localization.py": ["--attribution-dir", "maps", "--mode", "50"],
        "visualize.py": ["--predict-dir", "pred", "--image-dir", "images", "--out", "out"],
    }
    process = subprocess.Popen(
        [sys.executable, CHECKOUT / "evaluation" / name, "--gt-dir", "gt", "--workers", "2", *options[name]],
        cwd=tmp_path,
        env={**os.environ, "IMAGENETS_LISTS": "/nowhere"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    with process, waited_for.open("wb"):  # open returns when the worker has begun to read
        yield process, children(process.pid), tmp_path
        process.kill()


@pytest.mark.parametrize(("how", "status"), [("TERM", 143), ("INT", 130), ("KILL", -9)])
def test_workers_end_with_their_parent_and_temporary_folders_go(stuck, how, status):
    process, workers, folder = stuck
    assert len(workers) == 2
    process.send_signal(getattr(signal, f"SIG{how}"))  # to the main process alone
    _, messages = process.communicate(timeout=60)
    assert process.returncode == status
    wait_until_gone(workers)
    assert "Traceback" not in messages
    if how != "KILL":
        assert not (folder / "out").exists()


def test_what_a_killed_run_left_is_removed_by_the_next(tmp_path):
    names = write_pairs(tmp_path, [(np.ones((9, 12), int), np.ones((9, 12), int))])
    image = (tmp_path / "images" / names[0]).with_suffix(".png")
    image.parent.mkdir(parents=True)
    Image.new("RGB", (12, 9)).save(image)
    write_mask(tmp_path / "out/.overlays.tmp/n1/left.png", np.ones((2, 2), int))
    options = ["--predict-dir", "pred", "--image-dir", "images", "--out", "out", "--workers", "0"]
    command = [sys.executable, CHECKOUT / "evaluation/visualize.py", "--gt-dir", "gt", *options]
    subprocess.run(command, cwd=tmp_path, check=True, stdout=subprocess.DEVNULL)
    assert [str(p.relative_to(tmp_path / "out")) for p in (tmp_path / "out").rglob("*.png")] == names
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
