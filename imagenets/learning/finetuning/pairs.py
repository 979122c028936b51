"""Images and their masks to train on: listed, held against each other, read with augmentation."""

from __future__ import annotations

import hashlib
import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from imagenets.classes import Mode
from imagenets.common.errors import InputError, listed
from imagenets.dataset import check_pairs, folder_ids, image_files
from imagenets.images import read_image
from imagenets.learning.images import digest, where_masks_come_from
from imagenets.learning.networks.segmentation_network import ON_CLUSTERS, SEMI
from imagenets.learning.training.augmentation import as_tensor, cropped, cropped_mask, distort, random_crop
from imagenets.learning.training.order import generator
from imagenets.lists import mask_of
from imagenets.masks import decode_mask

_THREADS = 8


@dataclass(frozen=True)
class TrainingPairs:
    """Images ``<wnid>/<name>`` below ``folder``, with a mask each below ``masks``, sorted by path.

    ``names`` is an array of bytes: a million objects would be copied into every worker.
    """

    folder: Path
    masks: Path
    names: np.ndarray
    classes: int
    recipe: str

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self.names)

    def image_name(self, index: int) -> str:
        """Return an image's ``<wnid>/<name>``."""
        return os.fsdecode(bytes(self.names[index]))

    def mask_path(self, index: int) -> Path:
        """Return the file of an image's mask."""
        return self.masks / mask_of(self.image_name(index))

    def mask(self, index: int) -> np.ndarray:
        """Read a mask, (H, W) uint16, of labels 0..N and 1000 (ignore).

        Raises InputError, naming the file, for other labels.
        """
        return decode_mask(self.mask_path(index), self.classes)


def list_pairs(save_dir: Path | None, mode: Mode, recipe: str, masks: Path | None) -> TrainingPairs:
    """List what a recipe trains on, and refuse what does not fit, all at once, before the first step.

    Semi-supervised: train-semi and its masks; ON_CLUSTERS: images of ``train``, the label maps in ``masks``.
    Every mask must have its image, every image its mask, of the same size (by the headers only).
    Annotated masks are also decoded; label maps, of which there may be a million, when they are read.

    Raises InputError that names up to ten files and the number of all that are missing, misfit or foreign.
    """
    split = "train" if recipe in ON_CLUSTERS else "train-semi"
    folder = mode.set_folder(save_dir) / split
    if masks is None:
        masks = folder.with_name(f"{split}-segmentation")
        if not masks.is_dir():
            raise InputError(f"{masks}: no masks; {where_masks_come_from(save_dir, mode)}")
    images = image_files(folder)
    folder_ids(mode, folder, images)  # refuses what is no class
    check_pairs(folder, images, masks)
    names = np.array([os.fsencode(name) for name in images])
    pairs = TrainingPairs(folder, masks, names, mode.classes, recipe)
    if recipe == SEMI:
        _check_labels(pairs)
    return pairs


def _check_labels(pairs: TrainingPairs) -> None:
    def problem(index: int) -> str:
        try:
            pairs.mask(index)
        except InputError as error:
            return str(error)
        return ""

    with ThreadPoolExecutor(_THREADS) as pool:
        problems = list(filter(None, pool.map(problem, range(len(pairs)))))
    if problems:
        raise InputError(f"{len(problems)} masks cannot be used:\n{listed(problems)}")


@dataclass(frozen=True)
class Augmented:
    """Reads pairs as a recipe augments them: the picture (3, S, S) uint8, its labels (S, S) int16.

    A random part, of at least ``smallest`` of the area, is resized to S × S, and mirrored in half of the
    cases; the semi-supervised recipe also changes the colours and blurs.
    Source: docs/finetuning.md, Augmentation.
    """

    pairs: TrainingPairs
    side: int
    smallest: float
    seed: int

    def read(self, epoch: int, index: int) -> tuple[torch.Tensor, ...]:
        """Read one pair, in the augmentation of an epoch."""
        labels = self.pairs.mask(index)
        image = read_image(self.pairs.folder / self.pairs.image_name(index), labels.shape)
        random = generator(self.seed, epoch, index)
        crop = random_crop(random, *image.size, (self.smallest, 1.0))
        picture = cropped(image, crop, self.side)
        if self.pairs.recipe == SEMI:
            picture = distort(random, picture)
        mask = cropped_mask(labels, crop, self.side).astype(np.int16)
        return as_tensor(picture), torch.from_numpy(mask)

    def name(self, index: int) -> str:
        """Name an image to the user."""
        return str(self.pairs.folder / self.pairs.image_name(index))


def masks_digest(pairs: TrainingPairs) -> str:
    """Digest of the bytes of all masks, in order: other labels make another run.

    Raises OSError when a mask cannot be read.
    """

    def of_one(index: int) -> bytes:
        return hashlib.blake2b(pairs.mask_path(index).read_bytes(), digest_size=16).digest()

    with ThreadPoolExecutor(_THREADS) as pool:
        return digest(pool.map(of_one, range(len(pairs))))
