"""From the logits of a small map to the labels of a whole image, within a bounded memory."""

from __future__ import annotations

import torch
from torch.nn.functional import interpolate

_AT_ONCE = 1 << 26  # values of enlarged logits that are held at a time: 256 MB


def reduced_size(size: tuple[int, int], longest: int) -> tuple[int, int]:
    """Size (height, width) at which an image's labels are found.

    Its own up to longest² pixels; above, the longer side becomes ``longest``, the other in proportion,
    rounded down. Source: docs/methods.md, Prediction.
    """
    height, width = size
    if height * width <= longest**2:
        return size
    if height > width:
        return longest, max(1, int(longest * width / height))
    return max(1, int(longest * height / width)), longest


def label_map(logits: torch.Tensor, size: tuple[int, int], at_once: int = _AT_ONCE) -> torch.Tensor:
    """Labels (H, W) int32 of logits (C, h, w): enlarged bilinearly to ``size`` (H, W), then the largest.

    Not all C maps are enlarged together but a few at a time, ``at_once`` values or one map, and each pixel
    keeps the best label so far: the values are those of ``interpolate`` on the whole, for its channels do not
    mix. Of equal logits the lowest label wins. So 10,000 × 8,000 pixels of 920 labels need not 290 GB but a
    few maps of that size: the largest logit, a map to compare, and the labels, 1.1 GB together.
    """
    labels_at_once = max(1, at_once // (size[0] * size[1]))
    best: torch.Tensor | None = None
    labels = torch.zeros(size, dtype=torch.int32, device=logits.device)
    for first in range(0, len(logits), labels_at_once):
        few = logits[None, first : first + labels_at_once].float().contiguous()
        value, label = _largest(interpolate(few, size, mode="bilinear")[0])
        if best is None:
            best = value
            labels += label if isinstance(label, int) else label.to(torch.int32)
            continue
        better = value > best
        torch.maximum(best, value, out=best)
        if isinstance(label, int):
            labels.masked_fill_(better, first + label)
        else:
            labels = torch.where(better, label.to(torch.int32) + first, labels)
    return labels


def _largest(maps: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | int]:
    """The largest of (k, H, W) maps at each place, and which it is: 0, without a map, where there is one."""
    if len(maps) == 1:
        return maps[0], 0
    largest = maps.max(0)
    return largest.values, largest.indices
