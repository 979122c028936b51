"""Which pictures are listed, in which order, and what becomes of an image: against Pillow and plain loops."""

from __future__ import annotations

import hashlib
import os
from dataclasses import replace

import numpy as np
import pytest
from masksets import write_mask
from PIL import Image

from imagenets.classes import MODES
from imagenets.common.errors import InputError
from imagenets.learning.images import (
    Images,
    Reading,
    annotated_images,
    digest,
    fingerprint,
    images_below,
    picture_size,
    read_picture,
    shuffled,
    target_paths,
)

READING = Reading((0.0,) * 3, (1.0,) * 3, side=32)


def write(path, width=90, height=60, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8)
    Image.fromarray(pixels).save(path, **options)
    return Image.fromarray(pixels)


@pytest.mark.parametrize(
    ("width", "height", "expected"),
    [(298, 100, (190, 64)), (100, 298, (64, 190)), (7, 7, (64, 64)), (100, 101, (64, 64))],
)
def test_the_longer_side_is_rounded_down(width, height, expected):
    """298 · 64 / 100 = 190.72."""
    assert picture_size(width, height, 64) == expected


@pytest.mark.parametrize(
    ("changes", "size", "part", "shown"),
    [
        ({}, (48, 32), np.s_[:], (60, 90)),
        ({"multiple": 14}, (42, 28), np.s_[:], (60, 90)),  # 48 / 14 = 3.4, 32 / 14 = 2.3
        ({"multiple": 64, "side": 16}, (64, 64), np.s_[:], (60, 90)),  # at least one patch
        ({"multiple": 10, "side": 30}, (50, 30), np.s_[:], (60, 90)),  # 4.5 patches are 5
        ({"fixed_size": (40, 24)}, (24, 40), np.s_[:], (60, 90)),
        ({"side": 60}, (90, 60), np.s_[:], (60, 90)),
        ({"side": Reading.side}, (384, 256), np.s_[:], (60, 90)),
        ({"crop": 24}, (48, 32), np.s_[4:28, 12:36], (60, 90)),
        ({"cut": 14}, (48, 32), np.s_[:28, :42], (round(60 * 28 / 32), round(90 * 42 / 48))),
    ],
)
def test_a_picture_is_pillows(tmp_path, changes, size, part, shown):
    image = write(tmp_path / "a.png")
    reading = replace(READING, beside=lambda pixels: pixels.shape, **changes)
    picture = read_picture(Images(tmp_path, ["a.png"]), "a.png", reading)
    assert np.array_equal(picture.pixels, np.asarray(image.resize(size, Image.Resampling.BILINEAR))[part])
    assert (picture.size, picture.shown, picture.beside) == ((60, 90), shown, picture.pixels.shape)


def test_a_picture_may_be_32_times_as_long_as_it_is_high(tmp_path):
    images = Images(tmp_path, ["a.png", "b.png"])
    write(tmp_path / "a.png", 64, 2)
    write(tmp_path / "b.png", 65, 2)
    assert read_picture(images, "a.png", READING).pixels.shape == (32, 1024, 3)
    with pytest.raises(InputError, match=r"b\.png: 65 x 2 pixels"):
        read_picture(images, "b.png", READING)


def test_a_mask_says_how_its_image_is_turned(tmp_path):
    """Orientation 6 is upright after a quarter turn: the mask fits either the one or the other reading."""
    exif = Image.Exif()
    exif[0x0112] = 6
    image = write(tmp_path / "in/a.png", exif=exif)
    upright = np.asarray(image.transpose(Image.Transpose.ROTATE_270).resize((32, 48), 2))
    as_stored = np.asarray(image.resize((48, 32), 2))
    images = Images(tmp_path / "in", ["a.png"], tmp_path / "masks", 5)
    for shape, expected in (((90, 60), upright), ((60, 90), as_stored)):
        labels = np.full(shape, 3, np.uint16)
        write_mask(tmp_path / "masks/a.png", labels)
        for with_mask in (False, True):
            picture = read_picture(images, "a.png", READING, with_mask)
            assert picture.size == shape and (picture.pixels == expected).all()
            assert (picture.beside == labels).all() if with_mask else picture.beside is None
    (tmp_path / "masks/a.png").unlink()
    assert read_picture(images, "a.png", READING).size == (60, 90)
    turned = Images(tmp_path / "in", ["a.png"], upright=True)
    assert (read_picture(turned, "a.png", READING).pixels == upright).all()


def test_bad_masks_are_named(tmp_path):
    write(tmp_path / "in/a.png")
    images = Images(tmp_path / "in", ["a.png"], tmp_path / "masks", 5)
    write_mask(tmp_path / "masks/a.png", np.full((60, 90), 6, np.uint16))
    with pytest.raises(InputError, match=r"masks/a\.png"):
        read_picture(images, "a.png", READING, with_mask=True)
    (tmp_path / "masks/a.png").write_bytes(b"no PNG at all, but as long as a header of one")
    with pytest.raises(InputError, match=r"masks/a\.png"):
        read_picture(images, "a.png", READING)


def blake(*parts, start=b""):
    return hashlib.blake2b(start + b"".join(part + b"\0" for part in parts), digest_size=16).hexdigest()


def test_digests_tell_parts_apart_and_classes_have_no_say_in_the_order():
    assert digest(["ab", b"c"], "d") == blake(b"ab", b"c", start=b"d") != digest(["a", "bc"], "d")
    names = [f"{folder}/{number}.JPEG" for folder in "ab" for number in range(9)]
    expected = sorted(names, key=lambda name: (blake(start=name[2:].encode()), name))
    assert shuffled(reversed(names)) == expected
    assert [name[2:] for name in expected[::2]] == [name[2:] for name in expected[1::2]]


def test_a_fingerprint_follows_names_sizes_times_and_identity(tmp_path):
    for folder in ("a", "b"):
        write_mask(tmp_path / folder / "é.png", np.zeros((2, 3)))
        os.utime(tmp_path / folder / "é.png", ns=(10**9, 10**9))
    size = (tmp_path / "a/é.png").stat().st_size
    expected = blake("é.png".encode(), f"{size} 1000000000".encode(), start=b"one")
    assert fingerprint(tmp_path, ["a/é.png"], "one") == expected
    assert fingerprint(tmp_path, ["b/é.png"], "one") == expected, "class folders aside"
    assert fingerprint(tmp_path, ["a/é.png"], "two") != expected


def test_pictures_below_a_folder_at_any_depth(tmp_path):
    folder = tmp_path / "in"
    for name in ("b/2.PNG", "b.jpg", "a/c/1.webp", ".hidden/3.jpg", "a/.4.jpg", "text.txt", "A.jpeg"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere/5.tif").touch()
    (folder / "link").symlink_to(tmp_path / "elsewhere")
    found = images_below(folder, tmp_path / "out")
    assert found.names == ["A.jpeg", "a/c/1.webp", "b.jpg", "b/2.PNG", "link/5.tif"]
    assert found.upright and found.masks is None
    (tmp_path / "other").symlink_to(folder)
    with pytest.raises(InputError, match="lies among the pictures"):
        images_below(folder, tmp_path / "other/out")


def test_label_maps_keep_the_order_of_images_and_none_is_written_twice(tmp_path):
    images = Images(tmp_path, ["b/x.jpg", "a/y.tif", "a/x.png"])
    expected = [tmp_path / "out" / name for name in ("b/x.png", "a/y.png", "a/x.png")]
    assert target_paths(images, tmp_path / "out") == expected
    words = r"1 images would share.*\n.*b/x\.png: has the same stem as b/x\.jpg"
    with pytest.raises(InputError, match=words):
        target_paths(Images(tmp_path, ["b/x.jpg", "a/y.tif", "b/x.png"]), tmp_path)


def test_masks_that_are_missing_are_named(tmp_path):
    root = tmp_path / "ImageNetS50"
    for number in range(2):
        write(root / f"train-semi/n01443537/{number}.JPEG")
    masks = root / "train-semi-segmentation"
    with pytest.raises(InputError, match="train-semi-segmentation: no masks"):
        annotated_images(tmp_path, MODES["50"])
    write_mask(masks / "n01443537/0.png", np.zeros((60, 90), np.uint16))
    with pytest.raises(InputError, match=r"1 masks of train-semi are missing.*\n.*n01443537/1\.png"):
        annotated_images(tmp_path, MODES["50"])
    write_mask(masks / "n01443537/1.png", np.zeros((60, 90), np.uint16))
    found = annotated_images(tmp_path, MODES["50"])
    assert found.names == ["n01443537/0.JPEG", "n01443537/1.JPEG"]
    assert (found.masks, found.max_label) == (masks, 50)
