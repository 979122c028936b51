"""verify.py: complete sets, and one fault at a time, which it must name."""

import io
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from helpers.generated_imagenet import (
    jpeg,
    mask_png,
    masks_of,
    needed,
    size_of,
    snapshot,
    write_archive,
    write_imagenet,
    write_toy_lists,
)
from helpers.scripts import environment, run
from PIL import Image

from imagenets.images import sizes_that_differ
from imagenets.lists import ARCHIVES

CLASS = "n00001001"
IMAGE = "ILSVRC2012_val_00000000"


@pytest.fixture(scope="session")
def lists(tmp_path_factory):
    return write_toy_lists(tmp_path_factory.mktemp("lists"))


@pytest.fixture(scope="session")
def env(tmp_path_factory, lists):
    cache = tmp_path_factory.mktemp("cache")
    return environment(IMAGENETS_LISTS=lists, XDG_CACHE_HOME=cache)


@pytest.fixture(scope="session")
def whole(tmp_path_factory, lists, env):
    """A complete set, which the tests copy."""
    folder = tmp_path_factory.mktemp("whole")
    write_imagenet(folder / "imagenet", "folders", needed(lists, ["50"]))
    write_archive(folder / "mirror" / ARCHIVES["50"], masks_of(lists, "50"))
    with_mirror = env | {"IMAGENETS_MIRROR": str(folder / "mirror")}
    run("data_preparation.sh", folder / "imagenet", folder / "save", "50", "true", env=with_mirror)
    return folder / "save"


@pytest.fixture
def save(tmp_path, whole):
    shutil.copytree(whole, tmp_path / "save")
    return tmp_path / "save"


def verify(save, *options, env, status=0):
    return run("verify.py", "--save-dir", save, "--mode", "50", *options, env=env, status=status).stdout


def row(output, split):
    """The cells of a split's line."""
    (line,) = [line for line in output.splitlines() if line.startswith(f"  {split}  ")]
    return line[2 + len(split) :].split()


@pytest.mark.parametrize("deep", [[], ["--deep"]], ids=["headers", "deep"])
def test_complete(whole, env, deep):
    before = snapshot(whole)
    output = verify(whole, *deep, env=env)
    assert "ImageNetS50: complete" in output
    assert row(output, "train (classes)") == ["50", "50", "0", "0", "0", "0"]
    assert row(output, "train (images)") == ["-", "250", "0", "0", "0", "0"]
    for split in ("train-semi", "train-semi-segmentation", "validation", "validation-segmentation", "test"):
        assert row(output, split) == ["150", "150", "0", "0", "0", "0"]
    assert snapshot(whole) == before


def test_nothing_there(tmp_path, env):
    assert "ImageNetS50: nothing there" in verify(tmp_path, env=env, status=1)


def test_folders_that_hold_no_sets(tmp_path, whole, env):
    def complaint(save):
        return run("verify.py", "--save-dir", save, "--mode", "50", env=env, status=1).stderr

    assert f"{tmp_path / 'none'}: no such folder" in complaint(tmp_path / "none")
    assert f"name its parent, {whole}" in complaint(whole / "ImageNetS50")


def test_absent_splits_are_named_and_no_fault(save, env):
    for split in ("train", "test", "validation-segmentation"):
        shutil.rmtree(save / "ImageNetS50" / split)
    output = verify(save, env=env)
    assert "all existing splits are right; absent: train, validation-segmentation, test" in output
    assert row(output, "test") == ["150", "absent"]
    assert "complete" not in output


def remove(path):
    path.unlink()


def empty(path):
    path.write_bytes(b"")


def spoil(path):
    path.write_bytes(b"\0" * path.stat().st_size)


def dangle(path):
    path.unlink()
    path.symlink_to("nowhere")


COLUMN = {"missing": 2, "unexpected": 3, "unreadable": 4, "wrong size": 5}


@pytest.mark.parametrize(
    ("split", "file"),
    [
        ("validation", f"{CLASS}/{IMAGE}.JPEG"),
        ("validation-segmentation", f"{CLASS}/{IMAGE}.png"),
        ("test", f"{CLASS}/ILSVRC2012_val_00500000.JPEG"),
        ("train-semi", f"{CLASS}/{CLASS}_0.JPEG"),
        ("train-semi-segmentation", f"{CLASS}/{CLASS}_0.png"),
    ],
)
@pytest.mark.parametrize(
    ("fault", "kind"),
    [(remove, "missing"), (empty, "unreadable"), (spoil, "unreadable"), (dangle, "unreadable")],
)
def test_one_faulty_file(save, env, split, file, fault, kind):
    path = save / "ImageNetS50" / split / file
    fault(path)
    output = verify(save, env=env, status=1)
    cells = ["150", "150", "0", "0", "0", "0"]
    cells[COLUMN[kind]] = "1"
    if kind == "missing":
        cells[1] = "149"
    assert row(output, split) == cells
    assert f"  {path}" in output
    assert "ImageNetS50: not right, see above" in output
    others = {"validation", "validation-segmentation", "test", "train-semi", "train-semi-segmentation"} - {
        split
    }
    assert all(row(output, other) == ["150", "150", "0", "0", "0", "0"] for other in others)


@pytest.mark.parametrize("place", ["test/n99999999", f"test/{CLASS}/more.JPEG", "validation/mine.txt"])
def test_unexpected_things(save, env, place):
    path = save / "ImageNetS50" / place
    path.mkdir() if place.endswith("9") else path.write_bytes(b"x")
    output = verify(save, env=env, status=1)
    assert row(output, place.split("/")[0])[COLUMN["unexpected"]] == "1"
    assert f"  {path}" in output


@pytest.mark.parametrize("place", ["train", "validation", f"test/{CLASS}"])
def test_hidden_files_are_told_and_no_fault(save, env, place):
    path = save / "ImageNetS50" / place / ".DS_Store"
    path.write_bytes(b"x")
    output = verify(save, env=env)
    assert f"1 hidden, and ignored\n  {path}" in output
    assert "ImageNetS50: complete" in output


def test_cures(save, env):
    root = save / "ImageNetS50"
    spoil(root / f"validation-segmentation/{CLASS}/{IMAGE}.png")
    remove(root / f"validation/{CLASS}/{IMAGE}.JPEG")
    output = verify(save, env=env, status=1)
    assert "remove those files, then run data_preparation.sh again" in output
    assert "missing: run data_preparation.sh again" in output
    assert "is the copy of ImageNet complete?" not in output
    empty(next(iter((root / f"train/{CLASS}").iterdir())))
    assert "train: is the copy of ImageNet complete?" in verify(save, env=env, status=1)


def test_train(save, env):
    train = save / "ImageNetS50/train"
    shutil.rmtree(train / "n00001003")
    (train / "n00001004").rename(train / "n99999999")
    next(iter((train / "n00001005").iterdir())).write_bytes(b"")
    output = verify(save, env=env, status=1)
    assert row(output, "train (classes)") == ["50", "48", "2", "1", "0", "0"]
    assert row(output, "train (images)") == ["-", "240", "0", "0", "1", "0"]
    for name in ("n00001003", "n00001004", "n99999999", "n00001005"):
        assert f"  {train / name}" in output


def test_a_class_folder_without_images(save, env):
    """Without a known total nothing else tells."""
    folder = save / "ImageNetS50/train/n00001003"
    shutil.rmtree(folder)
    folder.mkdir()
    output = verify(save, env=env, status=1)
    assert f"  {folder}: no image in it" in output
    (folder / "a.JPEG").mkdir()
    output = verify(save, env=env, status=1)
    assert f"  {folder}: no image in it" in output
    assert f"  {folder / 'a.JPEG'}: no file" in output
    assert row(output, "train (images)")[1] == "245"


def test_a_class_link_that_leads_nowhere(save, env):
    folder = save / "ImageNetS50/train/n00001003"
    shutil.rmtree(folder)
    folder.symlink_to("nowhere")
    output = verify(save, env=env, status=1)
    assert f"train (classes): 1 broken links\n  {folder}: a link to nowhere, where nothing is" in output
    assert "mount the disk of ImageNet, or run data_preparation.sh with the folder" in output
    assert "is the copy of ImageNet complete?" not in output


def write_mask(path, size, mode="RGB"):
    Image.new(mode, size).save(path)


def test_sizes_and_exif(save, env):
    """A mask fits its image as stored or as EXIF turns it; anything else is told with both sizes."""
    root = save / "ImageNetS50"
    image = next(p for p in sorted((root / "validation").rglob("*.JPEG")) if len(set(size_of(p.name))) == 2)
    mask = root / f"validation-segmentation/{image.parent.name}/{image.stem}.png"
    width, height = size_of(image.name)
    write_mask(mask, (height, width))
    output = verify(save, env=env, status=1)
    assert row(output, "validation-segmentation")[COLUMN["wrong size"]] == "1"
    assert f"{mask}: {height}x{width} pixels, its image {width}x{height}" in output
    for orientation, status in ((6, 0), (8, 0), (5, 0), (3, 1), (1, 1)):
        image.write_bytes(jpeg(image.name, orientation))
        verify(save, env=env, status=status)
    image.write_bytes(jpeg(image.name, 6))
    write_mask(mask, (width, height))
    verify(save, env=env)


def test_a_header_longer_than_what_is_read_at_once(save, env):
    path = save / f"ImageNetS50/test/{CLASS}/ILSVRC2012_val_00500000.JPEG"
    content = path.read_bytes()
    comment = b"\xff\xfe\xff\xff" + bytes(0xFFFD)
    path.write_bytes(content[:2] + comment * 2 + content[2:])
    verify(save, env=env)


@pytest.mark.parametrize("mode", ["L", "P", "RGBA"])
def test_masks_of_another_kind(save, env, mode):
    path = save / f"ImageNetS50/validation-segmentation/{CLASS}/{IMAGE}.png"
    write_mask(path, size_of(f"{IMAGE}.JPEG"), mode)
    assert f"  {path}: " in verify(save, env=env, status=1)


@pytest.mark.parametrize("label", [51, 999, 1001, 60000])
def test_deep_finds_labels_that_there_are_not(save, env, label):
    path = save / f"ImageNetS50/validation-segmentation/{CLASS}/{IMAGE}.png"
    path.write_bytes(mask_png(size_of(f"{IMAGE}.JPEG"), label))
    verify(save, env=env)
    output = verify(save, "--deep", env=env, status=1)
    assert f"  {path}: label {label}, there are 0 to 50 and 1000" in output


def test_deep_finds_damaged_and_blue_masks(save, env):
    folder = save / f"ImageNetS50/validation-segmentation/{CLASS}"
    first, second = sorted(folder.iterdir())[:2]
    content = bytearray(first.read_bytes())
    content[-40 - len(first.stem)] ^= 0xFF
    first.write_bytes(content)
    stream = io.BytesIO()
    size = size_of(second.name)
    Image.fromarray(np.full((size[1], size[0], 3), 7, np.uint8)).save(stream, "PNG")
    second.write_bytes(stream.getvalue())
    verify(save, env=env)
    output = verify(save, "--deep", env=env, status=1)
    assert row(output, "validation-segmentation")[COLUMN["unreadable"]] == "2"
    assert f"  {first}: " in output
    assert f"  {second}: " in output


def test_a_folder_that_cannot_be_read(save, env):
    if os.geteuid() == 0:
        pytest.skip("root reads every folder")
    folder = save / f"ImageNetS50/test/{CLASS}"
    folder.chmod(0)
    try:
        output = verify(save, env=env, status=1)
    finally:
        folder.chmod(0o755)
    assert f"  {folder}: Permission denied" in output


def test_train_full(tmp_path, env):
    lists = write_toy_lists(tmp_path / "lists", ["919"], images=1)
    images = needed(lists, ["919"], train_images=1)
    imagenet = write_imagenet(tmp_path / "imagenet", "folders", images)
    env = env | {"IMAGENETS_LISTS": str(lists)}
    save = tmp_path / "save"
    common = ("--save-dir", save, "--mode", "919")
    run("datapreparation_train.py", "--imagenet-dir", imagenet, *common, env=env)
    output = run("verify.py", *common, env=env).stdout
    assert row(output, "train-full") == ["1", "1", "0", "0", "0", "0"]
    (save / "ImageNetS919/train-full").unlink()
    output = run("verify.py", *common, env=env).stdout
    assert row(output, "train-full") == ["1", "absent"]
    (save / "ImageNetS919/train-full").symlink_to("nowhere")
    assert (
        "train-full: a link to nowhere, where nothing is"
        in run("verify.py", *common, env=env, status=1).stdout
    )


def test_all_modes_one_absent(whole, tmp_path, env):
    lists = write_toy_lists(tmp_path / "lists", ["300", "919"], images=1)
    shutil.copytree(Path(env["IMAGENETS_LISTS"]), lists, dirs_exist_ok=True)
    arguments = ("--save-dir", whole, "--mode", "all")
    result = run("verify.py", *arguments, env=env | {"IMAGENETS_LISTS": str(lists)}, status=1)
    assert "ImageNetS50: complete" in result.stdout
    assert "ImageNetS300: nothing there" in result.stdout


def test_a_mode_that_the_own_lists_lack_is_named(save, tmp_path, lists, env):
    shutil.copytree(lists, tmp_path / "lists")
    for path in (tmp_path / "lists").rglob("*im[39]*"):
        path.unlink()
    env = env | {"IMAGENETS_LISTS": str(tmp_path / "lists")}
    said = run("verify.py", "--save-dir", save, "--mode", "300", env=env, status=1).stderr
    assert said == (
        f"error: {tmp_path}/lists/categories/ImageNetS_categories_im300.txt: No such file or directory. "
        f"{tmp_path}/lists, which IMAGENETS_LISTS names, has lists of mode 50 only: take that mode, or leave "
        "IMAGENETS_LISTS out, for the official lists\n"
    )
    (tmp_path / "lists/mapping/ImageNetS_im50_mapping_test.txt").unlink()
    said = run("verify.py", "--save-dir", save, "--mode", "50", env=env, status=1).stderr
    assert "im50_mapping_test.txt: No such file" in said and "names a folder with categories/" in said


def test_a_resized_imagenet_is_told_in_one_line(save, env):
    """Removing files and preparing again, the cure for a few, would go on for ever."""
    root = save / "ImageNetS50"
    for image in (root / "validation").rglob("*.JPEG"):
        Image.new("L", (2, 2)).save(image)
    output = verify(save, env=env, status=1)
    assert "this ImageNet is a resized copy: 150 masks do not have their image's size" not in output  # half
    for image in (root / "train-semi").rglob("*.JPEG"):
        Image.new("L", (2, 2)).save(image)
    output = verify(save, env=env, status=1)
    assert "this ImageNet is a resized copy: 300 masks do not have their image's size" in output
    assert "remove those files" not in output
    assert sizes_that_differ(root) == (300, 300)
