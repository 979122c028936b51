"""The linear probe: its fast form and its files against slow ones, and the scripts."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from helpers.patterns import write_patterns
from masksets import CHECKOUT
from PIL import Image
from prepared_set import write_lists
from torch import nn
from torch.nn.functional import cross_entropy, dropout, interpolate

timm = pytest.importorskip("timm")

from imagenets.classes import MODES
from imagenets.common.errors import InputError
from imagenets.common.progress import no_bar
from imagenets.learning.engine.inference import Batch, Running
from imagenets.learning.finetuning import probe, stored_maps
from imagenets.learning.images import annotated_images
from imagenets.learning.networks.backbones import make_backbone
from imagenets.learning.networks.checkpoints import load_backbone
from imagenets.learning.networks.segmentation_network import read_saved
from imagenets.learning.processes import Processes
from imagenets.learning.training import run_files
from imagenets.learning.training.order import Plan, StepIndex, generator, seed_network
from imagenets.masks import decode_mask
from methods import finetune, predict

ALONE = Processes(0, 1, torch.device("cpu"))
GRIDS = ((3, 4), (4, 3), (2, 5))
CHANNELS, LABELS, STRIDE = 6, 5, 14  # the grid of stride 8 is 1.75 times as fine


def stored_pictures(seed=0):
    """Random maps (C, h, w) with large means, as the Reader stacks them, and the maps enlarged."""
    torch.manual_seed(seed)
    maps = [torch.randn(CHANNELS, *grid) * 3 + torch.arange(CHANNELS)[:, None, None] * 20 for grid in GRIDS]
    fine = [
        interpolate(one[None], (one.shape[1] * 14 // 8, one.shape[2] * 14 // 8), mode="bilinear")
        for one in maps
    ]
    rows = torch.zeros(3, 12, CHANNELS)
    for number, one in enumerate(maps):
        rows[number, : one[0].numel()] = one.flatten(1).T
    moments = [
        torch.stack((one.double().sum((2, 3)), one.double().square().sum((2, 3))), 1)[0] for one in fine
    ]
    return rows, torch.tensor(GRIDS), torch.stack(moments), fine


def lively_head(processes=ALONE):
    torch.manual_seed(1)
    head = probe.ProbeHead(CHANNELS, LABELS, STRIDE, 0.4, processes)
    for value in (head.norm.weight, head.norm.bias, head.head.weight, head.head.bias):
        nn.init.uniform_(value, -1, 1)
    return head


def slow_probe(head, fine, kept):
    """Batch norm over all places of all enlarged maps, dropout of channels, 1x1 convolution."""
    norm, layer = nn.BatchNorm2d(CHANNELS), nn.Conv2d(CHANNELS, LABELS, 1)
    norm.load_state_dict(head.norm.state_dict())
    layer.load_state_dict(head.head.state_dict())
    norm.train(head.training)
    places = norm(torch.cat([one.flatten(2) for one in fine], 2)[..., None])
    found, start = [], 0
    for one, of_channels in zip(fine, kept, strict=True):
        end = start + one[0, 0].numel()
        normed = places[:, :, start:end].reshape(one.shape) * of_channels[:, None, None]
        found.append(layer(normed))
        start = end
    return found, norm, layer


def test_training_is_that_of_the_slow_probe_with_its_gradients():
    rows, grids, moments, fine = stored_pictures()
    head = lively_head()
    torch.manual_seed(5)
    kept = dropout(torch.ones(3, CHANNELS), 0.4)
    assert 0 < int((kept == 0).sum()) < kept.numel()
    slow, norm, layer = slow_probe(head, fine, kept)
    torch.manual_seed(5)
    fast = head(rows, grids, moments)
    labels = torch.full((3, 40), 1000, dtype=torch.int16)
    total = pixels = 0
    for number, one in enumerate(slow):
        targets = torch.randint(LABELS, one[0, 0].shape)
        targets[0] = 1000
        labels[number, : targets.numel()] = targets.flatten()
        total = total + cross_entropy(one, targets[None], ignore_index=1000, reduction="sum")
        pixels += int((targets != 1000).sum())
        torch.testing.assert_close(fast[number], one, atol=1e-4, rtol=0)
    loss = probe.probe_loss(fast, labels, ALONE)
    torch.testing.assert_close(loss, total / pixels)
    loss.backward()
    (total / pixels).backward()
    pairs = (
        (head.norm.weight, norm.weight),
        (head.norm.bias, norm.bias),
        (head.head.weight, layer.weight),
        (head.head.bias, layer.bias),
    )
    for ours, theirs in pairs:
        torch.testing.assert_close(ours.grad, theirs.grad, atol=1e-5, rtol=1e-4)
    for name in ("running_mean", "running_var", "num_batches_tracked"):
        torch.testing.assert_close(getattr(head.norm, name), getattr(norm, name), atol=1e-5, rtol=1e-5)


def test_outside_of_training_running_values_and_all_channels_count():
    rows, grids, moments, fine = stored_pictures()
    head = lively_head()
    head(rows, grids, moments)
    head.eval()
    slow, *_ = slow_probe(head, fine, torch.ones(3, CHANNELS))
    for ours, theirs in zip(head(rows, grids, moments), slow, strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=0)


class OfTwo:
    """Stands for one of two processes, whose sums the other adds to."""

    number = 2

    def __init__(self, others):
        self.others = others

    def sum(self, values):
        return values + self.others


def test_means_and_loss_are_over_the_pictures_of_all_processes():
    rows, grids, moments, _ = stored_pictures()
    whole = lively_head()
    whole(rows, grids, moments)
    places = [float(height * 14 // 8 * (width * 14 // 8)) for height, width in GRIDS]
    others = torch.cat((moments[1:].sum(0), torch.full((2, 1), places[1] + places[2])), 1)
    part = lively_head(OfTwo(others))
    part(rows[:1], grids[:1], moments[:1])
    torch.testing.assert_close(part.norm.running_mean, whole.norm.running_mean)
    torch.testing.assert_close(part.norm.running_var, whole.norm.running_var)
    logits = [torch.randn(1, LABELS, 2, 3)]
    labels = torch.tensor([[0, 1, 2, 1000, 4, 0]], dtype=torch.int16)
    own = cross_entropy(logits[0], labels.long().reshape(1, 2, 3), ignore_index=1000, reduction="sum")
    torch.testing.assert_close(probe.probe_loss(logits, labels, OfTwo(7)), own * 2 / 12)


@pytest.fixture(scope="module")
def save(tmp_path_factory):
    folder = tmp_path_factory.mktemp("prepared")
    write_patterns(folder, per_class=3)
    write_lists(folder / "lists")
    return folder


def picture_of(path, mirrored=False):
    """The shorter side 256, cut to whole patches of 16: (1, 3, H, W), and what it shows of the image."""
    image = Image.open(path).convert("RGB")
    width, height = image.size
    size = (256, int(256 * height / width)) if width <= height else (int(256 * width / height), 256)
    pixels = np.asarray(image.resize(size, Image.Resampling.BILINEAR), np.float32) / 255
    rows, columns = (length // 16 * 16 for length in pixels.shape[:2])
    x = (pixels[:rows, :columns] - np.float32((0.485, 0.456, 0.406))) / np.float32((0.229, 0.224, 0.225))
    x = torch.from_numpy(np.ascontiguousarray(x[:, ::-1] if mirrored else x)).permute(2, 0, 1)[None]
    return x, (round(height * rows / size[1]), round(width * columns / size[0]))


def joined(backbone, x, layers):
    """Maps of the last blocks, each behind the last norm, by timm's own way to them."""
    found = backbone.network.forward_intermediates(
        x, indices=layers, norm=True, intermediates_only=True, output_fmt="NCHW"
    )
    return torch.cat(found, 1)


@pytest.mark.parametrize("layers", [1, 4])
def test_stored_maps_are_those_of_pictures_and_their_mirror_images(save, tmp_path, layers):
    torch.manual_seed(0)
    backbone = make_backbone("test_vit", layers=layers)
    nn.init.normal_(backbone.network.pos_embed)
    images = annotated_images(save, MODES["50"])
    # At pictures' sizes other than the network's the project interpolates position embeddings itself.
    side = backbone.native_size[0]
    running = Running(ALONE, batch_size=4)
    stored = stored_maps.store_maps(backbone, images, backbone.reading(), tmp_path, "test", running)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["maps.npy", "maps.npz"]
    reader = stored_maps.MapReader(stored, images.names, np.arange(12), 0)
    views = set()
    for number, name in enumerate(images.names):
        mask = decode_mask(images.masks / f"{name.removesuffix('.JPEG')}.png").astype(np.int64)
        for view in (0, 1):
            x, (height, width) = picture_of(images.folder / name, mirrored=view == 1)
            with torch.inference_mode():
                wanted = backbone(x)[0]
                assert not any(block._forward_hooks for block in backbone.network.blocks)
                if layers > 1:
                    square = torch.randn(1, 3, side, side)
                    torch.testing.assert_close(
                        backbone(square), joined(backbone, square, layers), atol=1e-4, rtol=0
                    )
            rows, labels, grid, moments = reader.view(number, view)
            h, w = grid.tolist()
            assert (h, w) == tuple(wanted.shape[1:])
            torch.testing.assert_close(
                rows[: h * w].float().T.reshape(wanted.shape), wanted, atol=5e-3, rtol=2e-3
            )
            assert not rows[h * w :].any()
            part = mask[:height, :width]
            seen = torch.from_numpy(np.ascontiguousarray(part[:, ::-1] if view else part))
            small = interpolate(seen[None, None].double(), (2 * h, 2 * w)).flatten()
            assert labels[: 4 * h * w].tolist() == small.tolist()
            assert (labels[4 * h * w :] == 1000).all()
            fine = interpolate(rows[: h * w].float().T.reshape(1, -1, h, w), scale_factor=2, mode="bilinear")
            torch.testing.assert_close(moments[0], fine.double().sum((2, 3))[0], atol=1e-3, rtol=1e-5)
            torch.testing.assert_close(
                moments[1], fine.double().square().sum((2, 3))[0], atol=1e-3, rtol=1e-5
            )
        drawn = reader.read(3, number)
        matches = [all(map(torch.equal, drawn, reader.view(number, view))) for view in (0, 1)]
        assert sum(matches) == 1
        views.add(matches.index(True))
    assert views == {0, 1}


def test_a_reader_of_some_pictures_reads_these(tmp_path):
    """The third and the first of three, of one, two and four places, each in the view of its own draw."""
    grids = np.array([[1, 2], [2, 2], [1, 1]])
    maps = np.arange(28, dtype=np.float16).reshape(14, 2)
    labels, moments = np.arange(14, dtype=np.int16), np.arange(24.0).reshape(3, 2, 2, 2)
    np.save(tmp_path / "maps.npy", maps)
    stored = stored_maps.StoredMaps(tmp_path, 8, grids, labels, moments)
    reader = stored_maps.MapReader(stored, ["a", "b", "c"], np.array([2, 0]), 5)
    assert [reader.name(index) for index in (0, 1)] == ["c", "a"]
    views = set()
    for epoch in range(6):
        for index, picture, places, start in ((0, 2, 1, 12), (1, 0, 2, 0)):
            view = int(generator(5, epoch, picture).random() < 0.5)
            views.add((picture, view))
            start += view * places
            rows, of_places, grid, sums = reader.read(epoch, index)
            assert rows[:places].tolist() == maps[start : start + places].tolist()
            assert of_places[:places].tolist() == labels[start : start + places].tolist()
            assert rows.shape == (4, 2) and not rows[places:].any()
            assert of_places.tolist()[places:] == [1000] * (4 - places)
            assert grid.tolist() == grids[picture].tolist()
            assert sums.tolist() == moments[picture, view].tolist()
    assert len(views) == 4


def test_a_probes_training_is_this_loop(save, tmp_path, monkeypatch):
    """Maps in half precision, mirrored or not, batch norm, dropout, AdamW, warm-up and cosine: nine steps."""
    monkeypatch.setenv("IMAGENETS_LISTS", str(save / "lists"))
    values = probe.Values(epochs=3, batch=4, rates=(0.01,), weight_decay=0.1, warm_up=0.5, seed=2)
    torch.manual_seed(0)
    vit = timm.create_model("test_vit", num_classes=0)
    for name, weight in vit.named_parameters():  # so that maps differ from place to place
        if weight.ndim > 1 and "norm" not in name:
            nn.init.normal_(weight, std=0.1)
    torch.save({"model": vit.state_dict()}, tmp_path / "vit.pth")
    run = tmp_path / "run"
    request = probe.ProbeRequest(save, MODES["50"], "test_vit", tmp_path / "vit.pth", run, values)
    probe.train_probe(request, ALONE, no_bar, lambda line: None)
    found = torch.load(run / "last.pth", weights_only=True)["model"]

    backbone = make_backbone("test_vit")
    load_backbone(backbone, tmp_path / "vit.pth")
    torch.manual_seed(2)
    norm, layer = nn.BatchNorm2d(64), nn.Conv2d(64, 51, 1)
    nn.init.normal_(layer.weight, std=0.01)
    nn.init.zeros_(layer.bias)
    optimiser = torch.optim.AdamW([*norm.parameters(), *layer.parameters()], weight_decay=0.1)
    images, plan = annotated_images(save, MODES["50"]), Plan(12, 4, 3, 2, True)
    with np.load(run / "maps.npz") as arrays:  # the stored maps are held against slow ones above
        about = [arrays[name] for name in ("grids", "labels", "moments")]
    reader = stored_maps.MapReader(stored_maps.StoredMaps(run, 16, *about), images.names, np.arange(12), 2)
    epochs = [update / 3 for update in range(9)]  # half of three to rise, half to fall
    rates = [0.01 * e / 1.5 if e < 1.5 else 0.005 * (1 + math.cos(math.pi * (e - 1.5) / 1.5)) for e in epochs]
    for update, rate in enumerate(rates):
        epoch, step = divmod(update, 3)
        maps, targets = [], []
        for picture in plan.batch_of(epoch, step).tolist():
            mirrored = generator(2, epoch, picture).random() < 0.5
            rows, labels, (h, w), _ = reader.view(picture, int(mirrored))
            of_picture, _ = picture_of(images.folder / images.names[picture], mirrored)
            with torch.inference_mode():
                torch.testing.assert_close(
                    rows[: h * w].float().T.reshape(-1, h, w), backbone(of_picture)[0], atol=5e-3, rtol=2e-3
                )
            one = rows[: h * w].float().T.reshape(1, -1, h, w)
            maps.append(interpolate(one, scale_factor=2, mode="bilinear"))
            targets.append(labels[: 4 * h * w].reshape(2 * h, 2 * w).long())
        seed_network(2, StepIndex(epoch, step, 0, update), 0)
        kept = dropout(torch.ones(4, 64), 0.1)
        places = norm(torch.cat([one.flatten(2) for one in maps], 2)[..., None])[..., 0]
        total = start = 0
        for one, target, of_channels in zip(maps, targets, kept, strict=True):
            end = start + target.numel()
            normed = (places[:, :, start:end] * of_channels[:, None]).reshape(one.shape)
            total = total + cross_entropy(layer(normed), target[None], ignore_index=1000, reduction="sum")
            start = end
        optimiser.zero_grad()
        (total / sum(int((target != 1000).sum()) for target in targets)).backward()
        optimiser.param_groups[0]["lr"] = rate
        optimiser.step()
    for part, prefix in ((norm, "probe_norm"), (layer, "head")):
        for name, value in part.state_dict().items():
            apart = (found[f"{prefix}.{name}"] - value).double().norm()
            assert apart <= 1e-4 * value.double().norm(), name
    assert layer.weight.abs().max() > 0.05, "it has moved"
    saved = read_saved(run / "last.pth")
    network = saved.network()
    with torch.inference_mode():
        expected = layer(norm.eval()(backbone(of_picture)))
        torch.testing.assert_close(network(of_picture), expected, atol=1e-3, rtol=1e-3)
    assert saved.reading(network) == backbone.reading()


def test_rates_and_epochs_are_these_if_none_are_named():
    """docs/frozen_features.md, Linear probe: 100 epochs, or as many as make 5,000 updates."""
    defaults = probe.Values()
    assert (defaults.batch, defaults.rates) == (16, (3e-4, 1e-3, 3e-3))
    assert (defaults.weight_decay, defaults.dropout, defaults.warm_up) == (1e-3, 0.1, 0.05)
    epochs = {images: probe._with_epochs(defaults, images).epochs for images in (16, 500, 801, 9190)}
    assert epochs == {16: 5000, 500: 157, 801: 100, 9190: 100}  # 32 steps an epoch: 156.25 epochs
    assert probe._with_epochs(probe.Values(epochs=7), 500).epochs == 7


def test_the_rate_that_is_best_on_every_tenth_picture_is_taken(monkeypatch):
    trained, said = [], []

    def train(self, name, rate, pictures, held_out):
        trained.append((name, rate, pictures.tolist(), held_out.tolist()))
        return None, [{}, {"held_out_mIoU": {1e-3: 20.0, 3e-3: 60.0, 3e-4: 40.0}[rate]}]

    monkeypatch.setattr(probe._Trainer, "train", train)
    names = [str(number) for number in range(21)]
    values = probe.Values(rates=(1e-3, 3e-3, 3e-4))
    trainer = probe._Trainer(None, values, None, names, None, None)
    assert trainer.best_rate(said.append) == 3e-3
    others = [number for number in range(21) if number not in (9, 19)]
    assert trained == [(f"rate-{rate:g}", rate, others, [9, 19]) for rate in values.rates]
    assert said[-1] == "rate 0.003 is taken, and the probe trained on all pictures"
    with pytest.raises(InputError, match="9 pictures are too few"):
        probe._Trainer(None, values, None, names[:9], None, None).best_rate(said.append)


def test_values_that_float16_cannot_hold_are_refused():
    class Large:
        name, stride = "large", 8

        def __call__(self, pictures):
            return pictures * 1e6

    with pytest.raises(InputError, match="large: its maps hold values that float16 cannot"):
        batch = Batch([0], torch.ones(1, 3, 8, 8), [(8, 8)], [(8, 8)], [np.zeros((8, 8), np.uint16)])
        stored_maps.map_step(Large())(batch)


def test_networks_without_blocks_have_no_layers_to_join():
    with pytest.raises(InputError, match="4 layers: resnet18 has 0 blocks"):
        make_backbone("resnet18", layers=4)


class StopError(Exception):
    """Stands for the end of a process."""


def command(save, output, *more):
    return [
        "finetune.py", "--save-dir", str(save), "--mode", "50", "--recipe", "linear-probe", "--workers", "0",
        "--backbone", "test_vit", "--checkpoint", "none", "--output-dir", str(output), *more,
    ]  # fmt: skip


@pytest.fixture
def call(save, monkeypatch):
    """The scripts in this process, on one thread, so that they write the same bytes."""
    monkeypatch.setenv("IMAGENETS_LISTS", str(save / "lists"))
    threads = torch.get_num_threads()
    torch.set_num_threads(1)

    def run(script, arguments):
        monkeypatch.setattr(sys, "argv", arguments)
        script.main()

    yield run
    torch.set_num_threads(threads)


def test_a_probe_is_trained_stopped_goes_on_and_predicts(save, call, tmp_path, monkeypatch, capsys):
    more = ("--epochs", "3", "--batch-size", "4", "--layers", "2")
    call(finetune, command(save, tmp_path / "whole", *more))
    said = capsys.readouterr().out
    scores = {
        float(line.split()[1].rstrip(":")): float(line.split()[3])
        for line in said.splitlines()
        if "held out" in line
    }
    assert list(scores) == [3e-4, 1e-3, 3e-3]
    assert f"rate {max(scores, key=scores.get):g} is taken" in said

    save_state, saved = run_files.RunFolder.save, []

    def stopping(folder, *arguments, **options):
        save_state(folder, *arguments, **options)
        saved.append(folder.path.name)
        if len(saved) in (2, 4, 11):
            raise StopError

    with monkeypatch.context() as patch:
        patch.setattr(run_files.RunFolder, "save", stopping)
        for _ in range(3):
            with pytest.raises(StopError):
                call(finetune, command(save, tmp_path / "stopped", *more))
        call(finetune, command(save, tmp_path / "stopped", *more))
    assert saved == ["rate-0.0003"] * 3 + ["rate-0.001"] * 3 + ["rate-0.003"] * 3 + ["probe"] * 3 + [
        "stopped"
    ]
    whole, stopped = (tmp_path / name / "last.pth" for name in ("whole", "stopped"))
    ours, theirs = (torch.load(path, weights_only=True)["model"] for path in (whole, stopped))
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    assert (tmp_path / "whole/maps.npy").read_bytes() == (tmp_path / "stopped/maps.npy").read_bytes()

    network = read_saved(whole).network(classes=50)
    with torch.no_grad():  # so that more labels than one win
        network.head.weight.mul_(20)
        maps = torch.cat(
            [network.probe_norm(network.backbone(picture_of(p)[0]))[0].flatten(1) for p in pictures(save)], 1
        )
        network.head.bias.copy_(-(network.head.weight[:, :, 0, 0] @ maps.mean(1)))
    changed = torch.load(whole, weights_only=True) | {"model": network.weights()}
    torch.save(changed, tmp_path / "changed.pth")
    call(predict, [
        "predict.py", "--save-dir", str(save), "--mode", "50", "--model", str(tmp_path / "changed.pth"),
        "--output-dir", str(tmp_path / "out"), "--workers", "0",
    ])  # fmt: skip
    different = pixels = 0
    kinds = set()
    for path in pictures(save):
        x, shown = picture_of(path)
        with torch.no_grad():
            features = network.backbone(x)
            norm = network.probe_norm
            scaled = (features - norm.running_mean[:, None, None]) / (
                norm.running_var[:, None, None] + 1e-5
            ).sqrt()
            normed = scaled * norm.weight[:, None, None] + norm.bias[:, None, None]
            logits = torch.einsum("nc,bchw->bnhw", network.head.weight[:, :, 0, 0], normed)
            logits += network.head.bias[:, None, None]
        labels = interpolate(logits, shown, mode="bilinear").argmax(1)[0].numpy()
        made = decode_mask(tmp_path / "out/validation" / path.parent.name / f"{path.stem}.png")
        expected = np.pad(labels, [(0, made.shape[0] - shown[0]), (0, made.shape[1] - shown[1])], mode="edge")
        different += int((made != expected).sum())
        pixels += made.size
        kinds |= set(np.unique(made).tolist())
    assert len(kinds) > 3
    assert different <= pixels / 5000


def test_two_processes_of_torchrun_train_a_probe_as_one(save, call, tmp_path):
    """But for dropout, which each draws by itself."""
    more = ("--epochs", "2", "--batch-size", "4", "--lr", "3e-3")
    call(finetune, command(save, tmp_path / "1", *more))
    _, *two = command(save, tmp_path / "2", *more)
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    done = subprocess.run(
        [*launcher, str(CHECKOUT / "methods/finetune.py"), *two, "--device", "cpu"],
        env=os.environ | {"OMP_NUM_THREADS": "1"}, capture_output=True, text=True, timeout=240, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("saved: ") == 1
    assert (tmp_path / "1/maps.npy").read_bytes() == (tmp_path / "2/maps.npy").read_bytes()
    logs = [(tmp_path / name / "log.jsonl").read_text().splitlines() for name in ("1", "2")]
    for first, second in zip(*(map(json.loads, lines) for lines in logs), strict=True):
        assert first["loss"] == pytest.approx(second["loss"], rel=0.02)


def pictures(save):
    return sorted((save / "ImageNetS50/validation").glob("*/*.JPEG"))


def test_the_score_on_pictures_held_out_is_arithmetic():
    """Labels 3 and 4 are found, and in no picture: they do not count, nor what is found where 1000 stands."""
    found = [[0, 1, 1, 2], [3, 1, 1, 4]]
    truth = [[0, 1, 2, 1000, 1000], [0, 1, 1, 2, 1000]]

    class Head(nn.Module):
        def __init__(self):
            super().__init__()
            self.head = nn.Conv2d(1, 5, 1)

        def forward(self, rows, grid, moments):
            assert not self.training
            return [nn.functional.one_hot(rows[0], 5).T.float().reshape(1, 5, 2, 2)]

    class Reader:
        def view(self, picture, view):
            assert view == 0
            of_picture = torch.tensor(found[picture]), torch.tensor(truth[picture])
            return *of_picture, torch.tensor([2, 2]), torch.zeros(1)

    head = Head()
    score = probe.held_out_score(head, Reader(), np.array([0, 1]))
    assert score == pytest.approx(100 * (1 / 2 + 3 / 4 + 0 / 3) / 3)
    assert head.training


def test_pictures_without_a_label_have_no_loss():
    loss = probe.probe_loss([torch.randn(1, 5, 2, 2)], torch.full((1, 4), 1000), ALONE)
    assert float(loss) == 0


def test_held_out_pictures_are_scored_on_the_labels_that_occur(tmp_path, save):
    torch.manual_seed(0)
    backbone, images = make_backbone("test_vit"), annotated_images(save, MODES["50"])
    stored = stored_maps.store_maps(backbone, images, backbone.reading(64), tmp_path, "test", Running(ALONE))
    reader = stored_maps.MapReader(stored, images.names, np.arange(12), 0)
    head = probe.ProbeHead(stored.channels, 51, stored.stride, 0.1, ALONE)
    nn.init.normal_(head.head.weight)
    held_out = np.array([2, 9])
    found, truth = [], []
    for number in held_out.tolist():
        rows, labels, grid, moments = reader.view(number, 0)
        (logits,) = head.eval()(rows[None], grid[None], moments[None])
        found.append(logits.argmax(1).flatten())
        truth.append(labels[: len(found[-1])])
    found, truth = torch.cat(found), torch.cat(truth)
    ious = []
    for label in set(truth.tolist()) - {1000}:
        ours, theirs = (found == label) & (truth != 1000), truth == label
        ious.append(float((ours & theirs).sum() / (ours | theirs).sum()))
    assert probe.held_out_score(head, reader, held_out) == pytest.approx(100 * np.mean(ious))
    assert head.training


@pytest.mark.parametrize(
    ("recipe", "more", "words"),
    [
        ("linear-probe", ("--crop", "64"), "--crop does not go with --recipe linear-probe"),
        (
            "linear-probe",
            ("--evaluate-every", "0"),
            "--evaluate-every does not go with --recipe linear-probe",
        ),
        ("semi-supervised", ("--layers", "4"), "--layers goes with --recipe linear-probe"),
        ("semi-supervised", ("--size", "native"), "--size goes with --recipe linear-probe"),
    ],
)
def test_options_of_other_recipes_are_wrong_usage(save, call, tmp_path, capsys, recipe, more, words):
    arguments = command(save, tmp_path / "run", *more)
    arguments[arguments.index("linear-probe")] = recipe
    with pytest.raises(SystemExit) as ended:
        call(finetune, arguments)
    assert ended.value.code == 2
    assert words in capsys.readouterr().err
