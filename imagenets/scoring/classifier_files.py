"""A classifier's outputs on disk: logits, or class indices, of each image by its name."""

from __future__ import annotations

import csv
import zipfile
import zlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from imagenets.common.errors import InputError, listed
from imagenets.images import is_image

_FORMS = (
    "give .npz or .safetensors (an array for each image's name, or arrays names and logits), .npy beside a "
    "list of names, or .csv (name,prediction or name and a column for each class)"
)
_TABLES = ("logits", "predictions")


@dataclass(frozen=True)
class Outputs:
    """Outputs of a classifier for n images.

    ``names`` are as the file has them, ``values`` (n, C) floating point logits, or (n, K) int64 class
    indices, the most probable first.
    """

    path: Path
    names: tuple[str, ...]
    values: np.ndarray

    @property
    def are_logits(self) -> bool:
        """Are they logits, and not indices?"""
        return bool(self.values.dtype.kind == "f")


def read_outputs(path: Path, names: Sequence[str] | None = None) -> Outputs:
    """Read a classifier's outputs; ``names`` are those of the rows, for a file that has none.

    Raises InputError if it is not such a file, lacks names, names an image twice, or contains nan.
    """
    if not path.is_file():
        raise InputError(f"{path}: no such file; {_FORMS}")
    readers = {".csv": _read_csv, ".npy": _read_npy, ".npz": _read_npz, ".safetensors": _read_safetensors}
    if path.suffix not in readers:
        raise InputError(f"{path}: not a supported format; {_FORMS}")
    try:
        own_names, values = readers[path.suffix](path)
    except (ValueError, EOFError, KeyError, zipfile.BadZipFile, zlib.error) as error:
        raise InputError(f"{path}: cannot be read as {path.suffix} ({error}); {_FORMS}") from error
    rows = own_names if own_names is not None else names
    if rows is None:
        raise InputError(f"{path}: does not name its images; also give a file of their names, one a line")
    return _checked(path, tuple(rows), values)


def _checked(path: Path, names: tuple[str, ...], values: np.ndarray) -> Outputs:
    if values.ndim == 1:
        values = values[:, None]
    if values.ndim != 2 or len(values) != len(names) or not values.size:
        raise InputError(
            f"{path}: values of shape {values.shape} for {len(names)} names; there must be a row for each"
        )
    if values.dtype.kind not in "fiu":
        raise InputError(
            f"{path}: values of type {values.dtype}; they must be floating point logits or integer indices"
        )
    duplicates = [name for name, count in Counter(names).items() if count > 1]
    if duplicates:
        raise InputError(
            f"{path}: {len(duplicates)} images are in it more than once:\n{listed(duplicates)}", duplicates
        )
    if values.dtype.kind != "f":
        return Outputs(path, names, values.astype(np.int64))
    if values.shape[1] == 1:
        raise InputError(f"{path}: one floating point value for each image; class indices must be integers")
    bad = [names[i] for i in np.flatnonzero(np.isnan(values).any(axis=1))]
    if bad:
        raise InputError(f"{path}: logits of {len(bad)} images contain nan:\n{listed(bad)}", bad)
    return Outputs(path, names, values)


def _read_csv(path: Path) -> tuple[list[str] | None, np.ndarray]:
    with path.open(newline="", encoding="utf-8-sig") as file:
        header, *rows = [row for row in csv.reader(file) if row] or [[]]
    if header[:1] != ["name"] or len(header) < 2 or not rows:
        raise ValueError("the first line must be name,prediction or name and a column for each class")
    if any(len(row) != len(header) for row in rows):
        raise ValueError(f"not all lines have {len(header)} columns")
    names = [row[0] for row in rows]
    cells = [row[1:] for row in rows]
    if header[1].startswith("prediction"):
        return names, np.array([[int(cell) for cell in row] for row in cells], np.int64)
    return names, np.array(cells, np.float64)


def _read_npy(path: Path) -> tuple[list[str] | None, np.ndarray]:
    return None, np.load(path, allow_pickle=False)


def _read_npz(path: Path) -> tuple[list[str] | None, np.ndarray]:
    with np.load(path, allow_pickle=False) as archive:
        return _of_arrays({key: archive[key] for key in archive.files})


def _read_safetensors(path: Path) -> tuple[list[str] | None, np.ndarray]:
    try:
        from safetensors import SafetensorError
        from safetensors.numpy import load_file
    except ImportError as error:
        raise InputError(
            f"{path}: reading .safetensors needs a package; run: bash setup.sh methods"
        ) from error
    try:
        return _of_arrays(load_file(path))
    except SafetensorError as error:
        raise ValueError(error) from error


def _of_arrays(arrays: dict[str, Any]) -> tuple[list[str] | None, np.ndarray]:
    """Return ``logits`` or ``predictions``, with ``names`` if they exist; else an array for each image."""
    tables = [key for key in _TABLES if key in arrays]
    if len(tables) == 1 and set(arrays) <= {*tables, "names"}:
        names = [str(name) for name in arrays["names"]] if "names" in arrays else None
        return names, arrays[tables[0]]
    shapes = {array.shape for array in arrays.values()}
    if len(shapes) != 1:
        raise ValueError(f"arrays of {len(shapes)} different shapes")
    return list(arrays), np.stack([np.ravel(array) for array in arrays.values()])


def place_of(name: str) -> str:
    """Write an image's name as ``<wnid>/<stem>``, or ``<stem>`` if it has no folder."""
    path = PurePosixPath(name)
    stem = path.stem if is_image(path.name) else path.name
    return f"{path.parent.name}/{stem}" if path.parent.name else stem
