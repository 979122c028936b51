"""methods/pass.sh as a user runs it, on a set of a few pictures: whole, and killed on its way."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from helpers.scripts import environment
from masksets import CHECKOUT, write_mask
from PIL import Image
from prepared_set import WNIDS, write_lists

from demo.pictures import draw

TRAIN, VALIDATION = 64, 6


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """A set of the demo's pictures: more than there are clusters in train, a few in validation."""
    folder = tmp_path_factory.mktemp("pass small")
    write_lists(folder / "lists")
    root = folder / "save/ImageNetS50"
    for number in range(TRAIN + VALIDATION):
        picture = draw(np.random.default_rng(number), number % 50)
        split = "train" if number < TRAIN else "validation"
        place = f"{WNIDS[number % 50]}/{number}"
        path = root / split / f"{place}.JPEG"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(picture.image[:80, :96]).save(path)
        if split == "validation":
            write_mask(root / f"validation-segmentation/{place}.png", picture.labels[:80, :96])
    return folder


def started(prepared, output):
    return subprocess.Popen(
        ["bash", CHECKOUT / "methods/pass.sh", prepared / "save", "50", output, "small"],
        env=environment(PYTHON=sys.executable, IMAGENETS_LISTS=str(prepared / "lists"), OMP_NUM_THREADS="1"),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def ended(process):
    printed, _ = process.communicate(timeout=400)
    assert process.returncode == 0, printed
    return printed


@pytest.fixture(scope="module")
def whole(prepared, tmp_path_factory):
    output = tmp_path_factory.mktemp("pass output") / "whole"
    return output, ended(started(prepared, output))


def predictions(output):
    folder = output / "predictions/validation"
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*.png")}


def test_all_steps_end_with_scores(whole):
    output, printed = whole
    assert len(predictions(output)) == VALIDATION
    assert re.search(r"Acc +mIoU", printed)
    assert f"the report to look at: {output}/report.html" in printed
    assert "Traceback" not in printed
    for file in ("scores.json", "report.html", "labels/threshold.json", "clusters/centroids.npy"):
        assert (output / file).stat().st_size > 100


def killed_at(prepared, output, pattern, timeout=200):
    """Start the chain, and kill all of it as soon as a file of ``pattern`` is there."""
    process = started(prepared, output)
    end = time.monotonic() + timeout
    while not any(output.glob(pattern)):
        assert process.poll() is None and time.monotonic() < end, f"no {pattern}"
        time.sleep(0.02)
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()


def test_killed_on_its_way_it_ends_with_the_same_predictions(prepared, whole, tmp_path):
    output = tmp_path / "killed"
    for pattern in ("pretraining/log.jsonl", "labels/train/*/*.png", "finetuning/log.jsonl"):
        killed_at(prepared, output, pattern)
    assert not (output / "scores.txt").exists()
    printed = ended(started(prepared, output))
    assert printed.count("== ") == 7
    assert predictions(output) == predictions(whole[0])
