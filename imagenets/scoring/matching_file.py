"""The benchmark's matching file: JSON, cluster to class (docs/benchmark.md, Matching)."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from imagenets.common.errors import InputError, listed
from imagenets.scoring.contingency import ContingencyTable


def matching_json(classes: np.ndarray) -> str:
    """Format ``classes`` (K + 1,) as the benchmark's matching file: cluster to class, keys in order."""
    return json.dumps({str(cluster): int(label) for cluster, label in enumerate(classes)}) + "\n"


def read_matching(path: Path, classes: int) -> dict[int, int]:
    """Read a matching file: cluster to class.

    Raises InputError when it is missing, no such JSON, or has classes outside 0..``classes``.
    """
    try:
        content = path.read_bytes()
    except FileNotFoundError as error:
        raise InputError(
            f"{path}: no such matching; run match.py first, or give its path or --results-dir"
        ) from error
    return parse_matching(content, classes, str(path))


def parse_matching(content: bytes, classes: int, where: str) -> dict[int, int]:
    """Read the content of a matching file as ``read_matching`` does; ``where`` names it in messages."""
    try:
        pairs = json.loads(content.decode(), object_pairs_hook=_Pairs)
    except (ValueError, RecursionError) as error:  # also for numbers of thousands of digits
        raise InputError(f"{where}: not JSON ({error}); run match.py again") from error
    if not isinstance(pairs, _Pairs) or not pairs:
        raise InputError(f'{where}: not a matching; it must look like {{"0": 0, "1": 17, …}}')
    problems = [problem for key, value in pairs if (problem := _entry_problem(key, value, classes))]
    if problems:
        raise InputError(f"{where}: {len(problems)} entries of the matching are wrong:\n{listed(problems)}")
    matching = {int(key): value for key, value in pairs}
    if len(matching) < len(pairs):
        raise InputError(f"{where}: a cluster stands there more than once; run match.py again")
    return matching


class _Pairs(list):
    """A JSON object as the list of its pairs, so that a key that stands twice is seen."""


def _entry_problem(key: str, value: object, classes: int) -> str | None:
    if not (key.isascii() and key.isdecimal() and len(key) <= 5) or str(int(key)) != key:
        return f"{key[:20]!r} is no cluster id"
    if type(value) is not int or not 0 <= value <= classes:
        return f"cluster {key}: {value!r} is no class in 0..{classes}"
    return None


def matching_array(matching: dict[int, int], table: ContingencyTable, path: Path) -> np.ndarray:
    """Lay a matching out as an array (largest prediction + 1,) int64, for indexing by predicted label.

    Raises InputError, naming the clusters and ``path``, when the matching lacks one that a prediction uses.
    """
    used = np.unique(table.prediction)
    missing = [f"cluster {cluster}" for cluster in used.tolist() if cluster not in matching]
    if missing:
        raise InputError(
            f"{path}: {len(missing)} clusters of the predictions are not in this matching; "
            f"run match.py on the same predictions:\n{listed(missing)}"
        )
    laid_out = np.zeros(int(used.max(initial=0)) + 1, np.int64)
    for cluster in used.tolist():
        laid_out[cluster] = matching[cluster]
    return laid_out
