"""Checkpoints: every form loads to the same weights; damaged, foreign and incomplete ones are refused."""

from __future__ import annotations

import argparse
import re
import zipfile
from collections import OrderedDict
from pathlib import Path

import numpy as np
import pytest

torchvision = pytest.importorskip("torchvision")
timm = pytest.importorskip("timm")

import torch
from safetensors.torch import save_file

from imagenets.common.errors import InputError
from imagenets.learning.networks.backbones import make_backbone
from imagenets.learning.networks.checkpoints import file_digest, load_backbone, read_checkpoint

OTHER = {"optimizer": {"state": {0: {"exp_avg": torch.zeros(3)}}, "param_groups": [{"lr": 0.1}]}, "epoch": 7}


def spread(network, seed=0):
    """Give a network weights, buffers included, that no other loading would give."""
    generator = torch.Generator().manual_seed(seed)
    for value in network.state_dict().values():
        if value.is_floating_point():
            value.copy_(torch.rand(value.shape, generator=generator) * 0.2 + 0.01)
    return network


def prefixed(weights, prefix):
    return {f"{prefix}{name}": value for name, value in weights.items()}


def wrong(weights):
    """The other copy in a file, which must not be taken."""
    return {name: value + 1 for name, value in weights.items()}


@pytest.fixture(scope="module")
def resnet():
    return spread(torchvision.models.resnet18())


@pytest.fixture(scope="module")
def vit():
    return spread(timm.create_model("vit_tiny_patch16_224", num_classes=10))


def resnet_forms(network):
    weights = network.state_dict()
    body = {name: value for name, value in weights.items() if not name.startswith("fc.")}
    old = {name: value for name, value in weights.items() if not name.endswith("num_batches_tracked")}
    numbered = torch.nn.Sequential(*list(network.children())[:-1]).state_dict()
    heads = {"projection_head.0.weight": torch.zeros(3, 3), "prototypes.weight": torch.zeros(5, 3)}
    return {
        "plain": weights,
        "ordered": OrderedDict(weights),
        "headless": body,
        "without counters": old,
        "other classes": body | {"fc.weight": torch.zeros(7, 512), "fc.bias": torch.zeros(7)},
        "state_dict": {"state_dict": weights} | OTHER,
        "model": {"model": weights, "args": argparse.Namespace(lr=0.1)} | OTHER,
        "ddp": {"state_dict": prefixed(weights, "module.")} | OTHER,
        "moco": {
            "state_dict": prefixed(wrong(body), "module.encoder_k.")
            | prefixed(body, "module.encoder_q.")
            | {"module.queue": torch.zeros(128, 16), "module.encoder_q.fc.0.weight": torch.zeros(4, 4)},
            "arch": "resnet18",
        }
        | OTHER,
        "moco v3": {
            "state_dict": prefixed(body, "module.base_encoder.")
            | prefixed(wrong(body), "module.momentum_encoder.")
        },
        "swav": {"state_dict": prefixed(body | heads, "module.")} | OTHER,
        "byol": {
            "online_network.encoder": {},
            "state_dict": prefixed(wrong(body), "target_network.encoder.")
            | prefixed(body, "online_network.encoder."),
        },
        "simclr": {"state_dict": prefixed(body, "backbone.") | {"backbone.fc.0.weight": torch.zeros(2, 2)}},
        "dino": {
            "student": prefixed(wrong(body), "module.backbone."),
            "teacher": prefixed(body, "backbone.") | {"head.mlp.0.weight": torch.zeros(2, 2)},
            "args": argparse.Namespace(arch="resnet18"),
        }
        | OTHER,
        "vissl": {
            "classy_state_dict": {"base_model": {"model": {"trunk": prefixed(body, "_feature_blocks.")}}}
        },
        "lightly": {
            "state_dict": prefixed(wrong(numbered), "backbone_momentum.") | prefixed(numbered, "backbone.")
        },
        "lightning": {
            "state_dict": prefixed(body, "model.backbone."),
            "pytorch-lightning_version": "2.1.0",
            "hyper_parameters": {"lr": 0.1, "batch_size": 256},
            "optimizer_states": [{"state": {}}],
            "loops": None,
        },
        "pass": {
            "state_dict": prefixed(body | heads, "module."),
            "optimizer": {"param_groups": [{"lr": np.float64(0.6)}]},
        },
    }


FORMS = list(resnet_forms(torchvision.models.resnet18(weights=None)))


def same_weights(backbone, network):
    loaded, given = backbone.network.state_dict(), network.state_dict()
    return all(torch.equal(value, given[name]) for name, value in loaded.items() if "num_batches" not in name)


@pytest.mark.parametrize("form", FORMS)
def test_every_form_of_a_resnet_loads(form, resnet, tmp_path):
    path = tmp_path / ("x.ckpt" if form == "lightning" else "x.pth.tar")
    torch.save(resnet_forms(resnet)[form], path)
    backbone = make_backbone("resnet18")
    line = load_backbone(backbone, path)
    assert same_weights(backbone, resnet)
    assert line.startswith(f"resnet18: 100 tensors loaded from {path.name}") and "\n" not in line


def test_the_line_tells_the_prefix_and_what_was_left_over(resnet, tmp_path):
    torch.save(resnet_forms(resnet)["moco"], tmp_path / "moco.pth")
    line = load_backbone(make_backbone("resnet18"), tmp_path / "moco.pth")
    assert "under state_dict.module.encoder_q; left over: 1 there (fc.0.weight)" in line


def test_safetensors(resnet, tmp_path):
    save_file(resnet.state_dict(), tmp_path / "x.safetensors")
    backbone = make_backbone("resnet18")
    load_backbone(backbone, tmp_path / "x.safetensors")
    assert same_weights(backbone, resnet)
    (tmp_path / "cut.safetensors").write_bytes((tmp_path / "x.safetensors").read_bytes()[:5000])
    with pytest.raises(InputError, match=r"cut.safetensors"):
        load_backbone(backbone, tmp_path / "cut.safetensors")


def vit_forms(network):
    weights = network.state_dict()
    body = {name: value for name, value in weights.items() if not name.startswith("head.")}
    fc_norm = {re.sub("^norm", "fc_norm", name): value for name, value in body.items()}
    decoder = {f"decoder_blocks.0.{n}": torch.zeros(2) for n in ("norm1.weight", "norm1.bias")}
    decoder |= {"mask_token": torch.zeros(1, 1, 4), "decoder_pos_embed": torch.zeros(1, 197, 4)}
    chunked = {re.sub(r"^blocks\.(\d+)", r"blocks.0.\1", name): value for name, value in body.items()}
    return {
        "plain": weights,
        "mae": {"model": body | decoder},
        "fine-tuned mae": {"model": fc_norm | {"head.weight": torch.zeros(920, 192, 1, 1)}},
        "dino": {
            "student": prefixed(wrong(body), "module.backbone."),
            "teacher": prefixed(body, "backbone.") | prefixed(decoder, "head."),
        },
        "dinov2": {"teacher": prefixed(chunked | {"mask_token": torch.zeros(1, 192)}, "backbone.")},
        "moco v3": {
            "state_dict": prefixed(body, "module.base_encoder.")
            | prefixed(wrong(body), "module.momentum_encoder.")
        },
    }


@pytest.mark.parametrize("form", list(vit_forms(timm.create_model("vit_tiny_patch16_224"))))
def test_every_form_of_a_vit_loads(form, vit, tmp_path):
    torch.save(vit_forms(vit)[form], tmp_path / "x.pth")
    backbone = make_backbone("vit_tiny_patch16_224")
    load_backbone(backbone, tmp_path / "x.pth")
    assert same_weights(backbone, vit)


def test_facebooks_convnext_and_registers_of_dinov2(tmp_path):
    network = spread(timm.create_model("convnext_atto", num_classes=0))
    renames = (("stem.", "downsample_layers.0."), (".conv_dw.", ".dwconv."), (".mlp.fc", ".pwconv"))
    theirs = {}
    for name, value in network.state_dict().items():
        for ours, facebooks in renames:
            name = name.replace(ours, facebooks)
        if ".downsample." in name:
            name = "downsample_layers." + name.removeprefix("stages.").replace(".downsample.", ".")
        theirs[name.replace(".blocks.", ".").replace("head.norm.", "norm.")] = value
    assert "stages.2.3.pwconv1.weight" in theirs and "downsample_layers.1.0.weight" in theirs
    torch.save({"model": theirs | {"head.weight": torch.zeros(1000, 320)}}, tmp_path / "c.pth")
    backbone = make_backbone("convnext_atto")
    load_backbone(backbone, tmp_path / "c.pth")
    assert same_weights(backbone, network)

    vit = spread(timm.create_model("vit_small_patch14_reg4_dinov2", num_classes=0, depth=2))
    weights = vit.state_dict()
    first = torch.rand(1, 1, 384)
    theirs = {name: value for name, value in weights.items() if name != "reg_token"}
    theirs |= {
        "register_tokens": weights["reg_token"],
        "cls_token": weights["cls_token"] - first,
        "pos_embed": torch.cat([first, weights["pos_embed"]], dim=1),
        "mask_token": torch.zeros(1, 384),
    }
    backbone = make_backbone("vit_small_patch14_reg4_dinov2")
    backbone.network.blocks = backbone.network.blocks[:2]
    torch.save(theirs, tmp_path / "d.pth")
    load_backbone(backbone, tmp_path / "d.pth")
    assert torch.allclose(backbone.network.cls_token, vit.cls_token, atol=1e-6)
    assert torch.equal(backbone.network.pos_embed, vit.pos_embed)
    assert torch.equal(backbone.network.reg_token, vit.reg_token)


def test_position_embeddings_of_another_resolution(vit, tmp_path):
    weights = dict(vit.state_dict())
    weights["pos_embed"] = torch.rand(1, 1 + 24**2, 192)
    torch.save(weights, tmp_path / "x.pth")
    backbone = make_backbone("vit_tiny_patch16_224")
    load_backbone(backbone, tmp_path / "x.pth")
    assert torch.equal(backbone.network.pos_embed[:, :1], weights["pos_embed"][:, :1])
    square = weights["pos_embed"][:, 1:].mT.reshape(1, 192, 24, 24)
    expected = torch.nn.functional.interpolate(square, size=(14, 14), mode="bicubic")
    torch.testing.assert_close(backbone.network.pos_embed[:, 1:].detach(), expected.flatten(2).mT)


class Evil:
    def __reduce__(self):
        return (print, ("code of a checkpoint has run",))


def test_damaged_foreign_and_incomplete_files_are_refused(resnet, vit, tmp_path, capsys):
    weights = resnet.state_dict()
    short = {name: value for name, value in weights.items() if not name.startswith("layer4.1.")}
    files = {
        "text": b"weights",
        "empty": b"",
        "list": [1, 2],
        "evil": {"state_dict": Evil()},
        "short": short,
        "other names": {f"net/{name}": value for name, value in weights.items()},
        "vit": vit.state_dict(),
        "deeper": torchvision.models.resnet34().state_dict(),
        "wider": torchvision.models.wide_resnet50_2().state_dict(),
        "nothing": {"epoch": 3},
    }
    for name, content in files.items():
        path = tmp_path / f"{name}.pth"
        path.write_bytes(content) if isinstance(content, bytes) else torch.save(content, path)
    whole = (tmp_path / "short.pth").read_bytes()
    (tmp_path / "cut.pth").write_bytes(whole[: len(whole) // 2])
    messages = {
        "text": "cannot be read as weights",
        "empty": "cannot be read as weights",
        "cut": "cannot be read as weights",
        "list": "holds no weights but a list",
        "evil": r"a Python object \((builtins\.)?print\)",
        "short": r"10 of 100 tensors are missing \(layer4.1.conv1.weight",
        "other names": "95 of 100 tensors are missing .*nearest names in it: net/layer",
        "vit": "100 of 100 tensors are missing",
        "deeper": r"too many \(layer1.2.conv1.weight",
        "wider": "of another shape|missing",
        "nothing": "100 of 100 tensors are missing.*no name in it is near",
    }
    backbone = make_backbone("resnet18")
    before = backbone.network.conv1.weight.clone()
    for name, message in messages.items():
        with pytest.raises(InputError, match=f"{name}.pth: .*{message}"):
            load_backbone(backbone, tmp_path / f"{name}.pth")
    with pytest.raises(FileNotFoundError):
        load_backbone(backbone, tmp_path / "absent.pth")
    assert torch.equal(backbone.network.conv1.weight, before)
    assert "has run" not in capsys.readouterr().out


def test_a_folder_in_place_of_its_file_is_told(tmp_path):
    with pytest.raises(InputError, match=r"a folder; give a file of weights, of a run here .*last\.pth"):
        read_checkpoint(tmp_path)


def test_numpy_numbers_of_both_numpys_are_read(tmp_path):
    """The learning rate in the optimiser of a published file is a NumPy number, as NumPy 1 pickled it."""
    torch.save({"lr": np.float64(0.5)}, tmp_path / "x.pth")
    assert read_checkpoint(tmp_path / "x.pth")["lr"] == 0.5
    with zipfile.ZipFile(tmp_path / "x.pth") as given, zipfile.ZipFile(tmp_path / "old.pth", "w") as old:
        for item in given.infolist():
            content = given.read(item)
            if item.filename.endswith("data.pkl"):
                assert b"numpy._core.multiarray" in content
                content = content.replace(b"numpy._core.multiarray", b"numpy.core.multiarray")
            old.writestr(item, content)
    assert read_checkpoint(tmp_path / "old.pth")["lr"] == 0.5


def test_none_in_a_checkpoints_place_gives_the_same_random_weights_every_time():
    torch.manual_seed(5)
    backbones = [make_backbone("resnet18") for _ in range(2)]
    before = torch.random.get_rng_state()
    lines = [load_backbone(backbone, Path("none")) for backbone in backbones]
    assert lines == ["resnet18: random weights (seed 0)"] * 2 and file_digest(Path("none")) == "none"
    assert torch.equal(torch.random.get_rng_state(), before)
    first, second = (backbone.network.state_dict() for backbone in backbones)
    assert all(torch.equal(first[name], second[name]) for name in first)
