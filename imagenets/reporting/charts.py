"""Charts as SVG, for light and dark pages."""

from __future__ import annotations

import io
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import matplotlib.style
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from imagenets.reporting.published import PROTOCOLS, Standing
from imagenets.scoring.metrics import SCORES

# Drawn in this colour, text and lines take the page's colour: it is replaced by currentColor.
_INK = "#010203"
_REGION = "#3f7fc4"
_BOUNDARY = "#c8761f"
_MEAN = "#c2487a"
# Of the protocols, in the order of PROTOCOLS; none is the run's own; all are visible on light and dark.
_PROTOCOL_COLOURS = ("#3f7fc4", "#c8761f", "#4d9a6a", "#8a72c4")
_BUCKET_NAMES = ("S\nup to 5\u00a0%", "MS\n5 to 25\u00a0%", "ML\n25 to 50\u00a0%", "L\nabove 50\u00a0%")
# With more labels than this, a name under each bar can no longer be read.
_NAMED_BARS = 60
_AXIS_CHARACTERS = 42  # in one line of the label of a chart's axis

_STYLE = {
    "svg.fonttype": "none",
    "text.hinting": "none",
    "font.size": 10,
    "text.color": _INK,
    "axes.edgecolor": _INK,
    "axes.labelcolor": _INK,
    "xtick.color": _INK,
    "ytick.color": _INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "grid.color": _INK,
    "grid.alpha": 0.15,
    "legend.frameon": False,
}


def bucket_chart(scores: Mapping[str, float], intervals: Mapping[str, tuple[float, float]]) -> str:
    """Draw the scores of the size buckets as SVG: IoU and boundary IoU side by side, with intervals.

    ``scores`` and ``intervals`` are percentages by the names of SCORES; nan is drawn as a dash.
    """
    buckets = [name[1:] for name in SCORES if name.startswith("B")]
    with _figure("buckets", 5, 2.9) as (figure, axes):
        for prefix, colour, place, label in (
            ("", _REGION, -0.2, "IoU"),
            ("B", _BOUNDARY, 0.2, "boundary IoU"),
        ):
            for x, bucket in enumerate(buckets):
                score, interval = scores[prefix + bucket], intervals.get(prefix + bucket)
                exists = not math.isnan(score)
                top = score if exists else 0
                axes.bar(x + place, top, width=0.38, color=colour, label=None if x else label)
                if exists and interval:
                    axes.vlines(x + place, *interval, color=_INK, linewidth=1.5)
                    top = max(top, interval[1])
                _write(axes, f"{score:.1f}" if exists else "–", (x + place, top), shift=(0, 3), ha="center")
        axes.set_xticks(range(len(buckets)), _BUCKET_NAMES)
        axes.tick_params(axis="x", length=0)
        axes.set_ylabel("mean IoU in %")
        axes.margins(y=0.15)
        axes.set_ylim(bottom=0)
        axes.grid(axis="y")
        figure.legend(loc="outside upper right", ncols=2)
        return _svg(figure, "buckets", "Mean IoU and mean boundary IoU of each size bucket")


def class_chart(iou: np.ndarray, names: Sequence[str]) -> str:
    """Draw the IoU of every label, (N + 1,) percent, as SVG bars from the best down, and their mean.

    ``names`` (N + 1) stand under the bars if they are few enough to be read.
    """
    order = np.argsort(-iou, kind="stable")
    named = len(names) <= _NAMED_BARS
    with _figure("classes", 11, 4.4 if named else 3.1) as (figure, axes):
        edges = np.arange(len(names) + 1) + 0.5
        if named:
            axes.bar(edges[:-1] + 0.5, iou[order], width=0.8, color=_REGION)
            labels = [_shortened(names[i]) for i in order]
            axes.set_xticks(edges[:-1] + 0.5, labels, rotation=90, parse_math=False)
            axes.tick_params(axis="x", length=0, labelsize=9)
        else:
            axes.stairs(iou[order], edges, fill=True, color=_REGION)
            axes.set_xlabel("labels, from the best down")
        mean = math.fsum(iou) / len(iou)
        axes.axhline(mean, color=_MEAN, linewidth=1.5, linestyle="--", label=f"mIoU {mean:.2f}")
        axes.set_xlim(edges[0], edges[-1])
        axes.set_ylim(bottom=0)
        axes.set_ylabel("IoU in %")
        axes.grid(axis="y")
        axes.legend(loc="upper right")
        return _svg(figure, "classes", "IoU of every label, from the best down, and their mean")


def standing_chart(run: Standing, interval: tuple[float, float] | None, others: Sequence[Standing]) -> str:
    """Draw mIoU on the validation set as SVG bars from the best down, names above, coloured by protocol.

    ``run`` is the one that the page is about, ``interval`` that of its mIoU in percent, if known.
    """
    with _figure("standing", 4.8, 0.42 * (1 + len(others)) + 0.9) as (figure, axes):
        for y, bar in enumerate(sorted([run, *others], key=lambda bar: -bar.val)):
            colour = _MEAN if bar is run else _PROTOCOL_COLOURS[PROTOCOLS.index(bar.protocol)]
            axes.barh(y, bar.val, height=0.34, color=colour)
            end = bar.val
            if bar is run and interval:
                axes.hlines(y, *interval, color=_INK, linewidth=1.5)
                end = max(end, interval[1])
            _write(axes, f"{bar.val:.2f}" if bar is run else f"{bar.val:.1f}", (end, y), va="center")
            axes.text(0, y - 0.22, _shortened(bar.short_name, 58), va="bottom", fontsize=9, parse_math=False)
        axes.set_ylim(len(others) + 0.4, -0.75)
        ends = [run.val, *(interval or ()), *(bar.val for bar in others)]
        axes.set_xlim(0, 1.12 * max(ends) or 1)
        axes.set_yticks([])
        axes.spines["left"].set_visible(False)
        axes.set_xlabel("mIoU in %, validation set")
        keys = [Patch(color=_MEAN, label="this run")]
        keys += [
            Patch(color=colour, label=protocol)
            for protocol, colour in zip(PROTOCOLS, _PROTOCOL_COLOURS, strict=True)
            if any(bar.protocol == protocol for bar in others)
        ]
        figure.legend(handles=keys, loc="outside upper left", ncols=2, fontsize=9)
        return _svg(figure, "standing", "mIoU of this run among other results, from the best down")


def difference_chart(
    differences: Mapping[str, float],
    intervals: Mapping[str, tuple[float, float]],
    significant: Mapping[str, bool],
    names: tuple[str, str],
) -> str:
    """Draw the difference of every score, in percentage points, with its interval, as SVG.

    ``names`` are those of the two methods. Filled where ``significant``: the interval leaves out 0. nan is
    drawn as a dash.
    """
    with _figure("differences", 5, 4.2) as (figure, axes):
        axes.axvline(0, color=_INK, linewidth=1)
        for y, (name, difference) in enumerate(differences.items()):
            if math.isnan(difference):
                axes.annotate("–", (0, y), xytext=(4, 0), textcoords="offset points", va="center")
                continue
            colour = _REGION if difference >= 0 else _BOUNDARY
            low, high = intervals[name]
            if not math.isnan(low):
                axes.hlines(y, low, high, color=colour, linewidth=2)
            face = colour if significant[name] else "none"
            axes.plot(difference, y, "o", color=colour, markerfacecolor=face, markersize=7)
        axes.set_yticks(range(len(differences)), list(differences))
        axes.tick_params(axis="y", length=0)
        axes.spines["left"].set_visible(False)
        axes.invert_yaxis()
        axes.set_xlabel(f"{_minus(names)}\nin percentage points")
        axes.grid(axis="x")
        return _svg(figure, "differences", "Differences of all scores with their intervals")


def class_difference_chart(differences: np.ndarray, names: tuple[str, str]) -> str:
    """Draw the differences of the labels' IoU as SVG, from the largest gain down.

    They are (N + 1,) percentage points. ``names`` are those of the two methods.
    """
    ordered = -np.sort(-differences)
    edges = np.arange(ordered.size + 1) + 0.5
    with _figure("class-differences", 5.4, 4.2) as (figure, axes):
        for part, colour in ((np.maximum(ordered, 0), _REGION), (np.minimum(ordered, 0), _BOUNDARY)):
            axes.stairs(part, edges, fill=True, color=colour)
        axes.axhline(0, color=_INK, linewidth=1)
        axes.set_xlim(edges[0], edges[-1])
        axes.set_xlabel("labels, from the largest gain to the largest loss")
        axes.set_ylabel(f"IoU, {_minus(names)}\nin percentage points")
        axes.grid(axis="y")
        return _svg(figure, "class-differences", "Differences of the IoU of every label")


def _minus(names: tuple[str, str]) -> str:
    """Write A − B for the names, in lines that fit an axis, escaped for matplotlib."""
    first, second = (_shortened_inside(name, _AXIS_CHARACTERS) for name in names)
    on_one_line = len(first) + len(second) + 3 <= _AXIS_CHARACTERS
    return f"{first}{' ' if on_one_line else chr(10)}− {second}".replace("$", r"\$")


def _shortened_inside(name: str, length: int) -> str:
    """Shorten a name in its middle: names of runs often start the same and differ at the end."""
    half = (length - 1) // 2
    return name if len(name) <= length else f"{name[:half]}…{name[-half:]}"


def condition_chart(
    names: Sequence[str], scores: Sequence[float], intervals: Sequence[tuple[float, float]]
) -> str:
    """Draw a classifier's accuracy in percent on each set of pictures, with its interval, as SVG bars."""
    with _figure("conditions", 5, 0.5 * len(names) + 0.9) as (figure, axes):
        for y, (score, interval) in enumerate(zip(scores, intervals, strict=True)):
            axes.barh(y, score, height=0.6, color=_REGION)
            axes.hlines(y, *interval, color=_INK, linewidth=1.5)
            _write(axes, f"{score:.1f}", (max(score, interval[1]), y), va="center")
        axes.set_yticks(range(len(names)), [_shortened(name) for name in names], parse_math=False)
        axes.tick_params(axis="y", length=0)
        axes.invert_yaxis()
        axes.margins(x=0.12)
        axes.set_xlim(left=0)
        axes.set_xlabel("accuracy in %")
        axes.grid(axis="x")
        return _svg(figure, "conditions", "Accuracy on each set of pictures")


def _write(
    axes: Axes,
    text: str,
    place: tuple[float, float],
    shift: tuple[float, float] = (3, 0),
    ha: str = "left",
    va: str = "baseline",
) -> None:
    """Write a bar's number beside its end, ``shift`` points away."""
    axes.annotate(text, place, xytext=shift, textcoords="offset points", fontsize=9, ha=ha, va=va)


def _shortened(name: str, length: int = 22) -> str:
    return name if len(name) <= length else f"{name[: length - 1]}…"


@contextmanager
def _figure(name: str, width: float, height: float) -> Iterator[tuple[Figure, Axes]]:
    """Draw in one style, whatever the user's settings; ids in the SVG depend on its name and contents."""
    with matplotlib.style.context(["default", {**_STYLE, "svg.hashsalt": name}]):
        figure = Figure(figsize=(width, height), layout="constrained")
        yield figure, figure.subplots()


def _svg(figure: Figure, name: str, title: str) -> str:
    """Write a figure as an ``<svg>`` element whose ids begin with ``name``, so that several share a page."""
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    svg = buffer.getvalue()
    svg = re.sub(r"<metadata>.*?</metadata>\s*", "", svg[svg.index("<svg") :], flags=re.DOTALL)
    svg = re.sub("<[^>]+>", lambda tag: _own_ids(tag[0], name), svg)
    svg = svg.replace(_INK, "currentColor")
    return svg.replace("<svg ", f'<svg role="img" aria-label="{title}" ', 1).rstrip()


def _own_ids(tag: str, name: str) -> str:
    tag = tag.replace(' id="', f' id="{name}-')
    return tag.replace("url(#", f"url(#{name}-").replace('href="#', f'href="#{name}-')
