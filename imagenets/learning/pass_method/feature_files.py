"""Features of a whole split as one NumPy file, made chunk by chunk."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from imagenets.common.whole_files import whole_file
from imagenets.learning.engine.inference import load_arrays


def join_features(parts: Sequence[Path], images: int, path: Path) -> None:
    """Join what ``store_arrays`` kept of ``images`` to ``path``, (n, C) float32; only a part is in memory."""
    path.parent.mkdir(parents=True, exist_ok=True)
    width = load_arrays(parts[:1], "features").shape[1]
    with whole_file(path) as temporary:
        joined = np.lib.format.open_memmap(temporary, "w+", np.float32, (images, width))
        place = 0
        for part in parts:
            rows = load_arrays([part], "features")
            joined[place : place + len(rows)] = rows
            place += len(rows)
        joined.flush()
