"""The bank of regions by function: what it holds, what is refused, and how it votes, against plain loops."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch.nn.functional import interpolate

from imagenets.classes import MODES
from imagenets.common.errors import InputError
from imagenets.learning.distance_matching import bank as banks
from imagenets.learning.distance_matching import neighbours, patches
from imagenets.learning.distance_matching.bank import embeddings_of, join_bank, load_bank
from imagenets.learning.distance_matching.kinds import KINDS, PATCHES, REGIONS, kind_of_file
from imagenets.learning.distance_matching.neighbours import Bank, label_maps
from imagenets.learning.engine.inference import Batch
from imagenets.learning.engine.label_grid import enlarged_maps


def random_maps(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_an_embedding_is_the_sum_over_a_labels_places_by_the_number_of_all():
    maps = random_maps(2, 5, 3, 4)
    draw = np.random.default_rng(0)
    masks = [draw.choice([0, 3, 7, 1000], size).astype(np.uint16) for size in ((30, 41), (25, 33))]
    found = embeddings_of(maps, 16, masks)
    features = interpolate(maps, size=(6, 8), mode="bilinear", align_corners=False)
    for of_image, mask, one in zip(features, masks, found, strict=True):
        small = interpolate(torch.from_numpy(mask.astype(float))[None, None], size=(6, 8))[0, 0]
        assert one["labels"].tolist() == [0, 3, 7]
        for label, embedding in zip((0, 3, 7), one["embeddings"], strict=True):
            total = torch.zeros(5)
            for row, column in (small == label).nonzero().tolist():
                total += of_image[:, row, column]
            torch.testing.assert_close(embedding, total / 48)


@pytest.fixture
def bank(tmp_path):
    """Three embeddings of two numbers, out of two files."""
    parts = [tmp_path / "1.npz", tmp_path / "2.npz"]
    np.savez(parts[0], embeddings=np.array([[3, 4], [0, 0]], np.float32), labels=np.array([50, 0]))
    np.savez(parts[1], embeddings=np.array([[0, 0.5]], np.float32), labels=np.array([2]))
    assert join_bank(parts, tmp_path / "bank.npz") == 3
    return tmp_path / "bank.npz"


def test_a_bank_holds_unit_vectors_in_their_order(bank):
    found = load_bank(bank, 2, 3, MODES["50"])
    torch.testing.assert_close(found.embeddings, torch.tensor([[0.6, 0.8], [0, 0], [0, 1]]))
    assert found.labels.tolist() == [50, 0, 2] and found.highest == 50


@pytest.mark.parametrize(
    ("channels", "neighbours", "labels", "words"),
    [
        (3, 1, 50, "embeddings of 2 numbers, but this backbone has 3"),
        (1, 1, 50, "embeddings of 2 numbers, but this backbone has 1"),
        (2, 4, 50, "3 embeddings, fewer than the 4 neighbours asked for"),
        (2, 1, 51, "label 51 is no class of mode 50"),
    ],
)
def test_banks_that_do_not_fit_are_refused(bank, channels, neighbours, labels, words):
    with np.load(bank) as arrays:
        np.savez(bank, embeddings=arrays["embeddings"], labels=[labels, 0, 2])
    with pytest.raises(InputError, match=rf"bank\.npz: {words}"):
        load_bank(bank, channels, neighbours, MODES["50"])


def test_a_bank_of_nothing_is_refused(tmp_path):
    np.savez(tmp_path / "1.npz", embeddings=np.zeros((0, 2), np.float32), labels=np.zeros(0, np.int64))
    with pytest.raises(InputError, match="no mask has a label but 1000"):
        join_bank([tmp_path / "1.npz"], tmp_path / "bank.npz")
    assert not (tmp_path / "bank.npz").exists()


@pytest.mark.parametrize(("stride", "grid"), [(16, (6, 8)), (8, (3, 4))])
def test_labels_are_voted_for_by_the_nearest(stride, grid):
    maps = random_maps(2, 5, 3, 4)
    vectors = torch.nn.functional.normalize(random_maps(12, 5, seed=1))
    labels = torch.tensor([4, 0, 2] * 4)
    found = label_maps(maps, stride, Bank(vectors, labels), 5, 0.2)
    features = interpolate(maps, size=grid, mode="bilinear", align_corners=False)
    assert found.shape == (2, *grid)
    for picture in range(2):
        for row in range(grid[0]):
            for column in range(grid[1]):
                vector = features[picture, :, row, column]
                cosines = (vectors @ (vector / vector.norm())).tolist()
                votes = [0.0] * 5
                for place in sorted(range(12), key=lambda place: -cosines[place])[:5]:
                    votes[int(labels[place])] += math.exp(cosines[place] / 0.2)
                assert found[picture, row, column] == votes.index(max(votes))


class Network(torch.nn.Module):
    """Gives one map of stride 16, whatever the pictures."""

    stride, mean, std = 16, (0.4, 0.5, 0.6), (0.2, 0.3, 0.4)

    def forward(self, pictures):
        return random_maps(len(pictures), 5, 3, 4)


def test_embeddings_are_of_what_a_picture_shows_of_its_mask():
    mask = np.random.default_rng(0).integers(0, 4, (50, 70)).astype(np.uint16)
    batch = Batch([0], torch.zeros(1, 3, 48, 64), [(50, 70)], [(48, 60)], [mask])
    (found,) = banks.bank_step(Network())(batch)
    (expected,) = embeddings_of(random_maps(1, 5, 3, 4), 16, [mask[:48, :60]])
    assert torch.equal(found["embeddings"], expected["embeddings"])


def test_blocks_of_the_bank_hold_as_many_as_are_asked_for(monkeypatch):
    """Where memory is for fewer: two blocks of five."""
    monkeypatch.setitem(neighbours._SCORE_BYTES, "cpu", 4)
    vectors = torch.nn.functional.normalize(random_maps(8, 5, seed=1))
    values, places = neighbours.nearest(random_maps(3, 5), vectors, 5)
    cosines = torch.nn.functional.normalize(random_maps(3, 5)) @ vectors.T
    expected = cosines.sort(descending=True)
    torch.testing.assert_close(values.sort(descending=True).values, expected.values[:, :5])
    assert places.sort().values.tolist() == expected.indices[:, :5].sort().values.tolist()


def test_of_equal_neighbours_those_of_earlier_blocks_count(monkeypatch):
    monkeypatch.setitem(neighbours._SCORE_BYTES, "cpu", 4 * 10)
    vectors = torch.tensor([[0.0, 1.0]] * 7 + [[1.0, 0.0]] * 33)
    _, places = neighbours.nearest(torch.tensor([[2.0, 0.0]]), vectors, 5)
    assert sorted(places[0].tolist()) == [7, 8, 9, 10, 11]


def test_among_many_the_nearest_are_those_of_sorting():
    """3,000 different ones: ten of the largest stand in ten groups."""
    vectors = torch.nn.functional.normalize(random_maps(3000, 8, seed=1))
    found = neighbours.nearest(random_maps(40, 8), vectors, 10)
    expected = (torch.nn.functional.normalize(random_maps(40, 8)) @ vectors.T).topk(10)
    torch.testing.assert_close(found[0].sort(descending=True).values, expected.values)
    assert torch.equal(found[1].sort().values, expected.indices.sort().values)


# Places in a bank of 160, of which every fifth is a group: the largest score, and two that are equal.
@pytest.mark.parametrize(
    ("first", "second"),
    [
        (4, 5),  # the best of two other groups, of which one is left out
        (0, 9),
        (4, 17),  # of the largest one's group and another
        (7, 14),
    ],
)
def test_of_equal_scores_in_groups_the_first_counts(first, second):
    scores = torch.zeros(1, 160)
    scores[0, 2], scores[0, first], scores[0, second] = 5, 4, 4
    values, places = neighbours._largest_by_groups(scores, 2)
    assert dict(zip(places[0].tolist(), values[0].tolist(), strict=True)) == {2: 5, first: 4}


@pytest.mark.parametrize("stride", [8, 16])
def test_lengths_have_no_say(stride):
    maps, vectors = random_maps(1, 5, 3, 4), torch.nn.functional.normalize(random_maps(12, 5, seed=1))
    bank = Bank(vectors, torch.tensor([4, 0, 2] * 4))
    found = label_maps(maps * 1e-6, stride, bank, 5, 0.2)
    assert torch.equal(found, label_maps(maps, stride, bank, 5, 0.2))
    rows = maps[0].flatten(1).T
    for short, whole in zip(
        neighbours.nearest(rows * 1e-6, vectors, 3), neighbours.nearest(rows, vectors, 3), strict=True
    ):
        torch.testing.assert_close(short, whole)


def test_half_way_between_all_but_opposite_vectors_there_is_a_number():
    """Of four columns of stride 14, seven places of the grid; the fourth is between the middle ones."""
    maps = random_maps(1, 6, 300, 4)
    maps[..., 2] = -1.0001 * maps[..., 1]
    vectors = torch.nn.functional.normalize(random_maps(3, 6, seed=1))
    for cosines in neighbours._cosines(maps, (525, 7), vectors):
        assert cosines.isfinite().all()


def test_sharpened_votes_are_those_of_patches_that_have_one_label_each():
    vectors = torch.nn.functional.normalize(random_maps(12, 5, seed=1))
    labels = torch.tensor([4, 0, 2] * 4)
    batch = Batch([0, 1], random_maps(2, 3, 48, 64), [(50, 70)] * 2, [(50, 64)] * 2, [])
    network = Network()
    found = banks.label_step(network, Bank(vectors, labels), 5, 0.2, sharpen=True)(batch)
    shares = patches.PatchBank(vectors, labels[:, None], torch.ones(12, 1))
    maps = enlarged_maps(network(batch.pictures), 16)
    expected = patches.labels_by_shares(batch, maps, shares, 5, 0.2, network)
    for one, other in zip(found, expected, strict=True):
        assert one.shape == (50, 64) and torch.equal(one, other) and len(one.unique()) > 1


def test_each_kind_has_the_neighbours_and_temperature_of_its_source():
    """docs/methods.md, Distance matching: those of Hummingbird for patches."""
    found = {name: (kind.noun, kind.neighbours, kind.temperature) for name, kind in KINDS.items()}
    assert found == {REGIONS: ("embeddings", 10, 0.07), PATCHES: ("patches", 30, 0.02)}


def test_a_file_says_which_kind_of_bank_it_is(bank, tmp_path):
    assert kind_of_file(bank) == REGIONS
    np.savez(tmp_path / "patches.npz", embeddings=np.zeros((1, 2)), shares=np.zeros(1))
    assert kind_of_file(tmp_path / "patches.npz") == PATCHES
    (tmp_path / "text.npz").write_text("no bank")
    for name, words in (("none.npz", "no such bank"), ("text.npz", "no bank of embeddings")):
        with pytest.raises(InputError, match=rf"{name}: {words}"):
            kind_of_file(tmp_path / name)
