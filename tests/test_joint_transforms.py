"""Joint transforms of torchvision."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from prepared_set import write_lists, write_set
from torchvision import tv_tensors
from torchvision.transforms import v2

from imagenets import ImageNetS


@pytest.fixture
def save(tmp_path, monkeypatch):
    write_lists(tmp_path / "lists")
    monkeypatch.setenv("IMAGENETS_LISTS", str(tmp_path / "lists"))
    write_set(tmp_path)
    return tmp_path


def test_image_and_mask_are_transformed_together(save):
    plain = ImageNetS(save, "50", "validation")[0]
    flipped = ImageNetS(save, "50", "validation", joint_transform=v2.RandomHorizontalFlip(p=1))[0]
    assert isinstance(flipped["image"], tv_tensors.Image)
    assert isinstance(flipped["mask"], tv_tensors.Mask)
    assert (flipped["mask"].numpy() == plain["mask"][:, ::-1]).all()
    assert (flipped["image"].permute(1, 2, 0).numpy() == np.asarray(plain["image"])[:, ::-1]).all()


def test_resizing_invents_no_label(save):
    dataset = ImageNetS(
        save,
        "50",
        "validation",
        transform=v2.ToDtype(torch.float32, scale=True),
        joint_transform=v2.Resize((64, 77)),
    )
    for item in dataset:
        assert item["image"].shape == (3, 64, 77)
        assert item["image"].dtype == torch.float32
        assert set(item["mask"].unique().tolist()) == {0, item["class_id"], 1000}


def test_masks_are_padded_as_the_docs_say(save):
    fill = {tv_tensors.Image: 0, tv_tensors.Mask: 1000}
    pad = v2.RandomCrop(48, pad_if_needed=True, fill=fill)
    for item in ImageNetS(save, "50", "validation", joint_transform=pad):
        assert item["mask"].shape == (48, 48) and item["mask"][0, 0] == 1000


def as_albumentations(image, mask):
    return {"image": image, "mask": mask}


@pytest.mark.parametrize(
    ("transform", "name"),
    [(as_albumentations, "as_albumentations returned dict"), (lambda image, mask: image, "returned Image")],
)
def test_a_transform_that_does_not_return_both_is_named(save, transform, name):
    with pytest.raises(TypeError, match=name):
        ImageNetS(save, "50", "validation", joint_transform=transform)[0]
