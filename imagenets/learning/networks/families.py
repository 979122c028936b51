"""Families of networks: what a model's name stands for, and what timm is asked to build for it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, NamedTuple

from imagenets.learning.networks.position_embeddings import ANTIALIAS, BICUBIC, BILINEAR, DINO, RADIO


class Family(NamedTuple):
    """What is special about the models of one family."""

    name: str
    models: str  # pattern of timm's names
    positions: str = DINO  # rule of their authors for dense features
    own_values: bool = False  # normalised with the mean and std that timm has for the name
    options: Mapping[str, Any] = {}  # for timm's constructor


# The first that fits. Names that fit none are ImageNet's, with the position rule of DINO. The code of CLIP,
# EVA02-CLIP and AIMv2 takes one size only: transformers' rule.
FAMILIES = (
    # The grid of 128 x 128 is that of its files.
    Family("C-RADIO", r"^vit_\w+_radio_", RADIO, True, {"img_size": 2048}),
    Family("SigLIP", r"_siglip", BICUBIC, True),
    Family("EVA02-CLIP", r"^eva\w*_clip_", BICUBIC, True, {"dynamic_img_size": True}),
    Family("CLIP", r"_clip_", BICUBIC, True),
    Family("AIMv2", r"^aimv2_", BICUBIC, True),
    Family("PE", r"^vit_pe_", BILINEAR, True, {"dynamic_img_size": True}),
    Family("DINOv2 with registers", r"_reg\d_dinov2", ANTIALIAS),
    Family("DINOv2", r"_dinov2"),
    Family("Franca", r"_franca"),
    Family("MoCo v3", r"_mocov3", BICUBIC),
    Family("TIPSv2", r"_tipsv2", own_values=True),
    Family("NaFlex", r"^naflexvit_.*(siglip|radio)", own_values=True),
    Family("BEiT", r"^beit", own_values=True),
    Family("MAE, DeiT", r"^deit", BICUBIC),
)
PLAIN = Family("DINO", "")
# Networks that no name of timm builds: timm's name, and what differs. MoCo v3's ViT-S has 12 heads of 32
# where timm's has 6 of 64; Franca has DINOv2's networks, but with the giant's SwiGLU in all sizes.
SWIGLU: Mapping[str, Any] = {"mlp_layer": "SwiGLUPacked", "act_layer": "silu", "mlp_ratio": 2.66667 * 2}
OWN_MODELS: Mapping[str, tuple[str, Mapping[str, Any]]] = {
    "vit_small_patch16_mocov3": ("vit_small_patch16_224", {"num_heads": 12}),
    "vit_base_patch14_franca": ("vit_base_patch14_dinov2", SWIGLU),
    "vit_large_patch14_franca": ("vit_large_patch14_dinov2", SWIGLU),
    "vit_giant_patch14_franca": ("vit_giant_patch14_dinov2", SWIGLU),
}


def family_of(model: str) -> Family:
    """Find the family of a model by its name, without library or tag."""
    return next((family for family in FAMILIES if re.search(family.models, model)), PLAIN)
