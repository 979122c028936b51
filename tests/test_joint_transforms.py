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
