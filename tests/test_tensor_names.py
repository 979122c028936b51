"""Names of tensors: wrappers, copies of a network, families, and transformers' names, one by one."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import nn

pytest.importorskip("timm")

from imagenets.common.errors import InputError
from imagenets.learning.networks.checkpoint_files import Checkpoint, without_wrappers
from imagenets.learning.networks.checkpoints import first_choice, is_ema
from imagenets.learning.networks.families import family_of
from imagenets.learning.networks.layouts import _dinov2, candidates
from imagenets.learning.networks.transformers_names import vit_to_timm

ONE, TWO = torch.tensor([1.0]), torch.tensor([2.0])


def test_a_wrapped_name_does_not_replace_the_same_one_without():
    assert without_wrappers({"_orig_mod.a._fsdp_wrapped_module.w": ONE}) == {"a.w": ONE}
    both = {"a.w": ONE, "_orig_mod.a.w": TWO}
    assert without_wrappers(both) == both


def test_a_branch_is_any_part_of_the_names():
    content = {"state_dict": {"model": {"w": ONE}, "model_ema": {"w": TWO}}}
    path = Path("x.pth")
    assert len(Checkpoint(path, content).tensors) == 2
    for branch in ("model", "state_dict.model"):
        assert Checkpoint(path, content, branch=branch).tensors == {"state_dict.model.w": ONE}
    with pytest.raises(InputError, match=r"x\.pth: has no weights teacher; there are state_dict$"):
        _ = Checkpoint(path, content, branch="teacher").tensors


@pytest.mark.parametrize(
    ("other", "chosen"),
    [
        ("model.", "model_ema."),
        ("student.", "teacher."),
        ("encoder_k.", "encoder_q."),
        ("momentum_encoder.", "base_encoder."),
        ("encoder.", "target_encoder."),  # I-JEPA, MSN
        ("target_encoder.", "online_encoder."),  # BYOL
    ],
)
def test_of_copies_that_fit_the_network_that_is_evaluated_is_chosen(other, chosen):
    assert first_choice([other, chosen]) == first_choice([chosen, other]) == chosen


def test_of_other_copies_the_first_is_chosen():
    assert first_choice(["b.", "a."]) == "b."


def test_a_moving_average_is_a_word_of_a_name():
    assert all(map(is_ema, ("ema.", "model_ema.", "state_dict.ema_model.")))
    assert not any(map(is_ema, ("schema.", "emax.", "model.")))


def test_families_and_their_position_rule_and_whose_mean_and_std_they_have():
    """docs/checkpoints.md, Position embeddings; Mean and standard deviation."""
    for model, expected in {
        "vit_base_patch16_224": ("DINO", "dino", False),
        "deit3_small_patch16_224": ("MAE, DeiT", "bicubic", False),
        "vit_small_patch14_dinov2": ("DINOv2", "dino", False),
        "vit_base_patch14_franca": ("Franca", "dino", False),
        "vit_small_patch16_mocov3": ("MoCo v3", "bicubic", False),
        "vit_small_patch14_reg4_dinov2": ("DINOv2 with registers", "antialias", False),
        "beit_base_patch16_224": ("BEiT", "dino", True),
        "beitv2_large_patch16_224": ("BEiT", "dino", True),
        "vit_base_patch14_reg1_tipsv2": ("TIPSv2", "dino", True),
        "vit_base_patch16_siglip_224": ("SigLIP", "bicubic", True),
        "naflexvit_base_patch16_siglip": ("SigLIP", "bicubic", True),
        "vit_base_patch16_clip_224": ("CLIP", "bicubic", True),
        "eva02_base_patch16_clip_224": ("EVA02-CLIP", "bicubic", True),
        "aimv2_large_patch14_224": ("AIMv2", "bicubic", True),
        "vit_pe_core_base_patch16_224": ("PE", "bilinear", True),
        "vit_base_patch16_radio_v3": ("C-RADIO", "radio", True),
    }.items():
        family = family_of(model)
        assert (family.name, family.positions, family.own_values) == expected, model


def test_parts_of_attention_are_joined_in_the_order_q_k_v():
    given = {
        f"encoder.layer.0.attention.attention.{part}.{kind}": torch.full((1, 2), value)[0]
        for kind in ("weight", "bias")
        for part, value in (("value", 3.0), ("query", 1.0), ("key", 2.0))
    }
    joined = torch.tensor([1.0, 1, 2, 2, 3, 3])
    found = vit_to_timm(given, ())
    assert list(found) == ["blocks.0.attn.qkv.weight", "blocks.0.attn.qkv.bias"]
    assert all(torch.equal(value, joined) for value in found.values())
    del given["encoder.layer.0.attention.attention.key.bias"]
    assert vit_to_timm(given, ())["blocks.0.attn.qkv.bias"].tolist() == [1, 1, 0, 0, 3, 3]
    del given["encoder.layer.0.attention.attention.key.weight"]
    left = {"blocks.0.attn.q.weight", "blocks.0.attn.v.weight", "blocks.0.attn.qkv.bias"}
    assert vit_to_timm(given, ()).keys() == left, "parts of which one is missing are not joined"


def test_tokens_keep_their_names_and_get_their_dimensions():
    given = {"embeddings.cls_token": torch.ones(4), "embeddings.distillation_token": torch.ones(1, 1, 4)}
    found = vit_to_timm(given, ())
    assert {name: tuple(value.shape) for name, value in found.items()} == dict.fromkeys(
        ("cls_token", "dist_token"), (1, 1, 4)
    )


def test_the_class_tokens_position_is_added_to_it_where_there_is_one():
    names = {"register_tokens": torch.ones(1, 4, 1), "cls_token": torch.full((1, 1, 1), 2.0)}
    rows = torch.arange(10.0).view(1, 10, 1) + 5
    found = _dinov2(names | {"pos_embed": rows}, True)
    assert found["cls_token"].item() == 7 and torch.equal(found["pos_embed"], rows[:, 1:])
    assert torch.equal(found["reg_token"], names["register_tokens"])
    of_timm = names | {"pos_embed": rows[:, 1:]}
    assert _dinov2(of_timm, True) == of_timm, "the table has no row for it"
    assert _dinov2(names | {"pos_embed": rows}, False) == names | {"pos_embed": rows}


class Network(nn.Module):
    """A network that is known by the names of its tensors."""

    def __init__(self):
        super().__init__()
        self.norm = nn.LayerNorm(1)


def test_a_renamed_tensor_does_not_replace_one_that_is_there():
    backbone = SimpleNamespace(network=Network(), is_resnet=False)
    first = next(candidates({"norm.weight": ONE, "fc_norm.weight": TWO}, backbone, {"norm.weight"}))
    assert first.tensors == {"norm.weight": ONE, "fc_norm.weight": TWO}
    first = next(candidates({"fc_norm.weight": ONE, "fc_norm.bias": TWO}, backbone, {"norm.weight"}))
    assert first.tensors == {"norm.weight": ONE, "norm.bias": TWO}


def test_the_prefix_is_that_of_most_names():
    tensors = {"a.w": ONE, "b.w": TWO, "b.x": TWO, "other": ONE}
    backbone = SimpleNamespace(network=nn.Identity(), is_resnet=False)
    (found,) = candidates(tensors, backbone, {"w", "x"})
    assert (found.prefix, found.tensors) == ("b.", {"w": TWO, "x": TWO})
    assert found.elsewhere == ("a.w", "other")
