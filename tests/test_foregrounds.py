"""Foregrounds without supervision, against slow references, under mirroring, and on photographs."""

from __future__ import annotations

from functools import partial
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
import torch
from masksets import SHARED
from PIL import Image

from benchmarks.bench_foregrounds import iou
from imagenets.learning.kmeans import clusters, foregrounds
from imagenets.learning.kmeans.bilateral_solver import solve
from imagenets.learning.kmeans.clusters import above_threshold, is_coarse, network_foregrounds, rgb_pictures
from imagenets.learning.kmeans.foregrounds import (
    border_distance,
    by_hand,
    centre_weight,
    grab_cut,
    otsu,
    rare_colours,
    resized_mask,
    smoothed,
    smoothed_and_cut,
)
from imagenets.learning.networks.backbones import make_backbone
from imagenets.masks import decode_mask

PHOTOS = SHARED / "photos"


@pytest.mark.parametrize(("height", "width"), [(4, 6), (1, 5), (3, 1), (1, 1)])
def test_border_distance_is_one_minus_the_cosine_with_the_rings_mean_direction(height, width):
    maps = torch.randn(2, 5, height, width, generator=torch.Generator().manual_seed(0))
    found = border_distance(maps)
    unit = maps.double() / maps.double().norm(dim=1, keepdim=True)
    places = [(y, x) for y, x in np.ndindex(height, width) if y in (0, height - 1) or x in (0, width - 1)]
    for of_one, of_map in zip(found, unit, strict=True):
        ring = sum(of_map[:, y, x] for y, x in places)
        expected = 1 - torch.einsum("chw,c->hw", of_map, ring / ring.norm())
        torch.testing.assert_close(of_one, expected.float(), atol=1e-5, rtol=0)


def test_centre_weight_is_a_gaussian_of_the_places_middles():
    for (y, x), found in np.ndenumerate(centre_weight(3, 4)):
        v, u = (y + 0.5) / 1.5 - 1, (x + 0.5) / 2 - 1
        assert found == pytest.approx(np.exp(-(u**2 + v**2) / (2 * 0.7**2)), rel=1e-5)


def solved_slowly(image, guess):
    """The bilateral solver by a dense matrix over cells, with the values of docs/methods.md."""
    place = np.moveaxis(np.indices(guess.shape), 0, -1)
    points = np.dstack((place, cv2.cvtColor(image, cv2.COLOR_RGB2YUV))).reshape(-1, 5)
    cells, of_pixel, pixels = np.unique(
        points // (16, 16, 16, 8, 8), axis=0, return_inverse=True, return_counts=True
    )
    distance = np.abs(cells[:, None].astype(int) - cells).sum(2)
    blur = 10 * (distance == 0) + (distance == 1)
    scale = np.ones(len(cells))
    for _ in range(10):
        scale = np.sqrt(scale * pixels / (blur @ scale))
    smooth = np.diag(scale * (blur @ scale)) - scale[:, None] * blur * scale
    sums = np.bincount(of_pixel, weights=guess.ravel())
    return np.linalg.solve(256 * smooth + 0.999 * np.diag(pixels), 0.999 * sums)[of_pixel].reshape(
        guess.shape
    )


def test_the_bilateral_solver_is_the_dense_one():
    """Also where the last cell of a row must be no neighbour of the next row's first: all of one colour."""
    random = np.random.default_rng(0)
    image = cv2.resize(random.integers(0, 256, (3, 4, 3)).astype(np.uint8), (57, 40))
    guess = square(slice(8, 30), slice(15, 44), (40, 57))
    slow = solved_slowly(image, guess)
    assert 0.05 < slow.std() < guess.std() - 0.01
    np.testing.assert_allclose(solve(image, guess), slow, atol=1e-5)
    image, guess = np.full((40, 57, 3), 90, np.uint8), square(slice(0, 8), slice(40, 57), (40, 57))
    np.testing.assert_allclose(solve(image, guess), solved_slowly(image, guess), atol=1e-5)


def square(rows, columns, shape=(100, 100)):
    mask = np.zeros(shape, bool)
    mask[rows, columns] = True
    return mask


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
    assert iou(found, blob) > 90 and iou(found, mirrored) > 97
    cv2.setRNGSeed(7)
    assert (find(image) == found).all(), "whatever was asked before"


@pytest.mark.parametrize("shape", [(1, 1), (1, 300), (300, 2), (40, 40)])
def test_foreground_of_a_picture_of_one_colour_is_some_of_it(shape):
    found = by_hand(np.full((*shape, 3), 200, np.uint8))
    assert found.shape == shape and found.any()


def slow_otsu(values):
    """The middle of the gap in the sorted values that leaves most variance between its sides."""
    ordered = np.sort(values)

    def between(cut):
        low, high = ordered[:cut], ordered[cut:]
        return len(low) * len(high) * (low.mean() - high.mean()) ** 2

    best = max(range(1, len(ordered)), key=between)
    return (ordered[best - 1] + ordered[best]) / 2


def test_otsus_threshold_leaves_most_variance_between_its_sides():
    values = torch.randn(4, 5, 6, generator=torch.Generator().manual_seed(0)).exp()
    for of_one, found in zip(values, otsu(values).flatten(), strict=True):
        assert found.item() == pytest.approx(slow_otsu(of_one.flatten().numpy()))
    assert otsu(torch.full((1, 2, 3), 7.0)).flatten().tolist() == [7]


def smoothed_histogram(counts):
    """A Gaussian of sigma 1, four bins to each side, along L, a and b; the outermost bins go on beyond."""
    kernel = np.exp(-(np.arange(-4, 5) ** 2) / 2)
    kernel /= kernel.sum()
    for axis in range(3):
        counts = np.apply_along_axis(
            lambda line: np.convolve(np.pad(line, 4, mode="edge"), kernel, "valid"), axis, counts
        )
    return counts


def test_rare_colours_are_those_of_loops():
    """Bins of 32 levels of L and 8 of a and b, and a border of 6 % of the shorter side: here 2 pixels."""
    rng = np.random.default_rng(0)
    image = cv2.resize(rng.integers(0, 256, (3, 4, 3)).astype(np.uint8), (44, 30))
    weight = centre_weight(30, 44)
    lab = cv2.cvtColor(image, cv2.COLOR_RGB2LAB).astype(int)
    border = ~square(slice(2, -2), slice(2, -2), (30, 44))
    bins = lab[..., 0] // 32, *np.moveaxis((lab[..., 1:] // 8 - 8).clip(0, 15), 2, 0)
    shares = []
    for where in (border, ~border):
        counts = np.zeros((8, 16, 16))
        np.add.at(counts, tuple(of_one[where] for of_one in bins), 1 / where.sum())
        shares.append(smoothed_histogram(counts)[bins])
    rarity = (shares[1] / (shares[0] + shares[1] + 1e-6) * weight).astype(np.float32)
    salience = cv2.GaussianBlur(rarity, (0, 0), 2)
    threshold = slow_otsu(salience.ravel().astype(float))
    clear = np.abs(salience - threshold) > 1e-4
    assert clear.mean() > 0.99
    found = rare_colours(image, weight)
    assert (found == (salience > threshold))[clear].all()
    assert 0.05 < found.mean() < 0.95
    assert rare_colours(image[:2], np.ones((2, 44))).all(), "all is border, and nothing is rarer there"


def cut_as(monkeypatch, found):
    """Have GrabCut find a mask; gives what it was asked for."""
    asked = []

    def grab(picture, labels, box, ground, objects, rounds, how):
        asked.append((picture, labels.copy(), rounds, how))
        labels[:] = np.where(found, cv2.GC_PR_FGD, cv2.GC_PR_BGD)

    monkeypatch.setattr(cv2, "grabCut", grab)
    return asked


GUESS, BLOCK = square(slice(20, 40), slice(20, 40)), square(slice(10, 50), slice(10, 50))
EVERYTHING = square(slice(None), slice(None))
A_TWENTIETH = square(slice(70, 78), slice(70, 80))  # 80 pixels of 1,600; smaller pieces are specks
HOLE, SPECK = square(slice(20, 30), slice(20, 30)), square(slice(90, 93), slice(0, 26))


@pytest.mark.parametrize(
    ("guess", "found", "expected"),
    [
        (GUESS, square(slice(20, 40), slice(20, 86)), square(slice(20, 40), slice(20, 86))),  # 400 of 1,320
        (GUESS, square(slice(20, 40), slice(20, 87)), GUESS),  # 400 of 1,340 pixels: 0.299
        (GUESS, square(slice(20, 40), slice(34, 54)), GUESS),  # moved by 14 of 20: 120 of 680
        (GUESS, square(slice(20, 32), slice(20, 31)), square(slice(20, 32), slice(20, 31))),  # 132 of 400
        (GUESS, square(slice(20, 32), slice(20, 29)), GUESS),  # 108 of 400: 0.27
        (square(slice(0, 60), slice(None)), EVERYTHING, square(slice(0, 60), slice(None))),
        (BLOCK, BLOCK & ~HOLE | A_TWENTIETH | SPECK, BLOCK | A_TWENTIETH),
    ],
)
def test_grab_cut_is_believed_where_it_agrees_with_the_guess(monkeypatch, guess, found, expected):
    """Holes are filled, and specks dropped."""
    asked = cut_as(monkeypatch, found)
    image = np.random.default_rng(0).integers(0, 256, (100, 100, 3)).astype(np.uint8)
    assert (grab_cut(image, guess) == expected).all()
    ((picture, labels, rounds, how),) = asked
    assert (picture == image).all() and rounds == 2 and how == cv2.GC_INIT_WITH_MASK
    assert (labels == np.where(guess, cv2.GC_PR_FGD, cv2.GC_PR_BGD)).all()


def test_a_guess_of_all_or_nothing_stays(monkeypatch):
    asked = cut_as(monkeypatch, GUESS)
    for guess in (EVERYTHING, ~EVERYTHING):
        assert (grab_cut(np.zeros((100, 100, 3), np.uint8), guess) == guess).all() and not asked


@pytest.mark.parametrize(
    ("size", "seen"), [((100, 60), (100, 60)), ((256, 512), (64, 128)), ((300, 2), (128, 1))]
)
def test_grab_cut_sees_the_picture_at_128_pixels(monkeypatch, size, seen):
    """Of the longer side; smaller pictures as they are."""
    asked = cut_as(monkeypatch, square(slice(0, seen[0] // 2), slice(None), seen))
    guess = square(slice(0, size[0] // 2), slice(None), size)
    image = np.zeros((*size, 3), np.uint8)
    assert (grab_cut(image, guess) == guess).all()
    assert asked[0][0].shape == (*seen, 3)
    monkeypatch.setattr(foregrounds, "rare_colours", lambda small, weight: small[..., 0] >= 0)
    monkeypatch.setattr(foregrounds, "grab_cut", lambda small, guess: asked.append(small.shape) or guess)
    assert by_hand(image).shape == size
    assert asked[-1] == (*seen, 3)


def test_half_of_a_pixel_is_enough():
    """Of what a mask covers of it; where no pixel has as much, the most is."""
    mask = np.zeros((4, 4), bool)
    mask[0, 0:2] = mask[2, 0] = True  # half of the first of four pixels, a quarter of the third
    assert resized_mask(mask, (2, 2), cv2.INTER_AREA).tolist() == [[True, False], [False, False]]
    mask[0, 0:2] = False
    assert resized_mask(mask, (2, 2), cv2.INTER_AREA).tolist() == [[False, False], [True, False]]
    for size in ((73, 51), (400, 500)):
        assert resized_mask(square(20, 30, (50, 50)), size, cv2.INTER_LINEAR).any(), "a speck"
    assert not resized_mask(np.zeros((5, 5), bool), (9, 9), cv2.INTER_LINEAR).any()


def test_smoothed_is_above_one_half_or_the_guess(monkeypatch):
    values = np.array([[0.4, 0.5], [0.51, 0.9]])
    guess = np.array([[True, False], [False, False]])
    monkeypatch.setattr(foregrounds, "solve", lambda image, given: values)
    assert smoothed(None, guess).tolist() == [[False, False], [True, True]]
    values[:] = 0.5
    assert smoothed(None, guess) is guess


@pytest.mark.parametrize(
    ("stride", "patches", "coarse"),
    [
        (32, None, True),
        (16, None, True),
        (8, None, False),
        (16, "patch_embed", False),
        (16, "conv_proj", False),
        (32, "patch_embed", True),
    ],
)
def test_which_maps_are_coarse(stride, patches, coarse):
    parts = {} if patches is None else {patches: torch.nn.Identity()}
    assert is_coarse(SimpleNamespace(stride=stride, network=SimpleNamespace(**parts))) == coarse


def test_maps_of_real_networks_are_coarse_or_not():
    pytest.importorskip("timm")
    assert is_coarse(make_backbone("test_resnet")) and not is_coarse(make_backbone("test_vit"))


def test_a_guess_is_above_otsus_threshold_once_the_map_is_enlarged():
    salience = torch.rand(2, 3, 4, generator=torch.Generator().manual_seed(0))
    salience[1] = 2.0
    found = above_threshold(salience, (9, 16))
    threshold = slow_otsu(salience[0].flatten().tolist())
    large = torch.nn.functional.interpolate(salience[:1, None], (9, 16), mode="bilinear")[0, 0]
    clear = (large - threshold).abs() > 1e-6
    assert torch.equal(found[0][clear], (large > threshold)[clear])
    assert found.dtype == torch.bool and found[1].all(), "without contrast everything"
    assert above_threshold(torch.tensor([[[0.3]]]), (3, 4)).all(), "as of a map of one place"
    # The threshold is 0.5; halving the width takes the means of 0 and 1, and of 1 and 1.
    halved = above_threshold(torch.tensor([[[0.0, 1, 1, 1]]]), (1, 2))
    assert halved.tolist() == [[[False, True]]], "the threshold itself is not above"


def test_pictures_are_taken_back_to_8_bits():
    mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    image = torch.arange(2 * 4 * 6 * 3, dtype=torch.uint8).view(2, 4, 6, 3)
    pictures = ((image / 255 - torch.tensor(mean)) / torch.tensor(std)).permute(0, 3, 1, 2)
    found = rgb_pictures(pictures, mean, std)
    assert found.dtype == np.uint8 and (found == image.numpy()).all()
    found = rgb_pictures(torch.tensor([-9.0, 9, 0]).view(1, 3, 1, 1), mean, std)
    assert found.ravel().tolist() == [0, 255, round(0.406 * 255)]


@pytest.mark.parametrize("coarse", [True, False])
def test_foregrounds_of_a_network_follow_the_kind_of_its_map(monkeypatch, coarse):
    """Coarse: length times centre weight, solver and GrabCut. Fine: distance from the border, solver."""
    maps = torch.randn(2, 5, 4, 6, generator=torch.Generator().manual_seed(1))
    pictures = torch.zeros(2, 3, 40, 60)
    backbone = SimpleNamespace(
        stride=32 if coarse else 8, network=None, mean=(0.5, 0.25, 0.75), std=(1.0, 1.0, 1.0)
    )
    seen = []
    for name in ("smoothed", "smoothed_and_cut"):
        refine = partial(lambda name, image, guess: seen.append((name, image, guess)) or ~guess, name)
        monkeypatch.setattr(clusters, name, refine)
    monkeypatch.setattr(clusters, "available_cores", lambda: 1)
    found = network_foregrounds(backbone, maps, pictures)
    salience = maps.norm(dim=1) * torch.from_numpy(centre_weight(4, 6)) if coarse else border_distance(maps)
    guesses = above_threshold(salience, (40, 60))
    assert torch.equal(found, ~guesses)
    for (name, image, guess), expected in zip(seen, guesses.numpy(), strict=True):
        assert name == ("smoothed_and_cut" if coarse else "smoothed") and (guess == expected).all()
        assert image.shape == (40, 60, 3) and (image == (128, 64, 191)).all()


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
