"""Prediction and the scores on the way of a training, by function."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from helpers.training import ALONE
from torch.nn.functional import interpolate

pytest.importorskip("timm")

from imagenets.learning.engine.inference import Batch, Running
from imagenets.learning.engine.sharpening import sharpened
from imagenets.learning.finetuning import prediction
from imagenets.learning.finetuning.prediction import Validation, predicted
from imagenets.learning.images import Images
from imagenets.learning.networks.backbones import make_backbone
from imagenets.learning.networks.segmentation_network import PASS, SegmentationNetwork

MEAN, STD = (0.4, 0.5, 0.6), (0.2, 0.3, 0.4)


class Network(torch.nn.Module):
    """Gives the same logits, whatever the picture."""

    backbone = SimpleNamespace(mean=MEAN, std=STD)

    def __init__(self, logits):
        super().__init__()
        self.logits = logits

    def forward(self, pictures):
        return self.logits


def batch_of(shown):
    pictures = torch.rand(1, 3, 48, 64, generator=torch.Generator().manual_seed(1))
    return Batch([0], pictures, [(90, 120)], [shown], [])


def random_logits(labels):
    return 4 * torch.randn(1, labels, 3, 4, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(("shown", "size"), [((45, 61), (45, 61)), ((80, 120), (33, 50))])
def test_labels_are_the_largest_enlarged_logits_of_what_is_shown(shown, size):
    logits = random_logits(5)
    assert prediction.LONGEST == 1000, "pixels; above a million, labels are found at a smaller size"
    (found,) = predicted(Network(logits), batch_of(shown), *(() if shown == size else (50,)))
    expected = interpolate(logits, size=size, mode="bilinear")[0].argmax(0)
    assert found.dtype == torch.int32 and torch.equal(found.long(), expected)


def test_probabilities_of_labels_that_reach_a_hundredth_somewhere_are_spread():
    """Of four labels the first and the third; the others' share is given to them."""
    logits = random_logits(4)
    logits[:, 1] -= 12  # e-12 of the others, and below a hundredth everywhere
    logits[:, 3] -= 15
    logits[:, 0, :, :2] += 9  # the first on the left, the third on the right
    logits[:, 2, :, 2:] += 9
    batch = batch_of((48, 64))
    batch.pictures[..., 32:] += 3
    (found,) = predicted(Network(logits), batch, sharpen=True)
    probabilities = logits[0].softmax(0)
    assert (probabilities[[1, 3]] < 0.01).all() and (probabilities[[0, 2]].amax((1, 2)) >= 0.01).all()
    few = probabilities[[0, 2]] / probabilities[[0, 2]].sum(0)
    spread = sharpened(few, batch.pictures[0], MEAN, STD)
    best = interpolate(spread[None], size=(48, 64), mode="bilinear")[0].argmax(0)
    assert torch.equal(found, torch.tensor([0, 2])[best].int()) and len(found.unique()) == 2


@pytest.mark.parametrize(("highest", "labels"), [(0.009, 1), (0.011, 2)])
def test_a_label_below_a_hundredth_is_left_out_and_one_above_is_not(monkeypatch, highest, labels):
    probabilities = torch.tensor([1 - highest, highest]).view(1, 2, 1, 1).expand(1, 2, 3, 4)
    kept = []
    monkeypatch.setattr(prediction, "sharpened", lambda few, *of: kept.append(few) or few)
    predicted(Network(probabilities.log()), batch_of((48, 64)), sharpen=True)
    assert len(kept[0]) == labels
    torch.testing.assert_close(kept[0].sum(0), torch.ones(3, 4))


def test_validation_scores_the_network_as_predict_does(monkeypatch):
    """In evaluation mode, in the training's precision, labels laid where the picture lies."""
    network = SegmentationNetwork(make_backbone("test_vit"), 3, PASS).train()
    mask = np.array([[1, 1, 1], [1, 1, 1], [2, 2, 2]], np.uint16)
    seen = []

    def visit(images, step, reading, running, with_masks):
        seen.append((network.training, reading, running, with_masks))
        yield SimpleNamespace(shown=[(2, 2)], masks=[mask]), [torch.tensor([[1, 2], [1, 2]])]

    monkeypatch.setattr(prediction, "visit", visit)
    monkeypatch.setattr(prediction, "same_buffers", lambda *of: seen.append("same buffers"))
    validation = Validation(Images("folder", ["a"]), 3, 2, show=print)
    assert [epoch for epoch in range(1, 6) if validation.is_due(5, epoch)] == [2, 4, 5]
    assert validation.scores(network, 5, ALONE, 1, "bfloat16", 3) == {} and seen == []
    scores = validation.scores(network, 5, ALONE, 1, "bfloat16", 4)
    reading = network.backbone.reading(stretched=True)
    running = Running(ALONE, workers=1, precision="bfloat16", show=print)
    assert seen == ["same buffers", (False, reading, running, True)]
    assert network.training
    # The last row and column repeat: the left column is 1, the others are 2.
    assert scores["mIoU"] == pytest.approx(100 * (2 / 7 + 2 / 7) / 4)
    assert scores["Acc"] == 100 and set(scores) == {"mIoU", "FMeasure", "Acc"}
    assert not Validation(None, 3, 0).is_due(5, 5)
