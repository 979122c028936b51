"""Batches of images of different sizes: padded to one size, with outputs resized to each image's own."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch.nn.functional import interpolate

from imagenets.classes import IGNORE
from imagenets.masks import resize_mask


def pad_collate(items: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Make a batch of items of ImageNetS of any sizes; a ``collate_fn`` for DataLoader.

    - ``image`` (B, C, H, W): the images, tensors (C, h, w), with 0 to their right and below.
    - ``mask`` (B, H', W') int64, if items have one: padded with 1000, which is ignored.
    - ``image_size`` and ``size``: (height, width) of each image as the network gets it, and of its mask;
      without masks both are the same. ``to_full_size`` needs them.
    - the items' other entries: numbers as a tensor (B,) int64, anything else as a list.

    Raises ValueError if images are no tensors (C, h, w).
    """
    images = [item["image"] for item in items]
    for image in images:
        if not isinstance(image, torch.Tensor) or image.ndim != 3:
            kind = tuple(image.shape) if isinstance(image, torch.Tensor) else type(image).__name__
            raise ValueError(
                f"an image of the batch is {kind}; pass ImageNetS a transform that returns tensors "
                "(channels, height, width)"
            )
    batch: dict[str, Any] = {"image": _padded(images, 0)}
    batch["image_size"] = batch["size"] = [tuple(image.shape[-2:]) for image in images]
    if "mask" in items[0]:
        masks = [torch.as_tensor(item["mask"]).to(torch.int64) for item in items]
        batch["mask"] = _padded(masks, IGNORE)
        batch["size"] = [tuple(mask.shape) for mask in masks]
    for name in items[0].keys() - batch.keys():
        values = [item[name] for item in items]
        batch[name] = torch.tensor(values) if all(isinstance(value, int) for value in values) else values
    return batch


def _padded(tensors: Sequence[torch.Tensor], value: int) -> torch.Tensor:
    """Stack tensors (…, h, w) of different sizes, filled up with ``value`` to the right and below."""
    height, width = (max(tensor.shape[axis] for tensor in tensors) for axis in (-2, -1))
    whole = tensors[0].new_full((len(tensors), *tensors[0].shape[:-2], height, width), value)
    for place, tensor in zip(whole, tensors, strict=True):
        place[..., : tensor.shape[-2], : tensor.shape[-1]] = tensor
    return whole


def to_full_size(outputs: torch.Tensor, batch: dict[str, Any]) -> list[torch.Tensor]:
    """Resize a network's outputs for a batch of ``pad_collate`` to each image's own size, without padding.

    ``outputs`` are logits (B, C, h, w), floating point, which are resized bilinearly (pixel centres at
    half-integers), or integer labels (B, h, w), resized by nearest neighbour; they may have another size than
    the batch, as with a network with a stride. Returns a list of (C, height, width) or (height, width), one
    per image, of the size in ``batch["size"]``, for SegmentationScores and ``encode_mask``.

    Raises ValueError for another number of images or dimensions.
    """
    images = batch["image"]
    logits = outputs.is_floating_point()
    if len(outputs) != len(images) or outputs.ndim != (4 if logits else 3):
        raise ValueError(
            f"outputs have shape {tuple(outputs.shape)} and type {outputs.dtype}; give logits (B, C, h, w) "
            f"or integer labels (B, h, w), B = {len(images)}"
        )
    resized = _resized(outputs, tuple(images.shape[-2:]))
    full = []
    for output, (height, width), size in zip(resized, batch["image_size"], batch["size"], strict=True):
        full.append(_resized(output[None, ..., :height, :width], size)[0])
    return full


def _resized(outputs: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """Resize logits (B, C, h, w) or labels (B, h, w)."""
    if tuple(outputs.shape[-2:]) == tuple(size):
        return outputs
    if outputs.is_floating_point():
        return interpolate(outputs, size, mode="bilinear", align_corners=False)
    labels = [resize_mask(one, *size) for one in outputs.cpu().numpy()]
    return torch.from_numpy(np.stack(labels)).to(outputs.device)
