"""Pictures of one's own (``--images``): read as viewers show them, and what is not read is counted."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image, ImageOps
from prepared_set import write_image

from imagenets.common.errors import InputError
from imagenets.images import read_image
from imagenets.learning.engine.label_overlays import write_label_overlays
from imagenets.learning.images import Images, Reading, images_below, read_picture
from imagenets.masks import encode_mask

READING = Reading((0.5,) * 3, (0.5,) * 3, side=6)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_pictures_without_a_mask_are_turned_as_viewers_do(tmp_path, orientation):
    write_image(tmp_path / "in/a.JPEG", 6, 9, orientation)
    with Image.open(tmp_path / "in/a.JPEG") as image:
        viewed, stored = np.asarray(ImageOps.exif_transpose(image)), np.asarray(image)
    picture = read_picture(images_below(tmp_path / "in", tmp_path / "out"), "a.JPEG", READING)
    assert picture.size == viewed.shape[:2]
    assert (picture.pixels == viewed).all()
    of_a_set = read_picture(Images(tmp_path / "in", ["a.JPEG"]), "a.JPEG", READING)
    assert (of_a_set.pixels == stored).all(), "the benchmark's images are read as their masks were drawn"


def test_overlays_lie_as_their_pictures_do(tmp_path):
    """Upside down has the same size, so that the label map's cannot tell."""
    write_image(tmp_path / "in/a.JPEG", 24, 16, orientation=3)
    images = images_below(tmp_path / "in", tmp_path / "out")
    encode_mask(np.zeros((24, 16), int), tmp_path / "out/a.png")
    write_label_overlays(images, [tmp_path / "out/a.png"], [tmp_path / "out/a.jpg"], None, "cluster", 0)
    with Image.open(tmp_path / "out/a.jpg") as drawn, Image.open(tmp_path / "in/a.JPEG") as image:
        upright = np.asarray(ImageOps.exif_transpose(image)).astype(int)
        difference = [np.abs(np.asarray(drawn) - turned).mean() for turned in (upright, upright[::-1, ::-1])]
    assert difference[0] < difference[1] / 2


def test_16_bit_grayscale_is_scaled_by_its_depth(tmp_path):
    values = np.array([[0, 128, 129, 257 * 100, 65_535]], np.uint16)
    Image.fromarray(values).save(tmp_path / "a.png")
    assert np.asarray(read_image(tmp_path / "a.png"))[0].tolist() == [[v] * 3 for v in (0, 0, 1, 100, 255)]
    Image.fromarray(values).save(tmp_path / "a.tiff")
    assert np.asarray(read_image(tmp_path / "a.tiff"))[0, :, 0].tolist() == [0, 0, 1, 100, 255]
    Image.fromarray(values.astype(np.float32)).save(tmp_path / "b.tiff")
    with pytest.raises(InputError, match=r"b\.tiff: 32 bits per pixel, with an unknown range"):
        read_image(tmp_path / "b.tiff")


def test_pictures_that_are_not_read_are_counted(tmp_path):
    write_image(tmp_path / "in/a.JPEG", 6, 9)
    for name in ("b.gif", "deep/c.HEIC", "d.heic", "notes.txt", ".e.gif"):
        (tmp_path / "in" / name).parent.mkdir(exist_ok=True)
        (tmp_path / "in" / name).touch()
    warned = []
    assert images_below(tmp_path / "in", tmp_path / "out", warned.append).names == ["a.JPEG"]
    assert warned == [
        f"{tmp_path}/in: 2 .heic, 1 .gif left out: such pictures are not read; convert them to JPEG or PNG"
    ]
    (tmp_path / "in/a.JPEG").unlink()
    with pytest.raises(InputError, match=r"no pictures there .*; there are 2 \.heic, 1 \.gif: convert them"):
        images_below(tmp_path / "in", tmp_path / "out")
