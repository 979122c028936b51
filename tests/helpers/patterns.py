"""A prepared set of mode 50 whose classes are told by patterns that no change of colours hides."""

from __future__ import annotations

import numpy as np
from masksets import write_mask
from PIL import Image
from prepared_set import WNIDS

from imagenets.masks import decode_mask

SIZES = ((96, 128), (128, 96), (100, 100), (97, 131))


def draw(rng, label, height, width):
    """An object of stripes or checks on a smooth ground: a picture (H, W, 3) uint8, its labels (H, W)."""
    y, x = np.mgrid[:height, :width]
    ground = np.broadcast_to(150 + 20 * rng.random() + 0 * y[..., None], (height, width, 3))
    waves = (np.sin(x / 1.5), np.sin(y / 1.5), np.sin(x / 4) * np.sin(y / 4), np.sin((x + y) / 5))
    pattern = np.where(waves[label % 4] > 0, 230, 40)[..., None] * np.array([1.0, 0.9, 0.8])
    top, left = rng.integers(8, height // 3), rng.integers(8, width // 3)
    bottom, right = rng.integers(2 * height // 3, height - 8), rng.integers(2 * width // 3, width - 8)
    inside = (y >= top) & (y < bottom) & (x >= left) & (x < right)
    picture = np.where(inside[..., None], pattern, ground) + rng.normal(0, 3, (height, width, 3))
    labels = np.where(inside, label + 1, 0)
    labels[:3] = 1000
    return picture.clip(0, 255).astype(np.uint8), labels


def write_patterns(save, per_class=1, classes=4, splits=("train-semi", "validation")):
    """``save``/ImageNetS50: the same pictures with their masks in each split; gives its folder."""
    root = save / "ImageNetS50"
    for split in splits:
        rng = np.random.default_rng(5)
        for number in range(classes * per_class):
            label = number % classes
            picture, labels = draw(rng, label, *SIZES[number % len(SIZES)])
            place = f"{WNIDS[label]}/picture_{number}"
            image, mask = root / split / f"{place}.JPEG", root / f"{split}-segmentation/{place}.png"
            image.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(picture).save(image, "JPEG", quality=95)
            write_mask(mask, labels)
    return root


def as_label_maps(masks):
    """Make label maps of masks: what is ignored becomes background. Gives the last one's file and labels."""
    for path in sorted(masks.rglob("*.png")):
        labels = decode_mask(path).astype(int)
        labels[labels == 1000] = 0
        write_mask(path, labels)
    return path, labels
