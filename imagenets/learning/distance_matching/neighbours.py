"""Labels of vectors by their nearest neighbours in a bank of labelled vectors."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property, lru_cache

import numpy as np
import torch
from torch.nn.functional import interpolate

from imagenets.learning.engine.label_grid import grid_size

# Bytes of the largest matrix of cosines; its neighbours are found beside it. What is small stays in a CPU's
# cache and needs no fresh memory for each block; GPUs want few and large ones.
_SCORE_BYTES = {"cpu": 24 << 20, "cuda": 512 << 20}
_ROWS_AT_ONCE = 64  # of the grid, at least, whose products with the bank are taken together
_GROUP = 32  # scores whose maximum is looked at first
_SHORTEST = 1e-12  # length of a vector; what is shorter counts as that


@dataclass(frozen=True)
class Bank:
    """``embeddings`` (M, C) float32, unit vectors, and their ``labels`` (M,) int64, on one device."""

    embeddings: torch.Tensor
    labels: torch.Tensor

    @cached_property
    def highest(self) -> int:
        """The highest label; read once, for reading it waits for the device."""
        return int(self.labels.max())

    def to(self, device: torch.device) -> Bank:
        """Return the bank on a device."""
        return Bank(self.embeddings.to(device), self.labels.to(device))


def unit_vectors(vectors: np.ndarray) -> np.ndarray:
    """Divide vectors (M, C) by their length, in float32; vectors of zeros stay what they are."""
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    units: np.ndarray = np.divide(vectors, lengths, where=lengths > 0, out=np.zeros_like(vectors))
    return units


def label_maps(
    maps: torch.Tensor, stride: int, bank: Bank, neighbours: int, temperature: float
) -> torch.Tensor:
    """Label each place of the grid of stride 8 by its nearest neighbours: (B, C, h, w) → (B, H, W) int64.

    The cosine with every vector of the bank is taken of the map enlarged bilinearly; of the ``neighbours``
    largest, each votes for its label with exp(cosine / temperature); the label with most votes wins, the
    lowest of equals. Source: docs/methods.md, Distance matching.
    """
    grid = grid_size(maps.shape[-2:], stride)
    labels = [
        _vote(*_largest(cosines, neighbours), bank, temperature)
        for cosines in _cosines(maps, grid, bank.embeddings)
    ]
    return torch.cat(labels).reshape(-1, *grid)


def nearest(vectors: torch.Tensor, bank: torch.Tensor, neighbours: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Find the largest cosines of each vector (P, C) with unit vectors (M, C): values and places, (P, k).

    Of equal ones those that stand first in the bank count; ``neighbours`` is at most M. The bank is searched
    in blocks of bounded memory.
    """
    vectors = vectors.float()
    units = vectors / torch.linalg.vector_norm(vectors, dim=1, keepdim=True).clamp_min(_SHORTEST)
    rows = max(neighbours, _SCORE_BYTES[bank.device.type] // (4 * len(vectors)))
    values = units.new_empty(len(units), 0)
    places = torch.empty(len(units), 0, dtype=torch.int64, device=bank.device)
    for start in range(0, len(bank), rows):
        few, where = _largest_by_groups(units @ bank[start : start + rows].T, neighbours)
        values, places = torch.cat((values, few), 1), torch.cat((places, where + start), 1)
        if values.shape[1] > neighbours:
            # In the order of the bank, so that of equal ones the first count.
            places, order = places.sort(dim=1)
            values, order = _largest(values.gather(1, order), neighbours)
            places = places.gather(1, order)
    return values, places


def _cosines(maps: torch.Tensor, grid: tuple[int, int], bank: torch.Tensor) -> Iterator[torch.Tensor]:
    """Cosines of the places of maps (B, C, h, w), enlarged to a grid (H, W), with unit vectors (M, C).

    They come in blocks (P, M) of bounded memory: places by rows, rows by pictures. Enlarging is linear, as
    are products with the bank: so the products of the small map are enlarged, not its features, and a
    ResNet's grid needs a sixteenth of the multiplications. Lengths are those of the enlarged features.
    """
    features = maps.permute(0, 2, 3, 1)  # (B, h, w, C)
    room = max(1, _SCORE_BYTES[maps.device.type] // (4 * grid[1] * len(bank)))  # rows of the grid in a block
    if grid == tuple(maps.shape[2:]):
        for lines in torch.split(features.flatten(0, 1), room):
            vectors = lines.flatten(0, 1)
            lengths = torch.linalg.vector_norm(vectors, dim=1, keepdim=True)
            yield (vectors @ bank.T).div_(lengths.clamp_min(_SHORTEST))
        return
    rows = _enlarging(maps.shape[2], grid[0])
    columns = torch.from_numpy(_enlarging(maps.shape[3], grid[1])).to(maps.device)
    for pictures in torch.split(features, max(1, room // grid[0])):
        # The rows of the small map between two blocks are needed by both: few are multiplied twice.
        at_once = max(room, _ROWS_AT_ONCE)
        for start in range(0, len(rows), at_once):
            block = rows[start : start + at_once]
            used = np.flatnonzero(block.any(0))
            first, last = int(used[0]), int(used[-1]) + 1
            vectors = pictures[:, first:last]
            weights = torch.from_numpy(block[:, first:last].copy()).to(maps.device)
            products = vectors.reshape(-1, vectors.shape[3]) @ bank.T
            products = products.reshape(*vectors.shape[:2], -1)  # (n, r, w·M)
            for part in torch.split(weights, room):
                yield _enlarged(products, vectors, part, columns)


def _enlarged(
    products: torch.Tensor, features: torch.Tensor, rows: torch.Tensor, columns: torch.Tensor
) -> torch.Tensor:
    """Cosines (n·R·W, M) of features (n, r, w, C), by their products with the bank (n, r, w·M).

    Matrices (R, r) and (W, w) enlarge both. A vector between two neighbours is a·u + b·v, and its squared
    length a²·u² + b²·v² + 2ab·uv.
    """
    number, height, width, channels = features.shape
    cosines = columns @ (rows @ products).reshape(number * len(rows), width, -1)
    lines = (rows @ features.reshape(number, height, -1)).reshape(-1, width, channels)
    squares = lines.square().sum(2) @ columns.square().T
    squares += (lines[:, 1:] * lines[:, :-1]).sum(2) @ (2 * columns[:, 1:] * columns[:, :-1]).T
    lengths = squares.clamp_min_(0).sqrt_().clamp_min(_SHORTEST)
    return cosines.div_(lengths[:, :, None]).flatten(0, 1)


@lru_cache(maxsize=256)
def _enlarging(old: int, new: int) -> np.ndarray:
    """Return the matrix (new, old) float32 by which ``interpolate`` enlarges a line bilinearly."""
    lines = interpolate(torch.eye(old)[None, None], size=(new, old), mode="bilinear", align_corners=False)
    matrix: np.ndarray = lines[0, 0].numpy()
    return matrix


def _largest_by_groups(scores: torch.Tensor, neighbours: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Find what ``_largest`` finds, faster among many: first the groups that hold the largest, then these.

    With fewer than ``neighbours`` columns all are returned.
    """
    neighbours = min(neighbours, scores.shape[1])
    # Columns j, j + width, j + 2·width, … are a group, so that one vectorised maximum finds the tops of all.
    width = scores.shape[1] // _GROUP
    if width <= 2 * neighbours:
        return _largest(scores, neighbours)
    grouped = scores[:, : width * _GROUP].view(len(scores), _GROUP, width)
    tops, groups = grouped.amax(1).topk(neighbours + 1, dim=1)
    members = torch.arange(0, width * _GROUP, width, device=scores.device)
    rest = torch.arange(width * _GROUP, scores.shape[1], device=scores.device)
    candidates = (groups[:, :-1, None] + members).flatten(1)
    candidates = torch.cat((candidates, rest.expand(len(scores), -1)), 1)
    values, order = scores.gather(1, candidates).topk(neighbours + 1, dim=1)
    # A group left out has no larger score than the last group taken, and candidates stand in no order: where
    # the last one inside is equal to the first outside, look at all.
    tied = ((tops[:, -2] == tops[:, -1]) | (values[:, -2] == values[:, -1])).nonzero().flatten()
    values, places = values[:, :-1].clone(), candidates.gather(1, order[:, :-1])
    if len(tied):
        values[tied], places[tied] = _largest(scores[tied], neighbours)
    return values, places


def _largest(scores: torch.Tensor, neighbours: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Find the largest of each row (P, M), values and places (P, k); of equal ones the first."""
    if neighbours == scores.shape[1]:
        return scores, torch.arange(neighbours, device=scores.device).expand(len(scores), -1)
    values, places = scores.topk(neighbours + 1, dim=1)
    # topk takes any of equal scores: where the last one inside is equal to the first outside, look again.
    tied = (values[:, -2] == values[:, -1]).nonzero().flatten()
    if len(tied):
        ordered = scores[tied].sort(dim=1, descending=True, stable=True)
        values[tied], places[tied] = ordered.values[:, : neighbours + 1], ordered.indices[:, : neighbours + 1]
    return values[:, :-1], places[:, :-1]


def _vote(scores: torch.Tensor, places: torch.Tensor, bank: Bank, temperature: float) -> torch.Tensor:
    """Label with most votes: cosines (P, k) and places in the bank (P, k) → (P,) int64."""
    # Relative to the nearest, so that no temperature overflows; the winner is the same.
    weights = ((scores - scores.amax(dim=1, keepdim=True)) / temperature).exp()
    votes = weights.new_zeros(len(scores), bank.highest + 1)
    return votes.scatter_add_(1, bank.labels[places], weights).argmax(dim=1)
