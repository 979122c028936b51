"""Dense retrieval: labels of patches by the most similar patches of annotated pictures.

The bank holds patches of train-semi, each with its shares of labels; a patch of another picture takes the
shares of its nearest neighbours, weighted by a softmax of their cosines. Source: Balazevic et al., Towards
In-context Scene Understanding, NeurIPS 2023 (Hummingbird); docs/frozen_features.md, Patches.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch.nn.functional import normalize

from imagenets.classes import IGNORE, MAX_LABEL
from imagenets.learning.distance_matching.neighbours import nearest
from imagenets.learning.engine.full_size import label_map, reduced_size
from imagenets.learning.engine.inference import ArrayStep, Batch, LabelStep
from imagenets.learning.engine.label_files import enlarged
from imagenets.learning.engine.sharpening import sharpened
from imagenets.learning.networks.backbones import Backbone

LONGEST = 1000  # pixels; larger images are labelled at this size, as in every prediction of shares or logits
PER_PICTURE = 100  # patches of a picture in the bank: 0.92 million in mode 919, 1.4 GB of 384 channels
_MOSTLY = 0.5  # a patch that is ignored in more than this share of its pixels has no place in the bank


@dataclass(frozen=True)
class PatchBank:
    """``embeddings`` (M, C) float32, unit vectors; ``labels`` and ``shares`` (M, S) of each patch's pixels.

    Shares are float32, sum up to 1, and are 0 where a patch has fewer than S labels.
    """

    embeddings: torch.Tensor
    labels: torch.Tensor
    shares: torch.Tensor

    def to(self, device: torch.device) -> PatchBank:
        """Move the bank to a device."""
        return PatchBank(self.embeddings.to(device), self.labels.to(device), self.shares.to(device))


class LabelledPatches(NamedTuple):
    """Patches of one picture: their ``places`` on its map (n,), and the labels of each one's pixels.

    ``counts`` (n,) is the number of labels of each; ``labels`` and ``shares`` (Σ counts,) list them in turn.
    """

    places: np.ndarray
    counts: np.ndarray
    labels: np.ndarray
    shares: np.ndarray


def label_patches(mask: np.ndarray, size: tuple[int, int], grid: tuple[int, int]) -> LabelledPatches:
    """Share out a mask (H, W) among the places of a map (h, w) of a picture of ``size`` (height, width).

    Mask, picture and map show the same part of an image. The mask is brought to the picture's size by the
    nearest neighbour; a place has the pixels whose upper left corners lie in its 1/h of the rows and 1/w of
    the columns. Ignored pixels (1000) are left out of the shares, and patches that mostly consist of them are
    left out altogether.
    """
    small = enlarged(mask, *size).astype(np.int64)
    rows, columns = (np.arange(length) * places // length for length, places in zip(size, grid, strict=True))
    cells = rows[:, None] * grid[1] + columns
    keys, pixels = np.unique(cells * (MAX_LABEL + 1) + small, return_counts=True)
    cell, label = np.divmod(keys, MAX_LABEL + 1)
    area = np.bincount(cells.ravel(), minlength=grid[0] * grid[1])
    counted = np.bincount(cell, pixels * (label != IGNORE), minlength=len(area))
    kept = (label != IGNORE) & (counted >= (1 - _MOSTLY) * area)[cell]
    places, counts = np.unique(cell[kept], return_counts=True)
    shares = pixels[kept] / counted[cell[kept]]
    return LabelledPatches(places, counts, label[kept], shares.astype(np.float32))


def choose_patches(patches: LabelledPatches, number: int, random: np.random.Generator) -> LabelledPatches:
    """Keep at most ``number`` patches of a picture, with rare labels and pure patches first.

    The score of a patch is the sum, over its labels, of how many of the picture's patches have that label;
    those of the smallest score · u are kept, u uniform in 0..1 for each.
    """
    owner = np.repeat(np.arange(len(patches.places)), patches.counts)
    score = np.bincount(owner, np.bincount(patches.labels)[patches.labels], len(patches.places))
    order = np.argsort(score * random.random(len(score)), kind="stable")
    kept = np.sort(order[:number])
    of_kept = np.isin(owner, kept)
    return LabelledPatches(
        patches.places[kept], patches.counts[kept], patches.labels[of_kept], patches.shares[of_kept]
    )


def bank_step(backbone: Backbone, per_picture: int = PER_PICTURE, seed: int = 0) -> ArrayStep:
    """Choose patches of pictures with masks, for ``store_arrays``.

    For each picture ``embeddings`` (n, C) float32, unit vectors, and ``counts``, ``labels`` and ``shares`` of
    ``LabelledPatches``.
    """

    def step(batch: Batch) -> list[dict[str, torch.Tensor]]:
        maps = batch.through(backbone)
        size, grid = (batch.pictures.shape[2], batch.pictures.shape[3]), (maps.shape[2], maps.shape[3])
        found = []
        for index, mask, of_one in zip(batch.indices, batch.shown_masks, maps.flatten(2), strict=True):
            patches = label_patches(mask, size, grid)
            chosen = choose_patches(patches, per_picture, np.random.default_rng((seed, index)))
            arrays = {name: torch.from_numpy(array) for name, array in chosen._asdict().items()}
            vectors = of_one.T[arrays.pop("places").to(maps.device)]
            found.append({"embeddings": normalize(vectors), **arrays})
        return found

    return step


def vote(
    vectors: torch.Tensor, bank: PatchBank, neighbours: int, temperature: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """Share the labels of each vector's neighbours: (P, C) → labels (n,) int64, ascending, and shares (P, n).

    The ``neighbours`` largest cosines c count with softmax(c / temperature).
    Labels without a vote are left out.
    """
    cosines, places = nearest(vectors, bank.embeddings, neighbours)
    weights = (cosines / temperature).softmax(dim=1)[:, :, None] * bank.shares[places]
    found = bank.labels[places]
    labels, column = torch.unique(found[weights > 0], return_inverse=True)
    columns = torch.zeros_like(found)
    columns[weights > 0] = column
    shares = weights.new_zeros(len(vectors), len(labels))
    return labels, shares.scatter_add_(1, columns.flatten(1), weights.flatten(1))


def label_step(
    backbone: Backbone, bank: PatchBank, neighbours: int, temperature: float, sharpen: bool = False
) -> LabelStep:
    """Label what each picture shows of its image: shares are enlarged bilinearly to it, the largest wins.

    ``sharpen`` spreads the shares along the picture's edges before.
    """

    def step(batch: Batch) -> list[torch.Tensor]:
        maps = batch.through(backbone)
        return labels_by_shares(batch, maps, bank, neighbours, temperature, backbone if sharpen else None)

    return step


def labels_by_shares(
    batch: Batch,
    maps: torch.Tensor,
    bank: PatchBank,
    neighbours: int,
    temperature: float,
    sharpen_for: Backbone | None,
) -> list[torch.Tensor]:
    """Label pictures by the votes for each place of their maps (B, C, h, w); see ``label_step``.

    ``sharpen_for`` is the network whose mean and std the pictures were normalised by; None: no sharpening.
    """
    found = []
    for of_one, picture, shown in zip(maps.flatten(2), batch.pictures, batch.shown, strict=True):
        labels, shares = vote(of_one.T, bank, neighbours, temperature)
        scores = shares.T.reshape(-1, *maps.shape[2:])
        if sharpen_for is not None:
            scores = sharpened(scores, picture, sharpen_for.mean, sharpen_for.std)
        best = label_map(scores, reduced_size(shown, LONGEST))
        found.append(labels[best.long()].int())
    return found
