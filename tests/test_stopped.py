"""Scripts that go on are stopped by SIGTERM or an interrupt, sent to the whole group as schedulers do."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from contextlib import contextmanager, suppress

import numpy as np
import pytest

torchvision = pytest.importorskip("torchvision")
pytest.importorskip("timm")

import torch
from helpers.patterns import write_patterns
from helpers.processes import children, wait_until_gone
from helpers.scripts import environment
from masksets import CHECKOUT
from prepared_set import WNIDS, write_lists

from imagenets.learning.processes import Processes
from imagenets.learning.run_folder import Record, held_folder

ALONE = Processes(0, 1, torch.device("cpu"))
STUCK = f"{WNIDS[0]}/stuck.JPEG"
LEFT = ".0123456789abcdef.tmp"  # as files are called that are being written


@pytest.fixture(scope="module")
def save(tmp_path_factory):
    """A prepared set, in which one picture of validation and one of train never come; weights; a bank."""
    save = tmp_path_factory.mktemp("save")
    root = write_patterns(save, splits=("train", "train-semi", "validation"))
    write_lists(save / "lists")
    for split in ("train", "validation"):
        os.mkfifo(root / split / STUCK)
    torch.save(torchvision.models.resnet18().state_dict(), save / "resnet18.pth")
    embeddings = np.linalg.qr(np.random.default_rng(0).normal(size=(512, 20)))[0].T.astype(np.float32)
    np.savez(save / "bank.npz", embeddings=embeddings, labels=np.arange(20))
    return save


def command(script, save, output):
    """The script's command, and what tells that it is at work."""
    root = save / "ImageNetS50"
    network = ["--backbone", "resnet18", "--checkpoint", save / "resnet18.pth", "--device", "cpu"]
    options = {
        "distance_matching": [*network, "--splits", "validation", "--bank", save / "bank.npz"],
        "kmeans": ["--splits", "validation", "--clusters", 2],
        "finetune": [
            "--recipe", "semi-supervised", "--backbone", "test_vit", "--checkpoint", "none", "--crop", 32,
            "--epochs", 100_000, "--batch-size", 4, "--evaluate-every", 0,
        ],
    }[script]  # fmt: skip
    sign = {
        "distance_matching": root / "validation" / STUCK,
        "kmeans": root / "train" / STUCK,
        "finetune": output / "last.pth",
    }[script]
    common = ["--save-dir", save, "--mode", "50", "--output-dir", output, "--workers", 2]
    return [sys.executable, CHECKOUT / f"methods/{script}.py", *common, *options], sign


@contextmanager
def at_work(script, save, output):
    """Start a script, and wait until it works; gives the process, which leads a group, and its workers."""
    arguments, sign = command(script, save, output)
    process = subprocess.Popen(
        list(map(str, arguments)),
        env=environment(IMAGENETS_LISTS=save / "lists", OMP_NUM_THREADS="1"),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    with process:
        try:
            writer = None
            while process.poll() is None and writer is None:
                time.sleep(0.02)
                if sign.suffix == ".JPEG":  # a pipe, which can be written to once a worker reads
                    try:
                        writer = os.open(sign, os.O_WRONLY | os.O_NONBLOCK)
                    except OSError:
                        continue
                elif sign.exists():
                    writer = os.open(sign, os.O_RDONLY)
            assert process.poll() is None, process.stderr.read()
            yield process, children(process.pid)
            os.close(writer)
        finally:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)


@pytest.mark.parametrize(
    ("script", "sent", "status", "word"),
    [
        ("distance_matching", signal.SIGTERM, 143, "terminated"),
        ("distance_matching", signal.SIGINT, 130, "interrupted"),
        ("finetune", signal.SIGUSR1, 138, "asked to stop"),
        ("finetune", signal.SIGTERM, 143, "terminated"),
        ("kmeans", signal.SIGTERM, 143, "terminated"),
    ],
)
def test_it_says_one_line_and_leaves_no_worker_and_nothing_half_written(
    save, tmp_path, script, sent, status, word
):
    with at_work(script, save, tmp_path / "out") as (process, workers):
        left = tmp_path / "out" / LEFT
        if script != "finetune":  # which writes in its main process alone
            left.write_text("half")
        os.killpg(process.pid, sent)
        _, said = process.communicate(timeout=60)
    saved = r", saved after epoch \d+, step \d+" if script == "finetune" else ""
    assert re.fullmatch(f"{word}{saved}: run the same command again to resume\n", said), said
    assert process.returncode == status
    assert len(workers) >= 2
    wait_until_gone(workers)
    assert not left.exists()
    assert not (tmp_path / "out/.lock").exists()


def test_what_a_killed_run_had_half_written_goes_when_it_goes_on(tmp_path):
    record = Record("record.json", {"lr": 1}, ("images",), {})
    with held_folder(tmp_path, record, ALONE):
        pass
    (tmp_path / "images/n1").mkdir(parents=True)
    left = [tmp_path / LEFT, tmp_path / "images/n1" / LEFT]
    others = [tmp_path / ".0123.tmp", tmp_path / "images/n1/0123456789abcdef.tmp"]
    for path in (*left, *others):
        path.write_text("half")
    with held_folder(tmp_path, record, ALONE):
        assert not any(path.exists() for path in left)
        assert all(path.exists() for path in others), "not ours"
