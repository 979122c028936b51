"""From the logits of a small map to the labels of a whole image, within a bounded memory."""

from __future__ import annotations

from collections.abc import Iterator

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
    running = _Largest(size, logits.device)
    for first, maps in _enlarged(logits, size, at_once):
        running.update(maps, first)
    return running.labels


def label_map_and_confidence(
    logits: torch.Tensor, size: tuple[int, int], at_once: int = _AT_ONCE, sigmoid: bool = False
) -> tuple[torch.Tensor, torch.Tensor]:
    """Do what ``label_map`` does, and return the probability of each pixel's label too: (H, W) float32.

    It is the softmax over all C enlarged logits, summed up a few maps at a time, or the ``sigmoid`` of the
    largest.
    """
    running = _Largest(size, logits.device)
    log_sum: torch.Tensor | None = None
    for first, maps in _enlarged(logits, size, at_once):
        running.update(maps, first)
        if not sigmoid:
            of_these = maps.logsumexp(0)
            log_sum = of_these if log_sum is None else torch.logaddexp(log_sum, of_these)
    if log_sum is None:
        return running.labels, running.best.sigmoid()
    return running.labels, (running.best - log_sum).exp()


def _enlarged(
    logits: torch.Tensor, size: tuple[int, int], at_once: int
) -> Iterator[tuple[int, torch.Tensor]]:
    """Yield the number of the first of a few labels, and their enlarged maps (k, H, W) float32."""
    labels_at_once = max(1, at_once // (size[0] * size[1]))
    for first in range(0, len(logits), labels_at_once):
        few = logits[None, first : first + labels_at_once].float().contiguous()
        yield first, interpolate(few, size, mode="bilinear")[0]


class _Largest:
    """The largest logit so far at each pixel, and its label."""

    def __init__(self, size: tuple[int, int], device: torch.device) -> None:
        self.best = torch.full(size, -torch.inf, device=device)
        self.labels = torch.zeros(size, dtype=torch.int32, device=device)

    def update(self, maps: torch.Tensor, first: int) -> None:
        """Take the maps (k, H, W) of labels ``first``, ``first`` + 1, … into account."""
        if len(maps) == 1:  # max() over one map takes several times as long
            value, better = maps[0], maps[0] > self.best
            self.labels.masked_fill_(better, first)
        else:
            value, label = maps.max(0)
            better = value > self.best
            self.labels = torch.where(better, label.to(torch.int32) + first, self.labels)
        torch.maximum(self.best, value, out=self.best)
