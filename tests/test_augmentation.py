"""Augmentation: pictures and masks stay together, crops and colours are as docs/finetuning.md says."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from masksets import write_mask
from PIL import Image, ImageFilter
from prepared_set import write_lists, write_set

from imagenets.classes import MODES
from imagenets.common.errors import InputError
from imagenets.learning.finetuning.pairs import Augmented, TrainingPairs, list_pairs
from imagenets.learning.networks.precision import Normalisation
from imagenets.learning.networks.segmentation_network import PASS, SEMI
from imagenets.learning.pass_method.crops import CropReader, CropSettings
from imagenets.learning.training import augmentation
from imagenets.learning.training.augmentation import Colours
from imagenets.learning.training.order import generator

HEIGHT, WIDTH, SIDE = 120, 200, 64
ROWS, COLUMNS = np.mgrid[:HEIGHT, :WIDTH]


def write_picture(path, pixels):
    """Without loss, whatever the name's suffix says."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as file:
        Image.fromarray(pixels.astype(np.uint8)).save(file, "PNG")


def pairs_of(folder, pixels, labels, recipe):
    write_picture(folder / "images/n0/a.JPEG", pixels)
    write_mask(folder / "masks/n0/a.png", labels)
    return TrainingPairs(folder / "images", folder / "masks", np.array([b"n0/a.JPEG"]), 32_000, recipe)


def test_a_picture_of_its_labels_comes_out_as_its_mask(tmp_path):
    """Red is the label's column, green its row: in every place of the crop, mirrored or not."""
    pixels = np.stack((COLUMNS, ROWS, 0 * ROWS), 2)
    pairs = pairs_of(tmp_path, pixels, COLUMNS + 256 * ROWS, PASS)
    mirrored, shares = 0, []
    for epoch in range(40):
        picture, mask = (
            tensor.numpy().astype(int) for tensor in Augmented(pairs, SIDE, 0.08, 0).read(epoch, 0)
        )
        assert (picture.shape, mask.shape) == ((3, SIDE, SIDE), (SIDE, SIDE))
        for channel, place in ((0, mask % 256), (1, mask // 256)):
            apart = picture[channel] - place
            assert abs(apart).max() <= 2 and abs(apart.mean()) < 0.25
        assert not picture[2].any()
        mirrored += mask[0, 0] % 256 > mask[0, -1] % 256
        shares.append(np.ptp(mask % 256) * np.ptp(mask // 256) / (HEIGHT * WIDTH))
    assert 10 < mirrored < 30
    assert 0.01 < min(shares) < 0.1 and max(shares) > 0.6


def test_augmentation_is_a_function_of_seed_epoch_and_image(tmp_path):
    pixels = np.stack((COLUMNS, ROWS, 0 * ROWS), 2)
    pairs = pairs_of(tmp_path, pixels, COLUMNS + 256 * ROWS, PASS)
    twice = replace(pairs, names=np.array([b"n0/a.JPEG"] * 2))
    read = [
        Augmented(twice, SIDE, 0.08, seed).read(epoch, index)[1] for seed, epoch, index in np.ndindex(2, 2, 2)
    ]
    assert len({mask.numpy().tobytes() for mask in read}) == 8
    assert torch.equal(Augmented(twice, SIDE, 0.08, 0).read(0, 1)[1], read[1])


def test_masks_are_what_the_files_say(tmp_path):
    """Each label of a mode, background and what is ignored: red + 256 green, and nothing else."""
    labels = np.resize([*range(920), 1000], (HEIGHT, WIDTH))
    pairs = replace(pairs_of(tmp_path, np.zeros((HEIGHT, WIDTH, 3)), labels, SEMI), classes=919)
    assert np.array_equal(pairs.mask(0), labels)
    _, mask = Augmented(pairs, SIDE, 1.0, 0).read(0, 0)
    assert set(mask.unique().tolist()) <= {*range(920), 1000}


def test_a_picture_is_turned_as_its_mask_says(tmp_path):
    """Stored on its side, as its EXIF orientation says."""
    pairs = pairs_of(tmp_path, np.zeros((HEIGHT, WIDTH, 3)), COLUMNS + 256 * ROWS, PASS)
    exif = Image.Exif()
    exif[0x0112] = 6  # turned clockwise to be looked at
    stored = np.rot90(np.stack((COLUMNS, ROWS, 0 * ROWS), 2).astype(np.uint8))
    Image.fromarray(np.ascontiguousarray(stored)).save(tmp_path / "images/n0/a.JPEG", "PNG", exif=exif)
    picture, mask = (tensor.numpy().astype(int) for tensor in Augmented(pairs, SIDE, 0.08, 0).read(0, 0))
    assert abs(picture[0] - mask % 256).max() <= 2 and abs(picture[1] - mask // 256).max() <= 2


@pytest.mark.parametrize(("recipe", "split"), [(SEMI, "train-semi"), (PASS, "train")])
def test_pairs_are_those_of_the_recipes_split(tmp_path, monkeypatch, recipe, split):
    """In the order of their paths; a folder that is no class is refused."""
    write_lists(tmp_path / "lists")
    monkeypatch.setenv("IMAGENETS_LISTS", str(tmp_path / "lists"))
    root = write_set(tmp_path)
    images = sorted(path.relative_to(root / split) for path in (root / split).rglob("*.JPEG"))
    masks = tmp_path / "labels" if recipe == PASS else root / "train-semi-segmentation"
    for image in images if recipe == PASS else ():
        with Image.open(root / split / image) as opened:
            write_mask(masks / image.with_suffix(".png"), np.ones(opened.size[::-1], int))
    pairs = list_pairs(tmp_path, MODES["50"], recipe, masks if recipe == PASS else None)
    assert (pairs.folder, pairs.masks, pairs.classes) == (root / split, masks, 50)
    assert [pairs.image_name(index) for index in range(len(pairs))] == [str(image) for image in images]
    for folder, suffix in ((root / split, ".JPEG"), (masks, ".png")):
        (folder / "n99999999").mkdir()
        (folder / f"n99999999/a{suffix}").write_bytes((folder / images[0].with_suffix(suffix)).read_bytes())
    with pytest.raises(InputError, match="n99999999"):
        list_pairs(tmp_path, MODES["50"], recipe, masks if recipe == PASS else None)


def test_colours_change_and_places_do_not(tmp_path):
    """The semi-supervised recipe on a grey ramp that is its own label: its order outlives any colours."""
    ramp = (COLUMNS + ROWS // 2) * 255 // 260
    pairs = pairs_of(tmp_path, np.stack((ramp, ramp, ramp), 2), ramp, SEMI)
    changed = 0
    for epoch in range(40):
        picture, mask = Augmented(pairs, SIDE, 0.14, 0).read(epoch, 0)
        found, label = picture.double().mean(0).flatten(), mask.double().flatten()
        assert torch.corrcoef(torch.stack((found, label)))[0, 1] > 0.7
        changed += (found - label).abs().mean() > 4
    assert 20 < changed < 40


def test_crops_lie_where_their_rectangles_say(tmp_path):
    """PASS's crops of a picture whose red is the column and whose green the row."""
    write_picture(tmp_path / "n0/a.JPEG", np.stack((COLUMNS, ROWS, 0 * ROWS), 2))
    large, small = CropSettings(2, SIDE, (0.14, 1)), CropSettings(3, 32, (0.05, 0.14))
    reader = CropReader(tmp_path, ["n0/a.JPEG"], 3, large, small, Colours(0, 0, 0, 0.1))
    centres = (np.arange(SIDE) + 0.5) / SIDE
    flips, shares = 0, []
    for epoch in range(30):
        rectangles, crops, small_crops = reader.read(epoch, 0)
        for (left, top, width, height, flipped), crop in zip(rectangles.tolist(), crops.numpy(), strict=True):
            x = left + width * (centres[::-1] if flipped else centres) - 0.5
            y = top + height * centres - 0.5
            assert abs(crop[0] - x[None]).max() < 6 and abs((crop[0] - x[None]).mean()) < 2
            assert abs(crop[1] - y[:, None]).max() < 6 and abs((crop[1] - y[:, None]).mean()) < 2
            flips += flipped
        for crop in small_crops.numpy().astype(int):
            extent = [
                abs(np.diff(crop[channel].mean(axis)[[0, -1]])[0]) for channel, axis in ((0, 0), (1, 1))
            ]
            shares.append(extent[0] * extent[1] * (32 / 31) ** 2 / (HEIGHT * WIDTH))
    assert 20 < flips < 40
    assert 0.03 < min(shares) < 0.07 and 0.11 < max(shares) < 0.16


def test_crops_are_of_the_share_and_the_ratio_that_they_should():
    shares, ratios, flips = [], [], 0
    for index in range(2000):
        crop = augmentation.random_crop(generator(0, 0, index), 400, 300, (0.14, 1.0))
        assert 0 <= crop.left <= 400 - crop.width
        assert 0 <= crop.top <= 300 - crop.height
        shares.append(crop.width * crop.height / 120_000)
        ratios.append(crop.width / crop.height)
        flips += crop.flipped
    assert 0.13 < min(shares) < 0.16
    assert max(shares) > 0.9
    assert 0.74 < min(ratios) < 0.77
    assert 1.30 < max(ratios) < 1.35
    assert 900 < flips < 1100


def slow_crop(draw, width, height, smallest, largest):
    """Ten tries at an area and a ratio of width to height, then the middle."""
    for _ in range(10):
        area = width * height * (smallest + (largest - smallest) * draw.random())
        ratio = (3 / 4) * (16 / 9) ** draw.random()
        w, h = round((area * ratio) ** 0.5), round((area / ratio) ** 0.5)
        if w <= width and h <= height:
            left, top = (
                draw.integers(0, width - w, endpoint=True),
                draw.integers(0, height - h, endpoint=True),
            )
            return left, top, w, h, draw.random() < 0.5
    w, h = (round(height * 4 / 3), height) if width > height else (width, round(width * 4 / 3))
    return (width - w) // 2, (height - h) // 2, w, h, draw.random() < 0.5


@pytest.mark.parametrize(
    ("width", "height", "scale"), [(40, 30, (0.08, 1.0)), (300, 100, (0.3, 1.0)), (90, 300, (0.14, 0.9))]
)
def test_crops_are_their_ten_tries(width, height, scale):
    for index in range(300):
        crop = augmentation.random_crop(generator(0, 0, index), width, height, scale)
        assert crop == slow_crop(generator(0, 0, index), width, height, *scale)


def test_a_picture_that_is_too_narrow_gives_its_middle():
    for width, height, expected in ((1000, 10, (493, 0, 13, 10)), (10, 1000, (0, 493, 10, 13))):
        crop = augmentation.random_crop(generator(0, 0, 0), width, height, (0.9, 1.0))
        assert crop[:4] == expected


def test_a_picture_is_averaged_where_it_shrinks():
    """Fine checks become grey: bilinear, with antialiasing."""
    checks = Image.fromarray(((np.indices((128, 128)).sum(0) % 2) * 255).astype(np.uint8)).convert("RGB")
    small = np.asarray(augmentation.cropped(checks, augmentation.Crop(0, 0, 128, 128, False), 32))
    assert 120 < small.min() <= small.max() < 136


def test_colours_change_as_torchvision_changes_them():
    functional = pytest.importorskip("torchvision.transforms.functional")
    rng = np.random.default_rng(0)
    image = Image.fromarray(rng.integers(0, 256, (40, 50, 3), np.uint8))
    for shift in (-0.2, -0.03, 0.0, 0.11, 0.2):
        ours = np.asarray(augmentation.shift_hue(image, shift))
        assert np.array_equal(ours, np.asarray(functional.adjust_hue(image, shift)))
    for index in range(10):
        ours = augmentation.jitter(generator(0, 0, index), image, 0.8, 0.2)
        draw = generator(0, 0, index)
        factors, hue, order = draw.uniform(0.2, 1.8, 3), draw.uniform(-0.2, 0.2), draw.permutation(4)
        names = ("adjust_brightness", "adjust_contrast", "adjust_saturation", "adjust_hue")
        theirs = image
        for which in order:
            theirs = getattr(functional, names[which])(theirs, [*factors, hue][which])
        assert np.array_equal(np.asarray(ours), np.asarray(theirs))
    assert np.array_equal(
        Normalisation((0.4, 0.5, 0.6), (0.1, 0.2, 0.3), torch.device("cpu"))(augmentation.as_tensor(image)),
        functional.normalize(functional.to_tensor(image), (0.4, 0.5, 0.6), (0.1, 0.2, 0.3)),
    )


def test_distortion_is_its_steps():
    """Colours with 0.8, grey with 0.2, blur with 0.5, in this order, each by the next random numbers."""
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (9, 7, 3), np.uint8))
    done = np.zeros(3)
    for index in range(300):
        draw, expected = generator(0, 0, index), image
        if draw.random() < 0.8:
            expected, done[0] = augmentation.jitter(draw, expected, 0.8, 0.2), done[0] + 1
        if draw.random() < 0.2:
            expected, done[1] = expected.convert("L").convert("RGB"), done[1] + 1
        if draw.random() < 0.5:
            radius = 0.1 + draw.random() * (2.0 - 0.1)
            expected, done[2] = expected.filter(ImageFilter.GaussianBlur(radius)), done[2] + 1
        found = augmentation.distort(generator(0, 0, index), image)
        assert np.array_equal(np.asarray(found), np.asarray(expected)), index
    np.testing.assert_allclose(done / 300, (0.8, 0.2, 0.5), atol=0.06)
