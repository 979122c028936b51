"""Joint bilateral upsampling against a loop over pixels and places."""

from __future__ import annotations

import itertools
import json
import math
from types import SimpleNamespace

import pytest
import torch
from torch.nn.functional import avg_pool2d, interpolate

from imagenets.learning.distance_matching import bank, patches
from imagenets.learning.distance_matching.neighbours import Bank
from imagenets.learning.engine import sharpening
from imagenets.learning.engine.inference import Batch
from imagenets.learning.engine.sharpening import joint_bilateral, sharpened
from imagenets.learning.finetuning.prediction import predicted
from imagenets.scoring import protocols


def slow(scores, guide):
    """Every pixel, every place within the radius of the nearest one."""
    (_, rows, columns), (height, width) = scores.shape, guide.shape[1:]
    colours = torch.nn.functional.adaptive_avg_pool2d(guide, (rows, columns))
    found = torch.zeros(len(scores), height, width)
    for p, q in itertools.product(range(height), range(width)):
        y, x = (p + 0.5) * rows / height - 0.5, (q + 0.5) * columns / width - 0.5
        total = 0.0
        for i, j in itertools.product(range(rows), range(columns)):
            if max(abs(i - p * rows // height), abs(j - q * columns // width)) > sharpening.RADIUS:
                continue
            distance = (y - i) ** 2 + (x - j) ** 2
            colour = float((guide[:, p, q] - colours[:, i, j]).square().sum())
            weight = math.exp(
                -distance / 2 / sharpening.SIGMA_SPACE**2 - colour / 2 / sharpening.SIGMA_COLOUR**2
            )
            total += weight
            found[:, p, q] += weight * scores[:, i, j]
        found[:, p, q] /= total
    return found


@pytest.mark.parametrize("size", [(28, 36), (7, 9)])
def test_scores_are_those_of_the_loop(size, monkeypatch):
    monkeypatch.setattr(sharpening, "RADIUS", 2)  # smaller than the map: the radius matters
    torch.manual_seed(0)
    scores = torch.rand(3, 7, 9).softmax(0)
    guide = torch.rand(3, *size) * 0.3
    found = joint_bilateral(scores, guide)
    assert torch.allclose(found, slow(scores, guide), atol=1e-5)
    assert torch.allclose(found.sum(0), torch.ones(size), atol=1e-5)


MEAN, STD = (0.5, 0.4, 0.3), (0.2, 0.3, 0.4)


def test_the_picture_guides_scores_of_places_of_16_pixels():
    torch.manual_seed(2)
    values, scores = torch.rand(3, 48, 64), torch.rand(2, 6, 8).softmax(0)  # stride 8: averaged 2 x 2
    normalised = (values - torch.tensor(MEAN).view(3, 1, 1)) / torch.tensor(STD).view(3, 1, 1)
    found = sharpened(scores, normalised, MEAN, STD)
    guide = interpolate(values[None], (24, 32), mode="bilinear", antialias=True)[0]
    small = interpolate(scores[None], (3, 4), mode="bilinear", antialias=True)[0]
    assert torch.allclose(found, joint_bilateral(small, guide), atol=1e-5)
    assert torch.allclose(found.sum(0), torch.ones(24, 32), atol=1e-5)
    assert small.sub(avg_pool2d(scores, 2)).abs().max() < 0.2  # an average, if one that weighs by distance


def test_a_picture_of_less_than_half_a_place_has_one():
    found = sharpened(torch.ones(2, 1, 3) / 2, torch.zeros(3, 7, 40), MEAN, STD)
    assert torch.equal(found, torch.full((2, 8, 16), 0.5))


def object_and_batch():
    """A bright object whose outline lies within the network's places, for a map of stride 16."""
    values = torch.full((3, 96, 128), 0.1)
    values[:, 29:75, 41:99] = 0.9
    inside = torch.nn.functional.adaptive_avg_pool2d(values[:1], (6, 8))[0] > 0.5
    picture = (values - torch.tensor(MEAN).view(3, 1, 1)) / torch.tensor(STD).view(3, 1, 1)
    batch = Batch([0], picture[None], [(192, 256)], [(192, 256)], [])
    truth = interpolate((values[:1] > 0.5)[None].float(), (192, 256))[0, 0] > 0
    return inside, batch, truth


def wrong(labels, truth, label):
    return int(((labels == label) != truth).sum())


class MapNetwork(torch.nn.Module):
    """Stands for a network that has one map, whatever the picture."""

    stride, mean, std = 16, MEAN, STD

    def __init__(self, maps):
        super().__init__()
        self.maps = maps
        self.backbone = SimpleNamespace(mean=MEAN, std=STD)

    def forward(self, pictures):
        return self.maps


def test_distance_matching_and_prediction_follow_the_outline_where_asked():
    inside, batch, truth = object_and_batch()
    maps = torch.stack((inside.float(), 1 - inside.float()))[None]
    network = MapNetwork(maps)
    rows = torch.eye(2)
    regions = Bank(rows, torch.tensor([7, 0]))
    of_patches = patches.PatchBank(rows, torch.tensor([[7], [0]]), torch.ones(2, 1))
    for make, vectors in ((bank.label_step, regions), (patches.label_step, of_patches)):
        plain = make(network, vectors, 1, 0.1)(batch)[0]
        sharp = make(network, vectors, 1, 0.1, True)(batch)[0]
        plain = interpolate(plain[None, None].float(), truth.shape)[0, 0]
        assert sharp.shape == truth.shape
        assert set(sharp.unique().tolist()) == {0, 7}
        assert wrong(sharp, truth, 7) < wrong(plain, truth, 7) / 3
    logits = MapNetwork(torch.cat((torch.full((1, 1, 6, 8), -30.0), 8 * maps), 1))
    plain, sharp = predicted(logits, batch)[0], predicted(logits, batch, sharpen=True)[0]
    assert set(sharp.unique().tolist()) == {1, 2}
    assert wrong(sharp, truth, 1) < wrong(plain, truth, 1) / 3


def test_logits_without_any_likely_label_have_one_all_the_same():
    _, batch, _ = object_and_batch()
    found = predicted(MapNetwork(torch.zeros(1, 920, 6, 8)), batch, sharpen=True)[0]
    assert found.unique().tolist() == [0]


@pytest.mark.parametrize("name", ["distance_matching.json", "prediction.json"])
def test_scores_name_predictions_that_were_sharpened(tmp_path, name):
    assert protocols.sharpened(tmp_path / "validation") is None
    for sharpen, text in ((False, None), (sharpening.SHARPENING, None), (None, "no JSON")):
        (tmp_path / name).write_text(text or json.dumps({"settings": {"sharpen": sharpen}}))
        said = protocols.sharpened(tmp_path / "validation")
        assert "were sharpened" in said if sharpen else said is None
