"""The linear probe: its fast form and its files against slow ones, and the script."""

from __future__ import annotations

import math
from itertools import product

import numpy as np
import pytest
import torch
from helpers.patterns import write_patterns
from helpers.training import ALONE, StopError, assert_same_end, call, log_of, on_two_ranks
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
from imagenets.learning.finetuning.run import FineTuneRequest
from imagenets.learning.images import annotated_images
from imagenets.learning.networks.backbones import make_backbone
from imagenets.learning.networks.checkpoints import load_backbone
from imagenets.learning.networks.segmentation_network import read_saved
from imagenets.learning.training import run_files
from imagenets.learning.training.order import Plan, StepIndex, generator, seed_network
from imagenets.masks import decode_mask
from methods import finetune

GRIDS = ((3, 4), (4, 3), (2, 5))
CHANNELS, LABELS, STRIDE = 6, 5, 14  # the grid of stride 8 is 1.75 times as fine


def stored_pictures():
    """Random maps (C, h, w) with large means, as the reader stacks them, and the maps enlarged."""
    torch.manual_seed(0)
    maps = [torch.randn(CHANNELS, *grid) * 3 + torch.arange(CHANNELS)[:, None, None] * 20 for grid in GRIDS]
    fine = [
        interpolate(one[None], (h * 14 // 8, w * 14 // 8), mode="bilinear")
        for one, (h, w) in zip(maps, GRIDS, strict=True)
    ]
    rows = torch.zeros(3, 12, CHANNELS)
    for number, one in enumerate(maps):
        rows[number, : one[0].numel()] = one.flatten(1).T
    sums = [torch.stack([(one.double() ** power).sum((2, 3))[0] for power in (1, 2)]) for one in fine]
    return rows, torch.tensor(GRIDS), torch.stack(sums), fine


def lively_head(processes=ALONE):
    torch.manual_seed(1)
    head = probe.ProbeHead(CHANNELS, LABELS, STRIDE, 0.4, processes)
    for value in (head.norm.weight, head.norm.bias, head.head.weight, head.head.bias):
        nn.init.uniform_(value, -1, 1)
    return head


def slow_copy(head):
    norm, layer = nn.BatchNorm2d(CHANNELS), nn.Conv2d(CHANNELS, LABELS, 1)
    norm.load_state_dict(head.norm.state_dict())
    layer.load_state_dict(head.head.state_dict())
    return norm.train(head.training), layer


def slow_probe(norm, layer, fine, kept):
    """Logits by batch norm over all places of all enlarged maps, dropout of channels, 1x1 convolution."""
    places = norm(torch.cat([one.flatten(2) for one in fine], 2)[..., None])[..., 0]
    of_pictures = places.split([one[0, 0].numel() for one in fine], 2)
    return [
        layer(normed.reshape(one.shape) * of_channels[:, None, None])
        for normed, one, of_channels in zip(of_pictures, fine, kept, strict=True)
    ]


def slow_loss(logits, targets):
    """Mean over the places of all pictures together that have a label."""
    sums = [
        cross_entropy(one, target[None], ignore_index=1000, reduction="sum")
        for one, target in zip(logits, targets, strict=True)
    ]
    return sum(sums) / sum(int((target != 1000).sum()) for target in targets)


def test_training_is_that_of_the_slow_probe_with_its_gradients():
    rows, grids, moments, fine = stored_pictures()
    head = lively_head()
    norm, layer = slow_copy(head)
    torch.manual_seed(5)
    kept = dropout(torch.ones(3, CHANNELS), 0.4)
    assert 0 < int((kept == 0).sum()) < kept.numel()
    slow = slow_probe(norm, layer, fine, kept)
    torch.manual_seed(5)
    fast = head(rows, grids, moments)
    labels, targets = torch.full((3, 40), 1000, dtype=torch.int16), []
    for number, one in enumerate(slow):
        targets.append(torch.randint(LABELS, one.shape[2:]))
        targets[number][0] = 1000
        labels[number, : targets[number].numel()] = targets[number].flatten()
        torch.testing.assert_close(fast[number], one, atol=1e-4, rtol=0)
    loss, expected = probe.probe_loss(fast, labels, ALONE), slow_loss(slow, targets)
    torch.testing.assert_close(loss, expected)
    loss.backward()
    expected.backward()
    for ours, theirs in ((head.norm, norm), (head.head, layer)):
        for name in ("weight", "bias"):
            found, wanted = getattr(ours, name).grad, getattr(theirs, name).grad
            torch.testing.assert_close(found, wanted, atol=1e-5, rtol=1e-4)
    for name, value in norm.named_buffers():
        torch.testing.assert_close(head.norm.get_buffer(name), value, atol=1e-5, rtol=1e-5)
    head.eval()  # running values and all channels count
    slow = slow_probe(norm.eval(), layer, fine, torch.ones(3, CHANNELS))
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
    own = slow_loss(logits, labels.long().reshape(1, 2, 3))
    torch.testing.assert_close(probe.probe_loss(logits, labels, OfTwo(7)), own * 5 * 2 / 12)
    assert float(probe.probe_loss(logits, torch.full((1, 6), 1000), ALONE)) == 0, "there is no label"


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


def read_maps(reader, picture, view):
    """The map (1, C, h, w) of one view, its places' labels (2h, 2w), and all that was read."""
    rows, labels, grid, moments = reader.view(picture, view)
    h, w = grid.tolist()
    assert not rows[h * w :].any() and (labels[4 * h * w :] == 1000).all()
    maps = rows[: h * w].float().T.reshape(1, -1, h, w)
    return maps, labels[: 4 * h * w].reshape(2 * h, 2 * w).long(), moments


@pytest.mark.parametrize("layers", [1, 4])
def test_stored_maps_are_those_of_pictures_and_their_mirror_images(save, tmp_path, layers):
    torch.manual_seed(0)
    backbone = make_backbone("test_vit", layers=layers)
    nn.init.normal_(backbone.network.pos_embed)
    images = annotated_images(save, MODES["50"])
    running = Running(ALONE, batch_size=4)
    stored = stored_maps.store_maps(backbone, images, backbone.reading(), tmp_path, "test", running)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["maps.npy", "maps.npz"]
    reader = stored_maps.MapReader(stored, images.names, np.arange(12), 0)
    for number, name in enumerate(images.names):
        mask = decode_mask(images.masks / f"{name.removesuffix('.JPEG')}.png").astype(np.int64)
        for view in (0, 1):
            x, (height, width) = picture_of(images.folder / name, mirrored=view == 1)
            maps, labels, moments = read_maps(reader, number, view)
            with torch.inference_mode():
                torch.testing.assert_close(maps, backbone(x), atol=5e-3, rtol=2e-3)
            part = mask[:height, :width]
            seen = torch.from_numpy(np.ascontiguousarray(part[:, ::-1] if view else part))
            assert torch.equal(labels, interpolate(seen[None, None].double(), labels.shape)[0, 0].long())
            fine = interpolate(maps, scale_factor=2, mode="bilinear").double()
            sums = torch.stack((fine.sum((2, 3))[0], fine.square().sum((2, 3))[0]))
            torch.testing.assert_close(moments, sums, atol=1e-3, rtol=1e-5)
    some = stored_maps.MapReader(stored, images.names, np.array([2, 0]), 5)
    assert [some.name(index) for index in (0, 1)] == [images.names[2], images.names[0]]
    for epoch, (index, picture) in product(range(6), ((0, 2), (1, 0))):  # each in the view of its own draw
        view = int(generator(5, epoch, picture).random() < 0.5)
        assert all(map(torch.equal, some.read(epoch, index), reader.view(picture, view)))


def test_layers_that_are_joined_are_timms():
    """Each behind the last norm, by timm's own way; at other sizes position embeddings are ours."""
    backbone = make_backbone("test_vit", layers=4)
    square = torch.randn(1, 3, *backbone.native_size)
    with torch.inference_mode():
        expected = backbone.network.forward_intermediates(
            square, indices=4, norm=True, intermediates_only=True, output_fmt="NCHW"
        )
        torch.testing.assert_close(backbone(square), torch.cat(expected, 1), atol=1e-4, rtol=0)
    assert not any(block._forward_hooks for block in backbone.network.blocks)
    with pytest.raises(InputError, match="4 layers: resnet18 has 0 blocks"):
        make_backbone("resnet18", layers=4)


def test_a_probes_training_is_this_loop(save, tmp_path, monkeypatch):
    """Maps in half precision, mirrored or not, batch norm, dropout, AdamW, warm-up and cosine: nine steps."""
    monkeypatch.setenv("IMAGENETS_LISTS", str(save / "lists"))
    given = {"epochs": 3, "batch": 4, "lr": 0.01, "weight_decay": 0.1, "warm_up": 0.5, "seed": 2}
    torch.manual_seed(0)
    vit = timm.create_model("test_vit", num_classes=0)
    for name, weight in vit.named_parameters():  # so that maps differ from place to place
        if weight.ndim > 1 and "norm" not in name:
            nn.init.normal_(weight, std=0.1)
    torch.save({"model": vit.state_dict()}, tmp_path / "vit.pth")
    run = tmp_path / "run"
    vit_file, mode = tmp_path / "vit.pth", MODES["50"]
    request = FineTuneRequest(
        save, mode, "linear-probe", "test_vit", vit_file, run, given, precision="float32"
    )
    probe.train_probe(request, ALONE, no_bar, lambda line: None)

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
        views = [(one, int(generator(2, epoch, one).random() < 0.5)) for one in plan.batch_of(epoch, step)]
        maps, targets, _ = zip(*(read_maps(reader, *view) for view in views), strict=True)
        fine = [interpolate(one, scale_factor=2, mode="bilinear") for one in maps]
        seed_network(2, StepIndex(epoch, step, 0, update), 0)
        logits = slow_probe(norm, layer, fine, dropout(torch.ones(4, 64), 0.1))
        optimiser.zero_grad()
        slow_loss(logits, targets).backward()
        optimiser.param_groups[0]["lr"] = rate
        optimiser.step()
    saved = read_saved(run / "last.pth")
    for part, prefix in ((norm, "probe_norm"), (layer, "head")):
        for name, value in part.state_dict().items():
            apart = (saved.weights[f"{prefix}.{name}"] - value).double().norm()
            assert apart <= 1e-4 * value.double().norm(), name
    assert layer.weight.abs().max() > 0.05, "it has moved"
    network = saved.network()
    picture, _ = picture_of(images.folder / images.names[0])
    with torch.inference_mode():
        torch.testing.assert_close(read_maps(reader, 0, 0)[0], backbone(picture), atol=5e-3, rtol=2e-3)
        expected = layer(norm.eval()(backbone(picture)))
        torch.testing.assert_close(network(picture), expected, atol=1e-3, rtol=1e-3)
    assert saved.reading(network) == backbone.reading()


def test_rates_and_epochs_are_these_if_none_are_named():
    """docs/frozen_features.md, Linear probe: 100 epochs, or as many as make 5,000 updates."""
    defaults = probe.Values()
    assert (defaults.batch, defaults.rates) == (16, (3e-4, 1e-3, 3e-3))
    assert (defaults.weight_decay, defaults.dropout, defaults.warm_up) == (1e-3, 0.1, 0.05)
    epochs = {images: probe.chosen_values({}, images).epochs for images in (16, 500, 801, 9190)}
    assert epochs == {16: 5000, 500: 157, 801: 100, 9190: 100}  # 32 steps an epoch: 156.25 epochs
    assert probe.chosen_values({"epochs": 7, "lr": 0.1}, 500) == probe.Values(epochs=7, rates=(0.1,))


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

    batch = Batch([0], torch.ones(1, 3, 8, 8), [(8, 8)], [(8, 8)], [np.zeros((8, 8), np.uint16)])
    with pytest.raises(InputError, match="large: its maps hold values that float16 cannot"):
        stored_maps.map_step(Large())(batch)


def arguments_of(save, output, *more):
    return (
        "--save-dir", save, "--mode", 50, "--recipe", "linear-probe", "--workers", 0, "--batch-size", 4,
        "--backbone", "test_vit", "--checkpoint", "none", "--output-dir", output, "--device", "cpu", *more,
    )  # fmt: skip


def test_a_probe_that_is_stopped_goes_on_to_the_same_end(save, tmp_path, monkeypatch):
    more = ("--epochs", 3, "--layers", 2)
    call(finetune.main, save, *arguments_of(save, tmp_path / "whole", *more))
    save_state, saved = run_files.RunFolder.save, []

    def stopping(folder, *arguments, **options):
        save_state(folder, *arguments, **options)
        saved.append(folder.path.name)
        if len(saved) in (2, 4, 11):
            raise StopError

    monkeypatch.setattr(run_files.RunFolder, "save", stopping)
    for _ in range(3):
        with pytest.raises(StopError):
            call(finetune.main, save, *arguments_of(save, tmp_path / "stopped", *more))
    call(finetune.main, save, *arguments_of(save, tmp_path / "stopped", *more))
    trainings = ("rate-0.0003", "rate-0.001", "rate-0.003", "probe")
    assert saved == [name for name in trainings for _ in range(3)] + ["stopped"]
    assert_same_end(tmp_path / "whole", tmp_path / "stopped")
    assert (tmp_path / "whole/maps.npy").read_bytes() == (tmp_path / "stopped/maps.npy").read_bytes()


def test_two_processes_of_torchrun_train_a_probe_as_one(context, save, tmp_path):
    """But for dropout, which each draws by itself."""
    more = ("--epochs", 2, "--lr", 3e-3)
    call(finetune.main, save, *arguments_of(save, tmp_path / "1", *more))
    on_two_ranks(context, "finetune", save, tmp_path / "said", *arguments_of(save, tmp_path / "2", *more))
    assert (tmp_path / "1/maps.npy").read_bytes() == (tmp_path / "2/maps.npy").read_bytes()
    for first, second in zip(log_of(tmp_path / "1"), log_of(tmp_path / "2"), strict=True):
        assert first["loss"] == pytest.approx(second["loss"], rel=0.02)


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


@pytest.mark.parametrize("more", [("--crop", "64"), ("--evaluate-every", "0")])
def test_options_of_other_recipes_are_wrong_usage(save, tmp_path, capsys, more):
    with pytest.raises(SystemExit) as ended:
        call(finetune.main, save, *arguments_of(save, tmp_path / "run", *more))
    assert ended.value.code == 2
    assert f"{more[0]} does not go with --recipe linear-probe" in capsys.readouterr().err
