"""Worker processes: all results in order, one that dies is told, none outlives the run, quotas count."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from helpers.processes import children, wait_until_gone
from masksets import CHECKOUT, write_mask, write_pairs
from PIL import Image

from imagenets.common import workers
from imagenets.common.errors import InputError
from imagenets.common.workers import WORKER_DIED, available_cores, load_chunks, process_map

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
from imagenets.common.workers import process_pool
try:
    with process_pool(2) as pool:
        handed = [pool.submit(bytes, 1 << 28) for _ in range(4)]
        handed[0].result()  # by now the other worker has a quarter of a gigabyte on its way
        raise KeyboardInterrupt
except KeyboardInterrupt:
    print("ended")
"""


def test_a_signal_is_answered_once_a_package_is_loaded():
    """An exception that a handler raises in a destructor, say, is printed and lost."""

    class Told:
        def __del__(self):
            signal.raise_signal(signal.SIGINT)

    reached = False
    with pytest.raises(KeyboardInterrupt), workers._signals_answered_later():
        Told()
        reached = True
    assert reached and signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_a_pool_that_is_given_up_while_workers_hand_over_ends():
    done = subprocess.run(
        [sys.executable, "-c", HANDS_OVER],
        cwd=CHECKOUT, capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert done.stdout == "ended\n", done.stderr


@pytest.fixture(params=[True, False], ids=["PyTorch is loaded", "PyTorch is not loaded"])
def pytorch_is_loaded(request, monkeypatch):
    """All chunks are made by DataLoader's processes, or all by those that need no PyTorch."""
    monkeypatch.setattr(workers, "_pytorch_is_loaded", lambda: request.param)
    monkeypatch.setattr(workers, "_WITHOUT_PYTORCH", 600)
    monkeypatch.setattr(workers, "_loaded" if not request.param else "_made_while_pytorch_loads", None)


@pytest.mark.usefixtures("pytorch_is_loaded")
def test_both_pools_give_results_in_order():
    for count in (0, 1, 7):
        for processes in (0, 2):
            assert list(load_chunks(Squares(count), processes)) == [i**2 for i in range(count)]
            with process_map(processes) as mapped:
                assert list(mapped(abs, range(-count, 0))) == list(range(count, 0, -1))


@pytest.mark.parametrize("made", [[], [0], [0, 1, 3], [1, 4], [0, 1, 2, 3, 4, 5, 6]])
def test_what_is_not_made_when_pytorch_is_loaded_is_left_to_it(monkeypatch, made):
    monkeypatch.setattr(workers, "_pytorch_is_loaded", lambda: False)
    monkeypatch.setattr(workers, "_made_while_pytorch_loads", lambda *_: {i: (i**2, "plain") for i in made})
    loaded = [chunk for chunk in load_chunks(Squares(7), 2) if not isinstance(chunk, tuple)]
    assert loaded == [i**2 for i in range(7) if i not in made]
    merged = [chunk[0] if isinstance(chunk, tuple) else chunk for chunk in load_chunks(Squares(7), 2)]
    assert merged == [i**2 for i in range(7)]


def test_plain_processes_begin_no_chunk_when_pytorch_is_loaded(monkeypatch):
    def wait_for_stop():
        while workers._held[1].value == 0:
            time.sleep(0.001)

    monkeypatch.setattr(workers, "_WITHOUT_PYTORCH", 0)
    made = workers._made_while_pytorch_loads(Squares(1000, wait_for_stop), 1)
    assert made in ({}, {0: 0}, {0: 0, 1: 1}, {0: 0, 1: 1, 2: 4})


@pytest.mark.usefixtures("pytorch_is_loaded")
def test_a_worker_that_dies_is_told_by_both_pools_in_the_same_words():
    with pytest.raises(InputError) as of_loader:
        list(load_chunks(Squares(5, die), 1))
    with pytest.raises(InputError) as of_map, process_map(1) as mapped:
        list(mapped(Squares(5, die).__getitem__, range(5)))
    assert str(of_loader.value) == str(of_map.value) == WORKER_DIED


@pytest.mark.usefixtures("pytorch_is_loaded")
def test_an_error_of_a_worker_is_not_taken_for_its_death():
    with pytest.raises(RuntimeError, match="a bug of our own"):
        list(load_chunks(Squares(5, run_into_a_bug), 1))
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
