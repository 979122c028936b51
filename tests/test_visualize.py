"""visualize.py as a user runs it: the overlays, and what it refuses."""

from __future__ import annotations

import json

import numpy as np
import pytest
from masksets import in_process, write_mask
from PIL import Image

from imagenets.masks import decode_mask
from imagenets.reporting.overlays import draw_panels

NAMES = [f"n0144353{i % 2}/image_{i}.png" for i in range(4)]
SIZES = [(30, 40), (50, 20), (3, 3), (1, 70)]


@pytest.fixture
def folder(tmp_path):
    rng = np.random.default_rng(0)
    for name, size in zip(NAMES, SIZES, strict=True):
        write_mask(tmp_path / "gt" / name, rng.choice([0, 1, 2, 1000], size))
        write_mask(tmp_path / "pred" / name, rng.choice([0, 2, 3], size))
        path = (tmp_path / "images" / name).with_suffix(".png")
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (*size, 3), np.uint8)).save(path)
    return tmp_path


def visualize(folder, *arguments, code=0):
    common = ("--image-dir", "images", "--gt-dir", "gt", "--predict-dir", "pred", "--out", "out")
    done = in_process("evaluation/visualize.py", *common, *arguments, cwd=folder)
    assert done.returncode == code, done.stderr
    return done


def files(folder):
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def test_overlays(folder):
    (folder / "match.json").write_text(json.dumps({"0": 0, "2": 1, "3": 2}))
    done = visualize(folder, "--match", "./match.json", "--workers", 2)
    assert done.stdout == "saved: 4 overlays in out\n"
    first = files(folder / "out")
    assert sorted(first) == sorted(NAMES), "and nothing else"
    truth, prediction = (decode_mask(folder / side / NAMES[0]) for side in ("gt", "pred"))
    picture = np.asarray(Image.open((folder / "images" / NAMES[0]).with_suffix(".png")))
    strip = np.asarray(Image.open(folder / "out" / NAMES[0]))
    for panel in draw_panels(picture, truth, np.array([0, 0, 1, 2])[prediction]):
        found = np.lib.stride_tricks.sliding_window_view(strip, panel.shape)[..., 0, :, :, :]
        assert (found == panel).all(axis=(-1, -2, -3)).any(), "full size, side by side"
    # Without another process the same; those of an earlier run are replaced.
    visualize(folder, "--match", "./match.json", "--workers", 0)
    assert files(folder / "out") == first
    (folder / "names.txt").write_text(NAMES[2])
    visualize(folder, "--names", "names.txt", "--mode", 50)
    changed = files(folder / "out")
    assert [name for name in NAMES if changed[name] != first[name]] == [NAMES[2]]
    write_mask(folder / "pred" / NAMES[0], np.full(SIZES[0], 900))
    visualize(folder)  # without a mode and a matching, labels may be anything
    assert files(folder / "out")[NAMES[0]] != first[NAMES[0]]


def test_bad_files_are_listed_and_nothing_is_written(folder):
    (folder / "images" / NAMES[0]).with_suffix(".png").unlink()
    (folder / "pred" / NAMES[1]).unlink()
    (folder / "gt" / NAMES[2]).write_bytes(b"no mask")
    stderr = visualize(folder, "--workers", 2, code=1).stderr
    for problem in (
        "error: 3 images cannot be drawn:",
        f"images/{NAMES[0].removesuffix('.png')}.JPEG: no such image",
        f"pred/{NAMES[1]}: No such file or directory",
        f"gt/{NAMES[2]}: not a PNG",
    ):
        assert problem in stderr
    assert not (folder / "out").exists()


def test_sizes_and_labels_are_checked(folder):
    write_mask(folder / "pred" / NAMES[0], np.zeros((40, 30)))
    write_mask(folder / "pred" / NAMES[1], np.full(SIZES[1], 51))
    write_mask(folder / "gt" / NAMES[2], np.full(SIZES[2], 51))
    Image.new("RGB", (9, 9)).save((folder / "images" / NAMES[3]).with_suffix(".png"))
    stderr = visualize(folder, "--mode", 50, code=1).stderr
    for problem in (
        "error: 4 images cannot be drawn:",
        "30 x 40 pixels, but its ground truth has 40 x 30",
        f"pred/{NAMES[1]}: label 51 is outside 0..50; cluster ids need a matching",
        f"gt/{NAMES[2]}: label 51 is outside 0..50",
        "9 x 9 pixels, but its mask has 70 x 1",
    ):
        assert problem in stderr
    (folder / "match.json").write_text('{"0": 0, "2": 1}')
    done = visualize(folder, "--match", "./match.json", code=1)
    assert "cluster 3 is not in the matching" in done.stderr


@pytest.mark.parametrize("out", ["gt", "pred", "images", "notes"])
def test_nothing_but_overlays_is_replaced(folder, out):
    (folder / "notes" / NAMES[0]).parent.mkdir(parents=True)
    (folder / "notes" / NAMES[0]).write_text("mine")
    before = files(folder)
    stderr = visualize(folder, "--out", out, code=1).stderr
    assert "files that are not overlays would be replaced" in stderr and f"{out}/{NAMES[0]}" in stderr
    assert files(folder) == before


def test_usage(folder):
    assert "nowhere: no such folder" in visualize(folder, "--image-dir", "nowhere", code=1).stderr
    visualize(folder, "--mode", 51, code=2)
