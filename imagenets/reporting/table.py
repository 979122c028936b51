"""The scores of many runs as one table: text, Markdown, LaTeX, CSV and HTML."""

from __future__ import annotations

import math
import re
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from imagenets.classes import MODES, benchmark_title
from imagenets.common.errors import InputError, listed
from imagenets.common.tables import csv_text, or_empty
from imagenets.reporting.pages import render_page
from imagenets.reporting.published import NOT_COMPARABLE, Standing, score_text
from imagenets.reporting.score_files import ScoreFile
from imagenets.reporting.text import text_table
from imagenets.scoring.metrics import SCORES

_LATEX = {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    '"': r"\symbol{34}",  # a plain one is a shorthand of babel in German
    "`": r"\textasciigrave{}",
    "'": r"\textquotesingle{}",
    **{character: f"\\{character}" for character in "{}$&#_%"},
    "±": r"\ensuremath{\pm}",
}


@dataclass(frozen=True)
class Row:
    """A line of the table: percentages by the names of the scores, nan if there is none.

    ``deviations`` are those of the sample (n − 1), nan with fewer than two runs. ``runs`` is None in a row of
    a published result, of which only mIoU is known.
    """

    name: str
    runs: int | None
    means: Mapping[str, float]
    deviations: Mapping[str, float]
    protocol: str | None = None
    decimals: int = 2


@dataclass(frozen=True)
class ResultTable:
    """The scores of methods on the same images of a mode, and published results."""

    mode: str
    images: int
    rows: Sequence[Row]
    scores: Sequence[str] = SCORES

    @property
    def protocol(self) -> str | None:
        """Protocol of all rows, None if they may be of several."""
        protocols = {row.protocol for row in self.rows}
        return protocols.pop() if len(protocols) == 1 else None

    @property
    def has_protocols(self) -> bool:
        """Is the protocol of some row known?"""
        return any(row.protocol for row in self.rows)

    @property
    def has_published(self) -> bool:
        """Are there rows of published results?"""
        return any(row.runs is None for row in self.rows)

    @property
    def has_deviations(self) -> bool:
        """Is there a method with several runs?"""
        return any((row.runs or 1) > 1 for row in self.rows)


def method_row(name: str, files: Sequence[ScoreFile]) -> Row:
    """Join the runs of a method, one for each seed: the mean of each score and its deviation.

    Bytes in ``name`` that are not text, as in file names, become ``?``. Raises InputError if the runs are
    of different protocols.
    """
    protocols = {file.protocol for file in files}
    if len(protocols) > 1:
        raise InputError(
            f"{name}: runs of one method, but of different protocols:\n"
            + listed([f"{file.path}: {file.protocol or 'none'}" for file in files])
        )
    columns = {score: [file.scores[score] for file in files] for score in files[0].scores}
    return Row(
        name.encode(errors="replace").decode(),
        len(files),
        {score: math.fsum(values) / len(values) for score, values in columns.items()},
        {score: _deviation(values) for score, values in columns.items()},
        files[0].protocol,
    )


def _deviation(values: Sequence[float]) -> float:
    """Standard deviation of the sample (n − 1); nan with fewer than two values, or if one is nan."""
    if len(values) < 2 or any(map(math.isnan, values)):
        return math.nan
    return statistics.stdev(values)


def published_row(standing: Standing) -> Row:
    """Make a row of a result on the validation set."""
    nothing = dict.fromkeys(SCORES, math.nan)
    decimals = len(score_text(standing.val, standing.own).partition(".")[2])
    means = {**nothing, "mIoU": standing.val}
    return Row(standing.short_name, None, means, nothing, standing.protocol, decimals)


class _Cell(NamedTuple):
    """A score as it is shown: two decimals, the deviation if there is one, and whether it is the best."""

    mean: str
    deviation: str
    is_best: bool


def _cells(table: ResultTable) -> list[list[_Cell]]:
    """Lay out the scores of every row. All with the same printed digits as the best are best.

    Published results take part if all rows are of one protocol: they are comparable nowhere else.
    """
    columns = []
    for score in table.scores:
        texts = [_number(row.means[score], row.decimals) for row in table.rows]
        candidates = [
            i
            for i, row in enumerate(table.rows)
            if texts[i] != "–" and (row.runs is not None or table.protocol is not None)
        ]
        best = max((float(texts[i]) for i in candidates), default=math.nan)
        columns.append(
            [
                _Cell(
                    texts[i],
                    "" if math.isnan(row.deviations[score]) else f"{row.deviations[score]:.2f}",
                    i in candidates and float(texts[i]) == best,
                )
                for i, row in enumerate(table.rows)
            ]
        )
    return [list(row) for row in zip(*columns, strict=True)]


def _number(value: float, decimals: int) -> str:
    return "–" if math.isnan(value) else f"{value:.{decimals}f}"


def _header(table: ResultTable) -> list[str]:
    return ["method", *["protocol"] * table.has_protocols, *["runs"] * table.has_deviations, *table.scores]


def _lines(table: ResultTable, cell: Callable[[_Cell], str], name: Callable[[str], str]) -> list[list[str]]:
    """Fill the rows: ``cell`` writes a score, ``name`` a name of the user's."""
    return [
        [
            name(row.name),
            *[name(row.protocol or "–")] * table.has_protocols,
            *["–" if row.runs is None else str(row.runs)] * table.has_deviations,
            *map(cell, cells),
        ]
        for row, cells in zip(table.rows, _cells(table), strict=True)
    ]


def table_note(table: ResultTable) -> str:
    """Say in a line or two what the numbers are."""
    note = f"{benchmark_title(table.mode)}, {table.images:,} images; scores in percent."
    if table.has_deviations:
        note += " Several runs: mean ± standard deviation of the sample (n − 1)."
    if table.has_published:
        whole = MODES[table.mode].validation if table.mode in MODES else table.images
        note += f" Rows without runs are published or reported mIoU on all {whole:,} validation images."
        if table.images != whole:
            note += " The others are of fewer images, and not comparable with them."
        if table.protocol is None:
            note += f" {NOT_COMPARABLE}"
    return note


def table_text(table: ResultTable) -> str:
    """Format for a terminal; ``*`` marks the best."""

    def cell(score: _Cell) -> str:
        return _with_deviation(score.mean, score) + ("*" if score.is_best else " ")

    header = [name + " " * (name in table.scores) for name in _header(table)]
    left = range(1 + table.has_protocols)
    return f"{text_table(header, _lines(table, cell, _one_line), left)}\n\n{table_note(table)} *: the best"


def _with_deviation(mean: str, score: _Cell) -> str:
    return f"{mean} ± {score.deviation}" if score.deviation else mean


def table_markdown(table: ResultTable) -> str:
    """Format as Markdown (GitHub's tables); the best in bold."""

    def cell(score: _Cell) -> str:
        return _with_deviation(f"**{score.mean}**" if score.is_best else score.mean, score)

    left = 1 + table.has_protocols
    header = _header(table)
    lines = [
        header,
        [":--" if i < left else "--:" for i in range(len(header))],
        *_lines(table, cell, escape_markdown),
    ]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + f"\n\n{table_note(table)}\n"


def escape_markdown(text: str) -> str:
    """Write a text so that Markdown, in a cell of a table too, shows it as it is."""
    return re.sub(r"([\\`*_\[\]<>|~$&])", r"\\\1", _one_line(text))


def table_latex(table: ResultTable) -> str:
    """Format as a LaTeX tabular with the rules of booktabs; the best in bold."""

    def cell(score: _Cell) -> str:
        mean = score.mean
        if score.deviation:
            mean = rf"\mathbf{{{mean}}}" if score.is_best else mean
            return rf"${mean} \pm {score.deviation}$"
        return rf"\textbf{{{mean}}}" if score.is_best else mean

    header = _header(table)
    left = 1 + table.has_protocols
    own = [row.runs is not None for row in table.rows]
    body = [f"{' & '.join(line)} \\\\" for line in _lines(table, cell, escape_latex)]
    if True in own and False in own:
        body.insert(own.index(False), r"\midrule")
    note = table_note(table).replace("±", "+-").replace("−", "-")
    return "\n".join(
        [
            rf"% {note} Needs \usepackage{{booktabs}}.",
            rf"\begin{{tabular}}{{{'l' * left}{'r' * (len(header) - left)}}}",
            r"\toprule",
            f"{' & '.join(header)} \\\\",
            r"\midrule",
            *body,
            r"\bottomrule",
            r"\end{tabular}",
            "",
        ]
    )


def escape_latex(text: str) -> str:
    """Write a text so that LaTeX (with UTF-8, its default) prints it as it is."""
    escaped = "".join(_LATEX.get(character, character) for character in _one_line(text))
    return re.sub("-(?=-)", "-{}", escaped)  # or it would be a dash


def table_csv(table: ResultTable) -> str:
    """Format for programs: every digit, nothing where there is none; after each score its deviation."""
    columns = [name for score in table.scores for name in (score, f"{score} sd")]
    rows = []
    for row in table.rows:
        numbers = [number for score in table.scores for number in (row.means[score], row.deviations[score])]
        runs = "" if row.runs is None else row.runs
        rows.append((row.name, row.protocol or "", runs, *map(or_empty, numbers)))
    return csv_text(("method", "protocol", "runs", *columns), rows)


def table_html(table: ResultTable) -> str:
    """Format as a page of its own, whose columns can be sorted."""

    return render_page(
        "table.html",
        table=table,
        scores=table.scores,
        rows=list(zip(table.rows, _cells(table), strict=True)),
        note=table_note(table),
    )


def _one_line(text: str) -> str:
    """Write a name in one line: a line break, and what else cannot be printed, becomes a space."""
    return " ".join("".join(c if c.isprintable() else " " for c in text).split())
