"""verify.py: complete sets, and one fault at a time, which it must name."""

import os
import shutil

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

CLASS = "n00001001"
IMAGE = f"{CLASS}/ILSVRC2012_val_00000000"
COLUMN = {"missing": 2, "unexpected": 3, "unreadable": 4, "wrong size": 5}
FILES = {
    "train-semi": f"{CLASS}/{CLASS}_0.JPEG",
    "train-semi-segmentation": f"{CLASS}/{CLASS}_0.png",
    "validation": f"{IMAGE}.JPEG",
    "validation-segmentation": f"{IMAGE}.png",
    "test": f"{CLASS}/ILSVRC2012_val_00500000.JPEG",
}


@pytest.fixture(scope="session")
def env(tmp_path_factory, lists):
    return environment(IMAGENETS_LISTS=lists, XDG_CACHE_HOME=tmp_path_factory.mktemp("cache"))


@pytest.fixture(scope="session")
def whole(tmp_path_factory, lists, env):
    """A complete set, which the tests copy."""
    folder = tmp_path_factory.mktemp("whole")
    write_imagenet(folder / "imagenet", "folders", needed(lists, ["50"]))
    archive = write_archive(folder / "masks.zip", masks_of(lists, "50"))
    common = ("--save-dir", folder / "save", "--mode", "50")
    for name, *options in (("train", "--copy"), ("val",), ("train_semi",)):
        given = ("--imagenet-dir", folder / "imagenet", *options)
        run(f"datapreparation_{name}.py", *given, *common, env=env)
    run("datapreparation_anno.py", "--archive", archive, *common, env=env)
    return folder / "save"


@pytest.fixture
def save(tmp_path, whole):
    shutil.copytree(whole, tmp_path / "save")
    return tmp_path / "save"


@pytest.fixture
def root(save):
    return save / "ImageNetS50"


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
    for split in FILES:
        assert row(output, split) == ["150", "150", "0", "0", "0", "0"]
    assert snapshot(whole) == before


def test_folders_that_hold_no_sets(tmp_path, whole, env):
    assert "ImageNetS50: nothing there" in verify(tmp_path, env=env, status=1)
    for save, complaint in (
        (tmp_path / "none", f"{tmp_path / 'none'}: no such folder"),
        (whole / "ImageNetS50", f"name its parent, {whole}"),
    ):
        assert complaint in run("verify.py", "--save-dir", save, "--mode", "50", env=env, status=1).stderr


def test_absent_splits_are_named_and_no_fault(save, root, env):
    for split in ("train", "test", "validation-segmentation"):
        shutil.rmtree(root / split)
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


@pytest.mark.parametrize("fault", [remove, empty, spoil, dangle])
def test_one_faulty_file_in_each_split(save, root, whole, env, fault):
    for split, file in FILES.items():
        fault(root / split / file)
        output = verify(save, env=env, status=1)
        wrong = ["150", "149", "1", "0", "0", "0"] if fault is remove else ["150", "150", "0", "0", "1", "0"]
        for each in FILES:
            assert row(output, each) == (wrong if each == split else ["150", "150", "0", "0", "0", "0"])
        assert f"  {root / split / file}" in output
        assert "ImageNetS50: not right, see above" in output
        (root / split / file).unlink(missing_ok=True)
        shutil.copy(whole / "ImageNetS50" / split / file, root / split / file)


def test_what_is_unexpected(save, root, env):
    (root / "test/n99999999").mkdir()
    for place in (f"test/{CLASS}/more.JPEG", "validation/mine.txt"):
        (root / place).write_bytes(b"x")
    output = verify(save, env=env, status=1)
    assert row(output, "test")[COLUMN["unexpected"]] == "2"
    assert row(output, "validation")[COLUMN["unexpected"]] == "1"
    for place in ("test/n99999999", f"test/{CLASS}/more.JPEG", "validation/mine.txt"):
        assert f"  {root / place}" in output


@pytest.mark.parametrize("place", ["train", "validation", f"test/{CLASS}"])
def test_hidden_files_are_told_and_no_fault(whole, env, place):
    path = whole / "ImageNetS50" / place / ".DS_Store"
    path.write_bytes(b"x")
    output = verify(whole, env=env)
    path.unlink()
    assert f"1 hidden, and ignored\n  {path}" in output
    assert "ImageNetS50: complete" in output


def test_cures(save, root, env):
    spoil(root / f"validation-segmentation/{IMAGE}.png")
    remove(root / f"validation/{IMAGE}.JPEG")
    output = verify(save, env=env, status=1)
    assert "remove those files, then run data_preparation.sh again" in output
    assert "missing: run data_preparation.sh again" in output
    assert "is the copy of ImageNet complete?" not in output
    empty(next(iter((root / f"train/{CLASS}").iterdir())))
    assert "train: is the copy of ImageNet complete?" in verify(save, env=env, status=1)


def test_train(save, root, env):
    """Without a known total, nothing but an empty class folder tells that its images are missing."""
    train = root / "train"
    shutil.rmtree(train / "n00001003")
    (train / "n00001004").rename(train / "n99999999")
    next(iter((train / "n00001005").iterdir())).write_bytes(b"")
    shutil.rmtree(train / "n00001006")
    (train / "n00001006").mkdir()
    shutil.rmtree(train / "n00001007")
    (train / "n00001007/a.JPEG").mkdir(parents=True)
    output = verify(save, env=env, status=1)
    assert row(output, "train (classes)") == ["50", "48", "2", "1", "2", "0"]
    assert row(output, "train (images)") == ["-", "230", "0", "0", "2", "0"]
    for name in ("n00001003", "n00001004", "n99999999", "n00001005"):
        assert f"  {train / name}" in output
    for name in ("n00001006: no image in it", "n00001007: no image in it", "n00001007/a.JPEG: no file"):
        assert f"  {train}/{name}" in output


def test_a_class_link_that_leads_nowhere(save, root, env):
    folder = root / "train/n00001003"
    shutil.rmtree(folder)
    folder.symlink_to("nowhere")
    output = verify(save, env=env, status=1)
    assert f"train (classes): 1 broken links\n  {folder}: a link to nowhere, where nothing is" in output
    assert "mount the disk of ImageNet, or run data_preparation.sh with the folder" in output
    assert "is the copy of ImageNet complete?" not in output


def test_sizes_and_exif(save, root, env):
    """A mask fits its image as stored or as EXIF turns it; anything else is told with both sizes."""
    image = next(p for p in sorted((root / "validation").rglob("*.JPEG")) if len(set(size_of(p.name))) == 2)
    mask = root / f"validation-segmentation/{image.parent.name}/{image.stem}.png"
    width, height = size_of(image.name)
    Image.new("RGB", (height, width)).save(mask)
    output = verify(save, env=env, status=1)
    assert row(output, "validation-segmentation")[COLUMN["wrong size"]] == "1"
    assert f"{mask}: {height}x{width} pixels, its image {width}x{height}" in output
    for orientation, status in ((6, 0), (8, 0), (5, 0), (3, 1), (1, 1)):
        image.write_bytes(jpeg(image.name, orientation))
        verify(save, env=env, status=status)
    image.write_bytes(jpeg(image.name, 6))
    Image.new("RGB", (width, height)).save(mask)
    verify(save, env=env)


def test_a_header_longer_than_what_is_read_at_once(save, root, env):
    path = root / "test" / FILES["test"]
    content = path.read_bytes()
    comment = b"\xff\xfe\xff\xff" + bytes(0xFFFD)
    path.write_bytes(content[:2] + comment * 2 + content[2:])
    verify(save, env=env)


def test_masks_that_are_none(save, root, env):
    """Their kind is in the header; labels, colours and damage are found only by decoding."""
    masks = sorted((root / f"validation-segmentation/{CLASS}").iterdir())
    size = size_of(masks[0].name)
    for mode in ("L", "P", "RGBA"):
        Image.new(mode, size).save(masks[0])
        assert f"  {masks[0]}: " in verify(save, env=env, status=1)
    for label in (51, 999, 1001, 60000):
        masks[0].write_bytes(mask_png(size, label))
        verify(save, env=env)
        output = verify(save, "--deep", env=env, status=1)
        assert f"  {masks[0]}: label {label} is outside 0..50 and not 1000" in output
    Image.new("RGB", size, (7, 7, 7)).save(masks[0])
    content = bytearray(masks[1].read_bytes())
    content[-40 - len(masks[1].stem)] ^= 0xFF
    masks[1].write_bytes(content)
    verify(save, env=env)
    output = verify(save, "--deep", env=env, status=1)
    assert row(output, "validation-segmentation")[COLUMN["unreadable"]] == "2"
    assert all(f"  {mask}: " in output for mask in masks[:2])


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads every folder")
def test_a_folder_that_cannot_be_read(save, root, env):
    folder = root / f"test/{CLASS}"
    folder.chmod(0)
    try:
        output = verify(save, env=env, status=1)
    finally:
        folder.chmod(0o755)
    assert f"  {folder}: Permission denied" in output


def test_train_full(tmp_path, env):
    lists = write_toy_lists(tmp_path / "lists", ["919"], images=1)
    imagenet = write_imagenet(tmp_path / "imagenet", "folders", needed(lists, ["919"], train_images=1))
    env = env | {"IMAGENETS_LISTS": str(lists)}
    common = ("--save-dir", tmp_path / "save", "--mode", "919")
    run("datapreparation_train.py", "--imagenet-dir", imagenet, *common, env=env)
    train_full = tmp_path / "save/ImageNetS919/train-full"
    output = run("verify.py", *common, env=env).stdout
    assert row(output, "train-full") == ["1", "1", "0", "0", "0", "0"]
    train_full.unlink()
    assert row(run("verify.py", *common, env=env).stdout, "train-full") == ["1", "absent"]
    train_full.symlink_to("nowhere")
    output = run("verify.py", *common, env=env, status=1).stdout
    assert "train-full: a link to nowhere, where nothing is" in output


def test_modes_that_are_absent_and_modes_without_lists(whole, tmp_path, lists, env):
    more = write_toy_lists(tmp_path / "more", ["300", "919"], images=1)
    shutil.copytree(lists, more, dirs_exist_ok=True)
    arguments = ("--save-dir", whole, "--mode", "all")
    result = run("verify.py", *arguments, env=env | {"IMAGENETS_LISTS": str(more)}, status=1)
    assert "ImageNetS50: complete" in result.stdout
    assert "ImageNetS300: nothing there" in result.stdout
    shutil.copytree(lists, tmp_path / "lists")
    env = env | {"IMAGENETS_LISTS": str(tmp_path / "lists")}
    said = run("verify.py", "--save-dir", whole, "--mode", "300", env=env, status=1).stderr
    assert said == (
        f"error: {tmp_path}/lists/categories/ImageNetS_categories_im300.txt: No such file or directory. "
        f"{tmp_path}/lists, which IMAGENETS_LISTS names, has lists of mode 50 only: take that mode, or leave "
        "IMAGENETS_LISTS out, for the official lists\n"
    )
    (tmp_path / "lists/mapping/ImageNetS_im50_mapping_test.txt").unlink()
    said = run("verify.py", "--save-dir", whole, "--mode", "50", env=env, status=1).stderr
    assert "im50_mapping_test.txt: No such file" in said and "names a folder with categories/" in said


def test_a_resized_imagenet_is_told_in_one_line(save, root, env):
    """Removing files and preparing again, the cure for a few, would go on for ever."""
    told = "this ImageNet is a resized copy: {} masks do not have their image's size"
    for split, misfits, is_told in (("validation", 150, False), ("train-semi", 300, True)):
        for image in (root / split).rglob("*.JPEG"):
            Image.new("L", (2, 2)).save(image)
        output = verify(save, env=env, status=1)
        assert (told.format(misfits) in output) is is_told, "half of them may be a few"
        assert ("remove those files" in output) is not is_told
    assert sizes_that_differ(root) == (300, 300)
