"""finetune.py and predict.py: they learn, go on after a kill, refuse what does not fit, and predict."""

from __future__ import annotations

import inspect
import json
import os
import re
import signal
import weakref
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from helpers import method_scripts
from helpers.patterns import draw, write_patterns
from helpers.processes import children, torchrun_variables, wait_for, wait_until_gone
from masksets import write_mask
from PIL import Image
from prepared_set import write_lists
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from imagenets.classes import MODES
from imagenets.common.errors import InputError
from imagenets.learning.engine.full_size import label_map
from imagenets.learning.finetuning import prediction
from imagenets.learning.finetuning.losses import annotated_loss
from imagenets.learning.finetuning.pairs import Augmented, list_pairs
from imagenets.learning.networks.backbones import make_backbone
from imagenets.learning.networks.precision import Normalisation
from imagenets.learning.networks.segmentation_network import SegmentationNetwork
from imagenets.learning.processes import Processes
from imagenets.masks import decode_mask

pytest.importorskip("timm")

ALONE = Processes(0, 1, torch.device("cpu"))
TIMEOUT = 240  # seconds, far above what a run takes


@pytest.fixture(scope="module")
def save(tmp_path_factory):
    """A prepared set of eight images in train-semi and validation, and its lists."""
    folder = tmp_path_factory.mktemp("prepared")
    write_patterns(folder, per_class=2)
    write_lists(folder / "lists")
    return folder


def start(context, save, script, said, *arguments, fault=None, variables=None):
    """Start methods/SCRIPT; what it prints goes to the file ``said``; ``fault`` as in helpers.faults.arm.

    ``variables`` are added to its environment.
    """
    environment = {"IMAGENETS_LISTS": str(save / "lists")} | (variables or {})
    process = context.Process(
        target=method_scripts.child, args=(script, [*map(str, arguments)], environment, str(said), fault)
    )
    process.start()
    return process


def run(context, save, script, said, *arguments, status=0):
    process = start(context, save, script, said, *arguments)
    process.join(TIMEOUT)
    text = Path(said).read_text()
    assert process.exitcode == status, text
    assert "Traceback" not in text
    return text


def finetune(save, output, *more, backbone="test_vit", recipe="semi-supervised"):
    return (
        "--save-dir", save, "--mode", 50, "--recipe", recipe, "--backbone", backbone, "--checkpoint", "none",
        "--output-dir", output, "--crop", 64, "--batch-size", 4, "--workers", 0, "--evaluate-every", 0, *more,
    )  # fmt: skip


def log(folder):
    records = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    return [{k: v for k, v in r.items() if k not in ("images_per_second", "data_wait")} for r in records]


def weights(folder):
    return torch.load(folder / "last.pth", weights_only=True)["model"]


def test_killed_before_several_steps_it_ends_with_the_same_weights(context, save, tmp_path):
    """Two steps an epoch: killed before anything is saved, within an epoch, and between two."""
    more = ("--epochs", 3, "--drop-path", 0.3, "--accumulate", 2)
    run(context, save, "finetune", tmp_path / "said", *finetune(save, tmp_path / "whole", *more))
    killed = finetune(save, tmp_path / "killed", *more)
    for step in (0, 3, 2):  # counted from each start
        process = start(context, save, "finetune", tmp_path / "said", *killed, fault=("killed", step))
        process.join(TIMEOUT)
        assert process.exitcode == -signal.SIGKILL, (tmp_path / "said").read_text()
    run(context, save, "finetune", tmp_path / "said", *killed)
    whole, killed = weights(tmp_path / "whole"), weights(tmp_path / "killed")
    assert whole.keys() == killed.keys()
    assert all(torch.equal(whole[name], killed[name]) for name in whole)
    assert log(tmp_path / "killed") == log(tmp_path / "whole")
    assert [record["epoch"] for record in log(tmp_path / "whole")] == [1, 2, 3]


@pytest.mark.parametrize("script", ["finetune", "pretrain"])
@pytest.mark.parametrize(("how", "status"), [(signal.SIGKILL, -9), (signal.SIGTERM, 143)])
def test_workers_end_with_their_parent(script, how, status, context, save, tmp_path):
    """Also a worker that waits for its file, which no picture of a disk that has gone will ever answer."""
    root = write_patterns(tmp_path / "prepared", splits=("train-semi", "train"))
    common = ("--epochs", 10_000, "--workers", 2, "--batch-size", 4)
    arguments = {
        "finetune": finetune(tmp_path / "prepared", tmp_path / "run", *common),
        "pretrain": (
            "--save-dir", tmp_path / "prepared", "--mode", 50, "--recipe", "small",
            "--output-dir", tmp_path / "run", *common,
        ),
    }  # fmt: skip
    process = start(context, save, script, tmp_path / "said", *arguments[script])
    wait_for(lambda: (tmp_path / "run/settings.json").exists() or process.exitcode is not None)
    picture = next((root / {"finetune": "train-semi", "pretrain": "train"}[script]).rglob("*.JPEG"))
    os.mkfifo(tmp_path / "endless")
    (tmp_path / "endless").replace(picture)
    with picture.open("wb"):  # it opens when a worker reads it
        workers = children(process.pid)
        os.kill(process.pid, how)
        process.join(TIMEOUT)
        assert process.exitcode == status, (tmp_path / "said").read_text()
        assert len(workers) == 2
        wait_until_gone(workers)


def test_two_processes_of_torchrun_train_as_one(context, save, tmp_path):
    """Without batch norm, with validation: equal losses, and no image is scored twice."""
    more = ("--epochs", 2, "--evaluate-every", 1, "--drop-path", 0)
    one = finetune(save, tmp_path / "1", *more, backbone="test_convnext")
    run(context, save, "finetune", tmp_path / "said", *one)
    two = finetune(save, tmp_path / "2", *more, backbone="test_convnext")
    ranks = [
        start(context, save, "finetune", tmp_path / f"said{rank}", *two, variables=variables)
        for rank, variables in enumerate(torchrun_variables(2))
    ]
    for rank in ranks:
        rank.join(TIMEOUT)
    said = "".join((tmp_path / f"said{rank}").read_text() for rank in (0, 1))
    assert [rank.exitcode for rank in ranks] == [0, 0], said
    for first, second in zip(log(tmp_path / "1"), log(tmp_path / "2"), strict=True):
        assert first["loss"] == pytest.approx(second["loss"], abs=1e-4)
        assert first["mIoU"] == pytest.approx(second["mIoU"], abs=0.1)
    assert said.count("saved: ") == 1


def test_four_images_are_learnt_by_heart():
    """From random weights: the loss falls, and most of each label is right (objects have edges)."""
    torch.manual_seed(0)
    rng = np.random.default_rng(5)
    drawn = [draw(rng, label, 128, 128) for label in range(4)]
    normalised = Normalisation((0.485, 0.456, 0.406), (0.229, 0.224, 0.225), ALONE.device)
    pictures = normalised(torch.stack([torch.from_numpy(picture).permute(2, 0, 1) for picture, _ in drawn]))
    masks = torch.stack([torch.from_numpy(labels) for _, labels in drawn])
    network = SegmentationNetwork(make_backbone("test_convnext"), 50, "semi-supervised").train()
    optimiser = torch.optim.AdamW(network.parameters(), lr=1e-2)
    losses = []
    for _ in range(60):
        loss = annotated_loss(network(pictures), masks, ALONE)
        losses.append(loss.item())
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    assert losses[-1] < losses[0] / 50
    with torch.no_grad():
        found = torch.stack([label_map(logits, (128, 128)) for logits in network.eval()(pictures)])
    counts = masks != 1000
    ious = [
        ((found == label) & (masks == label) & counts).sum()
        / (((found == label) | (masks == label)) & counts).sum()
        for label in range(5)
    ]
    assert np.mean(ious) > 0.9


def test_pass_learns_from_label_maps_and_goes_on_only_with_the_same_settings(context, save, tmp_path):
    write_patterns(tmp_path, per_class=2, splits=("train",))
    write_lists(tmp_path / "lists")
    masks = tmp_path / "ImageNetS50/train-segmentation"
    for path in masks.rglob("*.png"):
        labels = decode_mask(path).astype(int)
        write_mask(path, np.where(labels == 1000, 0, labels))
    arguments = ("--masks", masks, "--epochs", 3, "--lr", 0.5)
    whole = finetune(tmp_path, tmp_path / "run", *arguments, backbone="test_resnet", recipe="pass")
    run(context, tmp_path, "finetune", tmp_path / "said", *whole)
    losses = [record["loss"] for record in log(tmp_path / "run")]
    assert losses[-1] < losses[0]
    saved = torch.load(tmp_path / "run/last.pth", weights_only=True)
    assert (saved["backbone"], saved["mode"], saved["recipe"], saved["epoch"], saved["classes"]) == (
        "test_resnet", "50", "pass", 3, 50,
    )  # fmt: skip
    before = (tmp_path / "run/last.pth").read_bytes()
    other = run(context, tmp_path, "finetune", tmp_path / "said", *whole, "--lr", 0.6, status=1)
    assert "lr: 0.5 then, 0.6 now" in other
    assert (tmp_path / "run/last.pth").read_bytes() == before
    again = run(context, tmp_path, "finetune", tmp_path / "said", *whole)
    assert "saved: " in again
    write_mask(path, np.where(labels == 1000, 0, labels)[::-1])
    other = run(context, tmp_path, "finetune", tmp_path / "said", *whole, status=1)
    assert re.search("holds a run with other settings .labels: [0-9a-f]{32} then, [0-9a-f]{32} now", other)
    assert (tmp_path / "run/last.pth").read_bytes() == before


def test_masks_that_do_not_fit_are_all_named_before_anything_is_made(context, tmp_path):
    root = write_patterns(tmp_path, per_class=2)
    write_lists(tmp_path / "lists")
    masks = sorted((root / "train-semi-segmentation").rglob("*.png"))
    images = sorted((root / "train-semi").rglob("*.JPEG"))
    masks[0].unlink()
    write_mask(masks[1], np.ones((3, 3), int))
    images[2].unlink()
    said = run(
        context, tmp_path, "finetune", tmp_path / "said", *finetune(tmp_path, tmp_path / "run"), status=1
    )
    assert "3 images or masks have no partner of the same size" in said
    assert all(path.stem in said for path in (masks[0], masks[1], masks[2]))
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("recipe", ["semi-supervised", "pass"])
def test_labels_that_are_none_are_refused(tmp_path, monkeypatch, recipe):
    split = "train" if recipe == "pass" else "train-semi"
    root = write_patterns(tmp_path, per_class=2, splits=(split,))
    write_lists(tmp_path / "lists")
    monkeypatch.setenv("IMAGENETS_LISTS", str(tmp_path / "lists"))
    masks = root / f"{split}-segmentation"
    path = sorted(masks.rglob("*.png"))[3]
    write_mask(path, np.full(decode_mask(path).shape, 51))
    if recipe == "pass":
        pairs = list_pairs(tmp_path, MODES["50"], recipe, masks)
        with pytest.raises(InputError, match=f"{path}: label 51 is outside"):
            Augmented(pairs, 32, 0.1, 0).read(0, 3)
        return
    with pytest.raises(InputError, match=f"{path}: label 51 is outside"):
        list_pairs(tmp_path, MODES["50"], recipe, None)


@pytest.mark.parametrize(
    ("more", "status", "words"),
    [
        (("--batch-size", 5, "--accumulate", 2), 1, "batch size 5: does not divide"),
        (("--crop", 70), 1, "take a multiple of 16"),
        (("--device", "cuda"), 1, "take the CPU"),
        (("--masks", "x"), 2, "--masks goes with --recipe pass"),
        (("--lr", "nan"), 2, "not a number above 0"),
        (("--evaluate-every", 1, "--checkpoint", "absent.pth"), 1, "absent.pth"),
    ],
)
def test_arguments_that_cannot_be_are_refused(context, save, tmp_path, more, status, words):
    if "cuda" in more and torch.cuda.is_available():
        pytest.skip("CUDA is there")
    arguments = finetune(save, tmp_path / "run", *more)
    assert words in run(context, save, "finetune", tmp_path / "said", *arguments, status=status)
    assert not (tmp_path / "run").exists()


def published(folder, kind):
    """A network of spread weights and a file that holds it in its published layout."""
    name, recipe, stride = {
        "pass": ("test_resnet", "pass", None), "resnet": ("test_resnet", "semi-supervised", None),
        "vit": ("test_vit", "semi-supervised", None), "convnext": ("test_convnext", "semi-supervised", None),
    }[kind]  # fmt: skip
    torch.manual_seed(4)
    network = SegmentationNetwork(make_backbone(name, output_stride=stride), 50, recipe)
    with torch.no_grad():
        for value in network.parameters():
            value.add_(torch.randn_like(value) * 0.05)
        network.head.weight.mul_(20)
        if network.kind == "resnet":  # else one label would win everywhere, by the mean of the features
            network.train()(torch.randn(8, 3, 96, 96))
            network.eval()
            mean = network.backbone(torch.randn(8, 3, 96, 96)).mean((0, 2, 3))
            network.head.bias.copy_(-(network.head.weight[:, :, 0, 0] @ mean))
    renamed = {"pass": "last_layer.", "convnext": "seg_head.fc."}.get(kind, "head.")
    tensors = {name.replace("head.", renamed): value for name, value in network.weights().items()}
    prefixed = {f"module.{name}": value for name, value in tensors.items()}
    torch.save({"state_dict": prefixed} if kind == "pass" else {"model": tensors}, folder / f"{kind}.pth")
    return network.eval(), name, folder / f"{kind}.pth"


def reference(network, path, longest):
    """One image, by itself: shorter side 256, logits enlarged to its size, the largest."""
    image = Image.open(path).convert("RGB")
    w, h = image.size
    size = (256, int(256 * h / w)) if w <= h else (int(256 * w / h), 256)
    pixels = np.asarray(image.resize(size, Image.Resampling.BILINEAR), np.float32) / 255
    x = (pixels - np.float32((0.485, 0.456, 0.406))) / np.float32((0.229, 0.224, 0.225))
    interpolate = torch.nn.functional.interpolate
    with torch.no_grad():
        logits = network(torch.from_numpy(x).permute(2, 0, 1)[None])
    if h * w <= longest**2:
        return interpolate(logits, (h, w), mode="bilinear").argmax(1)[0].numpy()
    small = (longest, int(longest * w / h)) if h > w else (int(longest * h / w), longest)
    labels = interpolate(logits, small, mode="bilinear").argmax(1, keepdim=True)
    return interpolate(labels.float(), (h, w), mode="nearest")[0, 0].numpy().astype(int)


@pytest.fixture(scope="module")
def odd_pictures(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pictures")
    rng = np.random.default_rng(0)
    for number, (h, w) in enumerate(((40, 61), (61, 40), (120, 90), (90, 141), (100, 100), (7, 30))):
        noise = rng.integers(0, 256, (-(-h // 5), -(-w // 5), 3), np.uint8)
        Image.fromarray(np.kron(noise, np.ones((5, 5, 1), np.uint8))[:h, :w]).save(folder / f"{number}.png")
    return folder


@pytest.mark.parametrize("kind", ["pass", "resnet", "vit", "convnext"])
def test_predictions_are_those_of_the_reference(context, save, tmp_path, odd_pictures, kind):
    network, name, file = published(tmp_path, kind)
    arguments = ("--images", odd_pictures, "--model", file, "--backbone", name, "--longest", 90)
    more = ("--output-dir", tmp_path / "out", "--workers", 0, "--batch-size", 3, "--overlays")
    run(context, save, "predict", tmp_path / "said", *arguments, *more)
    seen, wrong, pixels = set(), 0, 0
    for path in sorted(odd_pictures.glob("*.png")):
        expected = reference(network, path, 90)
        found = decode_mask(tmp_path / "out/images" / path.name)
        assert found.shape == expected.shape
        wrong, pixels = wrong + int((found != expected).sum()), pixels + expected.size
        seen |= set(np.unique(expected).tolist())
    assert wrong <= max(1, pixels // 5000)
    assert len(list((tmp_path / "out").rglob("*.jpg"))) == len(list(odd_pictures.glob("*.png")))
    assert len(seen) > 5, "a network that says one thing everywhere would prove nothing"


def test_predict_refuses_another_network_or_mode(context, save, tmp_path):
    _, name, file = published(tmp_path, "vit")
    common = ("--save-dir", save, "--output-dir", tmp_path / "out", "--model", file, "--workers", 0)
    said = run(context, save, "predict", tmp_path / "s", *common, "--mode", 50, status=1)
    assert "name the backbone" in said
    said = run(context, save, "predict", tmp_path / "s", *common, "--mode", 300, "--backbone", name, status=1)
    assert "has 50 classes, the mode has 300" in said
    said = run(
        context, save, "predict", tmp_path / "s", *common, "--mode", 50, "--backbone", "resnet18", status=1
    )
    assert "no resnet18 with a head" in said
    assert not (tmp_path / "out").exists()


class Held(TorchDispatchMode):
    """Counts the bytes of the tensors that operations have made and that are still there."""

    def __init__(self):
        super().__init__()
        self.now, self.most = {}, 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        made = function(*args, **(kwargs or {}))
        for tensor in filter(torch.is_tensor, tree_leaves(made)):
            storage = tensor.untyped_storage()
            if storage._cdata not in self.now:
                self.now[storage._cdata] = storage.nbytes()
                weakref.finalize(storage, self.now.pop, storage._cdata)
        self.most = max(self.most, sum(self.now.values()))
        return made


def test_memory_stays_bounded_for_a_large_picture():
    """Of 920 labels' maps 30 are made at a time, while the last 30 are still there; by default 256 MB."""
    logits, size = torch.randn(920, 5, 4), (50, 40)
    of_30_maps = 4 * 30 * size[0] * size[1]
    with Held() as held:
        labels = label_map(logits, size, at_once=of_30_maps // 4)
    assert labels.shape == size
    assert held.most < 3 * of_30_maps
    assert 4 * inspect.signature(label_map).parameters["at_once"].default == 256 << 20


def test_validation_shows_its_progress(monkeypatch):
    """It may take minutes at the end of a training."""
    seen = []

    def visit(images, step, reading, running, with_masks):
        seen.append(running.show)
        raise InputError("seen")

    monkeypatch.setattr(prediction, "visit", visit)
    network = torch.nn.Module()
    network.backbone = SimpleNamespace(reading=lambda stretched: None)
    validation = prediction.Validation(object(), 3, 1, show=print)
    with pytest.raises(InputError, match="seen"):
        validation.scores(network, 1, Processes(0, 1, torch.device("cpu")), 0, "float32", 1)
    assert seen == [print]
