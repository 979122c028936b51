"""Checkpoints: every form loads to the same weights; damaged, foreign and incomplete ones are refused."""

from __future__ import annotations

import argparse
import hashlib
import json
import re
import zipfile
from collections import Counter, OrderedDict
from pathlib import Path

import numpy as np
import pytest

torchvision = pytest.importorskip("torchvision")
timm = pytest.importorskip("timm")

import torch
from masksets import SHARED
from safetensors.torch import save_file

from imagenets.common.errors import InputError
from imagenets.learning.networks.backbones import make_backbone
from imagenets.learning.networks.checkpoint_files import (
    Checkpoint,
    file_digest,
    named_tensors,
    read_checkpoint,
)
from imagenets.learning.networks.checkpoints import load_backbone, load_checkpoint

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
        "spark": {
            "module": prefixed(body, "sparse_encoder.sp_cnn.") | {"mask_tokens.0": torch.zeros(1, 512, 1, 1)},
            "config": {"input_size": 224},
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
    assert torch.equal(backbone.network.pos_embed, weights["pos_embed"])  # interpolated for each picture

    backbone = make_backbone("vit_tiny_patch16_224")
    load_checkpoint(backbone, read_checkpoint(tmp_path / "x.pth"), own_grid=True)  # as fine-tuning does
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
        "evil": r"100 of 100 tensors are missing.*left out: 1 Python object \(builtins\.print 1\)",
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
    with pytest.raises(InputError, match=r"a folder; name a file of weights, of a run here .*last\.pth"):
        read_checkpoint(tmp_path)


def test_numpy_numbers_of_both_numpys_are_left_out(tmp_path):
    """The learning rate in the optimiser of a published file is a NumPy number, as NumPy 1 pickled it."""
    torch.save({"lr": np.float64(0.5), "w": torch.ones(1)}, tmp_path / "x.pth")
    with zipfile.ZipFile(tmp_path / "x.pth") as given, zipfile.ZipFile(tmp_path / "old.pth", "w") as old:
        for item in given.infolist():
            content = given.read(item)
            if item.filename.endswith("data.pkl"):
                assert b"numpy._core.multiarray" in content
                content = content.replace(b"numpy._core.multiarray", b"numpy.core.multiarray")
            old.writestr(item, content)
    for name in ("x.pth", "old.pth"):
        read = read_checkpoint(tmp_path / name)
        assert list(read.tensors) == ["w"] and read.left_out["numpy.dtype"] == 1


def test_none_in_a_checkpoints_place_gives_the_same_random_weights_every_time():
    torch.manual_seed(5)
    backbones = [make_backbone("resnet18") for _ in range(2)]
    before = torch.random.get_rng_state()
    lines = [load_backbone(backbone, Path("none")) for backbone in backbones]
    assert lines[0] == lines[1] and lines[0].startswith("resnet18: random weights (seed 0); mean")
    assert file_digest(Path("none")) == "none"
    assert torch.equal(torch.random.get_rng_state(), before)
    first, second = (backbone.network.state_dict() for backbone in backbones)
    assert all(torch.equal(first[name], second[name]) for name in first)


def loads(content, tmp_path, name="resnet18", branch=None, **options):
    torch.save(content, tmp_path / "x.pth")
    backbone = make_backbone(name, options=options)
    return backbone, load_backbone(backbone, tmp_path / "x.pth", branch)


def test_the_moving_average_is_taken_and_said_unless_another_is_named(resnet, tmp_path):
    weights, other = resnet.state_dict(), wrong(resnet.state_dict())
    files = {
        "state_dict_ema": ({"state_dict": other, "state_dict_ema": weights}, "EMA, not state_dict"),
        "model_ema": ({"model": other, "model_ema": weights}, "EMA, not model"),
        "ema_model": (
            prefixed(other, "online_model.") | prefixed(weights, "ema_model.module."),
            "EMA, not online",
        ),
        "averaged": (prefixed(weights, "module.") | {"n_averaged": torch.tensor(3)}, "under module;"),
    }
    for content, said in files.values():
        backbone, line = loads(content, tmp_path)
        assert same_weights(backbone, resnet) and said in line
    backbone, line = loads({"model": weights, "model_ema": other}, tmp_path, branch="model")
    assert same_weights(backbone, resnet) and "under model;" in line
    with pytest.raises(InputError, match=r"has no weights teacher; there are model, model_ema"):
        loads({"model": weights, "model_ema": other}, tmp_path, branch="teacher")


def test_wrappers_are_taken_off_at_any_place(resnet, tmp_path):
    theirs = {
        f"_orig_mod.module.{name.replace('.', '._fsdp_wrapped_module._checkpoint_wrapped_module.', 1)}": value
        for name, value in resnet.state_dict().items()
    }
    assert same_weights(loads({"model": theirs}, tmp_path)[0], resnet)


def test_weights_that_no_network_has_are_refused_and_named(resnet, tmp_path):
    def with_first(change):
        weights = {name: value.clone() for name, value in resnet.state_dict().items()}
        return weights | {"layer1.0.conv1.weight": change(weights["layer1.0.conv1.weight"])}

    def one_nan(value):
        value[3, 2, 1, 0] = float("nan")
        return value

    faults = {
        "are not finite": one_nan,
        "are zero throughout": torch.zeros_like,
        "are int8, without their scale": lambda value: (value * 100).to(torch.int8),
        "are float8_e4m3fn, without their scale": lambda value: value.to(torch.float8_e4m3fn),
        r"have no values \(device meta\)": lambda value: value.to("meta"),
    }
    for message, change in faults.items():
        with pytest.raises(InputError, match=rf"x.pth: 1 of 100 tensors {message}.*layer1.0.conv1.weight"):
            loads(with_first(change), tmp_path)
    loads({name: value.half() for name, value in resnet.state_dict().items()}, tmp_path)


def transformers_folder(folder, change=dict, suffix="safetensors"):
    """A small ViT as transformers saves it, its tensors changed, in a folder; gives the file of weights."""
    weights = small_vit()
    theirs = {}
    for name, value in weights.items():
        name = name.replace("patch_embed.proj", "embeddings.patch_embeddings.projection")
        name = name.replace("cls_token", "embeddings.cls_token").replace("blocks.", "encoder.layer.")
        name = name.replace("pos_embed", "embeddings.position_embeddings").replace(
            ".norm1", ".layernorm_before"
        )
        name = name.replace(".norm2", ".layernorm_after").replace(".mlp.fc1", ".intermediate.dense")
        name = name.replace(".mlp.fc2", ".output.dense").replace(".attn.proj", ".attention.output.dense")
        name = re.sub("^norm", "layernorm", name)
        letters = ("query", "key", "value") if "attn.qkv" in name else ("",)
        for letter, part in zip(letters, value.chunk(len(letters)), strict=True):
            theirs[name.replace("attn.qkv", f"attention.attention.{letter}")] = part.clone()
    path = folder / f"model.{suffix}"
    torch.save(change(theirs), path) if suffix == "bin" else save_file(change(theirs), path)
    return path


def with_key(change):
    """Change the weight of the keys of one block; None takes it away."""
    name = "encoder.layer.1.attention.attention.key.weight"

    def changed(tensors):
        value = change(tensors[name])
        rest = {key: tensor for key, tensor in tensors.items() if key != name}
        return rest if value is None else rest | {name: value}

    return changed


def without_bias_of(letter):
    return lambda tensors: {
        name: value for name, value in tensors.items() if not name.endswith(f"{letter}.bias")
    }


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (with_key(torch.zeros_like), r"1 of 30 tensors are zero throughout in queries, keys.*1\.attn\.qkv"),
        (with_key(lambda key: key.to(torch.int8)), r"1 of 30 tensors are int8.*1\.attn\.qkv\.weight"),
        (with_key(lambda key: key.to("meta")), r"1 of 30 tensors have no values.*1\.attn\.qkv\.weight"),
        (
            with_key(lambda key: None),
            r"missing \(blocks\.1\.attn\.qkv\.weight\); nearest .*blocks\.1\.attn\.[qv]",
        ),
        (without_bias_of("query"), r"2 of 30 tensors are missing .*4 too many \(blocks\.0\.attn\.k\.bias"),
        (without_bias_of("value"), r"2 of 30 tensors are missing .*4 too many \(blocks\.0\.attn\.q\.bias"),
    ],
    ids=["zero key", "int8 key", "meta key", "no key", "no biases of q", "no biases of v"],
)
def test_a_fault_in_queries_keys_or_values_survives_their_joining(change, message, tmp_path):
    path = transformers_folder(tmp_path, change, "bin")
    with pytest.raises(InputError, match=message):
        load_backbone(make_backbone("vit_small_patch16_224", options=SMALL), path)


def test_a_missing_bias_of_keys_changes_no_feature(tmp_path):
    backbones = [make_backbone("vit_small_patch16_224", options=SMALL) for _ in range(2)]
    load_backbone(backbones[0], transformers_folder(tmp_path))
    load_backbone(backbones[1], transformers_folder(tmp_path, without_bias_of("key"), "bin"))
    pictures = torch.randn(1, 3, 64, 96)
    with torch.inference_mode():
        torch.testing.assert_close(*(backbone(pictures) for backbone in backbones))


def test_norms_and_positions_of_zero_and_a_network_of_another_width_are_named(tmp_path):
    zeros = {"norm.weight": torch.zeros(96), "pos_embed": torch.zeros(1, 197, 96)}
    with pytest.raises(InputError, match=r"2 of 30 tensors are zero throughout.*\(pos_embed, norm\.weight\)"):
        loads(small_vit() | zeros, tmp_path, "vit_small_patch16_224", **SMALL)
    path = transformers_folder(tmp_path)
    with pytest.raises(
        InputError, match=r": 30 of another shape \(cls_token is \(1, 1, 96\), not \(1, 1, 32\)"
    ):
        load_backbone(
            make_backbone("vit_small_patch16_224", options=SMALL | {"embed_dim": 32, "num_heads": 1}), path
        )


def test_a_folders_own_mean_and_std_are_said_where_they_differ(tmp_path):
    path = transformers_folder(tmp_path)
    stated = tmp_path / "preprocessor_config.json"
    half = {"image_mean": [0.5] * 3, "image_std": [0.5] * 3}
    for content, said in (
        (
            half,
            "has mean 0.500 0.500 0.500, std 0.500 0.500 0.500; the backbone vit_small_patch16_224.",
        ),
        ({"image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225]}, None),
        (
            {"image_mean": [0.481, 0.458, 0.408], "image_std": [0.269, 0.261, 0.276]},
            "has mean 0.481 0.458 0.408",
        ),
        ({"do_resize": True}, None),
        ([], None),
    ):
        stated.write_text(json.dumps(content))
        line = load_backbone(make_backbone("vit_small_patch16_224", options=SMALL), path)
        assert (said in line) if said else "preprocessor_config" not in line
    stated.write_text("{")
    with pytest.raises(InputError, match=r"preprocessor_config\.json: no JSON"):
        load_backbone(make_backbone("vit_small_patch16_224", options=SMALL), path)


def test_what_is_no_file_of_weights_is_said_to_be_what_it_is(tmp_path):
    (tmp_path / "model.bin").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n")
    (tmp_path / "shards").mkdir()
    (tmp_path / "shards" / "model-00001-of-00002.safetensors").write_bytes(b"")
    optimiser = "zero_pp_rank_0_mp_rank_00_optim_states.pt"
    (tmp_path / optimiser).write_bytes(b"")
    for name, message in (
        ("model.bin", "a pointer of Git LFS.*git lfs pull"),
        ("shards", r"a folder with shards \(model-00001.*without their index"),
        (optimiser, "ZeRO-3.*zero_to_fp32.py"),
    ):
        with pytest.raises(InputError, match=message):
            read_checkpoint(tmp_path / name)
    (tmp_path / "mp_rank_00_model_states.pt").write_bytes(b"")
    with pytest.raises(InputError, match=r"DeepSpeed's optimiser; name .*mp_rank_00_model_states\.pt"):
        read_checkpoint(tmp_path / optimiser)
    adapter = {"base_model.model.encoder.layer.0.attention.attention.query.lora_A.weight": torch.ones(8, 96)}
    with pytest.raises(InputError, match="it looks like a LoRA adapter"):
        loads(adapter, tmp_path, "vit_small_patch16_224", **SMALL)


def test_parts_of_tensors_and_other_forms_are_refused_with_the_command_that_converts(resnet, tmp_path):
    for content, message in (
        ({"model": {"_flat_param": torch.ones(9)}}, "as FSDP holds them.*FULL_STATE_DICT"),
        ({"module": {f"w{n}": torch.empty(0) for n in range(3)}}, "ZeRO-3.*zero_to_fp32.py"),
    ):
        with pytest.raises(InputError, match=message):
            loads(content, tmp_path)
    torch.jit.script(torch.nn.Linear(2, 2)).save(tmp_path / "scripted.pt")
    (tmp_path / "dcp").mkdir()
    (tmp_path / "dcp" / ".metadata").write_bytes(b"")
    (tmp_path / "dcp" / "__0_0.distcp").write_bytes(b"")
    (tmp_path / "siglip.npz").write_bytes(b"")
    for name, message in (
        ("scripted.pt", r"a TorchScript archive.*torch\.jit\.load\('.*scripted.pt'.*\)\.float\(\)"),
        ("dcp", r"dcp_to_torch .*dcp weights\.pth"),
        ("dcp/__0_0.distcp", r"dcp_to_torch .*dcp weights\.pth"),
        ("siglip.npz", "weights of JAX.*load_pretrained"),
    ):
        with pytest.raises(InputError, match=message):
            read_checkpoint(tmp_path / name)


def test_shards_are_joined_by_their_index_and_count_in_its_digest(resnet, tmp_path):
    weights = resnet.state_dict()
    names = list(weights)
    shards = [f"model-0000{n}-of-00002.safetensors" for n in (1, 2)]
    halves = (names[:50], names[50:])
    for shard, half in zip(shards, halves, strict=True):
        save_file({name: weights[name].clone() for name in half}, tmp_path / shard)
    index = tmp_path / "model.safetensors.index.json"
    places = {name: shard for shard, half in zip(shards, halves, strict=True) for name in half}
    index.write_text(json.dumps({"metadata": {"total_size": 1}, "weight_map": places}))
    backbone = make_backbone("resnet18")
    load_backbone(backbone, index)
    assert same_weights(backbone, resnet)
    digest = file_digest(index)
    with pytest.raises(
        InputError, match=r"one of 2 shards; name their index, .*model.safetensors.index.json"
    ):
        load_backbone(backbone, tmp_path / shards[0])
    with pytest.raises(InputError, match=r"a folder; name .*model.safetensors.index.json"):
        load_backbone(backbone, tmp_path)
    save_file({name: weights[name] + 1 for name in halves[1]}, tmp_path / shards[1])
    assert file_digest(index) != digest
    save_file({name: weights[name].clone() for name in halves[1][1:]}, tmp_path / shards[1])
    with pytest.raises(InputError, match=rf"its shards lack 1 tensors \({names[50]}\)"):
        load_backbone(backbone, index)
    (tmp_path / shards[1]).unlink()
    with pytest.raises(InputError, match=r"1 of its 2 shards are missing \(model-00002"):
        load_backbone(backbone, index)
    index.write_text(json.dumps({"weight_map": {"w": "../x.safetensors"}}))
    with pytest.raises(InputError, match="names files elsewhere"):
        load_backbone(backbone, index)


def test_every_byte_of_a_file_counts_in_its_digest(tmp_path):
    content = bytes(3 << 20) + b"end"
    (tmp_path / "x.pth").write_bytes(content)
    assert file_digest(tmp_path / "x.pth") == hashlib.blake2b(content, digest_size=16).hexdigest()


def test_the_only_shard_is_the_whole_and_the_optimisers_tensors_are_none_of_the_network(tmp_path):
    ones = torch.ones(2)
    save_file({"w": ones}, tmp_path / "model-00001-of-00001.safetensors")
    assert list(read_checkpoint(tmp_path / "model-00001-of-00001.safetensors").tensors) == ["w"]
    assert list(named_tensors({"optimizer": {"w": ones}, "model": {"a": {"w": ones}}})) == ["model.a.w"]


def test_tensors_of_which_a_part_is_held_are_refused_and_single_empty_ones_are_not():
    sharded = Counter({"torch.distributed._shard.sharded_tensor.api.ShardedTensor": 1})
    with pytest.raises(InputError, match=r"as FSDP holds them \(torch\.distributed.*ShardedTensor\)"):
        _ = Checkpoint(Path("x.pth"), {}, sharded).tensors
    few_empty = {"mask": torch.empty(0), "w": torch.ones(1)}
    assert list(Checkpoint(Path("x.pth"), few_empty).tensors) == ["mask", "w"]


SMALL = {"depth": 2, "embed_dim": 96, "num_heads": 3}


def small_vit(name="vit_small_patch16_224", **options):
    network = timm.create_model(name, num_classes=0, **{**SMALL, **options})
    return {key: value.clone() for key, value in spread(network).state_dict().items()}


def test_files_that_fit_by_shape_but_give_other_features_are_refused(tmp_path):
    weights = small_vit()
    moco = {"state_dict": prefixed(weights, "module.base_encoder.")}
    with pytest.raises(InputError, match=r"12 heads.*vit_small_patch16_mocov3"):
        loads(moco, tmp_path, "vit_small_patch16_224", **SMALL)
    registers = {"register_tokens": torch.ones(1, 4, 96)}
    with pytest.raises(InputError, match=r"1 too many \(register_tokens\).*vit_small_patch14_reg4_dinov2"):
        loads(weights | registers, tmp_path, "vit_small_patch16_224", **SMALL)
    with pytest.raises(
        InputError, match=r"patch_embed.proj.weight is \(96, 3, 16, 16\), not \(96, 3, 14, 14\)"
    ):
        loads(weights, tmp_path, "vit_small_patch14_dinov2", **SMALL)
    with pytest.raises(InputError, match=r"OpenAI's CLIP.*vit_base_patch16_clip_quickgelu_224"):
        clip = small_vit("vit_base_patch16_clip_224")
        loads(
            prefixed(clip, "visual.trunk.") | {"input_resolution": torch.tensor(224)},
            tmp_path, "vit_base_patch16_clip_224", **SMALL,
        )  # fmt: skip
    gated = {name.replace("fc1", "w12").replace("fc2", "w3"): value for name, value in weights.items()}
    gated["blocks.0.mlp.w12.weight"] = torch.ones(512, 96)
    with pytest.raises(InputError, match="it looks like Franca"):
        loads(gated, tmp_path, "vit_small_patch16_224", **SMALL)


def test_the_rule_of_positions_is_that_of_the_files_family(tmp_path):
    weights = small_vit()
    fixed = weights | {"pos_embed": weights["pos_embed"].clone()}
    fixed["pos_embed"][:, 0] = 0
    for content, rule in (
        (weights, "dino"),
        ({"model": weights}, "dino"),
        ({"model": weights, "positions": "antialias"}, "antialias"),  # of a run here
        ({"model": weights | {"decoder_embed.weight": torch.ones(64, 96)}}, "bicubic"),
        (fixed, "bicubic"),
        ({"state_dict": prefixed(weights, "backbone.")}, "dino"),
    ):
        assert loads(content, tmp_path, "vit_small_patch16_224", **SMALL)[0].positions == rule


LITE = SHARED / "photos" / "tf_efficientnet_lite0.pth"


@pytest.mark.skipif(not LITE.exists(), reason="needs the shared photographs")
def test_a_real_file_loads_whole():
    backbone = make_backbone("tf_efficientnet_lite0")
    line = load_backbone(backbone, LITE)
    given = torch.load(LITE, weights_only=True)
    assert all(torch.equal(value, given[name]) for name, value in backbone.network.state_dict().items())
    assert "left over" in line and "mean 0.485" in line
