"""Every step's device code on CUDA tensors without values: devices, dtypes, and what makes the host wait."""

from __future__ import annotations

from collections import namedtuple

import numpy as np
import pytest
import torch
from helpers.fake_cuda import CUDA, Waits, fake_cuda
from torch import nn

pytest.importorskip("timm")

from imagenets.learning.distance_matching import bank as banks
from imagenets.learning.distance_matching import neighbours
from imagenets.learning.engine.inference import Batch
from imagenets.learning.finetuning.losses import annotated_loss, label_map_loss
from imagenets.learning.finetuning.prediction import predicted
from imagenets.learning.kmeans import clusters
from imagenets.learning.networks.backbones import make_backbone
from imagenets.learning.networks.precision import (
    Normalisation,
    cuda_switches,
    run_network,
    training_precision,
)
from imagenets.learning.networks.segmentation_network import SegmentationNetwork
from imagenets.learning.pass_method import attended_labels
from imagenets.learning.pass_method.attention import PixelAttention
from imagenets.learning.processes import Processes

ALONE = Processes(0, 1, CUDA)
PRECISIONS = ["float32", "bfloat16", "float16"]


def on_cuda(*tensors, dtype=torch.float32):
    for tensor in tensors:
        assert tensor.device.type == "cuda" and tensor.dtype == dtype, (tensor.device, tensor.dtype)


def batch(precision, mask=None):
    pictures = torch.randn(2, 3, 64, 96, device=CUDA)
    sizes = [(50, 75), (64, 96)]
    return Batch([0, 1], pictures, sizes, sizes, [] if mask is None else [mask] * 2, precision)


@pytest.mark.parametrize("precision", ["float32", "float16"])
@pytest.mark.parametrize("backbone", ["timm/test_resnet", "test_efficientnet", "test_vit", "test_convnext"])
def test_fine_tunings_loss_is_float32_and_nothing_is_copied(backbone, precision, monkeypatch):
    network = SegmentationNetwork(make_backbone(backbone), 50, "semi-supervised").train()
    with fake_cuda(monkeypatch) as moved:
        moved(network)
        normalised = Normalisation((0.5,) * 3, (0.2,) * 3, CUDA)
        pictures = torch.zeros(2, 3, 64, 64, dtype=torch.uint8, device=CUDA)
        masks = torch.zeros(2, 64, 64, dtype=torch.int16, device=CUDA)
        with Waits() as waits:
            logits = run_network(network, normalised(pictures), precision=precision)
            losses = annotated_loss(logits, masks, ALONE), label_map_loss(logits, masks, ALONE)
        on_cuda(logits, *losses)
        assert waits.seen == []


@pytest.mark.parametrize("precision", PRECISIONS)
def test_what_follows_the_network_is_float32(precision, monkeypatch):
    """Bank, distance matching, k-means, attended maps, the sweep's input and prediction's logits."""
    backbone, attention = make_backbone("timm/test_resnet"), PixelAttention(96).eval()
    segmenting = SegmentationNetwork(make_backbone("timm/test_resnet"), 50, "semi-supervised").eval()
    for old, new in ((2, 8), (3, 12)):
        neighbours._enlarging(old, new)  # kept from here on: below, it would hold no values
    mask = np.zeros((64, 96), np.uint16)
    seen = []
    monkeypatch.setattr(
        neighbours, "_largest", lambda scores, k: seen.append(scores) or scores.topk(k, dim=1)
    )
    with torch.inference_mode(), fake_cuda(monkeypatch) as moved:
        for module in (backbone, attention, segmenting):
            moved(module)
        pictures = batch(precision, mask)
        maps = pictures.through(backbone)
        on_cuda(maps)
        bank = neighbours.Bank(
            torch.randn(20, 96, device=CUDA), torch.zeros(20, dtype=torch.int64, device=CUDA)
        )
        bank.__dict__["highest"] = 50  # known by the first batch
        labels = banks.label_step(backbone, bank, 5, 0.07)(pictures)
        on_cuda(labels, dtype=torch.int64)
        on_cuda(*seen)
        assert tuple(labels.shape) == (2, 8, 12)
        salience = clusters.border_distance(maps)
        on_cuda(salience)
        on_cuda(clusters.above_threshold(salience, (64, 96)), dtype=torch.bool)
        foregrounds = torch.ones(2, 64, 96, dtype=torch.bool, device=CUDA)
        monkeypatch.setattr(clusters, "network_foregrounds", lambda *of: foregrounds)
        without_masks = batch(precision)
        on_cuda(clusters._describe_by_network(backbone, without_masks)[0])
        centroids = torch.randn(7, 96, device=CUDA)
        for found, attended in attended_labels._full_size(pictures, backbone, attention, centroids):
            on_cuda(found, dtype=torch.int32)
            on_cuda(attended)
        on_cuda(*(one["features"] for one in attended_labels.feature_step(backbone, attention)(pictures)))
        on_cuda(*attended_labels.label_step(backbone, attention, centroids, 0.4)(pictures), dtype=torch.int32)
        on_cuda(*predicted(segmenting, pictures), dtype=torch.int32)
        on_cuda(pictures.through(segmenting))


def test_reduced_precision_runs_on_a_cpu():
    """Features of distance matching in bfloat16: no traceback, float32 behind the network."""
    backbone = make_backbone("timm/test_resnet")
    pictures = torch.randn(1, 3, 64, 64)
    with torch.inference_mode():
        exact = Batch([0], pictures, [(64, 64)], [(64, 64)], []).through(backbone)
        for precision in ("bfloat16", "float16"):
            found = Batch([0], pictures, [(64, 64)], [(64, 64)], [], precision).through(backbone)
            assert found.dtype == torch.float32 and not torch.equal(found, exact)
            torch.testing.assert_close(found, exact, atol=0.1 * float(exact.abs().max()), rtol=0)
    assert training_precision("auto", torch.device("cpu")) == "float32"


@pytest.mark.parametrize("precision", PRECISIONS)
def test_a_network_computes_in_the_precision_that_is_asked_for(precision):
    """And gives at least float32, single tensors or several; float64 stays."""
    seen = []

    def network(values):
        product = values @ values
        seen.append(product.dtype)
        return Several(product, values.double()) if len(seen) > 1 else product

    Several = namedtuple("Several", "product exact")
    assert run_network(network, torch.eye(2), precision=precision).dtype == torch.float32
    found = run_network(network, torch.eye(2), precision=precision)
    assert (found.product.dtype, found.exact.dtype) == (torch.float32, torch.float64)
    assert seen == [getattr(torch, precision)] * 2


def test_auto_is_what_the_card_has(monkeypatch):
    for has, name in ((True, "bfloat16"), (False, "float16")):
        monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation, has=has: has)
        assert training_precision("auto", CUDA) == name
        assert training_precision("float32", CUDA) == "float32"


def test_switches_of_cuda_are_put_back(monkeypatch):
    matmul, cudnn = torch.backends.cuda.matmul, torch.backends.cudnn

    def switches():
        return matmul.allow_tf32, cudnn.allow_tf32, cudnn.benchmark

    before = switches()
    matmul.allow_tf32, cudnn.allow_tf32, cudnn.benchmark = True, True, False
    try:
        with pytest.raises(KeyError), cuda_switches(CUDA, one_size=True):
            assert switches() == (False, False, True)
            raise KeyError
        assert switches() == (True, True, False)
    finally:
        matmul.allow_tf32, cudnn.allow_tf32, cudnn.benchmark = before


def test_a_mix_of_devices_and_a_value_that_is_read_are_seen(monkeypatch):
    """What the tests above rely on."""
    with fake_cuda(monkeypatch) as moved:
        network = moved(nn.Linear(3, 2))
        found = run_network(network, torch.randn(4, 3, device=CUDA), precision="float16")
        on_cuda(found)
        with pytest.raises(Exception, match="device"):
            found + torch.zeros(2)
        with pytest.raises(Exception, match=r"data-dependent|DataDependent|item"):
            float(found.detach().sum())
        with Waits() as waits:
            found.cpu()
        assert waits.seen == ["cuda -> cpu"]
