"""Settings of PASS's first two steps: the published ones of each mode, and small ones for weak machines."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace

from imagenets.learning.pass_method.crops import CropSettings
from imagenets.learning.training.augmentation import PUBLISHED_COLOURS, Colours


@dataclass(frozen=True)
class Pretraining:
    """Step 1. ``batch``, ``queue`` in images of all processes; ``frozen_steps`` of the prototypes.

    ``queue_from`` is the epoch, from 0, from which the queue is filled. The learning rate falls from ``lr``
    to ``final_lr`` along half a cosine. ``weights`` are those of the image and the shallow loss.
    """

    backbone: str
    epochs: int
    batch: int
    large: CropSettings
    small: CropSettings | None
    hidden: int
    prototypes: int
    queue: int
    queue_from: int
    frozen_steps: int
    lr: float = 0.6
    final_lr: float = 0.0006
    weight_decay: float = 1e-6
    weights: tuple[float, float] = (1, 1)
    colours: Colours = PUBLISHED_COLOURS
    seed: int = 10010


@dataclass(frozen=True)
class Attention:
    """Step 2, the attention; fields as those of ``Pretraining``."""

    epochs: int
    batch: int
    large: CropSettings
    queue: int
    lr: float
    final_lr: float = 0.0006
    weight_decay: float = 1e-6
    colours: Colours = PUBLISHED_COLOURS
    seed: int = 10010


_WIDE = Pretraining(
    backbone="resnet50",
    epochs=100,
    batch=256,
    large=CropSettings(2, 224, (0.08, 1)),
    small=None,
    hidden=2048,
    prototypes=3000,
    queue=3840,
    queue_from=15,
    frozen_steps=5005,
)
_NARROW = Pretraining(
    backbone="resnet18",
    epochs=200,
    batch=256,
    large=CropSettings(2, 224, (0.14, 1)),
    small=CropSettings(6, 96, (0.05, 0.14)),
    hidden=512,
    prototypes=500,
    queue=2048,
    queue_from=15,
    frozen_steps=1001,
)
_ATTENTION = Attention(epochs=20, batch=256, large=CropSettings(2, 224, (0.08, 1)), queue=3840, lr=0.6)

# Published: docs/pass.md, Settings.
PUBLISHED_PRETRAINING = {"50": _NARROW, "300": _WIDE, "919": _WIDE}
PUBLISHED_ATTENTION = {"50": replace(_ATTENTION, lr=6.0), "300": _ATTENTION, "919": _ATTENTION}

# Ours, for minutes on two cores and a few hundred pictures whose classes differ in hue: that is left as it
# is. 64 pixels of a small part of them show textures about as large as the other steps see them.
_HUES_KEPT = Colours(strength=0.8, hue=0.02, grey=0, blur=1.0)
SMALL_PRETRAINING = Pretraining(
    backbone="timm/test_resnet",
    epochs=3,
    batch=32,
    large=CropSettings(2, 64, (0.08, 0.3)),
    small=None,
    hidden=128,
    prototypes=50,
    queue=192,
    queue_from=1,
    frozen_steps=18,
    lr=2.0,
    colours=_HUES_KEPT,
)
SMALL_ATTENTION = Attention(
    epochs=4, batch=32, large=CropSettings(2, 96, (0.2, 1)), queue=192, lr=6.0, colours=_HUES_KEPT
)

RECIPES = ("pass", "small")


def pretraining_recipe(recipe: str, mode: str) -> Pretraining:
    """Settings of step 1 for one of ``RECIPES`` and a mode (one's own: those of 50)."""
    return SMALL_PRETRAINING if recipe == "small" else PUBLISHED_PRETRAINING.get(mode, _NARROW)


def attention_recipe(recipe: str, mode: str) -> Attention:
    """Settings of step 2 for one of ``RECIPES`` and a mode (one's own: those of 50)."""
    return SMALL_ATTENTION if recipe == "small" else PUBLISHED_ATTENTION.get(mode, PUBLISHED_ATTENTION["50"])


def as_settings(recipe: Pretraining | Attention) -> dict[str, str | int | float | bool | None]:
    """List a recipe's values for a run folder's record."""
    values = asdict(recipe) | {"large": str(recipe.large), "colours": str(recipe.colours)}
    if isinstance(recipe, Pretraining):
        values["small"] = recipe.small and str(recipe.small)
        values["weights"] = ":".join(f"{weight:g}" for weight in recipe.weights)
    return values
