"""What a training keeps in its folder: settings, state, log and curves."""

from __future__ import annotations

import json
import pickle
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from imagenets.common.errors import InputError
from imagenets.common.whole_files import whole_file, write_whole
from imagenets.learning.processes import Processes
from imagenets.learning.run_folder import Record, held_folder

SETTINGS, STATE, LOG, CURVES = "settings.json", "last.pth", "log.jsonl", "curves.png"
# How the run went, not how the network got on.
_NOT_DRAWN = {"epoch", "step", "images_per_second", "data_wait"}
_CURVES_EVERY = 30.0  # seconds; drawing them takes half of one

Settings = Mapping[str, str | int | float | bool | None]


@dataclass
class RunFolder:
    """A folder that holds one training; made by ``opened_run``. Only the first process writes."""

    path: Path
    settings: Settings
    processes: Processes
    is_new: bool
    _drawn: float = field(default_factory=time.monotonic)

    def load(self) -> dict[str, Any] | None:
        """Load the saved state, on the CPU; None where the run has none yet. Raises InputError if damaged."""
        path = self.path / STATE
        if not path.exists():
            return None
        try:
            state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
            state["log"], state["settings"]
        except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError, KeyError, TypeError) as error:
            raise InputError(f"{path}: damaged; move it away to begin the run anew") from error
        return state

    def save(self, state: Mapping[str, Any], records: Sequence[Mapping[str, Any]], *, last: bool) -> None:
        """Save the state, whole or not at all, and the log and the curves of ``records``.

        The records are part of the state, and log.jsonl is written from them: a run that is resumed from an
        earlier state has no record twice. In other processes than the first, nothing is done.
        """
        if not self.processes.first:
            return
        with whole_file(self.path / STATE) as temporary:
            torch.save({**state, "log": list(records), "settings": dict(self.settings)}, temporary)
        self.write_log(records)
        if records and (last or time.monotonic() - self._drawn > _CURVES_EVERY):
            with whole_file(self.path / CURVES) as temporary:
                curves_figure(records).savefig(temporary, format="png", dpi=110)
            self._drawn = time.monotonic()

    def write_log(self, records: Iterable[Mapping[str, Any]]) -> None:
        """Write log.jsonl: a JSON object a line."""
        if self.processes.first:
            write_whole(self.path / LOG, "".join(f"{json.dumps(dict(record))}\n" for record in records))


@contextmanager
def opened_run(path: Path, settings: Settings, processes: Processes) -> Iterator[RunFolder]:
    """Hold the folder of a training, as ``held_folder`` does; ``settings`` are all that decide the weights.

    They are written to ``settings.json`` before anything else.
    """
    record = Record(SETTINGS, settings, owned=(SETTINGS, STATE, LOG, CURVES))
    with held_folder(path, record, processes) as is_new:
        yield RunFolder(path, settings, processes, is_new)


def settings_text(settings: Settings) -> str:
    """Lay settings out for reading, a line each."""
    width = max(map(len, settings))
    shown = {name: "–" if value is None else value for name, value in settings.items()}
    return "\n".join(f"  {name:{width}}  {value}" for name, value in shown.items())


def curves_figure(records: Sequence[Mapping[str, Any]]) -> Figure:
    """Plot each number of the records against the epoch, a panel each.

    A record has ``epoch``, a whole number; numbers that only some records have are drawn where they are.
    """
    names = list(dict.fromkeys(name for record in records for name in record if name not in _NOT_DRAWN))
    figure = Figure(figsize=(7, 2.2 * len(names)), layout="constrained")
    panels = figure.subplots(len(names), sharex=True, squeeze=False)[:, 0]
    for name, axes in zip(names, panels, strict=True):
        points = [(record["epoch"], record[name]) for record in records if record.get(name) is not None]
        axes.plot(*zip(*points, strict=True), marker="." if len(points) < 50 else None)
        axes.set_ylabel(name)
        axes.grid(alpha=0.2)
    panels[-1].set_xlabel("epoch")
    panels[-1].xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    return figure
