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
from imagenets.learning.training import augmentation
from imagenets.learning.training.order import generator

HEIGHT, WIDTH, SIDE = 120, 200, 64
ROWS, COLUMNS = np.mgrid[:HEIGHT, :WIDTH]
# A picture whose red is the column and whose green the row, and a mask that has both.
PIXELS, LABELS = np.stack((COLUMNS, ROWS, 0 * ROWS), 2).astype(np.uint8), COLUMNS + 256 * ROWS


def write_picture(path, pixels):
    """Without loss, whatever the name's suffix says."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as file:
        Image.fromarray(pixels.astype(np.uint8)).save(file, "PNG")


def pairs_of(folder, pixels, labels, recipe):
    write_picture(folder / "images/n0/a.JPEG", pixels)
    write_mask(folder / "masks/n0/a.png", labels)
    return TrainingPairs(folder / "images", folder / "masks", np.array([b"n0/a.JPEG"]), 32_000, recipe)


@pytest.mark.parametrize("recipe", [SEMI, PASS])
def test_augmentation_written_out(tmp_path, recipe):
    """A crop of the image and of its mask, and for annotated images other colours, from one stream."""
    pixels = np.random.default_rng(0).integers(0, 256, (HEIGHT, WIDTH, 3))
    pairs = pairs_of(tmp_path, pixels, LABELS, recipe)
    pairs = replace(pairs, names=np.array([b"n0/a.JPEG"] * 2))
    image = Image.fromarray(pixels.astype(np.uint8))
    for seed, epoch, index in np.ndindex(2, 2, 2):
        picture, mask = Augmented(pairs, SIDE, 0.3, seed).read(epoch, index)
        random = generator(seed, epoch, index)
        crop = augmentation.random_crop(random, WIDTH, HEIGHT, (0.3, 1.0))
        expected = augmentation.cropped(image, crop, SIDE)
        if recipe == SEMI:
            expected = augmentation.distort(random, expected)
        assert np.array_equal(picture.permute(1, 2, 0), np.asarray(expected))
        assert mask.dtype == torch.int16
        assert np.array_equal(mask, augmentation.cropped_mask(LABELS, crop, SIDE))


def test_crops_and_masks_lie_where_their_rectangles_say():
    image = Image.fromarray(PIXELS)
    centres = (np.arange(SIDE) + 0.5) / SIDE
    for index in range(30):
        crop = augmentation.random_crop(generator(0, 0, index), WIDTH, HEIGHT, (0.05, 1.0))
        x = crop.left + crop.width * (centres[::-1] if crop.flipped else centres) - 0.5
        y = crop.top + crop.height * centres - 0.5
        picture = np.asarray(augmentation.cropped(image, crop, SIDE)).astype(int)
        mask = augmentation.cropped_mask(LABELS, crop, SIDE)
        assert abs(mask % 256 - x[None]).max() <= 0.5 and abs(mask // 256 - y[:, None]).max() <= 0.5
        for channel, place in ((0, mask % 256), (1, mask // 256)):
            apart = picture[..., channel] - place
            assert abs(apart).max() <= 2 and abs(apart.mean()) < 0.25


def test_a_picture_is_turned_as_its_mask_says(tmp_path):
    """Stored on its side, as its EXIF orientation says."""
    pairs = pairs_of(tmp_path, np.zeros((HEIGHT, WIDTH, 3)), LABELS, PASS)
    exif = Image.Exif()
    exif[0x0112] = 6  # turned clockwise to be looked at
    stored = np.ascontiguousarray(np.rot90(PIXELS))
    Image.fromarray(stored).save(tmp_path / "images/n0/a.JPEG", "PNG", exif=exif)
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


def slow_crop(draw, width, height, smallest, largest):
    """Ten tries at an area and a ratio of width to height, then the middle."""
    for _ in range(10):
        area = width * height * (smallest + (largest - smallest) * draw.random())
        ratio = (3 / 4) * (16 / 9) ** draw.random()
        w, h = round((area * ratio) ** 0.5), round((area / ratio) ** 0.5)
        if w <= width and h <= height:
            left = draw.integers(0, width - w, endpoint=True)
            return left, draw.integers(0, height - h, endpoint=True), w, h, draw.random() < 0.5
    w, h = (round(height * 4 / 3), height) if width > height else (width, round(width * 4 / 3))
    return (width - w) // 2, (height - h) // 2, w, h, draw.random() < 0.5


@pytest.mark.parametrize(
    ("width", "height", "scale"),
    [(40, 30, (0.08, 1.0)), (300, 100, (0.3, 1.0)), (90, 300, (0.14, 0.9)), (1000, 10, (0.9, 1.0))],
)
def test_crops_are_their_ten_tries(width, height, scale):
    for index in range(300):
        crop = augmentation.random_crop(generator(0, 0, index), width, height, scale)
        assert crop == slow_crop(generator(0, 0, index), width, height, *scale)


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
