"""The folder of one training run: its settings, its state, its log and its curves."""

from __future__ import annotations

import hashlib
import json
import os
import pickle
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from imagenets.common.errors import InputError
from imagenets.common.locks import locked
from imagenets.common.whole_files import remove_leftovers, whole_file, write_whole
from imagenets.learning.processes import Processes

SETTINGS, STATE, LOG, CURVES = "settings.json", "last.pth", "log.jsonl", "curves.png"
# How the run went, not how the network got on.
_NOT_DRAWN = {"epoch", "step", "images_per_second", "data_wait"}
_CURVES_EVERY = 30.0  # seconds; drawing them takes half of one

Settings = Mapping[str, str | int | float | bool | None]


class RunFolder:
    """A folder that holds one run; made by ``opened``. Only the first process writes."""

    def __init__(self, path: Path, settings: Settings, processes: Processes, is_new: bool) -> None:
        """Use ``opened``."""
        self.path = path
        self.settings = dict(settings)
        self.processes = processes
        self.is_new = is_new
        self._drawn = time.monotonic()

    def load(self) -> dict[str, Any] | None:
        """Give the saved state, on the CPU; None where the run has none yet. Raises InputError if damaged."""
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
            torch.save({**state, "log": list(records), "settings": self.settings}, temporary)
        self.write_log(records)
        if records and (last or time.monotonic() - self._drawn > _CURVES_EVERY):
            draw_curves(records, self.path / CURVES)
            self._drawn = time.monotonic()

    def write_log(self, records: Iterable[Mapping[str, Any]]) -> None:
        """Write log.jsonl: a JSON object a line."""
        if self.processes.first:
            lines = "".join(json.dumps(dict(record)) + "\n" for record in records)
            write_whole(self.path / LOG, lines)


@contextmanager
def opened(path: Path, settings: Settings, processes: Processes) -> Iterator[RunFolder]:
    """Open a run's folder, make it where it is not there, and hold it against other runs.

    ``settings`` are all values that decide the weights. They are written to ``settings.json`` before
    anything else. Raises InputError when the folder holds a run with other settings, naming those that
    differ, when it holds what no run made, and when another process is at work in it.
    """
    with ExitStack() as held:

        def enter() -> bool:
            path.mkdir(parents=True, exist_ok=True)
            held.enter_context(locked(path / ".lock"))
            is_new = not (path / SETTINGS).exists()
            _keep_settings(path, settings)
            remove_leftovers(path)
            return is_new

        yield RunFolder(path, settings, processes, processes.from_first(enter))


def _keep_settings(folder: Path, settings: Settings) -> None:
    path = folder / SETTINGS
    if path.exists():
        try:
            before = json.loads(path.read_text(encoding="utf-8"))
            names = [*before, *(name for name in settings if name not in before)]
        except (ValueError, TypeError) as error:
            raise InputError(f"{path}: damaged; name another --output-dir") from error
        changed = [
            f"{name}: {_shown(before, name)} then, {_shown(settings, name)} now"
            for name in names
            if _shown(before, name) != _shown(settings, name)
        ]
        if changed:
            raise InputError(
                f"{folder}: holds a run with other settings ({'; '.join(changed)}); name another --output-dir"
            )
        return
    foreign = [name for name in (STATE, LOG, CURVES) if (folder / name).exists()]
    if foreign:
        raise InputError(f"{folder / foreign[0]}: not made by this script; name another --output-dir")
    write_whole(path, json.dumps(dict(settings), indent=2) + "\n")


def _shown(settings: Mapping[str, Any], name: str) -> str:
    return json.dumps(settings[name]) if name in settings else "not set"


def settings_text(settings: Settings) -> str:
    """Lay settings out for reading, a line each."""
    width = max(map(len, settings))
    return "\n".join(
        f"  {name:{width}}  {'–' if value is None else value}" for name, value in settings.items()
    )


def names_digest(names: Iterable[str | bytes]) -> str:
    """Digest of a list of names, by which a setting names a set of images."""
    digest = hashlib.blake2b(digest_size=16)
    for name in names:
        digest.update(os.fsencode(name) + b"\0")
    return digest.hexdigest()


def draw_curves(records: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Draw ``curves_figure`` as a PNG."""
    figure = curves_figure(records)
    with whole_file(path) as temporary:
        figure.savefig(temporary, format="png", dpi=110)


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
