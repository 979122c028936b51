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

    Only a few of the C maps are enlarged at a time, ``at_once`` values or one map, and each pixel keeps the
    best label so far; the values are those of ``interpolate`` on the whole, for its channels do not mix. So
    10,000 × 8,000 pixels of 920 labels need a few maps of that size, 1.1 GB together, not 290 GB. Of equal
    logits the lowest label wins.
    """
    return _largest(logits, size, at_once)[0]


def label_map_and_confidence(
    logits: torch.Tensor, size: tuple[int, int], at_once: int = _AT_ONCE, sigmoid: bool = False
) -> tuple[torch.Tensor, torch.Tensor]:
    """Do what ``label_map`` does, and return the probability of each pixel's label too: (H, W) float32.

    It is the softmax over all C enlarged logits, summed up a few maps at a time, or the ``sigmoid`` of the
    largest.
    """
    labels, best, log_sum = _largest(logits, size, at_once, with_sum=not sigmoid)
    return labels, best.sigmoid() if log_sum is None else (best - log_sum).exp()


def _largest(
    logits: torch.Tensor, size: tuple[int, int], at_once: int, with_sum: bool = False
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
    """Find labels (H, W) int32, their enlarged logits and, if asked for, the logsumexp of all logits."""
    best = torch.full(size, -torch.inf, device=logits.device)
    labels = torch.zeros(size, dtype=torch.int32, device=logits.device)
    log_sum = torch.full_like(best, -torch.inf) if with_sum else None
    labels_at_once = max(1, at_once // (size[0] * size[1]))
    for first in range(0, len(logits), labels_at_once):
        few = logits[None, first : first + labels_at_once].float().contiguous()
        maps = interpolate(few, size, mode="bilinear")[0]
        if log_sum is not None:
            log_sum = torch.logaddexp(log_sum, maps.logsumexp(0))
        if len(maps) == 1:  # max() over one map takes several times as long
            value = maps[0]
            labels.masked_fill_(value > best, first)
        else:
            value, label = maps.max(0)
            labels = torch.where(value > best, label.to(torch.int32) + first, labels)
        torch.maximum(best, value, out=best)
    return labels, best, log_sum
