"""Foregrounds and feature vectors of many images, on several processes."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, suppress
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np

from imagenets.common.errors import InputError
from imagenets.common.progress import Advance
from imagenets.common.whole_files import whole_file
from imagenets.common.workers import Mapper, process_map
from imagenets.learning.images import fingerprint, load, refuse
from imagenets.learning.kmeans.features import Features
from imagenets.learning.kmeans.foregrounds import enlarge, foreground
from imagenets.masks import encode_mask

BATCH = 256  # images in flight, twice; what a backbone needs of one is 200 kB
CHUNK = 4096  # images whose features lie in one file
_LIBRARIES = ("numpy", "opencv-python", "opencv-python-headless", "pillow", "scipy", "scikit-learn")


class Described(NamedTuple):
    """Images (n of them), their foregrounds at reduced size, full sizes and features (n, D) float32."""

    images: list[str]
    foregrounds: list[np.ndarray]
    sizes: list[tuple[int, int]]  # height, width
    features: np.ndarray


class _Prepared(NamedTuple):
    foreground: np.ndarray
    size: tuple[int, int]
    feature: np.ndarray


def processes(workers: int) -> AbstractContextManager[Mapper]:
    """Give a ``map`` that works on ``workers`` processes (0: in this one); see ``process_map``."""
    return process_map(workers, begin=partial(cv2.setNumThreads, 0))


def describe(
    folder: Path, images: Sequence[str], features: Features, mapper: Mapper, problems: list[str]
) -> Iterator[Described]:
    """Describe images in batches, in order; those that cannot be read go to ``problems`` instead."""
    prepare = partial(_prepare, os.fspath(folder), features.prepare)
    ahead: tuple[Sequence[str], Iterable[_Prepared | str]] | None = None
    for start in range(0, len(images), BATCH):
        batch = images[start : start + BATCH]
        begun = batch, mapper(prepare, batch)
        if ahead:
            yield from _finish(*ahead, features, problems)
        ahead = begun
    if ahead:
        yield from _finish(*ahead, features, problems)


def _prepare(
    folder: str, prepare: Callable[[np.ndarray, np.ndarray], np.ndarray], image: str
) -> _Prepared | str:
    try:
        loaded = load(f"{folder}/{image}")
    except InputError as error:
        return str(error)
    mask = foreground(loaded.image)
    return _Prepared(mask, (loaded.height, loaded.width), prepare(loaded.image, mask))


def _finish(
    images: Sequence[str], prepared: Iterable[_Prepared | str], features: Features, problems: list[str]
) -> Iterator[Described]:
    good: list[tuple[str, _Prepared]] = []
    for image, result in zip(images, prepared, strict=True):
        if isinstance(result, str):
            problems.append(result)
        else:
            good.append((image, result))
    if good:
        vectors = features.finish([result.feature for _, result in good])
        yield Described(
            [image for image, _ in good],
            [result.foreground for _, result in good],
            [result.size for _, result in good],
            vectors,
        )


def feature_chunks(
    folder: Path,
    images: Sequence[str],
    features: Features,
    store: Path,
    mapper: Mapper,
    advance: Advance,
) -> list[Path]:
    """Files (n, D) float16 with the features of CHUNK images each, in order; made where they are not there.

    A file's name tells the images and the features, so that a run that was stopped goes on, and another one
    with more images or another number of clusters makes only what is new. Raises InputError when images
    cannot be read, after all have been tried.
    """
    store.mkdir(parents=True, exist_ok=True)
    paths: list[Path] = []
    problems: list[str] = []
    identity = f"{features.identity} {code_version()}"
    for start in range(0, len(images), CHUNK):
        chunk = images[start : start + CHUNK]
        path = store / f"{fingerprint(folder, chunk, identity)}.npy"
        paths.append(path)
        if path.exists():
            advance(len(chunk))
            continue
        vectors = []
        problems_before = len(problems)
        for described in describe(folder, chunk, features, mapper, problems):
            vectors.append(described.features.astype(np.float16))
            advance(len(described.images))
        if len(problems) == problems_before:
            _save_array(path, np.concatenate(vectors))
    refuse(problems)
    return paths


def _save_array(path: Path, array: np.ndarray) -> None:
    with whole_file(path) as temporary, temporary.open("wb") as file:
        np.save(file, array)


def code_version() -> str:
    """Digest of all that makes foregrounds, features and clusters, so that stored ones outlive no change.

    That is this room's code, and the versions of the libraries that compute in it.
    """
    digest = hashlib.blake2b(digest_size=8)
    for path in sorted(Path(__file__).parent.glob("*.py")):
        digest.update(path.read_bytes())
    digest.update(library_versions(*_LIBRARIES).encode())
    return digest.hexdigest()


def library_versions(*names: str) -> str:
    """Versions of those of the libraries that are installed, ``numpy 2.1.0, scipy 1.15.0``."""
    found = []
    for name in names:
        with suppress(PackageNotFoundError):
            found.append(f"{name} {version(name)}")
    return ", ".join(found)


class Prediction(NamedTuple):
    """What is written for one image: a foreground, (h, w) bool at any size, full size, label and path."""

    foreground: np.ndarray
    size: tuple[int, int]  # height, width
    label: int
    path: Path


def write_prediction(prediction: Prediction) -> None:
    """Write the mask (docs/benchmark.md, Masks) of an image: its label where the foreground is, else 0."""
    mask = enlarge(prediction.foreground, *prediction.size)
    labels = mask.astype(np.uint16) * np.uint16(prediction.label)
    encode_mask(labels, prediction.path)
