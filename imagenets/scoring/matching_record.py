"""The masks that a matching was made from, and how: with other masks it scores by chance.

``results/NAME.json`` is in the benchmark's format, which has no place for this; ``results/NAME.made-of.json``
has a digest of every pair of masks, computed from its counts, so that masks can be moved or copied, and a
part of the images is recognised.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from imagenets.common.whole_files import write_whole
from imagenets.scoring.contingency import ContingencyTable, Rows
from imagenets.scoring.matching import METHODS, Matching

SUFFIX = ".made-of"
_FORMAT = "imagenets matching record 1"


def record_path(path: Path) -> Path:
    """Path of the record of the matching file ``path``."""
    return path.with_name(f"{path.name.removesuffix('.json')}{SUFFIX}.json")


def write_record(path: Path, matching: Matching, table: ContingencyTable) -> None:
    """Save what the matching in the file ``path`` was made from."""
    content = {
        "format": _FORMAT,
        "matching_sha256": hashlib.sha256(matching.text().encode()).hexdigest(),
        "method": matching.method,
        "masks": image_digests(table),
    }
    write_whole(record_path(path), json.dumps(content) + "\n")


def made_of_others(matching: Matching, table: ContingencyTable) -> str | None:
    """Say that a matching was made of other masks than the table's; None if not, or if nothing is known.

    Nothing is known without a record, or if it belongs to another matching or has another version.
    """
    record = _read_record(matching)
    if record is None:
        return None
    known = set(record["masks"])
    others = sum(digest not in known for digest in image_digests(table))
    if not others:
        return None
    return (
        f"{matching.path}: made of other masks: {others} of these {len(table.names)} pairs are not what "
        "match.py was given; if the predictions have changed, run match.py again"
    )


def with_method(matching: Matching) -> Matching:
    """Add the method by which a matching was found, if its record has it."""
    record = _read_record(matching)
    method = None if record is None else record.get("method")
    return replace(matching, method=method if method in METHODS else None)


def _read_record(matching: Matching) -> dict[str, Any] | None:
    """Read the record of a matching's file; None without one, or if it belongs to another matching."""
    if matching.path is None:
        return None
    try:
        record = json.loads(record_path(matching.path).read_bytes())
        if (record["format"], record["matching_sha256"]) != (_FORMAT, matching.sha256):
            return None
        return record if isinstance(record["masks"], list) else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def image_digests(table: ContingencyTable) -> list[str]:
    """Digest of each image's name and counts."""
    order = np.argsort(table.image, kind="stable")
    bounds = np.searchsorted(table.image[order], np.arange(len(table.names) + 1))
    columns = [getattr(table, name)[order] for name in Rows._fields[1:]]
    digests = []
    for i, name in enumerate(table.names):
        digest = hashlib.blake2b(name.encode(errors="surrogateescape"), digest_size=8)
        for column in columns:
            digest.update(column[bounds[i] : bounds[i + 1]].tobytes())
        digests.append(digest.hexdigest())
    return digests
