"""The values of a fine-tuning run: the published ones of each backbone and mode, and ours where none are."""

from __future__ import annotations

from dataclasses import dataclass

from imagenets.learning.networks.segmentation_network import PASS, SELF

_FULL_BATCH = 256  # images for which base learning rates are stated


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


@dataclass(frozen=True)
class _Row:
    base_lr: float
    layer_decay: float
    weight_decay: float
    drop_path: float


_VIT_SMALL = _Row(5e-4, 0.50, 0.05, 0.1)
_CONVNEXT = _Row(2.5e-4, 0.60, 0.05, 0.2)
_RESNET = _Row(5e-4, 0.40, 5e-4, 0.0)
# Published for mode 919: docs/finetuning.md, Values.
_PUBLISHED = {
    ("vit_base_patch16_224", 16): _Row(5e-4, 0.60, 0.05, 0.1),
    ("vit_small_patch16_224", 16): _VIT_SMALL,
    ("resnet50", 32): _RESNET,
    ("resnet50", 16): _Row(5e-4, 0.45, 5e-4, 0.0),
    ("convnext_tiny", 32): _CONVNEXT,
}
# Ours: what is published for the nearest network.
_BY_KIND = {
    "vit": _VIT_SMALL,
    "resnet": _RESNET,
    "convnext": _CONVNEXT,
    "other": _Row(5e-4, 1.0, 0.05, 0.0),
}
# Ours for small sets: smaller batches, so that there are as many updates as in mode 919, some thousands.
# A set of one's own has those of mode 50.
_SEMI_BATCH = {"50": 32, "300": 128, "919": _FULL_BATCH}


def semi_supervised(backbone: str, kind: str, stride: int, mode: str) -> Values:
    """Values of semi-supervised fine-tuning on train-semi, for a backbone of output stride ``stride``."""
    found = _PUBLISHED.get((backbone, stride))
    row = found or _BY_KIND[kind]
    batch = _SEMI_BATCH.get(mode, _SEMI_BATCH["50"])
    return Values(
        published=found is not None and mode == "919",
        epochs=100,
        batch=batch,
        lr=scaled_rate(row.base_lr, batch),
        final_lr=1e-6,
        warm_up=5,
        weight_decay=row.weight_decay,
        layer_decay=row.layer_decay,
        drop_path=row.drop_path,
        crop=224,
        smallest_crop=0.14,
        seed=0,
    )


def pseudo_labels(backbone: str, mode: str) -> Values:
    """Values of PASS's fine-tuning on label maps of ``train``."""
    published = backbone == {"50": "resnet18", "300": "resnet50", "919": "resnet50"}.get(mode)
    return Values(
        published=published,
        epochs=20,
        batch=_FULL_BATCH,
        lr=0.6,
        final_lr=0.0006,
        warm_up=0,
        weight_decay=1e-6,
        layer_decay=1.0,
        drop_path=0.0,
        crop=224,
        smallest_crop=0.08,
        seed=31,
    )


def self_training(stride: int) -> Values:
    """Values of self-training on label maps of ``train``, for a backbone of this output stride; ours."""
    return Values(
        published=False,
        epochs=3,
        batch=16,
        lr=1e-3,
        final_lr=0.0,
        warm_up=0,
        weight_decay=0.01,
        layer_decay=1.0,
        drop_path=0.0,
        crop=256 // stride * stride,
        smallest_crop=0.5,
        seed=0,
    )


def values_of(recipe: str, backbone: str, kind: str, stride: int, mode: str) -> Values:
    """Return the values of a recipe by its name."""
    if recipe == PASS:
        return pseudo_labels(backbone, mode)
    if recipe == SELF:
        return self_training(stride)
    return semi_supervised(backbone, kind, stride, mode)


def scaled_rate(rate: float, batch: int) -> float:
    """Scale a learning rate that is stated for 256 images to another batch, in proportion."""
    return rate * batch / _FULL_BATCH
