"""Checkpoints: every form loads to the same weights; damaged, foreign and incomplete ones are refused."""

from __future__ import annotations

import argparse
import hashlib
import json
import zipfile
from collections import Counter, OrderedDict
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("torchvision")
timm = pytest.importorskip("timm")

import torch
from helpers.weights import copied, lively, prefixed, wrong
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
VIT = "vit_small_patch16_224"
SMALL = {"depth": 2, "embed_dim": 96, "num_heads": 3}
NARROW = {"channels": (64, 8, 8, 16)}


@pytest.fixture(scope="module")
def resnet():
    """With torchvision's names of tensors."""
    return lively(timm.create_model("resnet18", **NARROW))


@pytest.fixture(scope="module")
def vit():
    """Weights of a small one."""
    return copied(lively(timm.create_model(VIT, num_classes=0, **SMALL)))


def loads(content, folder, name="timm/resnet18", branch=None, options=NARROW):
    torch.save(content, folder / "x.pth")
    backbone = make_backbone(name, options=options)
    return backbone, load_backbone(backbone, folder / "x.pth", branch)


def same_weights(backbone, network):
    loaded, given = backbone.network.state_dict(), network.state_dict()
    return all(torch.equal(value, given[name]) for name, value in loaded.items() if "num_batches" not in name)


def resnet_forms(network):
    """What a file may hold, and what the line says of it."""
    weights = network.state_dict()
    body = {name: value for name, value in weights.items() if not name.startswith("fc.")}
    numbered = torch.nn.Sequential(*list(network.children())[:-1]).state_dict()
    heads = {"projection_head.0.weight": torch.zeros(3, 3), "prototypes.weight": torch.zeros(5, 3)}
    queue = {"module.queue": torch.zeros(128, 16), "module.encoder_q.fc.0.weight": torch.zeros(4, 4)}
    wrapped = {name.replace(".", "._fsdp_wrapped_module._checkpoint_wrapped_module.", 1): value
        for name, value in weights.items()}  # fmt: skip
    vissl = {"base_model": {"model": {"trunk": prefixed(body, "_feature_blocks.")}}}

    def both(chosen, right, other):
        return prefixed(wrong(chosen), other) | prefixed(chosen, right)

    return {
        "plain": (weights, ""),
        "ordered": (OrderedDict(weights), ""),
        "headless": (body, "left over: none there"),
        "without counters": ({n: v for n, v in weights.items() if not n.endswith("num_batches_tracked")}, ""),
        "other classes": (body | {"fc.weight": torch.zeros(7, 16), "fc.bias": torch.zeros(7)}, ""),
        "state_dict": ({"state_dict": weights} | OTHER, ""),
        "model": ({"model": weights, "args": argparse.Namespace(lr=0.1)} | OTHER, ""),
        "ddp": ({"state_dict": prefixed(weights, "module.")} | OTHER, ""),
        "compiled": ({"model": prefixed(wrapped, "_orig_mod.module.")}, ""),
        "moco": ({"state_dict": both(body, "module.encoder_q.", "module.encoder_k.") | queue} | OTHER,
            "under state_dict.module.encoder_q; left over: 1 there (fc.0.weight)"),
        "moco v3": ({"state_dict": both(body, "module.base_encoder.", "module.momentum_encoder.")}, ""),
        "swav": ({"state_dict": prefixed(body | heads, "module.")} | OTHER, ""),
        "byol": ({"online_network.encoder": {},
            "state_dict": both(body, "online_network.encoder.", "target_network.encoder.")}, ""),
        "simclr": ({"state_dict": prefixed(body | {"fc.0.weight": torch.zeros(2, 2)}, "backbone.")}, ""),
        "dino": ({"student": prefixed(wrong(body), "module.backbone."),
            "teacher": prefixed(body, "backbone.") | {"head.mlp.0.weight": torch.zeros(2, 2)}} | OTHER, ""),
        "vissl": ({"classy_state_dict": vissl}, ""),
        "lightly": ({"state_dict": both(numbered, "backbone.", "backbone_momentum.")}, ""),
        "spark": ({"module": prefixed(body, "sparse_encoder.sp_cnn.") | {"mask_tokens.0": torch.zeros(2)},
            "config": {"input_size": 224}}, ""),
        "lightning": ({"state_dict": prefixed(body, "model.backbone."), "loops": None,
            "hyper_parameters": {"lr": 0.1}, "optimizer_states": [{"state": {}}]}, ""),
        "pass": ({"state_dict": prefixed(body | heads, "module."), "optimizer": {"lr": np.float64(0.6)}}, ""),
        "state_dict_ema": ({"state_dict": wrong(weights), "state_dict_ema": weights}, "EMA, not state_dict"),
        "model_ema": ({"model": wrong(weights), "model_ema": weights}, "EMA, not model"),
        "ema_model": (both(weights, "ema_model.module.", "online_model."), "EMA, not online"),
        "averaged": (prefixed(weights, "module.") | {"n_averaged": torch.tensor(3)}, "under module;"),
    }  # fmt: skip


@pytest.mark.parametrize("form", resnet_forms(timm.create_model("resnet18", **NARROW)))
def test_every_form_of_a_resnet_loads(form, resnet, tmp_path):
    content, said = resnet_forms(resnet)[form]
    backbone, line = loads(content, tmp_path)
    assert same_weights(backbone, resnet)
    assert (
        line.startswith("timm/resnet18: 100 tensors loaded from x.pth") and said in line and "\n" not in line
    )


def test_another_copy_can_be_named(resnet, tmp_path):
    copies = {"model": resnet.state_dict(), "model_ema": wrong(resnet.state_dict())}
    backbone, line = loads(copies, tmp_path, branch="model")
    assert same_weights(backbone, resnet) and "under model;" in line
    with pytest.raises(InputError, match=r"has no weights teacher; there are model, model_ema"):
        loads(copies, tmp_path, branch="teacher")


def test_safetensors(resnet, tmp_path):
    path = tmp_path / "x.safetensors"
    save_file(resnet.state_dict(), path)
    backbone = make_backbone("timm/resnet18", options=NARROW)
    load_backbone(backbone, path)
    assert same_weights(backbone, resnet)
    path.write_bytes(path.read_bytes()[:5000])
    with pytest.raises(InputError, match=r"x.safetensors: cannot be read as safetensors"):
        load_backbone(backbone, path)


def test_position_embeddings_of_another_resolution(vit, tmp_path):
    """They are kept, and interpolated for each picture; or brought to the network's, for fine-tuning."""
    theirs = torch.rand(1, 1 + 24**2, 96)
    assert torch.equal(
        loads(vit | {"pos_embed": theirs}, tmp_path, VIT, options=SMALL)[0].network.pos_embed, theirs
    )
    backbone = make_backbone(VIT, options=SMALL)
    load_checkpoint(backbone, read_checkpoint(tmp_path / "x.pth"), own_grid=True)
    assert torch.equal(backbone.network.pos_embed[:, :1], theirs[:, :1])
    square = theirs[:, 1:].mT.reshape(1, 96, 24, 24)
    expected = torch.nn.functional.interpolate(square, size=(14, 14), mode="bicubic")
    torch.testing.assert_close(backbone.network.pos_embed[:, 1:].detach(), expected.flatten(2).mT)


class Evil:
    def __reduce__(self):
        return (print, ("code of a checkpoint has run",))


def test_damaged_foreign_and_incomplete_files_are_refused(resnet, vit, tmp_path, capsys):
    weights = resnet.state_dict()
    short = {name: value for name, value in weights.items() if not name.startswith("layer4.1.")}
    torch.save(short, tmp_path / "whole.pth")
    whole = (tmp_path / "whole.pth").read_bytes()
    files = {
        "text": (b"weights", "cannot be read as weights"),
        "empty": (b"", "cannot be read as weights"),
        "cut": (whole[: len(whole) // 2], "cannot be read as weights"),
        "list": ([1, 2], "holds no weights but a list"),
        "evil": ({"state_dict": Evil()},
            r"100 of 100 tensors are missing.*left out: 1 Python object \(builtins\.print 1\)"),
        "short": (short, r"10 of 100 tensors are missing \(layer4.1.conv1.weight"),
        "other names": (prefixed(weights, "net/"),
            "95 of 100 tensors are missing .*nearest names in it: net/layer"),
        "vit": (vit, "100 of 100 tensors are missing"),
        "deeper": (timm.create_model("resnet34", **NARROW).state_dict(), r"too many \(layer1.2.conv1.weight"),
        "wider": (timm.create_model("resnet50", **NARROW).state_dict(), "of another shape|missing"),
        "nothing": ({"epoch": 3}, "100 of 100 tensors are missing.*no name in it is near"),
    }  # fmt: skip
    backbone = make_backbone("timm/resnet18", options=NARROW)
    before = backbone.network.conv1.weight.clone()
    for name, (content, message) in files.items():
        path = tmp_path / f"{name}.pth"
        path.write_bytes(content) if isinstance(content, bytes) else torch.save(content, path)
        with pytest.raises(InputError, match=f"{name}.pth: .*{message}"):
            load_backbone(backbone, path)
    with pytest.raises(FileNotFoundError):
        load_backbone(backbone, tmp_path / "absent.pth")
    assert torch.equal(backbone.network.conv1.weight, before)
    assert "has run" not in capsys.readouterr().out


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
    assert same_weights(backbones[0], backbones[1].network)


def test_weights_that_no_network_has_are_refused_and_named(vit, tmp_path):
    name = "blocks.1.mlp.fc1.weight"
    one_nan = vit[name].clone()
    one_nan[3, 2] = float("nan")
    for message, value in {
        "are not finite": one_nan,
        "are zero throughout": torch.zeros_like(one_nan),
        "are int8, without their scale": one_nan.to(torch.int8),
        "are float8_e4m3fn, without their scale": one_nan.to(torch.float8_e4m3fn),
        r"have no values \(device meta\)": one_nan.to("meta"),
    }.items():
        with pytest.raises(InputError, match=rf"x.pth: 1 of 30 tensors {message}.*{name}"):
            loads(vit | {name: value}, tmp_path, VIT, options=SMALL)
    loads({name: value.half() for name, value in vit.items()}, tmp_path, VIT, options=SMALL)


def test_a_folders_own_mean_and_std_are_said_where_they_differ(vit, tmp_path):
    for content, said in (
        ({"image_mean": [0.5] * 3, "image_std": [0.5] * 3},
            "has mean 0.500 0.500 0.500, std 0.500 0.500 0.500; the backbone vit_small_patch16_224."),
        ({"image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225]}, None),
        ({"image_mean": [0.481, 0.458, 0.408], "image_std": [0.269, 0.261, 0.276]},
            "has mean 0.481 0.458 0.408"),
        ({"do_resize": True}, None),
        ([], None),
    ):  # fmt: skip
        (tmp_path / "preprocessor_config.json").write_text(json.dumps(content))
        _, line = loads(vit, tmp_path, VIT, options=SMALL)
        assert (said in line) if said else "preprocessor_config" not in line
    (tmp_path / "preprocessor_config.json").write_text("{")
    with pytest.raises(InputError, match=r"preprocessor_config\.json: no JSON"):
        loads(vit, tmp_path, VIT, options=SMALL)


def test_what_is_no_file_of_weights_is_refused_with_what_to_name_or_run_instead(tmp_path):
    torch.jit.script(torch.nn.Linear(2, 2)).save(tmp_path / "scripted.pt")
    torch.save({"model": {"_flat_param": torch.ones(9)}}, tmp_path / "fsdp.pth")
    torch.save({"module": {f"w{n}": torch.empty(0) for n in range(3)}}, tmp_path / "zero3.pth")
    (tmp_path / "model.bin").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n")
    optimiser = "zero/zero_pp_rank_0_mp_rank_00_optim_states.pt"
    shard = "shards/model-00001-of-00002.safetensors"
    for name in ("dcp/.metadata", "dcp/__0_0.distcp", "siglip.npz", "run/x", shard, optimiser):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    for name, message in {
        "run": r"a folder; name a file of weights, of a run here .*last\.pth",
        "model.bin": "a pointer of Git LFS.*git lfs pull",
        "shards": r"a folder with shards \(model-00001.*without their index",
        optimiser: "ZeRO-3.*zero_to_fp32.py",
        "zero3.pth": "ZeRO-3.*zero_to_fp32.py",
        "fsdp.pth": "as FSDP holds them.*FULL_STATE_DICT",
        "scripted.pt": r"a TorchScript archive.*torch\.jit\.load\('.*scripted.pt'.*\)\.float\(\)",
        "dcp": r"dcp_to_torch .*dcp weights\.pth",
        "dcp/__0_0.distcp": r"dcp_to_torch .*dcp weights\.pth",
        "siglip.npz": "weights of JAX.*load_pretrained",
    }.items():
        with pytest.raises(InputError, match=message):
            _ = read_checkpoint(tmp_path / name).tensors
    (tmp_path / "zero" / "mp_rank_00_model_states.pt").touch()
    with pytest.raises(InputError, match=r"DeepSpeed's optimiser; name .*mp_rank_00_model_states\.pt"):
        read_checkpoint(tmp_path / optimiser)


def test_shards_are_joined_by_their_index_and_count_in_its_digest(tmp_path):
    weights = {f"w{n}": torch.full((2,), float(n)) for n in range(4)}
    shards = [f"model-0000{n}-of-00002.safetensors" for n in (1, 2)]
    for n, shard in enumerate(shards):
        save_file({name: weights[name] for name in list(weights)[2 * n : 2 * n + 2]}, tmp_path / shard)
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {name: shards[int(name[1]) // 2] for name in weights}}))
    joined = read_checkpoint(index).tensors
    assert joined.keys() == weights.keys()
    assert all(torch.equal(joined[name], value) for name, value in weights.items())
    digest = file_digest(index)
    save_file({"w2": weights["w2"], "w3": weights["w0"]}, tmp_path / shards[1])
    assert file_digest(index) != digest

    def refused(path, message):
        with pytest.raises(InputError, match=message):
            read_checkpoint(path)

    refused(tmp_path / shards[1], r"one of 2 shards; name their index, .*model.safetensors.index.json")
    refused(tmp_path, r"a folder; name .*model.safetensors.index.json")
    save_file({"w3": weights["w3"]}, tmp_path / shards[1])
    refused(index, r"its shards lack 1 tensors \(w2\)")
    (tmp_path / shards[1]).unlink()
    refused(index, r"1 of its 2 shards are missing \(model-00002")
    index.write_text(json.dumps({"weight_map": {"w": "../x.safetensors"}}))
    refused(index, "names files elsewhere")
    index.write_text("{}")
    refused(index, "it has no weight_map")


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


def test_the_rule_of_positions_is_that_of_the_files_family(vit, tmp_path):
    fixed = vit["pos_embed"].clone()
    fixed[:, 0] = 0
    for content, rule in (
        (vit, "dino"),
        ({"model": vit}, "dino"),
        ({"model": vit, "positions": "antialias"}, "antialias"),  # of a run here
        ({"model": vit | {"decoder_embed.weight": torch.ones(64, 96)}}, "bicubic"),
        (vit | {"pos_embed": fixed}, "bicubic"),
        ({"state_dict": prefixed(vit, "backbone.")}, "dino"),
    ):
        assert loads(content, tmp_path, VIT, options=SMALL)[0].positions == rule


LITE = SHARED / "photos" / "tf_efficientnet_lite0.pth"


@pytest.mark.skipif(not LITE.exists(), reason="needs the shared photographs")
def test_a_real_file_loads_whole():
    backbone = make_backbone("tf_efficientnet_lite0")
    line = load_backbone(backbone, LITE)
    given = torch.load(LITE, weights_only=True)
    assert all(torch.equal(value, given[name]) for name, value in backbone.network.state_dict().items())
    assert "left over" in line and "mean 0.485" in line
