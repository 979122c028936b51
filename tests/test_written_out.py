"""Each recipe's first steps as a plain loop, held against the run, and what else a run has of its request.

The loops follow docs/finetuning.md and docs/pass.md, and use nothing of imagenets except which pictures and
crops a step gets.
"""

from __future__ import annotations

from copy import deepcopy
from dataclasses import replace
from math import cos, pi

import pytest
import torch
from helpers.patterns import as_label_maps, write_patterns
from helpers.training import ALONE, StopError, stop_after
from prepared_set import write_image, write_lists
from torch import nn
from torch.nn.functional import cosine_similarity, cross_entropy, grid_sample, interpolate, normalize

from imagenets.classes import MODES
from imagenets.common.progress import no_bar
from imagenets.learning.finetuning import run as finetuning
from imagenets.learning.finetuning.pairs import Augmented, list_pairs
from imagenets.learning.images import digest
from imagenets.learning.networks.checkpoint_files import weights_digest
from imagenets.learning.networks.segmentation_network import PASS, SEMI
from imagenets.learning.pass_method import runs
from imagenets.learning.pass_method.crops import CropReader, CropSettings
from imagenets.learning.pass_method.recipes import PUBLISHED_ATTENTION, PUBLISHED_PRETRAINING
from imagenets.learning.training.augmentation import Colours
from imagenets.learning.training.loop import train
from imagenets.learning.training.order import Plan, StepIndex, seed_network

timm = pytest.importorskip("timm")

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
PASS_STD = (0.228, 0.224, 0.225)


@pytest.fixture(autouse=True)
def in_float64(monkeypatch):
    """Several steps of LARS in float32 make much of rounding: here all is computed in float64."""
    torch.set_default_dtype(torch.float64)
    monkeypatch.setattr(torch.Tensor, "float", torch.Tensor.double)
    yield
    torch.set_default_dtype(torch.float32)


class Recorded:
    """What a run of a module trains: weights at its start, rates of each step, losses of each part.

    It is stopped after so many ``steps``; with 0 it never begins.
    """

    def __init__(self, monkeypatch, module, steps=0):
        self.steps = steps
        monkeypatch.setattr(module, "train", self.train)

    def train(self, job, reader, plan, run, **options):
        self.job, self.reader, self.plan, self.run, self.options = job, reader, plan, run, options
        self.rates, self.losses, self.loss_of = [], [], job.loss_of
        self.start = {name: value.clone() for name, value in job.weights().items()}
        if not self.steps:
            return
        job.loss_of = self.noted
        job.optimiser.register_step_pre_hook(
            lambda optimiser, *_: self.rates.append([group["lr"] for group in optimiser.param_groups])
        )
        with pytest.raises(StopError):
            train(job, reader, plan, run, **(options | {"show": stop_after(self.steps)}))
        self.weights = job.weights()

    def noted(self, batch, at):
        values = self.loss_of(batch, at)
        self.losses.append({name: value.item() for name, value in values.items()})
        return values


def assert_moved_alike(start, expected, found, noise=(), tolerance=1e-5):
    """Each tensor has moved alike from its start, but for those of ``noise``: all rounding."""
    assert expected.keys() == found.keys()
    for name in expected.keys() - set(noise):
        way, way_found = (of[name].detach().double() - start[name].double() for of in (expected, found))
        apart = (way - way_found).norm()
        assert apart <= tolerance * way.norm() + 1e-7, f"{name}: {apart:.2g} apart of {way.norm():.2g}"


def normalised(pictures, std=STD):
    values = pictures.double() / 255
    return (values - torch.tensor(MEAN).view(3, 1, 1)) / torch.tensor(std).view(3, 1, 1)


def half_cosine(progress, highest, lowest):
    return lowest + (highest - lowest) * (1 + cos(pi * progress)) / 2


def lars(weights, momenta, rate, decay, frozen=()):
    """One step of SGD with momentum 0.9 whose gradients have a thousandth of the weights' length."""
    with torch.no_grad():
        for name, weight in weights.items():
            if name in frozen:
                continue
            step = weight.grad
            if weight.norm() > 0 and step.norm() > 0:
                ratio = 0.001 * weight.norm() / (step.norm() + decay * weight.norm() + 1e-8)
                step = (step + decay * weight) * ratio
            momenta[name] = step.clone() if name not in momenta else 0.9 * momenta[name] + step
            weight -= rate * momenta[name]


THIRD, FOURTH = 192, 96  # channels of layer3 and layer4 of timm's test_resnet


def stages(network, x):
    """The maps of a ResNet's layer3 and layer4."""
    x = network.maxpool(network.act1(network.bn1(network.conv1(x))))
    third = network.layer3(network.layer2(network.layer1(x)))
    return third, network.layer4(third)


# --- fine-tuning


@pytest.fixture(scope="module")
def save(tmp_path_factory):
    """Eight images of train-semi with masks, and the same of train with label maps."""
    folder = tmp_path_factory.mktemp("prepared")
    write_lists(folder / "lists")
    root = write_patterns(folder, per_class=2, splits=("train-semi", "train"))
    as_label_maps(root / "train-segmentation")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("IMAGENETS_LISTS", str(folder / "lists"))
        yield folder


def request(save, output, recipe, backbone, **given):
    masks = save / "ImageNetS50/train-segmentation" if recipe == PASS else None
    values = {"batch": 4, "crop": 64, "epochs": 20, "lr": 0.002} | given
    return finetuning.FineTuneRequest(
        save, MODES["50"], recipe, backbone, None, output, values, masks=masks,
        accumulate=1 if recipe == PASS else 2,
    )  # fmt: skip


def pictures_and_masks(reader, epoch, indices):
    pictures, masks = zip(*(reader.read(epoch, int(index)) for index in indices), strict=True)
    return torch.stack(pictures), torch.stack(masks).long()


def test_semi_supervised_fine_tuning_is_this_loop(save, tmp_path, monkeypatch):
    """A ViT's first five steps: AdamW with layer decay, drop path, two parts a batch, warm-up."""
    recorded = Recorded(monkeypatch, finetuning, steps=5)
    asked = request(save, tmp_path / "run", SEMI, "test_vit", drop_path=0.3, layer_decay=0.5)
    finetuning.fine_tune(asked, ALONE, no_bar, print)

    vit = timm.create_model("test_vit", num_classes=0, drop_path_rate=0.3).train()
    norm, head = nn.LayerNorm(64, eps=1e-6), nn.Conv2d(64, 51, 1)
    vit.norm = nn.Identity()
    parts = {"": vit, "fc_norm.": norm, "head.": head}
    weights = {prefix + name: p for prefix, part in parts.items() for name, p in part.named_parameters()}
    with torch.no_grad():
        for name, weight in weights.items():
            weight.copy_(recorded.start[name])

    def logits_of(x):
        tokens = vit.patch_embed.proj(x).flatten(2).transpose(1, 2)
        grid = vit.pos_embed[:, 1:].transpose(1, 2).unflatten(2, (10, 10))
        grid = interpolate(grid, scale_factor=(4.1 / 10, 4.1 / 10), mode="bicubic")
        tokens = torch.cat((vit.cls_token.expand(len(x), -1, -1), tokens), 1)
        tokens = tokens + torch.cat((vit.pos_embed[:, :1], grid.flatten(2).transpose(1, 2)), 1)
        patches = norm(vit.blocks(tokens)[:, 1:])
        return head(patches.transpose(1, 2).unflatten(2, (4, 4)))

    def layer(name):
        if name.startswith("blocks."):
            return int(name.split(".")[1]) + 1
        return 7 if name.startswith(("head.", "fc_norm.")) else 0

    undecayed = {"pos_embed", "cls_token", *(name for name, weight in weights.items() if weight.ndim == 1)}
    optimiser = torch.optim.AdamW(
        {"params": [weight], "weight_decay": 0.0 if name in undecayed else 0.05, "name": name}
        for name, weight in weights.items()
    )
    plan = Plan(8, 4, 20, 0, True)
    reader = Augmented(list_pairs(save, MODES["50"], SEMI, None), 64, 0.14, 0)
    rates = [0.0, 0.001, 0.002, *(half_cosine(p / 19, 0.002, 1e-6) for p in (0.5, 1))]
    for update, rate in enumerate(rates):
        epoch, step = divmod(update, 2)
        batch = plan.batch_of(epoch, step)
        optimiser.zero_grad()
        for part, indices in enumerate((batch[:2], batch[2:])):
            pictures, masks = pictures_and_masks(reader, epoch, indices)
            seed_network(0, StepIndex(epoch, step, part, update), 0)
            logits = interpolate(logits_of(normalised(pictures)), scale_factor=2, mode="bilinear")
            loss = cross_entropy(logits, masks[:, ::8, ::8], ignore_index=1000)
            (loss / 2).backward()
        for group in optimiser.param_groups:
            group["lr"] = rate * 0.5 ** (7 - layer(group["name"]))
        optimiser.step()
    assert {max(of_step) for of_step in recorded.rates} == set(rates)
    assert_moved_alike(recorded.start, weights, recorded.weights)


def test_fine_tuning_of_pass_is_this_loop(save, tmp_path, monkeypatch):
    """LARS on every tensor, labels halved, batch norms in training mode: a ResNet's first four steps."""
    recorded = Recorded(monkeypatch, finetuning, steps=4)
    asked = request(save, tmp_path / "run", PASS, "timm/test_resnet", lr=0.6)
    finetuning.fine_tune(asked, ALONE, no_bar, print)

    network = timm.create_model("test_resnet", num_classes=0).train()
    network.head = nn.Conv2d(FOURTH, 51, 1)
    network.load_state_dict(recorded.start)
    weights, momenta = dict(network.named_parameters()), {}
    plan = Plan(8, 4, 20, 31, False)
    pairs = list_pairs(save, MODES["50"], PASS, save / "ImageNetS50/train-segmentation")
    reader = Augmented(pairs, 64, 0.08, 31)
    for update in range(4):
        epoch, step = divmod(update, 2)
        pictures, masks = pictures_and_masks(reader, epoch, plan.batch_of(epoch, step))
        logits = interpolate(
            network.head(stages(network, normalised(pictures))[1]), (32, 32), mode="bilinear"
        )
        network.zero_grad()
        cross_entropy(logits, masks[:, ::2, ::2]).backward()
        lars(weights, momenta, half_cosine(update / 40, 0.6, 0.0006), 1e-6)
    assert_moved_alike(recorded.start, network.state_dict(), recorded.weights)


# --- PASS

PICTURES = 17  # two batches of eight; one is left out in each epoch
PRETRAINING = replace(
    PUBLISHED_PRETRAINING["50"], backbone="timm/test_resnet", epochs=4, batch=8, seed=3,
    large=CropSettings(2, 64, (0.14, 1)), small=CropSettings(3, 32, (0.05, 0.14)), hidden=24, prototypes=11,
    queue=19, queue_from=1, frozen_steps=3, colours=Colours(0.5, 0.1, 0.3, 1.5),
)  # fmt: skip
ATTENTION = replace(
    PUBLISHED_ATTENTION["50"], epochs=4, batch=8, large=CropSettings(2, 64, (0.08, 1)), queue=8,
    colours=PRETRAINING.colours, seed=3,
)  # fmt: skip


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pictures")
    for number in range(PICTURES):
        write_image(folder / f"n0000000{number % 2}/{number}.JPEG", 60 + number, 80, seed=number)
    names = sorted(f"{path.parent.name}/{path.name}" for path in folder.rglob("*.JPEG"))
    return folder, names


def of_pass(photos, output):
    return runs.PassRequest("50", "pass", *photos, output, workers=0, precision="float32")


def image_head(channels):
    return nn.Sequential(
        nn.Linear(channels, 24), nn.BatchNorm1d(24), nn.ReLU(), nn.Linear(24, 128),
        nn.BatchNorm1d(128, affine=False),
    )  # fmt: skip


def pixel_head(channels, out):
    layers = []
    for before, after in ((channels, 24), (24, 24)):
        layers += [nn.Conv2d(before, after, 1, bias=False), nn.BatchNorm2d(after), nn.ReLU()]
    return nn.Sequential(*layers, nn.Conv2d(24, out, 1, bias=False), nn.BatchNorm2d(out, affine=False))


def pass_network():
    network = timm.create_model("test_resnet", num_classes=0)
    network.projection_head = image_head(FOURTH)
    network.prototypes = nn.Linear(128, 11, bias=False)
    return network


def grid_of(own, other):
    """Seven by seven points of the overlap of two crops, from border to border, in the own crop's -1..1."""
    left, right = max(own[0], other[0]), min(own[0] + own[2], other[0] + other[2])
    top, bottom = max(own[1], other[1]), min(own[1] + own[3], other[1] + other[3])
    if left >= right or top >= bottom:
        return torch.full((7, 7, 2), -2.0)
    x = (torch.linspace(left, right, 7) - own[0]) / own[2]
    y = (torch.linspace(top, bottom, 7) - own[1]) / own[3]
    x = 1 - x if own[4] else x
    return torch.stack((x.expand(7, 7), y[:, None].expand(7, 7)), 2) * 2 - 1


def codes_of(scores, batch):
    """Sinkhorn: three rounds of rows to 1 / K and columns to 1 / rows; the last ``batch`` rows."""
    q = torch.exp(scores / 0.05).T
    q = q / q.sum()
    for _ in range(3):
        q = q / q.sum(1, keepdim=True) / q.shape[0]
        q = q / q.sum(0, keepdim=True) / q.shape[1]
    return (q * q.shape[1])[:, -batch:].T


def swapped(codes, scores):
    """The code of each large crop against the scores of all other views, in the mean over these."""
    losses = []
    for own, code in enumerate(codes):
        others = [view for number, view in enumerate(scores) if number != own]
        losses.append(sum(cross_entropy(view / 0.1, code) for view in others) / len(others))
    return sum(losses) / 2


class Queue:
    """The features of both crops, newest first; zeros at the beginning."""

    def __init__(self, length):
        self.features = torch.zeros(2, length, 128)

    @torch.no_grad()
    def codes_and_push(self, features, scores, prototypes, used=True):
        """Codes of both crops; their features enter behind them, where the queue is ``used``."""
        codes = []
        for crop in (0, 1):
            rows = scores[crop].detach()
            if used and self.features[crop, -1].any():
                rows = torch.cat((self.features[crop] @ prototypes.T, rows))
            codes.append(codes_of(rows, len(scores[crop])))
            if used:
                entered = torch.cat((features[crop].detach(), self.features[crop]))
                self.features[crop] = entered[: self.features.shape[1]]
        return codes


class Watched:
    """What the watch over collapse has seen of an epoch: the large crops, and nothing of small ones."""

    @torch.no_grad()
    def look(self, pooled, scores, step):
        if step == 0:
            self.counts, self.sum = torch.zeros(11), torch.zeros(FOURTH)
        self.counts += torch.cat(scores).argmax(1).bincount(minlength=11)
        self.sum += normalize(pooled, dim=1).sum(0)

    def assert_alike(self, watch):
        assert watch.counts.tolist() == self.counts.tolist()
        torch.testing.assert_close(watch.sum, self.sum, rtol=1e-4, atol=1e-6)


def batch_of(reader, plan, update):
    """Epoch and step; the rectangles of each picture's large crops; the crops of each size, view by view."""
    epoch, step = divmod(update, 2)
    read = [reader.read(epoch, int(index)) for index in plan.batch_of(epoch, step)]
    rectangles, *sizes = zip(*read, strict=True)
    crops = [torch.stack(of_size).transpose(0, 1).flatten(0, 1) for of_size in sizes]
    return epoch, step, [pair.tolist() for pair in rectangles], crops


def test_pretraining_is_this_loop(photos, tmp_path, monkeypatch):
    """Six steps: prototypes frozen for three, the queue filled from the third, used from the fifth."""
    recorded = Recorded(monkeypatch, runs, steps=6)
    runs.pretrain(of_pass(photos, tmp_path / "run"), PRETRAINING, ALONE, no_bar, print)

    network = pass_network()
    network.projection_head_shallow = nn.ModuleDict({"projection_head_shallow3": image_head(THIRD)})
    network.projection_head_pixel_shallow = nn.ModuleDict(
        {"projection_head_pixel3": pixel_head(THIRD, THIRD)}
    )
    network.projection_head_pixel = pixel_head(FOURTH, 128)
    network.predictor_head_pixel = nn.Sequential(
        nn.Conv2d(128, 128, 1, bias=False), nn.BatchNorm2d(128), nn.ReLU(), nn.Conv2d(128, 128, 1)
    )
    network.load_state_dict(recorded.start)
    network.train()
    weights, momenta, queue, watched = dict(network.named_parameters()), {}, Queue(16), Watched()
    plan = Plan(PICTURES, 8, 4, 3, False)
    reader = CropReader(*photos, 3, PRETRAINING.large, PRETRAINING.small, PRETRAINING.colours)
    for update in range(6):
        epoch, step, pairs, (large, small) = batch_of(reader, plan, update)
        grids = torch.stack([grid_of(*pair) for pair in pairs] + [grid_of(*pair[::-1]) for pair in pairs])
        with torch.no_grad():
            network.prototypes.weight.copy_(normalize(network.prototypes.weight, dim=1))
        third, fourth = stages(network, normalised(large, PASS_STD))
        of_small = stages(network, normalised(small, PASS_STD))[1]
        pooled = torch.cat((fourth.mean((2, 3)), of_small.mean((2, 3))))
        features = normalize(network.projection_head(pooled), dim=1)
        scores = network.prototypes(features).split(8)
        codes = queue.codes_and_push(features.split(8), scores, network.prototypes.weight, epoch >= 1)
        image = swapped(codes, scores)
        pixels = network.projection_head_pixel_shallow["projection_head_pixel3"](third).mean((2, 3))
        shallow = normalize(network.projection_head_shallow["projection_head_shallow3"](pixels), dim=1)
        first, second = (shallow @ network.prototypes.weight.detach().T).split(8)
        deep = (cross_entropy(second / 0.1, codes[0]) + cross_entropy(first / 0.1, codes[1])) / 2
        z = grid_sample(network.projection_head_pixel(fourth), grids, align_corners=False)
        (z_q, z_k), (p_q, p_k) = z.detach().split(8), network.predictor_head_pixel(z).split(8)
        pixel = -(cosine_similarity(p_q, z_k).mean() + cosine_similarity(p_k, z_q).mean()) / 2
        network.zero_grad()
        loss = (image + deep) / 2 + pixel
        loss.backward()
        expected = {"loss": loss.item(), "image": image.item(), "shallow": deep.item(), "pixel": pixel.item()}
        assert recorded.losses[update] == pytest.approx(expected, rel=1e-4)
        watched.look(fourth.mean((2, 3)), scores[:2], step)
        frozen = ("prototypes.weight",) if update < 3 else ()
        lars(weights, momenta, half_cosine(update / 8, 0.6, 0.0006), 1e-6, frozen)
    assert queue.features[:, -1].any(1).all()
    watched.assert_alike(recorded.job.more["watch"])
    shallow_head = "projection_head_shallow.projection_head_shallow3"
    noise = [f"{head}.{place}.bias" for head in ("projection_head", shallow_head) for place in (0, 3)]
    assert_moved_alike(recorded.start, network.state_dict(), recorded.weights, noise)


def test_the_attentions_training_is_this_loop(photos, tmp_path, monkeypatch):
    """Four steps with a queue from the second on; backbone and head are frozen, but for their statistics."""
    torch.manual_seed(0)
    start = pass_network()
    torch.save({"state_dict": start.state_dict()}, tmp_path / "pretrained.pth")
    recorded = Recorded(monkeypatch, runs, steps=4)
    asked = of_pass(photos, tmp_path / "run")
    runs.train_attention(
        asked, ATTENTION, "timm/test_resnet", tmp_path / "pretrained.pth", ALONE, no_bar, print
    )

    network = pass_network()
    network.fbg = nn.Module()
    layers = (nn.Conv2d(FOURTH, FOURTH, 1), nn.BatchNorm2d(FOURTH))
    network.fbg.atten = nn.Sequential(*layers, nn.ReLU(), *deepcopy(layers))
    network.fbg.threshold = nn.Parameter(torch.zeros(1, FOURTH, 1, 1))
    network.load_state_dict(recorded.start)
    assert all(torch.equal(recorded.start[name], value) for name, value in start.state_dict().items())
    assert not recorded.start["fbg.threshold"].any()
    network.train().requires_grad_(False)
    weights = {name: p for name, p in network.named_parameters() if name.startswith(("fbg.", "prototypes."))}
    for weight in weights.values():
        weight.requires_grad_()
    momenta, queue, watched, plan = {}, Queue(8), Watched(), Plan(PICTURES, 8, 4, 3, False)
    reader = CropReader(*photos, 3, ATTENTION.large, None, ATTENTION.colours)
    for update in range(4):
        _, step, _, (large,) = batch_of(reader, plan, update)
        with torch.no_grad():
            network.prototypes.weight.copy_(normalize(network.prototypes.weight, dim=1))
        fourth = stages(network, normalised(large, PASS_STD))[1]
        x = normalize(interpolate(fourth, scale_factor=4, mode="bilinear"), dim=1)
        attention = torch.sigmoid(network.fbg.atten(x) + network.fbg.threshold)
        features = normalize(network.projection_head((x * attention).mean((2, 3))), dim=1)
        scores = network.prototypes(features).split(8)
        codes = queue.codes_and_push(features.split(8), scores, network.prototypes.weight)
        for weight in weights.values():
            weight.grad = None
        loss = swapped(codes, scores)
        loss.backward()
        assert recorded.losses[update] == {"loss": pytest.approx(loss.item(), rel=1e-4)}
        watched.look((x * attention).mean((2, 3)), scores, step)
        lars(weights, momenta, half_cosine(update / 8, 6.0, 0.0006), 1e-6)
    watched.assert_alike(recorded.job.more["watch"])
    noise = ("fbg.atten.0.bias", "fbg.atten.3.bias")
    assert_moved_alike(recorded.start, network.state_dict(), recorded.weights, noise)


# --- what else was asked for, of runs that never begin


@pytest.mark.parametrize(
    ("recipe", "backbone", "stride"), [(SEMI, "resnet18", 16), (PASS, "test_resnet", None)]
)
def test_a_run_is_what_was_asked_for(save, tmp_path, monkeypatch, recipe, backbone, stride):
    """The checkpoint's weights, a head by the seed, the given values in reader, plan and optimiser."""
    recorded = Recorded(monkeypatch, finetuning)
    state = timm.create_model(backbone, num_classes=0).state_dict()
    torch.save(state, tmp_path / "file.pth")
    heads = []
    for seed in (5, 6):
        given = {"crop": 96, "smallest_crop": 0.3, "weight_decay": 0.2, "seed": seed, "epochs": 7}
        asked = replace(
            request(save, tmp_path / f"run{seed}", recipe, f"timm/{backbone}", **given),
            checkpoint=tmp_path / "file.pth", output_stride=stride,
        )  # fmt: skip
        finetuning.fine_tune(asked, ALONE, no_bar, print)
        reader, plan = recorded.reader, recorded.plan
        assert (reader.side, reader.smallest, reader.seed) == (96, 0.3, seed)
        assert (plan.seed, plan.epochs) == (seed, 7)
        assert all(torch.equal(recorded.start[name], value) for name, value in state.items())
        groups = recorded.job.optimiser.param_groups
        assert {group["weight_decay"] for group in groups} - {0.0} == {0.2}
        heads.append(recorded.start["head.weight"])
    assert not torch.equal(*heads)
    assert recorded.job.about == {
        "backbone": f"timm/{backbone}", "output_stride": stride, "mode": "50", "classes": 50,
        "recipe": recipe, "positions": "dino",
    }  # fmt: skip
    assert recorded.job.network.backbone.stride == (stride or 32)


RECORD = {  # what the folder of either training says
    "mode": "50", "recipe": "pass", "epochs": 4, "batch": 8, "final_lr": 0.0006, "weight_decay": 0.01,
    "colours": "0.5, hue 0.1, grey 0.3, blur 1.5", "precision": "bfloat16", "images": 17, "seed": 6,
    "backbone": "timm/test_resnet",
}  # fmt: skip
PRETRAINING_RECORD = RECORD | {
    "step": "pretraining", "large": "2 x 64 of 0.14..1", "small": "3 x 32 of 0.05..0.14", "hidden": 24,
    "prototypes": 11, "queue_from": 1, "frozen_steps": 3, "weights": "1:1", "lr": 0.6, "queue": 19,
}  # fmt: skip
ATTENTION_RECORD = RECORD | {"step": "attention", "large": "2 x 64 of 0.08..1", "lr": 6.0, "queue": 8}


@pytest.mark.parametrize("training", ["pretraining", "attention"])
def test_a_run_of_pass_is_what_was_asked_for(photos, tmp_path, monkeypatch, training):
    """A start by the seed, whatever was drawn before; what the loops above do not see of the values."""
    recorded, starts, said = Recorded(monkeypatch, runs), [], []
    file = tmp_path / "pretrained.pth"
    torch.save({name: pass_network().state_dict() for name in ("student", "teacher")}, file)
    for number, seed in enumerate((5, 5, 6)):
        torch.manual_seed(number)
        asked = replace(of_pass(photos, tmp_path / f"{number}"), workers=3, precision="bfloat16")
        values = {"seed": seed, "weight_decay": 0.01}
        if training == "pretraining":
            runs.pretrain(asked, replace(PRETRAINING, **values), ALONE, log=said.append)
        else:
            recipe = replace(ATTENTION, **values)
            runs.train_attention(
                asked, recipe, "timm/test_resnet", file, ALONE, log=said.append, weights="student"
            )
        starts.append(recorded.start)
    new = "prototypes.weight" if training == "pretraining" else "fbg.atten.0.weight"
    assert torch.equal(starts[0][new], starts[1][new]) and not torch.equal(starts[1][new], starts[2][new])
    job, (folder, names) = recorded.job, photos
    assert (recorded.plan.seed, recorded.reader.seed, recorded.reader.folder) == (6, 6, folder)
    assert recorded.options == {"workers": 3, "show": no_bar, "log": said.append}
    assert job.about == {"backbone": "timm/test_resnet", "mode": "50", "recipe": "pass"}
    assert job.precision == "bfloat16" and job.more["watch"].warn == said.append
    (group,) = job.optimiser.param_groups
    assert group["weight_decay"] == 0.01
    loaded = {name: torch.full_like(value, 0.25) for name, value in job.weights().items()}
    job.load_weights(loaded)
    assert all((value == loaded[name]).all() for name, value in job.weights().items())
    expected = PRETRAINING_RECORD
    if training == "attention":
        expected = ATTENTION_RECORD | {"checkpoint": weights_digest(file, "student")}
        assert [line for line in said if "loaded from pretrained.pth" in line]
        state = torch.load(file)["student"]
        assert all(torch.equal(starts[2][name], value) for name, value in state.items())
    assert recorded.run.settings == expected | {"names of images": digest(names)}
    assert "17 images, 2 steps an epoch; 1 process on cpu" in said
