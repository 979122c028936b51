"""methods/kmeans.py with a backbone: features of its last map, foregrounds of either kind, on the engine."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

torchvision = pytest.importorskip("torchvision")

import torch
from helpers.method_scripts import run_ranks
from PIL import Image
from test_kmeans import CLASS_COUNT, call, clusters_by_name, make_set, options

from imagenets.common.errors import InputError
from imagenets.learning.engine.inference import Batch
from imagenets.learning.kmeans.clusters import network
from imagenets.learning.kmeans.foregrounds import by_hand
from imagenets.learning.networks.backbones import make_backbone
from imagenets.learning.networks.checkpoint_files import weights_digest
from imagenets.masks import decode_mask
from methods import kmeans


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """A set of one picture of each class in each split, a network's weights, and each picture's class."""
    folder = tmp_path_factory.mktemp("prepared")
    torch.manual_seed(0)
    torch.save(torchvision.models.resnet18().state_dict(), folder / "resnet18.pth")
    return folder, make_set(folder / "ImageNetS50", train=1, validation=1)


def with_network(folder, output, *more):
    network = ("--backbone", "resnet18", "--checkpoint", folder / "resnet18.pth", "--device", "cpu")
    return options(folder, output, *network, *more)


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


def test_the_network_of_the_command_line_reaches_the_features(prepared, tmp_path, monkeypatch):
    """The chosen copy of its weights, with batch norms folded, at its size and with its foreground."""
    torch.manual_seed(0)
    states = {name: torchvision.models.resnet18().state_dict() for name in ("student", "teacher")}
    torch.save(states, tmp_path / "both.pth")
    asked = []

    def described(*given):
        asked.extend(given)
        raise InputError("seen")

    monkeypatch.setattr(kmeans, "network", described)
    more = ("--backbone", "resnet18", "--checkpoint", tmp_path / "both.pth", "--weights", "student")
    more += ("--foreground", "features", "--size", 64, "--precision", "bfloat16", "--device", "cpu")
    with pytest.raises(InputError, match="seen"):
        call(kmeans, *options(prepared[0], tmp_path / "out", *more))
    backbone, *rest = asked
    digest = weights_digest(tmp_path / "both.pth", "student")
    assert rest == [f"resnet18 {digest}, bfloat16", "features", 64]
    assert not any(isinstance(part, torch.nn.BatchNorm2d) for part in backbone.network.modules())
    student = make_backbone("resnet18")
    student.network.load_state_dict(states["student"], strict=False)
    pictures = torch.randn(1, 3, 64, 64)
    with torch.inference_mode():
        torch.testing.assert_close(backbone(pictures), student(pictures), rtol=1e-3, atol=1e-4)


def test_a_picture_without_contrast_is_all_foreground():
    with torch.inference_mode():
        batch = Batch([0], torch.zeros(1, 3, 64, 64), [], [], [])
        vectors, inside = network(make_backbone("resnet18"), "", "features").describe(batch)
    assert torch.isfinite(vectors).all() and inside.any()


@pytest.mark.parametrize("foreground", ["handmade", "features"])
def test_a_run_with_a_backbone(foreground, prepared, tmp_path, capsys):
    arguments = with_network(prepared[0], tmp_path, "--foreground", foreground, "--batch-size", "8")
    for made in (6, 0):
        call(kmeans, *arguments)
        assert f"6 predictions, {made} made now" in capsys.readouterr().out
    found = clusters_by_name(tmp_path / "validation")
    assert set(found) == set(prepared[1]) and set(found.values()) <= set(range(1, CLASS_COUNT + 1))
    assert np.load(tmp_path / "centres.npy").shape == (CLASS_COUNT, 512)


def test_two_processes_write_the_bytes_of_one(context, prepared, tmp_path):
    more = ("--foreground", "features", "--batch-size", "2")
    arguments = with_network(prepared[0], tmp_path / "two", *more)
    printed = run_ranks(context, "kmeans", arguments, 2, tmp_path)
    assert printed.count("6 predictions, 6 made now") == 1
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    call(kmeans, *with_network(prepared[0], tmp_path / "one", *more))
    torch.set_num_threads(threads)
    one, two = (
        {path.relative_to(output): path.read_bytes() for path in output.rglob("*.[pn][np]*")}
        for output in (tmp_path / "one", tmp_path / "two")
    )
    assert len(one) > 8 and one == two


def test_any_pictures_are_clustered(prepared, tmp_path, capsys):
    pictures = prepared[0] / "ImageNetS50"
    call(
        *(kmeans, "--images", pictures, "--clusters", "3", "--output-dir", tmp_path),
        *("--workers", "0", "--overlays"),
    )
    assert len(list((tmp_path / "overlays" / "images").rglob("*.jpg"))) == 12
    assert "12 predictions, 12 made now" in capsys.readouterr().out
    for path in pictures.rglob("*.JPEG"):
        with Image.open(path) as image:
            place = path.relative_to(pictures).with_suffix(".png")
            assert decode_mask(tmp_path / "images" / place).shape == image.size[::-1]
