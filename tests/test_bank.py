"""Banks of regions and of patches: what they hold, what is refused, how they vote, against plain loops."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch.nn.functional import interpolate, normalize
from torch.utils._python_dispatch import TorchDispatchMode

from imagenets.classes import MODES
from imagenets.common.errors import InputError
from imagenets.learning.distance_matching import bank as banks
from imagenets.learning.distance_matching import neighbours, patches
from imagenets.learning.distance_matching.bank import (
    KINDS,
    PATCHES,
    REGIONS,
    join_bank,
    kind_of_file,
    load_bank,
    unusable_vectors,
)
from imagenets.learning.distance_matching.neighbours import Bank, label_maps
from imagenets.learning.engine.inference import Batch
from imagenets.learning.engine.label_grid import enlarged_maps

MASK_LABELS = (0, 1, 2, 5)


def random_maps(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def random_units(*shape, seed=1):
    return normalize(random_maps(*shape, seed=seed))


def random_mask(seed=0, size=(60, 61)):
    """Blocks of labels, so that patches are pure, mixed and ignored."""
    blocks = np.random.default_rng(seed).choice([*MASK_LABELS, 1000], (5, 6))
    return np.kron(blocks, np.ones((13, 11), int))[: size[0], : size[1]].astype(np.uint16)


class Network(torch.nn.Module):
    """Stands for a backbone: the same maps whatever the pictures."""

    mean, std = (0.4, 0.5, 0.6), (0.2, 0.3, 0.4)

    def __init__(self, maps, stride):
        super().__init__()
        self.maps, self.stride = maps, stride

    def forward(self, pictures):
        return self.maps


# --- nearest neighbours


@pytest.mark.parametrize("rows", [10, 25, 160, 700, 5000])
@pytest.mark.parametrize("block", [4, 1300, 10_000])
def test_neighbours_are_those_of_sorting_of_equal_ones_the_first(rows, block, monkeypatch):
    """In blocks of so many rows. Each vector meets as many different cosines as 2, 4, 8 … numbers of 13 bits.

    Numbers and vectors are such that products are exact; the last column's are all different.
    """
    monkeypatch.setitem(neighbours._SCORE_BYTES, "cpu", 4 * 26 * block)
    draw = np.random.default_rng(rows)
    columns = [draw.integers(0, 2 ** (1 + n // 2), rows) for n in range(25)]
    bank = torch.tensor(np.stack([*columns, draw.permutation(rows)], 1) / 2**13, dtype=torch.float32)
    vectors = torch.eye(26) * torch.logspace(-6, 3, 26)[:, None]
    values, places = neighbours.nearest(vectors, bank, 10)
    wanted = bank.T.sort(dim=1, descending=True, stable=True)
    assert torch.equal(bank.T.gather(1, places), values)
    assert torch.equal(values.sort(1, descending=True).values, wanted.values[:, :10])
    assert torch.equal(places.sort(1).values, wanted.indices[:, :10].sort(1).values)


@pytest.mark.parametrize(
    ("stride", "size"), [(32, (5, 7)), (16, (9, 4)), (14, (6, 11)), (8, (13, 10)), (32, (1, 2))]
)
@pytest.mark.parametrize("rows", [1, 3, 17, 1000])
def test_cosines_in_blocks_are_those_of_the_enlarged_map(stride, size, rows, monkeypatch):
    """Where products are enlarged in place of features, and in blocks of so many rows of the grid."""
    maps, bank = random_maps(3, 19, *size), random_units(23, 19)
    grid = neighbours.grid_size(size, stride)
    monkeypatch.setattr(neighbours, "_ROWS_AT_ONCE", 8)
    monkeypatch.setitem(neighbours._SCORE_BYTES, "cpu", 4 * rows * grid[1] * len(bank))
    blocks = list(neighbours._cosines(maps, grid, bank))
    larger = normalize(interpolate(maps, size=grid, mode="bilinear"))
    expected = larger.permute(0, 2, 3, 1).flatten(0, 2) @ bank.T
    torch.testing.assert_close(torch.cat(blocks), expected, atol=1e-6, rtol=0)
    assert max(map(len, blocks)) <= rows * grid[1]


class LargestTensor(TorchDispatchMode):
    """Notes the most numbers that any tensor has that an operation makes."""

    numbers = 0

    def __torch_dispatch__(self, function, types, arguments=(), options=None):
        made = function(*arguments, **(options or {}))
        for tensor in made if isinstance(made, tuple | list) else [made]:
            if isinstance(tensor, torch.Tensor):
                self.numbers = max(self.numbers, tensor.numel())
        return made


def test_no_tensor_is_larger_than_the_block_that_is_allowed(monkeypatch):
    """Of 21.6 million cosines of pixels with regions; and of 4.8 million of places with many patches."""
    monkeypatch.setitem(neighbours._SCORE_BYTES, "cpu", 4 * 500_000)
    monkeypatch.setattr(neighbours, "_ROWS_AT_ONCE", 8)
    with LargestTensor() as largest:
        regions = Bank(random_units(900, 32), torch.arange(900) % 51)
        labels = label_maps(random_maps(2, 32, 30, 25), 32, regions, 10, 0.07)
    assert labels.shape == (2, 120, 100)
    assert 250_000 < largest.numbers <= 500_000
    many = patches.PatchBank(random_units(100_000, 8), *torch.ones(2, 100_000, 1, dtype=torch.int64))
    with LargestTensor() as largest:
        patches.vote(random_maps(48, 8), many, 30, 0.02)
    assert 250_000 < largest.numbers <= 500_000


def test_half_way_between_all_but_opposite_vectors_there_is_a_number():
    """Of four columns of stride 14, seven places of the grid; the fourth is between the middle ones."""
    maps = random_maps(1, 6, 300, 4)
    maps[..., 2] = -1.0001 * maps[..., 1]
    for cosines in neighbours._cosines(maps, (525, 7), random_units(3, 6)):
        assert cosines.isfinite().all()


# --- regions


def test_an_embedding_is_the_sum_over_a_labels_places_by_the_number_of_all():
    """Of what the picture shows of its mask."""
    maps, shown = random_maps(2, 5, 3, 4), [(30, 41), (25, 33)]
    draw = np.random.default_rng(0)
    masks = [draw.choice([0, 3, 7, 1000], (h + 2, w + 9)).astype(np.uint16) for h, w in shown]
    batch = Batch([0, 1], torch.zeros(2, 3, 48, 64), [(0, 0)] * 2, shown, masks)
    found = banks.bank_step(Network(maps, 16))(batch)
    features = interpolate(maps, size=(6, 8), mode="bilinear", align_corners=False)
    for of_image, mask, (h, w), one in zip(features, masks, shown, found, strict=True):
        part = torch.from_numpy(mask[:h, :w].astype(float))
        small = interpolate(part[None, None], size=(6, 8))[0, 0]
        assert one["labels"].tolist() == [0, 3, 7]
        for label, embedding in zip((0, 3, 7), one["embeddings"], strict=True):
            total = torch.zeros(5)
            for row, column in (small == label).nonzero().tolist():
                total += of_image[:, row, column]
            torch.testing.assert_close(embedding, total / 48)


@pytest.mark.parametrize(("stride", "grid"), [(16, (6, 8)), (8, (3, 4))])
def test_labels_are_voted_for_by_the_nearest(stride, grid):
    """Whatever the lengths of the features."""
    maps, vectors, labels = random_maps(2, 5, 3, 4), random_units(12, 5), torch.tensor([4, 0, 2] * 4)
    found = label_maps(maps, stride, Bank(vectors, labels), 5, 0.2)
    features = interpolate(maps, size=grid, mode="bilinear", align_corners=False)
    assert found.shape == (2, *grid)
    for picture, row, column in np.ndindex(2, *grid):
        vector = features[picture, :, row, column]
        cosines = (vectors @ (vector / vector.norm())).tolist()
        votes = [0.0] * 5
        for place in sorted(range(12), key=lambda place: -cosines[place])[:5]:
            votes[int(labels[place])] += math.exp(cosines[place] / 0.2)
        assert found[picture, row, column] == votes.index(max(votes))
    assert torch.equal(found, label_maps(maps * 1e-6, stride, Bank(vectors, labels), 5, 0.2))


def test_sharpened_votes_are_those_of_patches_that_have_one_label_each():
    vectors, labels = random_units(12, 5), torch.tensor([4, 0, 2] * 4)
    batch = Batch([0, 1], random_maps(2, 3, 48, 64), [(50, 70)] * 2, [(50, 64)] * 2, [])
    network = Network(random_maps(2, 5, 3, 4), 16)
    found = banks.label_step(network, Bank(vectors, labels), 5, 0.2, sharpen=True)(batch)
    shares = patches.PatchBank(vectors, labels[:, None], torch.ones(12, 1))
    expected = patches.labels_by_shares(batch, enlarged_maps(network.maps, 16), shares, 5, 0.2, network)
    for one, other in zip(found, expected, strict=True):
        assert one.shape == (50, 64) and torch.equal(one, other) and len(one.unique()) > 1


# --- patches


def slow_shares(mask, size, grid):
    """Shares of labels by place; a place that is mostly ignored is absent."""
    pixels = {}
    for y, x in np.ndindex(size):
        place = (y * grid[0] // size[0]) * grid[1] + x * grid[1] // size[1]
        label = int(mask[math.floor(y * mask.shape[0] / size[0]), math.floor(x * mask.shape[1] / size[1])])
        pixels.setdefault(place, []).append(label)
    found = {}
    for place, labels in pixels.items():
        counted = [label for label in labels if label != 1000]
        if len(counted) >= len(labels) / 2:
            found[place] = {label: counted.count(label) / len(counted) for label in counted}
    return found


def as_dictionary(found):
    ends = np.cumsum(found.counts)
    return {
        int(place): dict(zip(found.labels[end - n : end].tolist(), found.shares[end - n : end], strict=True))
        for place, n, end in zip(found.places, found.counts, ends, strict=True)
    }


# The picture is whole patches, as a ViT's is; the places divide it evenly, as a convolutional network's.
@pytest.mark.parametrize("size", [(48, 64), (50, 70), (46, 60)])
def test_shares_of_labels_are_those_of_each_places_pixels(size):
    found = as_dictionary(patches.label_patches(random_mask(), size, (6, 8)))
    wanted = slow_shares(random_mask(), size, (6, 8))
    assert found.keys() == wanted.keys()
    assert 0 < len(wanted) < 48 and max(map(len, wanted.values())) > 1
    for place, shares in wanted.items():
        assert found[place] == pytest.approx(shares, abs=1e-6)


def test_rare_labels_and_pure_patches_are_chosen_first():
    found = patches.label_patches(random_mask(1), (48, 64), (6, 8))
    by_place = as_dictionary(found)
    number_with = {label: sum(label in shares for shares in by_place.values()) for label in MASK_LABELS}
    for seed, number in [*((seed, 9) for seed in range(5)), (7, 1000)]:
        u = np.random.default_rng(seed).random(len(by_place))
        score = {
            place: sum(number_with[label] for label in shares) * draw
            for (place, shares), draw in zip(by_place.items(), u, strict=True)
        }
        wanted = sorted(sorted(score, key=score.get)[:number])
        chosen = as_dictionary(patches.choose_patches(found, number, np.random.default_rng(seed)))
        assert chosen == {place: by_place[place] for place in wanted}


def test_a_picture_brings_its_chosen_patches_as_unit_vectors():
    maps, masks = random_maps(2, 5, 6, 8), [random_mask(seed) for seed in (4, 5)]
    batch = Batch([3, 9], torch.zeros(2, 3, 48, 64), [(60, 61)] * 2, [(60, 61), (55, 40)], masks)
    rows = patches.bank_step(Network(maps, 8), per_picture=7, seed=2)(batch)
    for index, of_one, mask, row in zip((3, 9), maps, (masks[0], masks[1][:55, :40]), rows, strict=True):
        found = patches.label_patches(mask, (48, 64), (6, 8))
        wanted = patches.choose_patches(found, 7, np.random.default_rng((2, index)))
        torch.testing.assert_close(row["embeddings"], normalize(of_one.flatten(1).T[wanted.places]))
        for name in ("counts", "labels", "shares"):
            assert np.array_equal(row[name].numpy(), getattr(wanted, name))


@pytest.fixture
def patch_bank():
    """400 patches of up to three labels: one of 0..6, 7 and 9."""
    torch.manual_seed(0)
    shares = torch.rand(400, 3) * (torch.rand(400, 3) > 0.5) + torch.tensor([0.1, 0, 0])
    labels = torch.randint(0, 7, (400, 3)) * torch.tensor([1, 0, 0]) + torch.tensor([0, 7, 9])
    return patches.PatchBank(random_units(400, 8), labels, shares / shares.sum(1, keepdim=True))


def slow_votes(vector, bank, k, temperature):
    cosines = (bank.embeddings @ vector / vector.norm()).tolist()
    nearest = sorted(range(len(cosines)), key=lambda row: -cosines[row])[:k]
    weights = [math.exp(cosines[row] / temperature) for row in nearest]
    votes = dict.fromkeys(range(10), 0.0)
    for row, weight in zip(nearest, weights, strict=True):
        for label, share in zip(bank.labels[row].tolist(), bank.shares[row].tolist(), strict=True):
            votes[label] += weight / sum(weights) * share
    return votes


def test_votes_are_the_neighbours_shares_by_their_softmax(patch_bank):
    vectors = random_maps(12, 8) * 5
    labels, shares = patches.vote(vectors, patch_bank, 30, 0.1)
    assert labels.tolist() == sorted(set(labels.tolist()))
    for vector, row in zip(vectors, shares, strict=True):
        found = dict.fromkeys(range(10), 0.0) | dict(zip(labels.tolist(), row.tolist(), strict=True))
        assert found == pytest.approx(slow_votes(vector, patch_bank, 30, 0.1), abs=1e-5)


def test_pixels_have_the_label_of_the_largest_enlarged_share(patch_bank):
    maps = random_maps(2, 8, 3, 4)
    batch = Batch([0, 1], torch.zeros(2, 3, 48, 64), [(50, 75), (33, 40)], [(50, 71), (33, 40)], [])
    step = patches.label_step(Network(maps, 8), patch_bank, 10, 0.1)
    for found, of_one, size in zip(step(batch), maps, batch.shown, strict=True):
        votes = torch.zeros(1, 10, 3, 4)
        for i, j in np.ndindex(3, 4):
            votes[0, :, i, j] = torch.tensor([*slow_votes(of_one[:, i, j], patch_bank, 10, 0.1).values()])
        wanted = interpolate(votes, size, mode="bilinear")[0].argmax(0)
        assert found.shape == size
        assert (found == wanted).float().mean() > 0.999  # equal votes may be rounded apart


# --- files


@pytest.fixture
def region_file(tmp_path):
    """Three embeddings of two numbers, out of two files."""
    parts = [tmp_path / "1.npz", tmp_path / "2.npz"]
    np.savez(parts[0], embeddings=np.array([[3, 4], [0, 0]], np.float32), labels=np.array([50, 0]))
    np.savez(parts[1], embeddings=np.array([[0, 0.5]], np.float32), labels=np.array([2]))
    assert join_bank(KINDS[REGIONS], parts, tmp_path / "bank.npz") == 3
    return tmp_path / "bank.npz"


@pytest.fixture
def patch_file(tmp_path):
    """Patches of four numbers out of two files; the second's have a label 51."""
    for number in (0, 1):
        mask = random_mask(3)
        mask[mask == 5] = 50 + number
        found = patches.label_patches(mask, (48, 64), (6, 8))
        vectors = random_units(len(found.places), 4, seed=number).numpy()
        arrays = {name: getattr(found, name) for name in ("counts", "labels", "shares")}
        np.savez(tmp_path / f"{number}.npz", embeddings=vectors, **arrays)
    join_bank(KINDS[PATCHES], [tmp_path / "0.npz", tmp_path / "1.npz"], tmp_path / "patches.npz")
    return tmp_path / "patches.npz"


def test_a_bank_of_regions_holds_unit_vectors_in_their_order(region_file):
    found = load_bank(region_file, 2, 3, MODES["50"])
    torch.testing.assert_close(found.embeddings, torch.tensor([[0.6, 0.8], [0, 0], [0, 1]]))
    assert found.labels.tolist() == [50, 0, 2] and found.highest == 50


def test_a_bank_of_patches_is_read_as_it_was_written(patch_file, tmp_path):
    read = load_bank(patch_file, 4, 10, None)
    parts = [np.load(tmp_path / f"{number}.npz") for number in (0, 1)]
    assert np.array_equal(read.embeddings, np.concatenate([part["embeddings"] for part in parts]))
    counts, labels, shares = (
        np.concatenate([part[name] for part in parts]) for name in ("counts", "labels", "shares")
    )
    assert read.labels.shape == read.shares.shape == (len(counts), counts.max())
    for row, (count, end) in enumerate(zip(counts, np.cumsum(counts), strict=True)):
        assert np.array_equal(read.labels[row, :count], labels[end - count : end])
        assert np.array_equal(read.shares[row, :count], shares[end - count : end])
        assert not read.shares[row, count:].any()


@pytest.mark.parametrize(
    ("kind", "channels", "number", "mode", "words"),
    [
        (REGIONS, 3, 1, None, "2 channels, but this backbone has 3"),
        (REGIONS, 1, 1, None, "2 channels, but this backbone has 1"),
        (REGIONS, 2, 4, None, "3 embeddings, fewer than the 4 neighbours asked for"),
        (REGIONS, 2, 1, "919", None),
        (PATCHES, 5, 1, None, "4 channels, but this backbone has 5"),
        (PATCHES, 4, 3000, None, "patches, fewer than the 3000 neighbours asked for"),
        (PATCHES, 4, 1, "50", "label 51 is no class of mode 50"),
    ],
)
def test_banks_that_do_not_fit_are_refused(region_file, patch_file, kind, channels, number, mode, words):
    path = {REGIONS: region_file, PATCHES: patch_file}[kind]
    assert kind_of_file(path) == kind
    if words is None:
        load_bank(path, channels, number, MODES[mode])
        return
    with pytest.raises(InputError, match=rf"{path.name}: .*{words}"):
        load_bank(path, channels, number, mode and MODES[mode])


def test_files_that_are_no_banks_are_refused(tmp_path):
    whole = {"embeddings": np.ones((3, 2), np.float32), "labels": np.array([51, 0, 2])}
    contents = {"text": None, "flat": {"embeddings": np.ones(3)}, "short": {"labels": np.zeros(2, int)}}
    contents |= {"empty": {name: values[:0] for name, values in whole.items()}}
    for name, change in contents.items():
        path = tmp_path / f"{name}.npz"
        path.write_text("no bank")
        if change is not None:
            np.savez(path, **whole | change)
        with pytest.raises(InputError, match=rf"{name}\.npz: no bank"):
            load_bank(path, 2, 1, None)
    np.savez(tmp_path / "51.npz", **whole)
    with pytest.raises(InputError, match=r"51\.npz: label 51 is no class of mode 50"):
        load_bank(tmp_path / "51.npz", 2, 1, MODES["50"])
    with pytest.raises(InputError, match=r"none\.npz: no such bank"):
        kind_of_file(tmp_path / "none.npz")


@pytest.mark.parametrize("kind", [REGIONS, PATCHES])
def test_a_bank_of_nothing_is_refused(tmp_path, kind):
    nothing = dict.fromkeys(("labels", "counts", "shares"), np.zeros(0, np.int64))
    np.savez(tmp_path / "1.npz", embeddings=np.zeros((0, 2), np.float32), **nothing)
    with pytest.raises(InputError, match="no mask has a label but 1000"):
        join_bank(KINDS[kind], [tmp_path / "1.npz"], tmp_path / "bank.npz")
    assert not (tmp_path / "bank.npz").exists()


def test_vectors_of_a_bank_that_are_zero_or_not_finite_are_counted():
    vectors = torch.eye(5)
    vectors[1] = 0
    vectors[3, 2], vectors[4] = float("nan"), float("inf")
    assert unusable_vectors(vectors) == "of 5 embeddings 1 zero and 2 not finite"
    assert unusable_vectors(torch.eye(5)) is None


def test_each_kind_has_the_neighbours_and_temperature_of_its_source():
    """docs/methods.md, Distance matching: those of Hummingbird for patches."""
    found = {name: (kind.noun, kind.neighbours, kind.temperature) for name, kind in KINDS.items()}
    assert found == {REGIONS: ("embeddings", 10, 0.07), PATCHES: ("patches", 30, 0.02)}
