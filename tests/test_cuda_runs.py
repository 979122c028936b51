"""Whole steps of the trainings and the loop of inference on CUDA's tensors, and how often the host waits."""

from __future__ import annotations

import argparse
from contextlib import nullcontext
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from helpers.fake_cuda import CUDA, Events, Waits, backward, fake_cuda, pinned
from torch import nn

pytest.importorskip("timm")

from command_line.attention import AttendedNetwork
from imagenets.classes import MODES
from imagenets.learning.distance_matching import bank as banks
from imagenets.learning.distance_matching import patches
from imagenets.learning.distance_matching.kinds import KINDS
from imagenets.learning.distance_matching.neighbours import Bank
from imagenets.learning.engine import inference, segmentation
from imagenets.learning.engine.inference import Batch, Running
from imagenets.learning.engine.label_files import enlarged
from imagenets.learning.finetuning import probe, run, stored_maps
from imagenets.learning.finetuning.prediction import Validation, predicted
from imagenets.learning.images import IMAGENET_MEAN, IMAGENET_STD, Reading
from imagenets.learning.networks.backbones import make_backbone
from imagenets.learning.networks.segmentation_network import PASS, SEMI, SegmentationNetwork
from imagenets.learning.pass_method import runs, steps
from imagenets.learning.pass_method.attention import AttentionNetwork
from imagenets.learning.pass_method.heads import DIMENSIONS, HeadSizes, PassNetwork
from imagenets.learning.pass_method.recipes import attention_recipe, pretraining_recipe
from imagenets.learning.pass_method.sinkhorn import FeatureQueue
from imagenets.learning.pass_method.thresholds import count_steps
from imagenets.learning.processes import Processes
from imagenets.learning.training import loop
from imagenets.learning.training.order import Plan, StepIndex
from imagenets.learning.training.order import TrainingBatch as Share
from methods import distance_matching, kmeans, predict, zero_shot

ALONE = Processes(0, 1, CUDA)
PRECISIONS = ["float32", "float16"]
# A loss that is scaled is checked for values that are not finite, which the host reads.
READ = {"float32": [], "float16": ["value"]}


def waits_of_steps(job, plan, shares, precision, value=0):
    """What the host waits for in each of some steps of the loop."""
    progress = loop._Progress()
    unread = loop._Unread(None, ALONE, progress)
    scaler = torch.amp.GradScaler("cuda", enabled=precision == "float16")
    arriving = iter(shares)
    found = []
    for _ in range(len(shares) // plan.accumulate):
        with Waits(value) as waits:
            loop._update(job, scaler, arriving, plan, progress, unread)
            unread.read(at_once=False)
        found.append(waits.seen)
        assert waits.copies == ["cpu -> cuda"] * (plan.accumulate * len(shares[0][1].tensors))
    assert all(row.device == CUDA and row.dtype == torch.float32 for row in unread.rows)
    for state in job.optimiser.state.values():
        for held in state.values():
            assert held.dtype == torch.float32 and (held.ndim == 0 or held.device == CUDA)
    return found


def zeros(*size, dtype=torch.uint8):
    return pinned(torch.zeros(*size, dtype=dtype))


@pytest.mark.parametrize(
    ("recipe", "backbone", "precision"),
    [
        (SEMI, "test_vit", "float16"),
        (PASS, "timm/test_resnet", "float16"),
        (PASS, "timm/test_resnet", "float32"),
    ],
)
def test_a_step_of_fine_tuning_waits_for_a_scaled_loss_alone(
    recipe, backbone, precision, monkeypatch, tmp_path
):
    request = run.FineTuneRequest(
        None, MODES["50"], recipe, backbone, None, tmp_path, {"crop": 64, "batch": 4}
    )
    values = run.chosen_values(request)
    network = SegmentationNetwork(make_backbone(backbone), 50, recipe)
    plan = Plan(8, 4, values.epochs, 0, True, 2)
    tensors = zeros(2, 3, 64, 64), zeros(2, 64, 64, dtype=torch.int16)
    shares = [
        (StepIndex(0, step, part, step), Share(tensors, np.arange(2)))
        for step in range(2)
        for part in range(2)
    ]
    with fake_cuda(monkeypatch) as moved:
        moved(network)
        training = object.__new__(run._Run)  # without the files that a run reads first
        training.request, training.values, training.plan = request, values, plan
        training.network = training.joined = network
        training.processes, training.precision = ALONE, precision
        training.validation = Validation(None, 50, 0)
        training.normalised = run.Normalisation(IMAGENET_MEAN, IMAGENET_STD, CUDA)
        assert waits_of_steps(training.job(), plan, shares, precision) == [READ[precision]] * 2
        assert all(weight.grad is not None for weight in network.parameters())


@pytest.mark.parametrize(
    ("attention", "precision"), [(False, "float16"), (True, "float16"), (True, "float32")]
)
def test_a_step_of_pass_waits_for_a_scaled_loss_alone(attention, precision, monkeypatch, tmp_path):
    recipe = (attention_recipe if attention else pretraining_recipe)("small", "50")
    kind = AttentionNetwork if attention else PassNetwork
    network = kind(make_backbone("timm/test_resnet"), HeadSizes(16, 12)).train()
    request = runs.PassRequest("50", "small", tmp_path, ["a.JPEG"] * 64, tmp_path, 0, precision)
    crops = zeros(4, 2, 3, 64, 64)
    tensors = (zeros(4, 2, 5, dtype=torch.float32), crops)
    if not attention:
        tensors += (zeros(4, 2, 3, 32, 32),)
    shares = [(StepIndex(1, 0, 0, 30), Share(tensors, np.arange(4)))]
    with fake_cuda(monkeypatch) as moved:
        monkeypatch.setattr(runs, "on_device", lambda network, device: moved(network))
        training = runs._Run(request, recipe, "timm/test_resnet", network, ALONE, print)
        queue = training.queue = FeatureQueue(8, 4, DIMENSIONS, CUDA)
        queue.rows = [8, 8]
        if attention:
            step = steps.AttentionStep(network, network, queue, training.watch, precision)
        else:
            step = steps.PretrainingStep(network, network, recipe, queue, training.watch, precision)
        job = training._job(step)
        assert waits_of_steps(job, training.plan, shares, precision) == [READ[precision]]
        assert queue.features.device == CUDA and queue.features.dtype == torch.float32


def test_a_step_of_the_probe_waits_for_the_sizes_of_maps_alone(monkeypatch):
    plan = Plan(8, 4, 2, 0, True)
    tensors = (
        zeros(4, 6, 96, dtype=torch.float16),
        zeros(4, 96, dtype=torch.int16),
        zeros(4, 2, dtype=torch.int64),
        zeros(4, 2, 96, dtype=torch.float64),
    )
    head = probe.ProbeHead(96, 51, 32, 0.1, ALONE)
    with fake_cuda(monkeypatch) as moved:
        moved(head)

        def loss_of(batch, moment):
            rows, labels, grids, moments = batch.tensors
            return {"loss": probe.probe_loss(head(rows, grids, moments), labels, ALONE)}

        optimiser = torch.optim.AdamW(head.parameters(), lr=0.001)
        job = loop.TrainingJob(head, optimiser, loss_of, lambda moment: 0.001, dict, dict, {})
        shares = [(StepIndex(0, step, 0, step), Share(tensors, np.arange(4))) for step in range(2)]
        assert waits_of_steps(job, plan, shares, "float32", value=1) == [["value"]] * 2
        assert head.norm.running_mean.dtype == torch.float32


def test_what_steps_found_is_read_after_every_tenth(monkeypatch):
    with fake_cuda(monkeypatch):
        unread = loop._Unread(None, ALONE, loop._Progress())
        for step in range(1, 21):
            with Waits() as waits:
                loss = torch.zeros((), device=CUDA)
                unread.add(StepIndex(0, step, 0, step), [], {"loss": loss}, [loss])
                unread.read(at_once=False)
            assert waits.seen == ["value"] * (step % 10 == 0)


def test_batches_arrive_in_pinned_memory_from_workers_that_are_not_forked(monkeypatch):
    """None is forked off a process in which CUDA has threads."""
    asked = []
    monkeypatch.setattr(loop, "batches", lambda *of, **options: asked.append(options))
    network = nn.Linear(1, 1)
    job = loop.TrainingJob(network, torch.optim.SGD(network.parameters()), None, None, dict, dict, {})
    for device in (CUDA, torch.device("cpu")):
        folder = SimpleNamespace(
            processes=Processes(0, 1, device), load=lambda: None, write_log=len, is_new=True
        )
        loop.train(job, None, Plan(4, 4, 0, 0, True), folder)
    assert asked == [{"pin": True, "start": "forkserver"}, {"pin": False, "start": "fork"}]


def waiting(index):
    return inference._Waiting(index, np.zeros((64, 96, 3), np.uint8), (50, 75), (50, 70), None)


@pytest.mark.parametrize("precision", PRECISIONS)
def test_inference_copies_behind_its_back_and_waits_one_batch_later(precision, monkeypatch):
    """Pinned there, without waiting back, one event a batch; channels last, in the run's precision."""
    events = Events()
    monkeypatch.setattr(torch.cuda, "Event", events)
    monkeypatch.setattr(
        inference, "_waiting_batches", lambda *of: [[waiting(0), waiting(1)], [waiting(2)], [waiting(3)]]
    )
    network = SegmentationNetwork(make_backbone("timm/test_resnet"), 50, SEMI).eval()
    with fake_cuda(monkeypatch) as moved:
        moved(network)
        seen = []

        def step(batch):
            seen.append(batch)
            return predicted(network, batch)

        images = SimpleNamespace(folder=SimpleNamespace(name="validation"), names="abcd")
        work = inference._Work(
            images, [range(4)], Reading(IMAGENET_MEAN, IMAGENET_STD), Running(ALONE, precision=precision)
        )
        with Waits() as waits:
            found = list(inference._results(work, step))
    there, back = "cpu -> cuda", "cuda -> cpu"
    assert waits.copies == [there, there, there, back, back, there, back, there, back]
    assert waits.seen == [there, there]  # the constants of the normalisation, once
    assert events.order == ["record", "record", "wait", "record", "wait", "wait"]
    for batch in seen:
        assert batch.precision == precision
        assert batch.pictures.device == CUDA and batch.pictures.dtype == torch.float32
        assert batch.pictures.is_contiguous(memory_format=torch.channels_last)
    assert [batch.indices for batch, _ in found] == [[0, 1], [2], [3]]
    for _, labels in found:
        assert all(of_one.device.type == "cpu" and of_one.shape == (50, 70) for of_one in labels)


def test_results_of_every_form_are_copied_without_waiting(monkeypatch):
    events = Events()
    monkeypatch.setattr(torch.cuda, "Event", events)
    with fake_cuda(monkeypatch):
        maps = torch.zeros(2, 3, 4, device=CUDA)
        for form in (maps, list(maps), [{"a": one, "b": one[0]} for one in maps]):
            with Waits() as waits:
                fetch = inference._fetching(form, CUDA)
            assert waits.seen == [] and "wait" not in events.order
            copied = fetch()
            assert events.order == ["record", "wait"]
            events.order.clear()
            leaves = [leaf for one in copied for leaf in (one.values() if isinstance(one, dict) else [one])]
            assert len(copied) == 2 and all(leaf.device.type == "cpu" for leaf in leaves)


def batch_of(precision, masks=True):
    pictures = torch.randn(2, 3, 64, 96, device=CUDA)
    sizes = [(50, 75), (64, 96)]
    return Batch([0, 1], pictures, sizes, sizes, [np.zeros((64, 96), np.uint16)] * 2 * masks, precision)


@pytest.mark.parametrize("precision", PRECISIONS)
def test_banks_and_stored_maps_hold_no_half_precision_but_where_they_say_so(precision, monkeypatch):
    """Embeddings of regions and of patches float32, the probe's maps float16 and their sums float64."""
    backbone = make_backbone("timm/test_resnet")
    of_patches = patches.bank_step(backbone, 5)
    for shape in ((50, 75), (64, 96)):  # indices are kept from here on: below, they would hold no values
        enlarged(np.zeros(shape), 8, 12)
        enlarged(np.zeros(shape), 64, 96)
    with torch.inference_mode(), fake_cuda(monkeypatch) as moved:
        moved(backbone)
        with Waits() as waits:
            found = banks.bank_step(backbone)(batch_of(precision))
        assert waits.seen == ["cpu -> cuda", "_unique2", "mask"] * 2  # a picture's mask, its labels
        for of_one in found:
            assert of_one["embeddings"].dtype == torch.float32 and of_one["labels"].dtype == torch.int64
            assert of_one["embeddings"].device == of_one["labels"].device == CUDA
        with Waits() as waits:
            found = of_patches(batch_of(precision))
        assert waits.seen == ["cpu -> cuda"] * 2  # the places that were chosen
        for of_one in found:
            assert of_one["embeddings"].dtype == of_one["shares"].dtype == torch.float32
            assert of_one["embeddings"].device == CUDA and of_one["embeddings"].shape == (5, 96)
        with Waits(value=1) as waits:
            found = stored_maps.map_step(backbone)(batch_of(precision))
        assert waits.seen == ["value"] * 2  # whether both views are finite
        for of_one in found:
            assert (of_one["maps"].dtype, of_one["moments"].dtype) == (torch.float16, torch.float64)
            assert of_one["maps"].device == of_one["moments"].device == CUDA


@pytest.mark.parametrize("sharpen", [False, True])
def test_labels_by_banks_are_found_on_the_device(sharpen, monkeypatch):
    """Among 2,000 vectors, groups of 32 are looked at first."""
    backbone = make_backbone("timm/test_resnet")
    with torch.inference_mode(), fake_cuda(monkeypatch) as moved:
        moved(backbone)
        vectors = torch.randn(2000, 96, device=CUDA)
        labels = torch.zeros(2000, 4, dtype=torch.int64, device=CUDA)
        bank = patches.PatchBank(vectors, labels, labels.float())
        with Waits() as waits:
            found = patches.label_step(backbone, bank, 5, 0.02, sharpen)(batch_of("float16", masks=False))
        # Of a picture: which neighbours tie, among groups and again, and the labels of those with a vote.
        assert waits.seen == ["nonzero", "nonzero", "mask", "_unique2", "mask"] * 2
        if sharpen:
            regions = Bank(vectors, labels[:, 0])
            with Waits():
                found += banks.label_step(backbone, regions, 5, 0.07, sharpen=True)(batch_of("float32"))
            network = moved(SegmentationNetwork(backbone, 50, PASS))
            with Waits() as waits:
                found += predicted(network, batch_of("float16"), sharpen=True)
            assert waits.seen == ["nonzero"] * 2  # the labels that a picture may show
    for of_one, size in zip(found, [(50, 75), (64, 96)] * (3 if sharpen else 1), strict=True):
        assert of_one.device == CUDA and of_one.dtype == torch.int32 and of_one.shape == size


def test_the_sweep_counts_on_the_device(monkeypatch):
    with fake_cuda(monkeypatch):
        clusters, attention = torch.zeros(9, 7, dtype=torch.int32, device=CUDA), torch.rand(9, 7, device=CUDA)
        with Waits() as waits:
            rows = count_steps(np.zeros((9, 7), np.uint16), clusters, attention)
    assert rows.device == CUDA and rows.dtype == torch.int64 and rows.shape[1] == 4
    assert waits.seen == [*["cpu -> cuda"] * 2, *["_unique2"] * 2, "bincount", "nonzero", "mask"]


class Placed(nn.Conv2d):
    """A network that remembers where it was moved to."""

    placed = None

    def __init__(self):
        super().__init__(3, 2, 1)

    def to(self, device, memory_format=None):
        self.placed = device, memory_format
        return self


def place_by_predict(network, monkeypatch):
    arguments = argparse.Namespace(longest=1000, sharpen=False)
    predict.label_step(network, arguments, Running(ALONE), None)


def place_by_distance_matching(network, monkeypatch):
    monkeypatch.setattr(distance_matching, "bank_of", lambda *of: None)
    network.stride = 8
    arguments = argparse.Namespace(sharpen=False)
    job = distance_matching.Job(arguments, network, None, KINDS["regions"], 10, 0.07)
    distance_matching.label_step(job, Running(ALONE), None)


def place_by_kmeans(network, monkeypatch):
    monkeypatch.setattr(kmeans, "listed_images", lambda arguments: (None, None))
    monkeypatch.setattr(kmeans, "make_backbone", lambda name: network)
    monkeypatch.setattr(kmeans, "load_backbone", lambda *of: "")
    monkeypatch.setattr(kmeans, "weights_digest", lambda *of: "")
    monkeypatch.setattr(kmeans, "network", lambda *of: None)
    arguments = argparse.Namespace(
        backbone="a", checkpoint=None, weights=None, foreground="features", size=None, precision="float32"
    )
    kmeans.prepare(arguments).to_device(Running(ALONE))


def place_by_zero_shot(network, monkeypatch):
    monkeypatch.setattr(zero_shot, "text_embeddings", lambda *of: "file")
    monkeypatch.setattr(zero_shot, "load_embeddings", lambda path: torch.zeros(1).to("meta"))
    monkeypatch.setattr(torch.Tensor, "to", lambda tensor, device: tensor)
    monkeypatch.setattr(zero_shot, "Namer", lambda *of: None)
    monkeypatch.setattr(zero_shot, "label_step", lambda *of: None)
    job = SimpleNamespace(
        model=SimpleNamespace(model=network), dense="", arguments=argparse.Namespace(threshold=0.5)
    )
    zero_shot.namer_step(job, Running(ALONE), None)


def place_by_a_method_of_ones_own(network, monkeypatch):
    method = segmentation.network_method("own", network, len, {}, Reading((0,) * 3, (1,) * 3), {})
    method.make_step(Running(ALONE), None)


def place_for_pass(network, monkeypatch):
    AttendedNetwork(network, Placed(), [], {}).to(CUDA)


@pytest.mark.parametrize(
    "place",
    [
        place_by_predict,
        place_by_distance_matching,
        place_by_kmeans,
        place_by_zero_shot,
        place_by_a_method_of_ones_own,
        place_for_pass,
    ],
)
def test_inference_places_networks_as_training_does(place, monkeypatch):
    network = Placed()
    place(network, monkeypatch)
    assert network.placed == (CUDA, torch.channels_last)


def test_waits_are_seen_where_cuda_has_them(monkeypatch):
    """What the tests above rely on."""
    host = torch.zeros(4)
    with fake_cuda(monkeypatch):
        values = torch.zeros(4, device=CUDA)
        mask, places = values > 0, torch.zeros(2, dtype=torch.int64, device=CUDA)

        def set_one():
            values[mask] = 1.0

        def set_some():
            values[mask] = values[mask]

        expected = [
            (lambda: values.sum().item(), ["value"]),
            (lambda: bool(values.any()), ["value"]),
            (values.tolist, ["value"]),
            (lambda: torch.equal(values, values), ["value"]),
            (mask.nonzero, ["nonzero"]),
            (lambda: torch.where(mask), ["nonzero"]),
            (lambda: values[mask], ["mask"]),
            (lambda: values[places], []),
            (lambda: values[[0, 1]], ["cpu -> cuda"]),
            (lambda: values.masked_fill(mask, 1), []),
            (set_one, []),
            (set_some, ["mask", "mask"]),
            (lambda: places.unique(return_inverse=True), ["_unique2"]),
            (lambda: torch.bincount(places, minlength=5), ["bincount"]),
            (lambda: torch.tensor([1.0, 2.0], device=CUDA), ["cpu -> cuda"]),
            (lambda: torch.full((2,), 1.0, device=CUDA), []),
            (values.cpu, ["cuda -> cpu"]),
            (lambda: values.to("cpu", non_blocking=True), []),
            (lambda: host.to(CUDA, non_blocking=True), ["cpu -> cuda"]),
            (lambda: host.pin_memory().to(CUDA, non_blocking=True), []),
            (lambda: host.pin_memory().to(CUDA), ["cpu -> cuda"]),
            (lambda: values.copy_(torch.zeros(4)), ["cpu -> cuda"]),
        ]
        for number, (operation, seen) in enumerate(expected):
            for mode in (nullcontext, torch.inference_mode):
                with mode(), Waits() as waits:
                    operation()
                assert waits.seen == seen, number


def test_the_backward_pass_node_by_node_is_pytorchs():
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 4, 1))
    pictures, factor = torch.randn(2, 3, 8, 8), nn.Parameter(torch.randn(4, 1, 1))

    def loss():
        first, second = (network(pictures) * factor).chunk(2)
        return (first**2).sum() + second.mean() * first.mean()

    weights = [*network.parameters(), factor]
    expected = torch.autograd.grad(loss(), weights)
    backward(loss())
    for weight, gradient in zip(weights, expected, strict=True):
        torch.testing.assert_close(weight.grad, gradient)
