"""Dense retrieval from a bank of patches, against loops over pixels, patches and neighbours."""

from __future__ import annotations

import math
import subprocess
import sys

import numpy as np
import pytest
import torch
from masksets import CHECKOUT
from torch.nn.functional import interpolate

from imagenets.classes import MODES
from imagenets.common.errors import InputError
from imagenets.learning.distance_matching import neighbours, patches
from imagenets.learning.distance_matching.kinds import kind_of_file
from imagenets.learning.engine.inference import Batch


def random_mask(seed, size, labels=(0, 1, 2, 5, 1000)):
    """Blocks of labels, so that patches are pure, mixed and ignored."""
    rng = np.random.default_rng(seed)
    blocks = rng.choice(labels, (5, 6))
    return np.kron(blocks, np.ones((13, 11), int))[: size[0], : size[1]].astype(np.uint16)


def slow_shares(mask, size, grid):
    """Shares of labels by place; a place that is mostly ignored is absent."""
    height, width = mask.shape
    found = {}
    for i in range(grid[0]):
        for j in range(grid[1]):
            pixels = [
                int(mask[math.floor(y * height / size[0]), math.floor(x * width / size[1])])
                for y in range(size[0])
                for x in range(size[1])
                if i * size[0] <= y * grid[0] < (i + 1) * size[0]
                and j * size[1] <= x * grid[1] < (j + 1) * size[1]
            ]
            counted = [label for label in pixels if label != 1000]
            if len(counted) >= len(pixels) / 2:
                found[i * grid[1] + j] = {
                    label: counted.count(label) / len(counted) for label in sorted(set(counted))
                }
    return found


def as_dictionary(found):
    rows, end = {}, 0
    for place, count in zip(found.places.tolist(), found.counts, strict=True):
        start, end = end, end + count
        rows[place] = dict(zip(found.labels[start:end].tolist(), found.shares[start:end], strict=True))
    return rows


# The picture is whole patches, as a ViT's is; the places divide it evenly, as a convolutional network's.
@pytest.mark.parametrize(("size", "grid"), [((48, 64), (6, 8)), ((50, 70), (6, 8)), ((46, 60), (6, 8))])
def test_shares_of_labels_are_those_of_each_places_pixels(size, grid):
    mask = random_mask(0, (60, 61))
    found = as_dictionary(patches.label_patches(mask, size, grid))
    wanted = slow_shares(mask, size, grid)
    assert found.keys() == wanted.keys()
    assert 0 < len(wanted) < grid[0] * grid[1]
    assert max(map(len, wanted.values())) > 1
    for place, shares in wanted.items():
        assert found[place] == pytest.approx(shares, abs=1e-6)


def test_rare_labels_and_pure_patches_are_chosen_first():
    found = patches.label_patches(random_mask(1, (60, 61)), (48, 64), (6, 8))
    by_place = as_dictionary(found)
    number_with = {label: sum(label in shares for shares in by_place.values()) for label in (0, 1, 2, 5)}
    for seed in range(5):
        u = np.random.default_rng(seed).random(len(by_place))
        score = {
            place: sum(number_with[label] for label in shares) * draw
            for (place, shares), draw in zip(by_place.items(), u, strict=True)
        }
        wanted = sorted(sorted(score, key=score.get)[:9])
        chosen = as_dictionary(patches.choose_patches(found, 9, np.random.default_rng(seed)))
        assert chosen == {place: by_place[place] for place in wanted}
    everything = patches.choose_patches(found, 1000, np.random.default_rng(7))
    assert as_dictionary(everything) == by_place


class StrideEight:
    """Stands for a backbone: a map of its own for each picture of a batch."""

    stride = 8

    def __init__(self, maps):
        self.maps = maps

    def __call__(self, pictures):
        return self.maps


def test_a_picture_brings_its_chosen_patches_as_unit_vectors():
    torch.manual_seed(0)
    maps, masks = torch.randn(2, 5, 6, 8), [random_mask(seed, (60, 61)) for seed in (4, 5)]
    batch = Batch([3, 9], torch.zeros(2, 3, 48, 64), [(60, 61)] * 2, [(60, 61), (55, 40)], masks)
    rows = patches.bank_step(StrideEight(maps), per_picture=7, seed=2)(batch)
    shown = [masks[0], masks[1][:55, :40]]
    for index, of_one, mask, row in zip(batch.indices, maps, shown, rows, strict=True):
        found = patches.label_patches(mask, (48, 64), (6, 8))
        wanted = patches.choose_patches(found, 7, np.random.default_rng((2, index)))
        assert len(row["embeddings"]) == 7
        for place, vector in zip(wanted.places, row["embeddings"], strict=True):
            feature = of_one[:, place // 8, place % 8]
            assert torch.allclose(vector, feature / feature.norm(), atol=1e-6)
        for name in ("counts", "labels", "shares"):
            assert np.array_equal(row[name].numpy(), getattr(wanted, name))


def random_bank(rows=400, channels=8, columns=3, seed=0):
    torch.manual_seed(seed)
    shares = torch.rand(rows, columns)
    shares[torch.rand(rows, columns) < 0.5] = 0
    shares[:, 0] += 0.1
    return patches.PatchBank(
        torch.nn.functional.normalize(torch.randn(rows, channels)),
        torch.randint(0, 7, (rows, columns)) * torch.tensor([1, 0, 0]) + torch.tensor([0, 7, 9]),
        shares / shares.sum(1, keepdim=True),
    )


def slow_votes(vector, bank, k, temperature):
    cosines = [float(vector @ row / vector.norm()) for row in bank.embeddings]
    nearest = sorted(range(len(cosines)), key=lambda row: (-cosines[row], row))[:k]
    weights = [math.exp(cosines[row] / temperature) for row in nearest]
    votes = {}
    for row, weight in zip(nearest, weights, strict=True):
        for label, share in zip(bank.labels[row].tolist(), bank.shares[row].tolist(), strict=True):
            if share:
                votes[label] = votes.get(label, 0) + weight / sum(weights) * share
    return votes


def test_votes_are_the_neighbours_shares_by_their_softmax():
    bank = random_bank()
    vectors = torch.randn(12, 8) * 5
    labels, shares = patches.vote(vectors, bank, 30, 0.1)
    assert labels.tolist() == sorted(set(labels.tolist()))
    for vector, row in zip(vectors, shares, strict=True):
        found = {int(label): float(share) for label, share in zip(labels, row, strict=True) if share}
        assert found == pytest.approx(slow_votes(vector, bank, 30, 0.1), abs=1e-5)
        assert float(row.sum()) == pytest.approx(1, abs=1e-5)


def test_pixels_have_the_label_of_the_largest_enlarged_share():
    bank = random_bank()
    maps = torch.randn(2, 8, 3, 4)
    batch = Batch([0, 1], torch.zeros(2, 3, 48, 64), [(50, 75), (33, 40)], [(50, 71), (33, 40)], [])
    for found, of_one, size in zip(
        patches.label_step(StrideEight(maps), bank, 10, 0.1)(batch), maps, batch.shown, strict=True
    ):
        votes = torch.zeros(1, 10, 3, 4)
        for i in range(3):
            for j in range(4):
                for label, share in slow_votes(of_one[:, i, j], bank, 10, 0.1).items():
                    votes[0, label, i, j] = share
        wanted = interpolate(votes, size, mode="bilinear")[0].argmax(0)
        assert found.shape == size
        assert (found == wanted).float().mean() > 0.999  # equal votes may be rounded apart


@pytest.mark.parametrize("rows", [25, 320, 700, 5000])
def test_neighbours_are_found_by_groups_and_in_blocks_as_by_sorting(rows, monkeypatch):
    torch.manual_seed(rows)
    bank = torch.nn.functional.normalize(torch.randn(rows, 3).mul(4).round() + 0.01)  # many equal rows
    vectors = torch.cat((torch.randn(20, 3), bank[:5] * 3))
    monkeypatch.setitem(neighbours._SCORE_BYTES, "cpu", 4 * len(vectors) * 1300)
    units = vectors / vectors.norm(dim=1, keepdim=True)
    cosines = units @ bank.T
    values, places = neighbours.nearest(vectors, bank, 10)
    ordered = cosines.sort(dim=1, descending=True, stable=True)
    assert torch.allclose(values.sort(1, descending=True).values, ordered.values[:, :10], atol=1e-6)
    found = cosines.gather(1, places)
    assert torch.allclose(found, values, atol=1e-6)
    assert all(len(set(row.tolist())) == 10 for row in places)


def test_of_equal_neighbours_the_first_of_the_bank_count_among_many():
    bank = torch.zeros(4000, 2)
    bank[:, 0] = 1
    _, places = neighbours.nearest(torch.tensor([[2.0, 0.0]]), bank, 10)
    assert sorted(places[0].tolist()) == list(range(10))


def test_a_bank_is_read_as_it_was_written_and_others_are_refused(tmp_path):
    mask = random_mask(3, (60, 61))
    stored = []
    for number in range(2):
        found = patches.label_patches(np.where(mask == 5, 60 + number, mask), (48, 64), (6, 8))
        path = tmp_path / f"{number}.npz"
        vectors = np.random.default_rng(number).random((len(found.places), 4), np.float32)
        np.savez(path, embeddings=vectors, counts=found.counts, labels=found.labels, shares=found.shares)
        stored.append((path, vectors, as_dictionary(found)))
    bank = tmp_path / "bank.npz"
    number = patches.join_patches([path for path, *_ in stored], bank)
    read = patches.load_patches(bank, 4, 10)
    assert number == len(read.embeddings) == sum(len(vectors) for _, vectors, _ in stored)
    assert torch.equal(
        read.embeddings, torch.from_numpy(np.concatenate([vectors for _, vectors, _ in stored]))
    )
    wanted = [shares for *_, of_picture in stored for shares in of_picture.values()]
    for labels, shares, of_patch in zip(read.labels.tolist(), read.shares.tolist(), wanted, strict=True):
        pairs = {label: share for label, share in zip(labels, shares, strict=True) if share}
        assert pairs == pytest.approx(of_patch, abs=1e-6)
    with pytest.raises(InputError, match="this backbone has 5"):
        patches.load_patches(bank, 5, 10)
    with pytest.raises(InputError, match="is no class of mode 50"):
        patches.load_patches(bank, 4, 10, MODES["50"])
    with pytest.raises(InputError, match="fewer than the 3000 neighbours"):
        patches.load_patches(bank, 4, 3000)
    assert kind_of_file(bank) == "patches"
    with pytest.raises(InputError, match="not a bank of patches"):
        (tmp_path / "other.npz").write_bytes(b"nothing")
        patches.load_patches(tmp_path / "other.npz", 4, 1)


def test_of_equal_scores_within_the_best_groups_the_first_count():
    width = 100  # columns j, j + 100, … are a group
    scores = torch.zeros(1, neighbours._GROUP * width)
    scores[0, :width] = 1 - torch.arange(width) / 1000
    for row, group in enumerate((9, 2, 8, 1, 7, 6), start=3):
        scores[0, row * width + group] = 0.9945  # six of them, for four places left behind 1, 0.999, …, 0.995
    values, places = neighbours._largest_by_groups(scores, 10)
    wanted = scores.sort(dim=1, descending=True, stable=True)
    assert torch.equal(values, wanted.values[:, :10])
    assert sorted(places[0].tolist()) == sorted(wanted.indices[0, :10].tolist())


def test_the_bank_of_mode_919_is_searched_beside_itself_in_little_memory():
    """0.92 million patches, here of 32 channels, 118 MB: a search holds a block of products and no copy."""
    code = """
import resource, torch
from imagenets.learning.distance_matching.patches import PatchBank, vote
torch.set_num_threads(1)
rows = 920_000
embeddings = torch.randn(10_000, 32).repeat(92, 1)
embeddings[:, 0] += torch.linspace(0, 1, rows)
bank = PatchBank(embeddings, torch.zeros(rows, 2, dtype=torch.int64), torch.full((rows, 2), 0.5))
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
vote(torch.randn(48, 32), bank, 30, 0.02)
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024)
"""
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=CHECKOUT, capture_output=True, text=True, check=True
    )
    assert float(done.stdout) < 100  # MB; all products would be 177
