"""Regions of the images' own classes: against loops, as files, and as Alpha-CLIP's evaluation makes them."""

from __future__ import annotations

import json
import sys

import numpy as np
import pytest
import torch
from masksets import write_mask
from PIL import Image
from prepared_set import VALIDATION, WNIDS, write_lists, write_set

from datapreparation import export_regions as script
from imagenets import InputError, target_regions
from imagenets.masks import decode_mask
from imagenets.regions import (
    ALPHA_MEAN,
    ALPHA_STD,
    CLIP_MEAN,
    CLIP_STD,
    alpha_clip_input,
    encode_rle,
    export_regions,
    resize_alpha,
    square_crop,
)


@pytest.fixture
def save(tmp_path, monkeypatch):
    """Four validation images, the last without its class."""
    write_lists(tmp_path / "lists")
    monkeypatch.setenv("IMAGENETS_LISTS", str(tmp_path / "lists"))
    root = write_set(tmp_path / "save")
    _, target, stem = VALIDATION[-1]
    path = root / f"validation-segmentation/{target}/{stem}.png"
    write_mask(path, np.zeros(decode_mask(path).shape, int))
    return tmp_path / "save"


def decoded(rle):
    """COCO's run lengths, read digit by digit: the slow reference."""
    runs, position = [], 0
    text = rle["counts"]
    while position < len(text):
        value, shift, more = 0, 0, True
        while more:
            digit = ord(text[position]) - 48
            value |= (digit & 31) << shift
            more = bool(digit & 32)
            position, shift = position + 1, shift + 5
            if not more and digit & 16:
                value -= 1 << shift
        runs.append(value + (runs[-2] if len(runs) > 2 else 0))
    height, width = rle["size"]
    pixels = [bit for i, run in enumerate(runs) for bit in [i % 2] * run]
    return np.array(pixels, bool).reshape(width, height).T


def test_run_lengths_are_those_of_pycocotools_and_are_read_back():
    """Written by pycocotools 2 once, for masks that anyone can make again."""
    y, x = np.mgrid[:40, :50]
    disc = "j`05P16K4M2N2N2O0O2O000O2O00000001N10001N101N2N2N3L5Ja>"
    assert encode_rle((y - 20) ** 2 + (x - 25) ** 2 < 150) == {"size": [40, 50], "counts": disc}
    rng = np.random.default_rng(0)
    masks = [
        rng.random(rng.integers(1, 50, 2)) < share for share in (0, 0.03, 0.5, 0.97, 1) for _ in range(20)
    ]
    large = np.zeros((700, 500), bool)
    large[100:650, 30:400] = True
    for mask in [*masks, large]:
        assert (decoded(encode_rle(mask)) == mask).all()


@pytest.mark.parametrize(
    ("shape", "square"),
    [
        ((5, 8), np.s_[0:5, 2:7]),
        ((8, 5), np.s_[2:7, 0:5]),
        ((6, 9), np.s_[0:6, 1:7]),
        ((7, 7), np.s_[0:7, 0:7]),
    ],
)
def test_the_square_is_alpha_clips(shape, square):
    assert square_crop(*shape) == square


def test_inputs_are_those_of_torchvision_on_tensors():
    v2 = pytest.importorskip("torchvision.transforms.v2.functional")
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (60, 81, 3), np.uint8)
    mask = np.zeros((60, 81), bool)
    mask[10:40, 30:70] = True
    found, alpha = alpha_clip_input(image, mask, 32)
    cut = (slice(0, 60), slice(10, 70))
    pixels = torch.from_numpy(image[cut].copy()).permute(2, 0, 1).float() / 255
    bicubic = v2.InterpolationMode.BICUBIC if hasattr(v2, "InterpolationMode") else 3
    expected = v2.resize(pixels, [32, 32], bicubic, antialias=True)
    mean, std = torch.tensor(CLIP_MEAN)[:, None, None], torch.tensor(CLIP_STD)[:, None, None]
    assert torch.equal(found, (expected - mean) / std)
    region = v2.resize(torch.from_numpy(mask[cut].astype(np.float32))[None], [32, 32], antialias=True)
    assert torch.equal(alpha, (region - ALPHA_MEAN) / ALPHA_STD)
    assert alpha.min() == pytest.approx(-1.923, abs=1e-3) and alpha.max() == pytest.approx(1.923, abs=1e-3)


def test_a_region_is_its_folders_class_and_no_void(save):
    regions = list(target_regions(save, 50))
    assert [region.absent for region in regions] == [False, False, False, True]
    for region in regions[:3]:
        assert region.class_id == WNIDS.index(region.image.partition("/")[0]) + 1
        assert region.mask.sum() == 7 * 14, "void rows are not in it"
    with pytest.raises(ValueError, match="has no masks"):
        next(target_regions(save, 50, "train"))
    masks = save / "ImageNetS50/validation-segmentation"
    next(masks.glob("*/*.png")).unlink()
    with pytest.raises(InputError, match="no mask of this image"):
        list(target_regions(save, 50))


def test_every_form_holds_the_same_regions(save, tmp_path):
    masks = {region.image: region.mask for region in target_regions(save, "50", square=True)}
    for form in ("png", "rle", "npz"):
        done = export_regions(save, "50", tmp_path / form, form, square=True)
        assert (done.regions, len(done.absent)) == (4, 1)
        assert (tmp_path / form / "absent.txt").read_text() == f"{done.absent[0]}\n"
    entries = json.loads((tmp_path / "rle/regions.json").read_text())
    assert [entry["image_pth"] for entry in entries] == list(masks)
    for entry in entries:
        image, mask = entry["image_pth"], masks[entry["image_pth"]]
        wnid, stem = image.removesuffix(".JPEG").split("/")
        assert entry["category_word"] == wnid
        assert (decoded(entry["mask"]) == mask).all()
        with Image.open(tmp_path / f"png/{wnid}/{stem}.png") as picture:
            assert picture.mode == "L" and (np.asarray(picture) == 255 * mask).all()
        assert (np.load(tmp_path / f"npz/{wnid}.npz")[stem] == mask).all()
    export_regions(save, "50", tmp_path / "small", "npz", square=True, size=8)
    wnid, stem = entries[0]["image_pth"].removesuffix(".JPEG").split("/")
    small = np.load(tmp_path / f"small/{wnid}.npz")[stem]
    assert small.dtype == np.float32 and (small == resize_alpha(masks[entries[0]["image_pth"]], 8)).all()
    with pytest.raises(InputError, match="exists already"):
        export_regions(save, "50", tmp_path / "png", "png")
    with pytest.raises(ValueError, match="a size needs npz"):
        export_regions(save, "50", tmp_path / "x", "png", size=8)


def test_the_script(save, tmp_path, monkeypatch, capsys):
    common = ["x", "--save-dir", str(save), "--mode", "50", "--output-dir", str(tmp_path / "o"), "--size=8"]
    monkeypatch.setattr(sys, "argv", [*common, "--form", "png"])
    with pytest.raises(SystemExit) as wrong:
        script.main()
    assert wrong.value.code == 2
    monkeypatch.setattr(sys, "argv", [*common, "--form", "npz", "--square"])
    script.main()
    printed = capsys.readouterr().out
    assert "4 regions, npz" in printed and "1 images do not show the class of their folder" in printed
