"""Masks in the forms of other tools: every id comes back, and what cannot be converted is told."""

from __future__ import annotations

import json

import numpy as np
import pytest
from masksets import write_mask
from PIL import Image
from prepared_set import write_image

from evaluation import convert_masks
from imagenets.common.errors import InputError
from imagenets.mask_forms import FORMS, convert_folder, read_labels, write_labels
from imagenets.masks import decode_mask, resize_mask

EVERY = np.arange(65_536, dtype=np.uint16).reshape(256, 256)


@pytest.fixture
def convert(tmp_path, monkeypatch):
    """Run the script from ``in`` to a new folder."""

    def convert(new, *options):
        arguments = ("--input", tmp_path / "in", "--output", tmp_path / new, "--from", "rgb", *options)
        monkeypatch.setattr("sys.argv", ["convert_masks.py", *map(str, arguments)])
        convert_masks.main()

    return convert


@pytest.mark.parametrize("form", ["rgb", "gray16", "npy"])
def test_every_id_comes_back(tmp_path, form):
    write_mask(tmp_path / "rgb/n01/a.png", EVERY)
    assert convert_folder(tmp_path / "rgb", tmp_path / "there", "rgb", form).masks == 1
    assert convert_folder(tmp_path / "there", tmp_path / "back", form, "rgb").masks == 1
    assert (decode_mask(tmp_path / "back/n01/a.png") == EVERY).all()


@pytest.mark.parametrize("ignore", [None, 0, 77, 255])
def test_every_id_comes_back_from_8_bits(tmp_path, ignore):
    usual = 255 if ignore is None else ignore
    labels = np.array([[i for i in range(256) if i != usual] + [1000]])
    write_mask(tmp_path / "rgb/a.png", labels)
    convert_folder(tmp_path / "rgb", tmp_path / "gray", "rgb", "gray8", ignore)
    with Image.open(tmp_path / "gray/a.png") as image:
        assert image.mode == "L"
        assert np.asarray(image).tolist() == [[*labels[0, :-1], usual]]
    for form in ("gray16", "npy"):
        write_labels(labels, tmp_path / f"b{FORMS[form].suffix}", form, usual)
        assert (read_labels(tmp_path / f"b{FORMS[form].suffix}", form, usual) == labels).all()
    convert_folder(tmp_path / "gray", tmp_path / "back", "gray8", "rgb", ignore)
    assert (decode_mask(tmp_path / "back/a.png") == labels).all()


def test_arrays_with_minus_100_and_palettes(tmp_path):
    (tmp_path / "npy").mkdir()
    np.save(tmp_path / "npy/a.npy", np.array([[0, 5, -100]], np.int16))
    convert_folder(tmp_path / "npy", tmp_path / "rgb", "npy", "rgb", -100)
    assert decode_mask(tmp_path / "rgb/a.png").tolist() == [[0, 5, 1000]]
    convert_folder(tmp_path / "rgb", tmp_path / "back", "rgb", "npy", -100)
    assert np.load(tmp_path / "back/a.npy").tolist() == [[0, 5, -100]]
    palette = Image.fromarray(np.array([[0, 5, 255]], np.uint8), "L").convert("P")
    palette.putpalette([0, 0, 0, 128, 0, 0] * 128)
    (tmp_path / "voc").mkdir()
    palette.save(tmp_path / "voc/a.png")
    assert read_labels(tmp_path / "voc/a.png", "gray8").tolist() == [[0, 5, 1000]]


def bad_inputs(folder):
    """Files, their form, and what is said of them."""
    gray = Image.fromarray(np.zeros((3, 4), np.uint8))
    gray.save(folder / "gray8.png")
    Image.fromarray(np.full((3, 4), 1000, np.uint16)).save(folder / "ignored.png")
    Image.fromarray(np.zeros((3, 4, 3), np.uint8)).save(folder / "rgb.png")
    gray.convert("1").save(folder / "bit.png")
    (folder / "cut.png").write_bytes((folder / "gray8.png").read_bytes()[:-20])
    (folder / "text.png").write_text("no mask")
    np.save(folder / "float.npy", np.zeros((3, 4)))
    np.save(folder / "stack.npy", np.zeros((1, 3, 4), int))
    np.save(folder / "large.npy", np.full((3, 4), 65_536))
    np.save(folder / "low.npy", np.full((3, 4), -1))
    np.save(folder / "none.npy", np.zeros((0, 4), int))
    np.save(folder / "object.npy", np.array([[None]]))
    (folder / "cut.npy").write_bytes((folder / "large.npy").read_bytes()[:-8])
    return [
        ("gray8.png", "gray16", "a PNG of 8 bits, grayscale; gray16 is 16 bits"),
        ("gray8.png", "rgb", "an 8-bit grayscale PNG; .*evaluation/convert_masks.py"),
        ("rgb.png", "gray8", "a PNG of 8 bits, colour"),
        ("bit.png", "gray8", "a PNG of 1 bits, grayscale"),
        ("cut.png", "gray8", "the PNG is truncated"),
        ("text.png", "gray8", "not a PNG"),
        ("float.npy", "npy", r"an array \(3, 4\) of float64"),
        ("stack.npy", "npy", r"an array \(1, 3, 4\)"),
        ("large.npy", "npy", "label 65536 is neither in 0..65535 nor 1000"),
        ("low.npy", "npy", "label -1 is neither"),
        ("none.npy", "npy", "4 x 0 pixels"),
        ("object.npy", "npy", "not a NumPy array"),
        ("cut.npy", "npy", "not a NumPy array, or truncated"),
    ]


def test_what_is_not_of_the_form_is_told(tmp_path):
    for name, form, message in bad_inputs(tmp_path):
        with pytest.raises(InputError, match=f"{tmp_path / name}: {message}"):
            read_labels(tmp_path / name, form)
    with pytest.raises(InputError, match=r"label 1000 exists already.*name the label that ignored"):
        read_labels(tmp_path / "ignored.png", "gray16", 255)
    with pytest.raises(InputError, match=r"label 256, and gray8 holds 0\.\.255; take gray16"):
        write_labels(np.array([[256]]), tmp_path / "a.png", "gray8")
    with pytest.raises(InputError, match=r"label 255 exists already.*another label"):
        write_labels(np.array([[255]]), tmp_path / "a.png", "gray8")


def test_the_script_converts_all_or_nothing(tmp_path, convert, capsys):
    for i in range(3):
        write_mask(tmp_path / f"in/n01/{i}.png", np.full((3, 4), 60 * i))
    write_mask(tmp_path / "in/n02/.hidden.png", np.full((3, 4), 999))
    convert("gray", "--to", "gray8")
    assert capsys.readouterr().out == f"{tmp_path / 'gray'}: 3 masks, gray8\n"
    assert sorted(path.name for path in (tmp_path / "gray").rglob("*.png")) == ["0.png", "1.png", "2.png"]
    with pytest.raises(InputError, match=f"{tmp_path / 'gray'}: exists already"):
        convert("gray", "--to", "gray8")
    for i in (1, 2):
        write_mask(tmp_path / f"in/n03/{i}.png", np.full((3, 4), 254 + i))
    told = f"2 masks cannot be converted; nothing was written:\n  {tmp_path}/in/n03/1.png: label 255 exists"
    with pytest.raises(InputError, match=told):
        convert("new", "--to", "gray8")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["gray", "in"]


def test_wrong_usage(convert, capsys):
    for options in (("gray8", "--ignore", "256"), ("gray16", "--ignore=-1"), ("rgb", "--ignore", "255")):
        with pytest.raises(SystemExit) as ended:
            convert("out", "--to", *options)
        assert ended.value.code == 2 and "--ignore" in capsys.readouterr().err
    with pytest.raises(InputError, match=r"no \.png files in it"):
        convert("out", "--to", "npy")


def test_masks_of_network_size_get_the_size_of_their_ground_truth(tmp_path, convert, capsys):
    """Nearest neighbour, as resize_mask does it; a mask that fits, also as EXIF turns the image, stays."""
    rng = np.random.default_rng(0)
    sizes = {"a": (8, 8), "b": (6, 9), "c": (9, 6)}
    given = {name: rng.integers(0, 50, size) for name, size in sizes.items()}
    for name, labels in given.items():
        write_mask(tmp_path / f"in/n01/{name}.png", labels)
    for name in "ab":
        write_mask(tmp_path / f"gt/n01/{name}.png", np.zeros((6, 9), int))
    write_image(tmp_path / "gt/n01/c.JPEG", 6, 9, orientation=6)
    convert("out", "--to", "rgb", "--size-of", str(tmp_path / "gt"))
    printed = capsys.readouterr().out
    assert f"resized (nearest neighbour): 1 of 3, to sizes in {tmp_path / 'gt'}" in printed
    for name, labels in (given | {"a": resize_mask(given["a"], 6, 9)}).items():
        assert (decode_mask(tmp_path / f"out/n01/{name}.png") == labels).all()
    record = json.loads((tmp_path / "out/conversion.json").read_text())
    assert record == {"from": "rgb", "to": "rgb", "masks": 3, "resized": 1, "size_of": str(tmp_path / "gt")}


def test_transposed_masks_and_masks_without_a_namesake_are_refused(tmp_path):
    write_mask(tmp_path / "in/n01/a.png", np.zeros((12, 8), int))
    write_mask(tmp_path / "in/n01/b.png", np.zeros((8, 12), int))
    write_mask(tmp_path / "gt/n01/a.png", np.zeros((6, 9), int))
    with pytest.raises(InputError) as caught:
        convert_folder(tmp_path / "in", tmp_path / "out", "rgb", "rgb", size_of=tmp_path / "gt")
    for text in (
        "2 masks cannot be converted; nothing was written",
        "n01/a.png: 8 x 12 pixels, and ",
        "it is transposed",
        f"{tmp_path}/gt/n01/b.JPEG: no such image",
    ):
        assert text in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_files_of_another_ending_are_named(tmp_path):
    for name in ("a.npy", "b.npy", "c.PNG"):
        (tmp_path / name).touch()
    with pytest.raises(
        InputError, match=r"no \.png files in it; there are 3 files, 2 with \.npy, 1 with \.PNG"
    ):
        convert_folder(tmp_path, tmp_path / "out", "gray8", "rgb")
