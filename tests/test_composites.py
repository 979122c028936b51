"""Composites against loops over pixels, the pairs that are drawn, and folders as a user makes them."""

from __future__ import annotations

import csv
import sys

import numpy as np
import pytest
from masksets import write_mask
from PIL import Image
from prepared_set import WNIDS, write_image, write_lists
from scipy import ndimage

from datapreparation import composites as script
from imagenets import InputError, composite
from imagenets.composites import draw_pairs, make_composites, pairs_csv, read_pairs

RNG = np.random.default_rng(0)
PICTURE = RNG.integers(0, 256, (12, 15, 3), np.uint8)
MASK = np.zeros((12, 15), bool)
MASK[4:9, 2:7] = True
MASK[5, 4] = False


def test_colours_and_pictures_are_laid_pixel_by_pixel():
    other = RNG.integers(0, 256, PICTURE.shape, np.uint8)
    mean = [int(PICTURE[..., c].mean() + 0.5) for c in range(3)]
    for fill, colour in (
        ("black", (0, 0, 0)),
        ("clip-mean", (122, 116, 104)),
        ("imagenet-mean", (124, 116, 104)),
        ("mean", mean),
        (other, other),
        (Image.fromarray(other), other),
    ):
        under = np.broadcast_to(colour, PICTURE.shape)
        for keep, kept in (("object", MASK), ("ground", ~MASK)):
            found = composite(PICTURE, MASK, keep, fill)
            for place in np.ndindex(MASK.shape):
                assert (found[place] == (PICTURE if kept[place] else under)[place]).all()


def test_the_blur_is_a_gaussian_of_100_pixels():
    wide = np.zeros((300, 400, 3), np.uint8)
    wide[:, 150:] = (250, 120, 30)
    where = np.zeros((300, 400), bool)
    where[50:200, 60:300] = True
    blurred = composite(Image.fromarray(wide), where, "ground", "blur")
    assert (blurred[~where] == wide[~where]).all()
    expected = ndimage.gaussian_filter(wide.astype(float), (100, 100, 0), mode="nearest")
    assert np.abs(blurred[where] - expected[where]).max() < 5, "Pillow's is made of boxes"


def test_tiles_are_of_the_largest_strip_and_fill_the_box():
    found = composite(PICTURE, MASK, "ground", "tiles")
    expected = PICTURE.copy()
    strip = PICTURE[:, 7:]  # 12 x 8, larger than 4, 3 rows of 15 and 2 columns of 12
    for y in range(4, 9):
        for x in range(2, 7):
            expected[y, x] = strip[(y - 4) % 12, (x - 2) % 8]
    assert (found == expected).all()
    assert (composite(PICTURE, MASK, "ground", "tiles")[5, 4] != PICTURE[5, 4]).any(), (
        "the box, not the object"
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((PICTURE[:5], MASK, "object"), "mask"),
        ((PICTURE / 255, MASK, "object"), "uint8"),
        ((PICTURE, MASK, "both"), "no such part"),
        ((PICTURE, MASK, "object", "pink"), "no such fill"),
        ((PICTURE, MASK, "object", "tiles"), "keep='ground'"),
        ((PICTURE, MASK, "object", PICTURE[:5]), "but the image is"),
        ((PICTURE, np.ones_like(MASK), "ground", "tiles"), "box fills the image"),
        ((PICTURE, np.zeros_like(MASK), "ground", "tiles"), "there is no object"),
    ],
)
def test_what_cannot_be_composed(arguments, message):
    with pytest.raises(ValueError, match=message):
        composite(*arguments)


def test_pairs_are_of_the_same_and_of_another_class():
    images = [f"n{c}/{i}.JPEG" for c in range(4) for i in range(5)]
    grounds = [image for image in images if not image.startswith("n3") and not image.endswith("0.JPEG")]
    pairs = draw_pairs(images, grounds, 1)
    assert set(pairs) == {image for image in images if not image.startswith("n3")}, "n3 has no ground"
    for image, pair in pairs.items():
        assert pair.same in grounds and pair.random in grounds and pair.same != image
        assert pair.same[:2] == image[:2] != pair.random[:2]
    assert draw_pairs(images[::-1], grounds[::-1], 1) == pairs != draw_pairs(images, grounds, 2)
    assert len({pair.random[:2] for pair in pairs.values()}) == 3
    assert draw_pairs(images, ["n0/0.JPEG"], 0) == {}


@pytest.fixture
def save(tmp_path, monkeypatch):
    """Two classes of three images: one without its object, one filled by it, one with another class in it."""
    write_lists(tmp_path / "lists")
    monkeypatch.setenv("IMAGENETS_LISTS", str(tmp_path / "lists"))
    for i in range(6):
        place, class_id = f"{WNIDS[i % 2]}/image_{i}", 1 + i % 2
        labels = np.full((20, 30 + i), class_id if i == 1 else 0)
        labels[5:12, 6:20] = 0 if i == 0 else class_id
        labels[:3, :3] = 9 if i == 2 else labels[:3, :3]
        write_image(tmp_path / f"ImageNetS50/validation/{place}.JPEG", *labels.shape, seed=i)
        write_mask(tmp_path / f"ImageNetS50/validation-segmentation/{place}.png", labels)
    return tmp_path


def picture(path):
    with Image.open(path) as image:
        return np.asarray(image.convert("RGB"))


def test_folders_of_pictures(save, tmp_path):
    made = make_composites(save, "50", tmp_path / "out", seed=3)
    assert made.images == {"object-only": 5, "ground-only": 4, "mixed-same": 5, "mixed-random": 5}
    assert made.left_out == {
        **{f"{c}: the image does not show its class": 1 for c in made.images},
        "ground-only: the object fills the image": 1,
    }
    assert made.others == 1
    with (tmp_path / "out/left_out.csv").open() as file:
        assert len(list(csv.DictReader(file))) == 5
    pairs = read_pairs(tmp_path / "out/pairs.csv")
    images = save / "ImageNetS50/validation"
    for image, pair in pairs.items():
        pixels = picture(images / image)
        target = np.zeros(pixels.shape[:2], bool)
        target[5:12, 6:20] = True
        if image.endswith("_1.JPEG"):
            target[:] = True
        place = image.replace(".JPEG", ".png")
        assert (picture(tmp_path / "out/object-only" / place) == composite(pixels, target, "object")).all()
        for condition, other in (("mixed-same", pair.same), ("mixed-random", pair.random)):
            under = picture(images / other)
            box = np.zeros(under.shape[:2], bool)
            box[5:12, 6:20] = True
            ground = Image.fromarray(composite(under, box, "ground", "tiles"))
            scaled = ground.resize(pixels.shape[1::-1], Image.Resampling.BICUBIC)
            expected = composite(pixels, target, "object", scaled)
            assert (picture(tmp_path / "out" / condition / place) == expected).all()
    assert pairs_csv(pairs) == (tmp_path / "out/pairs.csv").read_text()
    again = make_composites(save, "50", tmp_path / "again", ["mixed-same"], pairs=pairs, seed=9)
    assert again.images == {"mixed-same": 5}
    for path in (tmp_path / "out/mixed-same").glob("*/*.png"):
        assert (
            path.read_bytes() == (tmp_path / "again/mixed-same" / path.parent.name / path.name).read_bytes()
        )


def test_other_classes_in_a_ground(save, tmp_path):
    dropped = make_composites(save, "50", tmp_path / "drop", others="drop")
    assert dropped.left_out["ground-only: the ground shows another class"] == 1
    assert "image_2" not in "".join(
        p.same + p.random for p in read_pairs(tmp_path / "drop/pairs.csv").values()
    )
    make_composites(save, "50", tmp_path / "fill", ["ground-only"], ground_fill="black", others="fill")
    filled = picture(tmp_path / f"fill/ground-only/{WNIDS[0]}/image_2.png")
    assert (filled[:3, :3] == 0).all() and (filled[5:12, 6:20] == 0).all() and filled[13:].any()


def test_the_script_and_broken_files(save, tmp_path, monkeypatch, capsys):
    common = ["composites.py", "--save-dir", str(save), "--mode", "50", "--workers", "0"]
    monkeypatch.setattr(sys, "argv", [*common, "--output-dir", str(tmp_path / "o"), "--ground-fill", "mean"])
    script.main()
    printed = capsys.readouterr().out
    assert "ground-only: 4 pictures" in printed and "the object fills the image: 1" in printed
    with pytest.raises(InputError, match="exists already"):
        script.main()
    (tmp_path / "bad.csv").write_text("image,same\n")
    with pytest.raises(InputError, match="no pairs"):
        read_pairs(tmp_path / "bad.csv")
    mask = save / f"ImageNetS50/validation-segmentation/{WNIDS[0]}/image_2.png"
    mask.write_bytes(mask.read_bytes()[:50])
    with pytest.raises(InputError, match=r"image_2\.png"):
        make_composites(save, "50", tmp_path / "broken")
    assert not (tmp_path / "broken").exists()
