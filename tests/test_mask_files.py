"""Writing, resizing and splitting masks, each against what users' own code gets wrong."""

from __future__ import annotations

import math
import struct
import zlib
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from PIL import Image

from imagenets.common.errors import InputError
from imagenets.masks import decode_mask, encode_mask, resize_mask, target_mask

EVERY_ID = np.array([*range(920), 1000])


def test_every_id_survives_writing_and_reading(tmp_path):
    labels = EVERY_ID.reshape(3, -1)
    encode_mask(labels, tmp_path / "new/folder/a.png")
    decoded = decode_mask(tmp_path / "new/folder/a.png", max_label=919)
    assert decoded.dtype == np.uint16
    assert decoded.tolist() == labels.tolist()
    assert list((tmp_path / "new/folder").iterdir()) == [tmp_path / "new/folder/a.png"]


def test_the_file_is_the_official_encoding(tmp_path):
    encode_mask(np.array([[0, 255, 256, 512, 768, 919, 1000, 65535]], np.uint16), tmp_path / "a.png")
    with Image.open(tmp_path / "a.png") as image:
        assert (image.format, image.mode) == ("PNG", "RGB")
        pixels = np.asarray(image)[0].tolist()
    assert pixels == [
        [0, 0, 0],
        [255, 0, 0],
        [0, 1, 0],
        [0, 2, 0],
        [0, 3, 0],
        [151, 3, 0],
        [232, 3, 0],
        [255, 255, 0],
    ]


def test_grayscale_reading_and_a_forgotten_green_channel_lose_ids(tmp_path):
    encode_mask(EVERY_ID[None], tmp_path / "a.png")
    with Image.open(tmp_path / "a.png") as image:
        gray = np.asarray(image.convert("L"))[0]
        red = np.asarray(image)[0, :, 0]
    assert len(np.unique(gray)) == 78
    assert set(EVERY_ID[red == 0].tolist()) == {0, 256, 512, 768}
    assert len(np.unique(decode_mask(tmp_path / "a.png"))) == len(EVERY_ID)


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (np.zeros((2, 2)), "float64"),
        (np.zeros((2, 2), bool), "bool"),
        (np.array([[-1]]), "-1"),
        (np.array([[65536]]), "65536"),
        (np.zeros((1, 2, 2), int), "shape"),
        (np.zeros((2, 2, 3), np.uint8), "shape"),
        (np.zeros((0, 2), int), "no pixels"),
    ],
)
def test_what_the_format_cannot_hold_is_not_written(tmp_path, labels, message):
    with pytest.raises(ValueError, match=message):
        encode_mask(labels, tmp_path / "a.png")
    assert not list(tmp_path.iterdir())


def test_a_mask_that_cannot_be_written_leaves_the_old_one(tmp_path):
    encode_mask(np.array([[1]]), tmp_path / "a.png")
    with pytest.raises(ValueError, match="65536"):
        encode_mask(np.array([[65536]]), tmp_path / "a.png")
    assert decode_mask(tmp_path / "a.png") == 1


def test_a_blue_pixel_is_refused_on_reading(tmp_path):
    Image.fromarray(np.array([[[1, 0, 2]]], np.uint8)).save(tmp_path / "a.png")
    with pytest.raises(InputError, match=r"a\.png: the blue channel"):
        decode_mask(tmp_path / "a.png")


@given(
    hnp.arrays(np.uint16, st.tuples(st.integers(1, 9), st.integers(1, 9))),
    st.integers(1, 20),
    st.integers(1, 20),
)
def test_resizing_takes_the_pixel_under_each_centre(labels, height, width):
    resized = resize_mask(labels, height, width)
    assert resized.dtype == labels.dtype
    down, across = Fraction(labels.shape[0], height), Fraction(labels.shape[1], width)
    half = Fraction(1, 2)
    for y in range(height):
        for x in range(width):
            assert resized[y, x] == labels[math.floor((y + half) * down), math.floor((x + half) * across)]


def test_resizing_is_pillows_nearest_neighbour():
    labels = np.random.default_rng(0).integers(0, 1001, (37, 53))
    for height, width in ((20, 30), (75, 101), (37, 53)):
        expected = Image.fromarray(labels.astype(np.int32)).resize((width, height), Image.Resampling.NEAREST)
        assert resize_mask(labels, height, width).tolist() == np.asarray(expected).tolist()


def test_resizing_invents_no_label_where_bilinear_does():
    labels = np.array([[17, 17, 919, 919]])
    bilinear = Image.fromarray(labels.astype(np.float32)).resize((9, 1), Image.Resampling.BILINEAR)
    assert not set(np.unique(bilinear).astype(int)) <= {17, 919}
    assert set(np.unique(resize_mask(labels, 5, 9))) == {17, 919}


@pytest.mark.parametrize(("height", "width"), [(0, 1), (1, 0), (-1, 2)])
def test_resizing_to_nothing_is_refused(height, width):
    with pytest.raises(ValueError, match="no pixels"):
        resize_mask(np.ones((2, 2), int), height, width)


def test_resizing_refuses_what_is_no_mask():
    with pytest.raises(ValueError, match="float"):
        resize_mask(np.ones((2, 2)), 1, 1)


def test_void_is_neither_object_nor_background():
    labels = np.array([[0, 5, 6, 1000]])
    target, void = target_mask(labels, 5)
    assert target.tolist() == [[False, True, False, False]]
    assert void.tolist() == [[False, False, False, True]]
    assert (labels > 0).sum() == 3, "ignored pixels look like foreground to label > 0"


@pytest.mark.parametrize("class_id", [0, -1, 1000, 65536])
def test_what_is_no_class_has_no_target(class_id):
    with pytest.raises(ValueError, match="no class id"):
        target_mask(np.zeros((1, 1), int), class_id)


def test_a_mask_of_too_many_pixels_is_refused_by_its_header():
    """A PNG of a few hundred kilobytes can ask for any memory."""
    width, height = 20_000, 10_000
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    rows = zlib.compress(bytes(height * (3 * width + 1)), 9)
    png = b"\x89PNG\r\n\x1a\n"
    for kind, content in ((b"IHDR", header), (b"IDAT", rows), (b"IEND", b"")):
        png += (
            struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))
        )
    with pytest.raises(InputError, match="20000 x 10000 pixels, and a mask has at most 100,000,000"):
        decode_mask(png)


@pytest.mark.parametrize(("mode", "what"), [("L", "an 8-bit grayscale PNG"), ("1", "a 1-bit grayscale PNG")])
def test_another_kind_of_png_is_named(tmp_path, mode, what):
    Image.new(mode, (3, 2)).save(tmp_path / "a.png")
    with pytest.raises(InputError, match=rf"a\.png: {what}"):
        decode_mask(tmp_path / "a.png")
