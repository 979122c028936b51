"""A run among published results: the report's table and chart."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from imagenets.classes import MODES
from imagenets.reporting.charts import Bar, standing_chart
from imagenets.reporting.published import NOT_COMPARABLE, PROTOCOLS, Standing, score_text


@dataclass(frozen=True)
class Run:
    """A run among results: mIoU in percent; its interval and protocol if known."""

    mode: str
    images: int
    score: float
    interval: tuple[float, float] | None = None
    protocol: str | None = None


def standing_section(run: Run, standings: Sequence[Standing]) -> dict[str, Any]:
    """Lay out results, and the run among those on the validation set, for the template ``standing.html``.

    Keys: ``rows`` (by protocol, the run in its own or, if unknown, first; results only on test last),
    ``chart`` (SVG, of validation only), ``notes`` (sentences on what may be compared), ``protocols`` (does
    the table name them?).
    """
    known = [s for s in standings if not math.isnan(s.val)]
    rows: list[dict[str, Any]] = [
        {
            "protocol": standing.protocol,
            "method": standing.method,
            "backbone": standing.backbone,
            "training": standing.training,
            "score": standing.val,
            "text": _dashed(standing.val, standing.own),
            "test": _dashed(standing.test, standing.own),
            "test_score": standing.test,
            "source": standing.source or ("your file" if standing.own else "–"),
            "own": standing.own,
            "run": False,
        }
        for standing in standings
    ]
    rows.append(
        {
            "protocol": run.protocol,
            "method": "this run",
            "backbone": "",
            "training": "",
            "score": run.score,
            "text": f"{run.score:.2f}",
            "test": "–",
            "test_score": math.nan,
            "source": "–",
            "own": True,
            "run": True,
        }
    )
    rows.sort(key=_place)
    return {
        "rows": rows,
        "chart": standing_chart(_bars(run, known), PROTOCOLS),
        "notes": _notes(run, known),
        "protocols": run.protocol is None,
    }


def _dashed(score: float, own: bool) -> str:
    return "–" if math.isnan(score) else score_text(score, own)


def _place(row: dict[str, Any]) -> tuple[int, bool, float]:
    protocol = PROTOCOLS.index(row["protocol"]) if row["protocol"] else -1
    return protocol, math.isnan(row["score"]), -row["score"]


def _bars(run: Run, standings: Sequence[Standing]) -> list[Bar]:
    own = None if run.protocol is None else PROTOCOLS.index(run.protocol)
    bars = [Bar("this run", run.score, own, run.interval, is_run=True)]
    return bars + [Bar(s.short_name, s.val, PROTOCOLS.index(s.protocol)) for s in standings]


def _notes(run: Run, standings: Sequence[Standing]) -> list[str]:
    notes = []
    if run.protocol is None:
        notes.append(NOT_COMPARABLE)
    else:
        published = any(not standing.own for standing in standings)
        notes.append(
            f"Protocol: {run.protocol}."
            + ("" if published else " No result of it is published for this mode.")
        )
    validation = MODES[run.mode].validation
    if run.images != validation:
        notes.append(
            f"This run scored {run.images:,} images; the others are of all {validation:,} of the validation "
            "set, and comparable only with a run on all of them."
        )
    return notes
