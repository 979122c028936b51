"""PASS from attention to label maps: features, k-means, thresholds, labels, against slow references."""

from __future__ import annotations

import csv
import io
import itertools
import json
import os
import subprocess
import sys
from contextlib import redirect_stdout

import numpy as np
import pytest
import torch
from helpers.kmeans_calls import noted
from masksets import CHECKOUT, table_of
from PIL import Image
from prepared_set import WNIDS, write_lists, write_set
from torch import nn
from torch.nn.functional import interpolate
from torchvision.transforms import functional as transforms

from imagenets.common.errors import InputError
from imagenets.learning.engine.inference import Batch
from imagenets.learning.images import IMAGENET_MEAN, IMAGENET_STD
from imagenets.learning.networks.backbones import make_backbone
from imagenets.learning.pass_method import attended_labels
from imagenets.learning.pass_method import centroids as kmeans_of_pass
from imagenets.learning.pass_method.attended_labels import (
    feature_step,
    join_features,
    label_step,
    load_centroids,
    sweep_step,
)
from imagenets.learning.pass_method.attention import AttentionNetwork, PixelAttention
from imagenets.learning.pass_method.centroids import agreement, fit_centroids, nearest_rows, unit_rows
from imagenets.learning.pass_method.heads import HeadSizes, library_state
from imagenets.learning.pass_method.thresholds import THRESHOLDS, count_steps, sweep
from imagenets.masks import decode_mask
from imagenets.scoring.matching import find_matching, shared_with_class
from imagenets.scoring.metrics import evaluate
from methods import cluster, pseudo_labels

# --- thresholds


def noise_image(rng, classes, clusters):
    """Ground truth, clusters and attention; some of it exactly on a threshold, as float32 has it."""
    size = rng.integers(3, 14, 2)
    attention = rng.uniform(0, 0.9, size).astype(np.float32)
    exact = rng.choice(np.float32(THRESHOLDS), size)
    truth = rng.choice([*range(classes + 1), 1000], size)
    return truth, rng.integers(1, clusters + 1, size), np.where(rng.random(size) < 0.3, exact, attention)


def test_the_sweep_is_81_separate_evaluations():
    rng = np.random.default_rng(0)
    classes, clusters = 4, 6
    images = [noise_image(rng, classes, clusters) for _ in range(9)]
    counted = [count_steps(t, torch.from_numpy(c), torch.from_numpy(a)).numpy() for t, c, a in images]
    image = np.repeat(range(9), [len(rows) for rows in counted])
    found = sweep(image, np.concatenate(counted), 9, classes, clusters)
    assert len(found.miou) == len(found.matched_images) == 81
    for index, threshold in enumerate(THRESHOLDS):
        table = table_of([(t, np.where(a < np.float32(threshold), 0, c)) for t, c, a in images])
        matching = find_matching(table, "image", classes, clusters)
        scores = evaluate(table, classes, matching.classes).scores
        assert found.miou[index] == scores["mIoU"], threshold
        shared = shared_with_class(table, matching, classes)
        assert found.matched_images[index] == shared.images.sum(), threshold
    assert found.best == THRESHOLDS[found.miou.index(max(found.miou))]
    assert len(set(found.miou)) > 40


def test_an_attention_of_the_threshold_is_foreground():
    attention = torch.tensor([[0.41, 0.40999, 0.0, 0.80, 1.0]])
    rows = count_steps(np.ones((1, 5), int), torch.ones(1, 5, dtype=torch.int32), attention)
    assert rows[:, 2].tolist() == [1, 41, 42, 81]  # 0.00 reaches one threshold, 0.41 itself reaches 42
    assert rows[:, 3].tolist() == [1, 1, 1, 2]


# --- k-means


def blobs(rng, rows=600, width=8, clusters=5):
    centres = rng.normal(0, 1, (clusters, width))
    labels = rng.integers(0, clusters, rows)
    return (centres[labels] * rng.uniform(1, 9, (rows, 1)) + rng.normal(0, 0.2, (rows, width))).astype(
        np.float32
    )


def objective(features, centroids):
    return ((unit_rows(features)[:, None] - centroids) ** 2).sum(2).min(1).sum()


def test_the_best_of_all_restarts_is_kept_as_it_is():
    features = blobs(np.random.default_rng(0), clusters=9)
    best = fit_centroids(features, 9, restarts=12, seed=3)
    assert best.dtype == np.float32
    assert objective(features, best) <= min(
        objective(features, fit_centroids(features, 9, restarts=1, seed=seed)) for seed in range(5)
    ) * (1 + 1e-6)
    lengths = np.linalg.norm(best, axis=1)
    assert (lengths < 0.999).any(), "means of unit vectors are not of length 1"
    # Each is the mean of its own unit vectors, by the L2 distance.
    unit = unit_rows(features)
    labels = np.array([((best - row) ** 2).sum(1).argmin() for row in unit])
    np.testing.assert_array_equal(nearest_rows(features, best), labels + 1)
    for index, centroid in enumerate(best):
        np.testing.assert_allclose(centroid, unit[labels == index].mean(0), atol=1e-5)
    np.testing.assert_array_equal(best, fit_centroids(features, 9, restarts=12, seed=3))


def test_k_means_has_the_published_settings(monkeypatch):
    calls = noted(monkeypatch, kmeans_of_pass)
    features = blobs(np.random.default_rng(0), rows=40)
    fit_centroids(features, 3)
    ((settings, rows),) = calls.fits
    asked = ("n_clusters", "init", "n_init", "max_iter", "tol", "random_state")
    assert [settings[name] for name in asked] == [3, "random", 30, 20, 0, 0]
    np.testing.assert_allclose(rows, features / np.linalg.norm(features, axis=1, keepdims=True), rtol=1e-5)
    assert kmeans_of_pass.EXACT_ROWS >= 64_431, "mode 50's images have the same bits every time"
    monkeypatch.setattr(kmeans_of_pass, "EXACT_ROWS", 39)
    fit_centroids(features, 3, restarts=2, seed=7)
    assert [calls.fits[1][0][name] for name in ("n_init", "random_state")] == [2, 7]
    monkeypatch.setattr(kmeans_of_pass, "EXACT_ROWS", 40)
    fit_centroids(features, 3, restarts=1)
    assert calls.threads == [1, None, 1], "one thread up to EXACT_ROWS"


def test_features_that_do_not_fit_are_clustered_in_batches(tmp_path, monkeypatch):
    """As many rows as fit, drawn at random, for Lloyd; then each row once in each of five epochs."""
    features = blobs(np.random.default_rng(1), rows=2000)
    np.save(tmp_path / "train.npy", features)
    mapped = np.load(tmp_path / "train.npy", mmap_mode="r")
    whole = fit_centroids(mapped, 5, restarts=5)
    calls = noted(monkeypatch, kmeans_of_pass)
    monkeypatch.setattr(kmeans_of_pass, "_BLOCK", 300)
    parts = fit_centroids(mapped, 5, restarts=5, seed=4, memory=4 * 8 * 500)
    assert parts.dtype == np.float32
    assert objective(features, parts) < 1.02 * objective(features, whole)
    np.testing.assert_array_equal(np.load(tmp_path / "train.npy"), features)
    place_of = {row.tobytes(): place for place, row in enumerate(unit_rows(features))}
    first, *batches = [[place_of[row.tobytes()] for row in rows] for _, rows in calls.fits]
    assert len(set(first)) == 500 and max(first) > 1800
    assert [len(batch) for batch in batches] == ([300] * 6 + [200]) * 5
    epochs = np.split(np.concatenate(batches), 5)
    assert all((np.sort(epoch) == np.arange(2000)).all() for epoch in epochs)
    assert (epochs[0][:300] != epochs[1][:300]).any()
    settings = calls.fits[1][0]
    assert (settings["n_clusters"], settings["n_init"], settings["random_state"]) == (5, 1, 4)
    assert settings["init"].shape == (5, 8)
    calls.fits.clear()
    fit_centroids(mapped, 5, restarts=1, memory=4 * 8 * 2000)
    assert [len(rows) for _, rows in calls.fits] == [2000], "what just fits is clustered at once"


def test_blocks_are_joined_in_their_order(monkeypatch):
    """Rows of a file's memory map are brought to length 1, and given their clusters, a block at a time."""
    features = blobs(np.random.default_rng(3), rows=50)
    centroids = fit_centroids(features, 4, restarts=2)
    labels = nearest_rows(features, centroids)
    assert labels.dtype == np.int64
    monkeypatch.setattr(kmeans_of_pass, "_BLOCK", 7)
    np.testing.assert_array_equal(fit_centroids(features, 4, restarts=2), centroids)
    np.testing.assert_array_equal(nearest_rows(features, centroids), labels)


def test_the_nearest_centroid_is_that_of_the_row_at_length_1():
    """(10, 9) itself is nearer to (1, 0). Rows of nothing stay so."""
    centroids = np.float32([[0.5, 0.5], [1, 0]])
    assert nearest_rows(np.float32([[10, 9], [9, 0.1]]), centroids).tolist() == [1, 2]
    np.testing.assert_array_equal(unit_rows(np.array([[0, 0], [3, 4]])), np.float32([[0, 0], [0.6, 0.8]]))


def test_k_means_refuses_what_it_cannot_do():
    with pytest.raises(InputError, match="3 images cannot make 4 clusters"):
        fit_centroids(np.ones((3, 2), np.float32), 4)
    with pytest.raises(InputError, match="not finite"):
        fit_centroids(np.full((3, 2), np.nan, np.float32), 2)
    assert len(fit_centroids(np.eye(3, dtype=np.float32), 3)) == 3, "as many images as clusters"


def test_agreement_with_folders():
    perfect = agreement(np.array([3, 3, 1, 2]), np.array(["a", "a", "b", "c"]))
    assert (perfect.nmi, perfect.accuracy) == (pytest.approx(1), 100)
    half = agreement(np.array([1, 1, 1, 1]), np.array(["a", "a", "b", "b"]))
    assert (half.nmi, half.accuracy) == (pytest.approx(0), 50)
    # Three clusters in two folders: 1 lies in a, 3 in b, 2 is split over both; one to one, 2 + 2 of 6 agree.
    split = agreement(np.array([1, 1, 2, 2, 3, 3]), np.array(list("aaabbb")))
    # The information is that of the folders, ln 2, less what is unknown of them in one cluster of three.
    assert split.accuracy == pytest.approx(100 * 4 / 6)
    assert split.nmi == pytest.approx((np.log(2) - np.log(2) / 3) / ((np.log(3) + np.log(2)) / 2))


# --- what is found in a batch


@pytest.fixture
def found():
    """Two pictures of different images, a network of one convolution and an attention, and their batch."""
    torch.manual_seed(0)
    backbone, attention = nn.Conv2d(3, 5, 3, stride=4), PixelAttention(5).eval()
    sizes = [(30, 50), (9, 20)]
    rng = np.random.default_rng(0)
    masks = [rng.choice([0, 1, 2, 1000], size).astype(np.uint16) for size in sizes]
    with torch.inference_mode():
        yield Batch([4, 9], torch.randn(2, 3, 16, 24), sizes, sizes, masks), backbone, attention


CENTROIDS = torch.tensor([[1.0, 0, 0, 0, 2], [0, 3, 0, 1, 0], [0, 0, -1, 0, 0.5], [-9, 1, 1, -2, 0]])


@torch.no_grad()
def slow_places(backbone, attention, picture, centroids):
    """Of one picture: enlarged features (C, h, w), attention (C, h, w), and clusters (h, w)."""
    maps = backbone(picture[None])
    x = interpolate(maps, scale_factor=4, mode="bilinear", align_corners=False)[0]
    unit = x / x.square().sum(0).sqrt()
    cosines = torch.einsum("kc,chw->khw", centroids / centroids.norm(dim=1, keepdim=True), unit)
    return x, attention(unit[None])[0], cosines.argmax(0) + 1


def slow_labels(attention, clusters, size):
    """Clusters (H, W) and mean attention (H, W) at an image's size."""
    large = interpolate(attention.mean(0)[None, None], size, mode="bilinear", align_corners=False)[0, 0]
    return interpolate(clusters[None, None].float(), size, mode="nearest")[0, 0].int(), large


def test_features_of_a_batch(found):
    batch, backbone, attention = found
    rows = feature_step(backbone, attention)(batch)
    for row, picture in zip(rows, batch.pictures, strict=True):
        x, a, _ = slow_places(backbone, attention, picture, CENTROIDS)
        assert row.keys() == {"features"} and row["features"].shape == (1, 5)
        torch.testing.assert_close(row["features"][0], (x * a).mean((1, 2)))


def test_labels_and_counts_of_a_batch(found):
    """The threshold is the median attention, of one pixel, which stays foreground as higher ones do."""
    batch, backbone, attention = found
    slow = [
        slow_labels(*slow_places(backbone, attention, picture, CENTROIDS)[1:], size)
        for picture, size in zip(batch.pictures, batch.sizes, strict=True)
    ]
    (_, attended), _ = attended_labels._full_size(batch, backbone, attention, CENTROIDS)
    place = np.unravel_index(int(attended.flatten().argsort()[attended.numel() // 2]), attended.shape)
    threshold = float(attended[place])
    labels = label_step(backbone, attention, CENTROIDS, threshold)(batch)
    for of_one, (clusters, attended) in zip(labels, slow, strict=True):
        assert of_one.dtype == torch.int32 and of_one.shape == clusters.shape
        clear = (attended - threshold).abs() > 1e-6
        assert torch.equal(of_one[clear], torch.where(attended < threshold, 0, clusters)[clear])
    assert labels[0][place] == slow[0][0][place], "equal is not below"
    assert 0.4 < (labels[0] > 0).float().mean() < 0.6
    counted = sweep_step(backbone, attention, CENTROIDS)(batch)
    for index, of_one, mask, (clusters, attended) in zip((4, 9), counted, batch.masks, slow, strict=True):
        rows = of_one["rows"].numpy()
        reached = np.searchsorted(np.float32(THRESHOLDS), attended.numpy(), side="right")[mask != 1000]
        steps = np.bincount(rows[:, 2], weights=rows[:, 3], minlength=82)
        assert np.abs(steps - np.bincount(reached, minlength=82)).sum() <= 4, "all but rounding"
        assert of_one["image"].tolist() == [index] * len(rows)
        for label, number in itertools.product((0, 1, 2, 1000), range(1, 5)):
            pixels = ((mask == label) & (clusters.numpy() == number)).sum() * (label != 1000)
            assert rows[(rows[:, 0] == label) & (rows[:, 1] == number), 3].sum() == pixels


def test_parts_of_features_are_joined_in_their_order(tmp_path):
    values = np.arange(24, dtype=np.float16).reshape(6, 4)
    parts = []
    for number, rows in enumerate((values[:3], values[3:4], values[4:])):
        parts.append(tmp_path / f"{number}.npz")
        np.savez(parts[-1], features=rows)
    join_features(parts, 6, tmp_path / "features/train.npy")
    joined = np.load(tmp_path / "features/train.npy")
    assert joined.dtype == np.float32
    np.testing.assert_array_equal(joined, values)
    assert [path.name for path in (tmp_path / "features").iterdir()] == ["train.npy"]


# --- the scripts


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """A prepared set, and a network with attention in the layout of the published files."""
    folder = tmp_path_factory.mktemp("pass")
    write_lists(folder / "lists")
    write_set(folder / "save")
    torch.manual_seed(0)
    network = AttentionNetwork(make_backbone("resnet18"), HeadSizes(16, 5)).eval()
    with torch.no_grad():
        for module in network.modules():
            if isinstance(module, torch.nn.BatchNorm2d):  # or it were too flat to tell right from wrong
                module.running_mean.normal_(0, 0.3)
        network.fbg.threshold.normal_(0, 0.5)
    state = {f"module.{name}": tensor for name, tensor in library_state(network).items()}
    torch.save({"state_dict": state, "epoch": 20}, folder / "pass50_pixelatt.pth.tar")
    return folder, network


def run(folder, script, *arguments):
    """Run a script in this process; gives what it printed. pass.sh's tests run it as a process of its own."""
    common = ("--save-dir", folder / "save", "--mode", "50", "--workers", "0", "--device", "cpu")
    given = (*common, "--checkpoint", folder / "pass50_pixelatt.pth.tar", *arguments)
    printed = io.StringIO()
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(printed):
        patch.setenv("IMAGENETS_LISTS", str(folder / "lists"))
        patch.setattr(sys, "argv", [script.__name__, *map(str, given)])
        script.main()
    return printed.getvalue()


@pytest.fixture(scope="module")
def clustered(prepared):
    folder, _ = prepared
    return run(folder, cluster, "--output-dir", folder / "att", "--clusters", "3", "--restarts", "4")


def slow_picture(path, crop=None):
    """The shorter side 256, and maybe the middle; normalised, (3, H, W); and the image's size."""
    image = Image.open(path).convert("RGB")
    picture = transforms.resize(image, 256)
    picture = transforms.to_tensor(transforms.center_crop(picture, crop) if crop else picture)
    return transforms.normalize(picture, IMAGENET_MEAN, IMAGENET_STD), (image.height, image.width)


def test_pooled_features(prepared, clustered):
    folder, network = prepared
    for split in ("train", "validation"):
        paths = sorted((folder / "save/ImageNetS50" / split).glob("*/*.JPEG"))
        features = np.load(folder / f"att/features/{split}.npy")
        assert (features.dtype, features.shape) == (np.float32, (len(paths), 512))
        for path, found in zip(paths, features, strict=True):
            picture, _ = slow_picture(path, 224)
            x, attention, _ = slow_places(network.backbone, network.fbg, picture, torch.ones(1, 512))
            np.testing.assert_allclose(found, (x * attention).mean((1, 2)), rtol=1e-3, atol=1e-5)


def test_clusters_of_the_images(prepared, clustered):
    folder, _ = prepared
    centroids = np.load(folder / "att/centroids.npy")
    assert (centroids.dtype, centroids.shape) == (np.float32, (3, 512))
    rows = list(csv.DictReader((folder / "att/clusters.csv").open()))
    assert [row["split"] for row in rows] == ["train"] * 3 + ["validation"] * 4
    assert [row["image"] for row in rows[:3]] == [
        f"{WNIDS[min(i, 1)]}/{WNIDS[min(i, 1)]}_{i}.JPEG" for i in range(3)
    ]
    assert sorted(row["cluster"] for row in rows[:3]) == ["1", "2", "3"]
    assert "accuracy 66.67 %" in clustered
    before = (folder / "att/centroids.npy").stat().st_mtime_ns
    run(folder, cluster, "--output-dir", folder / "att", "--clusters", "3", "--restarts", "4")
    assert (folder / "att/centroids.npy").stat().st_mtime_ns == before, "it is there and stays"


def test_label_maps_and_threshold(prepared, clustered):
    """Label maps equal the reference's but for ties; the sweep's best mIoU is what these maps score."""
    folder, network = prepared
    arguments = ("--centroids", folder / "att/centroids.npy", "--splits", "validation", "train")
    printed = run(folder, pseudo_labels, *arguments, "--threshold", "auto", "--output-dir", folder / "labels")
    found = json.loads((folder / "labels/threshold.json").read_text())
    assert found["thresholds"] == list(THRESHOLDS)
    assert found["best"] == THRESHOLDS[int(np.argmax(found["mIoU"]))]
    assert f"threshold {found['best']:.2f}: the best on validation, whose masks were used" in printed
    assert (folder / "labels/threshold.png").read_bytes()[:4] == b"\x89PNG"
    assert not (folder / "labels/threshold-parts").exists()
    centroids = torch.from_numpy(np.load(folder / "att/centroids.npy"))
    found_labels, expected, pairs = [], [], []
    for path in sorted((folder / "save/ImageNetS50").glob("[vt][ar]*n/*/*.JPEG")):
        picture, size = slow_picture(path)
        places = slow_places(network.backbone, network.fbg, picture, centroids)
        clusters, attended = slow_labels(*places[1:], size)
        expected.append(torch.where(attended < found["best"], 0, clusters).flatten())
        split, mask = path.parts[-3], f"{path.parent.name}/{path.stem}.png"
        labels = decode_mask(folder / "labels" / split / mask)
        found_labels.append(labels.ravel())
        if split == "validation":
            pairs.append((decode_mask(folder / "save/ImageNetS50/validation-segmentation" / mask), labels))
    assert len(pairs) == 4
    assert (np.concatenate(found_labels) != np.concatenate(expected)).mean() <= 1 / 5000
    table = table_of(pairs)
    matching = find_matching(table, "image", 50, 3)
    assert evaluate(table, 50, matching.classes).scores["mIoU"] == max(found["mIoU"])


def test_files_that_hold_no_centroids_of_this_network_are_refused(tmp_path):
    path = tmp_path / "bad.npy"

    def refused(words):
        with pytest.raises(InputError, match=rf"bad\.npy: {words}"):
            load_centroids(path, 512)

    for centroids, words in (
        (np.ones((3, 2048), np.float32), r"centroids are \(3, 2048\), but the backbone has 512 channels"),
        (np.ones(512, np.float32), r"centroids are \(512,\), but the backbone has 512"),
        (np.ones((3, 512), int), "centroids must be finite numbers"),
        (np.full((3, 512), np.nan), "centroids must be finite numbers"),
    ):
        np.save(path, centroids)
        refused(words)
    path.write_text("no array")
    refused("no NumPy file of centroids")
    with path.open("wb") as file:
        np.savez(file, centroids=np.ones((3, 512)))
    refused("centroids are no array")
    np.save(path, np.ones((3, 512)))
    assert load_centroids(path, 512).dtype == np.float32


def pass_sh(*arguments, **variables):
    return subprocess.run(
        ["bash", CHECKOUT / "methods/pass.sh", *arguments],
        env=os.environ | variables, capture_output=True, text=True,
    )  # fmt: skip


def test_pass_sh_says_how_it_is_used():
    usage = "usage: bash methods/pass.sh PREPARED MODE OUT [small]"
    for arguments in ((), ("SAVE", "51", "OUT"), ("SAVE", "50", "OUT", "large"), ("", "50", "OUT")):
        done = pass_sh(*arguments)
        assert done.returncode == 2 and done.stderr.startswith(usage)
    done = pass_sh("--help")
    assert (done.returncode, done.stderr) == (0, "") and done.stdout.startswith(usage)


@pytest.fixture
def python(tmp_path):
    """Writes a stand-in for Python, of so many GPUs; it notes its arguments on the standard error."""

    def write(counting):
        path = tmp_path / "python"
        path.write_text(f'#!/bin/sh\n[ "$1" = -c ] && {counting}\necho "$@" >&2\nexit 1\n')
        path.chmod(0o755)
        return str(path)

    return write


@pytest.mark.parametrize(("gpus", "used"), [(2, 2), (3, 2), (5, 4), (7, 4), (8, 8), (12, 8)])
def test_pass_sh_takes_as_many_gpus_as_divide_a_batch(tmp_path, python, gpus, used):
    done = pass_sh(tmp_path, "50", tmp_path / "out", PYTHON=python(f"echo {gpus} && exit"))
    assert f"--nproc-per-node {used} " in done.stderr


def test_pass_sh_says_what_an_interpreter_lacks(tmp_path, python):
    for interpreter, words in (
        (python("exit 1"), "it has no PyTorch; make one that has"),
        (str(tmp_path / "none"), "no such interpreter; make it"),
    ):
        done = pass_sh(tmp_path, "50", tmp_path / "out", "small", PYTHON=interpreter)
        assert done.returncode == 1
        assert done.stderr == f"error: {interpreter}: {words}: bash setup.sh methods\n"
    assert not (tmp_path / "out").exists()
