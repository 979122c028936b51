"""Families of networks: what a model's name stands for, and what timm is asked to build for it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, NamedTuple


class Family(NamedTuple):
    """What is special about the models of one family; its position rule is in ``position_embeddings``."""

    name: str
    models: str  # pattern of timm's names
    own_values: bool = False  # normalised with the mean and std that timm has for the name
    options: Mapping[str, Any] = {}  # for timm's constructor


# The first that fits. Names that fit none are ImageNet's, with the position rule of DINO.
FAMILIES = (
    Family("C-RADIO", r"^vit_\w+_radio_", True, {"img_size": 2048}),  # the grid of 128 x 128 in its files
    Family("SigLIP", r"_siglip", True),
    Family("EVA02-CLIP", r"^eva\w*_clip_", True, {"dynamic_img_size": True}),
    Family("CLIP", r"_clip_", True),
    Family("AIMv2", r"^aimv2_", True),
    Family("PE", r"^vit_pe_", True, {"dynamic_img_size": True}),
    Family("DINOv2 with registers", r"_reg\d_dinov2"),
    Family("DINOv2", r"_dinov2"),
    Family("Franca", r"_franca"),
    Family("MoCo v3", r"_mocov3"),
    Family("TIPSv2", r"_tipsv2", True),
    Family("NaFlex", r"^naflexvit_.*(siglip|radio)", True),
    Family("BEiT", r"^beit", True),
    Family("MAE, DeiT", r"^deit"),
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
