"""One of two ranks fails: the job is over, one message says why, the same command goes on to the same end.

Nobody ends the other rank here, as torchrun would: it has to notice by itself.
"""

from __future__ import annotations

import os
import random
import signal
import time
from multiprocessing import connection

import numpy as np
import pytest

pytest.importorskip("timm")

import torch
from helpers import method_scripts
from helpers.patterns import write_patterns
from helpers.processes import torchrun_variables, wait_for
from prepared_set import write_lists

from imagenets.learning.networks.backbones import make_backbone
from imagenets.learning.networks.segmentation_network import SegmentationNetwork

WITHIN = 30  # seconds from a fault until the job is over


@pytest.fixture(scope="module")
def save(tmp_path_factory):
    folder = tmp_path_factory.mktemp("save")
    write_patterns(folder, per_class=2, splits=("train", "train-semi", "validation"))
    write_lists(folder / "lists")
    torch.manual_seed(0)
    network = SegmentationNetwork(make_backbone("test_vit"), 50, "semi-supervised")
    about = {
        "backbone": "test_vit",
        "mode": "50",
        "recipe": "semi-supervised",
        "classes": 50,
        "output_stride": None,
    }
    torch.save({"model": network.weights(), **about}, folder / "model.pth")
    torch.save(make_backbone("test_vit").network.state_dict(), folder / "backbone.pth")
    return folder


def arguments_of(script, save, output):
    common = ["--output-dir", output, "--save-dir", save, "--mode", 50, "--workers", 0, "--device", "cpu"]
    more = {
        "finetune": [
            "--recipe", "semi-supervised", "--backbone", "test_vit", "--checkpoint", "none", "--crop", 32,
            "--batch-size", 2, "--evaluate-every", 0, "--epochs", 2, "--drop-path", 0.3,
        ],
        "pretrain": ["--recipe", "small", "--batch-size", 2, "--epochs", 2],
        "predict": ["--model", save / "model.pth", "--batch-size", 1],
        "distance_matching": [
            "--backbone", "test_vit", "--checkpoint", save / "backbone.pth",
            "--batch-size", 1, "--neighbours", 3,
        ],
    }  # fmt: skip
    return list(map(str, common + more[script]))


def ranks(context, script, save, output, said, fault=None, victim=None):
    """Run a script on two ranks; give their exit statuses."""
    started = []
    for rank, variables in enumerate(torchrun_variables(2)):
        environment = variables | {"IMAGENETS_LISTS": str(save / "lists")}
        its_fault = fault if rank == victim else None
        process = context.Process(
            target=method_scripts.child,
            args=(script, arguments_of(script, save, output), environment, f"{said}.{rank}", its_fault),
        )
        process.start()
        started.append(process)
    try:
        while all(process.exitcode is None for process in started):
            connection.wait([process.sentinel for process in started], 120)
        deadline = time.monotonic() + WITHIN
        for process in started:
            process.join(max(0, deadline - time.monotonic()))
        return [process.exitcode for process in started]
    finally:
        for process in started:
            process.kill()
            process.join()


def messages(said):
    """The lines by which ranks said why they ended."""
    lines = [
        line for rank in (0, 1) for line in said.with_name(f"{said.name}.{rank}").read_text().splitlines()
    ]
    begins = ("error: ", "terminated", "Traceback")
    return [line for line in lines if line.startswith(begins)], lines


def results(output):
    """What a run is for: its weights, or its label maps."""
    if (output / "last.pth").exists():
        model = torch.load(output / "last.pth", weights_only=True)["model"]
        return {name: tensor.numpy() for name, tensor in model.items()}
    return {str(path.relative_to(output)): path.read_bytes() for path in output.rglob("*.png")}


STATUSES = {"killed": -9, "terminated": 143, "exception": 1, "full disk": 1}
WORDS = {
    "killed": "error: another process of torchrun has ended",
    "terminated": "terminated",
    "exception": "Traceback",
    "full disk": "No space left on device",
}


@pytest.mark.parametrize("script", ["finetune", "pretrain", "predict", "distance_matching"])
def test_one_rank_fails(script, context, save, tmp_path):
    whole = ranks(context, script, save, tmp_path / "whole", tmp_path / "said")
    assert whole == [0, 0], messages(tmp_path / "said")[1]
    moments, failed = random.Random(script), tmp_path / "failed"
    trains = script in ("finetune", "pretrain")
    victim = 0 if trains else moments.randrange(2)  # of a training, the first process alone writes
    for fault in ("exception", "killed", "terminated", "full disk"):
        moment = moments.randrange(3 if trains else 2)
        ended = ranks(context, script, save, failed, tmp_path / "said", (fault, moment), victim)
        told, lines = messages(tmp_path / "said")
        assert ended[victim] == STATUSES[fault], lines
        assert ended[1 - victim] in (1, STATUSES[fault]), lines
        assert len(told) == 1 and WORDS[fault] in told[0], (fault, victim, moment, lines)
        if fault == "exception":
            assert lines.count("ZeroDivisionError: a bug of our own") == 1
    assert ranks(context, script, save, failed, tmp_path / "said") == [0, 0]
    expected, found = results(tmp_path / "whole"), results(failed)
    assert expected and expected.keys() == found.keys()
    assert all(np.array_equal(expected[name], found[name]) for name in expected)
    assert not [path for path in failed.rglob("*") if path.name.endswith((".tmp", ".lock"))]


def test_a_rank_that_waits_in_a_collective_leaves_at_a_signal(context, tmp_path):
    """Python's handlers do not run there."""
    said, at_work = tmp_path / "said", tmp_path / "at_work"
    started = [
        context.Process(target=method_scripts.stuck, args=(variables, said.with_suffix(f".{rank}"), at_work))
        for rank, variables in enumerate(torchrun_variables(2))
    ]
    try:
        for process in started:
            process.start()
        wait_for(lambda: at_work.exists() or started[0].exitcode is not None)
        os.kill(started[0].pid, signal.SIGTERM)
        started[0].join(WITHIN)
        assert started[0].exitcode == 143
        assert said.with_suffix(".0").read_text() == "terminated\n"
    finally:
        for process in started:
            process.kill()
            process.join()
