"""The scores of all thresholds as a picture."""

from __future__ import annotations

import io

from matplotlib.figure import Figure

from imagenets.learning.pseudo_labels.thresholds import THRESHOLDS, Sweep


def draw_thresholds(found: Sweep) -> bytes:
    """Draw mIoU and matched images over the thresholds, as a PNG's bytes."""
    figure = Figure(figsize=(7, 4.4), layout="constrained")
    upper, lower = figure.subplots(2, sharex=True)
    upper.plot(THRESHOLDS, found.miou)
    upper.axvline(found.best, linestyle="--", color="0.5", label=f"best {found.best:.2f}")
    upper.set_ylabel("mIoU in %")
    upper.legend()
    lower.plot(THRESHOLDS, found.matched_images)
    lower.set_ylabel("matched images")
    lower.set_xlabel("threshold of attention; chosen with the masks of validation")
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110)
    return buffer.getvalue()
