"""Published results: numbers of papers and public repositories, with their sources, and your own.

The table ``data/published_results.csv`` beside this module has one row per number. The sources print only
mIoU, many on one split only. What a protocol is: docs/benchmark.md.
"""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

from imagenets.classes import MODES
from imagenets.common.errors import InputError, listed
from imagenets.reporting.text import text_table
from imagenets.scoring.protocols import PROTOCOLS as PROTOCOLS

COLUMNS = ("protocol", "mode", "method", "backbone", "training", "split", "mIoU", "source")
SPLITS = ("val", "test")
NOT_COMPARABLE = (
    "Results are comparable only within a protocol: protocols differ in the labels that may be used, "
    "and methods in backbone and training too."
)

_NEEDED = ("protocol", "mode", "method", "split", "mIoU")
_METHOD = ("protocol", "mode", "method", "backbone", "training")  # what the results of a method share

# One number: its columns by name; mIoU is a float in percent, everything else text.
Record = dict[str, str | float]


def published(
    mode: str | int | None = None, protocol: str | None = None, split: str | None = None
) -> list[Record]:
    """List published results as records for pandas: ``pandas.DataFrame(published())``.

    A record has the keys of COLUMNS; ``mIoU`` is in percent, ``split`` "val" or "test". ``mode``,
    ``protocol`` and ``split`` keep only its results.

    Raises ValueError for an unknown mode, protocol or split.

    >>> published(50, "distance-matching", "val")[0]["mIoU"]
    39.6
    """
    for value, known in ((mode, tuple(MODES)), (protocol, PROTOCOLS), (split, SPLITS)):
        if value is not None and str(value) not in known:
            raise ValueError(f"{value!r}: there are {', '.join(known)}")
    table = resources.files("imagenets.reporting").joinpath("data/published_results.csv")
    records = _read_records(table.read_text(encoding="utf-8"), "the table of published results")
    wanted = {"mode": mode, "protocol": protocol, "split": split}
    return [r for r in records if all(v is None or r[key] == str(v) for key, v in wanted.items())]


def read_results(path: Path) -> list[Record]:
    """Read a CSV file of your own results with the columns of COLUMNS.

    ``backbone``, ``training`` and ``source`` may be empty or missing; other columns are ignored.

    Raises InputError, listing the lines, when the file cannot be read as such a table.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except FileNotFoundError as error:
        raise InputError(f"{path}: no such file; name a CSV table of results") from error
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: not UTF-8 text; it must be a CSV table of results") from error
    return _read_records(text, str(path))


def _read_records(text: str, where: str) -> list[Record]:
    reader = csv.DictReader(io.StringIO(text, newline=""), restval="")
    header = [name.strip() for name in reader.fieldnames or ()]
    missing = [name for name in _NEEDED if name not in header]
    if missing:
        raise InputError(
            f"{where}: no column {', '.join(missing)}; the first line must name columns: {','.join(COLUMNS)}"
        )
    reader.fieldnames = header
    records, problems = [], []
    try:
        for row in reader:
            values = {name: (row.get(name) or "").strip() for name in COLUMNS}
            problem = _record_problem(values)
            if problem:
                problems.append(f"line {reader.line_num}: {problem}")
                continue
            records.append({**values, "mIoU": float(values["mIoU"])})
    except csv.Error as error:
        raise InputError(f"{where}: no CSV table, line {reader.line_num}: {error}") from error
    if problems:
        raise InputError(f"{where}: {len(problems)} lines are not results:\n{listed(problems)}")
    return records


def _record_problem(values: dict[str, str]) -> str | None:
    for name, known in (("protocol", PROTOCOLS), ("mode", tuple(MODES)), ("split", SPLITS)):
        if values[name] not in known:
            return f"{name} {values[name]!r} is not one of {', '.join(known)}"
    if not values["method"]:
        return "no method"
    try:
        score = float(values["mIoU"])
    except ValueError:
        score = math.nan
    if not 0 <= score <= 100:
        return f"mIoU {values['mIoU']!r} is not a percentage in 0..100"
    return None


@dataclass(frozen=True)
class Standing:
    """A method's mIoU in percent on both splits, nan if it is not known; ``own``: not published."""

    protocol: str
    mode: str
    method: str
    backbone: str
    training: str
    source: str
    val: float
    test: float
    own: bool = False

    @property
    def short_name(self) -> str:
        """The method, its backbone and how its training begins, in a line."""
        return ", ".join(filter(None, (self.method, self.backbone, self.training.partition(";")[0])))


def standings(records: Iterable[Record], own: bool = False) -> list[Standing]:
    """Join the splits of a method: one Standing if all but split, mIoU and source is the same.

    Splits that come from two sources name both. The order is that of PROTOCOLS, in each the best on val
    first. A method that occurs twice on a split becomes two.
    """
    found: dict[tuple[str, ...], list[dict[str, Record]]] = {}
    for record in records:
        rows = found.setdefault(tuple(str(record[name]) for name in _METHOD), [])
        row = next((row for row in rows if record["split"] not in row), None)
        if row is None:
            rows.append(row := {})
        row[str(record["split"])] = record
    joined = []
    for (protocol, mode, method, backbone, training), rows in found.items():
        for row in rows:
            val, test = (float(row[split]["mIoU"]) if split in row else math.nan for split in SPLITS)
            sources = dict.fromkeys(str(row[split]["source"]) for split in SPLITS if split in row)
            source = "; ".join(filter(None, sources))
            joined.append(Standing(protocol, mode, method, backbone, training, source, val, test, own))
    return sorted(joined, key=_rank)


def _rank(row: Standing) -> tuple[int, int, bool, float]:
    score = row.test if math.isnan(row.val) else row.val
    return PROTOCOLS.index(row.protocol), list(MODES).index(row.mode), math.isnan(row.val), -score


def read_standings(mode: str, protocol: str | None, results: Path | None) -> list[Standing]:
    """List published results of a mode and those in a file of your own, sorted together.

    Nothing is published for your own class list. ``protocol`` keeps only that one.

    Raises InputError as ``read_results`` does.
    """
    own = [] if results is None else read_results(results)
    own = [r for r in own if r["mode"] == mode and protocol in (None, r["protocol"])]
    known = published(mode, protocol) if mode in MODES else []
    return sorted([*standings(known), *standings(own, own=True)], key=_rank)


def standings_text(rows: Sequence[Standing], mode: str) -> str:
    """Table of what is published, sources numbered below; ``*`` marks your own results."""
    sources = list(dict.fromkeys(row.source for row in rows if row.source))
    cells = [
        (
            row.protocol,
            row.method + (" *" if row.own else ""),
            row.backbone or "-",
            row.training or "-",
            score_text(row.val, row.own),
            score_text(row.test, row.own),
            f"[{sources.index(row.source) + 1}]" if row.source else "-",
        )
        for row in rows
    ]
    header = ("protocol", "method", "backbone", "training", "val", "test", "source")
    parts = [f"ImageNet-S-{mode}: mIoU in percent, as the sources print it", ""]
    parts.append(text_table(header, cells, left=(0, 1, 2, 3)) if rows else "none is published")
    parts += ["", *(f"[{number}] {source}" for number, source in enumerate(sources, start=1))]
    if any(row.own for row in rows):
        parts.append("* not published: from your file")
    parts += [*([""] if sources else []), NOT_COMPARABLE]
    return "\n".join(parts)


def score_text(score: float, own: bool = False) -> str:
    """Format a published mIoU with one decimal, as in its source, your own with two."""
    if math.isnan(score):
        return "-"
    return f"{score:.2f}" if own else f"{score:.1f}"
