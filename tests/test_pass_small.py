"""pass.sh and self_training.sh as a user runs them, on a few pictures."""

from __future__ import annotations

import re
import shutil
import subprocess

import numpy as np
import pytest
from helpers.quick_python import quick_python
from helpers.scripts import environment
from masksets import CHECKOUT, write_mask
from PIL import Image
from prepared_set import WNIDS, write_lists

from demo.pictures import draw
from imagenets.masks import decode_mask

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


@pytest.fixture(scope="module")
def python(tmp_path_factory):
    """Starts scripts that have their libraries loaded."""
    with quick_python(tmp_path_factory.mktemp("python") / "python", environment(OMP_NUM_THREADS="1")) as path:
        yield path


def run(prepared, python, script, *arguments, **variables):
    done = subprocess.run(
        ["bash", CHECKOUT / "methods" / script, prepared / "save", "50", *arguments],
        env=environment(
            PYTHON=python, IMAGENETS_LISTS=prepared / "lists", OMP_NUM_THREADS="1", **variables
        ),
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=400,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout
    return done.stdout


@pytest.fixture(scope="module")
def whole(prepared, python, tmp_path_factory):
    output = tmp_path_factory.mktemp("pass output") / "whole"
    return output, run(prepared, python, "pass.sh", output, "small")


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


def test_what_is_there_stays_and_what_is_not_is_made_alike(prepared, python, whole, tmp_path):
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
    printed = run(prepared, python, "pass.sh", output, "small")
    assert printed.count("== ") == 7
    assert [(path.stat().st_ino, path.stat().st_mtime_ns) for path in kept] == before
    assert predictions(output) == predictions(whole[0])
    for path in labels:
        assert path.read_bytes() == (whole[0] / path.relative_to(output)).read_bytes()


def self_training(prepared, python, output, *options):
    short = ("--epochs", "1", "--batch-size", "16", "--crop", "64", "--workers", "0")
    network = (output, "test_resnet", "none")
    return run(prepared, python, "self_training.sh", *network, *options, *short, CLUSTERS="5")


def test_self_training_ends_with_scores(prepared, python, tmp_path):
    printed = self_training(prepared, python, tmp_path)
    assert printed.count("== ") == 4 and len(re.findall(r"Acc +mIoU", printed)) == 2
    assert (tmp_path / "report.html").stat().st_size > 100
    labels = [decode_mask(path) for path in (tmp_path / "clusters/train").rglob("*.png")]
    left_out = [of_one for of_one in labels if (of_one == 1000).any()]
    assert len(labels) == TRAIN and 5 <= len(left_out) <= TRAIN // 3
    assert all(set(np.unique(of_one)) <= {0, 1000} for of_one in left_out)


# Stands in for Python: notes the script and the arguments that it is called with.
RECORDER = """\
#!/usr/bin/env bash
if [ "$1" = -c ]; then echo 0; exit; fi
echo "${1##*/} ${*:2}" >>"${0%/*}/commands"
echo " Acc  mIoU"
"""


def test_a_second_round_learns_the_predictions_of_the_first(prepared, tmp_path):
    """All that one round runs two rounds run in the same words, so that they can go on from it."""
    (tmp_path / "python").write_text(RECORDER)
    (tmp_path / "python").chmod(0o755)
    output, noted = tmp_path / "out", tmp_path / "commands"
    output.mkdir()

    def commands(*options):
        noted.write_text("")
        self_training(prepared, tmp_path / "python", output, *options)
        found = noted.read_text().splitlines()
        return [command for command in found if command.startswith(("kmeans", "finetune", "predict"))]

    one, two = commands(), commands("--rounds", "2")
    names = "kmeans.py finetune.py predict.py predict.py finetune.py predict.py"
    assert " ".join(command.split()[0] for command in two) == names
    assert two[:3] == one
    assert all("--recipe self-training " in command for command in (two[1], two[4]))
    assert all(" --sharpen " in command for command in (two[2], two[3], two[5]))
    assert f"--masks {output}/clusters/train " in two[1]
    assert (
        f"--model {output}/round1/last.pth --sharpen --splits train --output-dir {output}/labels1" in two[3]
    )
    assert f"--masks {output}/labels1/train " in two[4] and f"--output-dir {output}/round2" in two[4]
    assert f"--model {output}/round2/last.pth --sharpen --splits validation " in two[5]
