"""Augmentation of PIL images, with its randomness given: the operations are Pillow's, as torchvision's are.

All take the ``numpy.random.Generator`` of the image (``order.generator``) and draw from it in a fixed order.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image, ImageEnhance, ImageFilter

_TRIES = 10


class Crop(NamedTuple):
    """A rectangle of an image in pixels, and whether it is mirrored."""

    left: int
    top: int
    width: int
    height: int
    flipped: bool


@dataclass(frozen=True)
class Colours:
    """How much ``distort`` changes a picture; as it is, what SwAV and its followers do.

    Brightness, contrast and saturation by a factor in 1 ± ``strength``, hue by ± ``hue`` of the circle;
    ``grey`` is the probability of greyscale, ``blur`` the largest radius in pixels.
    """

    strength: float = 0.8
    hue: float = 0.2
    grey: float = 0.2
    blur: float = 2.0

    def __str__(self) -> str:
        """Write them as run settings show them."""
        return f"{self.strength:g}, hue {self.hue:g}, grey {self.grey:g}, blur {self.blur:g}"


PUBLISHED_COLOURS = Colours()


def random_crop(
    random: np.random.Generator, width: int, height: int, scale: tuple[float, float], flip: float = 0.5
) -> Crop:
    """Choose a part of an image of ``width`` × ``height`` pixels whose area is the share ``scale`` of it.

    The aspect ratio is log-uniform in 3/4..4/3; after ten that do not fit, the middle of the image, as large
    as the ratio allows. Mirrored with probability ``flip``. Source: Szegedy et al., Going Deeper with
    Convolutions, 2015; docs/finetuning.md, Augmentation.
    """
    for _ in range(_TRIES):
        area = width * height * random.uniform(*scale)
        ratio = math.exp(random.uniform(math.log(3 / 4), math.log(4 / 3)))
        w, h = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < w <= width and 0 < h <= height:
            left, top = int(random.integers(width - w + 1)), int(random.integers(height - h + 1))
            return Crop(left, top, w, h, random.random() < flip)
    ratio = min(max(width / height, 3 / 4), 4 / 3)
    w, h = min(width, max(1, round(height * ratio))), min(height, max(1, round(width / ratio)))
    return Crop((width - w) // 2, (height - h) // 2, w, h, random.random() < flip)


def cropped(image: Image.Image, crop: Crop, side: int) -> Image.Image:
    """Cut the rectangle out, resize it to ``side`` × ``side`` pixels (bilinear), mirror it."""
    return _cut(image, crop, side, Image.Resampling.BILINEAR)


def cropped_mask(labels: np.ndarray, crop: Crop, side: int) -> np.ndarray:
    """``cropped`` for labels (H, W), integers 0..65535: the nearest neighbour by pixel centres, as int32."""
    image = Image.fromarray(np.ascontiguousarray(labels, np.int32))
    return np.asarray(_cut(image, crop, side, Image.Resampling.NEAREST))


def _cut(image: Image.Image, crop: Crop, side: int, how: Image.Resampling) -> Image.Image:
    part = image.crop((crop.left, crop.top, crop.left + crop.width, crop.top + crop.height))
    part = part.resize((side, side), how)
    return part.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if crop.flipped else part


def distort(
    random: np.random.Generator, image: Image.Image, colours: Colours = PUBLISHED_COLOURS
) -> Image.Image:
    """Change colours (p 0.8) in random order, take them away (p ``grey``) and blur (p 0.5, radius from 0.1).

    Source: Caron et al., SwAV, NeurIPS 2020; docs/finetuning.md, Augmentation.
    """
    if random.random() < 0.8:
        image = jitter(random, image, colours.strength, colours.hue)
    if random.random() < colours.grey:
        image = image.convert("L").convert("RGB")
    if random.random() < 0.5:
        image = image.filter(ImageFilter.GaussianBlur(random.uniform(0.1, colours.blur)))
    return image


def jitter(random: np.random.Generator, image: Image.Image, strength: float, hue: float) -> Image.Image:
    """Change brightness, contrast and saturation by factors in 1 ± strength, the hue by ± hue of a circle."""
    factors = random.uniform(max(0.0, 1 - strength), 1 + strength, 3)
    shift = random.uniform(-hue, hue)
    enhancers = (ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color)
    for which in random.permutation(4):
        image = shift_hue(image, shift) if which == 3 else enhancers[which](image).enhance(factors[which])
    return image


def shift_hue(image: Image.Image, shift: float) -> Image.Image:
    """Turn the hue by ``shift``, −½..½ of the circle, in steps of 1/256."""
    hue, saturation, value = image.convert("HSV").split()
    turned = np.asarray(hue) + np.uint8(int(shift * 255) % 256)  # wraps around, as hues do
    return Image.merge("HSV", (Image.fromarray(turned), saturation, value)).convert("RGB")


def as_tensor(image: Image.Image) -> torch.Tensor:
    """Return an RGB image as (3, H, W) uint8: a quarter of what floats would be to send between processes."""
    return torch.from_numpy(np.array(image)).permute(2, 0, 1).contiguous()
