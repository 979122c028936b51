"""Sinkhorn, grids, losses, heads and attention of PASS against slow references written from docs/pass.md."""

from __future__ import annotations

import math
import threading
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torchvision
from torch import nn

from imagenets.common.errors import InputError
from imagenets.learning.networks.backbones import make_backbone
from imagenets.learning.pass_method import losses
from imagenets.learning.pass_method.attention import (
    AttentionNetwork,
    PixelAttention,
    attended_features,
    attention_and_vectors,
    attention_at,
    nearest_centroids,
)
from imagenets.learning.pass_method.crops import shared_grids
from imagenets.learning.pass_method.heads import (
    HeadSizes,
    PassNetwork,
    library_state,
    load_library_state,
    normalize_prototypes,
    sample,
    start_convolutions,
)
from imagenets.learning.pass_method.sinkhorn import FeatureQueue, assignments_of_crop, balanced_assignments

SIZES = HeadSizes(hidden=24, prototypes=11)


# --- assignments


def slow_assignments(scores, batch):
    """Assignments of the last ``batch`` rows by loops over single numbers."""
    rows, prototypes = scores.shape
    q = [[math.exp(scores[b, k] / 0.05) for b in range(rows)] for k in range(prototypes)]
    total = sum(map(sum, q))
    q = [[value / total for value in row] for row in q]
    for _ in range(3):
        for row in q:
            total = sum(row)
            row[:] = [value / total / prototypes for value in row]
        for b in range(rows):
            total = sum(row[b] for row in q)
            for row in q:
                row[b] = row[b] / total / rows
    return np.array(q).T[-batch:] * rows


@pytest.mark.parametrize(("rows", "prototypes"), [(1, 1), (3, 7), (12, 5)])
def test_codes(rows, prototypes):
    scores = torch.rand(rows, prototypes, dtype=torch.float64, generator=torch.manual_seed(rows)) * 2 - 1
    assignments = balanced_assignments(scores)
    np.testing.assert_allclose(assignments, slow_assignments(scores.numpy(), rows), rtol=1e-10)
    np.testing.assert_allclose(assignments.sum(1), 1, rtol=1e-12)


def test_codes_of_half_precision_do_not_overflow():
    assignments = balanced_assignments(torch.eye(4, dtype=torch.float16))
    assert assignments.dtype == torch.float32
    np.testing.assert_allclose(assignments, np.eye(4), atol=1e-6)


def test_codes_with_a_queue_that_fills():
    """A queue of two batches: off while it has an empty place, then in front of the batch's own rows."""
    generator = torch.manual_seed(0)
    queue = FeatureQueue(length=9, batch=4, dimensions=3)  # rounded down to 8
    kept = [np.zeros((8, 3)), np.zeros((8, 3))]
    for step in range(4):
        prototypes = nn.functional.normalize(torch.randn(5, 3, generator=generator), dim=1)
        for crop in (0, 1):
            features = nn.functional.normalize(torch.randn(4, 3, generator=generator), dim=1)
            scores = features @ prototypes.T
            used = kept[crop] @ prototypes.numpy().T if kept[crop][-1].any() else np.zeros((0, 5))
            assert queue.filled(crop) == (step >= 2)
            assignments = assignments_of_crop(scores, crop, queue, prototypes)
            queue.push(crop, features)
            np.testing.assert_allclose(
                assignments, slow_assignments(np.concatenate((used, scores.numpy())), 4), rtol=2e-4, atol=1e-7
            )
            kept[crop] = np.concatenate((features.numpy(), kept[crop][:4]))
            np.testing.assert_array_equal(queue.features[crop], kept[crop])


def test_a_queue_of_less_than_a_batch_is_none():
    queue = FeatureQueue(length=3, batch=4, dimensions=2)
    queue.push(0, torch.ones(4, 2))
    assert not queue.filled(0)
    assert queue.scores(0, torch.ones(5, 2)).shape == (0, 5)
    queue.restore(queue.gathered())


def as_two_processes(monkeypatch, work):
    """What ``work(rank)`` returns in each of two processes: here two threads that wait for each other."""
    meeting, held, rank = threading.Barrier(2, timeout=20), [None, None], threading.local()

    def exchanged(values):
        held[rank.own] = values.clone()
        meeting.wait()
        both = list(held)
        meeting.wait()
        return both

    def all_gather(parts, own):
        for part, value in zip(parts, exchanged(own), strict=True):
            part.copy_(value)

    def begun(own):
        rank.own = own
        return work(own)

    distributed = {
        "is_available": lambda: True,
        "is_initialized": lambda: True,
        "get_world_size": lambda: 2,
        "get_rank": lambda: rank.own,
        "all_reduce": lambda values: values.copy_(sum(exchanged(values))),
        "all_gather": all_gather,
    }
    with monkeypatch.context() as patch, ThreadPoolExecutor(2) as pool:
        for name, stand_in in distributed.items():
            patch.setattr(torch.distributed, name, stand_in)
        return list(pool.map(begun, (0, 1)))


def test_assignments_of_two_processes_are_balanced_over_the_rows_of_both(monkeypatch):
    scores = torch.rand(8, 5, dtype=torch.float64, generator=torch.manual_seed(1)) * 2 - 1
    found = as_two_processes(monkeypatch, lambda rank: balanced_assignments(scores.chunk(2)[rank]))
    np.testing.assert_allclose(torch.cat(found), slow_assignments(scores.numpy(), 8), rtol=1e-10)


def test_a_queue_of_two_processes_is_saved_as_that_of_one_and_taken_back(monkeypatch):
    """Two batches of four, of which each process sees two rows; the first crop's are in the queue."""
    features = unit(torch.randn(2, 4, 3, generator=torch.manual_seed(2)))
    one = FeatureQueue(length=9, batch=4, dimensions=3)
    for batch in features:
        one.push(0, batch)
    expected = one.gathered()

    def work(rank):
        queue = FeatureQueue(length=9, batch=4, dimensions=3)
        for batch in features:
            queue.push(0, batch.chunk(2)[rank])
        again = FeatureQueue(length=9, batch=4, dimensions=3)
        gathered = queue.gathered()
        again.restore(gathered)
        return queue, gathered, again

    for queue, gathered, again in as_two_processes(monkeypatch, work):
        assert torch.equal(gathered, expected)
        assert torch.equal(again.features, queue.features)
        assert queue.rows == [4, 0]
        assert again.rows == queue.rows
        assert again.filled(0) and not again.filled(1)


# --- grids


def slow_grids(first, second):
    """Both grids, point for point."""
    left, right = max(first[0], second[0]), min(first[0] + first[2], second[0] + second[2])
    top, bottom = max(first[1], second[1]), min(first[1] + first[3], second[1] + second[3])
    grids = np.full((2, 7, 7, 2), -2.0)
    if right <= left or bottom <= top:
        return grids
    for grid, crop in zip(grids, (first, second), strict=True):
        for i in range(7):
            for j in range(7):
                x = (left + (right - left) / 6 * j - crop[0]) / crop[2]
                y = (top + (bottom - top) / 6 * i - crop[1]) / crop[3]
                grid[i, j] = 2 * (1 - x if crop[4] else x) - 1, 2 * y - 1
    return grids


def test_grids():
    rng = np.random.default_rng(0)
    corners = rng.integers(0, 60, (300, 2, 2))
    rectangles = np.concatenate(
        (corners, rng.integers(1, 60, (300, 2, 2)), rng.integers(0, 2, (300, 2, 1))), 2
    )
    rectangles[0] = [[0, 0, 10, 10, 0], [10, 0, 10, 10, 1]]  # they touch
    grids = shared_grids(*(torch.tensor(rectangles[:, i], dtype=torch.float64) for i in (0, 1)))
    expected = np.array([slow_grids(*pair) for pair in rectangles])
    apart = (expected == -2).all((1, 2, 3, 4))
    assert 20 < apart.sum() < 280
    for i in (0, 1):
        np.testing.assert_allclose(grids[i], expected[:, i], atol=1e-12)


def test_grids_show_the_same_place():
    """What is sampled from two crops of one picture, one of them flipped, is the same."""
    ramp = torch.stack(torch.meshgrid(torch.arange(64.0), torch.arange(64.0), indexing="ij"))[None]
    crops_of = torch.tensor([[8, 4, 40, 48, 0], [16, 12, 44, 40, 1]], dtype=torch.float32)
    grids = shared_grids(crops_of[:1], crops_of[1:])
    sampled = []
    for (left, top, width, height, flipped), grid in zip(crops_of.int().tolist(), grids, strict=True):
        crop = ramp[..., top : top + height, left : left + width]
        inner = grid[:, 1:-1, 1:-1]  # the border mixes with the zeros outside
        sampled.append(sample(crop.flip(3) if flipped else crop, inner))
    torch.testing.assert_close(*sampled, atol=1e-3, rtol=0)


# --- losses


def slow_cross_entropy(assignment, scores):
    total = 0.0
    for q, row in zip(assignment.tolist(), scores.tolist(), strict=True):
        highest = max(row)
        log_sum = highest / 0.1 + math.log(sum(math.exp((s - highest) / 0.1) for s in row))
        total -= sum(share * (s / 0.1 - log_sum) for share, s in zip(q, row, strict=True))
    return total / len(assignment)


@pytest.fixture
def views():
    generator = torch.manual_seed(3)
    scores = [torch.rand(4, 6, dtype=torch.float64, generator=generator).requires_grad_() for _ in range(5)]
    assignments = [torch.rand(4, 6, dtype=torch.float64, generator=generator).softmax(1) for _ in range(2)]
    return assignments, scores


def test_image_loss_and_its_gradient(views):
    assignments, scores = views
    expected = (
        sum(slow_cross_entropy(assignments[i], scores[v]) / 4 for i in (0, 1) for v in range(5) if v != i) / 2
    )
    loss = losses.image_to_image(assignments, scores)
    assert loss.item() == pytest.approx(expected, rel=1e-12)
    loss.backward()
    # Softmax minus assignment, over temperature, batch, the four other views and two assignments.
    for v, view in enumerate(scores):
        against = [assignment for i, assignment in enumerate(assignments) if i != v]
        expected = sum((view / 0.1).softmax(1) - assignment for assignment in against) / 0.1 / 4 / 4 / 2
        torch.testing.assert_close(view.grad, expected.detach(), rtol=1e-10, atol=1e-14)


def test_shallow_loss_takes_the_code_of_the_other_crop(views):
    assignments, scores = views
    loss = losses.deep_to_shallow(assignments, scores[:2])
    expected = (
        slow_cross_entropy(assignments[0], scores[1]) + slow_cross_entropy(assignments[1], scores[0])
    ) / 2
    assert loss.item() == pytest.approx(expected, rel=1e-12)


def test_pixel_loss_and_its_gradient():
    generator = torch.manual_seed(0)
    prediction, projection = (
        torch.randn(6, 5, 2, 2, dtype=torch.float64, generator=generator).requires_grad_() for _ in range(2)
    )
    with torch.no_grad():
        projection[[1, 4]] = 0  # a pair without overlap
    total = 0.0
    for b in range(3):
        for place in np.ndindex(2, 2):
            for one, other in ((b, b + 3), (b + 3, b)):
                p, z = prediction[(one, slice(None), *place)], projection[(other, slice(None), *place)]
                p, z = p.tolist(), z.tolist()
                norms = max(math.hypot(*p), 1e-8) * max(math.hypot(*z), 1e-8)
                total += sum(x * y for x, y in zip(p, z, strict=True)) / norms
    loss = losses.pixel_to_pixel(prediction, projection)
    assert loss.item() == pytest.approx(-total / 12 / 2, rel=1e-12)
    loss.backward()
    assert projection.grad is None
    assert (prediction.grad[[1, 4]] == 0).all()
    assert (prediction.grad[[0, 2, 3, 5]] != 0).all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_losses_of_half_precision_are_computed_in_float32(views, dtype):
    assignments = [assignment.float() for assignment in views[0]]
    scores = [view.detach().to(dtype) for view in views[1]]
    maps = torch.randn(2, 6, 5, 2, 2, generator=torch.manual_seed(0)).to(dtype)
    whole = [view.float() for view in scores]
    for found, expected in (
        (losses.image_to_image(assignments, scores), losses.image_to_image(assignments, whole)),
        (losses.deep_to_shallow(assignments, scores[:2]), losses.deep_to_shallow(assignments, whole[:2])),
        (losses.pixel_to_pixel(*maps), losses.pixel_to_pixel(*maps.float())),
    ):
        assert found.dtype == torch.float32
        assert torch.equal(found, expected)


def test_total_loss():
    terms = [torch.tensor(float(value)) for value in (3, 5, -0.5)]
    assert losses.pass_loss(terms[0], [terms[1]], terms[2], (1, 1)).item() == (3 + 5) / 2 - 0.5
    assert losses.pass_loss(terms[0], [terms[1]], terms[2], (3, 1)).item() == (9 + 5) / 4 - 0.5
    with pytest.raises(ValueError, match="3 weights for 2 losses"):
        losses.pass_loss(terms[0], [terms[1]], terms[2], (1, 1, 1))


# --- the network


@pytest.fixture(scope="module")
def network():
    torch.manual_seed(0)
    return PassNetwork(make_backbone("resnet18"), SIZES).train()


def mlp(head, x, prefix, layers):
    """Apply a head layer by layer from its tensors; batch norms with the batch's own statistics."""
    for index, kind in layers:
        name = f"{prefix}.{index}"
        if kind == "norm":
            axes = [0] if x.ndim == 2 else [0, 2, 3]
            shape = (1, -1) if x.ndim == 2 else (1, -1, 1, 1)
            mean = x.mean(axes, keepdim=True)
            x = (x - mean) / torch.sqrt(((x - mean) ** 2).mean(axes, keepdim=True) + 1e-5)
            if f"{name}.weight" in head:
                x = x * head[f"{name}.weight"].view(shape) + head[f"{name}.bias"].view(shape)
        else:
            weight = head[f"{name}.weight"].flatten(1)
            x = torch.tensordot(x, weight.T, dims=([1], [0])) if x.ndim == 4 else x @ weight.T
            x = x.permute(0, 3, 1, 2) if x.ndim == 4 else x
            if f"{name}.bias" in head:
                x = x + head[f"{name}.bias"].view((1, -1) if x.ndim == 2 else (1, -1, 1, 1))
        if (index, kind) in ((1, "norm"), (4, "norm")) and index != layers[-1][0]:
            x = x.clamp(min=0)
    return x


IMAGE = [(0, "linear"), (1, "norm"), (3, "linear"), (4, "norm")]
PIXEL = [(0, "linear"), (1, "norm"), (3, "linear"), (4, "norm"), (6, "linear"), (7, "norm")]
PREDICTOR = [(0, "linear"), (1, "norm"), (3, "linear")]


def unit(x):
    return x / x.norm(dim=1, keepdim=True)


def test_heads_against_their_definition(network):
    """All outputs, from the maps of the backbone and the tensors as the checkpoint names them."""
    generator = torch.manual_seed(1)
    large, small = (
        torch.randn(4, 3, 64, 64, generator=generator),
        torch.randn(6, 3, 32, 32, generator=generator),
    )
    grids = torch.rand(4, 7, 7, 2, generator=generator) * 2 - 1
    normalize_prototypes(network.prototypes)
    outputs = network(large, [small], grids)
    third, fourth = network.backbone.maps(large)
    tensors = library_state(network)
    pooled = torch.cat((fourth.mean((2, 3)), network.backbone(small).mean((2, 3))))
    features = unit(mlp(tensors, pooled, "projection_head", IMAGE))
    torch.testing.assert_close(outputs.features, features[:4], atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(outputs.pooled, unit(fourth.mean((2, 3))))
    assert not outputs.features.requires_grad and not outputs.pooled.requires_grad
    scores = features @ tensors["prototypes.weight"].T
    torch.testing.assert_close(outputs.scores, scores, atol=1e-5, rtol=1e-4)
    assert outputs.scores.abs().max() <= 1 + 1e-5
    pixels = mlp(tensors, third, "projection_head_pixel_shallow.projection_head_pixel3", PIXEL)
    shallow = unit(
        mlp(tensors, pixels.mean((2, 3)), "projection_head_shallow.projection_head_shallow3", IMAGE)
    )
    torch.testing.assert_close(
        outputs.shallow, shallow @ tensors["prototypes.weight"].T, atol=1e-4, rtol=1e-3
    )
    projection = sample(mlp(tensors, fourth, "projection_head_pixel", PIXEL), grids)
    torch.testing.assert_close(outputs.projection, projection, atol=1e-4, rtol=1e-3)
    prediction = mlp(tensors, projection, "predictor_head_pixel", PREDICTOR)
    torch.testing.assert_close(outputs.prediction, prediction, atol=1e-4, rtol=1e-3)


def test_which_parameters_get_a_gradient(network):
    """Each loss alone: the shallow path trains no prototypes and nothing behind layer3, and so on."""
    generator = torch.manual_seed(1)
    large = torch.randn(4, 3, 64, 64, generator=generator)
    grids = torch.rand(4, 7, 7, 2, generator=generator) * 2 - 1

    def trained(loss):
        network.zero_grad(set_to_none=True)
        loss(network(large, [], grids)).backward()
        got = {
            name.removeprefix("backbone.network.")
            for name, p in network.named_parameters()
            if p.grad is not None
        }
        return {name.partition(".")[0] for name in got}

    stem = {"conv1", "bn1", "layer1", "layer2", "layer3"}
    image = trained(lambda outputs: outputs.scores.square().sum())
    assert image == stem | {"layer4", "projection_head", "prototypes"}
    shallow = trained(lambda outputs: outputs.shallow.square().sum())
    assert shallow == stem | {"projection_head_shallow", "projection_head_pixel_shallow"}
    pixel = trained(lambda outputs: losses.pixel_to_pixel(outputs.prediction, outputs.projection))
    assert pixel == stem | {"layer4", "projection_head_pixel", "predictor_head_pixel"}
    network.zero_grad(set_to_none=True)


def test_names_of_the_checkpoint(network):
    """Of every tensor: last norms are plain, and no convolution but the predictor's last has a bias."""
    norm = {"running_mean", "running_var", "num_batches_tracked"}
    linear, affine = {"weight", "bias"}, norm | {"weight", "bias"}
    image = {0: linear, 1: affine, 3: linear, 4: norm}
    pixel = {0: {"weight"}, 1: affine, 3: {"weight"}, 4: affine, 6: {"weight"}, 7: norm}
    heads = {
        "projection_head": image,
        "projection_head_shallow.projection_head_shallow3": image,
        "projection_head_pixel_shallow.projection_head_pixel3": pixel,
        "projection_head_pixel": pixel,
        "predictor_head_pixel": {0: {"weight"}, 1: affine, 3: linear},
    }
    expected = {f"{head}.{i}.{name}" for head, parts in heads.items() for i in parts for name in parts[i]}
    resnet = torchvision.models.resnet18().state_dict()
    backbone = {name for name in resnet if not name.startswith("fc.")}
    assert library_state(network).keys() == expected | {"prototypes.weight"} | backbone


def test_the_state_by_the_librarys_names_is_taken_back(network):
    again = PassNetwork(make_backbone("resnet18"), SIZES)
    load_library_state(again, library_state(network))
    assert all(torch.equal(value, network.state_dict()[name]) for name, value in again.state_dict().items())


def test_outside_of_a_map_there_is_nothing():
    grids = torch.tensor([[[[0.0, 0.0], [-2.0, -2.0]]]])
    assert sample(torch.ones(1, 3, 4, 4), grids).flatten(1).tolist() == [[1, 0] * 3]


def test_prototypes_become_unit_vectors():
    prototypes = nn.Linear(2, 3, bias=False)
    with torch.no_grad():
        prototypes.weight.copy_(torch.tensor([[3.0, 4], [0, 2], [-1, 0]]))
    normalize_prototypes(prototypes)
    torch.testing.assert_close(prototypes.weight.data, torch.tensor([[0.6, 0.8], [0, 1], [-1, 0]]))


def test_statistics_of_batch_norms(network):
    """The backbone sees large and small crops apart (two updates a step), the image head all together."""
    large, small = torch.randn(4, 3, 64, 64), torch.randn(6, 3, 32, 32)
    before = [int(m.num_batches_tracked) for m in (network.backbone.network.bn1, network.projection_head[1])]
    network(large, [small], torch.zeros(4, 7, 7, 2))
    after = [int(m.num_batches_tracked) for m in (network.backbone.network.bn1, network.projection_head[1])]
    assert [b - a for a, b in zip(before, after, strict=True)] == [2, 1]


def test_convolutions_start_by_their_fan_out(network):
    """Kaiming: a normal distribution of variance 2 / (outputs · kernel); all else as PyTorch starts it."""
    torch.manual_seed(0)
    module = nn.Sequential(nn.Conv2d(64, 32, 3), nn.Linear(9, 9))
    before = {name: value.clone() for name, value in module.state_dict().items()}
    start_convolutions(module)
    assert module[0].weight.std().item() == pytest.approx(math.sqrt(2 / (32 * 9)), rel=0.03)
    same = {name for name, value in module.state_dict().items() if torch.equal(value, before[name])}
    assert same == {"0.bias", "1.weight", "1.bias"}
    pixel = network.projection_head_pixel
    attention = PixelAttention(64).atten
    for convolution, outputs in ((pixel[0], 24), (pixel[6], 128), (attention[0], 64), (attention[3], 64)):
        assert convolution.weight.std().item() == pytest.approx(math.sqrt(2 / outputs), rel=0.05)


def test_a_shallow_stage_of_any_width():
    """layer3 is half as wide as layer4 in the published networks alone."""
    network = PassNetwork(make_backbone("timm/test_resnet"), SIZES).train()
    outputs = network(torch.randn(4, 3, 64, 64), [], torch.zeros(4, 7, 7, 2))
    assert outputs.shallow.shape == outputs.scores.shape
    third, fourth = network.backbone.maps(torch.zeros(1, 3, 64, 64))
    assert third.shape[1] != fourth.shape[1] // 2


def test_a_backbone_without_stages_is_refused():
    backbone = SimpleNamespace(network=nn.Linear(1, 1), name="vit_tiny", channels=8, is_resnet=False)
    with pytest.raises(InputError, match="backbone vit_tiny: PASS needs"):
        PassNetwork(backbone, SIZES)


# --- attention


@pytest.fixture(scope="module")
def attention_network():
    torch.manual_seed(2)
    network = AttentionNetwork(make_backbone("resnet18"), SIZES).train()
    nn.init.normal_(network.fbg.threshold)
    return network


def test_attention_step_against_its_definition(attention_network):
    crops_of = torch.randn(4, 3, 64, 64, generator=torch.manual_seed(1))
    outputs = attention_network(crops_of)
    maps = attention_network.backbone(crops_of)
    x = nn.functional.interpolate(maps, scale_factor=4, mode="bilinear", align_corners=False)
    vectors = unit(x)
    tensors = library_state(attention_network)
    logits = mlp(tensors, vectors, "fbg.atten", IMAGE)
    attention = 1 / (1 + torch.exp(-(logits + tensors["fbg.threshold"])))
    pooled = (vectors * attention).mean((2, 3))
    features = unit(mlp(tensors, pooled, "projection_head", IMAGE))
    torch.testing.assert_close(outputs.features, features, atol=1e-4, rtol=1e-3)
    torch.testing.assert_close(outputs.pooled, unit(pooled), atol=1e-4, rtol=1e-3)
    assert not outputs.features.requires_grad and not outputs.pooled.requires_grad
    torch.testing.assert_close(
        outputs.scores, features @ tensors["prototypes.weight"].T, atol=1e-4, rtol=1e-3
    )


def test_attention_trains_itself_and_the_prototypes_alone(attention_network):
    drifting = attention_network.backbone.network.bn1.running_mean.clone()
    attention_network(torch.randn(4, 3, 64, 64)).scores.square().sum().backward()
    got = {name for name, p in attention_network.named_parameters() if p.grad is not None}
    assert {name.partition(".")[0] for name in got} == {"fbg", "prototypes"}
    assert "fbg.threshold" in got
    # The frozen batch norms see the batch, and their running statistics move.
    assert not torch.equal(drifting, attention_network.backbone.network.bn1.running_mean)


def test_features_for_clustering_are_not_of_unit_length_before_they_are_pooled(attention_network):
    attention_network.eval()
    maps = torch.randn(2, 512, 2, 3, generator=torch.manual_seed(0)) + 1
    with torch.no_grad():
        pooled = attended_features(maps, attention_network.fbg)
        x = nn.functional.interpolate(maps, size=(8, 12), mode="bilinear", align_corners=False)
        attention = attention_network.fbg(unit(x))
        torch.testing.assert_close(pooled, (x * attention).mean((2, 3)))
        mean, vectors = attention_and_vectors(maps, attention_network.fbg)
        torch.testing.assert_close(vectors, unit(x))
        torch.testing.assert_close(mean, attention.mean(1))
        large = attention_at(mean[0], (50, 70))
        assert large.shape == (50, 70)
    attention_network.train()


def test_nearest_centroids():
    vectors = unit(torch.randn(2, 5, 3, 4, generator=torch.manual_seed(0)))
    centroids = torch.randn(7, 5)
    labels = nearest_centroids(vectors, centroids)
    for b, y, x in np.ndindex(2, 3, 4):
        cosines = [float(vectors[b, :, y, x] @ c / c.norm()) for c in centroids]
        assert labels[b, y, x] == 1 + int(np.argmax(cosines))
