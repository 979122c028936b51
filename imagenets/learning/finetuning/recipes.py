"""The values of a fine-tuning run: the published ones of each backbone and mode, and ours where none are."""

from __future__ import annotations

from dataclasses import dataclass, replace

from imagenets.learning.networks.segmentation_network import PASS, SELF

_FULL_BATCH = 256  # images for which learning rates are published


@dataclass(frozen=True)
class Values:
    """What a run trains with; ``batch`` counts the images of one update, ``lr`` is absolute."""

    published: bool
    epochs: int
    batch: int
    lr: float
    final_lr: float
    warm_up: float  # epochs
    weight_decay: float
    layer_decay: float
    drop_path: float
    crop: int  # pixels
    smallest_crop: float  # share of the image's area
    seed: int


_SEMI = Values(
    published=False, epochs=100, batch=_FULL_BATCH, lr=5e-4, final_lr=1e-6, warm_up=5, weight_decay=0.05,
    layer_decay=1.0, drop_path=0.0, crop=224, smallest_crop=0.14, seed=0,
)  # fmt: skip
_VIT_SMALL = replace(_SEMI, layer_decay=0.50, drop_path=0.1)
_CONVNEXT = replace(_SEMI, lr=2.5e-4, layer_decay=0.60, drop_path=0.2)
_RESNET = replace(_SEMI, layer_decay=0.40, weight_decay=5e-4)
# Published for mode 919: docs/finetuning.md, Values.
_PUBLISHED = {
    ("vit_base_patch16_224", 16): replace(_SEMI, layer_decay=0.60, drop_path=0.1),
    ("vit_small_patch16_224", 16): _VIT_SMALL,
    ("resnet50", 32): _RESNET,
    ("resnet50", 16): replace(_RESNET, layer_decay=0.45),
    ("convnext_tiny", 32): _CONVNEXT,
}
# Ours: what is published for the nearest network.
_BY_KIND = {"vit": _VIT_SMALL, "resnet": _RESNET, "convnext": _CONVNEXT, "other": _SEMI}
# Ours for small sets: smaller batches, so that there are as many updates as in mode 919, some thousands.
# A set of one's own has those of mode 50.
_SEMI_BATCH = {"50": 32, "300": 128, "919": _FULL_BATCH}

_PASS = Values(
    published=False, epochs=20, batch=_FULL_BATCH, lr=0.6, final_lr=0.0006, warm_up=0, weight_decay=1e-6,
    layer_decay=1.0, drop_path=0.0, crop=224, smallest_crop=0.08, seed=31,
)  # fmt: skip
_PASS_BACKBONES = {"50": "resnet18", "300": "resnet50", "919": "resnet50"}
# Ours.
_SELF = Values(
    published=False, epochs=3, batch=16, lr=1e-3, final_lr=0.0, warm_up=0, weight_decay=0.01,
    layer_decay=1.0, drop_path=0.0, crop=256, smallest_crop=0.5, seed=0,
)  # fmt: skip


def values_of(recipe: str, backbone: str, kind: str, stride: int, mode: str) -> Values:
    """Return the values of a recipe for a backbone of this output stride.

    Semi-supervised ones are for train-semi, those of PASS and of self-training for label maps of ``train``.
    """
    if recipe == PASS:
        return replace(_PASS, published=backbone == _PASS_BACKBONES.get(mode))
    if recipe == SELF:
        return replace(_SELF, crop=_SELF.crop // stride * stride)
    found = _PUBLISHED.get((backbone, stride))
    values = found or _BY_KIND[kind]
    batch = _SEMI_BATCH.get(mode, _SEMI_BATCH["50"])
    published = found is not None and mode == "919"
    return replace(values, published=published, batch=batch, lr=values.lr * batch / values.batch)
