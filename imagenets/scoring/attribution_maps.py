"""Attribution maps on disk: one ``.npy`` per map, or one ``.npz`` or ``.safetensors`` per class."""

from __future__ import annotations

import zipfile
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from imagenets.common.errors import InputError

# Errors of reading a damaged array.
_BROKEN = (
    *(ValueError, EOFError, SyntaxError, MemoryError, OverflowError, KeyError),
    *(zipfile.BadZipFile, zlib.error),
)


class MapFile(NamedTuple):
    """Where a map lies: a file of its own, or under ``key`` in an archive."""

    path: Path
    key: str | None = None

    def __str__(self) -> str:
        """Name it in messages."""
        return str(self.path) if self.key is None else f"{self.path}: {self.key}"


def find_maps(folder: Path, names: Sequence[str]) -> tuple[list[MapFile], list[str]]:
    """Find the map of every mask ``<wnid>/<name>.png``, and list masks with no map or several.

    It is ``<folder>/<wnid>/<name>.npy``, or the array ``<name>`` in ``<folder>/<wnid>.npz`` (or
    ``.safetensors``), or in the one such file in the folder ``<folder>/<wnid>``.

    Raises InputError for an archive that cannot be read.
    """
    archives = {wnid: _archive_keys(folder, wnid) for wnid in {name.partition("/")[0] for name in names}}
    found, problems = [], []
    for name in names:
        wnid, _, file = name.removesuffix(".png").partition("/")
        places = [MapFile(path, file) for path, keys in archives[wnid].items() if file in keys]
        own = folder / wnid / f"{file}.npy"
        if own.exists():
            places.append(MapFile(own))
        if not places:
            problems.append(f"{own}: no such attribution map")
        elif len(places) > 1:
            problems.append(f"{places[0]}: there is another map of this image, {places[1]}; keep one")
        found += places[:1]
    return found, problems


def _archive_keys(folder: Path, wnid: str) -> dict[Path, set[str]]:
    """List the arrays of every archive that holds maps of a class."""
    places = [folder / f"{wnid}.npz", folder / f"{wnid}.safetensors"]
    places += sorted([*(folder / wnid).glob("*.npz"), *(folder / wnid).glob("*.safetensors")])
    return {path: _keys(path) for path in places if path.exists()}


def _keys(path: Path) -> set[str]:
    if path.suffix == ".safetensors":
        with _tensors(path, str(path)) as archive:
            return set(archive.keys())
    try:
        with zipfile.ZipFile(path) as archive:
            return {name.removesuffix(".npy") for name in archive.namelist()}
    except zipfile.BadZipFile as error:
        raise InputError(
            f"{path}: not a complete .npz archive ({error}); save it again with numpy.savez"
        ) from error


def load_map(file: MapFile) -> np.ndarray:
    """Read an array; never an object, because reading one runs code from the file.

    Raises InputError if it is damaged; OSError if it cannot be opened.
    """
    if file.path.suffix == ".safetensors":
        with _tensors(file.path, str(file)) as tensors:
            return np.asarray(tensors.get_tensor(file.key))
    with file.path.open("rb") as stream:
        try:
            if file.key is not None:
                with np.load(stream, allow_pickle=False) as archive:
                    return np.asarray(archive[file.key])
            array: np.ndarray = np.lib.format.read_array(stream, allow_pickle=False)
        except _BROKEN as error:
            reason = str(error).partition("\n")[0]
            raise InputError(
                f"{file}: not a complete .npy array ({reason}); save it again with numpy.save"
            ) from error
        if stream.read(1):
            raise InputError(f"{file}: more than one .npy array; save one map a file, or many in one .npz")
    return array


@contextmanager
def _tensors(path: Path, where: str) -> Iterator[Any]:
    """Open a .safetensors file; InputError if it, or what is read from it, cannot be read."""
    try:
        from safetensors import SafetensorError, safe_open
    except ImportError as error:
        raise InputError(
            f"{where}: reading .safetensors needs a package; run: bash setup.sh methods"
        ) from error
    try:
        with safe_open(path, framework="numpy") as archive:
            yield archive
    except (SafetensorError, TypeError, AttributeError) as error:  # TypeError: bfloat16, which NumPy lacks
        raise InputError(
            f"{where}: not complete, or not of float32 or float16 ({error}); save it again"
        ) from error
