"""Files of every family, in their authors' names and shapes: features are those of timm's own model.

Networks are small, of random, lively weights. The reference is timm's model, built for each size, with
position embeddings interpolated by the rule of docs/checkpoints.md.
"""

from __future__ import annotations

import argparse
import re
from functools import partial
from typing import NamedTuple

import pytest

pytest.importorskip("torchvision")
timm = pytest.importorskip("timm")

import torch
from helpers.weights import copied, lively, prefixed, wrong

from imagenets.common.errors import InputError
from imagenets.learning.networks.backbones import make_backbone
from imagenets.learning.networks.checkpoints import load_backbone
from imagenets.learning.networks.position_embeddings import grid_embeddings

D = 96
VIT = {"depth": 2, "embed_dim": D, "num_heads": 3}
HEADS_OF_64 = {"depth": 2, "embed_dim": 128, "num_heads": 2}
CONVNEXT = {"depths": (1, 1, 2, 1), "dims": (16, 16, 16, 32)}
IMAGENET = (0.485, 0.456, 0.406)
CLIP = (0.48145466, 0.4578275, 0.40821073)
HALF = (0.5, 0.5, 0.5)
SATELLITE = (0.430, 0.411, 0.296)


def renamed(weights, rules):
    """Rename by ``old=new`` in order; ``old`` is a pattern of whole parts of a name."""
    changed = {}
    for name, value in weights.items():
        for rule in rules.split():
            old, new = rule.split("=")
            name = re.sub(rf"(?<![^.]){old}(?![^.])", new, name)
        changed[name] = value
    return changed


def apart(weights):
    """``attn.q``, ``attn.k`` and ``attn.v`` for ``attn.qkv``."""
    found = {}
    for name, value in weights.items():
        letters = "qkv" if ".attn.qkv." in name else [""]
        for letter, part in zip(letters, value.chunk(len(letters)), strict=True):
            found[name.replace("attn.qkv", f"attn.{letter}")] = part.clone()
    return found


# --- names that are timm's behind a prefix


def dino(weights):
    return {
        "student": prefixed(wrong(weights), "module.backbone."),
        "teacher": prefixed(weights, "backbone.") | {"head.mlp.0.weight": torch.ones(3, D)},
        "args": argparse.Namespace(arch="vit_small"),
        "epoch": 99,
    }


def mae(weights):
    decoder = {"mask_token": torch.ones(1, 1, 64), "decoder_embed.weight": torch.ones(64, D)}
    return {"model": weights | decoder | {"decoder_blocks.0.norm1.weight": torch.ones(64)}}


def with_head(weights, rules=""):
    return {"model": renamed(weights, rules) | {"head.weight": torch.ones(9, D), "head.bias": torch.ones(9)}}


def moco_v3(weights):
    theirs = prefixed(weights | {"head.0.weight": torch.ones(4, D)}, "module.base_encoder.")
    return {"state_dict": theirs | prefixed(wrong(weights), "module.momentum_encoder."), "arch": "vit_base"}


def target(weights):
    """MSN and I-JEPA."""
    return {
        "encoder": prefixed(wrong(weights), "module."),
        "predictor": {"module.predictor_embed.weight": torch.ones(8, D)},
        "prototypes": torch.ones(10, 5),
        "target_encoder": prefixed(weights, "module."),
    }


def is_gated(weights):
    """SwiGLU, as in DINOv2's giant and Franca."""
    return weights["blocks.0.mlp.fc1.weight"].shape[0] != 4 * weights["blocks.0.mlp.fc2.weight"].shape[0]


def dinov2(weights):
    gates = "mlp.fc1=mlp.w12 mlp.fc2=mlp.w3" if is_gated(weights) else ""
    return renamed(weights, gates) | {"mask_token": torch.ones(1, D)}


def dinov2_with_registers(weights):
    first = torch.full((1, 1, D), 0.25)
    theirs = renamed(weights, "reg_token=register_tokens") | {"mask_token": torch.ones(1, D)}
    positions = torch.cat([first, weights["pos_embed"]], dim=1)
    return theirs | {"cls_token": weights["cls_token"] - first, "pos_embed": positions}


def dinov2_training(weights):
    heads = {"dino_head.mlp.0.weight": torch.ones(3, D), "ibot_head.mlp.0.weight": torch.ones(3, D)}
    return {"teacher": prefixed(renamed(dinov2(weights), "blocks=blocks.0"), "backbone.") | heads}


# --- transformers

EMBEDDINGS = (
    "cls_token=embeddings.cls_token mask_token=embeddings.mask_token "
    "pos_embed=embeddings.position_embeddings patch_embed.proj=embeddings.patch_embeddings.projection "
    "register_tokens=embeddings.register_tokens norm=layernorm "
)
QKV = "attn.q=attention.attention.query attn.k=attention.attention.key attn.v=attention.attention.value "
QKV_NOW = "attn.q=attention.q_proj attn.k=attention.k_proj attn.v=attention.v_proj "
NORMS = "norm1=layernorm_before norm2=layernorm_after "
VIT_FILE = (
    f"{EMBEDDINGS} {QKV} {NORMS} attn.proj=attention.output.dense "
    "mlp.fc1=intermediate.dense mlp.fc2=output.dense blocks=encoder.layer "
)
VIT_MEMORY = f"{EMBEDDINGS} {QKV_NOW} {NORMS} attn.proj=attention.o_proj blocks=layers"


def hf_vit(weights, prefix=""):
    extra = {"pooler.dense.weight": torch.ones(D, D), "embeddings.mask_token": torch.ones(1, 1, D)}
    theirs = prefixed(renamed(apart(weights), VIT_FILE) | extra, prefix)
    return theirs | {"classifier.weight": torch.ones(5, D)}


def hf_dinov2(weights):
    gates = "mlp.fc1=mlp.weights_in mlp.fc2=mlp.weights_out " if is_gated(weights) else ""
    if "reg_token" in weights:
        weights = dinov2_with_registers(weights)
    blocks = r"attn.proj=attention.output.dense ls([12]).gamma=layer_scale\1.lambda1 blocks=encoder.layer"
    return renamed(apart(weights), f"{EMBEDDINGS} {QKV} {gates} {blocks}")


def hf_dinov2_memory(weights):
    parts = "query=q_proj key=k_proj value=v_proj output.dense=o_proj weights_out=down_proj"
    theirs = renamed(hf_dinov2(weights), f"attention.attention=attention {parts}")
    for name in [name for name in theirs if "mlp.weights_in" in name]:
        gate, up = theirs.pop(name).chunk(2)
        theirs[name.replace("weights_in", "gate_proj")] = gate.clone()
        theirs[name.replace("weights_in", "up_proj")] = up.clone()
    return theirs


def hf_mae(weights):
    decoder = {
        "mask_token": torch.ones(1, 1, 64),
        "decoder_embed.weight": torch.ones(64, D),
        "decoder_layers.0.attention.attention.query.weight": torch.ones(64, 64),
        "decoder_layers.0.layernorm_before.weight": torch.ones(64),
    }
    return prefixed(renamed(apart(weights), VIT_FILE), "vit.") | prefixed(decoder, "decoder.")


# --- BEiT and data2vec


def beit_pretrained(weights):
    """One table of relative positions for all blocks, and the norm of the tokens."""
    table = "relative_position_bias_table"
    theirs = {name: value for name, value in weights.items() if table not in name}
    shared = {f"rel_pos_bias.{table}": weights[f"blocks.0.attn.{table}"], "mask_token": torch.ones(1, 1, D)}
    shared["rel_pos_bias.relative_position_index"] = torch.ones(197, 197).long()
    return {"model": renamed(theirs, "fc_norm=norm") | shared | {"lm_head.bias": torch.ones(9)}}


def hf_beit(weights, prefix="beit."):
    inside = "attention.attention."
    rules = (
        rf"fc_norm=pooler.layernorm attn.q_bias={inside}query.bias attn.v_bias={inside}value.bias "
        rf"attn.(relative_position_bias)(_\w+)={inside}\1.\1\2 gamma_([12])=lambda_\1 {VIT_FILE}"
    )
    return prefixed(renamed(apart(weights), rules), prefix) | {"classifier.bias": torch.ones(5)}


BEITS = {
    "fine-tuned": with_head,
    "pre-trained": beit_pretrained,
    "HF": hf_beit,
    "HF data2vec": partial(hf_beit, prefix="data2vec_vision."),
}


# --- DINOv3


def dinov3(weights):
    """Official names; biases of q and v are 0 where a network has none, those of k are masked."""
    gates = (
        "mlp.fc1_g=mlp.w1 mlp.fc1_x=mlp.w2 mlp.fc2=mlp.w3" if "blocks.0.mlp.fc1_g.weight" in weights else ""
    )
    theirs = renamed(weights, rf"reg_token=storage_tokens gamma_([12])=ls\1.gamma {gates}")
    for attention in ("blocks.0.attn.", "blocks.1.attn."):
        q, v = (theirs.pop(f"{attention}{letter}_bias", torch.zeros(128)) for letter in "qv")
        theirs[f"{attention}qkv.bias"] = torch.cat([q, torch.full((128,), 7.0), v])
        theirs[f"{attention}qkv.bias_mask"] = torch.tensor([1.0, 0, 1]).repeat_interleave(128)
    return theirs | {"mask_token": torch.ones(1, 128), "rope_embed.periods": torch.ones(16).bfloat16()}


def dinov3_7b(weights):
    """No biases of queries, keys and values, and a norm for the class tokens of small crops."""
    theirs = {name: value for name, value in dinov3(weights).items() if ".qkv.bias" not in name}
    return theirs | {f"local_cls_norm.{part}": torch.ones(128) for part in ("weight", "bias")}


def hf_dinov3(weights, layer="layer"):
    is_plus = "blocks.0.mlp.fc1_g.weight" in weights
    rules = (
        r"cls_token=embeddings.cls_token reg_token=embeddings.register_tokens "
        r"patch_embed.proj=embeddings.patch_embeddings attn.proj=attention.o_proj "
        r"attn.([qv])_bias=attention.\1_proj.bias gamma_([12])=layer_scale\1.lambda1 "
        r"mlp.fc1_g=mlp.gate_proj mlp.fc2=mlp.down_proj "
        rf"mlp.{'fc1_x' if is_plus else 'fc1'}=mlp.up_proj blocks={layer} {QKV_NOW}"
    )
    return renamed(apart(weights), rules) | {"embeddings.mask_token": torch.ones(1, 1, 128)}


# --- CLIP and its kin


def image_tower(theirs, positions, token):
    """Without batch dimensions, and without the attention pooling."""
    theirs = {name: value for name, value in theirs.items() if not name.startswith("attn_pool.")}
    theirs[positions] = theirs[positions][0]
    if token in theirs:
        theirs[token] = theirs[token].flatten()
    return theirs


def openai(weights, prefix="visual."):
    rules = (
        r"patch_embed.proj=conv1 cls_token=class_embedding pos_embed=positional_embedding norm_pre=ln_pre "
        r"norm=ln_post norm([12])=ln_\1 attn.qkv.(weight|bias)=attn.in_proj_\1 attn.proj=attn.out_proj "
        r"mlp.fc1=mlp.c_fc mlp.fc2=mlp.c_proj gamma_([12])=ls_\1.gamma blocks=transformer.resblocks"
    )
    theirs = image_tower(renamed(weights, rules), "positional_embedding", "class_embedding")
    vision = prefixed(theirs | {"proj": torch.ones(D, 64)}, prefix)
    text = {
        "positional_embedding": torch.ones(77, 64),
        "transformer.resblocks.0.ln_1.weight": torch.ones(64),
        "transformer.resblocks.0.attn.in_proj_weight": torch.ones(3 * 64, 64),
        "token_embedding.weight": torch.ones(100, 64),
        "logit_scale": torch.ones(()),
    }
    return vision | prefixed(text, prefix.removesuffix("visual.")) if prefix else vision


def hf_clip(weights, prefix="vision_model."):
    rules = (
        r"cls_token=embeddings.class_embedding pos_embed=embeddings.position_embedding.weight "
        r"patch_embed.proj=embeddings.patch_embedding norm_pre=pre_layrnorm norm=post_layernorm "
        r"attn.proj=self_attn.out_proj attn.([qkv])=self_attn.\1_proj norm([12])=layer_norm\1 "
        r"blocks=encoder.layers"
    )
    token = "embeddings.class_embedding"
    theirs = image_tower(renamed(apart(weights), rules), "embeddings.position_embedding.weight", token)
    theirs["embeddings.position_ids"] = torch.arange(9)[None]
    if token not in theirs:  # SigLIP
        theirs["head.probe"] = torch.ones(1, 1, D)
    text = {"text_model.encoder.layers.0.self_attn.q_proj.weight": torch.ones(64, 64)}
    return prefixed(theirs, prefix) | text | {"logit_scale": torch.ones(())}


def hf_naflex(weights):
    plain = renamed(weights, "embeds.proj=patch_embed.proj embeds.pos_embed=pos_embed")
    return hf_clip(plain | {"pos_embed": plain["pos_embed"].flatten(1, 2)})


def eva02(weights):
    rules = (
        r"attn.([qv])_proj.bias=attn.\1_bias attn.norm=attn.inner_attn_ln mlp.norm=mlp.ffn_ln "
        r"mlp.fc1_g=mlp.w1 mlp.fc1_x=mlp.w2 mlp.fc2=mlp.w3"
    )
    extra = {"rope.freqs_cos": torch.ones(196, 32), "head.weight": torch.ones(8, D)}
    return prefixed(renamed(weights, rules) | extra, "visual.") | {"text.logit_scale": torch.ones(())}


def aimv2(weights):
    return renamed(
        weights,
        r"norm=trunk.post_trunk_norm blocks=trunk.blocks norm([12])=norm_\1 mlp.fc1_g=mlp.fc1 "
        r"mlp.fc1_x=mlp.fc3 pos_embed=preprocessor.pos_embed patch_embed=preprocessor.patchifier "
        r"patchifier.trunk.post_trunk_norm=patchifier.norm",
    )


def hf_aimv2(weights):
    rules = (
        r"patch_embed.norm=embeddings.rms_norm norm=rms_norm patch_embed.proj=embeddings.patch_embed "
        r"pos_embed=embeddings.position_embedding.weight norm([12])=rms_norm\1 attn.proj=attention.out_proj "
        r"mlp.fc1_g=ffn.gate_proj mlp.fc1_x=ffn.up_proj mlp.fc2=ffn.down_proj blocks=encoder.layers "
    ) + QKV_NOW
    return image_tower(renamed(apart(weights), rules), "embeddings.position_embedding.weight", "")


def radio(weights):
    theirs = renamed(weights, "gamma=grandma pos_embed=patch_generator.pos_embed")
    theirs["patch_generator.embedder.weight"] = theirs.pop("patch_embed.proj.weight").flatten(1)
    assert not theirs.pop("patch_embed.proj.bias").any()
    tokens = torch.cat([theirs.pop("cls_token"), theirs.pop("reg_token")], dim=1)
    theirs["patch_generator.cls_token.token"] = tokens[0]
    extra = {"input_conditioner.norm_mean": torch.ones(3, 1, 1), "radio_model.summary_idxs": torch.arange(3)}
    return prefixed(theirs, "radio_model.model.") | extra


# --- ConvNeXt


def facebooks(weights):
    rules = (
        r"stem=downsample_layers.0 stages.(\d).downsample=downsample_layers.\1 stages.(\d).blocks=stages.\1 "
        r"conv_dw=dwconv mlp.grn.weight=grn.gamma mlp.grn.bias=grn.beta mlp.fc(\d)=pwconv\1 head.norm=norm"
    )
    theirs = renamed(weights, rules)
    return {name: value[None, None, None] if ".grn." in name else value for name, value in theirs.items()}


def dinov3_convnext(weights):
    theirs = facebooks(weights)
    return theirs | {f"norms.3.{part}": theirs[f"norm.{part}"] for part in ("weight", "bias")}


def hf_convnext(weights, model=""):
    rules = (
        r"stem=stages.0.downsample_layers stages.(\d).downsample=stages.\1.downsample_layers "
        r"stages.(\d).blocks.(\d).norm=stages.\1.layers.\2.layer_norm stages.(\d).blocks=stages.\1.layers "
        rf"conv_dw=depthwise_conv mlp.fc(\d)=pointwise_conv\1 head.norm=layer_norm stages={model}stages"
    )
    return renamed(weights, rules)


def spark(weights):
    decoder = {
        "dense_decoder.dec.0.up_sample.weight": torch.ones(2),
        "mask_tokens.0": torch.ones(1, 32, 1, 1),
    }
    return {"module": prefixed(facebooks(weights), "sparse_encoder.sp_cnn.") | decoder, "is_pretrain": True}


class Row(NamedTuple):
    family: str
    network: str
    write: object  # of timm's weights
    rule: str | None = None  # None: timm's own forward at any size
    mean: tuple[float, ...] = IMAGENET
    said: str = ""  # in the line

    @property
    def options(self):
        if "convnext" in self.network:
            return CONVNEXT
        if "mocov3" in self.network:
            return VIT | {"num_heads": 12}
        return HEADS_OF_64 if "dinov3" in self.network else VIT


S16, B16, S14 = "vit_small_patch16_224", "vit_base_patch16_224", "vit_small_patch14_dinov2"
REG, GIANT = "vit_small_patch14_reg4_dinov2", "vit_giant_patch14_dinov2"
B16_CLIP, SIGLIP = "vit_base_patch16_clip_224", "vit_base_patch16_siglip_224"
V3, V3_QKVB = "vit_small_patch16_dinov3", "vit_small_patch16_dinov3_qkvb"
V3_PLUS = "vit_small_plus_patch16_dinov3"
ROWS = [
    Row("DINO", S16, dict, "dino", said="tokens left out: 1"),
    Row("DINO full", S16, dino, "dino", said="left out: 1 Python object (argparse.Namespace 1)"),
    Row("iBOT", B16, lambda w: {"state_dict": w | {"masked_embed": torch.ones(1, D)}}, "dino"),
    Row("MAE", B16, mae, "bicubic"),
    Row("MAE fine-tuned", B16, partial(with_head, rules="norm=fc_norm"), "bicubic"),
    Row("DeiT", "deit_small_patch16_224", with_head, "bicubic"),
    Row("DeiT distilled", "deit_small_distilled_patch16_224", with_head, "bicubic", said="left out: 2"),
    Row(
        "DeiT III", "deit3_small_patch16_224", partial(with_head, rules=r"ls([12]).gamma=gamma_\1"), "bicubic"
    ),
    Row("MoCo v3", B16, moco_v3, "bicubic"),
    Row("MoCo v3 S", "vit_small_patch16_mocov3", moco_v3, "bicubic"),
    Row("MSN", S16, target, "bicubic", said="under target_encoder.module"),
    Row("I-JEPA", "vit_huge_patch14_gap_224", target, "bicubic"),
    Row("I-JEPA giant", "vit_giant_patch16_gap_224", target, "bicubic"),
    Row("I-JEPA huge 448", "vit_huge_patch16_gap_448", target, "bicubic"),
    Row("HF MAE", B16, hf_mae, "bicubic"),
    Row("HF ViT", B16, hf_vit, "bicubic"),
    Row("HF classifier", B16, partial(hf_vit, prefix="vit."), "bicubic"),
    Row("HF ViT in memory", B16, lambda w: renamed(apart(w), VIT_MEMORY), "bicubic"),
    Row("HF I-JEPA", "vit_huge_patch14_gap_224", hf_vit, "bicubic"),
    Row("DINOv2", S14, dinov2, "dino"),
    Row("DINOv2 training", S14, dinov2_training, "dino"),
    Row("DINOv2 giant", GIANT, dinov2, "dino"),
    Row("DINOv2 reg", REG, dinov2_with_registers, "antialias", said="antialiased; tokens left out: 5"),
    Row("HF DINOv2", S14, hf_dinov2, "dino"),
    Row("HF DINOv2 in memory", S14, hf_dinov2_memory, "dino"),
    Row("HF DINOv2 giant", GIANT, hf_dinov2, "dino"),
    Row("HF DINOv2 giant in memory", GIANT, hf_dinov2_memory, "dino"),
    Row("HF DINOv2 reg", REG, hf_dinov2, "antialias"),
    Row("Franca", "vit_base_patch14_franca", dinov2_training, "dino"),
    Row("CLIP", "vit_base_patch16_clip_quickgelu_224", openai, "bicubic", CLIP),
    Row("CLIP module", B16_CLIP, partial(openai, prefix="module.visual."), "bicubic", CLIP),
    Row("HF CLIP", B16_CLIP, hf_clip, "bicubic", CLIP),
    Row("HF CLIP in memory", B16_CLIP, partial(hf_clip, prefix=""), "bicubic", CLIP),
    Row("HF SigLIP", SIGLIP, hf_clip, "bicubic", HALF),
    Row("open_clip SigLIP", SIGLIP, partial(prefixed, prefix="visual.trunk."), "bicubic", HALF),
    Row("AIMv2", "aimv2_large_patch14_224", aimv2, "bicubic", CLIP),
    Row("HF AIMv2", "aimv2_large_patch14_224", hf_aimv2, "bicubic", CLIP),
    Row("C-RADIO", "vit_base_patch16_radio_v3", radio, "radio", CLIP, said="tokens left out: 8"),
    Row("EVA02-CLIP", "eva02_base_patch16_clip_224", eva02, "bicubic", CLIP),
    Row("PE core", "vit_pe_core_base_patch16_224", openai, "bilinear", HALF),
    Row("PE spatial", "vit_pe_spatial_base_patch16_512", partial(openai, prefix=""), "bilinear", HALF),
    Row("PE lang", "vit_pe_lang_large_patch14_448", openai, "bilinear", HALF),
    Row("DINOv3", V3, dinov3, said="tokens left out: 5"),
    Row("DINOv3 qkvb", V3_QKVB, dinov3),
    Row("DINOv3 plus", V3_PLUS, dinov3),
    Row("DINOv3 7B", "vit_7b_patch16_dinov3", dinov3_7b),
    Row("DINOv3 7B satellite", "vit_7b_patch16_dinov3.sat493m", dinov3_7b, mean=SATELLITE),
    Row("HF DINOv3", V3, hf_dinov3),
    Row("HF DINOv3 qkvb", V3_QKVB, hf_dinov3),
    Row("HF DINOv3 plus in memory", V3_PLUS, partial(hf_dinov3, layer="model.layer")),
    Row("SigLIP 2 NaFlex", "naflexvit_base_patch16_siglip", hf_naflex, mean=HALF),
    Row("DINOv3 ConvNeXt", "convnext_tiny", dinov3_convnext),
    Row("HF DINOv3 ConvNeXt", "convnext_tiny", hf_convnext),
    Row("HF DINOv3 ConvNeXt in memory", "convnext_tiny", partial(hf_convnext, model="model.")),
    Row("DINOv3 ConvNeXt of timm", "convnext_tiny.dinov3_lvd1689m", dict),
    Row("SparK", "convnext_tiny", spark),
    Row("ConvNeXt V2", "convnextv2_tiny", facebooks),
]


def timms(row, **more):
    """timm's own model of a row."""
    name, own = row.network, {}
    if row.family == "MoCo v3 S":
        name = S16
    if row.family == "Franca":
        from timm.layers import SwiGLUPacked

        name = "vit_base_patch14_dinov2"
        own = {"mlp_layer": SwiGLUPacked, "act_layer": torch.nn.SiLU, "mlp_ratio": 2.66667 * 2}
    if row.family.startswith("PE") and "img_size" in more:  # coordinates are not rescaled
        patch = 14 if "patch14" in name else 16
        own = {"ref_feat_shape": tuple(side // patch for side in more["img_size"])}
    return timm.create_model(name, num_classes=0, **{**row.options, **own, **more}).eval()


def loaded(row, weights, folder):
    torch.save(row.write(weights), folder / "file.pth")
    backbone = make_backbone(row.network, options=row.options)
    return backbone, load_backbone(backbone, folder / "file.pth")


def check_features(backbone, network, size, norm=None):
    """The last map is that of timm's network, or the tokens of its patches; behind ``norm``, if any."""
    pictures = torch.randn(1, 3, *size, generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        found, expected = backbone(pictures), network.forward_features(pictures)
        if expected.ndim == 3:
            found = found.flatten(2).mT
            expected = expected[:, expected.shape[1] - found.shape[1] :]
        expected = norm(expected) if norm else expected
    assert found.shape == expected.shape
    assert (found - expected).abs().max() <= 1e-4 * expected.abs().max()


# One of each rule, for which a square picture of another size is tried as well.
SQUARES = ("DINO", "MAE", "DINOv2 reg", "C-RADIO", "PE core")


@pytest.mark.parametrize("row", ROWS, ids=[row.family for row in ROWS])
def test_a_file_gives_the_features_of_its_authors(row, tmp_path):
    network = lively(timms(row, **({"img_size": 2048} if row.rule == "radio" else {})))
    weights = copied(network)
    if row.rule == "radio":
        weights["patch_embed.proj.bias"].zero_()
    backbone, line = loaded(row, weights, tmp_path)
    assert row.said in line and backbone.mean == pytest.approx(row.mean)
    if row.rule is None:
        norm = network.head.norm if "DINOv3 ConvNeXt" in row.family else None
        for size in ((224, 224), (256, 352)):
            check_features(backbone, network, size, norm)
        return
    covered = 0 if network.no_embed_class else network.num_prefix_tokens
    patch = network.patch_embed.patch_size[0]
    native = 14 if row.rule == "radio" else network.patch_embed.grid_size[0]
    for grid in [(native, native), *([(16, 16)] if row.family in SQUARES else []), (16, 21)]:
        size = (grid[0] * patch, grid[1] * patch)
        reference = timms(row, img_size=size)
        positions = grid_embeddings(weights["pos_embed"], covered, grid, size, row.rule)
        reference.load_state_dict(weights | {"pos_embed": positions})
        check_features(backbone, reference, size)


@pytest.mark.parametrize("form", BEITS)
def test_beits_files_give_the_features_of_timms_beit(form, tmp_path):
    """BEiT takes one size; the norm behind the average of the tokens is that of each token."""
    row = Row("", "beit_base_patch16_224", BEITS[form])
    network = lively(timms(row))
    if form == "pre-trained":
        for block in network.blocks:
            block.attn.relative_position_bias_table = network.blocks[0].attn.relative_position_bias_table
    weights = copied(network)
    backbone, _ = loaded(row, weights, tmp_path)
    assert backbone.mean == HALF and backbone.fixed_size == (224, 224)
    check_features(backbone, network, (224, 224), network.fc_norm)
    with pytest.raises(InputError, match=r"too many .*it looks like BEiT or data2vec: beit_base_patch16_224"):
        loaded(row._replace(network=B16), weights, tmp_path)


def test_a_file_of_another_resolution_is_interpolated_from_its_own_grid(tmp_path):
    row = Row("", S14, dinov2_training)
    weights = copied(lively(timms(row)))
    weights["pos_embed"] = torch.randn(1, 1 + 16**2, D) * 0.3  # trained at 224, the network is of 518
    backbone, _ = loaded(row, weights, tmp_path)
    for size in ((224, 224), (252, 336)):
        reference = timms(row, img_size=size)
        positions = grid_embeddings(weights["pos_embed"], 1, (size[0] // 14, size[1] // 14), size, "dino")
        reference.load_state_dict(weights | {"pos_embed": positions})
        check_features(backbone, reference, size)
    row = Row("", "eva02_base_patch16_clip_224", eva02)
    weights = copied(lively(timms(row))) | {"pos_embed": torch.randn(1, 1 + 10**2, D)}
    backbone, _ = loaded(row, weights, tmp_path)
    assert torch.equal(backbone.network.pos_embed, weights["pos_embed"]), "not as timm would resize them"


def test_some_networks_differ_from_timms_of_their_size():
    """All sizes of Franca have the MLP of DINOv2's giant, MoCo v3's small one has 12 heads."""
    for size in ("base", "large", "giant"):
        weights = make_backbone(f"vit_{size}_patch14_franca", options=VIT).network.state_dict()
        assert weights["blocks.0.mlp.fc1.weight"].shape == (512, D)
        assert weights["blocks.0.mlp.fc2.weight"].shape == (D, 256)
    network = make_backbone("vit_small_patch16_mocov3", options={"depth": 1}).network
    assert network.blocks[0].attn.num_heads == 12


SPARSE = {"model": {"encoder.stages.0.0.dwconv.kernel": torch.ones(49, 16)}}
ADAPTER = {"base_model.model.encoder.layer.0.attention.attention.query.lora_A.weight": torch.ones(8, 96)}
KEY = "encoder.layer.1.attention.attention.key.weight"
REFUSED = {
    "registers": (S16, lambda w: w | {"register_tokens": torch.ones(1, 4, D)},
        r"1 too many \(register_tokens\).*vit_small_patch14_reg4_dinov2"),
    "other patches": (S16, lambda w: w | {"patch_embed.proj.weight": torch.ones(D, 3, 14, 14)},
        r"patch_embed.proj.weight is \(96, 3, 14, 14\), not \(96, 3, 16, 16\)"),
    "gates": (S16, lambda w: renamed(w, "mlp.fc1=mlp.w12 mlp.fc2=mlp.w3") | {
        "blocks.0.mlp.w12.weight": torch.ones(512, D)}, "it looks like Franca"),
    "12 heads": (S16, moco_v3, r"12 heads.*vit_small_patch16_mocov3"),
    "OpenAI": (B16_CLIP, lambda w: prefixed(w, "visual.trunk.") | {"input_resolution": torch.tensor(224)},
        r"OpenAI's CLIP.*vit_base_patch16_clip_quickgelu_224"),
    "adapter": (S16, lambda w: ADAPTER, "it looks like a LoRA adapter"),
    "FCMAE": ("convnextv2_tiny", lambda w: SPARSE, r"the sparse training of ConvNeXt V2 \(FCMAE\)"),
    "biases": (V3, lambda w: dinov3(w) | {"blocks.0.attn.qkv.bias": torch.ones(3 * 128)},
        r"biases .* not zero .*vit_small_patch16_dinov3_qkvb"),
    "bias of v": (V3, lambda w: hf_dinov3(w) | {"layer.1.attention.v_proj.bias": torch.ones(128)},
        r"\(blocks\.1\.attn\.v\.bias\).*vit_small_patch16_dinov3_qkvb"),
    "zeros": (S16, lambda w: w | {n: torch.zeros_like(w[n]) for n in ("norm.weight", "pos_embed")},
        r"2 of 30 tensors are zero throughout.*\(pos_embed, norm\.weight\)"),
    "zero key": (S16, lambda w: hf_vit(w) | {KEY: torch.zeros(D, D)},
        r"1 of 30 tensors are zero throughout in queries, keys.*1\.attn\.qkv"),
    "int8 key": (S16, lambda w: hf_vit(w) | {KEY: torch.zeros(D, D).to(torch.int8)},
        r"1 of 30 tensors are int8.*1\.attn\.qkv\.weight"),
    "meta key": (S16, lambda w: hf_vit(w) | {KEY: torch.zeros(D, D, device="meta")},
        r"1 of 30 tensors have no values.*1\.attn\.qkv\.weight"),
    "no key": (S16, lambda w: {n: v for n, v in hf_vit(w).items() if n != KEY},
        r"missing \(blocks\.1\.attn\.qkv\.weight\); nearest .*blocks\.1\.attn\.[qv]"),
    "no biases of q": (S16, lambda w: {n: v for n, v in hf_vit(w).items() if not n.endswith("query.bias")},
        r"2 of 30 tensors are missing .*4 too many \(blocks\.0\.attn\.k\.bias"),
    "no biases of v": (S16, lambda w: {n: v for n, v in hf_vit(w).items() if not n.endswith("value.bias")},
        r"2 of 30 tensors are missing .*4 too many \(blocks\.0\.attn\.q\.bias"),
}  # fmt: skip


@pytest.mark.parametrize("kind", REFUSED)
def test_what_fits_no_network_or_another_is_refused_and_named(kind, tmp_path):
    network, write, message = REFUSED[kind]
    row = Row("", network, write)
    with pytest.raises(InputError, match=message):
        loaded(row, copied(lively(timms(row))), tmp_path)


def test_a_network_of_another_width_is_named(tmp_path):
    weights = copied(lively(timms(Row("", S16, dict))))
    torch.save(hf_vit(weights), tmp_path / "x.pth")
    narrow = make_backbone(S16, options={"depth": 2, "embed_dim": 32, "num_heads": 1})
    with pytest.raises(
        InputError, match=r": 30 of another shape \(cls_token is \(1, 1, 96\), not \(1, 1, 32\)"
    ):
        load_backbone(narrow, tmp_path / "x.pth")


def test_a_satellites_file_under_the_plain_name_is_refused(tmp_path):
    """All tensors fit, but mean and std are others; the folder of transformers has the sign in its name."""
    row = Row("", "vit_7b_patch16_dinov3", dinov3_7b)
    folder = tmp_path / "dinov3-vit7b16-pretrain-sat493m"
    folder.mkdir()
    with pytest.raises(InputError, match=r"satellite images.*fits is vit_7b_patch16_dinov3\.sat493m$"):
        loaded(row, copied(lively(timms(row))), folder)


def test_a_missing_bias_of_keys_changes_no_feature(tmp_path):
    weights = copied(lively(timms(Row("", S16, dict))))
    theirs = hf_vit(weights)
    without = {name: value for name, value in theirs.items() if not name.endswith("key.bias")}
    whole, lacking = (
        loaded(Row("", S16, lambda w, f=file: f), weights, tmp_path)[0] for file in (theirs, without)
    )
    pictures = torch.randn(1, 3, 64, 96)
    with torch.inference_mode():
        torch.testing.assert_close(whole(pictures), lacking(pictures))
