"""visualize.py as a user runs it: the overlays, and what it refuses."""

from __future__ import annotations

import json

import numpy as np
import pytest
from masksets import script, write_mask
from PIL import Image

from imagenets.reporting.overlays import draw_panels

NAMES = [f"n0144353{i % 2}/image_{i}.png" for i in range(4)]
SIZES = [(30, 40), (50, 20), (3, 3), (1, 70)]


@pytest.fixture
def folder(tmp_path):
    rng = np.random.default_rng(0)
    for name, (height, width) in zip(NAMES, SIZES, strict=True):
        truth = rng.choice([0, 1, 2, 1000], (height, width))
        write_mask(tmp_path / "gt" / name, truth)
        write_mask(tmp_path / "pred" / name, rng.choice([0, 2, 3], (height, width)))
        path = (tmp_path / "images" / name).with_suffix(".png")
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (height, width, 3), np.uint8)).save(path)
    return tmp_path


def visualize(folder, *arguments):
    return script(
        "evaluation/visualize.py",
        *("--image-dir", "images", "--gt-dir", "gt", "--predict-dir", "pred", "--out", "out"),
        *arguments,
        cwd=folder,
    )


def files(folder):
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def labels(path):
    rgb = np.asarray(Image.open(path)).astype(int)
    return rgb[..., 0] + 256 * rgb[..., 1]


def test_overlays(folder):
    (folder / "match.json").write_text(json.dumps({"0": 0, "2": 1, "3": 2}))
    done = visualize(folder, "--match", "./match.json", "--workers", 2)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "saved: 4 overlays in out\n"
    assert sorted(files(folder / "out")) == sorted(NAMES), "and nothing else"
    truth, prediction = labels(folder / "gt" / NAMES[0]), labels(folder / "pred" / NAMES[0])
    picture = np.asarray(Image.open((folder / "images" / NAMES[0]).with_suffix(".png")))
    panels = draw_panels(picture, truth, np.array([0, 0, 1, 2])[prediction])
    strip = np.asarray(Image.open(folder / "out" / NAMES[0]))
    for panel in panels:
        found = np.lib.stride_tricks.sliding_window_view(strip, panel.shape)[..., 0, :, :, :]
        assert (found == panel).all(axis=(-1, -2, -3)).any(), "full size, side by side"
    first = files(folder / "out")
    # Without another process the same; those of an earlier run are replaced.
    assert visualize(folder, "--match", "./match.json", "--workers", 0).returncode == 0
    assert files(folder / "out") == first
    assert visualize(folder).returncode == 0
    assert files(folder / "out") != first


def test_names_and_mode(folder):
    (folder / "names.txt").write_text(NAMES[2])
    assert visualize(folder, "--names", "names.txt", "--mode", 50).returncode == 0
    assert list(files(folder / "out")) == [NAMES[2]]


def test_bad_files_are_listed_and_nothing_is_written(folder):
    (folder / "images" / NAMES[0]).with_suffix(".png").unlink()
    (folder / "pred" / NAMES[1]).unlink()
    (folder / "gt" / NAMES[2]).write_bytes(b"no mask")
    done = visualize(folder, "--workers", 2)
    assert done.returncode == 1
    assert "error: 3 images cannot be drawn:" in done.stderr
    assert f"images/{NAMES[0].removesuffix('.png')}.JPEG: no such image" in done.stderr
    assert f"pred/{NAMES[1]}: No such file or directory" in done.stderr
    assert f"gt/{NAMES[2]}: not a PNG" in done.stderr
    assert not (folder / "out").exists()


def test_sizes_and_labels_are_checked(folder):
    write_mask(folder / "pred" / NAMES[0], np.zeros((40, 30)))
    write_mask(folder / "pred" / NAMES[1], np.full(SIZES[1], 51))
    write_mask(folder / "gt" / NAMES[2], np.full(SIZES[2], 51))
    Image.new("RGB", (9, 9)).save((folder / "images" / NAMES[3]).with_suffix(".png"))
    done = visualize(folder, "--mode", 50)
    assert done.returncode == 1 and "error: 4 images cannot be drawn:" in done.stderr
    assert "30 x 40 pixels, but its ground truth has 40 x 30" in done.stderr
    assert f"pred/{NAMES[1]}: label 51 is outside 0..50; cluster ids need a matching" in done.stderr
    assert f"gt/{NAMES[2]}: label 51 is outside 0..50" in done.stderr
    assert "9 x 9 pixels, but its mask has 70 x 1" in done.stderr
    (folder / "match.json").write_text('{"0": 0, "2": 1}')
    done = visualize(folder, "--match", "./match.json")
    assert "cluster 3 is not in the matching" in done.stderr


@pytest.mark.parametrize("out", ["gt", "pred", "images", "notes"])
def test_nothing_but_overlays_is_replaced(folder, out):
    (folder / "notes" / NAMES[0]).parent.mkdir(parents=True)
    (folder / "notes" / NAMES[0]).write_text("mine")
    before = files(folder)
    done = visualize(folder, "--out", out)
    assert done.returncode == 1 and "files that are not overlays would be replaced" in done.stderr
    assert f"{out}/{NAMES[0]}" in done.stderr
    assert files(folder) == before


def test_usage(folder):
    done = visualize(folder, "--image-dir", "nowhere")
    assert done.returncode == 1 and "nowhere: no such folder" in done.stderr
    assert visualize(folder, "--mode", 51).returncode == 2
