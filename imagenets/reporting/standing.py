"""A run among published results: the report's table and chart."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from imagenets.classes import MODES
from imagenets.reporting.charts import standing_chart
from imagenets.reporting.published import NOT_COMPARABLE, PROTOCOLS, Standing, score_text


def standing_section(
    run: Standing, images: int, interval: tuple[float, float] | None, others: Sequence[Standing]
) -> dict[str, Any]:
    """Lay out results for the template ``standing.html``, among them a run on ``images`` validation images.

    The run's ``protocol`` is "" if it is not known; ``interval`` is that of its mIoU in percent.

    Keys: ``rows`` (by protocol, the run in its own or, if unknown, first; results only on test last),
    ``chart`` (SVG, of validation only), ``notes`` (sentences on what may be compared), ``protocols`` (does
    the table name them?).
    """
    known = [s for s in others if not math.isnan(s.val)]
    rows = [
        {
            **asdict(standing),
            "text": _dashed(standing.val, standing.own),
            "test_text": _dashed(standing.test, standing.own),
            "source": standing.source or ("your file" if standing.own and standing is not run else "–"),
            "run": standing is run,
        }
        for standing in sorted([*others, run], key=_place)
    ]
    return {
        "rows": rows,
        "chart": standing_chart(run, interval, known),
        "notes": _notes(run, images, known),
        "protocols": not run.protocol,
    }


def _dashed(score: float, own: bool) -> str:
    return "–" if math.isnan(score) else score_text(score, own)


def _place(standing: Standing) -> tuple[int, bool, float]:
    protocol = PROTOCOLS.index(standing.protocol) if standing.protocol else -1
    return protocol, math.isnan(standing.val), -standing.val


def _notes(run: Standing, images: int, known: Sequence[Standing]) -> list[str]:
    notes = [NOT_COMPARABLE]
    if run.protocol:
        notes = [f"Protocol: {run.protocol}."]
        if all(standing.own for standing in known):
            notes[0] += " No result of it is published for this mode."
    validation = MODES[run.mode].validation
    if images != validation:
        notes.append(
            f"This run scored {images:,} images; the others are of all {validation:,} of the validation "
            "set, and comparable only with a run on all of them."
        )
    return notes
