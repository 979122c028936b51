"""Distance matching: classes of pixels by the nearest vectors of annotated pictures, and the files of these.

A network that has seen no label is judged. The images of train-semi yield a bank of regions, one embedding of
each label in each mask, or of patches; each pixel of another image takes the label that its nearest vectors
vote for. Source: docs/methods.md, Distance matching.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
import torch

from imagenets.classes import IGNORE, Mode
from imagenets.common.errors import InputError
from imagenets.common.whole_files import whole_file
from imagenets.learning.distance_matching import patches
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
    """Find the embeddings of pictures with masks, for ``store_arrays``."""
    return lambda batch: embeddings_of(batch.through(backbone), backbone.stride, batch.shown_masks)


AnyBank = Bank | PatchBank


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


@dataclass(frozen=True)
class BankKind:
    """How a kind of bank is made and used, and with what ``neighbours`` and ``temperature`` by default.

    - ``arrays`` of its file: ``embeddings`` (M, C) float32 are unit vectors, ``labels`` int64.
    - ``step(backbone, per_picture)``: what pictures with masks bring to it, for ``store_arrays``.
    - ``label_step(backbone, bank, neighbours, temperature, sharpen)``: label pictures by it.
    """

    noun: str
    arrays: Sequence[str]
    neighbours: int
    temperature: float
    step: Callable[[Backbone, int], ArrayStep]
    label_step: Callable[[Backbone, Any, int, float, bool], LabelStep]


REGIONS, PATCHES = "regions", "patches"
KINDS = {
    REGIONS: BankKind(
        "embeddings",
        ("embeddings", "labels"),
        10,
        0.07,
        lambda backbone, per_picture: bank_step(backbone),
        label_step,
    ),
    PATCHES: BankKind(
        "patches",
        ("embeddings", "counts", "labels", "shares"),
        30,
        0.02,
        patches.bank_step,
        patches.label_step,
    ),
}


def join_bank(kind: BankKind, paths: Sequence[Path], bank: Path) -> int:
    """Write the bank of what was stored, in order, whole or not at all; returns how many vectors it has.

    Raises InputError when there is none.
    """
    arrays: dict[str, Any] = {name: load_arrays(paths, name) for name in kind.arrays}
    number = len(arrays["embeddings"])
    if not number:
        raise InputError(f"no mask has a label but {IGNORE}: there is nothing to match with")
    if kind is KINDS[REGIONS]:
        arrays["embeddings"] = unit_vectors(arrays["embeddings"])
    with whole_file(bank) as temporary, temporary.open("wb") as file:
        np.savez(file, **arrays)
    return number


def kind_of_file(path: Path) -> str:
    """Kind of a bank, by its arrays. Raises InputError, naming the file, where it is no bank."""
    with _opened(path) as arrays:
        return PATCHES if "shares" in arrays else REGIONS


def load_bank(path: Path, channels: int, neighbours: int, mode: Mode | None = None) -> AnyBank:
    """Read a bank of either kind, on the CPU, for a network with this many channels.

    Raises InputError, naming the file, when it is no bank, another network's, or of another mode, or has
    fewer vectors than ``neighbours``.
    """
    kind = KINDS[kind_of_file(path)]
    with _opened(path) as file:
        arrays = {name: file[name] for name in kind.arrays}
        embeddings = arrays["embeddings"].astype(np.float32, copy=False)
        labels = arrays["labels"].astype(np.int64, copy=False)
        counts = arrays.get("counts", np.ones_like(labels))
        if embeddings.ndim != 2 or counts.shape != embeddings.shape[:1] or not len(counts):
            raise ValueError("arrays of other shapes")
    if embeddings.shape[1] != channels:
        raise InputError(
            f"{path}: {kind.noun} of {embeddings.shape[1]} channels, but this backbone has {channels}; "
            "a bank belongs to the network that made it"
        )
    if neighbours > len(embeddings):
        raise InputError(
            f"{path}: {len(embeddings)} {kind.noun}, fewer than the {neighbours} neighbours asked for"
        )
    if mode is not None and labels.max() > mode.classes:
        raise InputError(f"{path}: label {labels.max()} is no class of mode {mode.name}")
    if "shares" not in arrays:
        return Bank(torch.from_numpy(embeddings), torch.from_numpy(labels))
    owner = np.repeat(np.arange(len(counts)), counts)
    column = np.arange(len(labels)) - np.repeat(np.cumsum(counts) - counts, counts)
    of_patches = np.zeros((len(counts), counts.max()), np.int64)
    shares = np.zeros(of_patches.shape, np.float32)
    of_patches[owner, column], shares[owner, column] = labels, arrays["shares"]
    return PatchBank(*map(torch.from_numpy, (embeddings, of_patches, shares)))


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    """Open a bank's file. Raises InputError, naming the file, where it is no bank."""
    try:
        with np.load(path) as arrays:
            yield arrays
    except FileNotFoundError as error:
        raise InputError(f"{path}: no such bank") from error
    except (ValueError, KeyError, EOFError, AttributeError, TypeError, BadZipFile) as error:
        raise InputError(f"{path}: no bank of embeddings; distance_matching.py writes one") from error
