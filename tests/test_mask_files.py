"""Writing, resizing and splitting masks, each against what users' own code gets wrong."""

from __future__ import annotations

import math
import struct
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
    encode_mask(np.array([[0, 255, 256, 919, 1000, 65535]], np.uint16), tmp_path / "a.png")
    with Image.open(tmp_path / "a.png") as image:
        assert (image.format, image.mode) == ("PNG", "RGB")
        pixels = np.asarray(image)[0].tolist()
    assert pixels == [[0, 0, 0], [255, 0, 0], [0, 1, 0], [151, 3, 0], [232, 3, 0], [255, 255, 0]]


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
    encode_mask(np.array([[1]]), tmp_path / "a.png")
    with pytest.raises(ValueError, match=message):
        encode_mask(labels, tmp_path / "a.png")
    assert decode_mask(tmp_path / "a.png") == 1 and len(list(tmp_path.iterdir())) == 1


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


@pytest.mark.parametrize("size", [(0, 1), (1, 0), (-1, 2)])
def test_what_cannot_be_resized(size):
    with pytest.raises(ValueError, match="no pixels"):
        resize_mask(np.ones((2, 2), int), *size)
    with pytest.raises(ValueError, match="float"):
        resize_mask(np.ones((2, 2)), 1, 1)


def test_void_is_neither_object_nor_background():
    labels = np.array([[0, 5, 6, 1000]])
    target, void = target_mask(labels, 5)
    assert target.tolist() == [[False, True, False, False]]
    assert void.tolist() == [[False, False, False, True]]
    for class_id in (0, -1, 1000, 65536):
        with pytest.raises(ValueError, match="no class id"):
            target_mask(labels, class_id)


def test_a_mask_of_too_many_pixels_is_refused_by_its_header():
    """A PNG of a few hundred kilobytes can ask for any memory."""
    png = b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR" + struct.pack(">IIBBBBB", 20_000, 10_000, 8, 2, 0, 0, 0) + bytes(4)
    with pytest.raises(InputError, match="20000 x 10000 pixels, and a mask has at most 100,000,000"):
        decode_mask(png)


@pytest.mark.parametrize(
    ("mode", "colour", "what"),
    [
        ("L", 0, "an 8-bit grayscale PNG"),
        ("1", 0, "a 1-bit grayscale PNG"),
        ("RGB", (1, 0, 2), "the blue channel"),
    ],
)
def test_another_kind_of_png_is_named(tmp_path, mode, colour, what):
    Image.new(mode, (3, 2), colour).save(tmp_path / "a.png")
    with pytest.raises(InputError, match=rf"a\.png: {what}"):
        decode_mask(tmp_path / "a.png")
