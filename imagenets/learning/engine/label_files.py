"""Label maps as PNG files, enlarged and written by worker processes."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import cv2
import numpy as np
import torch
from torch.nn.functional import interpolate

from imagenets.common.whole_files import write_whole
from imagenets.common.workers import Start, process_pool
from imagenets.masks import labels_to_rgb

# Enlarged labels repeat their rows: nothing is left of those where the row above is subtracted. With that,
# low compression takes half the time of the default and makes files little larger.
_PNG = [cv2.IMWRITE_PNG_FILTER, cv2.IMWRITE_PNG_FILTER_UP]
_PNG += [cv2.IMWRITE_PNG_COMPRESSION, 3, cv2.IMWRITE_PNG_STRATEGY, cv2.IMWRITE_PNG_STRATEGY_DEFAULT]


@dataclass(frozen=True)
class LabelFile:
    """Labels (h, w), integers 0..65535, of the upper left ``shown`` of a file of ``size`` (height, width)."""

    path: Path
    labels: np.ndarray
    size: tuple[int, int]
    shown: tuple[int, int]


Write = Callable[[Sequence[LabelFile]], None]


@contextmanager
def writing(workers: int, ahead: int, begin: Callable[[], None], start: Start = "fork") -> Iterator[Write]:
    """Yield a function that has files written by ``workers`` processes (0: this one), which ``begin`` first.

    It returns before they are written, and waits where more than ``ahead`` calls are behind. At the end all
    files are there. Raises what writing raises, OSError mostly.
    """
    if workers == 0:
        yield _write_all
        return
    with process_pool(workers, begin, start) as pool:
        pending: deque[Future[None]] = deque()

        def write(files: Sequence[LabelFile]) -> None:
            pending.append(pool.submit(_write_all, files))
            while len(pending) > ahead:
                pending.popleft().result()

        yield write
        while pending:
            pending.popleft().result()


def _write_all(files: Sequence[LabelFile]) -> None:
    for file in files:
        write_label_file(file)


def write_label_file(file: LabelFile) -> None:
    """Write labels, laid on the image by ``laid``, as a mask; folders above it are made."""
    colours = laid(np.ascontiguousarray(labels_to_rgb(file.labels)[..., ::-1]), file.shown, file.size)
    _, content = cv2.imencode(".png", colours, _PNG)
    file.path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(file.path, content.tobytes(), lasting=False)


def enlarged(labels: np.ndarray, height: int, width: int) -> np.ndarray:
    """Bring labels (h, w, …) to (height, width, …) exactly as ``interpolate(mode="nearest")`` does."""
    if labels.shape[:2] == (height, width):
        return labels
    wide = np.take(labels, _nearest(labels.shape[1], width), axis=1)
    return np.take(wide, _nearest(labels.shape[0], height), axis=0)


def laid(labels: np.ndarray, shown: tuple[int, int], size: tuple[int, int]) -> np.ndarray:
    """Lay labels (h, w, …) on the upper left ``shown`` of an image of ``size``, both (height, width).

    There they are ``enlarged``; pixels beyond take the nearest one's label. Returns (height, width, …).
    """
    whole = enlarged(labels, *shown)
    if shown == size:
        return whole
    beyond = [(0, full - part) for full, part in zip(size, shown, strict=True)]
    return np.pad(whole, beyond + [(0, 0)] * (whole.ndim - 2), mode="edge")


@lru_cache(maxsize=4096)
def _nearest(old: int, new: int) -> np.ndarray:
    """Indices (new,) that PyTorch's nearest neighbour picks; its own rounding in float32 decides them."""
    line = torch.arange(old, dtype=torch.float32).reshape(1, 1, old, 1)
    picked: np.ndarray = interpolate(line, size=(new, 1), mode="nearest").flatten().long().numpy()
    return picked
