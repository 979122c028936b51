"""The baseline with a backbone: features of its last map, foregrounds of either kind, on the engine."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest

torchvision = pytest.importorskip("torchvision")

import torch
from helpers.scripts import environment
from masksets import CHECKOUT
from PIL import Image
from test_kmeans import CLASS_COUNT, FOLDERS, clusters_by_name, make_set, options

from imagenets.common.errors import InputError
from imagenets.learning.engine.inference import Batch
from imagenets.learning.kmeans.clusters import network
from imagenets.learning.kmeans.foregrounds import by_hand, otsu
from imagenets.learning.networks.backbones import make_backbone
from imagenets.learning.networks.checkpoint_files import weights_digest
from imagenets.masks import decode_mask
from methods import kmeans


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("weights") / "resnet18.pth"
    torch.save(torchvision.models.resnet18(weights=None).state_dict(), path)
    return path


def test_features_are_the_mean_of_the_last_map_over_the_foreground():
    backbone = make_backbone("resnet18")
    pictures = torch.randn(2, 3, 224, 256, generator=torch.Generator().manual_seed(0))
    inside = np.zeros((2, 224, 256), bool)
    inside[:, 40:150, 60:224] = True
    with torch.inference_mode():
        batch = Batch([0, 1], pictures, [], [], list(inside))
        found, foreground = network(backbone, "", "handmade").describe(batch)
        maps = backbone(pictures).numpy()
    share = inside.reshape(2, 7, 32, 8, 32).mean(axis=(2, 4))
    expected = (maps * share[:, None]).sum(axis=(2, 3))
    expected /= np.linalg.norm(expected, axis=1, keepdims=True)
    np.testing.assert_allclose(found, expected, atol=1e-5)
    assert (foreground.numpy() == inside).all()


def test_how_pictures_are_read_and_what_features_are_known_by():
    backbone = make_backbone("resnet18")
    for foreground, beside in (("handmade", by_hand), ("features", None)):
        found = network(backbone, "the weights", foreground, 64)
        assert found.reading == replace(backbone.reading(64), beside=beside)
        assert found.identity == f"{foreground}, the weights, size {backbone.reading(64).size_text}"


def test_the_network_of_the_command_line_reaches_the_features(tmp_path, monkeypatch, capsys):
    """The chosen copy of its weights, with batch norms folded, at its size and with its foreground."""
    make_set(tmp_path / "save/ImageNetS50", FOLDERS, train=1, validation=1)
    torch.manual_seed(0)
    states = {name: torchvision.models.resnet18().state_dict() for name in ("student", "teacher")}
    torch.save(states, tmp_path / "both.pth")
    asked = []

    def described(backbone, identity, *more):
        asked.append((backbone, identity, *more))
        raise InputError("seen")

    monkeypatch.setattr(kmeans, "network", described)
    more = ("--backbone", "resnet18", "--checkpoint", tmp_path / "both.pth", "--weights", "student")
    more += ("--foreground", "features", "--size", 64, "--precision", "bfloat16", "--device", "cpu")
    arguments = options(tmp_path / "save", tmp_path / "out", *more)
    monkeypatch.setattr(sys, "argv", ["kmeans.py", *map(str, arguments)])
    with pytest.raises(InputError, match="seen"):
        kmeans.main()
    ((backbone, identity, *rest),) = asked
    assert rest == ["features", 64]
    assert identity == f"resnet18 {weights_digest(tmp_path / 'both.pth', 'student')}, bfloat16"
    assert not any(isinstance(part, torch.nn.BatchNorm2d) for part in backbone.network.modules())
    student = make_backbone("resnet18")
    student.network.load_state_dict(states["student"], strict=False)
    pictures = torch.randn(1, 3, 64, 64)
    with torch.inference_mode():
        torch.testing.assert_close(backbone(pictures), student(pictures), rtol=1e-3, atol=1e-4)


def test_the_threshold_leaves_most_variance_between_its_sides():
    values = torch.randn(4, 5, 6, generator=torch.Generator().manual_seed(0)).exp()

    def between(of_one, cut):
        low, high = of_one[of_one <= cut], of_one[of_one > cut]
        return len(low) * len(high) * (low.mean() - high.mean()) ** 2

    for of_one, found in zip(values, otsu(values).flatten(), strict=True):
        ordered = of_one.flatten().sort().values
        best = max(ordered[:-1].tolist(), key=lambda cut: between(of_one, cut))
        after = ordered[ordered > best][0].item()
        assert found.item() == pytest.approx((best + after) / 2)
    assert otsu(torch.full((1, 2, 3), 7.0)).flatten().tolist() == [7]


def test_a_picture_without_contrast_is_all_foreground():
    backbone = make_backbone("resnet18")
    with torch.inference_mode():
        batch = Batch([0], torch.zeros(1, 3, 64, 64), [], [], [])
        vectors, inside = network(backbone, "", "features").describe(batch)
    assert torch.isfinite(vectors).all() and inside.any()


@pytest.mark.parametrize("foreground", ["handmade", "features"])
def test_a_run_with_a_backbone(foreground, checkpoint, tmp_path, monkeypatch, capsys):
    truth = make_set(tmp_path / "save" / "ImageNetS50", FOLDERS, train=1, validation=1)
    more = ("--backbone", "resnet18", "--checkpoint", checkpoint, "--foreground", foreground)
    arguments = options(tmp_path / "save", tmp_path / "out", *more, "--device", "cpu", "--batch-size", "8")
    monkeypatch.setattr(sys, "argv", ["kmeans.py", *map(str, arguments)])
    kmeans.main()
    assert "6 predictions, 6 made now" in capsys.readouterr().out
    found = clusters_by_name(tmp_path / "out" / "validation")
    assert set(found) == set(truth) and set(found.values()) <= set(range(1, CLASS_COUNT + 1))
    assert np.load(tmp_path / "out" / "centres.npy").shape == (CLASS_COUNT, 512)
    kmeans.main()
    assert "6 predictions, 0 made now" in capsys.readouterr().out


def test_torchrun_writes_the_bytes_of_one_process(checkpoint, tmp_path, monkeypatch):
    make_set(tmp_path / "save" / "ImageNetS50", FOLDERS, train=1, validation=1)
    more = ("--backbone", "resnet18", "--checkpoint", checkpoint, "--foreground", "features")
    more += ("--device", "cpu", "--batch-size", "2")

    def files(output):
        return {
            path.relative_to(output): path.read_bytes()
            for path in output.rglob("*")
            if path.suffix in (".png", ".npy", ".npz")
        }

    command = [CHECKOUT / "methods/kmeans.py", *options(tmp_path / "save", tmp_path / "two", *more)]
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "torch.distributed.run",
            "--standalone",
            "--nproc-per-node=2",
            *map(str, command),
        ],
        env=environment(OMP_NUM_THREADS="1"),
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("6 predictions, 6 made now") == 1
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        arguments = options(tmp_path / "save", tmp_path / "one", *more)
        monkeypatch.setattr(sys, "argv", ["kmeans.py", *map(str, arguments)])
        kmeans.main()
    finally:
        torch.set_num_threads(threads)
    assert len(files(tmp_path / "one")) > 8
    assert files(tmp_path / "one") == files(tmp_path / "two")


def test_any_pictures_are_clustered(tmp_path, monkeypatch, capsys):
    make_set(tmp_path / "photos" / "of mine", FOLDERS, train=1, validation=1)
    arguments = ["--images", tmp_path / "photos", "--clusters", "3", "--output-dir", tmp_path / "out"]
    monkeypatch.setattr(sys, "argv", ["kmeans.py", *map(str, arguments), "--workers", "0", "--overlays"])
    kmeans.main()
    assert len(list((tmp_path / "out" / "overlays" / "images").rglob("*.jpg"))) == 12
    assert "12 predictions, 12 made now" in capsys.readouterr().out
    for path in (tmp_path / "photos").rglob("*.JPEG"):
        place = path.relative_to(tmp_path / "photos").with_suffix(".png")
        with Image.open(path) as image:
            assert decode_mask(tmp_path / "out" / "images" / place).shape == image.size[::-1]
