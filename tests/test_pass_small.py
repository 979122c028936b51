"""methods/pass.sh as a user runs it, on a few pictures: whole, and once more on half of its files."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys

import numpy as np
import pytest
from helpers.scripts import environment
from masksets import CHECKOUT, write_mask
from PIL import Image
from prepared_set import WNIDS, write_lists

from demo.pictures import draw

TRAIN, VALIDATION = 64, 6
KEPT = ("pretraining/last.pth", "attention/last.pth", "clusters/centroids.npy", "clusters/features/train.npy")


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
    try:
        printed, _ = process.communicate(timeout=400)
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
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


def test_what_is_there_stays_and_what_is_not_is_made_alike(prepared, whole, tmp_path):
    """As after a kill among the label maps: the other half and all that comes behind, nothing before."""
    output = tmp_path / "killed"
    shutil.copytree(whole[0], output)
    for name in ("finetuning", "predictions", "results"):
        shutil.rmtree(output / name)
    for name in ("matching.txt", "scores.txt", "scores.json", "report.html"):
        (output / name).unlink()
    labels = sorted((output / "labels/train").rglob("*.png"))
    for path in labels[::2]:
        path.unlink()
    kept = [*labels[1::2], *(output / name for name in KEPT)]
    before = [(path.stat().st_ino, path.stat().st_mtime_ns) for path in kept]
    printed = ended(started(prepared, output))
    assert printed.count("== ") == 7
    assert [(path.stat().st_ino, path.stat().st_mtime_ns) for path in kept] == before
    assert predictions(output) == predictions(whole[0])
    for path in labels:
        assert path.read_bytes() == (whole[0] / path.relative_to(output)).read_bytes()
