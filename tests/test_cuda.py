"""Device code on CUDA's tensors without values: devices, dtypes, and what makes the host wait."""

from __future__ import annotations

import argparse
import itertools
from collections import namedtuple
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import Mock, call

import numpy as np
import pytest
import torch
from helpers.fake_cuda import CUDA, Waits, backward, fake_cuda, pinned
from torch import nn

pytest.importorskip("timm")

from command_line.attention import AttendedNetwork
from imagenets.classes import MODES
from imagenets.learning.distance_matching import bank as banks
from imagenets.learning.distance_matching import neighbours, patches
from imagenets.learning.distance_matching.neighbours import Bank
from imagenets.learning.engine import inference, segmentation
from imagenets.learning.engine.inference import Batch, Running
from imagenets.learning.engine.label_files import enlarged
from imagenets.learning.finetuning import probe, run, stored_maps
from imagenets.learning.finetuning.prediction import Validation, predicted
from imagenets.learning.images import IMAGENET_MEAN, IMAGENET_STD, Images, Reading
from imagenets.learning.kmeans import clusters
from imagenets.learning.networks.backbones import make_backbone
from imagenets.learning.networks.precision import cuda_switches, run_network, training_precision
from imagenets.learning.networks.segmentation_network import PASS, SEMI, SegmentationNetwork
from imagenets.learning.pass_method import attended_labels, runs, steps
from imagenets.learning.pass_method.attention import AttentionNetwork, PixelAttention
from imagenets.learning.pass_method.heads import DIMENSIONS, HeadSizes, PassNetwork
from imagenets.learning.pass_method.recipes import attention_recipe, pretraining_recipe
from imagenets.learning.pass_method.sinkhorn import FeatureQueue
from imagenets.learning.processes import Processes
from imagenets.learning.training import loop
from imagenets.learning.training.order import Plan, StepIndex
from imagenets.learning.training.order import TrainingBatch as Share
from methods import distance_matching, kmeans, predict, zero_shot

ALONE = Processes(0, 1, CUDA)
PRECISIONS = ["float32", "bfloat16", "float16"]
F16, F32, F64, I32, I64 = torch.float16, torch.float32, torch.float64, torch.int32, torch.int64
COPY = "cpu -> cuda"
SHOWN = [(50, 75), (64, 96)]  # sizes of two images
# A loss that is scaled is checked for values that are not finite, which the host reads.
READ = {"float32": [], "float16": ["value"]}


def on_cuda(tensor, dtype=torch.float32):
    assert (tensor.device, tensor.dtype) == (CUDA, dtype)


def check_steps(job, plan, tensors, waited_for, value=0):
    """Do two steps of the loop: what the host waits for in each, and what is float32 and on the device."""
    training = loop._Training(job, None, plan, SimpleNamespace(processes=ALONE), 0)
    scale = training.scaler.scale
    training.scaler.scale = lambda loss: on_cuda(loss) or scale(loss)
    share = Share(tuple(map(pinned, tensors)), np.arange(len(tensors[0])))
    parts = range(plan.accumulate)
    arriving = ((StepIndex(1, step, part, 30 + step), share) for step in range(2) for part in parts)
    for _ in range(2):
        with Waits(value) as waits:
            training.step(arriving)
            training.read(at_once=False)
        assert waits.seen == waited_for
        assert waits.copies == [COPY] * len(tensors) * plan.accumulate
    state = [value for of_one in job.optimiser.state.values() for value in of_one.values()]
    for held in [row for row, *_ in training.unread] + state:
        assert held.dtype == torch.float32 and (held.ndim == 0 or held.device == CUDA)


@pytest.mark.parametrize(
    ("recipe", "backbone", "precision"),
    [
        (SEMI, "test_vit", "float16"),
        (PASS, "timm/test_resnet", "float16"),
        (PASS, "test_efficientnet", "float32"),
    ],
)
def test_a_step_of_fine_tuning_waits_for_a_scaled_loss_only(
    recipe, backbone, precision, monkeypatch, tmp_path
):
    changed = {"crop": 64, "batch": 4}
    request = run.FineTuneRequest(None, MODES["50"], recipe, backbone, None, tmp_path, changed)
    values = run.chosen_values(request)
    network = SegmentationNetwork(make_backbone(backbone), 50, recipe)
    plan = Plan(8, 4, values.epochs, 0, True, 2)
    tensors = torch.zeros(2, 3, 64, 64, dtype=torch.uint8), torch.zeros(2, 64, 64, dtype=torch.int16)
    with fake_cuda(monkeypatch) as moved:
        moved(network)
        job = run.training_job(request, values, network, plan, Validation(None, 50, 0), precision, ALONE)
        check_steps(job, plan, tensors, READ[precision])
        assert all(weight.grad is not None for weight in network.parameters())


@pytest.mark.parametrize(
    ("attention", "precision"), [(False, "float16"), (True, "float16"), (True, "float32")]
)
def test_a_step_of_pass_waits_for_a_scaled_loss_only(attention, precision, monkeypatch, tmp_path):
    recipe = (attention_recipe if attention else pretraining_recipe)("small", "50")
    kind = AttentionNetwork if attention else PassNetwork
    network = kind(make_backbone("timm/test_resnet"), HeadSizes(16, 12)).train()
    request = runs.PassRequest("50", "small", tmp_path, ["a.JPEG"] * 64, tmp_path, 0, precision)
    crops = [torch.zeros(4, 2, 3, side, side, dtype=torch.uint8) for side in (64, 32)]
    tensors = [torch.zeros(4, 2, 5), *crops[: 1 if attention else 2]]
    with fake_cuda(monkeypatch) as moved:
        monkeypatch.setattr(runs, "on_device", lambda network, device: moved(network))
        training = runs._Run(request, recipe, "timm/test_resnet", network, ALONE, print)
        queue = training.queue = FeatureQueue(8, 4, DIMENSIONS, CUDA)
        queue.rows = [8, 8]
        if attention:
            step = steps.AttentionStep(network, network, queue, training.watch, precision)
        else:
            step = steps.PretrainingStep(network, network, recipe, queue, training.watch, precision)
        check_steps(training._job(step), training.plan, tensors, READ[precision])
        on_cuda(queue.features)


def test_a_step_of_the_probe_waits_for_the_sizes_of_maps_only(monkeypatch):
    sizes = ((6, 96), F16), ((96,), torch.int16), ((2,), I64), ((2, 96), F64)
    head = probe.ProbeHead(96, 51, 32, 0.1, ALONE)
    with fake_cuda(monkeypatch) as moved:
        moved(head)

        def loss_of(batch, moment):
            rows, labels, grids, moments = batch.tensors
            return {"loss": probe.probe_loss(head(rows, grids, moments), labels, ALONE)}

        optimiser = torch.optim.AdamW(head.parameters(), lr=0.001)
        job = loop.TrainingJob(head, optimiser, loss_of, lambda moment: 0.001, dict, dict, {})
        tensors = [torch.zeros(4, *size, dtype=dtype) for size, dtype in sizes]
        check_steps(job, Plan(8, 4, 2, 0, True), tensors, ["value"], value=1)
        on_cuda(head.norm.running_mean)


def test_what_steps_found_is_read_after_every_tenth(monkeypatch):
    with fake_cuda(monkeypatch):
        job, folder = SimpleNamespace(precision="float32"), SimpleNamespace(processes=ALONE)
        training = loop._Training(job, None, None, folder, 0)
        training.names = ["loss"]
        for step in range(1, 21):
            with Waits() as waits:
                training.unread.append((torch.zeros(2, device=CUDA), StepIndex(0, step, 0, step), []))
                training.read(at_once=False)
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


@pytest.mark.parametrize("precision", ["float32", "float16"])
def test_inference_copies_behind_its_back_and_waits_one_batch_later(precision, monkeypatch):
    """Pinned there, without waiting back, one event a batch; channels last, in the run's precision."""
    event, seen = Mock(), []
    pixels = np.zeros((64, 96, 3), np.uint8)
    first, second, third, fourth = (inference._Waiting(i, pixels, (50, 75), (50, 70), None) for i in range(4))
    monkeypatch.setattr(torch.cuda, "Event", lambda: event)
    monkeypatch.setattr(inference, "_waiting_batches", lambda *of: [[first, second], [third], [fourth]])
    network = SegmentationNetwork(make_backbone("timm/test_resnet"), 50, SEMI).eval()
    images, reading = Images(Path("validation"), "abcd"), Reading(IMAGENET_MEAN, IMAGENET_STD)
    work = inference._Work(images, [range(4)], reading, Running(ALONE, precision=precision))
    with fake_cuda(monkeypatch) as moved:
        moved(network)
        with Waits() as waits:
            found = list(inference._results(work, lambda of: seen.append(of) or predicted(network, of)))
    back = "cuda -> cpu"
    assert waits.copies == [COPY, COPY, COPY, back, back, COPY, back, COPY, back]
    assert waits.seen == [COPY, COPY]  # the constants of the normalisation, once
    record, wait = call.record(), call.synchronize()
    assert event.mock_calls == [record, record, wait, record, wait, wait]
    for batch in seen:
        assert batch.precision == precision
        on_cuda(batch.pictures)
        assert batch.pictures.is_contiguous(memory_format=torch.channels_last)
    assert [batch.indices for batch, _ in found] == [[0, 1], [2], [3]]
    for _, labels in found:
        assert all(of_one.device.type == "cpu" and of_one.shape == (50, 70) for of_one in labels)


def test_results_of_every_form_are_copied_without_waiting(monkeypatch):
    event = Mock()
    monkeypatch.setattr(torch.cuda, "Event", lambda: event)
    with fake_cuda(monkeypatch):
        maps = torch.zeros(2, 3, 4, device=CUDA)
        for form in (maps, list(maps), [{"a": one, "b": one[0]} for one in maps]):
            event.reset_mock()
            with Waits() as waits:
                fetch = inference._fetching(form, CUDA)
            assert waits.seen == [] and event.mock_calls == [call.record()]
            copied = fetch()
            assert event.mock_calls == [call.record(), call.synchronize()]
            leaves = [leaf for one in copied for leaf in (one.values() if isinstance(one, dict) else [one])]
            assert len(copied) == 2 and all(leaf.device.type == "cpu" for leaf in leaves)


def steps_of(backbone, attention, segmenting):
    """Steps of inference; dtypes and shapes of what they find in two pictures; what the host waits for."""
    centroids = torch.randn(7, 96, device=CUDA)
    vectors = torch.randn(2000, 96, device=CUDA)  # so many that groups of 32 are looked at first
    labels = torch.zeros(2000, 4, dtype=torch.int64, device=CUDA)
    regions, of_patches = Bank(vectors, labels[:, 0]), patches.PatchBank(vectors, labels, labels.float())
    regions.__dict__["highest"] = 50  # known by the first batch
    votes = ["nonzero", "nonzero", "mask", "_unique2", "mask"]  # which tie, twice, and labels with a vote
    counts = [COPY, COPY, "_unique2", "_unique2", "bincount", "nonzero", "mask"]
    attended = backbone, attention, centroids

    def maps(batch):
        return batch.through(backbone)

    def attention_of(batch):
        return [of_one for _, of_one in attended_labels._full_size(batch, *attended)]

    def described(batch):
        foregrounds = [np.ones((64, 96), bool)] * 2
        return clusters._describe_by_network(backbone, replace(batch, beside=foregrounds))[0]

    def above(batch):
        return clusters.above_threshold(clusters.border_distance(maps(batch)), (64, 96))

    return [
        (maps, F32, (96, 2, 3), []),
        (lambda batch: batch.through(segmenting), F32, (51, 4, 6), []),
        (banks.bank_step(backbone), {"embeddings": F32, "labels": I64}, None, [COPY, "_unique2", "mask"] * 2),
        (patches.bank_step(backbone, 5), {"embeddings": F32}, (5, 96), [COPY] * 2),
        (stored_maps.map_step(backbone), {"maps": F16, "moments": F64}, None, ["value"] * 2),  # finite?
        (attended_labels.feature_step(backbone, attention), {"features": F32}, (1, 96), []),
        (attended_labels.sweep_step(*attended), {"rows": I64}, None, counts * 2),
        (described, F32, (96,), [COPY]),
        (lambda batch: clusters.border_distance(maps(batch)), F32, (2, 3), ["mask"]),
        (above, torch.bool, (64, 96), ["mask"]),
        (lambda batch: neighbours._cosines(maps(batch), (8, 12), vectors), F32, None, [COPY] * 2),
        (banks.label_step(backbone, regions, 5, 0.07), I64, (8, 12), [COPY, COPY, "nonzero"]),
        (banks.label_step(backbone, regions, 5, 0.07, sharpen=True), I32, SHOWN, votes * 2),
        (patches.label_step(backbone, of_patches, 5, 0.02), I32, SHOWN, votes * 2),
        (patches.label_step(backbone, of_patches, 5, 0.02, sharpen=True), I32, SHOWN, votes * 2),
        (attention_of, F32, SHOWN, []),
        (attended_labels.label_step(*attended, 0.4), I32, SHOWN, []),
        (partial(predicted, segmenting), I32, SHOWN, []),
        (partial(predicted, segmenting, sharpen=True), I32, SHOWN, ["nonzero"] * 2),
    ]


@pytest.mark.parametrize("precision", PRECISIONS)
def test_steps_of_inference_wait_for_little_and_have_half_precision_where_they_say_so(precision, monkeypatch):
    backbone, attention = make_backbone("timm/test_resnet"), PixelAttention(96).eval()
    segmenting = SegmentationNetwork(make_backbone("timm/test_resnet"), 50, SEMI).eval()
    for shape, grid in itertools.product(SHOWN, ((8, 12), (64, 96))):
        enlarged(np.zeros(shape), *grid)  # indices are kept from here on: below, they would hold no values
    for old, new in ((2, 8), (3, 12)):
        neighbours._enlarging(old, new)
    with torch.inference_mode(), fake_cuda(monkeypatch) as moved:
        steps = steps_of(*map(moved, (backbone, attention, segmenting)))
        for number, (step, dtypes, shapes, waited_for) in enumerate(steps):
            pictures, masks = (
                torch.randn(2, 3, 64, 96, device=CUDA),
                [np.zeros(size, np.uint16) for size in SHOWN],
            )
            with Waits(value=1) as waits:
                found = list(step(Batch([0, 1], pictures, SHOWN, SHOWN, masks, precision)))
            assert waits.seen == waited_for, number
            for name, dtype in dtypes.items() if isinstance(dtypes, dict) else [(None, dtypes)]:
                leaves = [of_one[name] if name else of_one for of_one in found]
                assert {(leaf.device, leaf.dtype) for leaf in leaves} == {(CUDA, dtype)}, number
            if shapes is not None:
                expected = shapes if shapes == SHOWN else [shapes] * 2
                assert [tuple(leaf.shape) for leaf in leaves] == expected, number


class Placed(nn.Conv2d):
    """A network that remembers where it was moved to."""

    placed = None

    def __init__(self):
        super().__init__(3, 2, 1)

    def to(self, device, memory_format=None):
        self.placed = device, memory_format
        return self


def stubs(monkeypatch, module, **values):
    for name, value in values.items():
        monkeypatch.setattr(module, name, lambda *of, value=value: value)


def place_by_predict(network, monkeypatch):
    predict.label_step(network, argparse.Namespace(longest=1000, sharpen=False), Running(ALONE), None)


def place_by_distance_matching(network, monkeypatch):
    stubs(monkeypatch, distance_matching, bank_of=None)
    network.stride = 8
    job = distance_matching.Job(
        argparse.Namespace(sharpen=False), network, None, banks.KINDS["regions"], 10, 0.07
    )
    distance_matching.label_step(job, Running(ALONE), None)


def place_by_kmeans(network, monkeypatch):
    stubs(monkeypatch, kmeans, images_of=(None, None), make_backbone=network)
    stubs(monkeypatch, kmeans, load_backbone="", weights_digest="", network=None)
    given = {"backbone": "a", "checkpoint": None, "weights": None, "foreground": "features", "size": None}
    kmeans.prepare(argparse.Namespace(**given, precision="float32")).to_device(Running(ALONE))


def place_by_zero_shot(network, monkeypatch):
    embeddings = SimpleNamespace(to=lambda device: None)
    stubs(monkeypatch, zero_shot, text_embeddings="", load_embeddings=embeddings, Namer=None, label_step=None)
    job = SimpleNamespace(
        model=SimpleNamespace(model=network), dense="", arguments=argparse.Namespace(threshold=0.5)
    )
    zero_shot.namer_step(job, Running(ALONE), None)


def place_by_a_method_of_ones_own(network, monkeypatch):
    method = segmentation.network_method("own", network, len, {}, Reading((0,) * 3, (1,) * 3), {})
    method.make_step(Running(ALONE), None)


def place_for_pass(network, monkeypatch):
    AttendedNetwork(network, Placed(), [], {}).to(CUDA)


@pytest.mark.parametrize("place", [value for name, value in globals().items() if name.startswith("place_")])
def test_inference_places_networks_as_training_does(place, monkeypatch):
    network = Placed()
    place(network, monkeypatch)
    assert network.placed == (CUDA, torch.channels_last)


@pytest.mark.parametrize("precision", PRECISIONS)
def test_a_network_computes_in_the_precision_that_is_asked_for(precision):
    """On a CPU too; what it returns is at least float32, single tensors or several; float64 stays."""
    seen = []
    several = namedtuple("Several", "product exact")
    forms = {
        several: lambda found: several(*found),
        tuple: tuple,
        list: list,
        dict: lambda found: dict(zip(several._fields, found, strict=True)),
    }

    def network(values):
        seen.append((values @ values).dtype)
        return values @ values

    assert run_network(network, torch.eye(2), precision=precision).dtype == F32
    for form, made in forms.items():
        found = run_network(lambda x, m=made: m([network(x), x.double()]), torch.eye(2), precision=precision)
        assert type(found) is form
        tensors = found.values() if form is dict else found
        assert [of_one.dtype for of_one in tensors] == [F32, F64]
    assert set(seen) == {getattr(torch, precision)}


def test_auto_is_what_the_card_has(monkeypatch):
    assert training_precision("auto", torch.device("cpu")) == "float32"
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


def test_waits_are_seen_where_cuda_has_them(monkeypatch):
    """What the tests above rely on."""
    host = torch.zeros(4)
    with fake_cuda(monkeypatch):
        values = torch.zeros(4, device=CUDA)
        mask, places = values > 0, torch.zeros(2, dtype=torch.int64, device=CUDA)

        def set_to(value):
            values[mask] = value

        expected = [
            (values.sum().item, ["value"]),
            (values.tolist, ["value"]),
            (lambda: torch.equal(values, values), ["value"]),
            (lambda: torch.where(mask), ["nonzero"]),
            (lambda: values[mask], ["mask"]),
            (lambda: values[places], []),
            (lambda: values[[0, 1]], [COPY]),
            (lambda: set_to(1.0), []),
            (lambda: set_to(values[mask]), ["mask", "mask"]),
            (lambda: places.unique(return_inverse=True), ["_unique2"]),
            (lambda: torch.bincount(places, minlength=5), ["bincount"]),
            (lambda: torch.tensor([1.0, 2.0], device=CUDA), [COPY]),
            (lambda: torch.full((2,), 1.0, device=CUDA), []),
            (values.cpu, ["cuda -> cpu"]),
            (lambda: values.to("cpu", non_blocking=True), []),
            (lambda: host.to(CUDA, non_blocking=True), [COPY]),
            (lambda: host.pin_memory().to(CUDA, non_blocking=True), []),
            (lambda: host.pin_memory().to(CUDA), [COPY]),
            (lambda: values.copy_(torch.zeros(4)), [COPY]),
        ]
        for number, (operation, seen) in enumerate(expected):
            for mode in (nullcontext, torch.inference_mode):
                with mode(), Waits() as waits:
                    operation()
                assert waits.seen == seen, number
        with pytest.raises(RuntimeError, match="device"):
            values + host
        with pytest.raises(RuntimeError, match="data-dependent"):
            float(values.sum())


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
