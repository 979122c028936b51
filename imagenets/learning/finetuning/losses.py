"""The losses of the recipes."""

from __future__ import annotations

import torch
from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy, interpolate

from imagenets.classes import BACKGROUND, IGNORE
from imagenets.learning.processes import Processes

# Of the pixels of objects. Background is most of a picture, and all that counts of one whose foreground was
# left out: weighted the same, outlines become too narrow.
OBJECT_WEIGHT = 3.0


def annotated_loss(logits: torch.Tensor, masks: torch.Tensor, processes: Processes) -> torch.Tensor:
    """Cross-entropy of logits (B, N + 1, h, w) with masks (B, S, S) of labels 0..N, and 1000 to be ignored.

    At twice the logits' size (bilinear), to which the masks are brought by the nearest neighbour. The mean is
    over the pixels that are not ignored in the batches of all processes together, so that it does not depend
    on how many there are: what this process returns is its share of the sum, such that the mean over the
    processes is the mean over the pixels. 0 where every pixel is ignored.
    Source: docs/finetuning.md, Loss.
    """
    return _cross_entropy(interpolate(logits, scale_factor=2, mode="bilinear"), masks, processes)


def label_map_loss(logits: torch.Tensor, masks: torch.Tensor, processes: Processes) -> torch.Tensor:
    """Cross-entropy of logits (B, N + 1, h, w) with label maps (B, S, S) of 0..N, at half of their size.

    The logits are enlarged to it bilinearly, of the maps every second pixel is taken. Pixels of 1000 do not
    count; the mean over the others is as in ``annotated_loss``.
    Source: docs/finetuning.md, Loss.
    """
    size = (masks.shape[1] // 2, masks.shape[2] // 2)
    return _cross_entropy(interpolate(logits, size, mode="bilinear"), masks, processes)


def object_loss(logits: torch.Tensor, masks: torch.Tensor, processes: Processes) -> torch.Tensor:
    """Loss of self-training's logits (B, N + 1, h, w) with label maps (B, S, S), at the logits' size.

    Binary cross-entropy of the foreground, whose logit is the largest of the labels' less the background's,
    with foreground weighted OBJECT_WEIGHT times, and cross-entropy of the labels 1..N on the foreground. Both
    are sums over the pixels that are not 1000 (ignore), divided as in ``annotated_loss``.
    Source: docs/methods.md, Self-training on the clusters.
    """
    targets = _reduced(masks, logits)
    counted = targets != IGNORE
    inside = counted & (targets > BACKGROUND)
    found = logits[:, 1:].amax(1) - logits[:, 0]
    total = binary_cross_entropy_with_logits(
        found, inside.to(found.dtype), counted.to(found.dtype), reduction="sum",
        pos_weight=found.new_tensor(OBJECT_WEIGHT),
    )  # fmt: skip
    of_labels = torch.where(inside, targets - 1, IGNORE)
    total = total + cross_entropy(logits[:, 1:], of_labels, ignore_index=IGNORE, reduction="sum")
    return _mean(total, targets, processes)


def _cross_entropy(logits: torch.Tensor, masks: torch.Tensor, processes: Processes) -> torch.Tensor:
    targets = _reduced(masks, logits)
    total = cross_entropy(logits, targets, ignore_index=IGNORE, reduction="sum")
    return _mean(total, targets, processes)


def _mean(total: torch.Tensor, targets: torch.Tensor, processes: Processes) -> torch.Tensor:
    return total * processes.number / processes.sum((targets != IGNORE).sum()).clamp(min=1)


def _reduced(masks: torch.Tensor, logits: torch.Tensor) -> torch.Tensor:
    """Bring labels (B, S, S) to the logits' size by the nearest neighbour; int64."""
    return interpolate(masks[:, None].float(), logits.shape[2:], mode="nearest")[:, 0].long()
