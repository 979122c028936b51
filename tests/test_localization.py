"""Localization scores against loops over pixels, by hand, and as a user runs the script."""

from __future__ import annotations

import csv
import json
import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from masksets import in_process, write_mask
from PIL import Image
from prepared_set import WNIDS, write_image, write_lists

from imagenets.masks import decode_mask, resize_mask
from imagenets.scoring import attribution_scores as formulas
from imagenets.scoring.bootstrap import drawn_images
from imagenets.scoring.localization import IMAGE_SCORES, SCORES, Settings, centre_map, score_map
from imagenets.scoring.map_geometry import Geometry, labels_in_place, map_in_place, parse_geometry

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
    assert formulas.pointing_game(values, inside) == pairs[best][1]

    positive = math.fsum(v for v, _ in pairs if v > 0)
    hit = math.fsum(v for v, i in pairs if v > 0 and i)
    assert formulas.energy(values, inside) == pytest.approx(hit / positive if positive else 0, abs=1e-12)

    low, high = min(v for v, _ in pairs), max(v for v, _ in pairs)
    for k, score in enumerate(formulas.iou_at_thresholds(formulas.scale_to_unit(values), inside), start=1):
        cut = [high > low and (v - low) / (high - low) >= k / 20 for v, _ in pairs]
        union = sum(c or i for c, (_, i) in zip(cut, pairs, strict=True))
        both = sum(c and i for c, (_, i) in zip(cut, pairs, strict=True))
        assert score == (both / union if union else 0)

    comparisons = [1.0 if v > w else 0.5 if v == w else 0.0 for v, i in pairs if i for w, j in pairs if not j]
    expected = sum(comparisons) / len(comparisons) if comparisons else math.nan
    assert formulas.roc_auc(formulas.rank_pixels(values, inside)) == pytest.approx(
        expected, abs=1e-14, nan_ok=True
    )


def loop_hits(pairs, count):
    """Hits among the largest values: ties at the border share what is left of the count."""
    border = sorted((v for v, _ in pairs), reverse=True)[count - 1]
    above = [i for v, i in pairs if v > border]
    tied = [i for v, i in pairs if v == border]
    return sum(above) + (count - len(above)) * sum(tied) / len(tied)


@settings(max_examples=200, deadline=None)
@given(PIXELS)
def test_the_other_scores_are_those_of_loops(pixels):
    values, inside = pixels
    pairs = [(float(v), bool(i)) for v, i in zip(values, inside, strict=True)]
    size = sum(i for _, i in pairs)
    largest = [i for v, i in pairs if v == max(w for w, _ in pairs)]
    assert formulas.pointing_game(values, inside, "any") == any(largest)
    assert formulas.pointing_game(values, inside, "share") == pytest.approx(sum(largest) / len(largest))

    total = math.fsum(v for v, _ in pairs)
    if abs(total) > 1e-6:
        mass = math.fsum(v for v, i in pairs if i) / total
        assert formulas.relevance_mass(values, inside) == pytest.approx(mass, rel=1e-6, abs=1e-9)
    absolute = math.fsum(abs(v) for v, _ in pairs)
    hit = math.fsum(abs(v) for v, i in pairs if i)
    found = formulas.attribution_localization(values, inside)
    assert found == pytest.approx(hit / absolute if absolute else 0, abs=1e-12)

    ranking = formulas.rank_pixels(values, inside)
    for count in range(1, len(pairs) + 1):
        assert formulas.hits_among(ranking, count) == pytest.approx(loop_hits(pairs, count))
        expected = loop_hits(pairs, count) / count if count < len(pairs) else math.nan
        assert formulas.top_k_intersection(ranking, count) == pytest.approx(expected, nan_ok=True)
    if size:
        assert formulas.relevance_rank(ranking) == pytest.approx(loop_hits(pairs, size) / size)
        precision, reached = 0.0, 0
        for cut in sorted({v for v, _ in pairs}, reverse=True):
            taken = [i for v, i in pairs if v >= cut]
            precision += (sum(taken) - reached) / size * sum(taken) / len(taken)
            reached = sum(taken)
        assert formulas.average_precision(ranking) == pytest.approx(precision, abs=1e-12)

    weights = [abs(v) / max(abs(w) for w, _ in pairs) if absolute else 0.0 for v, _ in pairs]
    shifted = [w + 1e-7 for w in weights]
    n = len(shifted)
    gini = sum(abs(a - b) for a in shifted for b in shifted) / (2 * n * sum(shifted))
    assert formulas.sparseness(values) == pytest.approx(gini, abs=1e-9)
    if absolute:
        shares = [w / sum(weights) for w in weights]
        entropy = -sum(s * math.log(s + 1e-12) for s in shares)
        assert formulas.complexity(values) == pytest.approx(entropy, abs=1e-9)
    else:
        assert math.isnan(formulas.complexity(values)) and math.isnan(formulas.relevance_mass(values, inside))


@settings(max_examples=100, deadline=None)
@given(PIXELS)
def test_two_classes_and_otsu_are_those_of_loops(pixels):
    values, inside = pixels
    scaled = formulas.scale_to_unit(values)
    counts = [0] * 256
    for v in scaled:
        counts[min(255, int(v * 256))] += 1
    centres = [(k + 0.5) / 256 for k in range(256)]

    def between(cut):
        lower, upper = counts[: cut + 1], counts[cut + 1 :]
        if not (sum(lower) and sum(upper)):
            return 0.0
        means = [
            sum(c * x for c, x in zip(part, where, strict=True)) / sum(part)
            for part, where in ((lower, centres[: cut + 1]), (upper, centres[cut + 1 :]))
        ]
        return sum(lower) * sum(upper) * (means[0] - means[1]) ** 2

    variances = [between(cut) for cut in range(255)]
    chosen = centres.index(formulas.otsu_threshold(scaled))
    assert variances[chosen] == pytest.approx(max(variances), rel=1e-9)
    assert not any(v > variances[chosen] * (1 + 1e-9) for v in variances[:chosen]), "the first of equal ones"

    predicted = scaled > scaled.mean()
    cells = list(zip(predicted.tolist(), inside.tolist(), strict=True))
    kinds = (lambda p, i: p and i, lambda p, i: p or i, lambda p, i: not (p or i), lambda p, i: not (p and i))
    expected = [sum(kind(*cell) for cell in cells) for kind in kinds]
    found = formulas.two_class_counts(predicted, inside)
    assert found.tolist() == expected
    ious = [a / b for a, b in (expected[:2], expected[2:]) if b]
    assert formulas.pooled_two_class(found) == pytest.approx(sum(ious) / len(ious))


def test_scores_are_those_of_quantus():
    """Values that Quantus 0.6.0 gave for this map on one machine, called with its defaults but k = 100.

    AP and Otsu's threshold are scikit-learn's and scikit-image's. The map: no ties, object 20 x 20.
    """
    y, x = np.mgrid[:48, :48]
    attribution = np.sin(0.37 * y + 0.11 * x * x) * np.exp(-((y - 20) ** 2 + (x - 14) ** 2) / 400)
    labels = np.zeros((48, 48), int)
    labels[10:30, 5:25] = 7
    expected = {
        "pointing_game": 1.0,
        "relevance_mass": 0.09514224532841993,
        "relevance_rank": 0.395,
        "top_k": 0.81,
        "attribution_localization": 0.3605449349013261,
        "auc": 0.5028413865546218,
        "sparseness": 0.48494822936012266,
        "complexity": 7.353372441723414,
        "average_precision": 0.41150990938579607,
    }
    scores = score_map(attribution, labels, 7, Settings(ties="any", top_k=100))
    for name, score in expected.items():
        assert getattr(scores, name) == pytest.approx(score, abs=1e-9), name
    assert formulas.otsu_threshold(formulas.scale_to_unit(attribution)) == 0.470703125
    positive = score_map(np.abs(attribution), labels, 7, Settings(top_k=100))
    assert positive.relevance_mass == pytest.approx(0.3605449349019157, abs=1e-9)
    assert positive.energy == pytest.approx(positive.relevance_mass, abs=1e-12)
    assert (positive.relevance_rank, positive.top_k) == (0.6, 0.98)


def test_the_baseline_knows_nothing_but_the_middle():
    centre = centre_map(40, 81)
    assert np.unravel_index(centre.argmax(), centre.shape) in ((19, 40), (20, 40))
    assert centre[::-1, ::-1] == pytest.approx(centre)
    assert centre[9:11, 40].mean() == pytest.approx(np.exp(-0.5), rel=0.01), "a quarter off: one σ"


def test_geometries_are_read():
    assert parse_geometry("squeeze") == Geometry("squeeze")
    for text in ("center-crop:256,224", "paste:256,224"):
        assert str(parse_geometry(text)) == text
    for text in ("crop", "center-crop", "paste:224,256", "center-crop:256", "squeeze:224", "paste:0,0"):
        with pytest.raises(ValueError, match=r"neither|larger"):
            parse_geometry(text)


@pytest.mark.parametrize("shape", [(375, 500), (500, 333), (97, 97), (281, 500), (1, 3)])
def test_the_crop_is_that_of_torchvision(shape):
    torch = pytest.importorskip("torch")
    transforms = pytest.importorskip("torchvision.transforms.v2")
    interpolation = transforms.InterpolationMode.NEAREST_EXACT
    labels = np.random.default_rng(0).integers(0, 3, shape)
    expected = torch.from_numpy(labels)[None]
    for step in (transforms.Resize(64, interpolation), transforms.CenterCrop(59)):
        expected = step(expected)
    found = labels_in_place(labels, Geometry("center-crop", 64, 59))
    assert found.shape == (59, 59)
    assert (found == expected[0].numpy()).mean() > 0.999, "but for the rounding of a pixel's centre"


@pytest.mark.parametrize("shape", [(60, 80), (90, 50)])
def test_a_perfect_map_is_perfect_under_the_crop_and_good_when_laid_back(shape):
    labels = np.zeros(shape, int)
    labels[shape[0] // 5 : shape[0] // 2, shape[1] // 4 : shape[1] // 2] = 7
    crop = Geometry("center-crop", 64, 56)
    seen = (labels_in_place(labels, crop) == 7).astype(np.float32)
    under = score_map(seen, labels, 7, geometry=crop)
    assert (under.pointing_game, under.energy, under.iou.min(), under.auc) == (1, 1, 1, 1)
    laid = score_map(seen, labels, 7, geometry=crop._replace(kind="paste"))
    stretched = score_map(seen, labels, 7, geometry=Geometry("squeeze"))
    assert laid.energy > 0.8 > stretched.energy and laid.iou.max() > 0.7 > stretched.iou.max()
    whole = (resize_mask(labels, 56, 56) == 7).astype(np.float32)
    assert score_map(whole, labels, 7, geometry=Geometry("squeeze")).iou.max() > 0.9


def test_a_map_is_laid_back_between_zeros():
    laid = map_in_place(np.ones((4, 4)), (8, 16), Geometry("paste", 8, 4))
    assert laid[2:6, 6:10].min() == 1 and laid.sum() == 16
    small = map_in_place(np.ones((1, 1)), (8, 16), Geometry("paste", 8, 4))
    assert (small == laid).all(), "a map of fewer pixels is enlarged to the crop first"


def test_an_object_outside_the_crop_is_not_scored():
    labels = np.zeros((20, 60), int)
    labels[:, :5] = 7
    assert score_map(np.ones((8, 8)), labels, 7, geometry=Geometry("center-crop", 20, 16)) is None
    assert score_map(np.ones((8, 8)), labels, 7, geometry=Geometry("paste", 20, 16)) is not None
    with pytest.raises(ValueError, match="square"):
        score_map(np.ones((8, 9)), labels, 7, geometry=Geometry("squeeze"))


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
    hits = [score_map(attribution, labels, 7, Settings(t)).pointing_game for t in (0, 4.99, 5)]
    assert hits == [0, 0, 1]
    labels[3, 4] = 1000  # the next largest is the first zero, which is the target
    assert score_map(attribution, labels, 7).pointing_game == 1


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
        (np.array([[0, 0, 0], [0, np.nan, np.inf]]), "2 values are nan or infinite, the first in row 1, col"),
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
    monkeypatch.chdir(tmp_path)
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


def run(*arguments, mode=50, workers=0, status=0):
    """Run the script on maps and gt; returns its scores, stdout and stderr."""
    common = ("--attribution-dir", "maps", "--gt-dir", "gt", "--mode", mode, "--workers", workers)
    done = in_process("evaluation/localization.py", *common, "--output", "new/s.json", *arguments)
    assert done.returncode == status, done.stderr
    scores = json.loads(Path("new/s.json").read_text()) if status == 0 else None
    return scores, done.stdout, done.stderr


def map_paths():
    return sorted(Path("maps").glob("*/*.npy"))


def map_scores():
    """The scores of every map, one by one."""
    return [
        score_map(
            np.load(f"maps/{path.parent.name}/{path.stem}.npy"),
            decode_mask(path),
            WNIDS.index(path.parent.name) + 1,
        )
        for path in sorted(Path("gt").glob("*/*.png"))
    ]


def test_the_script_averages_over_images(folder):
    result, stdout, stderr = run("--workers", 2)
    assert list(result)[: len(SCORES)] == list(SCORES)
    scores = [s for s in map_scores() if s is not None]
    assert (result["images"], result["target_absent"], len(scores)) == (6, 1, 5)
    for name in IMAGE_SCORES:
        values = [getattr(s, name) for s in scores if not math.isnan(getattr(s, name))]
        mean = math.nan if not values else np.mean(values) * (1 if name == "complexity" else 100)
        assert (result[name] if values else math.nan) == pytest.approx(mean, nan_ok=True), name
    for cut, name in enumerate(("miou_mean", "miou_otsu")):
        counts = np.sum([s.two_class[cut] for s in scores], axis=0)
        assert result[name] == pytest.approx(50 * (counts[0] / counts[1] + counts[2] / counts[3]))
    iou = 100 * np.mean([s.iou for s in scores], axis=0)
    assert list(result["iou"]) == [f"{k * 0.05:.2f}" for k in range(1, 20)]
    assert list(result["iou"].values()) == pytest.approx(iou.tolist())
    assert result["iou_best"] == max(result["iou"].values())
    for warning in ("1 images do not show", "1 images are filled", "5 images have no more than 1000 pixels"):
        assert warning in stderr
    assert f"{result['pointing_game']:.2f}" in stdout
    far, _, _ = run("--tolerance", 100)
    assert {name for name in SCORES if far[name] != result[name]} == {"pointing_game"}
    assert (far["pointing_game"], far["settings"]["tolerance"]) == (100.0, 100)


def test_bad_files_are_named_together(folder):
    maps = map_paths()
    maps[0].write_bytes(maps[0].read_bytes()[:-3])
    np.save(maps[1], np.full((2, 2), 1.0))
    np.save(maps[2], np.array([[{}]]), allow_pickle=True)
    maps[3].write_bytes(b"")
    write_mask(folder / "gt" / maps[4].parent.name / f"{maps[4].stem}.png", np.full((2, 2), 51))
    _, stdout, stderr = run("--workers", 1, "--problems", "all/bad.txt", status=1)
    assert stdout == "" and not Path("new").exists()
    heading, *lines, last = stderr.split("error: ")[1].splitlines()
    assert (heading, last) == ("5 files cannot be used:", "all 5: all/bad.txt")
    assert Path("all/bad.txt").read_text().splitlines() == [line.strip() for line in lines]
    for path, line in zip(maps[:4], lines[:4], strict=True):
        assert str(path) in line
    assert "label 51" in lines[4]


def test_other_shapes_and_types(folder):
    """(1, H, W) and float16 of what float16 holds score the same; so does uint8, as whole numbers."""
    for path in map_paths():
        np.save(path, np.round(np.abs(np.load(path)) * 40).astype(np.float32))
    before, _, _ = run()
    for dtype in (np.float16, np.uint8):
        for path in map_paths():
            np.save(path, np.load(path).reshape(1, *np.load(path).shape[-2:]).astype(dtype))
        assert run()[0] == before


def test_maps_of_one_square_size_need_a_geometry(folder):
    for path in map_paths():
        np.save(path, np.random.default_rng(0).random((6, 6)))
    for arguments in ((), ("--resize",)):
        _, stdout, stderr = run(*arguments, status=1)
        assert not stdout
        for cure in ("all maps are 6 x 6", "squeeze", "center-crop:256,224", "paste:256,224"):
            assert cure in stderr
    squeezed, stdout, _ = run("--geometry", "squeeze")
    assert (squeezed["images"], squeezed["geometry"]) == (6, "squeeze")
    assert "6 of 6 maps resized to the size they are scored at" in stdout
    mask = sorted((folder / "gt").glob("*/*.png"))[0]
    labels = np.zeros((9, 40), int)
    labels[:, 0] = WNIDS.index(mask.parent.name) + 1
    write_mask(mask, labels)
    result, _, stderr = run("--geometry", "center-crop:12,12")
    assert "1 images have their object outside the crop and are not scored" in stderr
    assert (result["target_absent"], result["outside_crop"]) == (1, 1)
    np.save(map_paths()[1], -np.ones((6, 6)))
    _, _, stderr = run("--geometry", "paste:12,12")
    assert "1 maps hold negative values" in stderr and "surrounds maps by zeros" in stderr
    np.save(map_paths()[2], np.ones((6, 7)))
    assert "maps of geometry squeeze are square" in run("--geometry", "squeeze", status=1)[2]


def test_the_report_shows_maps_on_their_images(folder):
    pytest.importorskip("jinja2")
    pytest.importorskip("matplotlib")
    for mask in (folder / "gt").glob("*/*.png"):
        with Image.open(mask) as image:
            write_image(folder / f"images/{mask.parent.name}/{mask.stem}.JPEG", *image.size[::-1])
    run("--report", "r.html", "--image-dir", "images", "--bootstrap", 20)
    page = Path("r.html").read_text()
    assert page.count("<figure>") == 3 * 5 and page.count('alt="picture of') == 15
    assert "1 without their object" in page and "miou_otsu" in page


@pytest.mark.parametrize("kind", ["npz", "safetensors", "npz inside"])
def test_many_maps_in_one_file(folder, kind):
    before, _, _ = run()
    for wnid in {path.parent for path in map_paths()}:
        maps = {path.stem: np.load(path) for path in wnid.glob("*.npy")}
        for path in wnid.glob("*.npy"):
            path.unlink()
        if kind == "safetensors":
            pytest.importorskip("safetensors.numpy").save_file(maps, f"{wnid}.safetensors")
        else:
            np.savez_compressed(wnid / "all.npz" if kind == "npz inside" else f"{wnid}.npz", **maps)
    assert run()[0] == before
    archive = next(path for path in Path("maps").glob("**/*") if path.is_file())
    content = archive.read_bytes()
    np.save(archive.parent / "x.npy", np.zeros(1))
    archive.write_bytes(content[: len(content) // 2])
    _, _, stderr = run(status=1)
    assert archive.name in stderr and "save it again" in stderr


def test_two_maps_of_an_image_or_none(folder):
    first, second, *_ = map_paths()
    np.savez(f"{first.parent}.npz", **{first.stem: np.load(first)})
    second.unlink()
    _, _, stderr = run(status=1)
    assert "2 files cannot be used" in stderr
    assert f"there is another map of this image, {first}; keep one" in stderr
    assert f"{second}: no such attribution map" in stderr


def test_resize_is_that_of_pytorch_and_said(folder):
    torch = pytest.importorskip("torch")
    small = map_paths()[:3]
    for path in small:
        np.save(path, np.load(path)[:5, :6])
    assert "resize it to its image" in run(status=1)[2]
    resized, stdout, _ = run("--resize")
    assert "3 of 6 maps resized to the size they are scored at (bilinear)" in stdout
    assert (resized.pop("resize"), resized.pop("resized")) == ("bilinear", 3)
    for path in small:
        shape = (12, 9 + int(path.stem[-1]))
        values = torch.tensor(np.load(path).astype(np.float64))[None, None]
        big = torch.nn.functional.interpolate(values, size=shape, mode="bilinear", align_corners=False)
        np.save(path, big[0, 0].numpy())
    expected, _, _ = run()
    for name in SCORES:
        assert resized[name] == pytest.approx(expected[name]), name
    np.save(small[0], np.load(small[0]).T)
    assert "is it transposed?" in run("--resize", status=1)[2]


def test_names_and_images_and_intervals(folder):
    result, stdout, _ = run("--per-image", "new/i.csv", "--bootstrap", 60, "--seed", 1)
    with Path("new/i.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    names = [row.pop("name") for row in rows]
    assert len(names) == 6 and names == sorted(names)
    table = {name: [float(row[name]) if row[name] else math.nan for row in rows] for name in rows[0]}
    for name in ("pointing_game", "energy", "iou_best", "auc"):
        values = [value for value in table[name] if not math.isnan(value)]
        assert len(values) == (4 if name == "auc" else 5)
        assert math.fsum(values) / len(values) == result[name], "to the last digit"
    # Intervals against a loop over the same draws.
    drawn = [list(draw) for draw in drawn_images(6, 60, 1)]
    for name in ("pointing_game", "energy", "auc"):
        means = [np.nanmean([table[name][i] for i in draw]) for draw in drawn]
        assert result["intervals"][name] == pytest.approx(np.nanpercentile(means, [2.5, 97.5]).tolist())
    best = [max(np.nanmean([table[f"iou_{t}"][i] for i in draw]) for t in result["iou"]) for draw in drawn]
    assert result["intervals"]["iou_best"] == pytest.approx(np.percentile(best, [2.5, 97.5]).tolist())
    counts = np.stack([s.two_class[1] if s else np.zeros(4, int) for s in map_scores()])
    pooled = [100 * formulas.pooled_two_class(counts[draw].sum(axis=0)) for draw in drawn]
    assert result["intervals"]["miou_otsu"] == pytest.approx(np.nanpercentile(pooled, [2.5, 97.5]).tolist())
    assert "percentile bootstrap, 60 resamples" in stdout
    Path("names.txt").write_text("\n".join(names[:2]))
    assert run("--names", "names.txt")[0]["images"] == 2


@pytest.mark.parametrize(
    "arguments",
    [
        ("--tolerance", "-1"),
        ("--output", "scores.csv"),
        ("--per-image", "scores.json"),
        ("--report", "page.htm"),
        ("--seed", 1),
        ("--geometry", "crop"),
        ("--geometry", "squeeze", "--resize"),
        ("--image-dir", "gt"),
    ],
)
def test_wrong_usage(arguments):
    run(*arguments, status=2)


def test_folders_that_are_not_the_modes_classes(folder):
    assert "not 300" in run(mode=300, status=1)[2]
    (folder / "gt" / WNIDS[0]).rename(folder / "gt/n99999999")
    assert "n99999999" in run(status=1)[2]
