"""One of two ranks fails: the job is over, one message says why, the same command goes on to the same end.

Nobody ends the other rank here, as torchrun would: it has to notice by itself.
"""

from __future__ import annotations

import os
import random
import signal
import time
from contextlib import contextmanager
from multiprocessing import connection
from pathlib import Path

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
    about = {"backbone": "test_vit", "mode": "50", "recipe": "semi-supervised"}
    about |= {"classes": 50, "output_stride": None}
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


@contextmanager
def processes(context, target, arguments):
    """Start a process for each of these arguments; none of them is left behind."""
    started = [context.Process(target=target, args=of_one) for of_one in arguments]
    try:
        for process in started:
            process.start()
        yield started
    finally:
        for process in started:
            process.kill()
            process.join()


def ranks(context, script, save, output, said, fault=None, victim=None):
    """Run a script on two ranks; return their exit statuses."""
    arguments = [
        (
            *(script, arguments_of(script, save, output)),
            variables | {"IMAGENETS_LISTS": str(save / "lists")},
            *(f"{said}.{rank}", fault if rank == victim else None),
        )
        for rank, variables in enumerate(torchrun_variables(2))
    ]
    with processes(context, method_scripts.child, arguments) as started:
        while all(process.exitcode is None for process in started):
            connection.wait([process.sentinel for process in started], 120)
        deadline = time.monotonic() + WITHIN
        for process in started:
            process.join(max(0, deadline - time.monotonic()))
        return [process.exitcode for process in started]


def messages(said):
    """The lines by which ranks said why they ended, and all that they said."""
    lines = [line for rank in (0, 1) for line in Path(f"{said}.{rank}").read_text().splitlines()]
    return [line for line in lines if line.startswith(("error: ", "terminated", "Traceback"))], lines


def results(output):
    """What a run is for: its weights, or its label maps."""
    if (output / "last.pth").exists():
        model = torch.load(output / "last.pth", weights_only=True)["model"]
        return {name: tensor.numpy() for name, tensor in model.items()}
    return {str(path.relative_to(output)): path.read_bytes() for path in output.rglob("*.png")}


# How a rank ends, and what it says.
ENDS = {
    "exception": (1, "Traceback"),
    "killed": (-9, "error: another process of torchrun has ended"),
    "terminated": (143, "terminated"),
    "full disk": (1, "No space left on device"),
}


@pytest.mark.parametrize("script", ["finetune", "pretrain", "predict", "distance_matching"])
def test_one_rank_fails(script, context, save, tmp_path):
    whole = ranks(context, script, save, tmp_path / "whole", tmp_path / "said")
    assert whole == [0, 0], messages(tmp_path / "said")[1]
    moments, failed = random.Random(script), tmp_path / "failed"
    trains = script in ("finetune", "pretrain")
    victim = 0 if trains else moments.randrange(2)  # of a training, the first process alone writes
    for fault, (status, words) in ENDS.items():
        moment = moments.randrange(3 if trains else 2)
        ended = ranks(context, script, save, failed, tmp_path / "said", (fault, moment), victim)
        told, lines = messages(tmp_path / "said")
        assert ended[victim] == status and ended[1 - victim] in (1, status), lines
        assert len(told) == 1 and words in told[0], (fault, victim, moment, lines)
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
    arguments = [(v, said.with_suffix(f".{rank}"), at_work) for rank, v in enumerate(torchrun_variables(2))]
    with processes(context, method_scripts.stuck, arguments) as started:
        wait_for(lambda: at_work.exists() or started[0].exitcode is not None)
        os.kill(started[0].pid, signal.SIGTERM)
        started[0].join(WITHIN)
        assert started[0].exitcode == 143
        assert said.with_suffix(".0").read_text() == "terminated\n"
