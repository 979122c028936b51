"""The curves of a run as a picture."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from imagenets.common.whole_files import whole_file

# What tells how the run went by, not how the network got on.
_NOT_DRAWN = {"epoch", "step", "images_per_second", "data_wait"}


def draw_curves(records: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Draw each number of the records over the epochs, a panel each, as a PNG.

    A record has ``epoch``; numbers that only some records have are drawn where they are.
    """
    names = list(dict.fromkeys(name for record in records for name in record if name not in _NOT_DRAWN))
    figure = Figure(figsize=(7, 2.2 * len(names)), layout="constrained")
    panels = figure.subplots(len(names), sharex=True, squeeze=False)[:, 0]
    for name, axes in zip(names, panels, strict=True):
        points = [(record["epoch"], record[name]) for record in records if record.get(name) is not None]
        axes.plot(*zip(*points, strict=True), marker="." if len(points) < 50 else None)
        axes.set_ylabel(name)
        axes.grid(alpha=0.2)
    panels[-1].set_xlabel("epoch")
    with whole_file(path) as temporary:
        figure.savefig(temporary, format="png", dpi=110)
