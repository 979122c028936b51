"""finetune.py and predict.py: they learn, refuse what does not fit, and predict; killed runs: test_faults."""

from __future__ import annotations

import inspect
import os
import signal

import numpy as np
import pytest
import torch
from helpers.patterns import as_label_maps, write_patterns
from helpers.processes import children, wait_for, wait_until_gone
from helpers.training import TIMEOUT, call, log_of, on_two_ranks, start_script, state_of
from masksets import write_mask
from PIL import Image
from prepared_set import write_lists
from torch.nn.functional import interpolate

pytest.importorskip("timm")

from imagenets.classes import MODES
from imagenets.common.errors import InputError
from imagenets.learning.engine import full_size
from imagenets.learning.finetuning.pairs import Augmented, list_pairs
from imagenets.learning.networks.backbones import make_backbone
from imagenets.learning.networks.segmentation_network import SegmentationNetwork
from imagenets.masks import decode_mask
from methods import finetune, predict


@pytest.fixture(scope="module")
def save(tmp_path_factory):
    """A prepared set of eight images in train-semi and validation, and its lists."""
    folder = tmp_path_factory.mktemp("prepared")
    write_patterns(folder, per_class=2)
    write_lists(folder / "lists")
    return folder


@pytest.fixture
def own_save(tmp_path):
    """Such a set, of train too, that a test may change: its folder, with the lists, and the set's."""
    write_lists(tmp_path / "lists")
    return tmp_path, write_patterns(tmp_path, per_class=2, splits=("train-semi", "train"))


def arguments_of(save, output, *more, backbone="test_vit", recipe="semi-supervised"):
    return (
        "--save-dir", save, "--mode", 50, "--recipe", recipe, "--backbone", backbone, "--checkpoint", "none",
        "--output-dir", output, "--crop", 64, "--batch-size", 4, "--workers", 0, "--evaluate-every", 0, *more,
    )  # fmt: skip


def test_workers_end_with_their_parent(context, own_save, tmp_path):
    """Also a worker that waits for its file, which no picture of a disk that has gone will ever answer."""
    save, root = own_save
    arguments = arguments_of(save, tmp_path / "run", "--epochs", 10_000, "--workers", 2)
    process = start_script(context, "finetune", save, tmp_path / "said", *arguments)
    wait_for(lambda: (tmp_path / "run/settings.json").exists() or process.exitcode is not None)
    os.mkfifo(tmp_path / "endless")
    picture = (tmp_path / "endless").replace(next((root / "train-semi").rglob("*.JPEG")))
    with picture.open("wb"):  # it opens when a worker reads it
        workers = children(process.pid)
        process.kill()
        process.join(TIMEOUT)
        assert process.exitcode == -signal.SIGKILL, (tmp_path / "said").read_text()
        assert len(workers) == 2
        wait_until_gone(workers)


def test_two_processes_of_torchrun_train_as_one(context, save, tmp_path):
    """Without batch norm, with validation: equal losses, and no image is scored twice."""
    more = ("--epochs", 2, "--evaluate-every", 1, "--drop-path", 0)
    call(finetune.main, save, *arguments_of(save, tmp_path / "1", *more, backbone="test_convnext"))
    two = arguments_of(save, tmp_path / "2", *more, backbone="test_convnext")
    on_two_ranks(context, "finetune", save, tmp_path / "said", *two)
    for first, second in zip(log_of(tmp_path / "1"), log_of(tmp_path / "2"), strict=True):
        assert first["loss"] == pytest.approx(second["loss"], abs=1e-4)
        assert first["mIoU"] == pytest.approx(second["mIoU"], abs=0.1)


def test_pass_learns_from_label_maps_and_goes_on_only_with_the_same_settings(own_save, tmp_path, capsys):
    save, root = own_save
    masks = root / "train-segmentation"
    path, labels = as_label_maps(masks)
    arguments = ("--masks", masks, "--epochs", 3, "--lr", 0.5)
    arguments = arguments_of(save, tmp_path / "run", *arguments, backbone="test_resnet", recipe="pass")
    call(finetune.main, save, *arguments)
    losses = [record["loss"] for record in log_of(tmp_path / "run")]
    assert losses[-1] < losses[0]
    about = {"backbone": "test_resnet", "mode": "50", "recipe": "pass", "epoch": 3, "classes": 50}
    assert state_of(tmp_path / "run").items() >= about.items()
    before = (tmp_path / "run/last.pth").read_bytes()
    with pytest.raises(InputError, match=r"lr: 0.5 then, 0.6 now"):
        call(finetune.main, save, *arguments, "--lr", 0.6)
    assert capsys.readouterr().out.count("saved: ") == 1
    call(finetune.main, save, *arguments)
    assert "saved: " in capsys.readouterr().out
    write_mask(path, labels[::-1])
    with pytest.raises(InputError, match=r"other settings .labels: [0-9a-f]{32} then, [0-9a-f]{32} now"):
        call(finetune.main, save, *arguments)
    assert (tmp_path / "run/last.pth").read_bytes() == before


def test_masks_that_do_not_fit_are_all_named_before_anything_is_made(own_save, tmp_path):
    save, root = own_save
    masks = sorted((root / "train-semi-segmentation").rglob("*.png"))
    masks[0].unlink()
    write_mask(masks[1], np.ones((3, 3), int))
    sorted((root / "train-semi").rglob("*.JPEG"))[2].unlink()
    with pytest.raises(InputError, match="3 images or masks have no partner of the same size") as told:
        call(finetune.main, save, *arguments_of(save, tmp_path / "run"))
    assert all(path.stem in str(told.value) for path in masks[:3])
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("recipe", ["semi-supervised", "pass"])
def test_labels_that_are_none_are_refused(own_save, monkeypatch, recipe):
    """Annotated masks before the training, label maps when they are read."""
    save, root = own_save
    monkeypatch.setenv("IMAGENETS_LISTS", str(save / "lists"))
    masks = root / ("train-segmentation" if recipe == "pass" else "train-semi-segmentation")
    path = sorted(masks.rglob("*.png"))[3]
    write_mask(path, np.full(decode_mask(path).shape, 51))
    if recipe == "pass":
        pairs = list_pairs(save, MODES["50"], recipe, masks)
    with pytest.raises(InputError, match=f"{path}: label 51 is outside"):
        if recipe == "pass":
            Augmented(pairs, 32, 0.1, 0).read(0, 3)
        else:
            list_pairs(save, MODES["50"], recipe, None)


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (("--batch-size", 5, "--accumulate", 2), "batch size 5: does not divide"),
        (("--crop", 70), "take a multiple of 16"),
        (("--device", "cuda"), "take the CPU"),
        (("--evaluate-every", 1, "--checkpoint", "absent.pth"), "absent.pth"),
    ],
)
def test_what_cannot_be_trained_is_refused(save, tmp_path, more, words):
    if "cuda" in more and torch.cuda.is_available():
        pytest.skip("CUDA is there")
    with pytest.raises((InputError, OSError), match=words):
        call(finetune.main, save, *arguments_of(save, tmp_path / "run", *more))
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("recipe", "more", "words"),
    [
        ("semi-supervised", ("--masks", "x"), "--masks goes with --recipe pass"),
        ("pass", (), "--masks goes with --recipe pass"),
        ("semi-supervised", ("--lr", "nan"), "not a number above 0"),
        ("semi-supervised", ("--layers", 4), "--layers goes with --recipe linear-probe"),
        ("semi-supervised", ("--size", "native"), "--size goes with --recipe linear-probe"),
        ("linear-probe", (), "--crop does not go with --recipe linear-probe"),
    ],
)
def test_options_that_do_not_go_together_are_wrong_usage(save, tmp_path, capsys, recipe, more, words):
    with pytest.raises(SystemExit) as ended:
        call(finetune.main, save, *arguments_of(save, tmp_path / "run", *more, recipe=recipe))
    assert ended.value.code == 2
    assert words in capsys.readouterr().err


def saved_network(path, name="test_vit"):
    """A network of spread weights, and its file; published layouts: test_segmentation_network."""
    torch.manual_seed(4)
    network = SegmentationNetwork(make_backbone(name), 50, "semi-supervised")
    with torch.no_grad():
        for value in network.parameters():
            value.add_(torch.randn_like(value) * 0.05)
        network.head.weight.mul_(20)
        if network.kind == "resnet":  # else one label would win everywhere, by the mean of the features
            network.train()(torch.randn(8, 3, 96, 96))
            mean = network.eval().backbone(torch.randn(8, 3, 96, 96)).mean((0, 2, 3))
            network.head.bias.copy_(-(network.head.weight[:, :, 0, 0] @ mean))
    torch.save({"model": network.weights()}, path)
    return network.eval()


def reference(network, path, longest):
    """One image, by itself: shorter side 256, logits enlarged to its size, the largest."""
    image = Image.open(path).convert("RGB")
    w, h = image.size
    size = (256, int(256 * h / w)) if w <= h else (int(256 * w / h), 256)
    pixels = np.asarray(image.resize(size, Image.Resampling.BILINEAR), np.float32) / 255
    x = (pixels - np.float32((0.485, 0.456, 0.406))) / np.float32((0.229, 0.224, 0.225))
    with torch.no_grad():
        logits = network(torch.from_numpy(x).permute(2, 0, 1)[None])
    if h * w <= longest**2:
        return interpolate(logits, (h, w), mode="bilinear").argmax(1)[0].numpy()
    small = (longest, int(longest * w / h)) if h > w else (int(longest * h / w), longest)
    labels = interpolate(logits, small, mode="bilinear").argmax(1, keepdim=True)
    return interpolate(labels.float(), (h, w), mode="nearest")[0, 0].numpy().astype(int)


@pytest.mark.parametrize("name", ["test_resnet", "test_vit", "test_convnext"])
def test_predictions_are_those_of_the_reference(save, tmp_path, name):
    pictures, rng = tmp_path / "pictures", np.random.default_rng(0)
    pictures.mkdir()
    for number, (h, w) in enumerate(((40, 61), (61, 40), (120, 90), (90, 141), (100, 100), (7, 30))):
        noise = rng.integers(0, 256, (-(-h // 5), -(-w // 5), 3), np.uint8)
        coarse = np.kron(noise, np.ones((5, 5, 1), np.uint8))[:h, :w]
        Image.fromarray(coarse).save(pictures / f"{number}.png")
    network = saved_network(tmp_path / "model.pth", name)
    call(
        predict.main, save, "--images", pictures, "--model", tmp_path / "model.pth", "--backbone",
        name, "--longest", 90, "--output-dir", tmp_path / "out", "--workers", 0,
        "--batch-size", 3, "--overlays",
    )  # fmt: skip
    seen, wrong, pixels = set(), 0, 0
    for path in sorted(pictures.iterdir()):
        expected = reference(network, path, 90)
        found = decode_mask(tmp_path / "out/images" / path.name)
        assert found.shape == expected.shape
        wrong, pixels = wrong + int((found != expected).sum()), pixels + expected.size
        seen |= set(np.unique(expected).tolist())
    assert wrong <= max(1, pixels // 5000)
    assert len(list((tmp_path / "out").rglob("*.jpg"))) == 6
    assert len(seen) > 5, "a network that says one thing everywhere would prove nothing"


def test_predict_refuses_a_network_whose_backbone_is_not_named(save, tmp_path):
    saved_network(tmp_path / "model.pth")
    with pytest.raises(InputError, match="name the backbone"):
        call(
            predict.main, save, "--save-dir", save, "--output-dir", tmp_path / "out", "--model",
            tmp_path / "model.pth", "--workers", 0, "--mode", 50,
        )  # fmt: skip
    assert not (tmp_path / "out").exists()


def test_memory_stays_bounded_for_a_large_picture(monkeypatch):
    """Of 920 labels' maps 30 are made at a time; by default 256 MB."""
    sizes = []

    def enlarge(maps, size, mode):
        sizes.append(maps.shape[1])
        return interpolate(maps, size, mode=mode)

    monkeypatch.setattr(full_size, "interpolate", enlarge)
    assert full_size.label_map(torch.randn(920, 5, 4), (50, 40), at_once=30 * 50 * 40).shape == (50, 40)
    assert max(sizes) == 30
    assert 4 * inspect.signature(full_size.label_map).parameters["at_once"].default == 256 << 20
