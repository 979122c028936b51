"""Files of ``torch.save`` that hold foreign Python objects beside the weights, read without running any code.

PyTorch's weights-only reader never imports a name: it looks names up in a table, and refuses those that are
not there. For the time of one load the table gets an inert stand-in for each name that the file has and the
reader does not know. Source: torch.serialization, safe_globals.
"""

from __future__ import annotations

import pickle
import re
from collections import Counter
from pathlib import Path
from typing import Any

import torch
from torch.serialization import get_unsafe_globals_in_checkpoint, safe_globals

_UNKNOWN = re.compile(r"GLOBAL (\S+) was not an allowed global")
_DEFAULTDICT = "collections.defaultdict"
_MOST_NAMES = 1000  # more than any training script has classes


def load_inert(path: Path) -> tuple[Any, Counter[str]]:
    """Read a file on the CPU; also returns how many objects of which classes were left out, by full name.

    Tensors, plain values and containers are read. Every other object becomes a stand-in that keeps nothing.
    Raises what ``torch.load`` raises: UnpicklingError for objects that cannot be stood in for (subclasses of
    list and dict, names in ``os`` and ``sys``), others for damaged files.
    """
    made: Counter[str] = Counter()
    names = _unknown_names(path)
    while True:
        made.clear()
        stand_ins: list[Any] = [(_stand_in(name, made), name) for name in sorted(names - {_DEFAULTDICT})]
        try:
            with safe_globals([*stand_ins, (_plain_dict, _DEFAULTDICT)]):
                content = torch.load(path, map_location="cpu", weights_only=True)
        except pickle.UnpicklingError as error:  # files that are no ZIP list no names: one more at a time
            refused = _UNKNOWN.search(str(error))
            name = "" if refused is None else _full_name(refused[1])
            if not name or name in names or len(names) >= _MOST_NAMES:
                raise
            names.add(name)
        else:
            return content, made


def _unknown_names(path: Path) -> set[str]:
    """Names that the reader does not know; empty where the file cannot list them, as only ZIPs can."""
    try:
        return set(get_unsafe_globals_in_checkpoint(path)[:_MOST_NAMES])
    except (ValueError, RuntimeError, EOFError, IndexError, pickle.UnpicklingError):
        return set()


def _full_name(name: str) -> str:
    return name if "." in name else f"builtins.{name}"  # the message leaves builtins out


def _stand_in(name: str, made: Counter[str]) -> type:
    class StandIn:
        """Takes the place of an object of the class ``name``, whatever it is made from, and keeps nothing."""

        __slots__ = ()

        def __new__(cls, *arguments: object) -> StandIn:
            made[name] += 1
            return super().__new__(cls)

        def __init__(self, *arguments: object) -> None:
            pass

        def __setstate__(self, state: object) -> None:
            """Drop the state: otherwise the reader would set attributes from it."""

    return StandIn


def _plain_dict(*arguments: object) -> dict[Any, Any]:
    """Begin a dict in place of a defaultdict, whose factory is not called."""
    return {}
