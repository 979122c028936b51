"""The losses of the two recipes."""

from __future__ import annotations

import torch
from torch.nn.functional import cross_entropy, interpolate

from imagenets.classes import IGNORE
from imagenets.learning.processes import Processes


def annotated_loss(logits: torch.Tensor, masks: torch.Tensor, processes: Processes) -> torch.Tensor:
    """Cross-entropy of logits (B, N + 1, h, w) with masks (B, S, S) of labels 0..N, and 1000 to be ignored.

    At twice the logits' size (bilinear), to which the masks are brought by the nearest neighbour. The mean is
    over the pixels that are not ignored in the batches of all processes together, so that it does not depend
    on how many there are: what this process returns is its share of the sum, such that the mean over the
    processes is the mean over the pixels. 0 where every pixel is ignored.
    Source: docs/finetuning.md, Loss.
    """
    return _mean_over_labelled(interpolate(logits, scale_factor=2, mode="bilinear"), masks, processes)


def label_map_loss(logits: torch.Tensor, masks: torch.Tensor, processes: Processes) -> torch.Tensor:
    """Cross-entropy of logits (B, N + 1, h, w) with label maps (B, S, S) of 0..N, at half of their size.

    The logits are enlarged to it bilinearly, of the maps every second pixel is taken. Pixels of 1000, which
    self-training leaves out, do not count; the mean over the others is as in ``annotated_loss``.
    Source: docs/finetuning.md, Loss.
    """
    size = (masks.shape[1] // 2, masks.shape[2] // 2)
    return _mean_over_labelled(interpolate(logits, size, mode="bilinear"), masks, processes)


def _mean_over_labelled(logits: torch.Tensor, masks: torch.Tensor, processes: Processes) -> torch.Tensor:
    targets = _reduced(masks, logits.shape[2:])
    total = cross_entropy(logits, targets, ignore_index=IGNORE, reduction="sum")
    pixels = processes.sum((targets != IGNORE).sum())
    return total * processes.number / pixels.clamp(min=1)


def _reduced(masks: torch.Tensor, size: torch.Size | tuple[int, int]) -> torch.Tensor:
    """Bring labels (B, S, S) to (B, *size) by the nearest neighbour, the first pixel of each cell; int64."""
    return interpolate(masks[:, None].float(), tuple(size), mode="nearest")[:, 0].long()
