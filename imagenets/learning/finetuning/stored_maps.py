"""Maps of annotated pictures by a frozen network, computed once, kept on disk, and read to train on."""

from __future__ import annotations

import math
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path

import numpy as np
import torch

from imagenets.classes import IGNORE
from imagenets.common.errors import InputError
from imagenets.common.whole_files import whole_file
from imagenets.learning.engine.inference import ArrayStep, Batch, Running, load_arrays, store_arrays
from imagenets.learning.engine.label_files import enlarged
from imagenets.learning.engine.label_grid import enlarged_maps, grid_size
from imagenets.learning.images import Images, Reading
from imagenets.learning.networks.backbones import Backbone
from imagenets.learning.networks.precision import run_network
from imagenets.learning.training.order import generator

MAPS, ABOUT_MAPS = "maps.npy", "maps.npz"  # files of a folder
VIEWS = 2  # a picture as it is, and mirrored


@dataclass(frozen=True)
class StoredMaps:
    """Maps of n pictures in ``folder``, each as it is and mirrored, and what is known of them.

    The file MAPS (R, C) float16 has a row for each place: picture by picture, the map as it is, line by line,
    and then the mirrored one. ``grids`` (n, 2) are the maps' sizes. ``labels`` (L,) int16, in the same order,
    are those of the places on the grid of stride 8, and ``moments`` (n, 2, 2, C) float64 the sums of each
    channel and of its squares over that grid, of either view.
    """

    folder: Path
    stride: int
    grids: np.ndarray
    labels: np.ndarray
    moments: np.ndarray

    @property
    def channels(self) -> int:
        """Number of channels C."""
        return int(self.moments.shape[-1])

    @cached_property
    def places(self) -> np.ndarray:
        """Number of places (n,) of each map."""
        places: np.ndarray = np.prod(self.grids, axis=1)
        return places

    @cached_property
    def fine_places(self) -> np.ndarray:
        """Number of places (n,) of each picture's grid of stride 8."""
        return np.array([math.prod(grid_size(grid, self.stride)) for grid in self.grids.tolist()])


def store_maps(
    backbone: Backbone, images: Images, reading: Reading, folder: Path, identity: str, running: Running
) -> StoredMaps:
    """Compute the maps of images with masks, if they are not in ``folder``; called on all processes.

    ``identity`` names the network's weights and how it is run. Raises InputError for images or masks that
    cannot be used, and for values beyond float16.
    """
    processes, parts = running.processes, folder / "maps-parts"
    if not processes.from_first((folder / MAPS).exists):
        step = map_step(backbone)
        store = partial(store_arrays, images, parts, identity, step, reading, running, with_masks=True)
        paths = processes.together(store)
        processes.from_first(partial(_join, paths, folder))
    if processes.first:
        shutil.rmtree(parts, ignore_errors=True)
    with np.load(folder / ABOUT_MAPS) as arrays:
        return StoredMaps(folder, backbone.stride, *(arrays[name] for name in ("grids", "labels", "moments")))


def map_step(backbone: Backbone) -> ArrayStep:
    """Find what StoredMaps has of each picture, for ``store_arrays``."""

    def step(batch: Batch) -> list[dict[str, torch.Tensor]]:
        views = [
            run_network(backbone, pictures, precision=batch.precision).half()
            for pictures in (batch.pictures, batch.pictures.flip(3))
        ]
        if not all(bool(view.isfinite().all()) for view in views):
            raise InputError(f"{backbone.name}: its maps hold values that float16 cannot")
        maps = torch.stack(views, 1)  # (B, 2, C, h, w)
        fine = [enlarged_maps(view.float(), backbone.stride).double() for view in views]
        moments = torch.stack(
            [torch.stack((one.sum((2, 3)), one.square().sum((2, 3))), 1) for one in fine], 1
        )  # (B, 2, 2, C)
        height, width = fine[0].shape[2:]
        found = []
        for of_one, sums, mask in zip(maps, moments, batch.shown_masks, strict=True):
            labels = [enlarged(view, height, width).ravel() for view in (mask, mask[:, ::-1])]
            found.append(
                {
                    "grids": torch.tensor(of_one.shape[2:])[None],
                    "maps": of_one.flatten(2).transpose(1, 2).flatten(0, 1),
                    "labels": torch.from_numpy(np.concatenate(labels).astype(np.int16)),
                    "moments": sums[None],
                }
            )
        return found

    return step


def _join(paths: Sequence[Path], folder: Path) -> None:
    """Make one file of all maps, that can be read here and there; MAPS is the last file to appear."""
    about = {name: load_arrays(paths, name) for name in ("grids", "labels", "moments")}
    with whole_file(folder / ABOUT_MAPS) as temporary, temporary.open("wb") as file:
        np.savez(file, allow_pickle=False, **about)
    shape = (VIEWS * int(about["grids"].prod(axis=1).sum()), about["moments"].shape[-1])
    with whole_file(folder / MAPS) as temporary:
        joined = np.lib.format.open_memmap(temporary, "w+", np.float16, shape)
        start = 0
        for path in paths:
            part = load_arrays([path], "maps")
            joined[start : start + len(part)] = part
            start += len(part)
        joined.flush()


@dataclass(frozen=True)
class MapReader:
    """Reads some of the stored ``pictures`` (their indices) to train on, mirrored in half of the cases.

    A picture is ``rows`` (R, C) float16 and ``labels`` (L,) int16, both longer than its own where another
    picture of the set has more (rows of 0, labels 1000), its map's size (2,), and ``moments`` (2, C).
    """

    stored: StoredMaps
    names: Sequence[str]
    pictures: np.ndarray
    seed: int

    def read(self, epoch: int, index: int) -> tuple[torch.Tensor, ...]:
        """Read one picture, in the view of an epoch."""
        picture = int(self.pictures[index])
        view = int(generator(self.seed, epoch, picture).random() < 0.5)
        return self.view(picture, view)

    def view(self, picture: int, view: int) -> tuple[torch.Tensor, ...]:
        """Read one view of one of all pictures."""
        stored = self.stored
        maps = np.load(stored.folder / MAPS, mmap_mode="r")
        rows = _padded(maps, stored.places, picture, view, 0)
        labels = _padded(stored.labels, stored.fine_places, picture, view, IGNORE)
        grid, moments = stored.grids[picture], stored.moments[picture, view]
        return rows, labels, torch.from_numpy(grid), torch.from_numpy(moments)

    def name(self, index: int) -> str:
        """Name an image to the user."""
        return self.names[int(self.pictures[index])]


def _padded(values: np.ndarray, places: np.ndarray, picture: int, view: int, filling: int) -> torch.Tensor:
    """The values of one view of a picture, and ``filling`` up to the length of the picture with the most."""
    start, count = VIEWS * places[:picture].sum() + view * places[picture], places[picture]
    found = np.full((places.max(), *values.shape[1:]), filling, values.dtype)
    found[:count] = values[start : start + count]
    return torch.from_numpy(found)
