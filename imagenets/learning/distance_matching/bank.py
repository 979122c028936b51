"""Distance matching: classes of pixels by the nearest embeddings of annotated regions.

A network that has seen no label is judged: the images of train-semi yield, for each label in their masks, one
embedding; each pixel of another image takes the label that its nearest embeddings vote for. Source:
docs/methods.md, Distance matching.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from zipfile import BadZipFile

import numpy as np
import torch

from imagenets.classes import IGNORE, Mode
from imagenets.common.errors import InputError
from imagenets.common.whole_files import whole_file
from imagenets.learning.distance_matching.neighbours import Bank, label_maps, unit_vectors
from imagenets.learning.distance_matching.patches import PatchBank, labels_by_shares
from imagenets.learning.engine.inference import ENGINE, ArrayStep, Batch, LabelStep, load_arrays
from imagenets.learning.engine.label_files import enlarged
from imagenets.learning.engine.label_grid import enlarged_maps
from imagenets.learning.networks.backbones import Backbone

# Raised by hand whenever banks or labels change.
CODE = f"{ENGINE}, distance matching 1"


def embeddings_of(maps: torch.Tensor, stride: int, masks: list[np.ndarray]) -> list[dict[str, torch.Tensor]]:
    """One embedding of each label in each mask: of maps (B, C, h, w) and the masks (H, W) that they lie on.

    The map is enlarged to the grid of stride 8, the mask reduced to it by the nearest neighbour from its full
    size. An embedding is the sum of the features where the mask has the label, divided by the number of all
    places, whatever their label; 1000 yields none, 0 (background) does. For each image ``embeddings``
    (n, C) float32 and ``labels`` (n,) int64, ascending.
    """
    features = enlarged_maps(maps, stride)
    grid = tuple(features.shape[2:])
    found = []
    for of_image, mask in zip(features.flatten(2), masks, strict=True):  # (C, P)
        places = torch.from_numpy(enlarged(mask, *grid).astype(np.int64)).to(maps.device).flatten()
        labels = torch.unique(places)
        labels = labels[labels != IGNORE]
        members = (places == labels[:, None]).to(of_image.dtype)  # (n, P)
        found.append({"embeddings": members @ of_image.T / len(places), "labels": labels})
    return found


def bank_step(backbone: Backbone) -> ArrayStep:
    """Find the embeddings of pictures with masks, for ``store_arrays`` and ``join_bank``."""
    return lambda batch: embeddings_of(batch.through(backbone), backbone.stride, batch.shown_masks)


def join_bank(paths: Sequence[Path], bank: Path) -> int:
    """Write the bank of stored embeddings, in their order, whole or not at all; returns how many they are.

    ``embeddings`` (M, C) float32 are unit vectors, ``labels`` (M,) int64. Raises InputError when there is
    none.
    """
    embeddings, labels = load_arrays(paths, "embeddings"), load_arrays(paths, "labels")
    if not len(labels):
        raise InputError(f"no mask has a label but {IGNORE}: there is nothing to match with")
    with whole_file(bank) as temporary, temporary.open("wb") as file:
        np.savez(file, embeddings=unit_vectors(embeddings), labels=labels)
    return len(labels)


def load_bank(path: Path, channels: int, neighbours: int, mode: Mode | None = None) -> Bank:
    """Read a bank, on the CPU, for a network with this many channels.

    Raises InputError, naming the file, when it is no bank, another network's, or of another mode, or has
    fewer embeddings than ``neighbours``.
    """
    try:
        with np.load(path) as arrays:
            embeddings, labels = arrays["embeddings"], arrays["labels"]
    except (ValueError, KeyError, EOFError, AttributeError, TypeError, BadZipFile) as error:
        raise InputError(f"{path}: no bank of embeddings; distance_matching.py writes one") from error
    if embeddings.ndim != 2 or labels.shape != embeddings.shape[:1] or not len(labels):
        raise InputError(f"{path}: no bank of embeddings; distance_matching.py writes one")
    if embeddings.shape[1] != channels:
        raise InputError(
            f"{path}: embeddings of {embeddings.shape[1]} numbers, but this backbone has {channels}; "
            "a bank belongs to the network that made it"
        )
    if neighbours > len(labels):
        raise InputError(
            f"{path}: {len(labels)} embeddings, fewer than the {neighbours} neighbours asked for"
        )
    if mode is not None and labels.max() > mode.classes:
        raise InputError(f"{path}: label {labels.max()} is no class of mode {mode.name}")
    return Bank(torch.from_numpy(embeddings.astype(np.float32)), torch.from_numpy(labels.astype(np.int64)))


def unusable_vectors(embeddings: torch.Tensor) -> str | None:
    """Say how many vectors (M, C) of a bank are zero or not finite; None where none is."""
    lengths = torch.linalg.vector_norm(embeddings, dim=1)
    zero, broken = int((lengths == 0).sum()), int((~lengths.isfinite()).sum())
    counts = [f"{number} {what}" for number, what in ((zero, "zero"), (broken, "not finite")) if number]
    return f"of {len(embeddings)} embeddings {' and '.join(counts)}" if counts else None


def label_step(
    backbone: Backbone, bank: Bank, neighbours: int, temperature: float, sharpen: bool = False
) -> LabelStep:
    """Label what each picture shows of its image by the bank: maps (H, W) on the grid of stride 8.

    ``sharpen`` spreads the votes along the picture's edges and labels every pixel.
    """
    if not sharpen:
        find = partial(
            label_maps, stride=backbone.stride, bank=bank, neighbours=neighbours, temperature=temperature
        )
        return lambda batch: find(batch.through(backbone))
    whole = torch.ones_like(bank.labels, dtype=torch.float32)
    votes = PatchBank(bank.embeddings, bank.labels[:, None], whole[:, None])

    def step(batch: Batch) -> list[torch.Tensor]:
        maps = enlarged_maps(batch.through(backbone), backbone.stride)
        return labels_by_shares(batch, maps, votes, neighbours, temperature, backbone)

    return step
