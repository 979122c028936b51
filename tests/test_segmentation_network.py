"""Networks with heads against slow references: forward passes, layers, losses, labels at full size, files."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from helpers.weights import copied, lively, prefixed
from torch import nn
from torch.nn import functional

from imagenets.classes import MODES
from imagenets.common.errors import InputError
from imagenets.learning.engine.full_size import label_map, reduced_size
from imagenets.learning.finetuning.losses import annotated_loss, label_map_loss, object_loss
from imagenets.learning.finetuning.recipes import Values, values_of
from imagenets.learning.finetuning.run import FineTuneRequest, chosen_values
from imagenets.learning.networks.backbones import make_backbone
from imagenets.learning.networks.segmentation_network import (
    PASS,
    SELF,
    SEMI,
    SegmentationNetwork,
    fresh_norm,
    read_saved,
)
from imagenets.learning.processes import Processes
from imagenets.learning.training.optimisers import layer_decay_groups

timm = pytest.importorskip("timm")
torchvision = pytest.importorskip("torchvision")

ALONE = Processes(0, 1, torch.device("cpu"))
VIT, CONVNEXT = "vit_tiny_patch16_224", "convnext_atto"


def network_of(name, recipe=SEMI, stride=None, classes=7):
    torch.manual_seed(1)
    return lively(SegmentationNetwork(make_backbone(name, output_stride=stride), classes, recipe))


@pytest.fixture(scope="module")
def pictures():
    draw = torch.Generator().manual_seed(3)
    return {size: torch.randn(1, 3, *size, generator=draw) for size in ((224, 224), (96, 133))}


def laid_out(logits, labels):
    """A ConvNeXt's head: 4 x 4 places a place of the map, the labels varying fastest."""
    out = torch.zeros(len(logits), labels, 4 * logits.shape[2], 4 * logits.shape[3])
    for row, column, label in np.ndindex(4, 4, labels):
        out[:, label, row::4, column::4] = logits[:, (row * 4 + column) * labels + label]
    return out


@pytest.mark.parametrize(
    ("name", "recipe", "stride", "norm", "output"),
    [
        ("resnet18", SEMI, None, None, "twice as large"),
        ("resnet18", SEMI, 16, None, "twice as large"),
        ("resnet18", PASS, None, None, ""),
        (VIT, SEMI, None, "fc_norm", ""),
        ("convnext_tiny", SEMI, None, "seg_norm", "laid out"),  # conv_mlp off, unlike the smaller ones
        ("mobilenet_v3_small", SEMI, None, None, ""),
    ],
)
def test_logits_are_those_of_a_convolution_on_the_last_map(pictures, name, recipe, stride, norm, output):
    """The map is tested in test_backbones.py; a new norm stands in place of the network's last one."""
    network, last = network_of(name, recipe, stride), make_backbone(name, output_stride=stride)
    w = network.weights()
    heads = {"head.weight", "head.bias"}
    if norm:
        last.network.norm = nn.Identity()
        heads |= {f"{norm}.weight", f"{norm}.bias"}
    assert w.keys() == last.network.state_dict().keys() | heads, "published files have these names"
    last.network.load_state_dict({key: w[key] for key in last.network.state_dict()})
    for x in pictures.values():
        with torch.no_grad():
            features = last(x).permute(0, 2, 3, 1)
            if norm:
                values = w[f"{norm}.weight"], w[f"{norm}.bias"]
                features = functional.layer_norm(features, features.shape[3:], *values, 1e-6)
            expected = functional.conv2d(features.permute(0, 3, 1, 2), w["head.weight"], w["head.bias"])
            if output == "twice as large":
                expected = functional.interpolate(expected, scale_factor=2, mode="bilinear")
            if output == "laid out":
                expected = laid_out(expected, 8)
            assert expected.std() > 0.1
            torch.testing.assert_close(network(x), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    ("name", "finer"),
    [
        ("test_resnet", {"layer2": 48, "layer3": 192}),
        ("torchvision/resnet18", {"layer2": 128, "layer3": 256}),
        ("test_efficientnet", {"blocks.2": 32, "blocks.3": 48}),
        ("test_mambaout", {}),  # its channels come last
        ("test_vit", {}),
    ],
)
def test_self_training_learns_a_head_on_a_network_that_stays_as_it_is(name, finer, pictures):
    network = network_of(name, SELF).train()
    assert network.finer == finer
    assert not any(of.requires_grad for of in network.backbone.parameters())
    before = copied(network.backbone)
    optimiser = torch.optim.SGD([of for of in network.parameters() if of.requires_grad], lr=1)
    masks = torch.randint(0, 8, (1, 224, 224), dtype=torch.int16)
    object_loss(network(pictures[224, 224]), masks, ALONE).backward()
    optimiser.step()
    assert all(torch.equal(value, before[key]) for key, value in network.backbone.state_dict().items())
    with_gradients = {key for key, of in network.named_parameters() if of.grad is not None}
    assert with_gradients == {key for key, _ in network.named_parameters() if not key.startswith("backbone.")}


def test_self_training_gives_a_picture_the_label_of_its_object(pictures):
    """The label is that of the last map's mean over the foreground; foreground is where outlines say so."""
    network = network_of("test_resnet", SELF)
    with torch.inference_mode():
        x = pictures[96, 133]
        logits = network(x)[0]
        found: dict[str, torch.Tensor] = {}
        for name in ("layer2", "layer3"):
            layer = network.backbone.network.get_submodule(name)
            layer.register_forward_hook(lambda _m, _i, output, name=name: found.__setitem__(name, output))
        last = network.backbone(x)
        maps = [
            functional.batch_norm(of_one, norm.running_mean, norm.running_var)
            for of_one, norm in zip((*found.values(), last), network.outlines.norms, strict=True)
        ]
        outlines = network.outlines(maps)[0, 0]
        shares = functional.adaptive_avg_pool2d(outlines.sigmoid()[None], last.shape[2:])[0]
        scores = network.head(maps[2])[0]
        of_object = (scores * shares).sum((1, 2)) / shares.sum()
    label = int(of_object.argmax()) + 1
    expected = outlines + (of_object - of_object.max())[:, None, None]
    assert torch.allclose(logits, torch.cat([torch.zeros(1, 12, 17), expected]), atol=1e-5)
    assert 0 < int((outlines > 0).sum()) < outlines.numel()
    assert torch.equal(logits.argmax(0), label * (outlines > 0))


def test_a_picture_surely_without_an_object_is_background(pictures):
    network = network_of("test_resnet", SELF)
    with torch.inference_mode():
        network.outlines.last.bias.fill_(-500)  # the sigmoid is 0
        logits = network(pictures[96, 133])
    assert logits.isfinite().all() and not logits.argmax(1).any()


def test_the_label_of_an_object_does_not_pull_at_its_outlines(pictures):
    network = network_of("timm/test_resnet", SELF)
    logits = network(pictures[96, 133])
    (logits[:, 1] - logits[:, 2]).sum().backward()
    assert network.head.weight.grad.any()
    assert not any(of.grad is not None and of.grad.any() for of in network.outlines.parameters())


@pytest.mark.parametrize(
    ("name", "recipe", "spread_of_weights", "bias"),
    [
        ("timm/test_resnet", SEMI, (2 / 201) ** 0.5, True),  # He et al., by the number of outputs
        ("test_vit", PASS, (2 / 201) ** 0.5, True),
        ("test_vit", SEMI, 2e-5, True),
        ("test_efficientnet", SEMI, 2e-5, True),
        ("test_convnext", SEMI, 0.02, False),
    ],
)
def test_heads_start_as_their_recipe_says(name, recipe, spread_of_weights, bias):
    torch.manual_seed(0)
    head = SegmentationNetwork(make_backbone(name), 200, recipe).head
    assert head.weight.std().item() == pytest.approx(spread_of_weights, rel=0.05)
    assert bool(head.bias.any()) == bias


def test_a_norm_of_the_file_is_taken_where_it_fits():
    network = network_of("test_vit")
    theirs = {"model.fc_norm.weight": torch.rand(64), "model.fc_norm.bias": torch.rand(64)}
    before = network.fc_norm.weight.clone()
    assert fresh_norm(network, {"model.norm.weight": torch.rand(64)})
    assert fresh_norm(network, {name: value[:8] for name, value in theirs.items()})
    assert torch.equal(network.fc_norm.weight, before)
    assert not fresh_norm(network, theirs)
    assert torch.equal(network.fc_norm.weight, theirs["model.fc_norm.weight"])
    assert torch.equal(network.fc_norm.bias, theirs["model.fc_norm.bias"])
    assert not fresh_norm(network_of("timm/test_resnet"), {}), "it has no such norm"


def test_all_weights_must_be_there_and_no_others_but_counters():
    network = network_of("timm/test_resnet")
    weights = {name: value.clone() for name, value in network.weights().items()}
    with pytest.raises(InputError, match=r"x\.pth: no timm/test_resnet .*: 1 tensors too many \(y\)$"):
        network.load_weights(weights | {"y": torch.ones(1)}, "x.pth")
    with pytest.raises(InputError, match=r"1 tensors missing \(head\.bias\)$"):
        network.load_weights({name: weights[name] for name in weights if name != "head.bias"}, "x.pth")
    lively(network, seed=1)
    network.load_weights({name: weights[name] for name in weights if "num_batches" not in name}, "x.pth")
    assert all(torch.equal(value, weights[name]) for name, value in network.weights().items())


@pytest.mark.parametrize(
    ("name", "first"),
    [("vit_small_patch14_reg4_dinov2", "reg_token"), ("vit_base_patch16_clip_224", "norm_pre.weight")],
)
def test_what_comes_before_the_blocks_is_of_the_stem(name, first):
    backbone = make_backbone(name, options={"depth": 2, "embed_dim": 96, "num_heads": 3})
    network = SegmentationNetwork(backbone, 3, SEMI)
    assert network.layers == 3
    assert network.layer_of(f"backbone.network.{first}") == 0


def test_layers_of_each_network():
    """The numbers of docs/finetuning.md, written out."""
    expected = {
        "vit_tiny_patch16_224": (13, "cls_token 0 pos_embed 0 patch_embed.proj.weight 0 "
            "blocks.0.norm1.weight 1 blocks.11.mlp.fc2.bias 12 fc_norm.weight 13 head.bias 13"),
        "resnet50": (17, "conv1.weight 0 bn1.bias 0 layer1.0.conv1.weight 1 layer1.2.conv3.weight 3 "
            "layer2.0.downsample.0.weight 4 layer3.0.bn1.weight 8 layer4.2.conv3.weight 16 head.weight 17"),
        "resnet18": (9, "layer1.1.conv1.weight 2 layer4.1.conv2.weight 8 head.bias 9"),
        "convnext_tiny": (22, "stem.0.weight 0 stem.1.bias 0 stages.0.blocks.0.gamma 1 "
            "stages.0.blocks.2.conv_dw.weight 3 stages.1.downsample.0.weight 4 "
            "stages.1.blocks.0.norm.weight 5 stages.1.blocks.2.gamma 7 stages.2.downsample.1.weight 8 "
            "stages.2.blocks.0.gamma 9 stages.2.blocks.8.gamma 17 stages.3.downsample.1.bias 18 "
            "stages.3.blocks.0.gamma 19 stages.3.blocks.2.mlp.fc1.weight 21 "
            "seg_norm.weight 22 head.weight 22"),
    }  # fmt: skip
    for name, (layers, written) in expected.items():
        network = SegmentationNetwork(make_backbone(name), 5, SEMI)
        assert network.layers == layers
        numbers = {
            n.removeprefix("backbone.network."): network.layer_of(n) for n, _ in network.named_parameters()
        }
        words = written.split()
        assert all(numbers[n] == int(number) for n, number in zip(words[::2], words[1::2], strict=True))
        assert set(numbers.values()) == set(range(layers + 1))
        groups = layer_decay_groups(network, network.layer_of, network.layers, 0.6, 0.05)
        for group in groups:
            for parameter, tensor in zip(group["names"], group["params"], strict=True):
                bare = parameter.removeprefix("backbone.network.")
                assert group["scale"] == pytest.approx(0.6 ** (layers - numbers[bare]))
                no_decay = tensor.ndim == 1 or bare in ("pos_embed", "cls_token")
                assert group["weight_decay"] == (0.0 if no_decay else 0.05)
        assert sum(len(group["params"]) for group in groups) == len(numbers)


def drawn(seed, count, side):
    """Masks (B, side, side), a picture's and a row's pixels not to be counted, and logits (B, 4, 4, 4)."""
    draw = np.random.default_rng(seed)
    masks = draw.choice([0, 1, 2, 3, 1000], (count, side, side))
    masks[-1, : 3 * side // 4] = 1000
    return torch.from_numpy(masks.astype(np.int16)), torch.from_numpy(
        draw.normal(size=(count, 4, 4, 4))
    ).float()


@pytest.mark.parametrize(("loss", "step"), [(annotated_loss, 4), (label_map_loss, 2), (object_loss, 8)])
def test_losses_against_loops(loss, step):
    masks, logits = drawn(1, 3, 32)
    side = 32 // step
    values = functional.interpolate(logits.double(), (side, side), mode="bilinear")
    terms = []
    for b, y, x in np.ndindex(3, side, side):
        label, pixel = int(masks[b, y * step, x * step]), values[b, :, y, x]
        if label == 1000:
            continue
        if loss is not object_loss:
            terms.append(-pixel.log_softmax(0)[label])
            continue
        share = torch.sigmoid(pixel[1:].max() - pixel[0])
        of_object = -3 * share.log() - pixel[1:].log_softmax(0)[label - 1]
        terms.append(of_object if label else -(1 - share).log())
    assert 0 < len(terms) < 3 * side**2
    assert float(loss(logits, masks, ALONE)) == pytest.approx(float(sum(terms) / len(terms)), abs=1e-6)
    assert float(loss(logits, torch.full_like(masks, 1000), ALONE)) == 0


@pytest.mark.parametrize(("loss", "step"), [(annotated_loss, 4), (label_map_loss, 2), (object_loss, 8)])
def test_the_mean_of_both_processes_losses_is_that_of_one_process(loss, step):
    """Though one of them has far fewer pixels that count."""
    masks, logits = drawn(1, 4, 32)
    pixels = (masks[:, ::step, ::step] != 1000).sum()
    both = SimpleNamespace(number=2, sum=lambda own: pixels)
    shares = [loss(logits[own], masks[own], both) for own in (slice(3), slice(3, 4))]
    assert float(sum(shares) / 2) == pytest.approx(float(loss(logits, masks, ALONE)), abs=1e-6)


def test_label_maps_do_not_depend_on_how_many_maps_are_enlarged_together():
    draw = torch.Generator().manual_seed(0)
    sizes = {(8, 11): (375, 500), (21, 16): (333, 250), (1, 5): (64, 777), (2, 2): (2, 2)}
    for (h, w), size in sizes.items():
        logits = torch.randn(51, h, w, generator=draw)
        whole = functional.interpolate(logits[None], size, mode="bilinear")[0].argmax(0).int()
        for maps in (1, 2, 7, 51):
            assert torch.equal(label_map(logits, size, at_once=maps * size[0] * size[1]), whole)


@pytest.mark.parametrize("at_once", [1, 16, 32, 64])
def test_of_equal_logits_the_lowest_label_wins(at_once):
    """However few are enlarged at a time, at least one."""
    for values, lowest in (((0, 0, 0, 0), 0), ((0, 1, 1, 1), 1), ((0, 1, 2, 2), 2), ((2, 0, 2, 2), 0)):
        logits = torch.tensor(values).float().view(4, 1, 1)
        assert label_map(logits, (4, 4), at_once).tolist() == [[lowest] * 4] * 4


def test_reduced_sizes():
    for size, reduced in (
        ((1000, 1000), (1000, 1000)), ((1001, 1000), (1000, 999)), ((375, 500), (375, 500)),
        ((3000, 2000), (1000, 666)), ((400, 2500), (400, 2500)), ((5000, 201), (1000, 40)),
        ((3_000_000, 1), (1000, 1)),
    ):  # fmt: skip
        assert reduced_size(size, 1000) == reduced
        assert reduced_size(size[::-1], 1000) == reduced[::-1]


FILES = {
    "pass": ("resnet18", PASS, None), "resnet": ("resnet18", SEMI, None), "resnet16": ("resnet18", SEMI, 16),
    "vit": (VIT, SEMI, None), "convnext": (CONVNEXT, SEMI, None),
}  # fmt: skip


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Fine-tuned networks in every layout that files have, and the network that each holds."""
    folder = tmp_path_factory.mktemp("files")
    made = {}
    for kind, (name, recipe, stride) in FILES.items():
        made[kind] = network_of(name, recipe, stride)
        weights = made[kind].weights()
        own = {"model": weights, "backbone": name, "recipe": recipe, "output_stride": stride, "classes": 7}
        torch.save(own, folder / f"{kind}-own.pth")
        head = {"pass": "last_layer.", "convnext": "seg_head.fc."}.get(kind, "head.")
        weights = {name.replace("head.", head): value for name, value in weights.items()}
        published = {"model": weights, "epoch": 99, "optimizer": {"state": {}}}
        if kind == "pass":
            published = {"state_dict": prefixed(weights, "module.")}
        torch.save(published, folder / f"{kind}-published.pth")
    return folder, made


@pytest.mark.parametrize("kind", FILES)
def test_every_form_of_file_loads(files, pictures, kind):
    folder, made = files
    name, _, stride = FILES[kind]
    own = read_saved(folder / f"{kind}-own.pth").network(None, None, 7)
    published = read_saved(folder / f"{kind}-published.pth").network(name, stride, 7)
    with torch.no_grad():
        expected = made[kind](pictures[96, 133])
        assert torch.equal(own(pictures[96, 133]), expected)
        assert torch.equal(published(pictures[96, 133]), expected)


@pytest.mark.parametrize(
    ("file", "backbone", "stride", "classes", "words"),
    [
        ("resnet-published", None, None, 7, "name the backbone"),
        ("resnet-published", "resnet34", None, 7, "no resnet34 with a head: .* tensors missing"),
        ("resnet-published", "resnet18", None, 50, "has 7 classes, the mode has 50"),
        ("convnext-published", CONVNEXT, None, 50, "has 7 classes, the mode has 50"),
        ("vit-published", "vit_small_patch16_224", None, 7, "of another shape"),
        ("resnet-own", "resnet34", None, 7, "is of backbone resnet18, not of resnet34"),
        ("resnet16-own", None, 32, 7, "has output stride 16, not 32"),
    ],
)
def test_what_does_not_fit_is_refused(files, file, backbone, stride, classes, words):
    with pytest.raises(InputError, match=words):
        read_saved(files[0] / f"{file}.pth").network(backbone, stride, classes)


def test_files_that_are_no_fine_tuned_networks_are_refused(tmp_path):
    no_head = "it has no head of 1 x 1 convolutions"
    flat = {"head.weight": torch.ones(3, 8), "head.bias": torch.ones(3)}
    for name, content, message in (
        ("plain", {"conv1.weight": torch.ones(3, 8, 1, 1)}, no_head),
        ("flat", {"model": flat}, no_head),
        ("rf", {"blocks.0.conv_dw.rates": torch.zeros(3, 2)}, "RF-ConvNeXt, which is left out"),
    ):
        torch.save(content, tmp_path / f"{name}.pth")
        with pytest.raises(InputError, match=rf"{name}\.pth: .*{message}"):
            read_saved(tmp_path / f"{name}.pth")


def test_a_fine_tuned_file_keeps_the_rule_of_its_positions(files, tmp_path):
    content = torch.load(files[0] / "vit-own.pth", weights_only=True)
    torch.save(content | {"positions": "bicubic"}, tmp_path / "x.pth")
    assert read_saved(tmp_path / "x.pth").network().backbone.positions == "bicubic"
    assert read_saved(files[0] / "vit-own.pth").network().backbone.positions == "dino"


def test_the_head_of_a_convnext_takes_the_place_of_dinov3s_norm():
    backbone = make_backbone("convnext_tiny.dinov3_lvd1689m", options={"depths": (1,) * 4, "dims": (8,) * 4})
    assert "norm.weight" in backbone.network.state_dict()
    assert "norm.weight" not in SegmentationNetwork(backbone, 7, SEMI).weights()


PUBLISHED = {  # base learning rate, layer decay, weight decay, drop path; docs/finetuning.md, Values
    ("vit_base_patch16_224", "vit", 16): (5e-4, 0.60, 0.05, 0.1),
    ("vit_small_patch16_224", "vit", 16): (5e-4, 0.50, 0.05, 0.1),
    ("resnet50", "resnet", 32): (5e-4, 0.40, 5e-4, 0.0),
    ("resnet50", "resnet", 16): (5e-4, 0.45, 5e-4, 0.0),
    ("convnext_tiny", "convnext", 32): (2.5e-4, 0.60, 0.05, 0.2),
}
OURS = {
    ("vit_tiny_patch16_224", "vit", 16): (5e-4, 0.50, 0.05, 0.1),
    ("resnet18", "resnet", 32): (5e-4, 0.40, 5e-4, 0.0),
    ("convnext_atto", "convnext", 32): (2.5e-4, 0.60, 0.05, 0.2),
    ("mobilenet_v3_small", "other", 32): (5e-4, 1.0, 0.05, 0.0),
}


def test_values_of_semi_supervised_fine_tuning():
    """docs/finetuning.md, Values: published for mode 919, ours elsewhere."""
    for mode, batch in (("50", 32), ("300", 128), ("919", 256)):
        for network, (rate, layer_decay, weight_decay, drop_path) in (PUBLISHED | OURS).items():
            assert values_of(SEMI, *network, mode) == Values(
                published=mode == "919" and network in PUBLISHED, epochs=100, batch=batch,
                lr=rate * batch / 256, final_lr=1e-6, warm_up=5, layer_decay=layer_decay,
                weight_decay=weight_decay, drop_path=drop_path, crop=224, smallest_crop=0.14, seed=0,
            ), (network, mode)  # fmt: skip


def test_values_of_self_training():
    expected = Values(False, 3, 16, 1e-3, 0.0, 0, 0.01, 1.0, 0.0, 256, 0.5, 0)
    assert values_of(SELF, "tf_efficientnet_lite0", "other", 32, "50") == expected
    assert values_of(SELF, "vit_small_patch14_dinov2", "vit", 14, "919").crop == 252


def test_values_of_fine_tuning_in_pass():
    for mode, own in (("50", "resnet18"), ("300", "resnet50"), ("919", "resnet50")):
        for network in ("resnet18", "resnet50"):
            assert values_of(PASS, network, "resnet", 32, mode) == Values(
                published=network == own, epochs=20, batch=256, lr=0.6, final_lr=0.0006, warm_up=0,
                weight_decay=1e-6, layer_decay=1.0, drop_path=0.0, crop=224, smallest_crop=0.08, seed=31,
            )  # fmt: skip


@pytest.mark.parametrize(
    ("recipe", "given", "expected"),
    [
        (SEMI, {"batch": 64}, {"batch": 64, "lr": 5e-4 * 64 / 256}),
        (SEMI, {"batch": 64, "lr": 0.1}, {"batch": 64, "lr": 0.1, "final_lr": 1e-6}),
        (SEMI, {"epochs": 20, "lr": None}, {"epochs": 20, "warm_up": 1, "lr": 5e-4 * 32 / 256}),
        (PASS, {"lr": 0.3}, {"lr": 0.3, "final_lr": 0.0003}),
        (PASS, {"batch": 128}, {"lr": 0.3, "final_lr": 0.0003}),
        (PASS, {"epochs": 10}, {"epochs": 10, "warm_up": 0}),
    ],
)
def test_given_values_take_others_along(recipe, given, expected, tmp_path):
    """With the batch the rate, with the epochs the warm-up, and with PASS's rate its last one."""
    request = FineTuneRequest(tmp_path, MODES["50"], recipe, "resnet18", None, tmp_path, given)
    values = chosen_values(request)
    assert {name: getattr(values, name) for name in expected} == pytest.approx(expected)
