"""The choice of a threshold on validation: scores over a range of them, kept as a file and as a chart."""

from __future__ import annotations

import io
import json
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from imagenets.common.whole_files import write_whole
from imagenets.learning.engine.inference import ArrayStep, Running, store_arrays
from imagenets.learning.images import Images, Reading

SCORES, CHART, PARTS = "threshold.json", "threshold.png", "threshold-parts"  # in the folder of the output


@dataclass(frozen=True)
class Sweep:
    """For each threshold the mIoU in percent and, with a matching, the images that clusters share."""

    thresholds: Sequence[float]
    miou: Sequence[float]
    matched_images: Sequence[int] | None = None

    @property
    def best(self) -> float:
        """The threshold of the highest mIoU, the first of equals."""
        return self.thresholds[int(np.argmax(self.miou))]


def best_threshold(
    output: Path,
    identity: str,
    images: Callable[[], Images],
    step: ArrayStep,
    score: Callable[[Images, list[Path]], Sweep],
    what: str,
    reading: Reading,
    running: Running,
) -> float:
    """Find the threshold that scores best on images with masks, once for ``output``; called on all processes.

    ``step`` counts for ``store_arrays``, known by ``identity``; ``score`` makes the sweep from all its files;
    ``what`` is thresholded. Raises as ``images`` and ``store_arrays`` do.
    """
    processes, path, parts = running.processes, output / SCORES, output / PARTS
    if not processes.from_first(path.exists):
        listed = processes.together(images)
        store = partial(store_arrays, listed, parts, identity, step, reading, running, with_masks=True)
        files = processes.together(store)

        def keep() -> None:
            found = score(listed, files)
            content = {
                "note": "chosen with the ground-truth masks of validation",
                "thresholds": list(found.thresholds),
                "mIoU": list(found.miou),
                "best": found.best,
            }
            if found.matched_images is not None:
                content["matched_images"] = list(found.matched_images)
            write_whole(output / CHART, draw_sweep(found, what))
            write_whole(path, json.dumps(content, indent=2) + "\n")
            shutil.rmtree(parts)

        processes.from_first(keep)
    return float(processes.from_first(lambda: json.loads(path.read_text(encoding="utf-8"))["best"]))


def draw_sweep(found: Sweep, what: str) -> bytes:
    """Draw mIoU and, where there are any, matched images over the thresholds, as a PNG's bytes."""
    panels = [("mIoU in %", found.miou)]
    if found.matched_images is not None:
        panels.append(("matched images", found.matched_images))
    figure = Figure(figsize=(7, 2.2 * len(panels)), layout="constrained")
    axes = figure.subplots(len(panels), sharex=True, squeeze=False)[:, 0]
    for panel, (name, values) in zip(axes, panels, strict=True):
        panel.plot(found.thresholds, values)
        panel.set_ylabel(name)
    axes[0].axvline(found.best, linestyle="--", color="0.5", label=f"best {found.best:g}")
    axes[0].legend()
    axes[-1].set_xlabel(f"threshold of {what}; chosen with the masks of validation")
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110)
    return buffer.getvalue()
