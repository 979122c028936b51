"""Foregrounds without supervision, against slow references, under mirroring, and on photographs."""

from __future__ import annotations

import itertools
from functools import partial

import cv2
import numpy as np
import pytest
import torch
from masksets import SHARED
from PIL import Image

from benchmarks.bench_foregrounds import iou
from imagenets.learning.kmeans.bilateral_solver import solve
from imagenets.learning.kmeans.clusters import is_coarse, network_foregrounds, rgb_pictures
from imagenets.learning.kmeans.foregrounds import (
    border_distance,
    by_hand,
    centre_weight,
    grab_cut,
    smoothed,
    smoothed_and_cut,
)
from imagenets.learning.networks.backbones import make_backbone
from imagenets.masks import decode_mask

PHOTOS = SHARED / "photos"


def test_border_distance_is_one_minus_the_cosine_with_the_rings_mean_direction():
    maps = torch.randn(2, 5, 4, 6, generator=torch.Generator().manual_seed(0))
    found = border_distance(maps)
    for of_one, of_map in zip(found, maps.double().numpy(), strict=True):
        ring = np.zeros(5)
        for y, x in itertools.product(range(4), range(6)):
            if y in (0, 3) or x in (0, 5):
                ring += of_map[:, y, x] / np.linalg.norm(of_map[:, y, x])
        for y, x in itertools.product(range(4), range(6)):
            cosine = of_map[:, y, x] @ ring / np.linalg.norm(of_map[:, y, x]) / np.linalg.norm(ring)
            assert of_one[y, x].item() == pytest.approx(1 - cosine, abs=1e-5)


def test_centre_weight_is_a_gaussian_of_the_places_middles():
    found = centre_weight(3, 4)
    for y, x in itertools.product(range(3), range(4)):
        v, u = (y + 0.5) / 1.5 - 1, (x + 0.5) / 2 - 1
        assert found[y, x] == pytest.approx(np.exp(-(u**2 + v**2) / (2 * 0.7**2)), rel=1e-5)


def solved_slowly(image, guess):
    """The bilateral solver by loops over cells and a dense matrix, with the values of docs/methods.md."""
    yuv = cv2.cvtColor(image, cv2.COLOR_RGB2YUV).astype(int)
    cells, of_pixel = {}, {}
    for y, x in np.ndindex(guess.shape):
        cell = tuple(
            value // size for value, size in zip((y, x, *yuv[y, x]), (16, 16, 16, 8, 8), strict=True)
        )
        of_pixel[y, x] = cells.setdefault(cell, len(cells))
    n = len(cells)
    blur = 10 * np.eye(n)
    for cell, i in cells.items():
        for dimension, step in itertools.product(range(5), (-1, 1)):
            near = list(cell)
            near[dimension] += step
            if tuple(near) in cells:
                blur[i, cells[tuple(near)]] += 1
    pixels, sums = np.zeros(n), np.zeros(n)
    for place, i in of_pixel.items():
        pixels[i] += 1
        sums[i] += guess[place]
    scale = np.ones(n)
    for _ in range(10):
        scale = np.sqrt(scale * pixels / (blur @ scale))
    smooth = np.diag(scale * (blur @ scale)) - scale[:, None] * blur * scale
    values = np.linalg.solve(256 * smooth + 0.999 * np.diag(pixels), 0.999 * sums)
    return np.array([values[of_pixel[place]] for place in np.ndindex(guess.shape)]).reshape(guess.shape)


def test_the_bilateral_solver_is_the_dense_one():
    random = np.random.default_rng(0)
    image = cv2.resize(random.integers(0, 256, (3, 4, 3)).astype(np.uint8), (57, 40))
    guess = np.zeros((40, 57), bool)
    guess[8:30, 15:44] = True
    found, slow = solve(image, guess), solved_slowly(image, guess)
    assert 0.05 < slow.std() < guess.std() - 0.01
    np.testing.assert_allclose(found, slow, atol=1e-5)


def scene(side=96):
    """A ground of noise with a blob of another colour off the middle, and where the blob is."""
    random = np.random.default_rng(0)
    y, x = np.indices((side, side))
    blob = (y - 40) ** 2 + (x - 58) ** 2 < 20**2
    image = np.where(blob[..., None], (200, 60, 40), (60, 120, 90)) + random.normal(0, 12, (side, side, 3))
    return np.clip(image, 0, 255).astype(np.uint8), blob


MIDDLE = centre_weight(96, 96) > 0.6
FINDERS = [by_hand, partial(grab_cut, guess=MIDDLE), partial(smoothed_and_cut, guess=MIDDLE)]


@pytest.mark.parametrize("find", FINDERS)
def test_a_blob_is_found_and_mirrored_in_a_mirrored_picture(find):
    image, blob = scene()
    found = find(image)
    mirrored = find(np.ascontiguousarray(image[:, ::-1]))[:, ::-1]
    assert (found & blob).sum() / (found | blob).sum() > 0.9
    assert (found & mirrored).sum() / (found | mirrored).sum() > 0.97


def test_where_grab_cut_runs_away_the_guess_stays():
    """A speck of the ground's colour: GrabCut would take what looks like it, all over the picture."""
    image, _ = scene()
    guess = np.zeros((96, 96), bool)
    guess[70:90, 5:25] = True
    assert (grab_cut(image, guess) == guess).all()
    assert (smoothed_and_cut(image, guess) == smoothed(image, guess)).all()


def test_which_maps_are_coarse():
    pytest.importorskip("timm")
    assert is_coarse(make_backbone("test_resnet")) and not is_coarse(make_backbone("test_vit"))


def photographs(split, every):
    folder = PHOTOS / "ImageNetS50"
    for path in sorted((folder / f"{split}-segmentation").rglob("*.png"))[::every]:
        found = (folder / split / path.parent.name / path.stem).with_suffix(".JPEG")
        with Image.open(found) as image:
            scale = 256 / min(image.size)
            size = tuple(int(side * scale) for side in image.size)
            yield np.asarray(image.convert("RGB").resize(size, Image.Resampling.BILINEAR)), decode_mask(path)


@pytest.mark.skipif(not PHOTOS.is_dir(), reason="no photographs beside the checkout")
def test_foregrounds_of_photographs_are_as_good_as_measured():
    """Every thirtieth of validation: the means of docs/notes.md within two standard errors."""
    from imagenets.learning.networks.checkpoints import load_backbone

    pytest.importorskip("timm")
    backbone = make_backbone("tf_efficientnet_lite0")
    load_backbone(backbone, PHOTOS / "tf_efficientnet_lite0.pth")
    mean, std = (torch.tensor(of).view(3, 1, 1) for of in (backbone.mean, backbone.std))
    hand, network = [], []
    for image, mask in photographs("validation", 30):
        hand.append(iou(by_hand(image), mask))
        pictures = ((torch.tensor(image).permute(2, 0, 1) / 255 - mean) / std)[None]
        with torch.inference_mode():
            found = network_foregrounds(backbone, backbone(pictures), pictures)
        network.append(iou(found[0].numpy(), mask))
        assert (rgb_pictures(pictures, backbone.mean, backbone.std)[0] == image).all()
    for scores, expected in ((hand, 57.0), (network, 58.1)):
        assert abs(np.mean(scores) - expected) < 2 * np.std(scores) / np.sqrt(len(scores)), np.mean(scores)
