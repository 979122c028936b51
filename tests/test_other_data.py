"""What people name as ImageNet and is something else: told in one line what it is."""

from __future__ import annotations

import zipfile

import pytest
from helpers.generated_imagenet import Needed, write_imagenet, write_images

from imagenets.common.errors import InputError
from imagenets.preparation.image_folders import copy_image
from imagenets.preparation.layouts import find_train, find_val
from imagenets.preparation.plans import plan_train, plan_val, refuse_missing

CASES = {
    "imagenet_object_localization_patched2019.tar.gz": "compressed and has no index: unpack it",
    "imagenet1k-train-0000.tar": "a shard of WebDataset",
    "gtsegs_ijcv.mat": "is ImageNet-Segmentation",
    "sketch/n01440764/sketch_1.JPEG": "is ImageNet-Sketch",
    "train/n01440764/sketch_1.JPEG": "is ImageNet-Sketch",
    "ImageNetS50/validation/n01440764/a.JPEG": "is a prepared ImageNet-S, not ImageNet",
    "train-semi/n01440764/n01440764_1.JPEG": "is a prepared ImageNet-S, not ImageNet",
    "val_256/n01440764/ILSVRC2012_val_00000293.JPEG": "looks like a resized copy",
}


@pytest.mark.parametrize("name", CASES)
def test_other_data_are_told_in_one_line(tmp_path, name):
    path = tmp_path / "copy" / name
    path.parent.mkdir(parents=True)
    path.touch()
    if name.startswith("train-semi"):  # train lies beside it, and could be linked from
        write_images(tmp_path / "copy/train", ["n01440764/n01440764_1.JPEG"])
    for find in (find_train, find_val):
        for given in (tmp_path / "copy", path)[: 1 + name.endswith((".tar.gz", ".mat"))]:
            with pytest.raises(InputError, match=CASES[name]) as caught:
                find(given)
            assert "\n" not in str(caught.value)


@pytest.mark.parametrize("first", ["1", "000"])
def test_numbered_class_folders_are_one_line_and_not_one_for_each_image(tmp_path, first):
    for part in ("train", "val"):
        for name in (first, str(int(first) + 7).rjust(len(first), "0")):
            (tmp_path / part / name).mkdir(parents=True)
            (tmp_path / part / name / "ILSVRC2012_val_00000001.JPEG").write_bytes(b"x")
    images = [(f"n01440764/{i}.JPEG", f"n01440764/{i}.JPEG") for i in range(300)]
    plan = plan_val("50", {"validation": images}, find_val(tmp_path), link=False)
    with pytest.raises(
        InputError, match=r"its class folders are numbered .*: rename them to wnids"
    ) as caught:
        refuse_missing([plan], tmp_path)
    assert "\n" not in str(caught.value)


def test_val2012_is_offered_as_val(tmp_path):
    (tmp_path / "val2012").mkdir()
    (tmp_path / "val2012/ILSVRC2012_val_00000001.JPEG").touch()
    with pytest.raises(InputError, match="val2012 looks like them: rename it to val"):
        find_val(tmp_path)


def test_kaggles_zip_by_its_own_name_damaged_and_with_a_tar_inside(tmp_path):
    copy = write_imagenet(tmp_path / "copy", "zip", Needed(["n1/n1_1.JPEG", "n1/n1_2.JPEG"], ["n1/v_1.JPEG"]))
    (path,) = copy.iterdir()
    train = find_train(path)
    assert str(train) == f"Kaggle's ZIP, {path}" and sorted(train.images("n1")) == ["n1_1.JPEG", "n1_2.JPEG"]
    assert plan_train("50", ["n1", "n2"], train, copy=False).missing == [f"{path}: no image of n2 in it"]
    content = path.read_bytes()
    image = train.images("n1")["n1_1.JPEG"]
    at = content.index(b"n1_1.JPEG") + 20
    path.write_bytes(content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :])
    with pytest.raises(InputError, match=r"n1_1\.JPEG is damaged .*: get it again"):
        copy_image(image, str(tmp_path / "a.JPEG"))
    assert not (tmp_path / "a.JPEG").exists()
    (tmp_path / "cut.zip").write_bytes(content[:-30])
    with pytest.raises(InputError, match=r"cut\.zip: not a complete ZIP"):
        find_train(tmp_path / "cut.zip")
    with zipfile.ZipFile(tmp_path / "tar.zip", "w") as archive:
        archive.writestr("imagenet_object_localization_patched2019.tar.gz", b"")
    with pytest.raises(InputError, match=r"tar\.zip: holds imagenet_object_.*\.tar\.gz.*: unpack both"):
        find_val(tmp_path / "tar.zip")
