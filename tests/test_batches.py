"""Batches of images of different sizes, and the way back."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from masksets import random_images
from torch.utils.data import DataLoader

from imagenets import SegmentationScores
from imagenets.batches import pad_collate, to_full_size


def items(count=5):
    images = random_images(np.random.default_rng(3), count, 5, 5)
    return [
        {
            "image": torch.rand(3, *truth.shape),
            "mask": truth,
            "class_id": i,
            "stem": f"image_{i}",
            "guess": guess,
        }
        for i, (truth, guess) in enumerate(images)
    ]


def test_a_loaders_batches_score_as_single_images():
    given = items(7)
    single, batched = SegmentationScores(5), SegmentationScores(5)
    for item in given:
        single.update(item["guess"], item["mask"])
    for batch in DataLoader(given, batch_size=3, collate_fn=pad_collate):
        guesses = torch.full(batch["mask"].shape, 4)  # what a network says beside the images
        for guess, own in zip(guesses, batch["guess"], strict=True):
            guess[: own.shape[0], : own.shape[1]] = torch.as_tensor(own)
        batched.update(to_full_size(guesses, batch), to_full_size(batch["mask"], batch))
    expected = single.compute()
    for name, value in batched.compute().items():
        assert value == expected[name] or (value.isnan() and expected[name].isnan())


def test_padding():
    given = items()
    batch = pad_collate(given)
    assert batch["image"].shape[1:] == (3, *batch["mask"].shape[1:])
    assert batch["mask"].dtype == torch.int64
    for i, item in enumerate(given):
        height, width = batch["size"][i]
        assert (height, width) == batch["image_size"][i] == item["mask"].shape
        assert torch.equal(batch["image"][i, :, :height, :width], item["image"])
        assert (batch["mask"][i, :height, :width].numpy() == item["mask"]).all()
        for image, empty in ((batch["image"][i], 0), (batch["mask"][i], 1000)):
            assert (image[..., height:, :] == empty).all()
            assert (image[..., width:] == empty).all()
    assert batch["class_id"].tolist() == [0, 1, 2, 3, 4]
    assert batch["stem"] == [f"image_{i}" for i in range(5)]
    without = pad_collate([{"image": item["image"]} for item in given])
    assert without.keys() == {"image", "image_size", "size"}
    assert without["size"] == batch["size"]


@pytest.mark.parametrize("stride", [1, 2])
def test_logits_of_a_stride_come_back_in_place(stride):
    """A ramp along x stays a ramp; what lies in the padding goes nowhere."""
    sizes = [(8, 12), (16, 6)]
    batch = pad_collate([{"image": torch.zeros(3, *size)} for size in sizes])
    ramp = torch.arange(0.5, 12, 1)[None, None, None].expand(2, 1, 16, 12)
    small = ramp[..., ::stride] + (stride - 1) / 2
    outputs = to_full_size(small[:, :, ::stride], batch)
    for output, (height, width) in zip(outputs, sizes, strict=True):
        assert output.shape == (1, height, width)
        inner = slice(1, width - 1) if width < 12 else slice(1, -1)
        torch.testing.assert_close(output[0, 0, inner], (torch.arange(width) + 0.5)[inner])


def test_the_way_back_leads_to_the_masks_size_where_images_were_resized():
    batch = pad_collate(
        [
            {"image": torch.zeros(3, 4, 6), "mask": np.zeros((8, 12), int)},
            {"image": torch.zeros(3, 8, 3), "mask": np.zeros((5, 9), int)},
        ]
    )
    labels = torch.arange(8 * 6).reshape(1, 8, 6).repeat(2, 1, 1)
    first, second = to_full_size(labels, batch)
    assert torch.equal(first, labels[0, :4, :6].repeat_interleave(2, 0).repeat_interleave(2, 1))
    assert second.shape == (5, 9)
    assert set(second.unique().tolist()) <= set(labels[1, :, :3].unique().tolist())


def test_what_is_no_tensor_or_of_other_shape_is_refused():
    with pytest.raises(ValueError, match="an image of the batch is ndarray; pass ImageNetS a transform"):
        pad_collate([{"image": np.zeros((3, 4, 4))}])
    with pytest.raises(ValueError, match=r"an image of the batch is \(4, 4\)"):
        pad_collate([{"image": torch.zeros(4, 4)}])
    batch = pad_collate([{"image": torch.zeros(3, 4, 4)}])
    for outputs in (
        torch.zeros(2, 5, 4, 4),
        torch.zeros(1, 4, 4),
        torch.zeros(1, 5, 4, 4, dtype=torch.int64),
    ):
        with pytest.raises(ValueError, match="give logits"):
            to_full_size(outputs, batch)
