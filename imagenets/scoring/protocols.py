"""The benchmark's protocols and their rules on matching (docs/benchmark.md, Protocols)."""

from __future__ import annotations

import json
import re
from pathlib import Path

from imagenets.scoring.matching import Matching

PROTOCOLS = ("fully-unsupervised", "distance-matching", "semi-supervised", "free")
# Records of runs that can sharpen, beside the folders of their predictions.
_RUN_RECORDS = ("distance_matching.json", "prediction.json")


def protocol_in(text: str) -> str | None:
    """Find the protocol that a text names, in any spelling; None if it names none."""
    words = re.sub("[^a-z]+", "-", text.lower()).strip("-")
    if words == "unsupervised":
        return PROTOCOLS[0]
    return next((protocol for protocol in PROTOCOLS[:-1] if protocol in words), None)


def broken_rule(protocol: str | None, matching: Matching | None) -> str | None:
    """Say which rule of a protocol the matching of a run breaks; None if it breaks none that is known.

    ``matching`` is None if predictions hold class ids.
    """
    if protocol == "fully-unsupervised":
        rule = "the protocol fully-unsupervised matches clusters to classes one-to-one, on validation"
        if matching is None:
            return f"{rule}; these predictions were scored as classes, without a matching"
        if not matching.one_to_one or matching.method == "majority":
            return f"{rule}; this matching maps several clusters to one class (method majority)"
    if protocol in ("distance-matching", "semi-supervised") and matching is not None:
        return f"the protocol {protocol} has no matching: its labels are classes; these were matched"
    return None


def sharpened(predict_dir: Path) -> str | None:
    """Say that predictions were sharpened, if the record of their run says so."""
    for name in _RUN_RECORDS:
        try:
            settings = json.loads((predict_dir.parent / name).read_text(encoding="utf-8"))["settings"]
        except (OSError, ValueError, KeyError, TypeError):
            continue
        if settings.get("sharpen"):
            return "these predictions were sharpened: their outlines are not those of the published protocols"
    return None
