"""Localization scores against loops over pixels, by hand, and as a user runs the script."""

from __future__ import annotations

import csv
import json
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from masksets import script, write_mask
from prepared_set import WNIDS, write_lists

from imagenets.scoring.bootstrap import drawn_images
from imagenets.scoring.localization import energy, iou_at_thresholds, pointing_game, roc_auc, score_map

PIXELS = st.integers(1, 40).flatmap(
    lambda n: st.tuples(
        hnp.arrays(
            st.sampled_from([np.float32, np.float64]).map(np.dtype),
            n,
            elements=st.one_of(st.integers(-3, 3).map(float), st.floats(-1, 1, width=16)),
        ),
        hnp.arrays(bool, n),
    )
)


@settings(max_examples=200, deadline=None)
@given(PIXELS)
def test_scores_are_those_of_loops(pixels):
    values, inside = pixels
    pairs = [(float(v), bool(i)) for v, i in zip(values, inside, strict=True)]

    best = 0
    for place, (value, _) in enumerate(pairs):
        if value > pairs[best][0]:
            best = place
    assert pointing_game(values, inside) == pairs[best][1]

    positive = math.fsum(v for v, _ in pairs if v > 0)
    hit = math.fsum(v for v, i in pairs if v > 0 and i)
    assert energy(values, inside) == pytest.approx(hit / positive if positive else 0, abs=1e-12)

    low, high = min(v for v, _ in pairs), max(v for v, _ in pairs)
    for k, score in enumerate(iou_at_thresholds(values, inside), start=1):
        cut = [high > low and (v - low) / (high - low) >= k / 20 for v, _ in pairs]
        union = sum(c or i for c, (_, i) in zip(cut, pairs, strict=True))
        if union:
            both = sum(c and i for c, (_, i) in zip(cut, pairs, strict=True))
            assert score == both / union
        else:
            assert score == 0

    comparisons = [1.0 if v > w else 0.5 if v == w else 0.0 for v, i in pairs if i for w, j in pairs if not j]
    auc = roc_auc(values, inside)
    if comparisons:
        assert auc == pytest.approx(sum(comparisons) / len(comparisons), abs=1e-14)
    else:
        assert math.isnan(auc)


def test_by_hand():
    labels = np.array([[7, 7, 0, 1000], [0, 9, 0, 1000]])
    attribution = np.array([[1.0, 0.5, 0.0, 99.0], [1.0, -1.0, 0.25, np.float64(-99)]])
    scores = score_map(attribution, labels, 7)
    assert scores.pointing_game == 1, "the first of two equal values; void pixels do not count"
    assert scores.energy == 1.5 / 2.75
    assert scores.auc == (3.5 + 3) / 8
    assert scores.iou[0] == 2 / 5  # 0.05: all but the smallest value
    assert scores.iou[9] == 2 / 5  # 0.50: 0 is scaled to 0.5, and reaches it
    assert scores.iou[10] == 2 / 4
    assert scores.iou[18] == 1 / 3


def test_constant_maps_predict_nothing_and_rank_nothing():
    labels = np.array([[7, 0, 0]])
    for value in (0.0, 3.0):
        scores = score_map(np.full((1, 3), value), labels, 7)
        assert scores.iou.tolist() == [0] * 19
        assert scores.auc == 0.5
        assert scores.pointing_game == 1
        assert scores.energy == (0 if value == 0 else pytest.approx(1 / 3))
    assert score_map(np.full((1, 3), -1.0), labels, 7).energy == 0


def test_the_target_may_be_absent_or_fill_the_image():
    assert score_map(np.zeros((1, 2)), np.array([[0, 1000]]), 7) is None
    assert math.isnan(score_map(np.ones((1, 2)), np.array([[7, 1000]]), 7).auc)


def test_tolerance_is_a_distance_in_pixels_and_void_does_not_help():
    labels = np.zeros((5, 6), int)
    labels[0, 0] = 7
    attribution = np.zeros((5, 6))
    attribution[3, 4] = 1
    hits = [score_map(attribution, labels, 7, t).pointing_game for t in (0, 4.99, 5)]
    assert hits == [0, 0, 1]
    labels[3, 4] = 1000  # the next largest is the first zero, which is the target
    assert score_map(attribution, labels, 7, 0).pointing_game == 1


def test_huge_and_half_precision_values():
    labels = np.array([[7, 0, 0]])
    huge = score_map(np.array([[1.7e308, 1.7e308, -1.7e308]]), labels, 7)
    assert (huge.energy, huge.iou[0]) == (0.5, 0.5)
    half = score_map(np.array([[60000, 60000, 60000]], np.float16), labels, 7)
    assert half.energy == pytest.approx(1 / 3)


@pytest.mark.parametrize(
    ("attribution", "message"),
    [
        (np.zeros((2, 3), int), "of type int64"),
        (np.zeros((3, 2)), r"of shape \(3, 2\), but its mask has \(2, 3\)"),
        (np.zeros((2, 3, 1)), "of shape"),
        (
            np.array([[0, 0, 0], [0, np.nan, np.inf]]),
            "2 values are nan or infinite, the first in row 1, col",
        ),
    ],
)
def test_what_is_no_attribution_map(attribution, message):
    with pytest.raises(ValueError, match=message):
        score_map(attribution, np.zeros((2, 3), int), 7)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Six images: one lacks its target, one is filled by it."""
    write_lists(tmp_path / "lists")
    monkeypatch.setenv("IMAGENETS_LISTS", str(tmp_path / "lists"))
    rng = np.random.default_rng(0)
    for i in range(6):
        class_id = 1 + 7 * (i % 3)
        labels = rng.choice([0, class_id, 50, 1000], (12, 9 + i))
        if i == 4:
            labels[labels == class_id] = 0
        if i == 5:
            labels[:] = class_id
        name = f"{WNIDS[class_id - 1]}/image_{i}"
        write_mask(tmp_path / f"gt/{name}.png", labels)
        (tmp_path / f"maps/{name}.npy").parent.mkdir(parents=True, exist_ok=True)
        np.save(tmp_path / f"maps/{name}.npy", rng.normal(size=labels.shape).astype(np.float32))
    return tmp_path


def run(folder, *arguments, mode=50):
    masks = ("--attribution-dir", "maps", "--gt-dir", "gt", "--mode", mode)
    return script("evaluation/localization.py", *masks, *arguments, cwd=folder)


def test_the_script_averages_over_images(folder):
    done = run(folder, "--output", "new/scores.json", "--workers", 2)
    assert done.returncode == 0, done.stderr
    result = json.loads((folder / "new/scores.json").read_text())
    assert list(result) == ["pointing_game", "energy", "iou", "iou_best", "auc", "images", "target_absent"]
    scores = []
    for path in sorted((folder / "gt").glob("*/*.png")):
        from imagenets.masks import decode_mask

        attribution = np.load(folder / "maps" / path.parent.name / f"{path.stem}.npy")
        scores.append(score_map(attribution, decode_mask(path), WNIDS.index(path.parent.name) + 1))
    scores = [s for s in scores if s is not None]
    assert (result["images"], result["target_absent"], len(scores)) == (6, 1, 5)
    assert result["pointing_game"] == pytest.approx(100 * np.mean([s.pointing_game for s in scores]))
    assert result["energy"] == pytest.approx(100 * np.mean([s.energy for s in scores]))
    assert result["auc"] == pytest.approx(100 * np.nanmean([s.auc for s in scores]))
    iou = 100 * np.mean([s.iou for s in scores], axis=0)
    assert list(result["iou"]) == [f"{k * 0.05:.2f}" for k in range(1, 20)]
    assert list(result["iou"].values()) == pytest.approx(iou.tolist())
    assert result["iou_best"] == max(result["iou"].values())
    for warning in ("1 images do not show", "1 images are filled"):
        assert warning in done.stderr
    assert f"{result['pointing_game']:.2f}" in done.stdout
    far = run(folder, "--output", "far.json", "--workers", 0, "--tolerance", 100)
    assert json.loads((folder / "far.json").read_text()) == {**result, "pointing_game": 100.0}
    assert far.returncode == 0


def test_bad_files_are_named_together(folder):
    maps = sorted((folder / "maps").glob("*/*.npy"))
    maps[0].write_bytes(maps[0].read_bytes()[:-3])
    np.save(maps[1], np.full((2, 2), 1.0))
    np.save(maps[2], np.array([[{}]]), allow_pickle=True)
    maps[3].write_bytes(b"")
    write_mask(folder / "gt" / maps[4].parent.name / f"{maps[4].stem}.png", np.full((2, 2), 51))
    done = run(folder, "--output", "scores.json", "--workers", 1, "--problems", "all/bad.txt")
    assert done.returncode == 1
    assert done.stdout == ""
    lines = done.stderr.split("error: ")[1].splitlines()
    assert lines.pop() == "all 5: all/bad.txt"
    assert (folder / "all/bad.txt").read_text().splitlines() == [line.strip() for line in lines[1:]]
    assert lines[0] == "5 files cannot be used:"
    for path, line in zip(maps[:4], lines[1:5], strict=True):
        assert str(path.relative_to(folder)) in line
    assert "label 51" in lines[5]
    assert not (folder / "scores.json").exists()
    maps[2].unlink()
    done = run(folder)
    assert f"{maps[2].relative_to(folder)}: no such attribution map" in done.stderr
    assert done.returncode == 1


def scores_of(folder, *arguments):
    done = run(folder, "--workers", 0, "--output", "s.json", *arguments)
    assert done.returncode == 0, done.stderr
    return json.loads((folder / "s.json").read_text()), done.stdout


def map_paths(folder):
    return sorted((folder / "maps").glob("*/*.npy"))


def test_other_shapes_and_types(folder):
    """(1, H, W) and float16 of what float16 holds score the same; so does uint8, as whole numbers."""
    for path in map_paths(folder):
        np.save(path, np.round(np.abs(np.load(path)) * 40).astype(np.float32))
    before, _ = scores_of(folder)
    for dtype in (np.float16, np.uint8):
        for path in map_paths(folder):
            np.save(path, np.load(path).reshape(1, *np.load(path).shape[-2:]).astype(dtype))
        assert scores_of(folder)[0] == before


@pytest.mark.parametrize("kind", ["npz", "safetensors", "npz inside"])
def test_many_maps_in_one_file(folder, kind):
    before, _ = scores_of(folder)
    for wnid in {path.parent for path in map_paths(folder)}:
        maps = {path.stem: np.load(path) for path in wnid.glob("*.npy")}
        for path in wnid.glob("*.npy"):
            path.unlink()
        if kind == "safetensors":
            pytest.importorskip("safetensors.numpy").save_file(maps, f"{wnid}.safetensors")
        else:
            np.savez_compressed(wnid / "all.npz" if kind == "npz inside" else f"{wnid}.npz", **maps)
    assert scores_of(folder)[0] == before
    archive = next(path for path in (folder / "maps").glob("**/*") if path.is_file())
    content = archive.read_bytes()
    np.save(folder / "maps" / archive.parent / "x.npy", np.zeros(1))
    archive.write_bytes(content[: len(content) // 2])
    done = run(folder)
    assert (done.returncode, archive.name in done.stderr) == (1, True) and "save it again" in done.stderr


def test_two_maps_of_an_image_or_none(folder):
    first, second, *_ = map_paths(folder)
    np.savez(f"{first.parent}.npz", **{first.stem: np.load(first)})
    second.unlink()
    done = run(folder)
    assert done.returncode == 1 and "2 files cannot be used" in done.stderr
    assert (
        f"there is another map of this image, maps/{first.parent.name}/{first.name}; keep one" in done.stderr
    )
    assert f"maps/{second.parent.name}/{second.name}: no such attribution map" in done.stderr


def test_resize_is_that_of_pytorch_and_said(folder):
    torch = pytest.importorskip("torch")
    small = map_paths(folder)[:3]
    for path in small:
        np.save(path, np.load(path)[:5, :6])
    done = run(folder)
    assert done.returncode == 1 and "--resize brings it to that size" in done.stderr
    resized, stdout = scores_of(folder, "--resize")
    assert "3 of 6 maps brought to their image's size (bilinear)" in stdout
    assert (resized.pop("resize"), resized.pop("resized")) == ("bilinear", 3)
    for path in small:
        height, width = np.load(path).shape
        shape = (12, 9 + int(path.stem[-1]))
        values = torch.tensor(np.load(path).astype(np.float64))[None, None]
        big = torch.nn.functional.interpolate(values, size=shape, mode="bilinear", align_corners=False)
        np.save(path, big[0, 0].numpy())
        assert (height, width) == (5, 6)
    expected, _ = scores_of(folder)
    for name, score in expected.items():
        assert resized[name] == pytest.approx(score), name
    np.save(small[0], np.load(small[0]).T)
    assert "is it transposed?" in run(folder, "--resize").stderr


def test_names_and_images_and_intervals(folder):
    result, stdout = scores_of(folder, "--per-image", "new/i.csv", "--bootstrap", 60, "--seed", 1)
    with (folder / "new/i.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 6 and [row["name"] for row in rows] == sorted(row["name"] for row in rows)
    for name in ("pointing_game", "energy", "iou_best", "auc"):
        values = [float(row[name]) for row in rows if row[name]]
        assert len(values) == (4 if name == "auc" else 5)
        assert math.fsum(values) / len(values) == result[name], "to the last digit"
    assert [float(rows[0][f"iou_{t}"]) for t in result["iou"]], "a column for every threshold"
    # Intervals against a loop over the same draws.
    table = {
        name: [float(r[name]) if r[name] else math.nan for r in rows] for name in rows[0] if name != "name"
    }
    drawn = [list(draw) for draw in drawn_images(6, 60, 1)]
    for name in ("pointing_game", "energy", "auc"):
        means = [np.nanmean([table[name][i] for i in draw]) for draw in drawn]
        assert result["intervals"][name] == pytest.approx(np.nanpercentile(means, [2.5, 97.5]).tolist())
    best = [max(np.nanmean([table[f"iou_{t}"][i] for i in draw]) for t in result["iou"]) for draw in drawn]
    assert result["intervals"]["iou_best"] == pytest.approx(np.percentile(best, [2.5, 97.5]).tolist())
    assert "percentile bootstrap, 60 resamples" in stdout
    (folder / "names.txt").write_text("\n".join(row["name"] for row in rows[:2]))
    assert scores_of(folder, "--names", "names.txt")[0]["images"] == 2


def test_wrong_usage(folder, monkeypatch):
    assert run(folder, "--tolerance", "-1").returncode == 2
    assert run(folder, "--output", "scores.csv").returncode == 2
    assert run(folder, "--per-image", "scores.json").returncode == 2
    assert run(folder, "--seed", 1).returncode == 2
    done = run(folder, mode=300)
    assert done.returncode == 1
    assert "not 300" in done.stderr
    (folder / "gt" / WNIDS[0]).rename(folder / "gt/n99999999")
    done = run(folder)
    assert (done.returncode, "n99999999" in done.stderr) == (1, True)
