"""Files of every family, in their authors' names and shapes: features are those of timm's own model.

Networks are small, of random, lively weights. The reference is timm's model, built for each size, with
position embeddings interpolated by the formulas of docs/checkpoints.md.
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
from torch.nn.functional import interpolate

from imagenets.common.errors import InputError
from imagenets.learning.networks.backbones import make_backbone
from imagenets.learning.networks.checkpoints import load_backbone

D = 96
VIT = {"depth": 2, "embed_dim": D, "num_heads": 3}
HEADS_OF_64 = {"depth": 2, "embed_dim": 128, "num_heads": 2}
CONVNEXT = {"depths": (1, 1, 2, 1), "dims": (16, 16, 16, 32)}
IMAGENET = (0.485, 0.456, 0.406)
CLIP = (0.48145466, 0.4578275, 0.40821073)
HALF = (0.5, 0.5, 0.5)


def lively(network, seed=0):
    """Give a network weights by which every tensor matters."""
    generator = torch.Generator().manual_seed(seed)
    for name, value in network.state_dict().items():
        if not value.is_floating_point():
            continue
        noise = torch.randn(value.shape, generator=generator)
        if value.ndim > 1 and name.endswith("weight"):
            noise *= 1.5 * value[0].numel() ** -0.5
        elif re.search(r"weight$|gamma", name):
            noise = 1 + 0.3 * noise
        else:
            noise *= 0.3
        value.copy_(noise)
    return network.eval()


def slow_positions(positions, covered, grid, size, rule):
    """Position embeddings (1, covered + h·w, D) by the formulas of the families."""
    kept, square = positions[:, :covered], positions[:, covered:]
    side = round(square.shape[1] ** 0.5)
    square = square.mT.reshape(1, -1, side, side)
    h, w = grid
    if rule in ("bilinear", "radio"):
        same = (h, w) == (side, side)
    else:
        same = h * w == side**2 and size[0] == size[1]
    if same:
        moved = square
    elif rule == "dino":
        moved = interpolate(square, scale_factor=((h + 0.1) / side, (w + 0.1) / side), mode="bicubic")
    elif rule == "antialias":
        moved = interpolate(square, size=(h, w), mode="bicubic", antialias=True)
    elif rule == "bicubic":
        moved = interpolate(square, size=(h, w), mode="bicubic", antialias=False)
    elif rule == "bilinear":
        moved = interpolate(square, size=(h, w), mode="bilinear", antialias=False)
    else:
        longer = max(h, w)
        moved = interpolate(square, size=(longer, longer), mode="bilinear", align_corners=False)
        moved = moved[:, :, :h, :w]
    return torch.cat([kept, moved.flatten(2).mT], dim=1)


def joined(weights, prefix):
    return {f"{prefix}{name}": value for name, value in weights.items()}


def wrong(weights):
    """The other copy in a file, which must not be taken."""
    return {name: value * 1.5 + 0.1 for name, value in weights.items()}


def renamed(weights, rules):
    """Rename by (pattern, replacement), each applied once to every name, in order."""
    changed = {}
    for name, value in weights.items():
        for old, new in rules:
            name = re.sub(old, new, name)
        changed[name] = value
    return changed


# --- names that are timm's behind a prefix


def dino(weights):
    return {
        "student": joined(wrong(weights), "module.backbone."),
        "teacher": joined(weights, "backbone.") | {"head.mlp.0.weight": torch.ones(3, D)},
        "args": argparse.Namespace(arch="vit_small"),
        "epoch": 99,
    }


def mae(weights):
    decoder = {"mask_token": torch.ones(1, 1, 64), "decoder_embed.weight": torch.ones(64, D)}
    return {"model": weights | decoder | {"decoder_blocks.0.norm1.weight": torch.ones(64)}}


def fine_tuned_mae(weights):
    return {"model": renamed(weights, [("^norm", "fc_norm")]) | {"head.weight": torch.ones(1000, D)}}


def deit3(weights):
    return {"model": renamed(weights, [(r"ls([12])\.gamma", r"gamma_\1")]) | {"head.bias": torch.ones(9)}}


def moco_v3(weights):
    theirs = joined(weights | {"head.0.weight": torch.ones(4, D)}, "module.base_encoder.")
    return {"state_dict": theirs | joined(wrong(weights), "module.momentum_encoder."), "arch": "vit_base"}


def target(weights):
    """MSN and I-JEPA."""
    return {
        "encoder": joined(wrong(weights), "module."),
        "predictor": {"module.predictor_embed.weight": torch.ones(8, D)},
        "prototypes": torch.ones(10, 5),
        "target_encoder": joined(weights, "module."),
    }


def dinov2(weights):
    return (
        renamed(weights, [(r"mlp\.fc1", "mlp.w12"), (r"mlp\.fc2", "mlp.w3")]) if GIANT(weights) else weights
    )


def GIANT(weights):  # noqa: N802
    return weights["blocks.0.mlp.fc1.weight"].shape[0] != 4 * weights["blocks.0.mlp.fc2.weight"].shape[0]


def dinov2_official(weights):
    return dinov2(weights) | {"mask_token": torch.ones(1, D)}


def dinov2_with_registers(weights):
    first = torch.full((1, 1, D), 0.25)
    theirs = {name: value for name, value in weights.items() if name != "reg_token"}
    return theirs | {
        "register_tokens": weights["reg_token"],
        "cls_token": weights["cls_token"] - first,
        "pos_embed": torch.cat([first, weights["pos_embed"]], dim=1),
        "mask_token": torch.ones(1, D),
    }


def dinov2_training(weights):
    chunks = renamed(dinov2(weights), [(r"^blocks\.(\d+)\.", r"blocks.0.\1.")])
    heads = {"dino_head.mlp.0.weight": torch.ones(3, D), "ibot_head.mlp.0.weight": torch.ones(3, D)}
    return {"teacher": joined(chunks | {"mask_token": torch.ones(1, D)}, "backbone.") | heads}


# --- transformers


def split_qkv(weights, letters):
    """q, k and v apart, by the names in ``letters`` for ``attn.qkv``."""
    apart = {}
    for name, value in weights.items():
        if ".attn.qkv." not in name:
            apart[name] = value
            continue
        for letter, part in zip(letters, value.chunk(3), strict=True):
            apart[name.replace("attn.qkv", letter)] = part.clone()
    return apart


EMBEDDINGS = [
    (r"^(cls_token)$", r"embeddings.\1"),
    (r"^pos_embed$", "embeddings.position_embeddings"),
    (r"^patch_embed\.proj\.", "embeddings.patch_embeddings.projection."),
]
QKV = [f"attention.attention.{part}" for part in ("query", "key", "value")]
QKV_NOW = [f"attention.{letter}_proj" for letter in "qkv"]
VIT_FILE = [
    *EMBEDDINGS,
    (r"^norm\.", "layernorm."),
    (r"\.attn\.proj\.", ".attention.output.dense."),
    (r"\.norm1\.", ".layernorm_before."),
    (r"\.norm2\.", ".layernorm_after."),
    (r"\.mlp\.fc1\.", ".intermediate.dense."),
    (r"\.mlp\.fc2\.", ".output.dense."),
    (r"^blocks\.", "encoder.layer."),
]
VIT_MEMORY = [
    *EMBEDDINGS,
    (r"^norm\.", "layernorm."),
    (r"\.attn\.proj\.", ".attention.o_proj."),
    (r"\.norm1\.", ".layernorm_before."),
    (r"\.norm2\.", ".layernorm_after."),
    (r"^blocks\.", "layers."),
]


def hf_vit(weights, prefix=""):
    extra = {"pooler.dense.weight": torch.ones(D, D), "embeddings.mask_token": torch.ones(1, 1, D)}
    return joined(renamed(split_qkv(weights, QKV), VIT_FILE) | extra, prefix) | {
        "classifier.weight": torch.ones(5, D)
    }


def hf_vit_memory(weights):
    return renamed(split_qkv(weights, QKV_NOW), VIT_MEMORY)


def hf_dinov2(weights):
    rules = [
        *EMBEDDINGS,
        (r"^norm\.", "layernorm."),
        (r"\.attn\.proj\.", ".attention.output.dense."),
        (r"\.ls([12])\.gamma", r".layer_scale\1.lambda1"),
        *([(r"mlp\.fc1", "mlp.weights_in"), (r"mlp\.fc2", "mlp.weights_out")] if GIANT(weights) else []),
        (r"^blocks\.", "encoder.layer."),
        (r"^register_tokens", "embeddings.register_tokens"),
        (r"^mask_token", "embeddings.mask_token"),
    ]
    if "reg_token" in weights:
        weights = dinov2_with_registers(weights)
    return renamed(split_qkv(weights, QKV), rules)


def hf_dinov2_memory(weights):
    theirs = hf_dinov2(weights)
    rules = [
        (r"attention\.attention\.query", "attention.q_proj"),
        (r"attention\.attention\.key", "attention.k_proj"),
        (r"attention\.attention\.value", "attention.v_proj"),
        (r"attention\.output\.dense", "attention.o_proj"),
        (r"mlp\.weights_out", "mlp.down_proj"),
    ]
    found = {}
    for name, value in renamed(theirs, rules).items():
        if "mlp.weights_in" in name:
            gate, up = value.chunk(2)
            found[name.replace("weights_in", "gate_proj")] = gate.clone()
            found[name.replace("weights_in", "up_proj")] = up.clone()
        else:
            found[name] = value
    return found


def hf_mae(weights):
    decoder = {"mask_token": torch.ones(1, 1, 64), "decoder_embed.weight": torch.ones(64, D)}
    layer = {
        "attention.attention.query.weight": torch.ones(64, 64),
        "layernorm_before.weight": torch.ones(64),
    }
    decoder |= joined(layer, "decoder_layers.0.")
    return joined(renamed(split_qkv(weights, QKV), VIT_FILE), "vit.") | joined(decoder, "decoder.")


# --- BEiT and data2vec


def beit_pretrained(weights):
    """One table of relative positions for all blocks, and the norm of the tokens."""
    table = "relative_position_bias_table"
    apart = {name: value for name, value in weights.items() if table not in name}
    shared = {f"rel_pos_bias.{table}": weights[f"blocks.0.attn.{table}"], "mask_token": torch.ones(1, 1, D)}
    shared["rel_pos_bias.relative_position_index"] = torch.ones(197, 197).long()
    return {"model": renamed(apart, [("^fc_norm", "norm")]) | shared | {"lm_head.bias": torch.ones(9)}}


def hf_beit(weights, prefix="beit."):
    inside = "attention.attention."
    rules = [
        ("^fc_norm", "pooler.layernorm"),
        (r"attn\.q_bias", f"{inside}query.bias"),
        (r"attn\.v_bias", f"{inside}value.bias"),
        (r"attn\.(relative_position_bias)", rf"{inside}\1.\1"),
        ("gamma_", "lambda_"),
        *VIT_FILE,
    ]
    return joined(renamed(split_qkv(weights, QKV), rules), prefix) | {"classifier.bias": torch.ones(5)}


BEITS = {
    "fine-tuned": lambda w: {"model": w | {"head.bias": torch.ones(9)}},
    "pre-trained": beit_pretrained,
    "HF": hf_beit,
    "HF data2vec": partial(hf_beit, prefix="data2vec_vision."),
}


# --- DINOv3


def dinov3(weights, biases=0.0):
    """Official names; a network without biases gets ``biases`` for q and v, and any for k."""
    theirs = {}
    for name, value in weights.items():
        if name.endswith("q_bias"):
            k = torch.full_like(value, 7.0)
            theirs[name.replace("q_bias", "qkv.bias")] = torch.cat(
                [value, k, weights[name.replace("q_b", "v_b")]]
            )
        elif not name.endswith("v_bias"):
            theirs[name] = value
    for block in range(2):
        bias = torch.zeros(3, 128)
        bias[1], bias[0, 3] = 7.0, biases
        theirs.setdefault(f"blocks.{block}.attn.qkv.bias", bias.flatten())
        theirs[f"blocks.{block}.attn.qkv.bias_mask"] = torch.tensor([1.0, 0, 1]).repeat_interleave(128)
    theirs = renamed(
        theirs,
        [
            ("^reg_token", "storage_tokens"),
            (r"gamma_([12])", r"ls\1.gamma"),
            (r"mlp\.fc1_g", "mlp.w1"),
            (r"mlp\.fc1_x", "mlp.w2"),
        ],
    )
    if "blocks.0.mlp.w1.weight" in theirs:
        theirs = renamed(theirs, [(r"mlp\.fc2", "mlp.w3")])
    return theirs | {"mask_token": torch.ones(1, 128), "rope_embed.periods": torch.ones(16).bfloat16()}


def dinov3_7b(weights):
    """No biases of queries, keys and values, and a norm for the class tokens of small crops."""
    theirs = {name: value for name, value in dinov3(weights).items() if ".qkv.bias" not in name}
    return theirs | {f"local_cls_norm.{part}": torch.ones(128) for part in ("weight", "bias")}


def hf_dinov3(weights, layer="layer."):
    gated = "blocks.0.mlp.fc1_g.weight" in weights
    up = [(r"mlp\.fc1_g", "mlp.gate_proj"), (r"mlp\.fc1_x", "mlp.up_proj")]
    rules = [
        (r"^cls_token", "embeddings.cls_token"),
        (r"^reg_token", "embeddings.register_tokens"),
        (r"^patch_embed\.proj", "embeddings.patch_embeddings"),
        (r"attn\.proj", "attention.o_proj"),
        (r"attn\.q_bias", "attention.q_proj.bias"),
        (r"attn\.v_bias", "attention.v_proj.bias"),
        (r"gamma_([12])", r"layer_scale\1.lambda1"),
        *(up if gated else [(r"mlp\.fc1", "mlp.up_proj")]),
        (r"mlp\.fc2", "mlp.down_proj"),
        (r"^blocks\.", layer),
    ]
    return renamed(split_qkv(weights, QKV_NOW), rules) | {"embeddings.mask_token": torch.ones(1, 1, 128)}


# --- CLIP and its kin


def openai(weights, prefix="visual."):
    theirs = renamed(
        {name: value for name, value in weights.items() if not name.startswith("attn_pool.")},
        [
            (r"^patch_embed\.proj", "conv1"),
            ("^cls_token", "class_embedding"),
            ("^pos_embed", "positional_embedding"),
            ("^norm_pre", "ln_pre"),
            (r"^norm\.", "ln_post."),
            (r"\.norm([12])\.", r".ln_\1."),
            (r"attn\.qkv\.", "attn.in_proj_"),
            (r"attn\.proj\.", "attn.out_proj."),
            (r"mlp\.fc1", "mlp.c_fc"),
            (r"mlp\.fc2", "mlp.c_proj"),
            (r"gamma_([12])", r"ls_\1.gamma"),
            (r"^blocks\.", "transformer.resblocks."),
        ],
    )
    theirs["positional_embedding"] = theirs["positional_embedding"][0]
    if "class_embedding" in theirs:
        theirs["class_embedding"] = theirs["class_embedding"].flatten()
    text = {
        "positional_embedding": torch.ones(77, 64),
        "transformer.resblocks.0.ln_1.weight": torch.ones(64),
        "transformer.resblocks.0.attn.in_proj_weight": torch.ones(3 * 64, 64),
        "token_embedding.weight": torch.ones(100, 64),
        "logit_scale": torch.ones(()),
    }
    outer = prefix.removesuffix("visual.")
    vision = joined(theirs | {"proj": torch.ones(D, 64)}, prefix)
    return vision | joined(text, outer) if prefix else vision


def hf_clip(weights, prefix="vision_model."):
    apart = split_qkv(weights, [f"self_attn.{letter}_proj" for letter in "qkv"])
    rules = [
        (r"^cls_token", "embeddings.class_embedding"),
        (r"^pos_embed", "embeddings.position_embedding.weight"),
        (r"^patch_embed\.proj", "embeddings.patch_embedding"),
        (r"^norm_pre", "pre_layrnorm"),
        (r"^norm\.", "post_layernorm."),
        (r"attn\.proj\.", "self_attn.out_proj."),
        (r"\.norm([12])\.", r".layer_norm\1."),
        (r"^blocks\.", "encoder.layers."),
    ]
    theirs = renamed({n: v for n, v in apart.items() if not n.startswith("attn_pool.")}, rules)
    theirs["embeddings.position_embedding.weight"] = theirs["embeddings.position_embedding.weight"][0]
    theirs["embeddings.position_ids"] = torch.arange(9)[None]
    if "embeddings.class_embedding" in theirs:
        theirs["embeddings.class_embedding"] = theirs["embeddings.class_embedding"].flatten()
    else:
        theirs["head.probe"] = torch.ones(1, 1, D)
    text = {"text_model.encoder.layers.0.self_attn.q_proj.weight": torch.ones(64, 64)}
    return joined(theirs, prefix) | text | {"logit_scale": torch.ones(())}


def hf_naflex(weights):
    plain = renamed(weights, [(r"^embeds\.proj", "patch_embed.proj"), (r"^embeds\.pos_embed", "pos_embed")])
    plain["pos_embed"] = plain["pos_embed"].flatten(1, 2)
    return hf_clip(plain)


def eva02(weights):
    return joined(
        renamed(
            weights,
            [
                (r"attn\.([qv])_proj\.bias", r"attn.\1_bias"),
                (r"attn\.norm", "attn.inner_attn_ln"),
                (r"mlp\.fc1_g", "mlp.w1"),
                (r"mlp\.fc1_x", "mlp.w2"),
                (r"mlp\.fc2", "mlp.w3"),
                (r"mlp\.norm", "mlp.ffn_ln"),
            ],
        )
        | {"rope.freqs_cos": torch.ones(196, 32), "head.weight": torch.ones(8, D)},
        "visual.",
    ) | {"text.logit_scale": torch.ones(())}


AIMV2 = [
    (r"^blocks\.", "trunk.blocks."),
    (r"\.norm([12])\.", r".norm_\1."),
    (r"^patch_embed\.", "preprocessor.patchifier."),
    (r"^pos_embed", "preprocessor.pos_embed"),
    (r"^norm\.", "trunk.post_trunk_norm."),
    (r"mlp\.fc1_g", "mlp.fc1"),
    (r"mlp\.fc1_x", "mlp.fc3"),
]


def hf_aimv2(weights):
    rules = [
        (r"^pos_embed", "embeddings.position_embedding.weight"),
        (r"^patch_embed\.norm", "embeddings.rms_norm"),
        (r"^patch_embed\.proj", "embeddings.patch_embed"),
        (r"^norm\.", "rms_norm."),
        (r"\.norm([12])\.", r".rms_norm\1."),
        (r"attn\.proj", "attention.out_proj"),
        (r"mlp\.fc1_g", "ffn.gate_proj"),
        (r"mlp\.fc1_x", "ffn.up_proj"),
        (r"mlp\.fc2", "ffn.down_proj"),
        (r"^blocks\.", "encoder.layers."),
    ]
    theirs = renamed(split_qkv(weights, QKV_NOW), rules)
    theirs["embeddings.position_embedding.weight"] = theirs["embeddings.position_embedding.weight"][0]
    return theirs


def radio(weights):
    theirs = renamed(weights, [(r"\.gamma$", ".grandma"), ("^pos_embed", "patch_generator.pos_embed")])
    theirs["patch_generator.embedder.weight"] = theirs.pop("patch_embed.proj.weight").flatten(1)
    assert not theirs.pop("patch_embed.proj.bias").any()
    tokens = torch.cat([theirs.pop("cls_token"), theirs.pop("reg_token")], dim=1)
    theirs["patch_generator.cls_token.token"] = tokens[0]
    extra = {"input_conditioner.norm_mean": torch.ones(3, 1, 1), "radio_model.summary_idxs": torch.arange(3)}
    return joined(theirs, "radio_model.model.") | extra


# --- ConvNeXt


def facebooks(weights):
    theirs = renamed(
        weights,
        [
            (r"^stem\.", "downsample_layers.0."),
            (r"^stages\.(\d)\.downsample\.", r"downsample_layers.\1."),
            (r"^stages\.(\d)\.blocks\.", r"stages.\1."),
            (r"conv_dw", "dwconv"),
            (r"mlp\.grn\.weight", "grn.gamma"),
            (r"mlp\.grn\.bias", "grn.beta"),
            (r"mlp\.fc", "pwconv"),
            (r"^head\.norm\.", "norm."),
        ],
    )
    return {name: value[None, None, None] if ".grn." in name else value for name, value in theirs.items()}


def dinov3_convnext(weights):
    theirs = facebooks(weights)
    return theirs | {f"norms.3.{part}": theirs[f"norm.{part}"] for part in ("weight", "bias")}


def hf_convnext(weights, model=""):
    theirs = renamed(
        weights,
        [
            (r"^stem\.", "stages.0.downsample_layers."),
            (r"^stages\.(\d)\.downsample\.", r"stages.\1.downsample_layers."),
            (r"^stages\.(\d)\.blocks\.(\d)\.norm", r"stages.\1.layers.\2.layer_norm"),
            (r"^stages\.(\d)\.blocks\.", r"stages.\1.layers."),
            (r"conv_dw", "depthwise_conv"),
            (r"mlp\.fc", "pointwise_conv"),
            (r"^head\.norm\.", "layer_norm."),
            (r"^stages\.", f"{model}stages."),
        ],
    )
    return theirs


def spark(weights):
    decoder = {
        "dense_decoder.dec.0.up_sample.weight": torch.ones(2),
        "mask_tokens.0": torch.ones(1, 32, 1, 1),
    }
    return {"module": joined(facebooks(weights), "sparse_encoder.sp_cnn.") | decoder, "is_pretrain": True}


class Row(NamedTuple):
    family: str
    network: str
    write: object  # of timm's weights
    rule: str | None = None  # None: timm's own forward at any size
    mean: tuple[float, ...] = IMAGENET
    options: dict = VIT
    said: str = ""  # in the line


VITS = [
    Row("DINO", "vit_small_patch16_224", dict, "dino", said="tokens left out: 1"),
    Row(
        "DINO full",
        "vit_small_patch16_224",
        dino,
        "dino",
        said="left out: 1 Python object (argparse.Namespace 1)",
    ),
    Row(
        "iBOT",
        "vit_base_patch16_224",
        lambda w: {"state_dict": w | {"masked_embed": torch.ones(1, D)}},
        "dino",
    ),
    Row("MAE", "vit_base_patch16_224", mae, "bicubic"),
    Row("MAE fine-tuned", "vit_base_patch16_224", fine_tuned_mae, "bicubic"),
    Row("DeiT", "deit_small_patch16_224", lambda w: {"model": w | {"head.bias": torch.ones(9)}}, "bicubic"),
    Row(
        "DeiT distilled",
        "deit_small_distilled_patch16_224",
        lambda w: {"model": w},
        "bicubic",
        said="left out: 2",
    ),
    Row("DeiT III", "deit3_small_patch16_224", deit3, "bicubic"),
    Row("MoCo v3", "vit_base_patch16_224", moco_v3, "bicubic"),
    Row("MoCo v3 S", "vit_small_patch16_mocov3", moco_v3, "bicubic", options=VIT | {"num_heads": 12}),
    Row("MSN", "vit_small_patch16_224", target, "bicubic", said="under target_encoder.module"),
    Row("I-JEPA", "vit_huge_patch14_gap_224", target, "bicubic"),
    Row("I-JEPA giant", "vit_giant_patch16_gap_224", target, "bicubic"),
    Row("I-JEPA huge 448", "vit_huge_patch16_gap_448", target, "bicubic"),
    Row("HF MAE", "vit_base_patch16_224", hf_mae, "bicubic"),
    Row("HF ViT", "vit_base_patch16_224", hf_vit, "bicubic"),
    Row("HF classifier", "vit_base_patch16_224", partial(hf_vit, prefix="vit."), "bicubic"),
    Row("HF ViT in memory", "vit_base_patch16_224", hf_vit_memory, "bicubic"),
    Row("HF I-JEPA", "vit_huge_patch14_gap_224", hf_vit, "bicubic"),
    Row("DINOv2", "vit_small_patch14_dinov2", dinov2_official, "dino"),
    Row("DINOv2 training", "vit_small_patch14_dinov2", dinov2_training, "dino"),
    Row("DINOv2 giant", "vit_giant_patch14_dinov2", dinov2_official, "dino"),
    Row(
        "DINOv2 reg",
        "vit_small_patch14_reg4_dinov2",
        dinov2_with_registers,
        "antialias",
        said="antialiased; tokens left out: 5",
    ),
    Row("HF DINOv2", "vit_small_patch14_dinov2", hf_dinov2, "dino"),
    Row("HF DINOv2 in memory", "vit_small_patch14_dinov2", hf_dinov2_memory, "dino"),
    Row("HF DINOv2 giant", "vit_giant_patch14_dinov2", hf_dinov2, "dino"),
    Row("HF DINOv2 giant in memory", "vit_giant_patch14_dinov2", hf_dinov2_memory, "dino"),
    Row("HF DINOv2 reg", "vit_small_patch14_reg4_dinov2", hf_dinov2, "antialias"),
    Row("Franca", "vit_base_patch14_franca", dinov2_training, "dino"),
    Row("CLIP", "vit_base_patch16_clip_quickgelu_224", openai, "bicubic", CLIP),
    Row(
        "CLIP module", "vit_base_patch16_clip_224", partial(openai, prefix="module.visual."), "bicubic", CLIP
    ),
    Row("HF CLIP", "vit_base_patch16_clip_224", hf_clip, "bicubic", CLIP),
    Row("HF CLIP in memory", "vit_base_patch16_clip_224", partial(hf_clip, prefix=""), "bicubic", CLIP),
    Row("HF SigLIP", "vit_base_patch16_siglip_224", hf_clip, "bicubic", HALF),
    Row(
        "open_clip SigLIP",
        "vit_base_patch16_siglip_224",
        lambda w: joined(w, "visual.trunk."),
        "bicubic",
        HALF,
    ),
    Row("AIMv2", "aimv2_large_patch14_224", lambda w: renamed(w, AIMV2), "bicubic", CLIP),
    Row("HF AIMv2", "aimv2_large_patch14_224", hf_aimv2, "bicubic", CLIP),
    Row("C-RADIO", "vit_base_patch16_radio_v3", radio, "radio", CLIP, said="tokens left out: 8"),
    Row("EVA02-CLIP", "eva02_base_patch16_clip_224", eva02, "bicubic", CLIP),
    Row("PE core", "vit_pe_core_base_patch16_224", openai, "bilinear", HALF),
    Row("PE spatial", "vit_pe_spatial_base_patch16_512", partial(openai, prefix=""), "bilinear", HALF),
    Row("PE lang", "vit_pe_lang_large_patch14_448", openai, "bilinear", HALF),
]
WHOLE = [
    Row("DINOv3", "vit_small_patch16_dinov3", dinov3, options=HEADS_OF_64, said="tokens left out: 5"),
    Row("DINOv3 qkvb", "vit_small_patch16_dinov3_qkvb", dinov3, options=HEADS_OF_64),
    Row("DINOv3 plus", "vit_small_plus_patch16_dinov3", dinov3, options=HEADS_OF_64),
    Row("DINOv3 7B", "vit_7b_patch16_dinov3", dinov3_7b, options=HEADS_OF_64),
    Row(
        "DINOv3 7B satellite",
        "vit_7b_patch16_dinov3.sat493m",
        dinov3_7b,
        mean=(0.430, 0.411, 0.296),
        options=HEADS_OF_64,
    ),
    Row("HF DINOv3", "vit_small_patch16_dinov3", hf_dinov3, options=HEADS_OF_64),
    Row("HF DINOv3 qkvb", "vit_small_patch16_dinov3_qkvb", hf_dinov3, options=HEADS_OF_64),
    Row(
        "HF DINOv3 plus in memory",
        "vit_small_plus_patch16_dinov3",
        partial(hf_dinov3, layer="model.layer."),
        options=HEADS_OF_64,
    ),
    Row("SigLIP 2 NaFlex", "naflexvit_base_patch16_siglip", hf_naflex, None, HALF),
    Row("DINOv3 ConvNeXt", "convnext_tiny", dinov3_convnext, options=CONVNEXT),
    Row("HF DINOv3 ConvNeXt", "convnext_tiny", hf_convnext, options=CONVNEXT),
    Row(
        "HF DINOv3 ConvNeXt in memory",
        "convnext_tiny",
        partial(hf_convnext, model="model."),
        options=CONVNEXT,
    ),
    Row("DINOv3 ConvNeXt of timm", "convnext_tiny.dinov3_lvd1689m", dict, options=CONVNEXT),
    Row("SparK", "convnext_tiny", spark, options=CONVNEXT),
    Row("ConvNeXt V2", "convnextv2_tiny", facebooks, options=CONVNEXT),
]


def timms(row, **more):
    """timm's own model of a row, with lively weights."""
    name, own = row.network, {}
    if row.family == "MoCo v3 S":
        name = "vit_small_patch16_224"
    if row.family == "Franca":
        from timm.layers import SwiGLUPacked

        name = "vit_base_patch14_dinov2"
        own = {"mlp_layer": SwiGLUPacked, "act_layer": torch.nn.SiLU, "mlp_ratio": 2.66667 * 2}
    if row.family.startswith("PE") and "img_size" in more:  # coordinates are not rescaled
        own = {
            "ref_feat_shape": tuple(side // (14 if "patch14" in name else 16) for side in more["img_size"])
        }
    return timm.create_model(name, num_classes=0, **{**row.options, **own, **more}).eval()


def loaded(row, weights, tmp_path):
    path = tmp_path / "file.pth"
    torch.save(row.write(weights), path)
    backbone = make_backbone(row.network, options=row.options)
    return backbone, load_backbone(backbone, path)


def same(found, expected):
    assert found.shape == expected.shape
    assert (found - expected).abs().max() <= 1e-4 * expected.abs().max()


# One of each rule, for which a square picture of another size is tried as well.
SQUARES = ("DINO", "MAE", "DINOv2 reg", "C-RADIO", "PE core")


def sizes(row, patch, native):
    other = 16 * patch
    square = [(other, other)] if row.family in SQUARES else []
    return [(native, native), *square, (other, 21 * patch)]


@pytest.mark.parametrize("row", VITS, ids=[row.family for row in VITS])
def test_a_vit_gives_the_features_of_its_authors(row, tmp_path):
    network = lively(timms(row, **({"img_size": 2048} if row.rule == "radio" else {})))
    weights = {name: value.clone() for name, value in network.state_dict().items()}
    if row.rule == "radio":
        weights["patch_embed.proj.bias"].zero_()
    backbone, line = loaded(row, weights, tmp_path)
    assert row.said in line
    assert backbone.mean == pytest.approx(row.mean)
    covered = 0 if network.no_embed_class else network.num_prefix_tokens
    patch = network.patch_embed.patch_size[0]
    native = 14 * patch if row.rule == "radio" else patch * network.patch_embed.grid_size[0]
    for size in sizes(row, patch, native):
        grid = (size[0] // patch, size[1] // patch)
        reference = timms(row, img_size=size)
        positions = slow_positions(weights["pos_embed"], covered, grid, size, row.rule)
        reference.load_state_dict({**weights, "pos_embed": positions})
        pictures = torch.randn(1, 3, *size, generator=torch.Generator().manual_seed(1))
        with torch.inference_mode():
            tokens = reference.forward_features(pictures)
            if row.family == "MAE fine-tuned":
                assert isinstance(reference.norm, torch.nn.LayerNorm)
            same(backbone(pictures).flatten(2).mT, tokens[:, tokens.shape[1] - grid[0] * grid[1] :])


@pytest.mark.parametrize("row", WHOLE, ids=[row.family for row in WHOLE])
def test_other_networks_give_the_features_of_their_authors(row, tmp_path):
    network = lively(timms(row))
    weights = {name: value.clone() for name, value in network.state_dict().items()}
    backbone, line = loaded(row, weights, tmp_path)
    assert row.said in line
    assert backbone.mean == pytest.approx(row.mean)
    for size in ((224, 224), (256, 352)):
        pictures = torch.randn(1, 3, *size, generator=torch.Generator().manual_seed(1))
        with torch.inference_mode():
            expected = network.forward_features(pictures)
            if "DINOv3 ConvNeXt" in row.family:
                expected = network.head.norm(expected)
            found = backbone(pictures)
            if expected.ndim == 3:
                found = found.flatten(2).mT
                expected = expected[:, expected.shape[1] - found.shape[1] :]
            same(found, expected)


@pytest.mark.parametrize("form", BEITS)
def test_beits_files_give_the_features_of_timms_beit(form, tmp_path):
    """BEiT takes one size; the norm behind the average of the tokens is that of each token."""
    row = Row("", "beit_base_patch16_224", BEITS[form])
    network = lively(timms(row))
    if form == "pre-trained":
        for block in network.blocks:
            block.attn.relative_position_bias_table = network.blocks[0].attn.relative_position_bias_table
    weights = {name: value.clone() for name, value in network.state_dict().items()}
    backbone, _ = loaded(row, weights, tmp_path)
    assert backbone.mean == HALF and backbone.fixed_size == (224, 224)
    pictures = torch.randn(1, 3, 224, 224)
    with torch.inference_mode():
        expected = network.fc_norm(network.forward_features(pictures)[:, 1:])
        same(backbone(pictures).flatten(2).mT, expected)
    with pytest.raises(InputError, match=r"too many .*it looks like BEiT or data2vec: beit_base_patch16_224"):
        loaded(row._replace(network="vit_base_patch16_224"), weights, tmp_path)


def test_a_satellites_file_under_the_plain_name_is_refused(tmp_path):
    """All tensors fit, but mean and std are others; the folder of transformers has the sign in its name."""
    row = Row("", "vit_7b_patch16_dinov3", dinov3_7b, options=HEADS_OF_64)
    weights = lively(timms(row)).state_dict()
    folder = tmp_path / "dinov3-vit7b16-pretrain-sat493m"
    folder.mkdir()
    with pytest.raises(InputError, match=r"satellite images.*fits is vit_7b_patch16_dinov3\.sat493m$"):
        loaded(row, weights, folder)


def test_all_sizes_of_franca_have_the_mlp_of_dinov2s_giant():
    for size in ("base", "large", "giant"):
        weights = make_backbone(f"vit_{size}_patch14_franca", options=VIT).network.state_dict()
        assert weights["blocks.0.mlp.fc1.weight"].shape == (512, D)
        assert weights["blocks.0.mlp.fc2.weight"].shape == (D, 256)


def test_parts_of_a_sparse_convnext_v2_are_refused_by_name(tmp_path):
    row = Row(
        "", "convnextv2_tiny", lambda _: {"model": {"encoder.stages.0.0.dwconv.kernel": torch.ones(49, 16)}}
    )
    with pytest.raises(InputError, match=r"the sparse training of ConvNeXt V2 \(FCMAE\)"):
        loaded(row._replace(options=CONVNEXT), {}, tmp_path)


def test_biases_that_a_network_has_no_place_for_are_refused_unless_zero(tmp_path):
    row = Row("", "vit_small_patch16_dinov3", partial(dinov3, biases=0.5), options=HEADS_OF_64)
    weights = lively(timms(row)).state_dict()
    with pytest.raises(InputError, match=r"biases .* not zero .*vit_small_patch16_dinov3_qkvb"):
        loaded(row, weights, tmp_path)
    theirs = hf_dinov3(weights) | {"layer.1.attention.v_proj.bias": torch.ones(128)}
    with pytest.raises(InputError, match=r"\(blocks\.1\.attn\.v\.bias\).*vit_small_patch16_dinov3_qkvb"):
        loaded(row._replace(write=lambda _: theirs), weights, tmp_path)


def test_a_file_of_another_resolution_is_interpolated_from_its_own_grid(tmp_path):
    row = Row("", "vit_small_patch14_dinov2", dinov2_training, "dino")
    weights = dict(lively(timms(row)).state_dict())
    weights["pos_embed"] = torch.randn(1, 1 + 16**2, D) * 0.3  # trained at 224, the network is of 518
    backbone, _ = loaded(row, weights, tmp_path)
    for size in ((224, 224), (252, 336)):
        reference = timms(row, img_size=size)
        grid = (size[0] // 14, size[1] // 14)
        positions = slow_positions(weights["pos_embed"], 1, grid, size, "dino")
        reference.load_state_dict(weights | {"pos_embed": positions})
        pictures = torch.randn(1, 3, *size)
        with torch.inference_mode():
            same(backbone(pictures).flatten(2).mT, reference.forward_features(pictures)[:, 1:])


def test_positions_that_timm_would_resize_are_the_files_own(tmp_path):
    row = Row("", "eva02_base_patch16_clip_224", eva02, "bicubic", CLIP)
    weights = dict(lively(timms(row)).state_dict())
    weights["pos_embed"] = torch.randn(1, 1 + 10**2, D)
    backbone, _ = loaded(row, weights, tmp_path)
    assert torch.equal(backbone.network.pos_embed, weights["pos_embed"])


def test_mocos_small_vit_has_12_heads():
    network = make_backbone("vit_small_patch16_mocov3", options={"depth": 1}).network
    assert network.blocks[0].attn.num_heads == 12
