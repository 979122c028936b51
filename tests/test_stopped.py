"""Scripts that go on are stopped by SIGTERM or an interrupt, sent to the whole group as schedulers do."""

from __future__ import annotations

import os
import re
import signal

import numpy as np
import pytest

torchvision = pytest.importorskip("torchvision")
pytest.importorskip("timm")

import torch
from helpers import method_scripts
from helpers.patterns import write_patterns
from helpers.processes import children, wait_for, wait_until_gone
from prepared_set import WNIDS, write_lists

STUCK = f"{WNIDS[0]}/stuck.JPEG"


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


def options_of(script, save):
    network = ["--backbone", "resnet18", "--checkpoint", save / "resnet18.pth", "--device", "cpu"]
    return {
        "distance_matching": [*network, "--splits", "validation", "--bank", save / "bank.npz"],
        "kmeans": ["--splits", "validation", "--clusters", 2],
        "finetune": [
            "--recipe", "semi-supervised", "--backbone", "test_vit", "--checkpoint", "none", "--crop", 32,
            "--epochs", 100_000, "--batch-size", 4, "--evaluate-every", 0,
        ],
    }[script]  # fmt: skip


@pytest.mark.parametrize(
    ("script", "stuck", "sent", "status", "word"),
    [
        ("distance_matching", "validation", signal.SIGTERM, 143, "terminated"),
        ("distance_matching", "validation", signal.SIGINT, 130, "interrupted"),
        ("kmeans", "train", signal.SIGTERM, 143, "terminated"),
        ("finetune", None, signal.SIGUSR1, 138, "asked to stop"),
        ("finetune", None, signal.SIGTERM, 143, "terminated"),
    ],
)
def test_it_says_one_line_and_leaves_no_worker_and_nothing_half_written(
    context, save, tmp_path, script, stuck, sent, status, word
):
    output, said, held = tmp_path / "out", tmp_path / "said", []
    common = ["--save-dir", save, "--mode", "50", "--output-dir", output, "--workers", 2]
    arguments = [str(argument) for argument in [*common, *options_of(script, save)]]
    environment = {"IMAGENETS_LISTS": str(save / "lists")}
    process = context.Process(target=method_scripts.child, args=(script, arguments, environment, str(said)))
    process.start()

    def at_work():
        if stuck is None:
            return (output / "last.pth").exists()
        try:  # a pipe, which can be written to once a worker reads
            held.append(os.open(save / "ImageNetS50" / stuck / STUCK, os.O_WRONLY | os.O_NONBLOCK))
        except OSError:
            return False
        return True

    try:
        wait_for(lambda: process.exitcode is not None or at_work())
        assert process.exitcode is None, said.read_text()
        workers = children(process.pid)
        left = output / ".0123456789abcdef.tmp"  # as files are called that are being written
        if script != "finetune":  # which writes in its main process only
            left.write_text("half")
        os.killpg(process.pid, sent)
        process.join(60)
        saved = r", saved after epoch \d+, step \d+" if script == "finetune" else ""
        last = said.read_text().splitlines()[-1]
        assert re.fullmatch(f"{word}{saved}: run the same command again to resume", last), said.read_text()
        assert process.exitcode == status
        assert len(workers) >= 2
        wait_until_gone(workers)
        assert not left.exists()
        assert not (output / ".lock").exists()
    finally:
        process.kill()
        for descriptor in held:
            os.close(descriptor)
