"""Names of tensors in Hugging Face's transformers, as files and as models in memory have them, to timm's.

Since version 5 a model in memory has other names than the file that it is saved to (``attention.q_proj`` for
``attention.attention.query``); people save both. Source: docs/checkpoints.md, Layouts.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable

import torch

Tensors = dict[str, torch.Tensor]
FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)

# Names of patch embeddings that stand in no other library's files, by model.
VIT_ANCHORS = {
    "transformers": r"embeddings\.patch_embeddings\.projection\.weight",  # and MSN, MAE, DINOv2
    "DINOv3": r"embeddings\.patch_embeddings\.weight",
    "CLIP, SigLIP": r"embeddings\.patch_embedding\.weight",
    "AIMv2": r"embeddings\.patch_embed\.weight",
}
CONVNEXT_ANCHOR = r"(?:model\.)?stages\.0\.downsample_layers\.0\.weight"

_BLOCK = r"(?:(?:encoder|model)\.)?layers?\.(\d+)\."
# Within a block, as in the following tables: the beginning of a name. The longer ones come first.
_IN_BLOCK = (
    (r"attention\.attention\.(q)uery", r"attn.\1"),  # ViT, DINOv2
    (r"attention\.attention\.(k)ey", r"attn.\1"),
    (r"attention\.attention\.(v)alue", r"attn.\1"),
    (r"(?:attention|self_attn)\.([qkv])_proj", r"attn.\1"),  # in memory, DINOv3, CLIP, SigLIP, AIMv2
    (r"attention\.output\.dense", "attn.proj"),
    (r"(?:attention|self_attn)\.(?:o|out)_proj", "attn.proj"),
    (r"(?:layernorm_before|layer_norm1|rms_norm1)", "norm1"),
    (r"(?:layernorm_after|layer_norm2|rms_norm2)", "norm2"),
    (r"layer_scale([12])\.lambda1", r"ls\1.gamma"),  # DINOv2, DINOv3
    (r"lambda_([12])", r"gamma_\1"),  # BEiT, data2vec
    (r"attention\.attention\.relative_position_bias\.", "attn."),
    (r"intermediate\.dense", "mlp.fc1"),
    (r"output\.dense", "mlp.fc2"),
    (r"mlp\.weights_in", "mlp.fc1"),  # DINOv2 giant
    (r"mlp\.weights_out", "mlp.fc2"),
    (r"ffn\.", "mlp."),  # AIMv2
    (r"mlp\.down_proj", "mlp.fc2"),
)
_OUTSIDE = (
    (r"embeddings\.(?:cls_token|class_embedding)", "cls_token"),
    (r"embeddings\.distillation_token", "dist_token"),
    (r"embeddings\.register_tokens", "reg_token"),
    (r"embeddings\.(?:position_embeddings|position_embedding\.weight)", "pos_embed"),
    (r"embeddings\.patch_embed(?:dings\.projection|dings|ding)?\.", "patch_embed.proj."),
    (r"embeddings\.rms_norm\.", "patch_embed.norm."),
    (r"pre_layrnorm\.", "norm_pre."),
    (r"(?:layernorm|layer_norm|post_layernorm|rms_norm|pooler\.layernorm)\.", "norm."),  # the pooler's: BEiT
)  # fmt: skip
_CONVNEXT = (
    (r"(?:model\.)?stages\.0\.downsample_layers\.", "stem."),
    (r"(?:model\.)?stages\.(\d+)\.downsample_layers\.", r"stages.\1.downsample."),
    (r"(?:model\.)?stages\.(\d+)\.layers\.(\d+)\.", r"stages.\1.blocks.\2."),
    (r"(.*\.)depthwise_conv\.", r"\1conv_dw."),
    (r"(.*\.blocks\.\d+\.)layer_norm\.", r"\1norm."),
    (r"(.*\.)pointwise_conv([12])\.", r"\1mlp.fc\2."),
    (r"(?:model\.)?layer_norm\.", "norm."),
)


def vit_to_timm(tensors: Tensors, wanted: Collection[str]) -> Tensors:
    """Bring the tensors of one vision transformer to timm's names and shapes; q, k and v are joined.

    ``wanted`` are the names of timm's model, which decide where timm has two forms (layer scale, SwiGLU,
    biases of q and v). Others than a vision transformer's keep their names.
    """
    named = {_vit_name(name): tensor for name, tensor in tensors.items()}
    named = _with_layer_scale(_with_gates(_joined(named), wanted), wanted)
    for name in {"cls_token", "pos_embed"} & named.keys():
        while named[name].ndim < 3:
            named[name] = named[name][None]
    weight = named.get("patch_embed.proj.weight")
    if weight is not None and weight.ndim == 2:  # SigLIP 2 NaFlex: row, column, colour
        side = round((weight.shape[1] / 3) ** 0.5)
        named["patch_embed.proj.weight"] = weight.reshape(-1, side, side, 3).permute(0, 3, 1, 2)
    return named


def convnext_to_timm(tensors: Tensors) -> Tensors:
    """Bring the tensors of DINOv3's ConvNeXt to timm's names."""
    return {_renamed(name, _CONVNEXT): tensor for name, tensor in tensors.items()}


def _vit_name(name: str) -> str:
    block = re.match(_BLOCK, name)
    if block is None:
        return _renamed(name, _OUTSIDE)
    return f"blocks.{block[1]}.{_renamed(name[block.end() :], _IN_BLOCK)}"


def _renamed(name: str, rules: tuple[tuple[str, str], ...]) -> str:
    for old, new in rules:
        name = re.sub(f"^{old}", new, name)
    return name


def _joined(tensors: Tensors) -> Tensors:
    """Join q, k and v, in this order. A missing bias of k (DINOv3's) is 0: it moves no softmax.

    Where another part is missing, the rest is reported under its own names.
    """
    joined = dict(tensors)
    found = (re.match(r"(blocks\.\d+\.attn\.)[qkv]\.(weight|bias)$", name) for name in tensors)
    for stem, kind in dict.fromkeys((match[1], match[2]) for match in found if match):
        parts = {letter: tensors[name] for letter in "qkv" if (name := f"{stem}{letter}.{kind}") in tensors}
        if kind == "bias" and parts.keys() == {"q", "v"}:
            parts["k"] = torch.zeros_like(parts["q"])
        if len(parts) == 3:
            for letter in "qkv":
                joined.pop(f"{stem}{letter}.{kind}", None)
            joined[f"{stem}qkv.{kind}"] = torch.cat(like_the_worst(parts[letter] for letter in "qkv"))
    return joined


def _with_gates(tensors: Tensors, wanted: Collection[str]) -> Tensors:
    """Name the parts of an MLP: with a gate (SwiGLU), apart or joined as timm has them, or without."""
    named = dict(tensors)
    for name in tensors:
        found = re.match(r"(blocks\.\d+\.mlp\.)up_proj\.(weight|bias)$", name)
        if found is None:
            continue
        mlp, kind = found[1], found[2]
        up, gate = named.pop(name), named.pop(f"{mlp}gate_proj.{kind}", None)
        if gate is None:
            named[f"{mlp}fc1.{kind}"] = up
        elif f"{mlp}fc1_g.{kind}" in wanted:
            named[f"{mlp}fc1_g.{kind}"], named[f"{mlp}fc1_x.{kind}"] = gate, up
        else:
            named[f"{mlp}fc1.{kind}"] = torch.cat(like_the_worst([gate, up]))
    return named


def _with_layer_scale(tensors: Tensors, wanted: Collection[str]) -> Tensors:
    """Name layer scales as timm's model does: ``ls1.gamma``, or ``gamma_1`` in its EVA-like models."""
    if "blocks.0.gamma_1" not in wanted:
        return tensors
    return {re.sub(r"\.ls([12])\.gamma$", r".gamma_\1", name): tensor for name, tensor in tensors.items()}


def like_the_worst(parts: Iterable[torch.Tensor]) -> list[torch.Tensor]:
    """Bring tensors that become one to the device and dtype of the first that holds no usable numbers.

    Joined with floats, integers would turn into floats without a word, and tensors without values (device
    meta) would raise an error that names nothing; so a check of the whole finds either.
    """
    found = list(parts)
    worst = next((part for part in found if part.is_meta or part.dtype not in FLOATS), None)
    if worst is None:
        return found
    return [torch.empty_like(part, device=worst.device, dtype=worst.dtype) for part in found]
