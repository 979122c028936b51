"""The kinds of banks that pixels find their labels in: of regions, one vector a label, or of patches."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np

from imagenets.common.errors import InputError
from imagenets.learning.distance_matching import bank, patches
from imagenets.learning.engine.inference import ArrayStep, LabelStep
from imagenets.learning.networks.backbones import Backbone


@dataclass(frozen=True)
class BankKind:
    """How a kind of bank is made and used, and with what ``neighbours`` and ``temperature`` by default.

    - ``step(backbone, per_picture)``: what pictures with masks bring to it, for ``store_arrays``.
    - ``join(paths, bank)``: write what was stored as a bank; returns the number of its vectors.
    - ``load(path, channels, neighbours, mode)``: read a bank, on the CPU.
    - ``label_step(backbone, bank, neighbours, temperature, sharpen)``: label pictures by it.
    """

    noun: str
    neighbours: int
    temperature: float
    step: Callable[[Backbone, int], ArrayStep]
    join: Callable[[Sequence[Path], Path], int]
    load: Callable[..., Any]
    label_step: Callable[[Backbone, Any, int, float, bool], LabelStep]


REGIONS, PATCHES = "regions", "patches"
KINDS = {
    REGIONS: BankKind(
        "embeddings",
        10,
        0.07,
        lambda backbone, per_picture: bank.bank_step(backbone),
        bank.join_bank,
        bank.load_bank,
        bank.label_step,
    ),
    PATCHES: BankKind(
        "patches",
        30,
        0.02,
        patches.bank_step,
        patches.join_patches,
        patches.load_patches,
        patches.label_step,
    ),
}


def kind_of_file(path: Path) -> str:
    """Kind of a bank, by its arrays. Raises InputError, naming the file, where it is no bank."""
    if not path.exists():
        raise InputError(f"{path}: no such bank")
    try:
        with np.load(path) as arrays:
            names = set(arrays.files)
    except (ValueError, EOFError, AttributeError, TypeError, BadZipFile) as error:
        raise InputError(f"{path}: no bank of embeddings; distance_matching.py writes one") from error
    return PATCHES if "shares" in names else REGIONS
