"""Labels of vectors by their nearest neighbours in a bank of labelled vectors."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch.nn.functional import interpolate

_SCORE_BYTES = 512 << 20  # of the largest matrix of cosines; its neighbours are found beside it


@dataclass(frozen=True)
class Bank:
    """``embeddings`` (M, C) float32, unit vectors, and their ``labels`` (M,) int64, on one device."""

    embeddings: torch.Tensor
    labels: torch.Tensor

    def to(self, device: torch.device) -> Bank:
        """Give the bank on a device."""
        return Bank(self.embeddings.to(device), self.labels.to(device))


def unit_vectors(vectors: np.ndarray) -> np.ndarray:
    """Divide vectors (M, C) by their length, in float32; vectors of zeros stay what they are."""
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    units: np.ndarray = np.divide(vectors, lengths, where=lengths > 0, out=np.zeros_like(vectors))
    return units


def grid_size(maps: torch.Tensor, stride: int) -> tuple[int, int]:
    """Size (rows, columns) of the grid of stride 8 on which labels are found, for a map (…, h, w)."""
    height, width = maps.shape[-2:]
    factor = max(stride, 8)
    return height * factor // 8, width * factor // 8


def enlarged_maps(maps: torch.Tensor, stride: int) -> torch.Tensor:
    """Enlarge maps (B, C, h, w) of this stride to the grid of stride 8: bilinear, align_corners False."""
    size = grid_size(maps, stride)
    if size == tuple(maps.shape[-2:]):
        return maps
    return interpolate(maps, size=size, mode="bilinear", align_corners=False)


def label_maps(
    maps: torch.Tensor, stride: int, bank: Bank, neighbours: int, temperature: float
) -> torch.Tensor:
    """Label each place of the grid of stride 8 by its nearest neighbours: (B, C, h, w) → (B, H, W) int64.

    The cosine with every vector of the bank is taken of the map enlarged bilinearly; of the ``neighbours``
    largest, each votes for its label with exp(cosine / temperature); the label with most votes wins, the
    lowest of equals. Source: docs/methods.md, Distance matching.
    """
    grid = grid_size(maps, stride)
    vectors = enlarged_maps(maps.float(), stride).flatten(2).transpose(1, 2).flatten(0, 1)  # (B·H·W, C)
    rows = max(1, _SCORE_BYTES // (4 * len(bank.labels)))
    labels = [
        _vote(*nearest(part, bank.embeddings, neighbours), bank.labels, temperature)
        for part in torch.split(vectors, rows)
    ]
    return torch.cat(labels).reshape(-1, *grid)


def nearest(vectors: torch.Tensor, bank: torch.Tensor, neighbours: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Find the largest cosines of each vector (P, C) with unit vectors (M, C): values and places, (P, k).

    Of equal ones those that stand first in the bank count; ``neighbours`` is at most M.
    """
    lengths = torch.linalg.vector_norm(vectors, dim=1, keepdim=True)
    scores = (vectors @ bank.T).div_(lengths.clamp_min(1e-12))
    if neighbours == len(bank):
        return scores, torch.arange(len(bank), device=bank.device).expand(len(vectors), -1)
    values, places = scores.topk(neighbours + 1, dim=1)
    # topk takes any of equal scores: where the last one inside is equal to the first outside, look again.
    tied = (values[:, -2] == values[:, -1]).nonzero().flatten()
    if len(tied):
        ordered = scores[tied].sort(dim=1, descending=True, stable=True)
        values[tied], places[tied] = ordered.values[:, : neighbours + 1], ordered.indices[:, : neighbours + 1]
    return values[:, :-1], places[:, :-1]


def _vote(
    scores: torch.Tensor, places: torch.Tensor, labels: torch.Tensor, temperature: float
) -> torch.Tensor:
    """Label with most votes: cosines (P, k) and places in the bank (P, k) → (P,) int64."""
    # Relative to the nearest, so that no temperature overflows; the winner is the same.
    weights = ((scores - scores.amax(dim=1, keepdim=True)) / temperature).exp()
    votes = weights.new_zeros(len(scores), int(labels.max()) + 1)
    return votes.scatter_add_(1, labels[places], weights).argmax(dim=1)
