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
from torch.nn import functional

from imagenets.common.errors import InputError
from imagenets.learning.networks.backbones import make_backbone
from imagenets.learning.pass_method import losses
from imagenets.learning.pass_method.attention import AttentionNetwork, PixelAttention
from imagenets.learning.pass_method.crops import shared_grids
from imagenets.learning.pass_method.heads import (
    HeadSizes,
    PassNetwork,
    library_state,
    normalize_prototypes,
    sample,
    start_convolutions,
)
from imagenets.learning.pass_method.sinkhorn import FeatureQueue, assignments_of_views, balanced_assignments

SIZES = HeadSizes(hidden=24, prototypes=11)


def unit(x):
    return x / x.norm(dim=1, keepdim=True)


# --- assignments


def slow_assignments(scores, batch):
    """Assignments of the last ``batch`` rows, one prototype and one row after the other."""
    rows, prototypes = scores.shape
    q = np.exp(np.asarray(scores, float).T / 0.05)
    q /= q.sum()
    for _ in range(3):
        for of_prototype in q:
            of_prototype /= of_prototype.sum() * prototypes
        for of_row in q.T:
            of_row /= of_row.sum() * rows
    return q.T[-batch:] * rows


def cosines(rows, prototypes):
    return torch.rand(rows, prototypes, dtype=torch.float64, generator=torch.manual_seed(rows)) * 2 - 1


@pytest.mark.parametrize(("rows", "prototypes"), [(1, 1), (3, 7), (12, 5)])
def test_assignments(rows, prototypes):
    scores = cosines(rows, prototypes)
    np.testing.assert_allclose(balanced_assignments(scores), slow_assignments(scores, rows), rtol=1e-10)


def test_assignments_of_half_precision_do_not_overflow():
    assignments = balanced_assignments(torch.eye(4, dtype=torch.float16))
    assert assignments.dtype == torch.float32
    np.testing.assert_allclose(assignments, np.eye(4), atol=1e-6)


def test_a_queue_that_fills():
    """A queue of two batches: off while it has an empty place, then in front of the batch's own rows."""
    generator = torch.manual_seed(0)
    queue = FeatureQueue(length=9, batch=4, dimensions=3)  # rounded down to 8
    kept = torch.zeros(2, 8, 3)
    for step in range(4):
        prototypes = unit(torch.randn(5, 3, generator=generator))
        features = unit(torch.randn(8, 3, generator=generator))
        own = features.view(2, 4, 3)
        assert queue.filled(0) == queue.filled(1) == (step >= 2)
        rows = torch.cat((kept, own), 1) if step >= 2 else own
        assignments = assignments_of_views(features, own @ prototypes.T, queue, prototypes)
        for found, of_crop in zip(assignments, rows, strict=True):
            np.testing.assert_allclose(
                found, slow_assignments(of_crop @ prototypes.T, 4), rtol=2e-4, atol=1e-7
            )
        kept = torch.cat((own, kept[:, :4]), 1)
        assert torch.equal(queue.features, kept)
    scores = own @ prototypes.T
    for found, of_crop in zip(assignments_of_views(features, scores, None, prototypes), scores, strict=True):
        np.testing.assert_allclose(found, slow_assignments(of_crop, 4), rtol=2e-4, atol=1e-7)


def test_a_queue_of_less_than_a_batch_is_none():
    queue = FeatureQueue(length=3, batch=4, dimensions=2)
    queue.push(0, torch.ones(4, 2))
    assert not queue.filled(0)
    assert queue.scores(0, torch.ones(5, 2)).shape == (0, 5)
    queue.restore(queue.gathered())


def as_two_processes(monkeypatch, work):
    """What ``work(rank)`` returns in each of two processes: here two threads that wait for each other."""
    meeting, held, rank = threading.Barrier(2, timeout=20), [None, None], threading.local()

    def all_gather(parts, own):
        held[rank.own] = own.clone()
        meeting.wait()
        for part, value in zip(parts, held, strict=True):
            part.copy_(value)
        meeting.wait()

    def begun(own):
        rank.own = own
        return work(own)

    with monkeypatch.context() as patch, ThreadPoolExecutor(2) as pool:
        patch.setattr(torch.distributed, "is_initialized", lambda: True)
        patch.setattr(torch.distributed, "get_world_size", lambda: 2)
        patch.setattr(torch.distributed, "get_rank", lambda: rank.own)
        patch.setattr(torch.distributed, "all_gather", all_gather)
        return list(pool.map(begun, (0, 1)))


def test_a_queue_of_two_processes_is_saved_as_that_of_one_and_taken_back(monkeypatch):
    """Two batches of four, of which each process sees two rows; the first crop's are in the queue."""
    features = unit(torch.randn(2, 4, 3, generator=torch.manual_seed(2)).flatten(0, 1)).view(2, 4, 3)

    def filled(rows):
        queue = FeatureQueue(length=9, batch=4, dimensions=3)
        for batch in rows:
            queue.push(0, batch)
        return queue

    def work(rank):
        queue, again = filled(features[:, 2 * rank : 2 * rank + 2]), filled([])
        gathered = queue.gathered()
        again.restore(gathered)
        return queue, gathered, again

    expected = filled(features).gathered()
    for queue, gathered, again in as_two_processes(monkeypatch, work):
        assert torch.equal(gathered, expected)
        assert torch.equal(again.features, queue.features)
        assert queue.rows == again.rows == [4, 0]


# --- grids


def slow_grids(first, second):
    """Both grids (2, 7, 7, 2), place for place."""
    low = np.maximum(first[:2], second[:2])
    high = np.minimum(first[:2] + first[2:4], second[:2] + second[2:4])
    grids = np.full((2, 7, 7, 2), -2.0)
    if (high <= low).any():
        return grids
    for n, i, j in np.ndindex(2, 7, 7):
        crop = (first, second)[n]
        x, y = (low + (high - low) / 6 * (j, i) - crop[:2]) / crop[2:4]
        grids[n, i, j] = 2 * (1 - x if crop[4] else x) - 1, 2 * y - 1
    return grids


def test_grids():
    rng = np.random.default_rng(0)
    low, size, flipped = (
        rng.integers(*ends) for ends in ((0, 60, (300, 2, 2)), (1, 60, (300, 2, 2)), (0, 2, (300, 2, 1)))
    )
    rectangles = np.concatenate((low, size, flipped), 2)
    rectangles[0] = [[0, 0, 10, 10, 0], [10, 0, 10, 10, 1]]  # they touch
    grids = shared_grids(*torch.tensor(rectangles, dtype=torch.float64).unbind(1))
    expected = np.array([slow_grids(*pair) for pair in rectangles])
    assert 20 < (expected == -2).all((1, 2, 3, 4)).sum() < 280
    np.testing.assert_allclose(torch.stack(grids, 1), expected, atol=1e-12)


def test_maps_are_sampled_between_their_places_and_outside_of_them_there_is_nothing():
    """Of four places, the first's middle is at -0.75."""
    maps = torch.arange(32.0).view(1, 2, 4, 4) + 1
    grids = torch.tensor([[[[-0.75, -0.75], [0.25, -0.75], [0, 0.75], [-2, -2]]]])
    assert sample(maps, grids)[0, :, 0].tolist() == [[1, 3, 14.5, 0], [17, 19, 30.5, 0]]


# --- losses


def slow_cross_entropy(assignment, scores):
    shares = (scores / 0.1).exp()
    return -(assignment * (shares / shares.sum(1, keepdim=True)).log()).sum(1).mean().item()


@pytest.fixture
def views():
    generator = torch.manual_seed(3)
    scores = [torch.rand(4, 6, dtype=torch.float64, generator=generator).requires_grad_() for _ in range(5)]
    assignments = [torch.rand(4, 6, dtype=torch.float64, generator=generator).softmax(1) for _ in range(2)]
    return assignments, scores


def test_image_loss_and_its_gradient(views):
    assignments, scores = views
    terms = [slow_cross_entropy(assignments[i], scores[v]) for i in (0, 1) for v in range(5) if v != i]
    loss = losses.image_to_image(assignments, scores)
    assert loss.item() == pytest.approx(np.mean(terms), rel=1e-12)
    loss.backward()
    # Softmax minus assignment, over temperature, batch, the four other views and two assignments.
    for v, view in enumerate(scores):
        against = [assignment for i, assignment in enumerate(assignments) if i != v]
        expected = sum((view / 0.1).softmax(1) - assignment for assignment in against) / 0.1 / 4 / 4 / 2
        torch.testing.assert_close(view.grad, expected.detach(), rtol=1e-10, atol=1e-14)


def test_shallow_loss_takes_the_assignment_of_the_other_crop(views):
    assignments, scores = views
    terms = [slow_cross_entropy(assignments[i], scores[1 - i]) for i in (0, 1)]
    loss = losses.deep_to_shallow(assignments, scores[:2])
    assert loss.item() == pytest.approx(np.mean(terms), rel=1e-12)


def test_pixel_loss_and_its_gradient():
    generator = torch.manual_seed(0)
    prediction, projection = (
        torch.randn(6, 5, 2, 2, dtype=torch.float64, generator=generator).requires_grad_() for _ in range(2)
    )
    with torch.no_grad():
        projection[[1, 4]] = 0  # a pair without overlap
    lengths = [maps.norm(dim=1).clamp(min=1e-8) for maps in (prediction, projection.roll(3, 0))]
    cosines = (prediction * projection.roll(3, 0)).sum(1) / lengths[0] / lengths[1]
    loss = losses.pixel_to_pixel(prediction, projection)
    assert loss.item() == pytest.approx(-cosines.mean().item(), rel=1e-12)
    loss.backward()
    assert projection.grad is None
    assert [bool(of_one.any()) for of_one in prediction.grad] == [True, False, True, True, False, True]


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
    assert losses.pass_loss(*terms, (1, 1)).item() == (3 + 5) / 2 - 0.5
    assert losses.pass_loss(*terms, (3, 1)).item() == (9 + 5) / 4 - 0.5


# --- the network


@pytest.fixture(scope="module")
def network():
    torch.manual_seed(0)
    return PassNetwork(make_backbone("resnet18"), SIZES).train()


def mlp(tensors, x, prefix, layers):
    """Apply a head layer by layer from its tensors; batch norms have the batch's own statistics."""
    for index in layers:
        weight, bias = (tensors.get(f"{prefix}.{index}.{name}") for name in ("weight", "bias"))
        if weight is None or weight.ndim == 1:
            x = functional.batch_norm(x, None, None, weight, bias, training=True)
            x = x if index == layers[-1] else x.relu()
        else:
            x = (functional.conv2d if weight.ndim == 4 else functional.linear)(x, weight, bias)
    return x


IMAGE, PIXEL, PREDICTOR = (0, 1, 3, 4), (0, 1, 3, 4, 6, 7), (0, 1, 3)


def large_crops_and_grids():
    generator = torch.manual_seed(1)
    return torch.randn(4, 3, 64, 64, generator=generator), torch.rand(4, 7, 7, 2, generator=generator) * 2 - 1


def test_heads_against_their_definition(network):
    """All outputs, from the maps of the backbone and the tensors as the checkpoint names them."""
    (large, grids), small = large_crops_and_grids(), torch.randn(6, 3, 32, 32)
    normalize_prototypes(network.prototypes)
    outputs = network(large, [small], grids)
    third, fourth = network.backbone.maps(large)
    tensors = library_state(network)
    prototypes = tensors["prototypes.weight"]
    pooled = torch.cat((fourth.mean((2, 3)), network.backbone(small).mean((2, 3))))
    features = unit(mlp(tensors, pooled, "projection_head", IMAGE))
    pixels = mlp(tensors, third, "projection_head_pixel_shallow.projection_head_pixel3", PIXEL)
    shallow = mlp(tensors, pixels.mean((2, 3)), "projection_head_shallow.projection_head_shallow3", IMAGE)
    projection = sample(mlp(tensors, fourth, "projection_head_pixel", PIXEL), grids)
    expected = {
        "features": features[:4],
        "pooled": unit(fourth.mean((2, 3))),
        "scores": features @ prototypes.T,
        "shallow": unit(shallow) @ prototypes.T,
        "projection": projection,
        "prediction": mlp(tensors, projection, "predictor_head_pixel", PREDICTOR),
    }
    for name, found in outputs._asdict().items():
        torch.testing.assert_close(found, expected[name], atol=1e-4, rtol=1e-3)
    assert not outputs.features.requires_grad and not outputs.pooled.requires_grad
    assert outputs.scores.abs().max() <= 1 + 1e-5


def test_which_parameters_get_a_gradient(network):
    """Each loss alone: the shallow path trains no prototypes and nothing behind layer3, and so on."""
    large, grids = large_crops_and_grids()

    def trained(loss):
        network.zero_grad(set_to_none=True)
        loss(network(large, [], grids)).backward()
        got = (name for name, weight in network.named_parameters() if weight.grad is not None)
        return {name.removeprefix("backbone.network.").partition(".")[0] for name in got}

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


def test_prototypes_become_unit_vectors():
    prototypes = nn.Linear(2, 3, bias=False)
    with torch.no_grad():
        prototypes.weight.copy_(torch.tensor([[3.0, 4], [0, 2], [-1, 0]]))
    normalize_prototypes(prototypes)
    torch.testing.assert_close(prototypes.weight.data, torch.tensor([[0.6, 0.8], [0, 1], [-1, 0]]))


def test_statistics_of_batch_norms(network):
    """The backbone sees large and small crops apart (two updates a step), the image head all together."""
    norms = network.backbone.network.bn1, network.projection_head[1]
    before = [norm.num_batches_tracked.item() for norm in norms]
    network(torch.randn(4, 3, 64, 64), [torch.randn(6, 3, 32, 32)], torch.zeros(4, 7, 7, 2))
    assert [norm.num_batches_tracked.item() for norm in norms] == [before[0] + 2, before[1] + 1]


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
    vectors = unit(functional.interpolate(maps, scale_factor=4, mode="bilinear"))
    tensors = library_state(attention_network)
    attention = torch.sigmoid(mlp(tensors, vectors, "fbg.atten", IMAGE) + tensors["fbg.threshold"])
    pooled = (vectors * attention).mean((2, 3))
    features = unit(mlp(tensors, pooled, "projection_head", IMAGE))
    expected = unit(pooled), features, features @ tensors["prototypes.weight"].T
    for found, wanted in zip(outputs, expected, strict=True):
        torch.testing.assert_close(found, wanted, atol=1e-4, rtol=1e-3)
    assert not outputs.features.requires_grad and not outputs.pooled.requires_grad


def test_attention_trains_itself_and_the_prototypes_only(attention_network):
    drifting = attention_network.backbone.network.bn1.running_mean.clone()
    attention_network(torch.randn(4, 3, 64, 64)).scores.square().sum().backward()
    got = {name for name, weight in attention_network.named_parameters() if weight.grad is not None}
    assert {name.partition(".")[0] for name in got} == {"fbg", "prototypes"}
    assert "fbg.threshold" in got
    # The frozen batch norms see the batch, and their running statistics move.
    assert not torch.equal(drifting, attention_network.backbone.network.bn1.running_mean)
